//! The question of which source a destination will see, and its answer.

use super::table::{table, text, words};
use super::{document, prose, shown};
use crate::explain::answer::{Answer, Answers, Step};
use maud::{Markup, html};

/// Protocols that the form offers.
const PROTOCOLS: [&str; 4] = ["tcp", "udp", "icmp", "sctp"];

/// The question of a reader.
#[derive(Debug)]
pub(in crate::page) struct Asked<'a> {
    /// Name of the node.
    pub node: String,
    pub from: &'a str,
    pub to: &'a str,
    pub protocol: &'a str,
}

impl Asked<'_> {
    pub(super) fn nothing(node: &str) -> Self {
        Self {
            node: node.to_owned(),
            from: "",
            to: "",
            protocol: "tcp",
        }
    }
}

/// Returns the form.
pub(super) fn form(asked: &Asked<'_>) -> Markup {
    html! {
        p { "Which source will a destination see, and why? The answer is the decision that packets meet; nothing \
             is sent, and nothing changes." }
        form method="get" action="/explain" {
            div {
                label for="from" { "From" }
                input id="from" name="from" value=(shown(asked.from)) placeholder="any pod" autocomplete="off"
                    spellcheck="false" aria-describedby="from-hint";
                small id="from-hint" { "namespace/pod or address" }
            }
            div {
                label for="to" { "To" }
                input id="to" name="to" value=(shown(asked.to)) required placeholder="10.2.0.17:443" autocomplete="off"
                    spellcheck="false" aria-describedby="to-hint";
                small id="to-hint" { "address, with or without a port" }
            }
            div {
                label for="protocol" { "Protocol" }
                select id="protocol" name="protocol" {
                    @for name in PROTOCOLS {
                        option value=(name) selected[name == asked.protocol] { (name) }
                    }
                }
            }
            button { "Explain" }
        }
    }
}

/// Returns the page with the answers.
pub(in crate::page) fn explained(asked: &Asked<'_>, answers: &Answers) -> Markup {
    let content = html! {
        @for answer in &answers.answers { (answered(answer)) }
    };
    around(asked, &content)
}

/// Returns the page that says why there is no answer.
pub(in crate::page) fn unexplained(asked: &Asked<'_>, problem: &str) -> Markup {
    let content = html! {
        section aria-label="Problem" {
            h2 { "No answer" }
            p { (shown(problem)) }
        }
    };
    around(asked, &content)
}

fn around(asked: &Asked<'_>, content: &Markup) -> Markup {
    let body = html! {
        header {
            p class="brand" { "netdp on " (shown(&asked.node)) }
            h1 { "Explain" }
        }
        main id="main" {
            (content)
            section aria-labelledby="ask-heading" {
                h2 id="ask-heading" { "Ask" }
                (form(asked))
            }
            p { a href="/" { "Back to the overview" } }
        }
    };
    document(&asked.node, &body)
}

fn answered(answer: &Answer) -> Markup {
    let from = answer.pod.as_ref().map_or_else(
        || answer.from.clone(),
        |pod| format!("{pod}, {}", answer.from),
    );
    let any = if answer.any_pod { "any pod, here " } else { "" };
    let caption = format!("{any}{from} to {}, {}", answer.to, answer.protocol);
    html! {
        section aria-label=(shown(&answer.to)) {
            h2 class="answer" { (shown(&answer.headline)) }
            @if !answer.is_certain {
                p { strong { "Perhaps: " } "it depends on what is not known of the packet." }
            }
            @if !answer.steps.is_empty() {
                (table(
                    &shown(&caption),
                    [words("Step"), words("Answer"), words("Why")],
                    answer.steps.iter().map(step),
                ))
            }
            @for note in &answer.notes { p { "Note: " (shown(note)) } }
            @for remedy in &answer.remedies { p class="remedy" { (shown(remedy)) } }
            @for code in &answer.codes {
                details {
                    summary { code { (code) } " " (code.text()) }
                    p { (prose(without_severity(code.explanation()))) }
                }
            }
        }
    }
}

/// Removes the severity with which an explanation begins.
fn without_severity(explanation: &str) -> &str {
    explanation
        .split_once(".* ")
        .map_or(explanation, |(_, it)| it)
}

fn step(step: &Step) -> [Markup; 3] {
    let details = |of: fn(&crate::explain::answer::Detail) -> String| {
        html! {
            @for detail in &step.details { span class="detail" { (shown(&of(detail))) } }
        }
    };
    [
        text(step.step),
        html! { (shown(&step.answer)) (details(|it| format!("{}: {}", it.label, it.what))) },
        html! { (shown(&step.why)) (details(|it| it.why.clone())) },
    ]
}
