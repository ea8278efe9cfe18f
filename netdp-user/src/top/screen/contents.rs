//! Contents of the tables.

use super::super::keys::{Keys, Tab};
use super::super::numbers::{bytes, decimal, duration};
use super::super::view::{Rates, Row, Sort, View, sort};
use super::destination;
use super::table::Content;
use crate::datapath::Destination;
use crate::format::grouped;
use crate::policy::PrefixUse;
use crate::terminal;
use netdp_common::layout::{DropReason, proto};
use std::net::IpAddr;

/// Returns the table of the open tab.
pub(super) fn content(view: &View, keys: &Keys) -> Content {
    match keys.tab {
        Tab::Pods => pods(view, keys),
        Tab::Destinations => destinations(view, keys),
        Tab::Prefixes => prefixes(view),
        Tab::Drops => drops(view),
        Tab::Uplinks => uplinks(view),
    }
}

/// Returns the heads of a table of pods or destinations; the sorted column is marked.
fn use_heads(name: &str, keys: &Keys, more: &[&str]) -> Vec<String> {
    let mut heads = vec![name.to_owned()];
    for (head, by) in [
        ("MAPPINGS", Sort::Mappings),
        ("NEW/s", Sort::New),
        ("OUT/s", Sort::Out),
        ("IN/s", Sort::In),
    ] {
        let mark = if keys.sort == by { "▾" } else { "" };
        heads.push(format!("{head}{mark}"));
    }
    heads.extend(more.iter().map(|head| (*head).to_owned()));
    heads
}

fn use_cells<K>(name: String, row: &Row<K>) -> Vec<String> {
    vec![
        name,
        grouped(row.mappings),
        decimal(row.new),
        bytes(row.out),
        bytes(row.input),
    ]
}

fn pods(view: &View, keys: &Keys) -> Content {
    let mut rows: Vec<_> = view.pods.iter().collect();
    sort(&mut rows, keys.sort);
    let ports = view.last.as_ref().map_or(0, |last| last.ports);
    let cells = |row: &Row<IpAddr>| {
        let worst = match view.worst(row.key) {
            Some((key, used)) => {
                let percent = (used * 100).checked_div(ports).unwrap_or(0);
                format!("{percent} % {}", destination(&key))
            }
            None => "-".to_owned(),
        };
        let name = view.last.as_ref().and_then(|last| {
            let owner = last.names.owner_now(row.key)?;
            Some(terminal::line(&last.names.describe(owner)).into_owned())
        });
        let name = name.unwrap_or_else(|| row.key.to_string());
        let mut cells = use_cells(name, row);
        cells.push(worst);
        cells.push(row.key.to_string());
        cells
    };
    Content {
        heads: use_heads("POD", keys, &["PORTS WORST", "ADDRESS"]),
        rows: rows.into_iter().map(cells).collect(),
        text_columns: &[5, 6],
        none: "no pod has a mapping",
    }
}

fn destinations(view: &View, keys: &Keys) -> Content {
    let mut rows: Vec<_> = view.destinations.iter().collect();
    sort(&mut rows, keys.sort);
    let ports = view.last.as_ref().map_or(0, |last| last.ports);
    let cells = |row: &Row<Destination>| {
        let mut cells = use_cells(destination(&row.key), row);
        let has_ports = matches!(row.key.protocol, proto::TCP | proto::UDP);
        let percent = (row.mappings * 100)
            .checked_div(ports)
            .filter(|_| has_ports);
        cells.push(percent.map_or("-".to_owned(), |percent| format!("{percent} %")));
        let full = view.full_in(&row.key);
        cells.push(full.map_or("-".to_owned(), duration));
        cells.push(row.key.seen_as.to_string());
        cells
    };
    Content {
        heads: use_heads("DESTINATION", keys, &["PORTS", "FULL IN", "SEEN AS"]),
        rows: rows.into_iter().map(cells).collect(),
        text_columns: &[7],
        none: "no pod has a mapping",
    }
}

fn prefixes(view: &View) -> Content {
    let row = |(it, rates): &(PrefixUse, Option<(f64, f64)>)| {
        let prefix = it.prefix.map(|prefix| prefix.to_string());
        let prefix = prefix.unwrap_or_else(|| "everything else".to_owned());
        let (now, bytes_now) = match rates {
            Some((packets, amount)) => (decimal(*packets), bytes(*amount)),
            None => ("-".to_owned(), "-".to_owned()),
        };
        let action = if it.is_masqueraded {
            "masquerade"
        } else {
            "bypass"
        };
        vec![
            format!("{}{prefix}", "  ".repeat(it.depth)),
            action.to_owned(),
            now,
            bytes_now,
            grouped(it.packets),
            grouped(it.flows),
            terminal::line(it.origin.as_deref().unwrap_or("-")).into_owned(),
        ]
    };
    let last = view.last.as_ref();
    Content {
        heads: [
            "PREFIX", "ACTION", "NOW/s", "OUT/s", "SO FAR", "FLOWS", "FROM",
        ]
        .map(str::to_owned)
        .to_vec(),
        rows: view.prefixes.iter().map(row).collect(),
        text_columns: &[1, 6],
        none: match last.and_then(|last| last.no_prefixes.as_ref()) {
            Some(_) => "the counts of prefixes can't be read; netdp policy says why",
            None => "the counts of prefixes are being read",
        },
    }
}

fn drops(view: &View) -> Content {
    let row = |(reason, count, rate): &(DropReason, u64, f64)| {
        vec![reason.name().to_owned(), decimal(*rate), grouped(*count)]
    };
    Content {
        heads: ["REASON", "NOW/s", "SO FAR"].map(str::to_owned).to_vec(),
        rows: view.drops.iter().map(row).collect(),
        text_columns: &[],
        none: "nothing was dropped so far",
    }
}

fn uplinks(view: &View) -> Content {
    let heads = [
        "UPLINK",
        "MASQ/s",
        "OUT/s",
        "BYPASS/s",
        "OUT/s",
        "REPLIES/s",
        "IN/s",
        "NEW/s",
        "DROP/s",
    ];
    let row = |(name, rates): &(String, Rates)| {
        vec![
            terminal::line(name).into_owned(),
            decimal(rates.masqueraded),
            bytes(rates.masqueraded_bytes),
            decimal(rates.bypassed),
            bytes(rates.bypassed_bytes),
            decimal(rates.replies),
            bytes(rates.replies_bytes),
            decimal(rates.new),
            decimal(rates.dropped),
        ]
    };
    Content {
        heads: heads.map(str::to_owned).to_vec(),
        rows: view.uplinks.iter().map(row).collect(),
        text_columns: &[],
        none: "there is no uplink",
    }
}
