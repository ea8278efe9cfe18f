//! Text output of `netdp policy`.

use super::gather::{CHANGES_NOTHING, Counts, NEVER_HIT, Query, Row, View};
use super::json::action;
use crate::cli::output::table;
use crate::codes::Code;
use crate::format::{bytes, grouped, local_time};
use crate::terminal;
use crate::time::pretty;
use anyhow::Result;
use netdp_common::layout::Action;
use std::fmt::Write as _;

/// Age below which a hit counts as just now, in seconds: hits of cached pairs get a time once a
/// minute.
const NOW: u64 = 75;

pub(super) fn text(view: &View, query: &Query) -> Result<String> {
    let rows = view.selected(query);
    let mut out = String::new();
    writeln!(out, "{}", headline(view, query, &rows))?;
    if !view.agent_runs {
        writeln!(out, "the agent is not running; this is what it has left")?;
    }
    let rejected = view.config.iter().flat_map(|config| &config.rejected);
    for reason in rejected {
        let code = Code::Rejected;
        writeln!(
            out,
            "the newest configuration was rejected: {}  {code}",
            terminal::line(reason)
        )?;
    }
    if let Some(problem) = &view.problem {
        writeln!(out, "no counts: {}", terminal::line(problem))?;
    }
    let mut shown = table(&[
        "PREFIX",
        "ACTION",
        "PACKETS",
        "BYTES",
        "NEW FLOWS",
        "LAST HIT",
        "FROM",
        "",
    ]);
    for row in &rows {
        shown.add_row(cells(row, view.now));
    }
    if !rows.is_empty() {
        writeln!(out, "\n{shown}\n")?;
    }
    let has = |code: Code| rows.iter().any(|row| row.codes.contains(&code));
    if has(CHANGES_NOTHING) {
        writeln!(
            out,
            "{CHANGES_NOTHING}: the destinations would be treated alike without the entry; remove \
             it, or check its list"
        )?;
    }
    if has(NEVER_HIT) {
        writeln!(
            out,
            "{NEVER_HIT}: no packet has hit the entry since counts began; if that is long \
             enough, remove it"
        )?;
    }
    if let [_, ..] = view.removed.as_slice() {
        writeln!(
            out,
            "prefixes removed within a day, whose counts go on if they come back: {}",
            view.removed.len()
        )?;
    }
    Ok(out)
}

/// Returns the first line: what is shown, and since when it is counted.
pub(crate) fn headline(view: &View, query: &Query, rows: &[&Row]) -> String {
    let rules = view.rows.iter().filter(|row| row.prefix.is_some()).count();
    let since = view.since.map_or_else(String::new, |since| {
        format!(
            "; counts since {} ({})",
            local_time(since),
            pretty(view.now.saturating_sub(since))
        )
    });
    if let Some(destination) = query.destination
        && query.unused.is_none()
    {
        let deciding = rows.iter().rev().find(|row| row.prefix.is_some());
        let deciding = deciding.or(rows.last());
        return deciding.map_or_else(String::new, |row| {
            format!(
                "{destination}: {}, by {}{since}",
                action(row.action),
                prefix(row)
            )
        });
    }
    if let Some(unused) = query.unused {
        let unused_rules = rows.iter().filter(|row| row.prefix.is_some()).count();
        let how_long = unused.map_or_else(String::new, |seconds| {
            format!(" within {}", pretty(seconds))
        });
        return format!("{unused_rules} of {rules} rules were not hit{how_long}{since}");
    }
    let noun = if rules == 1 { "rule" } else { "rules" };
    let Some(config) = &view.config else {
        return format!("{rules} {noun}{since}");
    };
    let hash = config.hash.get(..8).unwrap_or(&config.hash);
    format!(
        "{rules} {noun} from {} ({hash}, gen {}, for {}){since}",
        terminal::line(&config.source),
        config.generation,
        pretty(view.now.saturating_sub(config.applied_at)),
    )
}

fn prefix(row: &Row) -> String {
    let prefix = row.prefix.map(|prefix| prefix.to_string());
    prefix.unwrap_or_else(|| "everything else".into())
}

fn cells(row: &Row, now: u64) -> [String; 8] {
    let unknown = || "-".to_owned();
    let codes: Vec<_> = row.codes.iter().map(ToString::to_string).collect();
    let amount = row.counts.map(|counts| counts.amount);
    let flows = amount.filter(|it| row.action == Action::Masquerade || it.flows > 0);
    [
        format!("{:width$}{}", "", prefix(row), width = 2 * row.depth),
        action(row.action).to_owned(),
        amount.map_or_else(unknown, |it| grouped(it.packets)),
        amount.map_or_else(unknown, |it| bytes(it.bytes)),
        flows.map_or_else(unknown, |it| grouped(it.flows)),
        row.counts.map_or_else(unknown, |it| last_hit(&it, now)),
        row.origin.clone().unwrap_or_else(unknown),
        codes.join(" "),
    ]
}

/// Formats the time of the last hit as an age; `<` before it if it may be less.
pub(crate) fn last_hit(counts: &Counts, now: u64) -> String {
    if counts.is_unused() {
        return "never".into();
    }
    if counts.last == 0 {
        return "-".into();
    }
    match (now.saturating_sub(counts.last), counts.later) {
        (0..NOW, _) => "now".into(),
        (age, false) => pretty(age),
        (age, true) => format!("<{}", pretty(age)),
    }
}

#[cfg(test)]
mod tests {
    use super::super::gather::tests::view;
    use super::super::gather::{Counts, Query};
    use super::super::ledger::Amount;
    use super::{last_hit, text};

    #[test]
    fn the_first_line_answers_the_question() {
        let first = |query: Query| {
            let shown = text(&view(), &query).unwrap();
            let line = shown.lines().next().unwrap_or_default();
            line.split("; counts since").next().unwrap().to_owned()
        };
        assert_eq!(
            first(Query::default()),
            "3 rules from files (a030bc85, gen 7, for 2d0h)"
        );
        let of = |unused, destination: Option<&str>| Query {
            unused,
            destination: destination.map(|it| it.parse().unwrap()),
            json: false,
        };
        assert_eq!(
            first(of(None, Some("10.2.0.17"))),
            "10.2.0.17: masquerade, by 10.2.0.0/24"
        );
        assert_eq!(
            first(of(None, Some("192.0.2.1"))),
            "192.0.2.1: masquerade, by everything else"
        );
        assert_eq!(first(of(Some(None), None)), "1 of 3 rules were not hit");
        assert_eq!(
            first(of(Some(Some(30 * 86_400)), None)),
            "1 of 3 rules were not hit within 30d0h"
        );
    }

    #[test]
    fn a_nested_rule_is_indented_and_an_unused_one_marked() {
        let shown = text(&view(), &Query::default()).unwrap();
        let line = |of: &str| shown.lines().find(|line| line.contains(of)).unwrap();
        assert!(
            line("10.2.0.0/24").starts_with("   10.2.0.0/24 "),
            "{shown}"
        );
        assert!(line("10.2.0.0/24").contains("never"), "{shown}");
        assert!(line("10.2.0.0/24").contains("NDP203"), "{shown}");
        assert!(line("10.0.0.0/8").contains("91,204,113"), "{shown}");
        let bypass = line("fd00::/8").split_whitespace().nth(5);
        assert_eq!(bypass, Some("-"), "{shown}");
        let mut stopped = view();
        stopped.agent_runs = false;
        let shown = text(&stopped, &Query::default()).unwrap();
        assert!(shown.contains("the agent is not running"), "{shown}");
    }

    #[test]
    fn a_time_that_may_be_later_is_marked() {
        let counts = |last, later| Counts {
            amount: Amount {
                packets: 1,
                ..Amount::default()
            },
            last,
            later,
        };
        assert_eq!(last_hit(&counts(1_000, false), 1_010), "now");
        assert_eq!(last_hit(&counts(1_000, false), 4_600), "1h0m");
        assert_eq!(last_hit(&counts(1_000, true), 4_600), "<1h0m");
        assert_eq!(last_hit(&Counts::default(), 4_600), "never");
    }
}
