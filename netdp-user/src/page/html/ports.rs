//! The destinations towards which most ports are used.

use super::super::look::{Look, Ports, Used};
use super::super::spark;
use super::table::{numbers, table, text, unknown, words};
use super::{counted, shown};
use crate::datapath::protocol_name;
use crate::format::grouped;
use crate::time::pretty;
use maud::{Markup, html};
use netdp_common::layout::proto;
use std::net::SocketAddr;

/// Returns the destinations.
pub(super) fn most(look: &Look) -> Markup {
    let ports = match &look.ports {
        Ok(ports) => ports,
        Err(err) => return html! { p class="quiet" { "Not known: " (shown(&format!("{err:#}"))) } },
    };
    let caption = format!(
        "The {} towards which most mappings are; {} ports are there towards each",
        counted(ports.used.len() as u64, "destination"),
        grouped(ports.of)
    );
    html! {
        @if ports.used.is_empty() {
            p class="quiet" { "There are no mappings." }
        } @else {
            (table(
                &caption,
                [
                    words("Destination"), words("Seen as"), words("Ports used"), numbers("Pods"),
                    words("Most by"), numbers("Full in"),
                ],
                ports.used.iter().map(|used| row(ports, used)),
            ))
            @if ports.destinations > ports.used.len() {
                p class="quiet" {
                    (grouped((ports.destinations - ports.used.len()) as u64)) " more: "
                    a href="/api/v1/summary?by=destination" { "all as JSON" }
                }
            }
        }
    }
}

fn row(ports: &Ports, used: &Used) -> [Markup; 6] {
    let to = &used.to;
    let has_ports = matches!(
        to.protocol,
        proto::TCP | proto::UDP | proto::UDP_LITE | proto::DCCP
    );
    let end = match has_ports {
        true => SocketAddr::new(to.address, to.id).to_string(),
        false => to.address.to_string(),
    };
    let count = grouped(used.ports);
    let share = match has_ports {
        true => {
            let label = format!("{count} of {}", grouped(ports.of));
            html! { (spark::bar(used.ports, ports.of, &label)) span { (label) } }
        }
        false => text(format!("{count} mappings")),
    };
    let biggest = used.biggest.as_ref();
    [
        text(format!("{} {end}", protocol_name(to.protocol))),
        text(to.seen_as.to_string()),
        share,
        text(grouped(used.pods as u64)),
        biggest.map_or_else(unknown, |(name, most)| {
            text(format!("{name} ({})", grouped(*most)))
        }),
        used.full_in.map_or_else(unknown, |it| text(pretty(it))),
    ]
}
