//! The last hour: lines, each with its numbers, and drops with what they mean.

use super::super::past::{INTERVAL, Past, Series, float};
use super::super::spark;
use super::table::{numbers, table, text, words};
use super::{counted, shown};
use crate::explain::answer::drop_in_words;
use crate::format::grouped;
use crate::time::pretty;
use crate::top::numbers::{bytes, decimal};
use maud::{Markup, html};

/// Samples of a row of numbers: five minutes.
const OF_A_ROW: usize = 30;

/// A line: what it shows, its unit, and the bytes that belong to it.
struct Line {
    name: &'static str,
    unit: &'static str,
    series: Series,
    bytes: Option<Series>,
}

const LINES: [Line; 5] = [
    Line {
        name: "Masqueraded",
        unit: "packets/s",
        series: Series::Masqueraded,
        bytes: Some(Series::MasqueradedBytes),
    },
    Line {
        name: "Bypassed",
        unit: "packets/s",
        series: Series::Bypassed,
        bytes: Some(Series::BypassedBytes),
    },
    Line {
        name: "New mappings",
        unit: "per second",
        series: Series::New,
        bytes: None,
    },
    Line {
        name: "Live mappings",
        unit: "",
        series: Series::Mappings,
        bytes: None,
    },
    Line {
        name: "Dropped",
        unit: "packets/s",
        series: Series::Dropped,
        bytes: None,
    },
];

/// Returns the lines.
pub(super) fn lines(past: &Past) -> Markup {
    html! {
        @if past.span().is_zero() {
            p class="quiet" {
                "The first numbers come after two samples, " (2 * INTERVAL.as_secs()) " s after the agent's start. \
                 Without a datapath there are none."
            }
        } @else {
            p class="quiet" {
                "The last " (pretty(past.span().as_secs())) ", a sample each " (INTERVAL.as_secs())
                " s; the agent keeps an hour in memory."
            }
            div class="lines" {
                @for line in &LINES { (drawn(line, past)) }
            }
        }
    }
}

fn drawn(line: &Line, past: &Past) -> Markup {
    let values = past.values(line.series);
    let last = values.last().copied().unwrap_or_default();
    let highest = values.iter().copied().fold(0.0, f64::max);
    let (now, most) = (decimal(last), decimal(highest));
    let label = format!(
        "{} {}: now {now}, highest {most} in the last {}",
        line.name,
        line.unit,
        pretty(past.span().as_secs())
    );
    html! {
        figure {
            figcaption {
                h3 { (line.name) }
                p class="value" { (now) " " span class="unit" { (line.unit) } }
                p class="quiet" {
                    @if let Some(series) = line.bytes {
                        (bytes(past.values(series).last().copied().unwrap_or_default())) "/s, "
                    }
                    "highest " (most)
                }
            }
            (spark::line(&values, &label))
            details {
                summary { "Numbers" }
                (table(
                    &shown(&format!("{} {}, by five minutes", line.name, line.unit)),
                    [words("Minutes ago"), numbers("Mean"), numbers("Highest")],
                    rows(&values),
                ))
            }
        }
    }
}

/// Returns mean and highest value of each five minutes, the last first.
fn rows(values: &[f64]) -> Vec<[Markup; 3]> {
    let parts = values.rchunks(OF_A_ROW).zip(0_u64..);
    let rows = parts.map(|(part, n)| {
        let minutes = OF_A_ROW as u64 * INTERVAL.as_secs() / 60;
        let mean = part.iter().sum::<f64>() / float(part.len().max(1) as u64);
        let highest = part.iter().copied().fold(0.0, f64::max);
        let ago = format!("{} to {}", n * minutes, (n + 1) * minutes);
        [text(ago), text(decimal(mean)), text(decimal(highest))]
    });
    rows.collect()
}

/// Returns the drops by reason.
pub(super) fn drops(past: &Past) -> Markup {
    let drops = past.drops();
    let all = drops.iter().map(|(_, count)| count).sum();
    html! {
        @if drops.is_empty() {
            p class="quiet" { "No packet was dropped." }
        } @else {
            (table(
                &format!("{} in the last {}", counted(all, "packet"), pretty(past.span().as_secs())),
                [words("Reason"), numbers("Packets"), words("Meaning")],
                drops.iter().map(|(reason, count)| [
                    html! { code { (reason.name()) } },
                    text(grouped(*count)),
                    text(drop_in_words(*reason)),
                ]),
            ))
        }
    }
}
