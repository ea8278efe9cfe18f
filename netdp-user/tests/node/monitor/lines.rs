//! The lines and packets that are shown.

use super::{Monitor, RST, Stray, far, total};
use crate::common::clients::{Udp, any};
use crate::common::{Echo, SOON, World, clock, drops, refused};
use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use std::net::UdpSocket;
use std::process::Command;
use testbed::{Running, WorkDir, output, wait_for};

/// Names the first pod in a cache of results, as container runtimes write it.
fn name_pod(world: &World) -> Result<WorkDir> {
    let dir = WorkDir::new("cni")?;
    let cached = serde_json::json!({
        "kind": "cniCacheV1",
        "cniArgs": [["K8S_POD_NAMESPACE", "shop"], ["K8S_POD_NAME", "cart"]],
        "result": { "ips": [{ "address": format!("{}/24", world.pod(0).v4()?) }] },
    });
    std::fs::write(dir.path().join("net-cart-eth0"), cached.to_string())?;
    Ok(dir)
}

const METRICS: &str = "127.0.0.1:10269";

/// Returns the value of a series.
fn metric(world: &World, series: &str) -> Result<String> {
    let url = format!("http://{METRICS}/metrics");
    let curl = ["curl", "-sS", "-m", "10", "--fail", &url];
    let text = world.bed.node.run(&curl)?;
    let mut values = text.lines().filter_map(|line| line.strip_prefix(series));
    let value = values
        .next()
        .with_context(|| format!("no {series}: {text}"))?;
    Ok(value.trim().to_owned())
}

#[test]
fn events_are_shown_as_they_happen() -> Result<()> {
    let mut world = World::with(
        crate::common::POLICY,
        &[
            "--enable-ipv6",
            "--to-ports",
            "40000-40000",
            "--metrics-listen",
            METRICS,
        ],
    )?;
    let never = metric(&world, "netdp_events_total{kind=\"drop\"}")?;
    assert_eq!(never, "0", "before the first");
    let _echo = Echo::start(&world.far)?;
    let cni = name_pod(&world)?;
    let cni = cni.path().to_str().context("a path")?;
    let json = Monitor::start(&world.agent, &["-o", "jsonl", "--cni-dir", cni])?;
    let text = Monitor::start(&world.agent, &["--cni-dir", cni])?;
    let to = far(&world)?;
    let pod = world.pod(0).v4()?;
    let mut flow = Udp::connect(world.pod(0), any(to), to)?;
    let seen = flow.ask()?;
    let begin = json.wait("a begin", |it| it["event"] == "begin")?;
    assert_eq!(begin["source"], pod.to_string());
    assert_eq!(begin["destination"], to.ip().to_string());
    assert_eq!(begin["destination_id"], to.port());
    assert_eq!(begin["nat_address"], seen.ip().to_string());
    assert_eq!(begin["nat_id"], 40_000);
    assert_eq!(begin["protocol"], "udp");
    assert_eq!(begin["uplink"], "eth0");
    assert_eq!(begin["pod"]["name"], "cart");
    // The only port is taken.
    let other = world.pod(1).open(|| UdpSocket::bind(any(to)))?;
    other.send_to(b"x", to)?;
    let refusal = json.wait("a refusal", |it| it["event"] == "refused")?;
    assert_eq!(refusal["reason"], "no_free_port");
    assert_eq!(refusal["code"], "NDP502");
    assert_eq!(refusal["destination_id"], to.port());
    let stray = Stray::new(world.pod(0), to.ip())?;
    // Sent within a second once, whatever else the machine does.
    let merged = format!(
        "{}:443 tcp RST: belongs to no mapping (tcp_no_flow) ×",
        to.ip()
    );
    wait_for(SOON, "drops that are shown as one", || {
        for port in [5000, 5001, 5001] {
            stray.send(port, RST).ok();
        }
        text.0.stdout().contains(&merged)
    })?;
    let drop = json.wait("a drop", |it| it["event"] == "drop")?;
    assert_eq!(
        (&drop["reason"], &drop["packet"]),
        (&"tcp_no_flow".into(), &"RST".into())
    );
    world.config.write("nonMasqueradeCIDRs: [10.0.0.0/99]\n")?;
    let rejected = json.wait("a rejected configuration", |it| it["event"] == "config")?;
    assert_eq!(rejected["fault"], true);
    clock::advance(&world.agent, std::time::Duration::from_secs(1000))?;
    let end = json.wait("an end", |it| it["event"] == "end")?;
    assert_eq!(
        (&end["why"], &end["nat_id"]),
        (&"timeout".into(), &40_000.into())
    );
    assert_eq!(
        (&end["packets_out"], &end["packets_in"]),
        (&1.into(), &1.into())
    );
    ensure!(end["age_seconds"].as_u64() >= Some(1000), "{end}");
    let dropped = drops(&world.agent, "tcp_no_flow")?.to_string();
    let counted = metric(&world, "netdp_events_total{kind=\"drop\"}")?;
    assert_eq!(counted, dropped);
    assert_eq!(metric(&world, "netdp_events_total{kind=\"end\"}")?, "1");
    let lost = "netdp_events_lost_total{kind=\"drop\",cause=\"limited\"}";
    assert_eq!(metric(&world, lost)?, "0");
    let lines = json.end()?;
    for kind in ["begin", "end", "refused", "drop", "config"] {
        ensure!(total(&lines, kind, "shown")? > 0, "{kind}: {lines:?}");
    }

    for wanted in [
        format!("begin    shop/cart {pod}"),
        format!(" → {to} udp as {seen} eth0 rule everything else"),
        format!(" → {to} udp: every port is taken  NDP502  #"),
        format!("drop     shop/cart {pod} → {merged}"),
        "config   rejected: ".to_owned(),
        ": timeout; 1 packet, ".to_owned(),
    ] {
        wait_for(SOON, &wanted, || text.0.stdout().contains(&wanted))
            .with_context(|| text.0.written())?;
    }
    Ok(())
}

#[test]
fn filters_leave_out_what_is_not_wanted_and_a_count_ends_it() -> Result<()> {
    let world = World::start()?;
    let to = far(&world)?;
    let wanted = format!("{}:443", to.ip());
    let first = world.pod(0).v4()?.to_string();
    let monitor = Monitor::start(
        &world.agent,
        &[
            "-o", "jsonl", "--kind", "drop", "--pod", &first, "--to", &wanted, "--count", "2",
        ],
    )?;
    let strays = [
        Stray::new(world.pod(0), to.ip())?,
        Stray::new(world.pod(1), to.ip())?,
    ];
    let mut running = monitor.0;
    wait_for(SOON, "two lines", || {
        for stray in &strays {
            // The programs must not see it as a retransmission: nothing depends on the port.
            stray.send(5000, RST).ok();
        }
        running.exit_status().is_ok_and(|status| status.is_some())
    })?;
    let monitor = Monitor(running);
    let lines = monitor.lines();
    let events: Vec<_> = lines.iter().filter(|it| it["event"] == "drop").collect();
    assert_eq!(events.len(), 2, "{lines:?}");
    ensure!(events.iter().all(|it| it["source"] == first), "{lines:?}");
    ensure!(total(&lines, "drop", "filtered")? > 0, "{lines:?}");
    Ok(())
}

#[test]
fn dropped_packets_are_read_by_tcpdump_and_tshark() -> Result<()> {
    let world = World::start()?;
    let to = far(&world)?;
    let dir = WorkDir::new("pcap")?;
    let file = dir.path().join("drops.pcapng");
    let path = file.to_str().context("a path")?;
    let monitor = Monitor::start(
        &world.agent,
        &["-o", "jsonl", "--kind", "drop", "--pcap", path],
    )?;
    let stray = Stray::new(world.pod(0), to.ip())?;
    for port in [5000, 5001, 5002] {
        stray.send(port, RST)?;
    }
    let shown = |lines: &[Value]| -> u64 {
        let drops = lines.iter().filter(|it| it["event"] == "drop");
        drops.filter_map(|it| it["count"].as_u64()).sum()
    };
    wait_for(SOON, "three drops", || shown(&monitor.lines()) == 3)?;
    monitor.end()?;
    let read = output(Command::new("tcpdump").args(["-n", "-r", path]))?;
    let pod = world.pod(0).v4()?;
    for port in [5000, 5001, 5002] {
        let wanted = format!("IP {pod}.{port} > {}.443: Flags [R]", to.ip());
        ensure!(read.contains(&wanted), "{wanted:?} is missing:\n{read}");
    }
    let fields = [
        "frame.comment",
        "frame.interface_name",
        "tcp.srcport",
        "frame.time_epoch",
    ];
    let mut tshark = Command::new("tshark");
    tshark.args(["-n", "-r", path, "-T", "fields"]);
    tshark.args(fields.iter().flat_map(|field| ["-e", field]));
    let read = output(&mut tshark)?;
    let rows: Vec<Vec<&str>> = read
        .lines()
        .map(|line| line.split('\t').collect())
        .collect();
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)?
        .as_secs_f64();
    for (row, port) in rows.iter().zip(["5000", "5001", "5002"]) {
        assert_eq!(row[..3], ["netdp: tcp_no_flow", "eth0", port], "{read}");
        let ago = now - row[3].parse::<f64>()?;
        ensure!((0.0..600.0).contains(&ago), "{ago} s ago: {read}");
    }
    assert_eq!(rows.len(), 3, "{read}");

    // To standard output, for a pipe.
    let mut piped = world
        .agent
        .command(&["monitor", "--kind", "drop", "--pcap", "-", "--count", "1"]);
    let piped = Running::start({
        piped.env("TZ", "UTC");
        piped
    })?;
    wait_for(SOON, "the monitor to listen", || {
        piped.stderr().contains("listening")
    })?;
    stray.send(5003, RST)?;
    piped.finish(SOON)?;
    Ok(())
}

#[test]
fn a_refusal_is_explained_by_its_number() -> Result<()> {
    let world = World::with(
        crate::common::POLICY,
        &["--enable-ipv6", "--to-ports", "40000-40000"],
    )?;
    let _echo = Echo::start(&world.far)?;
    let to = far(&world)?;
    let mut flow = Udp::connect(world.pod(0), any(to), to)?;
    flow.ask()?;
    let monitor = Monitor::start(&world.agent, &["-o", "jsonl"])?;
    let other = world.pod(1).open(|| UdpSocket::bind(any(to)))?;
    other.send_to(b"x", to)?;
    let refusal = monitor.wait("a refusal", |it| it["event"] == "refused")?;
    let id = refusal["id"].as_str().context("no number")?;
    let explained = world.agent.netdp(&["explain", "--event", id])?;
    let wanted = format!("refused: every port of 10.1.0.10 towards {to} is taken (1 of 1)");
    ensure!(explained.starts_with(&wanted), "{explained}");
    let unknown = refused(world.agent.command(&["explain", "--event", "#fff0"]))?;
    ensure!(unknown.contains("remembers no event #fff0"), "{unknown}");
    Ok(())
}
