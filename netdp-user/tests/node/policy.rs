//! `netdp policy`: what each prefix has counted, compared with what pods have sent.

use crate::common::{Echo, SOON, World, echoes, number};
use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::path::Path;
use testbed::wait_for;

/// Bypasses the neighbour of both families; all else is masqueraded.
const BEFORE: &str = "\
nonMasqueradeCIDRs:
- 172.16.0.0/16
- fd00:172::/64
- 10.1.0.0/16
- fd00:1::/64
";

/// The same with the far host's networks as rules of their own, and one that nothing needs.
const AFTER: &str = "\
nonMasqueradeCIDRs:
- 172.16.0.0/16
- fd00:172::/64
- 10.1.0.0/16
- fd00:1::/64
masqueradeCIDRs:
- 10.2.0.0/16
- fd00:2::/64
- 10.1.99.0/24
";

/// Bytes of each datagram.
const PAYLOAD: usize = 100;

/// Packets and bytes that a rule has counted, and new flows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Counted {
    packets: u64,
    bytes: u64,
    flows: u64,
}

impl Counted {
    /// Adds datagrams of [`PAYLOAD`] bytes to a destination.
    fn send(&mut self, to: IpAddr, datagrams: u64) {
        let headers = if to.is_ipv4() { 28 } else { 48 };
        self.packets += datagrams;
        self.bytes += datagrams * (PAYLOAD as u64 + headers);
    }
}

fn policy(world: &World) -> Result<Value> {
    let text = world.agent.netdp(&["policy", "-o", "json"])?;
    Ok(serde_json::from_str(&text)?)
}

/// Returns the counts of a prefix; an empty one stands for all other destinations.
fn counted(policy: &Value, prefix: &str) -> Result<Counted> {
    let rules = policy["rules"].as_array().context("rules")?;
    let of = |rule: &&Value| rule["prefix"].as_str().unwrap_or_default() == prefix;
    let rule = rules
        .iter()
        .find(of)
        .with_context(|| format!("no {prefix} in {policy}"))?;
    let read = |name: &str| number(&rule[name]).with_context(|| format!("{name} of {rule}"));
    Ok(Counted {
        packets: read("packets")?,
        bytes: read("bytes")?,
        flows: read("new_flows")?,
    })
}

/// A pod's socket towards one destination.
struct Sender(UdpSocket, SocketAddr);

impl Sender {
    fn new(world: &World, to: SocketAddr) -> Result<Self> {
        let any: SocketAddr = match to {
            SocketAddr::V4(_) => "0.0.0.0:0".parse()?,
            SocketAddr::V6(_) => "[::]:0".parse()?,
        };
        let socket = world.pod(0).open(|| UdpSocket::bind(any))?;
        socket.set_read_timeout(Some(SOON))?;
        socket.connect(to)?;
        Ok(Self(socket, to))
    }

    /// Sends datagrams, and waits for the answer to each.
    fn send(&self, datagrams: u64, sum: &mut Counted) -> Result<()> {
        let mut buffer = [0; 1024];
        for _ in 0..datagrams {
            self.0.send(&[b'x'; PAYLOAD])?;
            self.0
                .recv(&mut buffer)
                .with_context(|| format!("an answer from {}", self.1))?;
        }
        sum.send(self.1.ip(), datagrams);
        Ok(())
    }
}

fn wait_rule(world: &World, prefix: &str) -> Result<()> {
    wait_for(SOON, &format!("the rule {prefix} to be in force"), || {
        policy(world).is_ok_and(|it| it.to_string().contains(&format!("\"{prefix}\"")))
    })
}

/// Checks that all prefixes have counted exactly what was sent.
fn check(world: &World, expected: &[(&str, Counted)], when: &str) -> Result<()> {
    let seen = policy(world)?;
    for (prefix, expected) in expected {
        let seen = counted(&seen, prefix)?;
        ensure!(
            seen == *expected,
            "{when}, {prefix:?}: {seen:?}, sent: {expected:?}"
        );
    }
    Ok(())
}

fn echo_of(hosts: &[SocketAddr], v4: bool) -> Result<SocketAddr> {
    let found = hosts.iter().find(|it| it.is_ipv4() == v4);
    found.copied().context("an address of each family")
}

#[test]
fn prefixes_count_what_pods_send_over_a_reload_a_restart_and_a_kill() -> Result<()> {
    // With a place to ask for readiness, the agent tests its programs: these packets do not count.
    let arguments = ["--enable-ipv6", "--http-listen", "127.0.0.1:10268"];
    let mut world = World::with(BEFORE, &arguments)?;
    let (_near, _far) = (Echo::start(&world.near)?, Echo::start(&world.far)?);
    let (near, far) = (echoes(&world.near), echoes(&world.far));
    let near = [echo_of(&near, true)?, echo_of(&near, false)?];
    let far = [echo_of(&far, true)?, echo_of(&far, false)?];
    let [near4, near6] = near.map(|to| Sender::new(&world, to));
    let [far4, far6] = far.map(|to| Sender::new(&world, to));
    let (near4, near6, far4, far6) = (near4?, near6?, far4?, far6?);

    let (mut near4_sum, mut near6_sum) = (Counted::default(), Counted::default());
    let mut others = Counted::default();
    near4.send(40, &mut near4_sum)?;
    near6.send(30, &mut near6_sum)?;
    far4.send(600, &mut others)?;
    far6.send(10, &mut others)?;
    others.flows += 2;
    let bypassed =
        |near4: Counted, near6: Counted| [("10.1.0.0/16", near4), ("fd00:1::/64", near6)];
    check(&world, &bypassed(near4_sum, near6_sum), "at first")?;
    check(&world, &[("", others)], "at first")?;

    // A reload: the far host has rules of its own from here on, also for the mappings that live.
    world.config.write(AFTER)?;
    wait_rule(&world, "10.2.0.0/16")?;
    wait_for(SOON, "the ledger to follow", || {
        follows(&world).is_ok_and(|it| it)
    })?;
    let (mut far4_sum, mut far6_sum) = (Counted::default(), Counted::default());
    far4.send(25, &mut far4_sum)?;
    far6.send(35, &mut far6_sum)?;
    near4.send(5, &mut near4_sum)?;
    Sender::new(&world, far[0])?.send(3, &mut far4_sum)?;
    far4_sum.flows += 1;
    let all = |near4, near6, far4, far6, others| {
        [
            ("10.1.0.0/16", near4),
            ("fd00:1::/64", near6),
            ("10.2.0.0/16", far4),
            ("fd00:2::/64", far6),
            ("10.1.99.0/24", Counted::default()),
            ("169.254.0.0/16", Counted::default()),
            ("", others),
        ]
    };
    let expected = all(near4_sum, near6_sum, far4_sum, far6_sum, others);
    check(&world, &expected, "after the reload")?;
    let seen = policy(&world)?.to_string();
    ensure!(seen.contains("NDP203"), "{seen}");

    // Without an agent.
    world.agent.stop()?;
    near6.send(7, &mut near6_sum)?;
    far4.send(8, &mut far4_sum)?;
    let expected = all(near4_sum, near6_sum, far4_sum, far6_sum, others);
    check(&world, &expected, "without an agent")?;
    let text = world.agent.netdp(&["policy"])?;
    ensure!(text.contains("the agent is not running"), "{text}");

    world.agent.restart()?;
    near4.send(9, &mut near4_sum)?;
    far6.send(11, &mut far6_sum)?;
    let expected = all(near4_sum, near6_sum, far4_sum, far6_sum, others);
    check(&world, &expected, "after a restart")?;

    world.agent.kill9()?;
    near6.send(12, &mut near6_sum)?;
    far4.send(13, &mut far4_sum)?;
    world.agent.restart()?;
    far6.send(14, &mut far6_sum)?;
    let expected = all(near4_sum, near6_sum, far4_sum, far6_sum, others);
    check(&world, &expected, "after a kill")?;
    Ok(())
}

/// Reports whether the ledger follows the policy in force: it has the prefix that came last.
fn follows(world: &World) -> Result<bool> {
    let ledger = std::fs::read_to_string(world.agent.state_dir().join("counts.json"))?;
    Ok(ledger.contains("\"10.2.0.0/16\""))
}

#[test]
fn ended_mappings_stay_counted() -> Result<()> {
    let mut arguments = vec!["--enable-ipv6"];
    for timeout in ["udp-replied=1s", "udp-lookup=1s", "udp-unreplied=1s"] {
        arguments.extend(["--timeout", timeout]);
    }
    let mut world = World::with(AFTER, &arguments)?;
    let _far = Echo::start(&world.far)?;
    let mut sums = [Counted::default(), Counted::default()];
    for (to, sum) in echoes(&world.far).into_iter().zip(&mut sums) {
        Sender::new(&world, to)?.send(700, sum)?;
        sum.flows += 1;
    }
    wait_for(SOON, "the mappings to end", || {
        crate::common::mappings(&world.agent).is_ok_and(|count| count == 0)
    })?;
    let expected = [("10.2.0.0/16", sums[0]), ("fd00:2::/64", sums[1])];
    check(&world, &expected, "after the mappings' end")?;
    world.agent.kill9()?;
    world.agent.restart()?;
    check(&world, &expected, "after a kill")
}

#[test]
fn without_maps_the_directory_is_named() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let place = dir.path().to_string_lossy().into_owned();
    let mut command = std::process::Command::new(crate::common::NETDP);
    command.args(["policy", "--bpffs", &place, "--state-dir", &place]);
    let output = command.output()?;
    let told = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.code() == Some(2), "{output:?}");
    ensure!(
        told.contains(Path::new(&place).to_string_lossy().as_ref()),
        "{told}"
    );
    Ok(())
}

/// Runs a command that may fail; returns its exit status, standard output and standard error.
fn run(world: &World, arguments: &[&str]) -> Result<(Option<i32>, String, String)> {
    let output = world.agent.command(arguments).output()?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Ok((
        output.status.code(),
        text(&output.stdout),
        text(&output.stderr),
    ))
}

#[test]
fn the_history_has_each_policy_over_a_restart() -> Result<()> {
    let mut world = World::with(BEFORE, &["--enable-ipv6"])?;
    world.config.write(AFTER)?;
    wait_rule(&world, "10.2.0.0/16")?;
    wait_for(SOON, "the second policy in the history", || {
        run(&world, &["history", "2"]).is_ok_and(|(status, ..)| status == Some(0))
    })?;
    world.agent.restart()?;
    world.agent.stop()?;
    let (_, listed, _) = run(&world, &["history", "-o", "json"])?;
    let listed: Value = serde_json::from_str(&listed)?;
    let policies = listed["policies"].as_array().context("policies")?;
    let brief: Vec<_> = policies
        .iter()
        .map(|it| {
            (
                it["generation"].as_u64(),
                it["added"].as_u64(),
                it["rules"].as_u64(),
            )
        })
        .collect();
    ensure!(
        brief == [(Some(2), Some(3), Some(9)), (Some(1), Some(0), Some(6))],
        "{listed}"
    );
    let (_, changes, _) = run(&world, &["history", "1", "2"])?;
    ensure!(
        changes.starts_with("+3 from generation 1 to 2"),
        "{changes}"
    );
    ensure!(changes.contains("+ 10.2.0.0/16 masquerade"), "{changes}");
    let (_, first, _) = run(&world, &["history", "1"])?;
    ensure!(
        first.contains("10.1.0.0/16") && !first.contains("10.2.0.0/16"),
        "{first}"
    );
    let (status, _, told) = run(&world, &["history", "9"])?;
    ensure!(
        status == Some(2) && told.contains("not remembered"),
        "{told}"
    );
    Ok(())
}

#[test]
fn a_diff_names_rules_and_flows() -> Result<()> {
    let world = World::with(BEFORE, &["--enable-ipv6"])?;
    let (_near, _far) = (Echo::start(&world.near)?, Echo::start(&world.far)?);
    let mut sum = Counted::default();
    for to in echoes(&world.near).into_iter().chain(echoes(&world.far)) {
        Sender::new(&world, to)?.send(3, &mut sum)?;
    }
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("next");
    let path = file.to_string_lossy().into_owned();
    let diff = |text: &str| {
        std::fs::write(&file, text)?;
        run(&world, &["diff", &path])
    };
    let (status, told, _) = diff(BEFORE)?;
    ensure!(
        status == Some(0) && told.starts_with("no difference"),
        "{told}"
    );
    // The neighbour would be masqueraded, the far host not.
    let next =
        "nonMasqueradeCIDRs: [172.16.0.0/16, \"fd00:172::/64\", 10.2.0.0/16, \"fd00:2::/64\"]";
    let (status, told, _) = diff(next)?;
    ensure!(status == Some(1), "{told}");
    ensure!(
        told.starts_with("+2 -2 against the policy in force"),
        "{told}"
    );
    for line in [
        "- 10.1.0.0/16 bypass",
        "+ fd00:2::/64 bypass",
        "any more: 2, of 2 pods (--on-reload sticky: they live on)",
        "no rule: 2 pod-destination pairs seen bypassed would be masqueraded",
    ] {
        ensure!(told.contains(line), "{line:?} in {told}");
    }
    let (status, _, told) = diff("nonMasqueradeCIDRs: [10.0.0.0/99]")?;
    ensure!(status == Some(2) && told.contains("10.0.0.0/99"), "{told}");
    Ok(())
}
