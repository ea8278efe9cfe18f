//! Markup: what is common to all pages, and the order of the sections. maud escapes every string.

mod events;
mod explain;
mod findings;
mod policy;
mod ports;
mod table;
mod traffic;
mod uplinks;

use super::look::Look;
use super::past::Past;
use crate::control::AgentStatus;
use crate::events::Kind;
use crate::format::grouped;
use crate::monitor::Line;
use crate::policy::history::Record;
use crate::terminal;
use crate::time::pretty;
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use maud::{DOCTYPE, Markup, PreEscaped, html};
use ring::digest::{SHA256, digest};
use std::borrow::Cow;
use std::sync::LazyLock;

pub(super) use explain::{Asked, explained, unexplained};

const STYLE: &str = include_str!("style.css");

/// A circle through which an arrow leaves. Part of the page, so that the browser asks for none.
const ICON: &str = "data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 32 32' \
                    fill='none' stroke='%230b6e69' stroke-width='3'%3E%3Cpath d='M20 6a11 11 0 1 0 0 20\
                    M12 16h17m-5-5 5 5-5 5'/%3E%3C/svg%3E";

/// The most characters of a string of others that are shown.
const CHARACTERS: usize = 120;

/// The largest overview, in bytes, and what of it is around the sections and the style.
const MOST_BYTES: usize = 200_000;
const FRAME: usize = 2_000;

/// Sections of the overview: anchor and heading.
const SECTIONS: [(&str, &str); 10] = [
    ("findings", "Findings"),
    ("ask", "Ask"),
    ("traffic", "Traffic, last hour"),
    ("ports", "Ports"),
    ("policy", "Policy"),
    ("uplinks", "Uplinks"),
    ("drops", "Drops, last hour"),
    ("events", "Recent events"),
    ("history", "Configuration history"),
    ("about", "About"),
];

/// Times after which the page may be loaded anew, in seconds, that it offers.
const EVERY: [u32; 3] = [5, 10, 60];

/// All that the overview is made of.
pub(in crate::page) struct Content<'a> {
    /// Name of the node.
    pub node: String,
    /// The current time, in seconds since 1970.
    pub now: u64,
    pub agent: AgentStatus,
    pub look: &'a Look,
    pub past: &'a Past,
    /// The newest events, the newest first.
    pub events: Vec<Line>,
    /// The kinds of single flows that `netdp monitor` listens to now.
    pub heard: Vec<Kind>,
    /// The policies that have been in force, the last one last.
    pub records: Option<Vec<Record>>,
    /// Seconds after which the page is loaded anew.
    pub every: Option<u32>,
}

/// Returns the content security policy of all pages: this style, these forms, and nothing else.
pub(in crate::page) fn security_policy() -> &'static str {
    static POLICY: LazyLock<String> = LazyLock::new(|| {
        let hash = BASE64_STANDARD.encode(digest(&SHA256, STYLE.as_bytes()));
        format!(
            "default-src 'none'; style-src 'sha256-{hash}'; img-src data:; form-action 'self'; \
             base-uri 'none'; frame-ancestors 'none'"
        )
    });
    &POLICY
}

/// Returns the overview.
pub(in crate::page) fn overview(content: &Content<'_>) -> Markup {
    let [
        findings,
        ask,
        traffic,
        ports,
        policy,
        uplinks,
        drops,
        events,
        history,
        about,
    ] = SECTIONS;
    let head = html! {
        (findings::sentence(content))
        (navigation(content.every))
    };
    let now = html! {
        (section(findings, &findings::list(content)))
        (section(ask, &explain::form(&Asked::nothing(&content.node))))
        (section(traffic, &traffic::lines(content.past)))
        (section(ports, &ports::most(content.look)))
        (section(policy, &policy::rules(content)))
        (section(uplinks, &uplinks::list(content.look)))
        (section(drops, &traffic::drops(content.past)))
    };
    let rest = html! {
        (section(history, &policy::history(content)))
        (section(about, &uplinks::about(content)))
    };
    let others = [&head, &now, &rest].map(|it| it.0.len());
    let room = MOST_BYTES.saturating_sub(FRAME + STYLE.len() + others.iter().sum::<usize>());
    let body = html! {
        (head)
        main id="main" {
            (now)
            (section(events, &events::newest(content, room)))
            (rest)
        }
    };
    document(&content.node, &body)
}

/// Returns a page that says why there is no other.
pub(in crate::page) fn problem(node: &str, problem: &str) -> Markup {
    let body = html! {
        header { h1 { "Not answered" } }
        main id="main" {
            p { (shown(problem)) }
            p { a href="/" { "Back to the overview" } }
        }
    };
    document(node, &body)
}

fn document(node: &str, body: &Markup) -> Markup {
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                meta name="robots" content="noindex";
                title { "netdp on " (shown(node)) }
                link rel="icon" href=(ICON);
                style { (PreEscaped(STYLE)) }
            }
            body {
                a class="skip" href="#main" { "Skip to the content" }
                (body)
            }
        }
    }
}

fn navigation(every: Option<u32>) -> Markup {
    html! {
        nav aria-label="Sections" {
            @for (id, heading) in SECTIONS {
                a href={ "#" (id) } { (heading.split(',').next().unwrap_or(heading)) }
            }
        }
        p class="refresh" {
            "Reload "
            @match every {
                None => { strong { "by hand" } }
                Some(_) => { a href="/" { "by hand" } }
            }
            @for seconds in EVERY {
                " · "
                @match every == Some(seconds) {
                    true => { strong { "every " (seconds) " s" } }
                    false => { a href={ "/?every=" (seconds) } { "every " (seconds) " s" } }
                }
            }
        }
    }
}

fn section((id, heading): (&str, &str), content: &Markup) -> Markup {
    let label = format!("{id}-heading");
    html! {
        section id=(id) aria-labelledby=(label) {
            h2 id=(label) { (heading) }
            (content)
        }
    }
}

/// Returns a string of others as it is shown: one line, without characters that change the direction of
/// text, and not longer than a few lines.
fn shown(text: &str) -> Cow<'_, str> {
    let line = terminal::line(text);
    match line.char_indices().nth(CHARACTERS) {
        None => line,
        Some((end, _)) => Cow::Owned(format!("{}…", line.get(..end).unwrap_or_default())),
    }
}

/// Returns a number with its noun.
fn counted(number: u64, one: &str) -> String {
    let s = if number == 1 { "" } else { "s" };
    format!("{} {one}{s}", grouped(number))
}

/// Returns a text of the documents: words between backquotes as code, of links the words.
fn prose(text: &str) -> Markup {
    let mut parts = text.split('`');
    html! {
        @if let Some(first) = parts.next() { (without_links(first)) }
        @for (n, part) in parts.enumerate() {
            @match n % 2 {
                0 => { code { (part.replace('\n', " ")) } }
                _ => { (without_links(part)) }
            }
        }
    }
}

/// Replaces `[words](target)` by the words, and parentheses around nothing else by those words.
fn without_links(text: &str) -> String {
    let mut rest = text.replace('\n', " ");
    let mut out = String::new();
    while let Some((before, link)) = rest.split_once('[') {
        let Some((words, (_, after))) = link
            .split_once("](")
            .and_then(|(words, target)| Some((words, target.split_once(')')?)))
        else {
            break;
        };
        out += before;
        out += words;
        rest = after.to_owned();
    }
    out + &rest
}

/// Returns how long something has lasted.
fn lasted(now: u64, since: u64) -> String {
    pretty(now.saturating_sub(since))
}

#[cfg(test)]
mod tests {
    use super::{prose, security_policy, shown};

    #[test]
    fn texts_of_documents_become_markup() {
        let text = "rename `a<b`, or\nsee ([this](x.md)) and [rest";
        let markup = prose(text).into_string();
        assert_eq!(
            markup,
            "rename <code>a&lt;b</code>, or see (this) and [rest"
        );
    }

    #[test]
    fn long_and_crafted_strings_are_tamed() {
        assert_eq!(shown("a\n\u{202e}b"), "a\\u{a}\\u{202e}b");
        let long = "é".repeat(500);
        assert_eq!(shown(&long).chars().count(), 121);
    }

    #[test]
    fn the_policy_names_one_style_and_no_script() {
        let policy = security_policy();
        assert!(policy.starts_with("default-src 'none'; style-src 'sha256-"));
        assert!(!policy.contains("unsafe") && !policy.contains("script"));
    }
}
