//! The policy with what each prefix has counted, and the policies before.

use super::table::{numbers, table, text, unknown, words};
use super::{Content, counted, lasted, shown};
use crate::format::{bytes, grouped, local_time};
use crate::policy::history::Record;
use crate::policy::{Query, Row, View, action, change, headline, last_hit};
use crate::report::RuleReport;
use maud::{Markup, html};
use netdp_common::layout::Action;
use std::collections::BTreeSet;

/// The most rules, and the most policies before, that are shown.
const RULES: usize = 200;
const RECORDS: usize = 10;

/// The deepest that a rule is indented.
const DEPTH: usize = 6;

/// Returns the rules.
pub(super) fn rules(content: &Content<'_>) -> Markup {
    match &content.look.policy {
        Ok(view) => with_counts(view),
        Err(err) => without_counts(content, &format!("{err:#}")),
    }
}

fn with_counts(view: &View) -> Markup {
    let all: Vec<&Row> = view.rows.iter().collect();
    html! {
        @if let Some(problem) = &view.problem { p { "No counts: " (shown(problem)) } }
        (table(
            &shown(&headline(view, &Query::default(), &all)),
            [
                words("Prefix"), words("Action"), numbers("Packets"), numbers("Bytes"), numbers("New flows"),
                numbers("Last hit"), words("From"), words("Codes"),
            ],
            view.rows.iter().take(RULES).map(|row| cells(row, view.now)),
        ))
        (told(view))
        (rest(view.rows.len()))
    }
}

/// Returns what the codes in the table mean.
fn told(view: &View) -> Markup {
    let shown = view.rows.iter().take(RULES);
    let codes: BTreeSet<_> = shown.flat_map(|row| &row.codes).collect();
    html! {
        @for code in codes { p class="quiet" { code { (code) } ": " (code.text()) } }
    }
}

fn rest(rules: usize) -> Markup {
    html! {
        p class="quiet" {
            @if rules > RULES {
                (grouped((rules - RULES) as u64)) " more: "
            }
            a href="/api/v1/policy" { "all as JSON" } " · "
            a href="/api/v1/policy?unused" { "those that no packet has hit" }
        }
    }
}

fn cells(row: &Row, now: u64) -> [Markup; 8] {
    let amount = row.counts.map(|counts| counts.amount);
    let flows = amount.filter(|it| row.action == Action::Masquerade || it.flows > 0);
    let prefix = row.prefix.map(|prefix| prefix.to_string());
    [
        html! {
            span class={ "depth" (row.depth.min(DEPTH)) } {
                @match &prefix {
                    Some(prefix) => { code { (prefix) } }
                    None => { "everything else" }
                }
            }
        },
        acted(action(row.action)),
        amount.map_or_else(unknown, |it| text(grouped(it.packets))),
        amount.map_or_else(unknown, |it| text(bytes(it.bytes))),
        flows.map_or_else(unknown, |it| text(grouped(it.flows))),
        row.counts
            .map_or_else(unknown, |counts| text(last_hit(&counts, now))),
        row.origin.as_ref().map_or_else(unknown, text),
        html! {
            @for code in &row.codes { (code) " " }
        },
    ]
}

fn acted(action: &str) -> Markup {
    let class = match action {
        "masquerade" => "action masquerade",
        _ => "action",
    };
    html! { span class=(class) { (action) } }
}

/// Returns the rules of the agent's report, where nothing counts.
fn without_counts(content: &Content<'_>, problem: &str) -> Markup {
    let status = content.look.status.as_ref().ok();
    let report = status.and_then(|status| status.report.as_ref());
    let rules = report.map_or(&[][..], |report| &report.config.rules);
    let row = |rule: &RuleReport| {
        [
            html! { code { (rule.prefix) } },
            acted(&rule.action),
            text(&rule.origin),
        ]
    };
    html! {
        p class="quiet" { "No counts: " (shown(problem)) }
        @if !rules.is_empty() {
            (table(
                &counted(rules.len() as u64, "rule"),
                [words("Prefix"), words("Action"), words("From")],
                rules.iter().take(RULES).map(row),
            ))
            @if rules.len() > RULES {
                p class="quiet" { a href="/api/v1/status" { "all as JSON" } }
            }
        }
    }
}

/// Returns the policies that have been in force, the last first.
pub(super) fn history(content: &Content<'_>) -> Markup {
    let records = content.records.as_deref().unwrap_or_default();
    html! {
        @if records.is_empty() {
            p class="quiet" { "No policy is remembered yet." }
        } @else {
            (table(
                "Policies that have been in force, the last first",
                [
                    words("Since"), numbers("Age"), numbers("Generation"), words("Hash"), numbers("Rules"),
                    words("Change"), words("Source"),
                ],
                records.iter().rev().take(RECORDS).map(|record| remembered(record, content.now)),
            ))
            p class="quiet" { a href="/api/v1/history?n=50" { (records.len()) " remembered, as JSON" } }
        }
    }
}

fn remembered(record: &Record, now: u64) -> [Markup; 7] {
    let previous = record.generation.saturating_sub(1);
    let target = format!(
        "/api/v1/history?generation={previous}&to={}",
        record.generation
    );
    let difference = change(record.counts);
    [
        text(local_time(record.applied_at)),
        text(lasted(now, record.applied_at)),
        text(record.generation.to_string()),
        html! { code { (record.hash.get(..8).unwrap_or(&record.hash)) } },
        text(grouped(record.rules as u64)),
        html! {
            @match record.counts == [0; 3] {
                true => { (difference) }
                false => { a href=(target) { (difference) } }
            }
        },
        text(&record.source),
    ]
}
