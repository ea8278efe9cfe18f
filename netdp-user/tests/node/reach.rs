//! Bypassed networks that do not answer pods: what `netdp suggest` says of them, and what it does not.

use crate::common::clients::{Tcp, any, tcp_source};
use crate::common::{
    ECHO, Echo, NETDP, SOON, World, echoes, nft, same_family, start_agent, status, wait_log,
};
use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use socket2::{Domain, Socket, Type};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};
use testbed::{Agent, Bed, ConfigVolume, Host, Netns, wait_for};

/// Policy that bypasses all servers of the tests.
const BROAD: &str = "\
nonMasqueradeCIDRs:
- 10.0.0.0/8
- 172.16.0.0/16
- fd00::/8
";

/// The same for agents that do not translate IPv6.
const BROAD_V4: &str = "\
nonMasqueradeCIDRs:
- 10.0.0.0/8
- 172.16.0.0/16
";

/// Attempts from which on a network is judged, and a few more.
const ATTEMPTS: usize = 24;

/// Exit statuses of `netdp suggest`.
const SUGGESTED: i32 = 0;
const NONE: i32 = 1;
const UNKNOWN: i32 = 2;

/// Begins connections that are given up at once: a SYN each.
fn attempt(ns: &Netns, to: impl IntoIterator<Item = SocketAddr> + Send) -> Result<()> {
    ns.enter(|| -> Result<()> {
        for to in to {
            let socket = Socket::new(Domain::for_address(to), Type::STREAM, None)?;
            socket.set_nonblocking(true)?;
            // It would block, or fails at once.
            let _ = socket.connect(&to.into());
        }
        Ok(())
    })?
}

fn times(count: usize, to: SocketAddr) -> Vec<SocketAddr> {
    vec![to; count]
}

/// Runs `netdp suggest`; returns its exit status and its output.
fn suggest(agent: &Agent, format: &str) -> Result<(i32, String)> {
    let output = agent.command(&["suggest", "-o", format]).output()?;
    let text = String::from_utf8(output.stdout)?;
    let status = output.status.code().context("an exit status")?;
    eprintln!("{text}{}", String::from_utf8_lossy(&output.stderr));
    Ok((status, text))
}

/// Returns the verdicts of `netdp suggest` by network.
fn verdicts(agent: &Agent) -> Result<Vec<(String, String)>> {
    let (_, text) = suggest(agent, "json")?;
    let found: Value = serde_json::from_str(&text)?;
    let networks = found["networks"].as_array().context("networks")?;
    let word = |value: &Value| value.as_str().map(str::to_owned).context("a word");
    let each = networks.iter();
    each.map(|it| Ok((word(&it["network"])?, word(&it["verdict"])?)))
        .collect()
}

/// Runs `netdp probe`; returns its exit status.
fn probe(node: &Netns, count: &str, to: SocketAddr) -> Result<i32> {
    let to = to.to_string();
    let output = (node.command(NETDP))
        .args(["probe", "-n", count, &to])
        .output()?;
    eprintln!("{}", String::from_utf8_lossy(&output.stdout));
    output.status.code().context("an exit status")
}

fn at(host: &Host, port: u16) -> Result<SocketAddr> {
    Ok((IpAddr::from(host.v4()?), port).into())
}

#[test]
fn what_has_no_way_back_is_suggested_and_then_answers() -> Result<()> {
    let mut world = World::with(BROAD, &["--enable-ipv6"])?;
    let (_far, _near) = (Echo::start(&world.far)?, Echo::start(&world.near)?);
    let (pod, agent) = (&world.bed.pods[0].ns, &world.agent);
    let far = echoes(&world.far);
    for to in &far {
        attempt(pod, times(ATTEMPTS, *to))?;
    }
    // The neighbour has a route to pods.
    for to in echoes(&world.near) {
        for _ in 0..ATTEMPTS {
            tcp_source(pod, to)?;
        }
    }
    let (exit, text) = suggest(agent, "text")?;
    ensure!(
        exit == UNKNOWN && text.contains("netdp probe"),
        "{exit}: {text}"
    );
    for to in &far {
        ensure!(
            probe(&world.bed.node, "5", *to)? == 0,
            "the node is answered by {to}"
        );
    }
    let found = verdicts(agent)?;
    let of = |verdict: &str| -> Vec<&str> {
        let networks = found.iter().filter(|(_, it)| it == verdict);
        networks.map(|(network, _)| network.as_str()).collect()
    };
    ensure!(
        of("no-way-back") == ["10.2.0.0/24", "fd00:2::/64"],
        "{found:?}"
    );
    ensure!(of("well") == ["10.1.0.0/24", "fd00:1::/64"], "{found:?}");
    wait_log(agent, "NDP206: 10.2.0.0/24 no way back to pods")?;
    let reported = status(agent)?["report"]["reach"].clone();
    ensure!(reported[0]["network"] == "10.2.0.0/24", "{reported}");

    // A further document.
    let (exit, document) = suggest(agent, "yaml")?;
    ensure!(exit == SUGGESTED, "{exit}");
    let whole = format!("{BROAD}---\n{document}");
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("config");
    std::fs::write(&file, &whole)?;
    let path = file.to_str().context("a path")?;
    let check = ["config", "check", "--enable-ipv6", "--strict", path];
    let mut command = world.bed.node.command(NETDP);
    let checked = command.args(check).output()?;
    ensure!(checked.status.success(), "{checked:?}");

    world.config.write(&whole)?;
    for to in &far {
        let own = world.node_address(to.ip())?;
        wait_for(SOON, "the pod to be answered", || {
            tcp_source(&world.bed.pods[0], *to).is_ok_and(|source| source == own)
        })?;
    }
    for to in echoes(&world.near) {
        let own = same_family(&world.pod(0).addresses, to.ip())?;
        ensure!(tcp_source(world.pod(0), to)? == own, "still bypassed");
    }
    let (exit, text) = suggest(&world.agent, "text")?;
    ensure!(exit == NONE, "{exit}: {text}");
    Ok(())
}

#[test]
fn what_was_seen_survives_a_restart_and_needs_no_agent() -> Result<()> {
    let mut world = World::with(BROAD_V4, &[])?;
    let _far = Echo::start(&world.far)?;
    let far = at(&world.far, ECHO)?;
    attempt(world.pod(0), times(ATTEMPTS / 2, far))?;
    ensure!(probe(&world.bed.node, "5", far)? == 0);
    world.agent.restart()?;
    attempt(world.pod(0), times(ATTEMPTS / 2, far))?;
    world.agent.kill9()?;
    let (exit, text) = suggest(&world.agent, "text")?;
    ensure!(exit == SUGGESTED, "{exit}");
    ensure!(
        text.contains("10.2.0.0/24  0 of 24        5 of 5"),
        "{text}"
    );
    // A child process of a killed agent holds the agent's lock until it has executed its program.
    wait_for(SOON, "the agent's lock to be free", || {
        let suggested = suggest(&world.agent, "text");
        suggested.is_ok_and(|(_, text)| text.contains("No agent is running"))
    })
}

#[test]
fn without_counts_the_directories_are_named() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let [pins, state] = ["pins", "state"].map(|name| dir.path().join(name));
    let output = std::process::Command::new(NETDP)
        .args(["suggest", "--bpffs"])
        .arg(&pins)
        .arg("--state-dir")
        .arg(&state)
        .output()?;
    let told = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(UNKNOWN), "{told}");
    for path in [pins, state] {
        let path = path.to_str().context("a path")?;
        ensure!(told.contains(path), "{told}");
    }
    Ok(())
}

/// Servers that are down, closed ports, ports behind a firewall, and a scan of more networks than are
/// counted.
#[test]
fn a_mixture_of_faults_is_no_missing_way_back() -> Result<()> {
    let world = World::with(BROAD_V4, &[])?;
    // Everybody behind the router has a way back to pods here.
    let router = &world.bed.uplinks[0].router;
    router.ip("route add 172.16.0.0/24 via 10.1.0.10")?;
    let (near, far) = (&world.near, &world.far);
    let _servers = [Echo::start(near)?, Echo::start(far)?];
    let (agent, pod) = (&world.agent, &world.bed.pods[0].ns);
    nft(
        far,
        "add table ip t; add chain ip t in { type filter hook input priority 0; }; \
         add rule ip t in tcp dport 90 drop",
    )?;
    // Closed ports are answered by resets.
    attempt(pod, times(ATTEMPTS, at(near, 81)?))?;
    ensure!(
        probe(&world.bed.node, "5", at(near, 81)?)? == 0,
        "a reset is an answer"
    );
    // Some ports are dropped.
    attempt(pod, times(ATTEMPTS, at(far, 90)?))?;
    attempt(pod, times(ATTEMPTS, at(far, ECHO)?))?;
    ensure!(probe(&world.bed.node, "5", at(far, ECHO)?)? == 0);
    // Nobody is there.
    let nobody = "10.3.0.9:80".parse()?;
    attempt(pod, times(ATTEMPTS, nobody))?;
    ensure!(probe(&world.bed.node, "3", nobody)? == 1, "nobody answers");
    wait_for(SOON, "verdicts", || {
        verdicts(agent).is_ok_and(|found| found.len() == 3)
    })?;
    let found = verdicts(agent)?;
    let is = |network: &str, verdict: &str| found.contains(&(network.into(), verdict.into()));
    ensure!(is("10.1.0.0/24", "well"), "{found:?}");
    ensure!(is("10.2.0.0/24", "well"), "{found:?}");
    ensure!(is("10.3.0.0/24", "nobody-answers"), "{found:?}");
    // A scan: one SYN to each of 10,000 networks.
    let scan = (0..10_000_u32).map(|n| {
        let address = std::net::Ipv4Addr::from(0x0a40_0001 + n * 256);
        SocketAddr::from((address, 80))
    });
    attempt(pod, scan)?;
    let found = verdicts(agent)?;
    ensure!(found.iter().all(|(_, it)| it != "no-way-back"), "{found:?}");
    Ok(())
}

/// Rules of a server that is down.
const DOWN: &str = "add table ip t; \
                    add chain ip t in { type filter hook input priority 0; policy drop; }";

/// Servers that go down and come back, closed ports, a firewall, addresses where nobody is, answers by
/// an interface without programs, changes of the policy, restarts: nothing of this is a missing way
/// back, and the one network that has none is found beside it. `NETDP_REACH_MINUTES=60` goes on for an
/// hour.
#[test]
fn mixed_traffic_brings_no_false_verdict() -> Result<()> {
    let minutes = match std::env::var("NETDP_REACH_MINUTES") {
        Ok(minutes) => minutes.parse().context("NETDP_REACH_MINUTES")?,
        Err(_) => 0,
    };
    let end = Instant::now() + Duration::from_secs(minutes * 60);
    let mut world = World::with(BROAD_V4, &[])?;
    let bed = &world.bed;
    let hosts = [
        bed.server(0, &["10.4.0.1/24"])?,
        bed.server(0, &["10.5.0.1/24"])?,
    ];
    let [unsteady, without] = &hosts;
    let servers = [&world.near, &world.far, unsteady, without].map(Echo::start);
    let _servers: Vec<_> = servers.into_iter().collect::<Result<_>>()?;
    let router = &bed.uplinks[0].router;
    router.ip("route add 172.16.0.0/24 via 10.1.0.10")?;
    without.ns.ip("route add blackhole 172.16.0.0/24")?;
    let firewall = "add table ip t; add chain ip t in { type filter hook input priority 0; }; \
                    add rule ip t in tcp dport 90 drop";
    nft(&world.far, firewall)?;
    // What is sent to the second pod comes to it by the bridge.
    bed.node.plug("cni0", "aside", router, "aside")?;
    router.ip("address add 172.16.0.200/32 dev aside")?;
    let second = bed.pods[1].v4()?;
    router.ip(&format!("route add {second}/32 dev aside"))?;

    let nobody: SocketAddr = "10.3.0.9:80".parse()?;
    let to = [
        at(&world.near, ECHO)?,
        at(&world.near, 81)?,
        at(&world.far, ECHO)?,
        at(&world.far, 90)?,
        at(unsteady, ECHO)?,
        at(without, ECHO)?,
        nobody,
    ];
    let (mut found, mut changed) = (Vec::new(), Instant::now());
    for round in 0_usize.. {
        let clients = [&bed.pods[0].ns, &bed.pods[1].ns, &bed.node];
        for (n, (client, to)) in clients
            .iter()
            .flat_map(|client| to.iter().map(move |to| (client, *to)))
            .enumerate()
        {
            attempt(client, times(1 + (round + n) % 4, to))?;
        }
        for pod in &bed.pods[..2] {
            for server in [&world.near, &world.far] {
                tcp_source(pod, at(server, ECHO)?)?;
            }
        }
        // A change makes counts of before it worthless.
        if round == 3 || changed.elapsed() > Duration::from_secs(50) {
            changed = Instant::now();
            let more = format!("{BROAD_V4}- 192.168.{}.0/24\n", round % 200);
            world.config.write(&more)?;
            world.agent.restart()?;
        }
        match round % 16 {
            3 => nft(unsteady, DOWN)?,
            9 => nft(unsteady, "delete table ip t")?,
            _ => {}
        }
        found = verdicts(&world.agent)?;
        found.retain(|(_, verdict)| verdict == "no-way-back");
        let is_wrong = |(network, _): &(String, String)| network != "10.5.0.0/24";
        ensure!(!found.iter().any(is_wrong), "round {round}: {found:?}");
        if round > 16 && !found.is_empty() && Instant::now() > end {
            eprintln!("{} rounds", round + 1);
            break;
        }
        ensure!(Instant::now() < end + SOON * 2, "10.5.0.0/24 is not found");
        if minutes > 0 {
            std::thread::sleep(Duration::from_secs(1));
        }
    }
    ensure!(!found.is_empty());
    Ok(())
}

/// Answers reach the pod by the bridge that its own interface is on: no program sees them.
#[test]
fn answers_by_an_interface_without_programs_are_not_missed() -> Result<()> {
    let world = World::with(BROAD_V4, &[])?;
    let _far = Echo::start(&world.far)?;
    let router = &world.bed.uplinks[0].router;
    world.bed.node.plug("cni0", "aside", router, "aside")?;
    router.ip("address add 172.16.0.200/24 dev aside")?;
    let far = at(&world.far, ECHO)?;
    ensure!(probe(&world.bed.node, "5", far)? == 0);
    // The new address begins an epoch; what was counted before is no evidence.
    let mut found = Vec::new();
    wait_for(SOON, "a verdict", || {
        let asked = (0..ATTEMPTS).all(|_| {
            Tcp::connect(world.pod(0), any(far), far).is_ok_and(|mut client| client.ask().is_ok())
        });
        found = verdicts(&world.agent).unwrap_or_default();
        asked && !found.is_empty()
    })?;
    ensure!(
        found == [("10.2.0.0/24".into(), "well".into())],
        "{found:?}"
    );
    Ok(())
}

/// In shadow mode netdp attaches nothing: it counts what connection tracking reports.
#[test]
fn shadow_mode_finds_the_same() -> Result<()> {
    let bed = Bed::dual_stack()?;
    let far = bed.server(0, &["10.2.0.1/24"])?;
    let near = bed.neighbour(0, &["10.1.0.20/16", "fd00:1::20/64"])?;
    let _servers = [Echo::start(&far)?, Echo::start(&near)?];
    let config = ConfigVolume::new(BROAD_V4)?;
    // Connection tracking works where there are NAT rules: such as ip-masq-agent's.
    start_agent(&bed.node, &config, &["--mode=iptables"])?.stop()?;
    let agent = start_agent(&bed.node, &config, &["--mode=shadow"])?;
    let pod = &bed.pods[0].ns;
    for port in [ECHO, 81] {
        attempt(pod, times(ATTEMPTS / 2, at(&near, port)?))?;
    }
    attempt(pod, times(ATTEMPTS, at(&far, ECHO)?))?;
    ensure!(probe(&bed.node, "5", at(&far, ECHO)?)? == 0);
    wait_for(SOON, "all to be settled", || {
        verdicts(&agent).is_ok_and(|found| found.len() == 2)
    })
    .with_context(|| format!("the agent wrote:\n{}", agent.log()))?;
    let found = verdicts(&agent)?;
    let expected = [("10.2.0.0/24", "no-way-back"), ("10.1.0.0/24", "well")];
    let expected = expected.map(|(network, verdict)| (network.into(), verdict.into()));
    ensure!(found == expected, "{found:?}");
    ensure!(suggest(&agent, "yaml")?.0 == SUGGESTED);
    Ok(())
}
