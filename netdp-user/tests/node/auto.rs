//! `--mode auto`: eBPF if the programs can be loaded and outlive the agent, otherwise the chains.

use crate::common::clients::{Tcp, any, tcp_source, udp_source};
use crate::common::{
    Echo, NETDP, OURS, POLICY, echoes, options, refused, same_family, status, tcx_programs,
    wait_tcx,
};
use anyhow::{Result, ensure};
use nix::errno::Errno;
use std::net::SocketAddr;
use std::process::Command;
use testbed::{Agent, AgentOptions, Bed, ConfigVolume, Host, WorkDir, output};

/// Log message before the reason.
const FALLBACK: &str = "--mode auto: iptables, because eBPF does not work here: ";

/// A kernel without bpf(2), and one that denies it to all users.
const ERRORS: [(Errno, &str); 2] = [
    (Errno::ENOSYS, "Function not implemented (os error 38)"),
    (Errno::EPERM, "Operation not permitted (os error 1)"),
];

struct World {
    bed: Bed,
    near: Host,
    far: Host,
    _echoes: [Echo; 2],
    config: ConfigVolume,
}

impl World {
    fn new() -> Result<Self> {
        let bed = Bed::dual_stack()?;
        let near = bed.neighbour(0, &["10.1.0.20/16", "fd00:1::20/64"])?;
        let far = bed.server(0, &["10.2.0.1/24", "fd00:2::1/64"])?;
        Ok(Self {
            _echoes: [Echo::start(&near)?, Echo::start(&far)?],
            config: ConfigVolume::new(POLICY)?,
            near,
            far,
            bed,
        })
    }

    fn options(&self) -> AgentOptions {
        options(&self.config, &["--enable-ipv6", "--mode=auto"])
    }

    /// Checks that the far server sees the node, and the near one the pod.
    fn check(&self) -> Result<()> {
        let pod = &self.bed.pods[0];
        for to in echoes(&self.far) {
            let node = same_family(&self.bed.uplinks[0].addresses, to.ip())?;
            let seen = [tcp_source(pod, to)?, udp_source(pod, to)?];
            ensure!(seen == [node; 2], "{to} saw {seen:?}");
        }
        for to in echoes(&self.near) {
            let own = same_family(&pod.addresses, to.ip())?;
            let seen = [tcp_source(pod, to)?, udp_source(pod, to)?];
            ensure!(seen == [own; 2], "{to} saw {seen:?}");
        }
        Ok(())
    }

    /// Opens a connection to each of the far server's addresses; returns them with the source seen.
    fn open(&self) -> Result<Vec<(Tcp, SocketAddr)>> {
        let open = |to| {
            let mut client = Tcp::connect(&self.bed.pods[0], any(to), to)?;
            let seen = client.ask()?;
            Ok((client, seen))
        };
        echoes(&self.far).into_iter().map(open).collect()
    }

    fn has_chain(&self) -> Result<bool> {
        let rules = |family: &str| self.bed.node.run(&[family, "-t", "nat", "-S"]);
        Ok([rules("iptables-nft")?, rules("ip6tables-nft")?]
            .iter()
            .any(|rules| rules.contains("IP-MASQ-AGENT")))
    }
}

fn go_on(open: &mut [(Tcp, SocketAddr)]) -> Result<()> {
    for (client, before) in open {
        let seen = client.ask()?;
        ensure!(seen == *before, "it moved from {before} to {seen}");
    }
    Ok(())
}

fn mode(agent: &Agent) -> Result<String> {
    let mode = status(agent)?["report"]["mode"].clone();
    Ok(mode.as_str().unwrap_or_default().to_owned())
}

#[test]
fn without_bpf_the_chains_do_it_and_the_reason_is_logged() -> Result<()> {
    for (error, words) in ERRORS {
        let world = World::new()?;
        let mut options = world.options();
        options.set_bpf_error(Some(error));
        let mut agent = Agent::start(&world.bed.node, options)?;
        world.check()?;
        ensure!(mode(&agent)? == "iptables", "{}", agent.log());
        let shown = agent.netdp(&["status"])?;
        ensure!(
            shown
                .lines()
                .any(|line| line.starts_with("no eBPF    ") && line.contains(words)),
            "{shown}"
        );
        // Manifest lines are only for pods.
        ensure!(!shown.contains("to add"), "{shown}");
        let log = agent.log();
        let told: Vec<_> = log.lines().filter(|line| line.contains(FALLBACK)).collect();
        ensure!(told.len() == 1, "{log}");
        ensure!(told[0].contains("WARN") && told[0].contains(words), "{log}");
        ensure!(world.has_chain()?, "no chain");
        let attached = tcx_programs(&world.bed.node, "eth0")?;
        ensure!(attached.iter().all(Vec::is_empty), "{attached:?}");

        // bpf(2) becomes available: the programs take over and no connection ends.
        let mut open = world.open()?;
        agent.options().set_bpf_error(None);
        agent.restart()?;
        go_on(&mut open)?;
        world.check()?;
        ensure!(mode(&agent)? == "ebpf", "{}", agent.log());
        ensure!(!agent.log().contains(FALLBACK), "{}", agent.log());
        let shown = agent.netdp(&["status"])?;
        ensure!(!shown.contains("no eBPF"), "{shown}");
        wait_tcx(&world.bed.node, "eth0", &[&[OURS[0]], &[OURS[1]]])?;
    }
    Ok(())
}

/// A datapath that already translates is not abandoned.
#[test]
fn a_datapath_in_force_is_not_left() -> Result<()> {
    let world = World::new()?;
    let mut agent = Agent::start(&world.bed.node, world.options())?;
    ensure!(mode(&agent)? == "ebpf", "{}", agent.log());
    let mut open = world.open()?;
    agent.options().set_bpf_error(Some(Errno::EPERM));
    let told = format!("{:#}", agent.restart().unwrap_err());
    ensure!(told.contains("ended before it was in force"), "{told}");
    ensure!(
        told.contains("Operation not permitted") && !told.contains(FALLBACK),
        "{told}"
    );
    ensure!(
        told.contains("--mode auto does not replace them by iptables"),
        "{told}"
    );
    go_on(&mut open)?;
    world.check()?;
    ensure!(!world.has_chain()?, "a chain was written");
    agent.options().set_bpf_error(None);
    agent.restart()?;
    go_on(&mut open)
}

/// Neither is possible: both reasons are reported and nothing is left behind.
#[test]
fn with_neither_both_reasons_are_told() -> Result<()> {
    let world = World::new()?;
    let mut options = world.options().arg("--tool-dir=/nonexistent");
    options.set_bpf_error(Some(Errno::ENOSYS));
    let mut agent = Agent::spawn(&world.bed.node, options)?;
    let told = format!("{:#}", agent.wait_ready(crate::common::SOON).unwrap_err());
    for words in [
        "ended before it was in force",
        "eBPF does not work here (",
        ERRORS[0].1,
        "nor does iptables",
        "iptables-nft-save is not installed",
    ] {
        ensure!(told.contains(words), "{words:?} is not in {told}");
    }
    let attached = tcx_programs(&world.bed.node, "eth0")?;
    ensure!(attached.iter().all(Vec::is_empty), "{attached:?}");
    Ok(())
}

/// Errors that an operator can fix are not hidden by falling back to a chain.
#[test]
fn mistakes_are_told_and_not_worked_around() -> Result<()> {
    let world = World::new()?;
    let dir = WorkDir::new("auto")?;
    let file = dir.path().join("file");
    std::fs::write(&file, "")?;
    for (bpffs, words) in [
        (file.join("below"), "Not a directory"),
        ("/proc/netdp".into(), "creating the directory for pins"),
    ] {
        let mut command = world.bed.node.command(NETDP);
        command.args(["run", "--config"]).arg(world.config.path());
        command.arg("--state-dir").arg(dir.path().join("state"));
        command.arg("--bpffs").arg(&bpffs);
        let told = refused(command)?;
        ensure!(told.contains(words) && told.contains("--bpffs"), "{told}");
        ensure!(!told.contains(FALLBACK), "{told}");
    }
    ensure!(!world.has_chain()?, "a chain was written");
    Ok(())
}

/// Pins in the agent's private mount namespace end with it, and so do the programs.
#[test]
fn programs_that_would_not_outlive_the_agent_are_not_begun() -> Result<()> {
    let world = World::new()?;
    let dir = WorkDir::new("auto")?;
    let script = dir.path().join("netdp-alone");
    let text = format!("#!/bin/sh\nexec unshare --mount --propagation private {NETDP} \"$@\"\n");
    std::fs::write(dir.path().join("text"), text)?;
    // Not written by this process: a child that another test is starting would have it open for
    // writing, and then exec fails (ETXTBSY).
    let mut install = Command::new("install");
    output(
        install
            .args(["-m", "755"])
            .arg(dir.path().join("text"))
            .arg(&script),
    )?;
    let options = AgentOptions::new(&script)
        .config(world.config.path())
        .arg("--enable-ipv6")
        .arg("--mode=auto");
    let agent = Agent::start(&world.bed.node, options)?;
    world.check()?;
    ensure!(mode(&agent)? == "iptables", "{}", agent.log());
    let log = agent.log();
    let why = "is mounted in this process's mount namespace only";
    ensure!(log.contains(FALLBACK) && log.contains(why), "{log}");
    let attached = tcx_programs(&world.bed.node, "eth0")?;
    ensure!(attached.iter().all(Vec::is_empty), "{attached:?}");
    // Nothing of it remains in the agent's mount namespace either.
    let mounts = std::fs::read_to_string(format!("/proc/{}/mounts", agent.pid()))?;
    let bpffs = agent.bpffs();
    ensure!(
        !mounts.contains(&format!(" {} ", bpffs.display())),
        "{mounts}"
    );
    Ok(())
}
