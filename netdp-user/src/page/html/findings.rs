//! The first sentence, and the findings with what to do.

use super::{Content, counted, lasted, prose, shown};
use crate::codes::Severity;
use crate::report::Finding;
use maud::{Markup, html};

/// The most findings that are shown.
const SHOWN: usize = 30;

/// Returns the answer to the first question: does it work?
pub(super) fn sentence(content: &Content<'_>) -> Markup {
    let agent = &content.agent;
    let is_ready = agent.unready.is_empty();
    let (state, words) = match is_ready {
        true => ("good", "is ready"),
        false => ("bad", "is not ready"),
    };
    let node = match content.node.as_str() {
        "" => "This node",
        node => node,
    };
    html! {
        header {
            p class="brand" { "netdp" }
            h1 {
                span class={ "state " (state) } aria-hidden="true" { (if is_ready { "✓" } else { "!" }) }
                " " (shown(node)) " " (words)
            }
            p class="lead" { (in_force(content)) " " (findings_counted(content)) }
            @for reason in agent.unready.iter().take(SHOWN) {
                p class="lead" { "Not ready: " (shown(reason)) }
            }
        }
    }
}

fn in_force(content: &Content<'_>) -> Markup {
    let agent = &content.agent;
    if agent.hash.is_empty() {
        return html! { "No policy is in force yet." };
    }
    let hash = agent.hash.get(..8).unwrap_or(&agent.hash);
    let place = match (agent.mode.as_str(), agent.uplinks.as_slice()) {
        ("shadow", _) => "compared".to_owned(),
        (_, []) => "in force by rules of netfilter".to_owned(),
        (_, uplinks) => format!("in force on {}", uplinks.join(", ")),
    };
    html! {
        "Policy " code { (hash) } " from " (shown(&agent.source)) " has been " (shown(&place)) " for "
        (lasted(content.now, agent.applied_at)) "."
    }
}

fn findings_counted(content: &Content<'_>) -> Markup {
    let found = content.look.status.as_ref().map(|it| it.findings().len());
    let number = u64::try_from(found.unwrap_or(0)).unwrap_or(u64::MAX);
    html! {
        @match number {
            0 => { "No findings." }
            _ => { a href="#findings" { (counted(number, "finding")) } "." }
        }
    }
}

/// Returns the findings.
pub(super) fn list(content: &Content<'_>) -> Markup {
    let status = match &content.look.status {
        Ok(status) => status,
        Err(err) => {
            return html! { p { "The status can't be read: " (shown(&format!("{err:#}"))) } };
        }
    };
    let found = status.findings();
    html! {
        @if found.is_empty() {
            p class="quiet" { "Nothing that needs attention." }
        } @else {
            ul class="findings" {
                @for finding in found.iter().take(SHOWN) { li class=(class(finding)) { (item(finding)) } }
            }
            @if found.len() > SHOWN {
                p { (found.len() - SHOWN) " more: " code { "netdp status" } }
            }
        }
    }
}

const fn class(finding: &Finding) -> &'static str {
    match finding.severity {
        Severity::Error => "error",
        Severity::Warning => "warning",
        Severity::Info => "info",
    }
}

fn item(finding: &Finding) -> Markup {
    let (sign, word) = match finding.severity {
        Severity::Error => ("✕", "Error"),
        Severity::Warning => ("▲", "Warning"),
        Severity::Info => ("i", "Info"),
    };
    html! {
        p class="kind" {
            span aria-hidden="true" { (sign) } " " (word)
            @if let Some(code) = finding.code { " · " code { (code) } " " (code.text()) }
        }
        p { (shown(&finding.text)) }
        @if let Some(remedy) = finding.code.and_then(crate::codes::Code::remedy) {
            p class="remedy" { strong { "Do: " } (prose(remedy)) }
        }
    }
}
