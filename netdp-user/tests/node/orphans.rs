//! Programs whose pins are out of reach: a second bpffs mounted over the first, private mount
//! namespaces of agents.

use crate::common::clients::{Tcp, any, tcp_source};
use crate::common::{
    Echo, NETDP, OURS, POLICY, SOON, World, echoes, filters, is_mounted, start_agent, tcx_programs,
    wait_log, wait_tcx,
};
use anyhow::{Context as _, Result, ensure};
use nix::mount::{MsFlags, mount};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::fs::{self, Permissions};
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use testbed::{Agent, AgentOptions, Bed, ConfigVolume, WorkDir, output, wait_for};

/// Open connections and the source that their servers saw first.
struct Flows(Vec<(Tcp, SocketAddr)>);

impl Flows {
    fn open(world: &World) -> Result<Self> {
        let open = |to: SocketAddr| -> Result<_> {
            let mut client = Tcp::connect(world.pod(0), any(to), to)?;
            let seen = client.ask()?;
            ensure!(seen.ip() == world.node_address(to.ip())?);
            Ok((client, seen))
        };
        echoes(&world.far)
            .into_iter()
            .map(open)
            .collect::<Result<_>>()
            .map(Self)
    }

    fn go_on(&mut self, after: &str) -> Result<()> {
        for (client, seen) in &mut self.0 {
            let now = client.ask().context(after.to_owned())?;
            ensure!(now == *seen, "{after}: {seen}, now {now}");
        }
        Ok(())
    }
}

fn mount_over(dir: &Path) -> Result<()> {
    let options = Some("mode=0700");
    mount(Some("bpf"), dir, Some("bpf"), MsFlags::empty(), options)?;
    Ok(())
}

/// Checks that exactly one of netdp's programs is on each hook.
fn is_attached_once(world: &World, mechanism: &str) -> Result<()> {
    let node = &world.bed.node;
    let [tcx, clsact] = match mechanism {
        "tcx" => [1, 0],
        _ => [0, 1],
    };
    let programs = tcx_programs(node, "eth0")?;
    for (hook, (programs, text)) in programs.iter().zip(filters(node, "eth0")?).enumerate() {
        ensure!(programs.len() == tcx, "{programs:?}");
        ensure!(programs.iter().all(|it| it == OURS[hook]), "{programs:?}");
        ensure!(text.matches("handle 0x6e6").count() == clsact, "{text}");
    }
    Ok(())
}

#[test]
fn a_bpffs_over_the_first_leaves_no_old_programs() -> Result<()> {
    for mechanism in ["tcx", "clsact"] {
        let arguments = ["--enable-ipv6", "--attach", mechanism];
        let mut world = World::with(POLICY, &arguments)?;
        let _echo = Echo::start(&world.far)?;
        let mut flows = Flows::open(&world)?;
        let bpffs = world.agent.bpffs();
        world.agent.kill9()?;
        mount_over(&bpffs)?;
        world.agent.restart()?;
        wait_log(&world.agent, "had its pins out of reach")?;
        flows.go_on("a second bpffs")?;
        is_attached_once(&world, mechanism)?;
        // The policy is that of the new agent.
        world.config.write(&format!("{POLICY}- 10.2.0.0/24\n"))?;
        let to = echoes(&world.far)[0];
        wait_for(SOON, "the new policy", || {
            // Hosts there have no route back to pods.
            tcp_source(world.pod(1), to).is_err()
        })?;
        world.config.write(POLICY)?;
        wait_for(SOON, "the old policy", || {
            tcp_source(world.pod(1), to).is_ok()
        })?;
        // Without an agent, and with a third one.
        world.agent.stop()?;
        mount_over(&bpffs)?;
        world.agent.netdp(&["detach"])?;
        wait_tcx(&world.bed.node, "eth0", &[&[], &[]])?;
        let left = filters(&world.bed.node, "eth0")?;
        ensure!(left.iter().all(String::is_empty), "{left:?}");
        ensure!(!is_mounted(&bpffs)?, "a bpffs is left");
    }
    Ok(())
}

/// Writes a `netdp` that runs in its own mount namespace, which a process keeps alive that writes
/// its id to `pids`.
fn in_own_namespace(dir: &Path, pids: &Path) -> Result<PathBuf> {
    let script = dir.join("netdp-alone");
    let text = format!(
        "#!/bin/sh\nexec unshare --mount --propagation private sh -c 'sleep 300 >&- 2>&- & echo $! >>{}\n\
         exec {NETDP} \"$@\"' netdp \"$@\"\n",
        pids.display()
    );
    fs::write(&script, text)?;
    fs::set_permissions(&script, Permissions::from_mode(0o755))?;
    Ok(script)
}

/// Starts a world whose agent runs in its own mount namespace.
fn alone(dir: &WorkDir) -> Result<World> {
    let bed = Bed::dual_stack()?;
    let far = bed.server(0, &["10.2.0.1/24", "fd00:2::1/64"])?;
    let near = bed.neighbour(0, &["10.1.0.20/16", "fd00:1::20/64"])?;
    let config = ConfigVolume::new(POLICY)?;
    let netdp = in_own_namespace(dir.path(), &dir.path().join("pids"))?;
    let options = AgentOptions::new(netdp)
        .config(config.path())
        .arg("--enable-ipv6");
    let agent = Agent::start(&bed.node, options)?;
    Ok(World {
        agent,
        config,
        near,
        far,
        bed,
    })
}

/// Ends the processes that keep the namespaces alive.
fn let_go(dir: &WorkDir) -> Result<()> {
    for pid in fs::read_to_string(dir.path().join("pids"))?.lines() {
        kill(Pid::from_raw(pid.parse()?), Signal::SIGKILL)?;
    }
    Ok(())
}

#[test]
fn agents_in_mount_namespaces_of_their_own_follow_each_other() -> Result<()> {
    let dir = WorkDir::new("alone")?;
    let mut world = alone(&dir)?;
    let _echo = Echo::start(&world.far)?;
    let mut flows = Flows::open(&world)?;
    let words = "is mounted in this process's mount namespace only";
    wait_log(&world.agent, words)?;
    let mut netdp = world.bed.node.command(NETDP);
    netdp
        .arg("status")
        .arg("--state-dir")
        .arg(world.agent.state_dir());
    let status = output(&mut netdp)?;
    ensure!(
        status.contains("unpinned ") && status.contains(words),
        "{status}"
    );
    for round in 0..2 {
        world.agent.kill9()?;
        flows.go_on("the end of an agent")?;
        world.agent.restart()?;
        flows.go_on(&format!("agent {round}"))?;
        is_attached_once(&world, "tcx")?;
    }
    world.agent.stop()?;
    flows.go_on("the end of all")?;
    let mut netdp = world.bed.node.command(NETDP);
    let (bpffs, state) = (world.agent.bpffs(), world.agent.state_dir());
    netdp.arg("detach").arg("--bpffs").arg(bpffs);
    output(netdp.arg("--state-dir").arg(state))?;
    wait_tcx(&world.bed.node, "eth0", &[&[], &[]])?;
    let_go(&dir)
}

/// The programs of another running netdp are left alone and reported.
#[test]
fn a_living_agents_programs_are_let_be() -> Result<()> {
    let dir = WorkDir::new("alone")?;
    let mut world = alone(&dir)?;
    let _echo = Echo::start(&world.far)?;
    let mut flows = Flows::open(&world)?;
    let mut other = start_agent(&world.bed.node, &world.config, &["--enable-ipv6"])?;
    let log = other.log();
    ensure!(log.contains("belongs to another running netdp"), "{log}");
    ensure!(!log.contains("had its pins out of reach"), "{log}");
    other.stop()?;
    other.netdp(&["detach"])?;
    wait_tcx(&world.bed.node, "eth0", &[&[OURS[0]], &[OURS[1]]])?;
    world.agent.restart()?;
    is_attached_once(&world, "tcx")?;
    flows.go_on("another running netdp")?;
    let_go(&dir)
}
