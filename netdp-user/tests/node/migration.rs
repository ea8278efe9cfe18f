//! Migration from ip-masq-agent's chains to eBPF and back, under load and without losses. `cargo
//! xtask demo migrate --rounds 20` repeats it.

use anyhow::{Result, ensure};
use std::path::Path;
use std::time::Duration;
use testbed::migration::{Kind, Migration};
use testbed::wait_for;

const NETDP: &str = env!("CARGO_BIN_EXE_netdp");

fn there_and_back(backend: &'static str, rounds: usize) -> Result<()> {
    let mut migration = Migration::start(Path::new(NETDP), backend)?;
    migration.shadow()?;
    for _ in 0..rounds {
        migration.take_over()?;
        migration.roll_back()?;
    }
    let outcome = migration.finish()?;
    ensure!(outcome.is_clean(), "{outcome}");
    ensure!(outcome.changes == 2 * rounds, "{outcome}");
    for (kind, opened, answers, _) in &outcome.kinds {
        ensure!(
            *opened > 0 && answers > opened || is_short(*kind),
            "{outcome}"
        );
    }
    Ok(())
}

fn is_short(kind: Kind) -> bool {
    matches!(kind, Kind::ShortTcp | Kind::ShortUdp)
}

/// Requirements 9.1 and 9.3.
#[test]
fn nothing_is_lost_with_nft() -> Result<()> {
    there_and_back("nft", 2)
}

#[test]
fn nothing_is_lost_with_legacy() -> Result<()> {
    there_and_back("legacy", 1)
}

/// The effect of a removed datapath on its connections is detected.
#[test]
fn what_is_lost_is_counted() -> Result<()> {
    let mut migration = Migration::start(Path::new(NETDP), "nft")?;
    migration.take_over()?;
    migration.agent().stop()?;
    migration.agent().netdp(&["detach"])?;
    wait_for(Duration::from_secs(90), "a lost connection", || {
        migration.tally().connections().1 > 0
    })?;
    let outcome = migration.finish()?;
    ensure!(
        outcome.leaks > 0 && outcome.lost() > 0 && !outcome.is_clean(),
        "{outcome}"
    );
    Ok(())
}
