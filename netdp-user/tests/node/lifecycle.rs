//! Lifecycle: the agent is killed, stopped, started again and detached; traffic continues.

use crate::common::clients::{Tcp, any, tcp_source, udp_source};
use crate::common::transfer::Transfer;
use crate::common::{
    ECHO, Echo, OURS, POLICY, POLICY_V4, SOON, World, echoes, is_mounted, mappings, refused,
    start_agent, status, tcx_programs, wait_log,
};
use anyhow::{Context as _, Result, ensure};
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::process::Command;
use testbed::{Agent, Bed, ConfigVolume, Host, wait_for};

/// Number of connections per family that stay open.
const OPEN: usize = 50;

struct Open {
    client: Tcp,
    source: SocketAddr,
}

/// Opens connections to each echo server of the host.
fn open_connections(pod: &Host, host: &Host) -> Result<Vec<Open>> {
    let mut open = Vec::new();
    for to in echoes(host) {
        for _ in 0..OPEN {
            let mut client = Tcp::connect(pod, any(to), to)?;
            let source = client.ask()?;
            open.push(Open { client, source });
        }
    }
    Ok(open)
}

/// Checks that every connection still works with the same source.
fn still_there(open: &mut [Open]) -> Result<()> {
    for Open { client, source } in open {
        let now = client.ask().context("an open connection was lost")?;
        ensure!(now == *source, "a connection moved from {source} to {now}");
    }
    Ok(())
}

#[test]
fn a_killed_agent_takes_nothing_with_it() -> Result<()> {
    let mut world = World::start()?;
    let _echo = Echo::start(&world.far)?;
    // One of each family concurrently, each from a server of its own.
    let other = world.bed.server(0, &["10.3.0.1/24", "fd00:3::1/64"])?;
    let transfers = [
        Transfer::start(world.pod(1), &world.far, world.far.v4()?.into())?,
        Transfer::start(world.pod(1), &other, other.v6()?.into())?,
    ];
    let mut open = open_connections(world.pod(0), &world.far)?;
    let before = mappings(&world.agent)?;
    ensure!(before >= 2 * OPEN as u64, "{before} mappings");

    world.agent.kill9()?;
    still_there(&mut open)?;
    transfers.iter().try_for_each(Transfer::goes_on)?;
    assert_eq!(status(&world.agent)?["agent"], "not running");
    assert_eq!(status(&world.agent)?["datapath"], "in force");
    for to in echoes(&world.far) {
        let node = world.node_address(to.ip())?;
        assert_eq!(tcp_source(world.pod(0), to)?, node, "a new connection");
        assert_eq!(udp_source(world.pod(0), to)?, node);
    }
    let orphaned = mappings(&world.agent)?;
    ensure!(orphaned >= before + 4, "{before}, then {orphaned} mappings");

    world.agent.restart()?;
    ensure!(mappings(&world.agent)? >= orphaned, "mappings were lost");
    still_there(&mut open)?;
    let programs = tcx_programs(&world.bed.node, "eth0")?;
    assert_eq!(programs, OURS.map(|name| vec![name.to_owned()]));
    transfers.iter().try_for_each(Transfer::goes_on)?;
    transfers.into_iter().try_for_each(Transfer::finish)?;
    still_there(&mut open)
}

#[test]
fn a_terminated_agent_leaves_the_datapath_in_force() -> Result<()> {
    let mut world = World::start()?;
    let _echo = Echo::start(&world.far)?;
    let to = SocketAddr::new(world.far.v4()?.into(), ECHO);
    let mut open = Tcp::connect(world.pod(0), any(to), to)?;
    let seen = open.ask()?;
    let ended = world.agent.stop()?;
    ensure!(ended.success(), "{ended}");
    assert_eq!(open.ask()?, seen);
    assert_eq!(tcp_source(world.pod(1), to)?, seen.ip());
    let told = world.agent.netdp(&["status"])?;
    for words in [
        "agent      not running",
        "datapath   in force",
        "mappings   2",
    ] {
        ensure!(told.contains(words), "{words:?} is not in\n{told}");
    }
    world.agent.restart()?;
    assert_eq!(open.ask()?, seen);
    Ok(())
}

/// Checks that nothing is pinned, mounted or attached.
fn nothing_is_left(bed: &Bed, agent: &Agent) -> Result<()> {
    ensure!(!is_mounted(&agent.bpffs())?, "a bpffs is left");
    let left = fs::read_dir(agent.bpffs()).map_or(0, Iterator::count);
    ensure!(
        left == 0,
        "{left} files are left in {}",
        agent.bpffs().display()
    );
    // At once: users of `netdp detach` rely on it.
    let left = tcx_programs(&bed.node, "eth0")?;
    ensure!(left.iter().all(Vec::is_empty), "{left:?} are attached");
    assert_eq!(status(agent)?["datapath"], "none");
    Ok(())
}

#[test]
fn on_exit_detach_removes_everything() -> Result<()> {
    let mut world = World::with(POLICY, &["--enable-ipv6", "--on-exit", "detach"])?;
    let _near = Echo::start(&world.near)?;
    let to = SocketAddr::new(world.near.v4()?.into(), ECHO);
    tcp_source(world.pod(0), to)?;
    let ended = world.agent.stop()?;
    ensure!(ended.success(), "{ended}");
    nothing_is_left(&world.bed, &world.agent)?;
    assert_eq!(
        tcp_source(world.pod(0), to)?,
        IpAddr::from(world.pod(0).v4()?),
        "the network is as it was"
    );
    world.agent.restart()
}

/// The documented procedure for a cluster (docs/install.md): a roll-out of agents that detach on
/// exit, then one of agents with new tables.
#[test]
fn a_size_of_the_tables_changes_by_two_rollouts() -> Result<()> {
    let mut world = World::start()?;
    let before = status(&world.agent)?["max_mappings"].clone();
    let without = world.agent.options().clone();
    // The first roll-out: the datapath is adopted.
    *world.agent.options() = without.clone().arg("--on-exit=detach");
    ensure!(world.agent.stop()?.success());
    world.agent.restart()?;
    ensure!(status(&world.agent)?["max_mappings"] == before);
    // The second roll-out.
    *world.agent.options() = without.arg("--max-flows=4096");
    ensure!(world.agent.stop()?.success());
    world.agent.restart()?;
    let after = status(&world.agent)?["max_mappings"].clone();
    ensure!(after == 4096, "{after} after {before}");
    let log = world.agent.log();
    ensure!(!log.contains("keep that size"), "{log}");
    Ok(())
}

#[test]
fn detach_waits_for_the_agents_end() -> Result<()> {
    let mut world = World::start()?;
    let _echo = Echo::start(&world.far)?;
    let to = SocketAddr::new(world.far.v4()?.into(), ECHO);
    let pid = world.agent.pid();
    let told = refused(world.agent.command(&["detach"]))?;
    for words in ["an agent is running", "stop it first", "state"] {
        ensure!(told.contains(words), "{words:?} is not in {told}");
    }
    assert_eq!(world.agent.pid(), pid);
    tcp_source(world.pod(0), to)?;

    world.agent.kill9()?;
    tcp_source(world.pod(0), to)?;
    world.agent.netdp(&["detach"])?;
    nothing_is_left(&world.bed, &world.agent)?;
    // A repetition is not an error.
    world.agent.netdp(&["detach"])?;
    world.agent.restart()?;
    tcp_source(world.pod(0), to)?;
    Ok(())
}

#[test]
fn a_second_agent_on_the_same_directories_is_refused() -> Result<()> {
    let world = World::with(POLICY_V4, &[])?;
    let mut second = world.agent.command(&["run"]);
    second.arg("--config").arg(world.config.path());
    let told = refused(second)?;
    let pid = world.agent.pid().to_string();
    let dir = world.agent.state_dir().display().to_string();
    for words in ["another agent", &pid, &dir, "--state-dir"] {
        ensure!(told.contains(words), "{words:?} is not in {told}");
    }
    // The first agent continues.
    let _echo = Echo::start(&world.far)?;
    let to = SocketAddr::new(world.far.v4()?.into(), ECHO);
    assert_eq!(tcp_source(world.pod(0), to)?, world.node_address(to.ip())?);
    assert_eq!(status(&world.agent)?["agent"], "running");
    Ok(())
}

#[test]
fn agents_in_two_namespaces_do_not_disturb_each_other() -> Result<()> {
    // The same names, indexes and addresses in both worlds.
    let worlds = [World::start()?, World::start()?];
    let _echoes = [Echo::start(&worlds[0].far)?, Echo::start(&worlds[1].far)?];
    let to = SocketAddr::new(worlds[0].far.v4()?.into(), ECHO);
    let node = worlds[0].node_address(to.ip())?;
    for world in &worlds {
        assert_eq!(tcp_source(world.pod(0), to)?, node);
        assert_eq!(mappings(&world.agent)?, 1);
    }
    let [mut first, second] = worlds;
    let mut open = Tcp::connect(second.pod(0), any(to), to)?;
    let seen = open.ask()?;
    first.agent.stop()?;
    first.agent.netdp(&["detach"])?;
    nothing_is_left(&first.bed, &first.agent)?;
    assert_eq!(open.ask()?, seen);
    assert_eq!(tcp_source(second.pod(1), to)?, node);
    let programs = tcx_programs(&second.bed.node, "eth0")?;
    assert_eq!(programs, OURS.map(|name| vec![name.to_owned()]));
    Ok(())
}

/// Maps as another version would leave them.
#[test]
fn maps_of_another_layout_are_refused() -> Result<()> {
    let mut world = World::with(POLICY_V4, &[])?;
    world.agent.stop()?;
    let bpffs = world.agent.bpffs();
    let bpftool = |arguments: &str| {
        let mut command = Command::new("bpftool");
        command.args(arguments.split(' '));
        testbed::output(&mut command)
    };
    let settings = bpffs.join("settings").display().to_string();
    let zeros = "0 ".repeat(44);
    // The version is the first word of the value.
    bpftool(&format!(
        "map update pinned {settings} key hex 0 0 0 0 value hex 63 0 0 0 {}",
        zeros.trim_end()
    ))?;
    let told = format!("{:#}", world.agent.restart().unwrap_err());
    for words in ["layout 99", "this netdp uses 2", "netdp detach --bpffs"] {
        ensure!(told.contains(words), "{words:?} is not in {told}");
    }

    let snat = bpffs.join("snat");
    fs::remove_file(&snat)?;
    bpftool(&format!(
        "map create {} type hash key 4 value 8 entries 16 name snat",
        snat.display()
    ))?;
    let told = format!("{:#}", world.agent.restart().unwrap_err());
    let path = snat.display().to_string();
    for words in [
        &path,
        "another layout",
        "key 4 bytes, value 8 bytes",
        "netdp detach --bpffs",
    ] {
        ensure!(told.contains(words), "{words:?} is not in {told}");
    }
    // The remedy in the message works.
    world.agent.netdp(&["detach"])?;
    nothing_is_left(&world.bed, &world.agent)?;
    world.agent.restart()
}

#[test]
fn resyncs_leak_no_descriptors() -> Result<()> {
    let policy = format!("{POLICY_V4}resyncInterval: 100ms\n");
    let world = World::with(&policy, &["--log-level", "debug"])?;
    let resyncs = || world.agent.log().matches("reattaching: SetUplink").count();
    let open = || -> Result<usize> {
        Ok(fs::read_dir(format!("/proc/{}/fd", world.agent.pid()))?.count())
    };
    let wait = |count| wait_for(SOON, &format!("{count} resyncs"), || resyncs() >= count);
    wait(5)?;
    let before = open()?;
    wait(25)?;
    // The count may include a program that the agent is running to list rules.
    wait_for(SOON, &format!("no more than {before} descriptors"), || {
        open().is_ok_and(|after| after <= before)
    })
}

/// The ready file exists while an agent is ready.
#[test]
fn the_ready_file_follows_the_agent() -> Result<()> {
    let bed = Bed::dual_stack()?;
    let config = ConfigVolume::new(POLICY_V4)?;
    let mut agent = start_agent(&bed.node, &config, &[])?;
    wait_log(&agent, "netdp: in force on eth0")?;
    let ready = agent.state_dir().with_file_name("ready");
    ensure!(ready.exists());
    agent.stop()?;
    ensure!(!ready.exists(), "the agent is gone and still called ready");
    Ok(())
}
