//! Connections of both families across policy changes.

use crate::common::clients::{Tcp, any, tcp_source};
use crate::common::{Echo, SOON, World, echoes, same_family};
use anyhow::{Result, ensure};
use std::net::SocketAddr;
use testbed::wait_for;

/// Policy that bypasses the neighbour.
const NOT_THE_NEIGHBOUR: &str = "\
nonMasqueradeCIDRs:
- 172.16.0.0/16
- fd00:172::/64
- 10.1.0.0/16
- fd00:1::/64
";

/// Policy that masquerades traffic to the neighbour.
const EVERYTHING: &str = "\
nonMasqueradeCIDRs:
- 172.16.0.0/16
- fd00:172::/64
";

/// Another policy with the same effect on the neighbour.
const EVERYTHING_BUT_ELSEWHERE: &str = "\
nonMasqueradeCIDRs:
- 172.16.0.0/16
- fd00:172::/64
- 10.99.0.0/16
";

fn world(policy: &str, on_reload: &str) -> Result<(World, Echo)> {
    let world = World::with(policy, &["--enable-ipv6", "--on-reload", on_reload])?;
    let echo = Echo::start(&world.near)?;
    Ok((world, echo))
}

/// Opens a connection to each of the neighbour's addresses; returns them with the source seen
/// there.
fn connections(world: &World) -> Result<Vec<(Tcp, SocketAddr)>> {
    let open = |to| {
        let mut client = Tcp::connect(world.pod(0), any(to), to)?;
        let source = client.ask()?;
        Ok((client, source))
    };
    echoes(&world.near).into_iter().map(open).collect()
}

/// Puts a policy in force that masquerades the neighbour.
fn masquerade(world: &mut World, policy: &str) -> Result<()> {
    world.config.write(policy)?;
    for to in echoes(&world.near) {
        let node = world.node_address(to.ip())?;
        wait_for(SOON, "the neighbour to be masqueraded", || {
            tcp_source(world.pod(0), to).is_ok_and(|source| source == node)
        })?;
    }
    Ok(())
}

#[test]
fn a_bypassed_connection_outlives_changes_and_a_restart() -> Result<()> {
    let (mut world, _echo) = world(NOT_THE_NEIGHBOUR, "sticky")?;
    let mut open = connections(&world)?;
    ensure!(open.len() == 2, "both families");
    for (_, source) in &open {
        let own = same_family(&world.pod(0).addresses, source.ip())?;
        ensure!(source.ip() == own, "it was to be bypassed: {source}");
    }
    // Idle across two changes and a restart: the previous policy is no longer the one of these
    // connections.
    masquerade(&mut world, EVERYTHING)?;
    world.agent.kill9()?;
    world.config.write(EVERYTHING_BUT_ELSEWHERE)?;
    world.agent.restart()?;
    masquerade(&mut world, EVERYTHING_BUT_ELSEWHERE)?;
    for (client, before) in &mut open {
        let now = client.ask()?;
        ensure!(now == *before, "it moved from {before} to {now}");
    }
    Ok(())
}

/// The peer answers packets from the node with a RST.
#[test]
fn cutover_ends_a_bypassed_connection() -> Result<()> {
    let (mut world, _echo) = world(NOT_THE_NEIGHBOUR, "cutover")?;
    let mut open = connections(&world)?;
    masquerade(&mut world, EVERYTHING)?;
    for (client, source) in &mut open {
        let told = client.ask();
        ensure!(told.is_err(), "{source} lives on: {told:?}");
    }
    Ok(())
}
