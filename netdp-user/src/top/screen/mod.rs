//! Drawing: the head, the tabs, a table, the last line.

mod contents;
mod table;

use super::keys::{HELP, Keys, Tab};
use super::numbers::{bars, bytes, decimal, duration};
use super::sampler::Sample;
use super::view::{View, float};
use crate::datapath::{Destination, protocol_name};
use crate::format::grouped;
use crate::report::Report;
use crate::terminal;
use crate::time;
use netdp_common::layout::proto;
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Paragraph, Wrap};
use std::net::SocketAddr;

/// Bars after a rate.
const BARS: usize = 6;

/// Columns from which on there is room for brackets and more keys.
const WIDE: u16 = 64;

/// Draws everything. Where the user has scrolled too far, the choice is corrected.
pub(super) fn draw(frame: &mut Frame<'_>, view: &View, keys: &mut Keys) {
    let area = frame.area();
    let last = Constraint::Length(1);
    if keys.has_help {
        let [body, last] = Layout::vertical([Constraint::Min(2), last]).areas(area);
        help(frame, body);
        return frame.render_widget(last_line(view, keys, area.width), last);
    }
    let head = head(view, keys, area.width);
    let height = u16::try_from(head.len()).unwrap_or(area.height);
    let parts = [
        Constraint::Length(height.min(area.height.saturating_sub(4))),
        Constraint::Length(1),
        Constraint::Min(2),
        last,
    ];
    let [top, tabs, body, last] = Layout::vertical(parts).areas(area);
    frame.render_widget(Paragraph::new(head), top);
    frame.render_widget(tab_line(keys, area.width), tabs);
    table::draw(frame, body, contents::content(view, keys), keys);
    frame.render_widget(last_line(view, keys, area.width), last);
}

/// Returns the lines above the tabs. Each fact stays in one piece; lines are filled up to `width`.
fn head(view: &View, keys: &Keys, width: u16) -> Vec<Line<'static>> {
    let Some(sample) = &view.last else {
        return vec![Line::from("netdp top  reading the maps …")];
    };
    let mut lines = flow(first_facts(sample), width);
    if let Some((text, is_urgent)) = warning(view, sample) {
        let style = if is_urgent {
            Style::new().add_modifier(Modifier::BOLD | Modifier::REVERSED)
        } else {
            Style::new().add_modifier(Modifier::BOLD)
        };
        lines.extend(flow(text, width).into_iter().map(|line| line.style(style)));
    }
    lines.extend(flow(rate_facts(view), width));
    lines.extend(flow(size_facts(view, sample, keys), width));
    lines
}

fn first_facts(sample: &Sample) -> Vec<String> {
    let mut facts = vec![
        "netdp top".to_owned(),
        terminal::line(&sample.node).into_owned(),
    ];
    facts.extend((sample.uplinks.iter()).map(|uplink| terminal::line(&uplink.name).into_owned()));
    match &sample.report {
        Some(report) => facts.push(config(report)),
        None => facts.push("config -".to_owned()),
    }
    facts
}

fn config(report: &Report) -> String {
    let config = &report.config;
    let age = time::now().saturating_sub(config.applied_at);
    let hash = terminal::line(&config.hash).into_owned();
    format!("config {hash} for {}", duration(age))
}

/// Returns what is wrong, in parts, and whether it stops packets.
fn warning(view: &View, sample: &Sample) -> Option<(Vec<String>, bool)> {
    if !sample.has_agent {
        let parts = [
            "no agent is running:",
            "the datapath goes on,",
            "the configuration is not followed",
        ];
        return Some((parts.map(str::to_owned).to_vec(), true));
    }
    let (key, used, ports) = view.fullest()?;
    let percent = (used * 100).checked_div(ports).unwrap_or(0);
    if percent < 80 || !matches!(key.protocol, proto::TCP | proto::UDP) {
        return None;
    }
    let mut parts = vec![format!("ports {percent} % used to {}", destination(&key))];
    if let Some(seconds) = view.full_in(&key) {
        parts.push(format!("full in {}", duration(seconds)));
    }
    Some((parts, view.rates.refused > 0.0))
}

fn rate_facts(view: &View) -> Vec<String> {
    let rates = &view.rates;
    let per_second = |name: &str, packets: f64, sent: f64, past: &[f64]| {
        let bars = bars(past, BARS);
        format!("{name} {}/s {}/s {bars}", decimal(packets), bytes(sent))
    };
    vec![
        per_second(
            "masq",
            rates.masqueraded,
            rates.masqueraded_bytes,
            &view.masqueraded,
        ),
        per_second(
            "bypass",
            rates.bypassed,
            rates.bypassed_bytes,
            &view.bypassed,
        ),
        format!("new {}/s {}", decimal(rates.new), bars(&view.new, BARS)),
        format!("drop {}/s", decimal(rates.dropped)),
        format!("refused {}/s", decimal(rates.refused)),
    ]
}

fn size_facts(view: &View, sample: &Sample, keys: &Keys) -> Vec<String> {
    let protocols = &sample.usage.protocols;
    let (used, most) = (protocols.total(), sample.capacity);
    let percent = (used * 100).checked_div(most).unwrap_or(0);
    let mut facts = vec![format!(
        "mappings {} of {} ({percent} %) {}",
        grouped(used),
        grouped(most),
        bars(&view.mappings, BARS)
    )];
    for (name, count) in [
        ("tcp", protocols.tcp),
        ("udp", protocols.udp),
        ("icmp", protocols.icmp),
        ("other", protocols.other),
    ] {
        if count > 0 {
            facts.push(format!("{name} {}", decimal(float(count))));
        }
    }
    if keys.shows_run_time() {
        facts.push(match (view.run_time, &sample.no_runs) {
            (Some(nanos), _) => format!("{nanos:.0} ns per packet"),
            (None, Some(why)) => terminal::line(why).into_owned(),
            (None, None) => "- ns per packet".to_owned(),
        });
    }
    facts
}

/// Fills lines with facts, two blanks apart.
fn flow(facts: Vec<String>, width: u16) -> Vec<Line<'static>> {
    let mut lines: Vec<String> = Vec::new();
    for fact in facts {
        let fits =
            |line: &String| line.chars().count() + 2 + fact.chars().count() <= usize::from(width);
        match lines.last_mut().filter(|line| fits(line)) {
            Some(line) => {
                line.push_str("  ");
                line.push_str(&fact);
            }
            None => lines.push(fact),
        }
    }
    lines.into_iter().map(Line::from).collect()
}

fn tab_line(keys: &Keys, width: u16) -> Line<'static> {
    let is_narrow = width < WIDE;
    let mut spans = Vec::new();
    for (number, tab) in (1..).zip(Tab::ALL) {
        let style = if tab == keys.tab {
            Style::new().add_modifier(Modifier::REVERSED)
        } else {
            Style::new()
        };
        let (title, gap) = match is_narrow {
            true => (format!("{number} {}", tab.short_title()), " "),
            false => (format!("[{number}] {}", tab.title()), "  "),
        };
        spans.push(Span::styled(title, style));
        spans.push(Span::raw(gap));
    }
    Line::from(spans)
}

fn last_line(view: &View, keys: &Keys, width: u16) -> Line<'static> {
    if keys.is_typing {
        return Line::from(format!("/{}", terminal::line(&keys.filter)));
    }
    let mut words = Vec::new();
    if keys.is_paused() {
        words.push("PAUSED".to_owned());
    }
    if !keys.filter.is_empty() {
        words.push(format!("only {}", terminal::line(&keys.filter)));
    }
    if view.last.as_ref().is_some_and(|last| last.usage.is_cut) {
        words.push("more than 65,536 pods or destinations: the rest is left out".to_owned());
    }
    let known = match width < WIDE {
        true => "? help  q quit",
        false => "/ filter  s sort  p pause  ? help  q quit",
    };
    words.push(known.to_owned());
    Line::from(words.join("  "))
}

fn help(frame: &mut Frame<'_>, area: Rect) {
    let lines = HELP.map(|(keys, meaning)| Line::from(format!("{keys:<15} {meaning}")));
    let text = Paragraph::new(lines.to_vec()).wrap(Wrap { trim: false });
    frame.render_widget(text, area);
}

/// Formats a destination: `tcp 203.0.113.10:443`.
fn destination(key: &Destination) -> String {
    let protocol = protocol_name(key.protocol);
    match key.protocol {
        proto::TCP | proto::UDP => {
            format!("{protocol} {}", SocketAddr::new(key.address, key.id))
        }
        _ => format!("{protocol} {}", key.address),
    }
}
