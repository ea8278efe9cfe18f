//! The datapath is removed, in an orderly way or not, and another one is attached. Flows that the
//! first one translated, which conntrack therefore records as untranslated, must not leave with
//! pods' addresses then; flows that nothing translates continue.

use crate::common::clients::{Tcp, Udp, any, tcp_stream, udp_source};
use crate::common::{
    ANSWER, ECHO, Echo, POLICY, SOON, World, echoes, nft, start_agent, tcx_programs,
};
use anyhow::{Context as _, Result, ensure};
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::path::Path;
use std::time::Instant;
use testbed::{Agent, Bed, ConfigVolume, Host, Netns, wait_for};

/// Pods are bypassed; everything else is masqueraded, the node's own network included.
const PODS_ONLY: &str = "\
nonMasqueradeCIDRs:
- 172.16.0.0/16
- fd00:172::/64
";

/// Identifier of the pings: one flow, however many requests.
const PING: &str = "4711";

/// Removal of the datapath.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Going {
    /// By `netdp detach`.
    Detach,
    /// The agent exits with `--on-exit detach`.
    OnExit,
    /// A third party removes the pins while no agent runs.
    PinsRemoved,
    /// The pins and the state directory are removed, as with a container without volumes.
    AllRemoved,
}

impl Going {
    fn go(self, node: &Netns, agent: &mut Agent) -> Result<()> {
        match self {
            Self::Detach => {
                agent.stop()?;
                agent.netdp(&["detach"])?;
            }
            Self::OnExit => {
                agent.stop()?;
            }
            Self::PinsRemoved | Self::AllRemoved => {
                agent.kill9()?;
                remove_within(&agent.bpffs())?;
                if self == Self::AllRemoved {
                    fs::remove_dir_all(agent.state_dir())?;
                }
            }
        }
        wait_for(SOON, "the programs to be gone", || {
            let programs = tcx_programs(node, "eth0");
            programs.is_ok_and(|hooks| hooks.iter().all(Vec::is_empty))
        })
    }
}

fn remove_within(dir: &Path) -> Result<()> {
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            remove_within(&path)?;
            fs::remove_dir(&path)?;
        } else if path.extension().is_none_or(|it| it != "debug") {
            // These are the kernel's own.
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}

/// Enables conntrack as kube-proxy's rules do, with timeouts longer than the start of an agent on a
/// busy machine.
fn track(node: &Netns) -> Result<()> {
    for program in ["iptables-nft", "ip6tables-nft"] {
        let rule = "-A FORWARD -m conntrack --ctstate NEW -j ACCEPT";
        let wait = [program, "--wait", "60"];
        let command: Vec<_> = wait.into_iter().chain(rule.split(' ')).collect();
        node.run(&command)?;
    }
    for key in [
        "udp_timeout",
        "udp_timeout_stream",
        "icmp_timeout",
        "icmpv6_timeout",
    ] {
        node.sysctl(&format!("net.netfilter.nf_conntrack_{key}"), "600")?;
    }
    Ok(())
}

/// Counts packets with pods' own addresses that arrive at `host`.
fn count_leaks(host: &Netns) -> Result<()> {
    nft(
        host,
        "table inet leaks {
            chain early {
                type filter hook prerouting priority -300;
                ip saddr 172.16.0.0/24 counter
                ip6 saddr fd00:172::/64 counter
            }
        }",
    )
}

fn leaks(host: &Netns) -> Result<u64> {
    let table = host.run(&["nft", "list", "table", "inet", "leaks"])?;
    let counts = table.split(" packets ").skip(1);
    let counts = counts.map(|rest| rest.split(' ').next().unwrap_or_default().parse::<u64>());
    counts.sum::<Result<u64, _>>().context(table.clone())
}

/// Open flows and the source that the server saw.
struct Open {
    udp: Vec<(Udp, SocketAddr)>,
    tcp: Vec<(Tcp, SocketAddr)>,
}

impl Open {
    fn new(pod: &Netns, host: &Host) -> Result<Self> {
        let (mut udp, mut tcp) = (Vec::new(), Vec::new());
        for to in echoes(host) {
            for _ in 0..3 {
                let mut client = Udp::connect(pod, any(to), to)?;
                let seen = client.ask()?;
                udp.push((client, seen));
            }
            let mut client = Tcp::connect(pod, any(to), to)?;
            let seen = client.ask()?;
            tcp.push((client, seen));
        }
        Ok(Self { udp, tcp })
    }

    /// Checks that all continue with the same source.
    fn resume(&mut self, when: &str) -> Result<()> {
        self.resume_datagrams(when)?;
        for (client, seen) in &mut self.tcp {
            let now = client.ask().with_context(|| format!("TCP, {when}"))?;
            ensure!(now == *seen, "TCP, {when}: {seen}, then {now}");
        }
        Ok(())
    }

    fn resume_datagrams(&mut self, when: &str) -> Result<()> {
        for (client, seen) in &mut self.udp {
            let now = client.ask().with_context(|| format!("UDP, {when}"))?;
            ensure!(now.ip() == seen.ip(), "UDP, {when}: {seen}, then {now}");
        }
        Ok(())
    }
}

/// Waits until both ends have acknowledged all data. A late acknowledgement would find no datapath,
/// the peer would retransmit to the node's address, and the node's own stack would reset the
/// connection.
fn settle(pod: &Netns, host: &Host) -> Result<()> {
    let unacknowledged = |ns: &Netns| -> Result<bool> {
        let listed = ns.run(&["ss", "--no-header", "--tcp", "--numeric"])?;
        let queued = listed.lines().map(|line| line.split_whitespace().nth(2));
        Ok(queued.into_iter().any(|queued| queued != Some("0")))
    };
    wait_for(SOON, "everything to be acknowledged", || {
        !unacknowledged(pod).unwrap_or(true) && !unacknowledged(host).unwrap_or(true)
    })
}

/// Sends one ping of the same flow to each address of the host, which must be answered.
fn ping(pod: &Netns, host: &Host) -> Result<()> {
    for net in &host.addresses {
        let to = net.addr().to_string();
        pod.run(&["ping", "-n", "-c1", "-W15", "-e", PING, &to])
            .with_context(|| format!("a ping to {to}"))?;
    }
    Ok(())
}

/// Removes the datapath and starts another agent in `mode`.
fn goes_and_comes(going: Going, mode: &str, arguments: &[&str]) -> Result<()> {
    let when = format!("after {going:?}, in {mode} mode");
    let mut all = vec!["--enable-ipv6", "--mode=ebpf"];
    all.extend(arguments);
    if going == Going::OnExit {
        all.push("--on-exit=detach");
    }
    let mut world = World::with(POLICY, &all)?;
    track(&world.bed.node)?;
    count_leaks(&world.far)?;
    let _echo = Echo::start(&world.far)?;
    let mut open = Open::new(&world.bed.pods[0], &world.far)?;
    ping(&world.bed.pods[0], &world.far)?;
    open.resume("before")?;
    settle(&world.bed.pods[0], &world.far)?;

    going.go(&world.bed.node, &mut world.agent)?;
    world
        .agent
        .options()
        .replace("--mode=ebpf", &format!("--mode={mode}"));
    world.agent.restart()?;
    // Packets in flight while the programs were detached.
    let before = leaks(&world.far)?;
    if mode == "ebpf" {
        open.resume(&when)?;
    } else {
        // netfilter may assign another port to a flow that it meets in mid-stream.
        open.resume_datagrams(&when)?;
    }
    ping(&world.bed.pods[0], &world.far).context(when.clone())?;
    let leaked = leaks(&world.far)? - before;
    ensure!(leaked == 0, "{when}: {leaked} packets from pods' addresses");
    Ok(())
}

#[test]
fn flows_go_on_after_a_detach_and_a_start() -> Result<()> {
    goes_and_comes(Going::Detach, "ebpf", &[])?;
    goes_and_comes(Going::Detach, "ebpf", &["--takeover=false"])
}

#[test]
fn flows_go_on_after_an_exit_that_detaches() -> Result<()> {
    goes_and_comes(Going::OnExit, "ebpf", &[])
}

#[test]
fn flows_go_on_after_pins_were_removed() -> Result<()> {
    goes_and_comes(Going::PinsRemoved, "ebpf", &[])?;
    goes_and_comes(Going::AllRemoved, "ebpf", &[])
}

#[test]
fn flows_go_on_by_the_chains_after_a_detach() -> Result<()> {
    goes_and_comes(Going::Detach, "iptables", &[])
}

#[test]
fn flows_go_on_by_the_chains_after_pins_were_removed() -> Result<()> {
    goes_and_comes(Going::PinsRemoved, "iptables", &[])?;
    goes_and_comes(Going::AllRemoved, "iptables", &[])
}

/// The pins are removed, and `netdp detach` runs before the next agent.
#[test]
fn a_detach_clears_up_after_pins_were_removed() -> Result<()> {
    let mut world = World::start()?;
    track(&world.bed.node)?;
    count_leaks(&world.far)?;
    let _echo = Echo::start(&world.far)?;
    let mut open = Open::new(&world.bed.pods[0], &world.far)?;
    let marks = || world.bed.node.run(&["conntrack", "-L", "-p", "253"]);
    ensure!(marks()?.contains("src=192.0.0.8"), "{}", marks()?);
    settle(&world.bed.pods[0], &world.far)?;
    Going::PinsRemoved.go(&world.bed.node, &mut world.agent)?;
    world.agent.netdp(&["detach"])?;
    let left = world.bed.node.run(&["conntrack", "-L"])?;
    ensure!(!left.contains("dport=7 "), "{left}");
    ensure!(!left.contains("src=192.0.0.8"), "{left}");
    world.agent.restart()?;
    let before = leaks(&world.far)?;
    open.resume("after the detach")?;
    ensure!(leaks(&world.far)? == before, "pods' addresses have left");
    Ok(())
}

/// A host with a route to pods, before netdp and between two of its datapaths.
#[test]
fn what_nobody_translates_is_kept_over_a_detach() -> Result<()> {
    let bed = Bed::dual_stack()?;
    let near = bed.neighbour(0, &["10.1.0.20/16", "fd00:1::20/64"])?;
    track(&bed.node)?;
    let _echo = Echo::start(&near)?;
    let pod = &bed.pods[0];
    let mut before = Open::new(pod, &near)?;
    let config = ConfigVolume::new(PODS_ONLY)?;
    let mut agent = start_agent(&bed.node, &config, &["--enable-ipv6"])?;
    before.resume("after the first start")?;
    Going::Detach.go(&bed.node, &mut agent)?;
    before.resume("after the detach")?;
    let mut between = Open::new(pod, &near)?;
    agent.restart()?;
    before.resume("after the second start")?;
    between.resume("after the second start")?;
    for to in echoes(&near) {
        let node = crate::common::same_family(&bed.uplinks[0].addresses, to.ip())?;
        assert_eq!(udp_source(pod, to)?, node, "a new flow");
    }
    Ok(())
}

/// It was never translated, and the pod may be the first to send.
#[test]
fn a_connection_from_outside_goes_on_after_pins_were_removed() -> Result<()> {
    let mut world = World::with(PODS_ONLY, &["--enable-ipv6"])?;
    track(&world.bed.node)?;
    let pod = &world.bed.pods[0];
    let mut connections = Vec::new();
    for net in &pod.addresses {
        let at = SocketAddr::new(net.addr(), ECHO);
        let server = pod.open(|| TcpListener::bind(at))?;
        let client = tcp_stream(&world.near, any(at), at)?;
        let (accepted, _) = server.accept()?;
        connections.push((client, accepted));
    }
    Going::AllRemoved.go(&world.bed.node, &mut world.agent)?;
    world.agent.restart()?;
    for (client, accepted) in &mut connections {
        accepted.write_all(b"!")?;
        let mut byte = [0];
        client.read_exact(&mut byte).context("the pod's word")?;
    }
    Ok(())
}

/// Sends one query from each socket; returns the number without an answer.
fn ask(sockets: &[UdpSocket]) -> Result<usize> {
    for socket in sockets {
        socket.send(b"?")?;
    }
    let deadline = Instant::now() + ANSWER;
    let mut missing = 0;
    for socket in sockets {
        // Zero would disable the timeout.
        let left = deadline.saturating_duration_since(Instant::now());
        socket.set_read_timeout(Some(left.max(std::time::Duration::from_millis(1))))?;
        missing += usize::from(socket.recv(&mut [0; 256]).is_err());
    }
    Ok(missing)
}

fn sockets(pod: &Netns, to: SocketAddr, count: usize) -> Result<Vec<UdpSocket>> {
    pod.open(|| {
        (0..count)
            .map(|_| {
                let socket = UdpSocket::bind(any(to))?;
                socket.connect(to)?;
                Ok(socket)
            })
            .collect()
    })
}

/// Like resolvers: many sockets with one query each, on recurring ports, and some that stay open.
/// `--nocapture` shows the figures.
#[test]
fn questions_are_answered_after_a_detach_and_a_start() -> Result<()> {
    const STAY: usize = 100;
    const BATCH: usize = 200;
    const BATCHES: usize = 10;
    let mut world = World::start()?;
    track(&world.bed.node)?;
    count_leaks(&world.far)?;
    let _echo = Echo::start(&world.far)?;
    // Few enough that many ports recur.
    let pod = &world.bed.pods[0];
    pod.sysctl("net.ipv4.ip_local_port_range", "40000 49999")?;
    let servers = echoes(&world.far);
    let stay: Vec<_> = servers
        .iter()
        .map(|to| sockets(pod, *to, STAY))
        .collect::<Result<_>>()?;
    // Numbers of unanswered queries: of the sockets that stay, and of the others.
    let questions = |when: &str| -> Result<[usize; 2]> {
        let mut missing = [0; 2];
        for open in &stay {
            missing[0] += ask(open)?;
        }
        for to in &servers {
            for _ in 0..BATCHES {
                missing[1] += ask(&sockets(pod, *to, BATCH)?)?;
            }
        }
        eprintln!(
            "{when}: {} of {} open sockets and {} of {} new ones without an answer, {} packets from \
             pods' addresses",
            missing[0],
            STAY * servers.len(),
            missing[1],
            BATCHES * BATCH * servers.len(),
            leaks(&world.far)?
        );
        Ok(missing)
    };
    assert_eq!(questions("before the detach")?, [0, 0]);
    Going::Detach.go(&world.bed.node, &mut world.agent)?;
    world.agent.restart()?;
    assert_eq!(questions("after detach and start")?, [0, 0]);
    assert_eq!(leaks(&world.far)?, 0);
    Ok(())
}

/// Objects that cannot be removed are reported, all others are removed, and the record of the
/// former stays.
#[test]
fn a_detach_says_what_it_could_not_remove() -> Result<()> {
    let mut world = World::start()?;
    world.agent.stop()?;
    let work = world.agent.state_dir();
    let work = work.parent().context("no directory")?.join("programs");
    fs::create_dir(&work)?;
    // Other users could replace it below /tmp: it is not executed.
    fs::write(work.join("iptables-nft-save"), "#!/bin/sh\n")?;
    let programs = work.display().to_string();
    let told = crate::common::refused(world.agent.command(&["detach", "--tool-dir", &programs]))?;
    for words in [
        "not removed: chain NETDP-KEEP",
        "is not executed",
        "removed /",
    ] {
        ensure!(told.contains(words), "{words:?} is not in {told}");
    }
    let left = tcx_programs(&world.bed.node, "eth0")?;
    ensure!(left.iter().all(Vec::is_empty), "{left:?} are attached");
    ensure!(world.agent.state_dir().join("status.json").exists());
    world.agent.netdp(&["detach"])?;
    ensure!(!world.agent.state_dir().exists(), "state is left");
    Ok(())
}
