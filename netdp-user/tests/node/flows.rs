//! `netdp flows` over real traffic: filters, sums, flows that keep the pod's address, names of pods.

use crate::common::clients::{Tcp, Udp, any, from_port};
use crate::common::{ECHO, Echo, NETDP, POLICY, SOON, World, echoes, refused};
use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::path::Path;
use testbed::{Bed, Netns, Running, wait_for};

/// Writes what libcni caches for a pod with this address.
pub fn cache(dir: &Path, name: &str, address: &str) -> Result<()> {
    let cached = json!({
        "kind": "cniCacheV1",
        "ifName": "eth0",
        "cniArgs": [
            ["K8S_POD_NAMESPACE", "shop"],
            ["K8S_POD_NAME", name],
            ["K8S_POD_UID", format!("uid-{name}")],
        ],
        "result": { "cniVersion": "1.0.0", "ips": [{ "address": format!("{address}/24") }] },
    });
    std::fs::write(dir.join(format!("pods-{name}-eth0")), cached.to_string())?;
    Ok(())
}

/// Returns the output of `netdp flows` with these arguments.
fn flows(world: &World, arguments: &[&str]) -> Result<String> {
    world.agent.netdp(&[&["flows"], arguments].concat())
}

/// Returns the rows of `netdp flows -o json` with these arguments.
fn rows(world: &World, arguments: &[&str]) -> Result<Vec<Value>> {
    let text = flows(world, &[&["-o", "json"], arguments].concat())?;
    let document: Value = serde_json::from_str(&text)?;
    assert_eq!(document["schema"], 1);
    Ok(document["flows"].as_array().context("no flows")?.clone())
}

fn v4(world: &World) -> Result<SocketAddr> {
    let echoes = echoes(&world.far);
    let v4 = echoes.into_iter().find(SocketAddr::is_ipv4);
    v4.context("no echo by IPv4")
}

#[test]
fn filters_orders_and_sums_are_those_of_the_traffic() -> Result<()> {
    let world = World::start()?;
    let _echo = Echo::start(&world.far)?;
    let to = v4(&world)?;
    let (first, second) = (world.pod(0), world.pod(1));
    let mut open = Vec::new();
    for (pod, port, asks) in [(first, 40_001, 9), (first, 40_002, 1), (second, 40_003, 4)] {
        let mut tcp = Tcp::connect(pod, from_port(port, to), to)?;
        for _ in 0..asks {
            tcp.ask()?;
        }
        open.push(tcp);
    }
    let mut udp = Udp::connect(second, any(to), to)?;
    udp.ask()?;
    let address = first.v4()?.to_string();
    let destination = to.to_string();

    for (arguments, expected) in [
        (&["--pod", address.as_str()][..], 2),
        (&["--pod", &format!("{address}:40002")], 1),
        (&["--to", &destination], 4),
        (&["--to", "10.2.0.0/16", "--proto", "udp"], 1),
        (&["--to", "10.9.0.0/16"], 0),
        (&["--seen-as", "10.1.0.10:40003"], 1),
        (&["--state", "established"], 3),
        (&["--state", "replied"], 1),
        (&["--idle", ">1h"], 0),
        (&["--idle", "<1h"], 4),
        (&["--prefix", "0.0.0.0/0"], 4),
        (&["-n", "2"], 2),
    ] {
        assert_eq!(rows(&world, arguments)?.len(), expected, "{arguments:?}");
    }
    let told = refused(world.agent.command(&["flows", "--prefix", "10.9.8.0/24"]))?;
    ensure!(told.contains("no rule in force has the prefix"), "{told}");
    let told = refused(world.agent.command(&["flows", "--pod", "shop/cart"]))?;
    ensure!(told.contains("--cni-dir"), "{told}");

    let sorted = rows(&world, &["--sort", "packets", "-n", "2"])?;
    let ports: Vec<_> = sorted.iter().map(|row| row["source_id"].as_u64()).collect();
    assert_eq!(ports, [Some(40_001), Some(40_003)]);
    let text = flows(&world, &["--sort", "packets", "-n", "2"])?;
    ensure!(
        text.starts_with("2 of 4 mappings, most packets first\n"),
        "{text}"
    );
    assert_eq!(flows(&world, &["-o", "jsonl"])?.lines().count(), 4);
    let csv = flows(&world, &["-o", "csv"])?;
    ensure!(
        csv.starts_with("protocol,source,") && csv.lines().count() == 5,
        "{csv}"
    );

    let text = flows(&world, &["--summary=destination"])?;
    ensure!(text.starts_with("4 mappings of 2 pods, "), "{text}");
    for words in [
        format!("tcp {to}"),
        "3 of 61,".into(),
        format!("biggest pod at {to}: {address} (2)"),
    ] {
        ensure!(text.contains(&words), "{words}: {text}");
    }
    let summary: Value =
        serde_json::from_str(&flows(&world, &["--summary=uplink", "-o", "json"])?)?;
    let groups = &summary["groups"];
    assert_eq!(
        (&groups[0]["uplink"], &groups[0]["mappings"]),
        (&json!("eth0"), &json!(4))
    );
    let summary: Value = serde_json::from_str(&flows(&world, &["--summary", "-o", "json"])?)?;
    assert_eq!(
        (&summary["by"], &summary["groups"][0]["mappings"]),
        (&json!("pod"), &json!(2))
    );
    Ok(())
}

#[test]
fn a_list_is_printed_again_with_what_has_changed() -> Result<()> {
    let world = World::start()?;
    let _echo = Echo::start(&world.far)?;
    let to = v4(&world)?;
    let arguments = ["flows", "--watch=1", "-o", "jsonl"];
    let list = Running::start(world.agent.command(&arguments))?;
    let mut flows = Vec::new();
    for port in [40_001, 40_002] {
        let mut flow = Tcp::connect(world.pod(0), from_port(port, to), to)?;
        flow.ask()?;
        flows.push(flow);
        let wanted = format!("\"source_id\":{port},");
        wait_for(SOON, "the mapping to be listed twice", || {
            list.stdout().matches(&wanted).count() >= 2
        })
        .with_context(|| list.written())?;
    }
    Ok(())
}

#[test]
fn the_busiest_flows_are_those_since_the_last_look() -> Result<()> {
    let world = World::start()?;
    let _echo = Echo::start(&world.far)?;
    let to = v4(&world)?;
    let mut flow = Tcp::connect(world.pod(0), from_port(40_001, to), to)?;
    flow.ask()?;
    let mut once = world.agent.command(&["flows", "--sort", "rate"]);
    let output = once.output()?;
    let told = String::from_utf8(output.stderr)?;
    ensure!(output.status.code() == Some(2), "{}", output.status);
    ensure!(
        told.contains("--sort rate compares two looks: give --watch"),
        "{told}"
    );
    let arguments = ["flows", "--watch=1", "--sort", "rate", "-o", "jsonl"];
    let list = Running::start(world.agent.command(&arguments))?;
    let rates = || {
        let text = list.stdout();
        let lines = text
            .lines()
            .filter_map(|line| serde_json::from_str::<Value>(line).ok());
        lines
            .map(|line| line["bytes_per_second"].as_u64())
            .collect::<Vec<_>>()
    };
    wait_for(SOON, "a look without packets", || {
        rates().contains(&Some(0))
    })
    .with_context(|| list.written())?;
    ensure!(
        rates()[0].is_none(),
        "the first look has no rate: {:?}",
        rates()
    );
    flow.ask()?;
    wait_for(SOON, "a look with packets", || {
        rates().iter().flatten().any(|rate| *rate > 0)
    })
    .with_context(|| list.written())
}

/// Waits for the datapath's clock, whose ticks have 2^26 ns: what is done next has a later tick than
/// what was done before.
pub fn next_ticks() -> Result<()> {
    let now = || {
        let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC_COARSE)?;
        Ok::<_, anyhow::Error>(
            (i128::from(now.tv_sec()) * 1_000_000_000 + i128::from(now.tv_nsec())) >> 26,
        )
    };
    let begin = now()?;
    wait_for(SOON, "two ticks of the datapath's clock", || {
        now().is_ok_and(|now| now >= begin + 2)
    })
}

#[test]
fn a_flow_keeps_the_name_of_the_pod_that_began_it() -> Result<()> {
    let mut world = World::start()?;
    let _echo = Echo::start(&world.far)?;
    let to = v4(&world)?;
    let pod = world.pod(0);
    let address = pod.v4()?.to_string();
    let dir = tempfile::tempdir()?;
    let cni = dir.path().display().to_string();
    cache(dir.path(), "old", &address)?;
    // What was written after a mapping began does not name it.
    next_ticks()?;
    let mut before = Tcp::connect(pod, from_port(40_001, to), to)?;
    before.ask()?;
    next_ticks()?;

    // The agent would see this end, but it does not follow this directory.
    std::fs::remove_file(dir.path().join("pods-old-eth0"))?;
    cache(dir.path(), "new", &address)?;
    next_ticks()?;
    let mut after = Tcp::connect(pod, from_port(40_002, to), to)?;
    after.ask()?;
    let named = |world: &World, port: u64| -> Result<Value> {
        let listed = rows(world, &["--cni-dir", &cni])?;
        let mut listed = listed.into_iter();
        let row = listed.find(|row| row["source_id"].as_u64() == Some(port));
        Ok(row.context("no such mapping")?["pod"].clone())
    };
    assert_eq!(named(&world, 40_002)?["name"], "new");
    assert_eq!(named(&world, 40_001)?, Value::Null, "nobody remembers");
    let told = rows(&world, &["--cni-dir", &cni, "--pod", "shop/new"])?;
    assert_eq!(told.len(), 1);
    let text = flows(&world, &["--cni-dir", &cni])?;
    ensure!(text.contains("shop/new"), "{text}");

    world.agent.kill9()?;
    assert_eq!(named(&world, 40_002)?["uid"], "uid-new");
    let text = flows(&world, &["--cni-dir", &cni])?;
    ensure!(text.contains("no agent is running"), "{text}");
    Ok(())
}

#[test]
fn the_agent_remembers_pods_that_have_ended() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let cni = dir.path().display().to_string();
    let mut world = World::with(POLICY, &["--enable-ipv6", "--cni-dir", &cni])?;
    let _echo = Echo::start(&world.far)?;
    let to = v4(&world)?;
    let pod = world.pod(0);
    let address = pod.v4()?.to_string();
    cache(dir.path(), "old", &address)?;
    next_ticks()?;
    let mut before = Tcp::connect(pod, from_port(40_001, to), to)?;
    before.ask()?;
    let saved = world.agent.state_dir().join("pods.json");
    let is_saved = |words: &str| std::fs::read_to_string(&saved).is_ok_and(|it| it.contains(words));
    wait_for(SOON, "the pod to be saved", || is_saved("\"old\""))?;
    std::fs::remove_file(dir.path().join("pods-old-eth0"))?;
    wait_for(SOON, "its end to be saved", || is_saved("until"))?;
    cache(dir.path(), "new", &address)?;
    wait_for(SOON, "its successor to be saved", || is_saved("\"new\""))?;

    let check = |world: &World| -> Result<()> {
        let text = flows(world, &["--cni-dir", &cni])?;
        ensure!(text.contains("shop/old (gone "), "{text}");
        ensure!(!text.contains("shop/new"), "{text}");
        assert_eq!(
            rows(world, &["--cni-dir", &cni, "--pod", "shop/old"])?.len(),
            1
        );
        assert_eq!(
            rows(world, &["--cni-dir", &cni, "--pod", "shop/new"])?.len(),
            0
        );
        Ok(())
    };
    check(&world)?;
    world.agent.kill9()?;
    check(&world)
}

#[test]
fn flows_that_keep_the_pods_address_are_listed_with_the_reason() -> Result<()> {
    let world = World::with("nonMasqueradeCIDRs: [172.16.0.0/16]\n", &[])?;
    let text = flows(&world, &["--kept"])?;
    ensure!(
        text.starts_with("no flow keeps its pod's address"),
        "{text}"
    );
    let pod = world.pod(0);
    let _echo = Echo::start(pod)?;
    let to = SocketAddr::new(pod.v4()?.into(), ECHO);
    let mut outside = Udp::connect(&world.near, from_port(41_000, to), to)?;
    outside.ask()?;
    let text = flows(&world, &["--kept", "-o", "json"])?;
    let document: Value = serde_json::from_str(&text)?;
    let kept = document["kept"].as_array().context("no flows")?;
    let found = kept.iter().find(|row| row["destination_id"] == 41_000);
    let found = found.with_context(|| format!("not listed: {text}"))?;
    assert_eq!(found["codes"], json!(["NDP601"]));
    assert_eq!(found["source"], pod.v4()?.to_string());
    assert_eq!(found["state"], "answered");
    let text = flows(&world, &["--kept"])?;
    ensure!(text.contains("it began outside (NDP601)"), "{text}");
    Ok(())
}

#[test]
fn without_maps_it_names_the_directory_and_exits_with_2() -> Result<()> {
    let world = World::start()?;
    let mut elsewhere = world.bed.node.command(env!("CARGO_BIN_EXE_netdp"));
    elsewhere.args(["flows", "--bpffs", "/sys/fs/bpf/there-is-none"]);
    let output = elsewhere.output()?;
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(2), "{told}");
    ensure!(told.contains("/sys/fs/bpf/there-is-none"), "{told}");
    Ok(())
}

/// Returns what bash offers on a node at the end of a line whose words are these, with netdp's script.
fn offered(node: &Netns, words: &[&str]) -> Result<Vec<String>> {
    let bin = tempfile::tempdir()?;
    std::os::unix::fs::symlink(NETDP, bin.path().join("netdp"))?;
    let script = "source <(netdp completion bash)\nCOMP_WORDS=(\"$@\")\nCOMP_CWORD=$(($# - 1))\n\
                  called=$(complete -p netdp)\ncalled=${called#*-F }\n\
                  ${called%% *} netdp \"${COMP_WORDS[COMP_CWORD]}\" \"${COMP_WORDS[COMP_CWORD - 1]}\"\n\
                  printf '%s\\n' \"${COMPREPLY[@]}\"\n";
    let mut bash = node.command("bash");
    bash.args(["--norc", "-c", script, "bash"]).args(words);
    let text =
        testbed::output(bash.env("PATH", format!("{}:/usr/bin:/bin", bin.path().display())))?;
    Ok(text.lines().map(str::to_owned).collect())
}

#[test]
fn bash_completes_pods_interfaces_and_codes() -> Result<()> {
    let dir = tempfile::tempdir()?;
    for (name, address) in [("cart", "172.16.0.2"), ("checkout", "172.16.0.3")] {
        cache(dir.path(), name, address)?;
    }
    let cni = dir.path().display().to_string();
    let bed = Bed::dual_stack()?;
    let offered = |words: &[&str]| offered(&bed.node, words);
    let of = |flag: &str, typed: &str| offered(&["netdp", "flows", "--cni-dir", &cni, flag, typed]);
    assert_eq!(of("--pod", "")?, ["shop/cart", "shop/checkout"]);
    assert_eq!(of("--pod", "shop/ch")?, ["shop/checkout"]);
    let one = [
        "netdp",
        "explain",
        "--cni-dir",
        &cni,
        "--from",
        "=",
        "shop/ca",
    ];
    assert_eq!(offered(&one)?, ["shop/cart"]);
    assert_eq!(offered(&["netdp", "codes", "NDP10"])?.len(), 4);
    let interfaces = offered(&["netdp", "run", "--uplink", ""])?;
    ensure!(interfaces.contains(&"eth0".to_owned()), "{interfaces:?}");
    ensure!(!interfaces.contains(&"lo".to_owned()), "{interfaces:?}");
    assert_eq!(offered(&["netdp", "run", "--uplink", "eth"])?, ["eth0"]);
    // Everything else is as before.
    assert_eq!(offered(&["netdp", "comp"])?, ["completion"]);
    assert_eq!(of("--po", "--po")?, ["--pod"]);
    Ok(())
}
