//! Uplinks with their addresses; versions, and where to read on.

use super::super::look::Look;
use super::table::{numbers, table, text, unknown, words};
use super::{Content, shown};
use crate::format::grouped;
use crate::report::{Report, UplinkReport};
use crate::time::pretty;
use maud::{Markup, html};

/// Returns the uplinks, or in iptables mode the chains.
pub(super) fn list(look: &Look) -> Markup {
    let status = look.status.as_ref().ok();
    let Some(report) = status.and_then(|status| status.report.as_ref()) else {
        return html! { p class="quiet" { "The agent has not reported any yet." } };
    };
    html! {
        @if report.uplinks.is_empty() && report.chains.is_empty() {
            p class="quiet" {
                "No uplink" @if let Some(why) = &report.no_uplink { ": " (shown(why)) } @else { "." }
            }
        }
        @if !report.uplinks.is_empty() { (uplinks(&report.uplinks)) }
        @if !report.chains.is_empty() { (chains(report)) }
    }
}

fn uplinks(uplinks: &[UplinkReport]) -> Markup {
    let row = |uplink: &UplinkReport| {
        [
            text(&uplink.name),
            match uplink.up {
                true => html! { span class="sign good" aria-hidden="true" { "✓" } " up" },
                false => html! { span class="sign bad" aria-hidden="true" { "✕" } " down" },
            },
            uplink.v4.map_or_else(unknown, |it| text(it.to_string())),
            uplink.v6.map_or_else(unknown, |it| text(it.to_string())),
            text(&uplink.attached),
            text(uplink.ifindex.to_string()),
        ]
    };
    table(
        "Interfaces that lead out, and the addresses that destinations see",
        [
            words("Uplink"),
            words("Link"),
            words("IPv4"),
            words("IPv6"),
            words("Attached"),
            numbers("Index"),
        ],
        uplinks.iter().map(row),
    )
}

fn chains(report: &Report) -> Markup {
    table(
        "Chains of netfilter that the agent keeps",
        [
            words("Chain"),
            words("Family"),
            words("Backend"),
            numbers("Rules"),
            words("Problem"),
        ],
        report.chains.iter().map(|chain| {
            [
                text(&chain.chain),
                text(&chain.family),
                text(&chain.backend),
                text(grouped(chain.rules as u64)),
                chain.error.as_ref().map_or_else(unknown, text),
            ]
        }),
    )
}

/// Returns versions and links.
pub(super) fn about(content: &Content<'_>) -> Markup {
    let status = content.look.status.as_ref().ok();
    let report = status.and_then(|status| status.report.as_ref());
    let kernel = report.and_then(|report| report.kernel.as_ref());
    let mappings = status.filter(|status| status.max_mappings > 0);
    html! {
        dl {
            dt { "Version" } dd { "netdp " (content.agent.version) }
            dt { "Mode" } dd { (content.agent.mode) }
            @if let Some(kernel) = kernel { dt { "Kernel" } dd { (shown(&kernel.to_string())) } }
            @if let Some(status) = mappings {
                dt { "Mappings" }
                dd { (grouped(status.mappings as u64)) " of " (grouped(status.max_mappings as u64)) }
            }
            dt { "Read" } dd { (pretty(content.look.at.elapsed().as_secs())) " ago" }
        }
        p {
            "For programs: " a href="/metrics" { "metrics" } ", " a href="/api/v1" { "/api/v1" } ", " a href="/api/v1/status" { "status" } ", "
            a href="/api/v1/codes" { "codes" } ", "
            a href="/api/v1/suggest" { "networks that do not answer pods" } "."
        }
    }
}
