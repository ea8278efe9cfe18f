//! The maps, `netdp status` and `netdp flows` for known traffic.

use crate::common::clients::{Tcp, Udp, any, from_port, ping};
use crate::common::{ECHO, Echo, World, echoes, flows, number};
use anyhow::{Context as _, Result, ensure};
use netdp_common::layout::{
    MAPPING_COUNTED_ORIGINAL, MAPPING_COUNTED_REPLY, MAPPING_ORIGIN, SETTING_BYPASS_CACHE_VALID,
    SETTING_IPV6,
};
use serde_json::{Value, json};
use std::net::{IpAddr, SocketAddr};
use std::process::Command;
use testbed::{Agent, output, wait_for};

/// Counters of a CPU, in the order of their fields.
const COUNTERS: [&str; 9] = [
    "egress_masqueraded",
    "egress_bypassed",
    "egress_host",
    "egress_replies",
    "egress_untouched",
    "ingress_translated",
    "ingress_passed",
    "mappings_created",
    "ports_changed",
];

/// Returns the entries of a pinned map with named fields.
fn dump(agent: &Agent, map: &str) -> Result<Vec<Value>> {
    let path = agent.bpffs().join(map);
    let mut command = Command::new("bpftool");
    command.args(["-j", "map", "dump", "pinned"]).arg(path);
    let entries: Vec<Value> = serde_json::from_str(&output(&mut command)?)?;
    let formatted = entries.iter().map(|entry| {
        let formatted = entry.get("formatted").cloned();
        formatted.with_context(|| format!("{map} has no BTF: {entry}"))
    });
    formatted.collect()
}

/// Returns an address in the representation of the maps.
fn bytes(address: IpAddr) -> Value {
    let octets = match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    };
    json!({ "bytes": octets })
}

fn tuple(from: SocketAddr, to: SocketAddr, proto: u32) -> Value {
    json!({
        "src": bytes(from.ip()),
        "dst": bytes(to.ip()),
        "src_id": from.port(),
        "dst_id": to.port(),
        "proto": proto,
    })
}

/// Returns the value of the entry with this key.
fn entry<'a>(entries: &'a [Value], key: &Value) -> Result<&'a Value> {
    let entry = entries.iter().find(|entry| entry["key"] == *key);
    let entry = entry.with_context(|| format!("{key} is not in {entries:#?}"))?;
    Ok(&entry["value"])
}

/// Returns the monotonic clock in ticks of 2^26 ns.
fn now() -> Result<u64> {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC)?;
    let nanos = u64::try_from(now.tv_sec())? * 1_000_000_000 + u64::try_from(now.tv_nsec())?;
    Ok(nanos >> 26)
}

#[test]
fn mappings_show_both_directions() -> Result<()> {
    let world = World::start()?;
    let _echo = Echo::start(&world.far)?;
    let began = now()?;
    for to in echoes(&world.far) {
        let pod = crate::common::same_family(&world.pod(1).addresses, to.ip())?;
        let node = SocketAddr::new(world.node_address(to.ip())?, 40_000);
        // Another pod has the port, so the external port differs.
        Udp::connect(world.pod(0), from_port(40_000, to), to)?.ask()?;
        let mut udp = Udp::connect(world.pod(1), from_port(40_000, to), to)?;
        let wire = udp.ask()?;
        ensure!(wire.ip() == node.ip() && wire != node, "{wire}");
        udp.ask()?;
        let from = SocketAddr::new(pod, 40_000);
        let snat = dump(&world.agent, "snat")?;
        let original = entry(&snat, &tuple(from, to, 17))?;
        assert_eq!(original["addr"], bytes(wire.ip()));
        assert_eq!(original["id"], wire.port());
        let rev_snat = dump(&world.agent, "rev_snat")?;
        let reply = entry(&rev_snat, &tuple(to, wire, 17))?;
        assert_eq!(reply["addr"], bytes(pod));
        assert_eq!(reply["id"], 40_000);
        for half in [original, reply] {
            // The remaining bits identify the interface on which the pod sends.
            let counted = if half == original {
                MAPPING_COUNTED_ORIGINAL
            } else {
                MAPPING_COUNTED_REPLY
            };
            let marks = number(&half["flags"])?;
            ensure!(marks & u64::from(counted) != 0, "{half}");
            assert_eq!(marks & u64::from(!(MAPPING_ORIGIN | counted)), 0);
            assert_eq!(number(&half["traffic"])? & 0x3ff, 2);
            ensure!(number(&half["traffic"])? >> 10 >= 2 * 28, "{half}");
            assert_eq!(half["tcp_seen"], 0);
            assert_eq!(half["tcp_ack"], 0);
            for time in ["created", "last_seen"] {
                let ticks = number(&half[time])?;
                // The programs' clock lags by up to one scheduler tick.
                ensure!((began - 1..=now()?).contains(&ticks), "{time}: {ticks}");
            }
        }

        let mut tcp = Tcp::connect(world.pod(1), from_port(41_000, to), to)?;
        tcp.ask()?;
        let snat = dump(&world.agent, "snat")?;
        let half = entry(&snat, &tuple(SocketAddr::new(pod, 41_000), to, 6))?;
        assert_eq!(half["tcp_seen"], 1 + 8, "a SYN, and data");
        ensure!(number(&half["tcp_ack"])? > 0);
    }
    Ok(())
}

#[test]
fn policy_uplinks_addresses_and_settings_are_as_told() -> Result<()> {
    let mut world = World::with(
        "nonMasqueradeCIDRs: [10.0.0.0/8, 'fd00:1::/64']\nmasqueradeCIDRs: [10.0.0.0/29]\n",
        &["--enable-ipv6"],
    )?;
    let settings = dump(&world.agent, "settings")?;
    let settings = entry(&settings, &json!(0))?;
    assert_eq!(settings["layout"], 2);
    // IPv6; and, after the first sweep, that no mapping is older than the policy.
    let flags = u32::try_from(number(&settings["flags"])?)?;
    assert_eq!(flags & !SETTING_BYPASS_CACHE_VALID, SETTING_IPV6);
    let active = number(&settings["active_policy"])?;
    let policy = dump(&world.agent, &format!("policy_{active}"))?;
    let rule = |address: &str, length: u8, action: u32| -> Result<()> {
        let key = json!({ "prefix_len": length, "data": bytes(address.parse()?) });
        assert_eq!(entry(&policy, &key)?["action"], action, "{address}");
        Ok(())
    };
    rule("169.254.0.0", 96 + 16, 1)?;
    rule("10.0.0.0", 96 + 8, 1)?;
    rule("10.0.0.0", 96 + 29, 2)?;
    rule("fd00:1::", 64, 1)?;
    rule("fe80::", 10, 1)?;
    rule("0.0.0.0", 96, 2)?;
    assert_eq!(policy.len(), 6);

    // A change fills the standby trie and makes it the active one.
    world.config.write("nonMasqueradeCIDRs: [192.0.2.0/24]\n")?;
    crate::common::wait_log(&world.agent, "policy in force: 3 rules")?;
    let settings = dump(&world.agent, "settings")?;
    let settings = entry(&settings, &json!(0))?;
    assert_eq!(number(&settings["active_policy"])?, 1 - active);
    assert_eq!(settings["generation"], 2);
    let policy = dump(&world.agent, &format!("policy_{}", 1 - active))?;
    let key = json!({ "prefix_len": 96 + 24, "data": bytes([192, 0, 2, 0].into()) });
    assert_eq!(entry(&policy, &key)?["action"], 1);

    let index = world.bed.node.ip("-o link show eth0")?;
    let index: u32 = index.split(':').next().context("no index")?.parse()?;
    let uplinks = dump(&world.agent, "uplinks")?;
    let uplink = entry(&uplinks, &json!(index))?;
    assert_eq!(uplink["v4"], bytes([10, 1, 0, 10].into()));
    assert_eq!(uplink["v6"], bytes("fd00:1::10".parse()?));
    assert_eq!(uplink["l2_len"], 14);
    assert_eq!(
        uplink["flags"],
        1 + 2 + 16 + 32 + 256,
        "the addresses, which are the only sources, and number 1"
    );

    let local = dump(&world.agent, "local_addrs")?;
    for address in ["10.1.0.10", "fd00:1::10", "172.16.0.1", "127.0.0.1", "::1"] {
        assert_eq!(*entry(&local, &bytes(address.parse()?))?, json!(1));
    }
    Ok(())
}

#[test]
fn flows_from_outside_and_counters_are_shown() -> Result<()> {
    let world = World::with("nonMasqueradeCIDRs: [172.16.0.0/16]\n", &[])?;
    let pod = world.pod(0);
    let _echo = Echo::start(pod)?;
    let to = SocketAddr::new(pod.v4()?.into(), ECHO);
    let began = now()?;
    let mut udp = Udp::connect(&world.near, any(to), to)?;
    let client = udp.ask()?;
    let inbound = dump(&world.agent, "inbound_live")?;
    let seen = entry(&inbound, &tuple(to, client, 17))?;
    ensure!(number(&seen["last_seen"])? + 1 >= began, "{seen}");

    let far = world.far.v4()?.into();
    crate::common::clients::send_raw(pod, libc::IPPROTO_AH, far, b"x")?;
    ping(pod, far)?;
    // Other packets (neighbour discovery, multicast) arrive meanwhile: the status is compared with
    // counters that were the same before and after it.
    let mut seen = Err(anyhow::anyhow!("never asked"));
    wait_for(crate::common::SOON, "counters at rest", || {
        seen = at_rest(&world.agent);
        !matches!(seen, Ok(None))
    })?;
    let (counters, shown) = seen?.context("no counters")?;
    let sum = |name: &str| {
        counters
            .iter()
            .map(|cpu| number(cpu[name].get("packets").unwrap_or(&cpu[name])))
            .sum::<Result<u64>>()
    };
    for name in COUNTERS {
        assert_eq!(number(&shown["packets"][name])?, sum(name)?, "{name}");
    }
    ensure!(sum("egress_replies")? >= 1);
    assert_eq!(sum("egress_masqueraded")?, 3);
    assert_eq!(sum("ingress_translated")?, 3);
    assert_eq!(sum("mappings_created")?, 1);
    let drops = shown["drops"].as_object().context("no drops")?;
    for (reason, count) in drops {
        let dropped = |cpu: &Value| number(&cpu["drops"][reason]);
        let dropped = counters.iter().map(dropped).sum::<Result<u64>>()?;
        assert_eq!(number(count)?, dropped, "{reason}");
        assert_eq!(
            dropped,
            u64::from(reason == "unsupported_protocol"),
            "{reason}"
        );
    }
    Ok(())
}

/// Returns the counters of each CPU with the status, if no packet arrived between the two reads.
fn at_rest(agent: &Agent) -> Result<Option<(Vec<Value>, Value)>> {
    let before = dump_counters(agent)?;
    let shown = crate::common::status(agent)?;
    Ok((before == dump_counters(agent)?).then_some((before, shown)))
}

/// Returns the counters of each interface's number and each CPU.
fn dump_counters(agent: &Agent) -> Result<Vec<Value>> {
    let entries = dump(agent, "uplink_counters")?;
    let mut counters = Vec::new();
    for entry in &entries {
        let cpus = entry["values"].as_array().context("no CPUs")?;
        counters.extend(cpus.iter().map(|cpu| cpu["value"].clone()));
    }
    Ok(counters)
}

#[test]
fn status_and_flows_tell_people_and_programs() -> Result<()> {
    let world = World::start()?;
    let _echo = Echo::start(&world.far)?;
    for to in echoes(&world.far) {
        let mut tcp = Tcp::connect(world.pod(0), from_port(40_000, to), to)?;
        tcp.ask()?;
        ping(world.pod(0), to.ip())?;
        let listed = flows(&world.agent)?;
        let flow = listed
            .iter()
            .find(|flow| flow["protocol"] == "tcp" && flow["destination"] == to.ip().to_string())
            .with_context(|| format!("not in {listed:#?}"))?;
        let pod = crate::common::same_family(&world.pod(0).addresses, to.ip())?;
        assert_eq!(flow["source"], pod.to_string());
        assert_eq!(flow["source_id"], 40_000);
        assert_eq!(flow["destination_id"], ECHO);
        assert_eq!(
            flow["nat_address"],
            world.node_address(to.ip())?.to_string()
        );
        assert_eq!(flow["nat_id"], 40_000);
        assert_eq!(flow["state"], "Established");
        ensure!(number(&flow["packets_out"])? >= 3 && number(&flow["packets_in"])? >= 2);
        for (bytes, packets) in [("bytes_out", "packets_out"), ("bytes_in", "packets_in")] {
            ensure!(number(&flow[bytes])? >= 40 * number(&flow[packets])?);
        }
        ensure!(number(&flow["age_seconds"])? < 60 && number(&flow["idle_seconds"])? < 60);
        let icmp = if to.is_ipv4() { "icmp" } else { "icmpv6" };
        let pinged = listed.iter().find(|flow| flow["protocol"] == icmp);
        let pinged = pinged.context("no ping")?;
        assert_eq!(
            (&pinged["packets_out"], &pinged["packets_in"]),
            (&json!(3), &json!(3))
        );
        drop(tcp);
    }
    let told = world.agent.netdp(&["flows"])?;
    for words in [
        "PROTO",
        "172.16.0.2:40000",
        "10.2.0.1:7",
        "10.1.0.10:40000",
        "[fd00:172::2]:40000",
        "[fd00:2::1]:7",
        "[fd00:1::10]:40000",
        "replied",
        "4 mappings",
    ] {
        ensure!(told.contains(words), "{words:?} is not in\n{told}");
    }
    let file = world.config.file().display().to_string();
    let told = world.agent.netdp(&["status"])?;
    let pid = format!("running, pid {}", world.agent.pid());
    for words in [
        &pid,
        "datapath   in force",
        "mappings   4 of 262144 (0 %)",
        "from files",
        &format!("{file}:2"),
        "eth0",
        "tcx",
        "fd00:1::10",
        "everything else  masquerade",
        "mappings_created 4",
        "dropped    none",
    ] {
        ensure!(told.contains(words), "{words:?} is not in\n{told}");
    }
    let status = crate::common::status(&world.agent)?;
    assert_eq!(status["agent"], "running");
    assert_eq!(status["pid"], world.agent.pid());
    assert_eq!(status["report"]["mode"], "ebpf");
    assert_eq!(status["report"]["config"]["files"], json!([file]));
    assert_eq!(
        status["report"]["config"]["rules"][2],
        json!({ "prefix": "172.16.0.0/16", "action": "bypass", "origin": format!("{file}:2") })
    );
    assert_eq!(status["report"]["uplinks"][0]["v4"], "10.1.0.10");
    Ok(())
}
