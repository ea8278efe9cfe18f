//! Scene: from ip-masq-agent's rules to eBPF and back under live traffic.

use super::narrate;
use crate::shell;
use anyhow::{Result, ensure};
use comfy_table::{Table, presets::UTF8_FULL_CONDENSED};
use std::path::Path;
use std::time::Instant;
use testbed::migration::Migration;

/// Runs shadow mode, takeover and rollback, `rounds` times.
pub fn run(netdp: &Path, rounds: usize) -> Result<()> {
    narrate(
        "The node has the chains that ip-masq-agent leaves (nft, IPv4 and IPv6). Its pods have \
         connections that stay\nopen, some of them idle, begin new ones without pause, and ping. \
         Then netdp compares in shadow mode, takes\nover, and rolls back.\n",
    );
    shell::progress("starting the node, its chains and the load");
    let mut migration = Migration::start(netdp, "nft")?;
    shell::progress("comparing in shadow mode");
    println!("netdp shadow report:");
    for line in migration.shadow()?.lines() {
        println!("   {line}");
    }
    let mut steps = Table::new();
    steps.load_style(UTF8_FULL_CONDENSED).set_header([
        "",
        "translated by",
        "took",
        "connections so far",
        "lost",
    ]);
    for round in 1..=rounds {
        for (what, who) in [("takeover", "eBPF"), ("rollback", "netfilter")] {
            shell::progress(&format!("{what} {round} of {rounds}"));
            let start = Instant::now();
            if what == "takeover" {
                migration.take_over()?;
            } else {
                migration.roll_back()?;
            }
            let (opened, lost) = migration.tally().connections();
            steps.add_row([
                format!("{what} {round}"),
                who.into(),
                format!("{:.1} s", start.elapsed().as_secs_f32()),
                opened.to_string(),
                lost.to_string(),
            ]);
        }
    }
    println!("\n{steps}\n");
    let outcome = migration.finish()?;
    print!("{outcome}");
    ensure!(
        outcome.is_clean(),
        "something was lost, leaked or translated twice"
    );
    Ok(())
}
