//! The NAT log, and `netdp who` over it.

mod collector;
mod faults;
mod ipfix;

use crate::common::clients::{Tcp, Udp, from_port, ping};
use crate::common::{Echo, NETDP, POLICY, SOON, World, echoes, refused};
use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::Command;
use testbed::{Agent, WorkDir, wait_for, wait_some};

/// Writes what libcni caches for a pod with this address.
pub fn cache(dir: &Path, name: &str, address: IpAddr) -> Result<()> {
    let cached = json!({
        "kind": "cniCacheV1",
        "cniArgs": [
            ["K8S_POD_NAMESPACE", "shop"],
            ["K8S_POD_NAME", name],
            ["K8S_POD_UID", format!("uid-{name}")],
        ],
        "result": { "cniVersion": "1.0.0", "ips": [{ "address": format!("{address}/24") }] },
    });
    fs::write(dir.join(name), cached.to_string())?;
    Ok(())
}

/// Returns the records in a log's file; each line has to be one.
pub fn records(path: &Path) -> Result<Vec<Value>> {
    let text = fs::read_to_string(path)?;
    let complete = text.rsplit_once('\n').map_or("", |it| it.0);
    let records = complete.lines().map(|line| {
        serde_json::from_str(line).with_context(|| format!("{}: {line:?}", path.display()))
    });
    records.collect()
}

/// Returns the first record of an event that a pod's endpoint has.
fn record_of(path: &Path, event: &str, pod: &str) -> Option<Value> {
    let all = records(path).ok()?;
    all.into_iter()
        .find(|it| it["event"] == event && it["pod"] == pod)
}

fn wait_record(path: &Path, event: &str, pod: &str) -> Result<Value> {
    wait_some(SOON, &format!("the {event} of {pod} in the log"), || {
        record_of(path, event, pod)
    })
}

/// Runs `netdp who` and returns its exit status and what it prints.
pub fn who(agent: &Agent, arguments: &[&str]) -> Result<(Option<i32>, String)> {
    let mut command = agent.command(&[&["who"], arguments].concat());
    let out = command.output()?;
    let told = String::from_utf8(out.stdout)?;
    Ok((
        out.status.code(),
        told + &String::from_utf8_lossy(&out.stderr),
    ))
}

/// A world whose agent logs to a file, with names of pods.
struct Logged {
    world: World,
    _echo: Echo,
    dir: WorkDir,
    to: SocketAddr,
}

impl Logged {
    fn start(more: &[&str]) -> Result<Self> {
        let dir = WorkDir::new("nat-log")?;
        fs::create_dir(dir.path().join("cni"))?;
        let log = dir.path().join("nat.log").display().to_string();
        let cni = dir.path().join("cni").display().to_string();
        let own = [
            "--enable-ipv6",
            "--nat-log",
            &log,
            "--cni-dir",
            &cni,
            "--timeout=tcp-closing=3s",
        ];
        let world = World::with(POLICY, &[&own, more].concat())?;
        let echo = Echo::start(&world.far)?;
        let to = echoes(&world.far).into_iter().find(SocketAddr::is_ipv4);
        Ok(Self {
            world,
            _echo: echo,
            dir,
            to: to.context("no echo by IPv4")?,
        })
    }

    fn log(&self) -> PathBuf {
        self.dir.path().join("nat.log")
    }

    fn cni(&self) -> PathBuf {
        self.dir.path().join("cni")
    }
}

#[test]
fn a_connection_is_in_the_log_and_who_finds_its_pod() -> Result<()> {
    let mut logged = Logged::start(&["--nat-log-destinations"])?;
    let address = logged.world.pod(0).v4()?;
    cache(&logged.cni(), "cart", address.into())?;
    let pod = format!("{address}:40001");
    let (log, to) = (logged.log(), logged.to);
    let mut tcp = Tcp::connect(logged.world.pod(0), from_port(40_001, to), to)?;
    let seen = tcp.ask()?.to_string();
    let begin = wait_record(&log, "begin", &pod)?;
    assert_eq!((&begin["v"], &begin["proto"]), (&json!(1), &json!("tcp")));
    assert_eq!(begin["seen_as"], seen);
    assert_eq!(begin["to"], to.to_string());
    assert_eq!(begin["ns"], "shop");
    assert_eq!(
        (&begin["name"], &begin["uid"]),
        (&json!("cart"), &json!("uid-cart"))
    );

    let agent = &logged.world.agent;
    let cni = logged.cni().display().to_string();
    let (code, told) = who(agent, &[&seen, "--cni-dir", &cni])?;
    ensure!(
        told.starts_with(&format!(
            "shop/cart ({pod}, uid uid-cart), tcp to {to}, since "
        )),
        "{told}"
    );
    assert_eq!(code, Some(0), "{told}");
    drop(tcp);
    let end = wait_record(&log, "end", &pod)?;
    assert_eq!((&end["id"], &end["begin"]), (&begin["id"], &begin["begin"]));
    assert_eq!(end["why"], "timeout");
    let out = end["packets"][0].as_u64().context("no packets")?;
    let bytes = end["bytes"][1].as_u64().context("no bytes")?;
    ensure!(out >= 3 && bytes >= 150, "{end}");

    // Afterwards, from the log alone; with and without what narrows it.
    let at = end["begin"].as_str().context("no begin")?.to_owned();
    let place = to.to_string();
    for more in [
        &["--to", &place, "--proto", "tcp"][..],
        &["--to", "10.2.0.1"],
        &[],
    ] {
        let (code, told) = who(agent, &[&[&*seen, "--at", &at], more].concat())?;
        ensure!(told.starts_with("shop/cart ("), "{told}");
        assert_eq!(code, Some(0), "{told}");
    }
    let json = who(agent, &[&seen, "--at", &at, "-o", "json"])?.1;
    let json: Value = serde_json::from_str(&json)?;
    assert_eq!(
        (&json["schema"], &json["answer"]),
        (&json!(1), &json!("one"))
    );
    assert_eq!(json["candidates"][0]["name"], "shop/cart");
    assert_eq!(json["candidates"][0]["record"], end["seq"]);
    let (code, told) = who(agent, &[&seen])?;
    assert_eq!(
        (code, told.as_str()),
        (Some(1), &*format!("nobody has {seen} now\n"))
    );
    let (code, told) = who(agent, &["10.1.0.10:39999", "--at", &at])?;
    ensure!(
        code == Some(1) && told.starts_with("nobody had "),
        "{code:?} {told}"
    );
    let (code, told) = who(agent, &[&seen, "--at", "2020-01-01T00:00:00Z"])?;
    ensure!(
        code == Some(2) && told.contains("(before the log)"),
        "{code:?} {told}"
    );
    for (wrong, says) in [
        ("nonsense", "is no time"),
        ("2999-01-01 00:00", "lies ahead"),
    ] {
        ensure!(refused(agent.command(&["who", &seen, "--at", wrong]))?.contains(says));
    }

    // Without agent and maps.
    logged.world.agent.stop()?;
    let all = records(&log)?;
    assert_eq!(all[0]["event"], "start");
    assert_eq!(all.last().context("no record")?["event"], "stop");
    ensure!(
        all.iter()
            .any(|it| it["event"] == "policy" && it["policy"] == end["policy"])
    );
    let numbers: Vec<_> = all.iter().filter_map(|it| it["seq"].as_u64()).collect();
    ensure!(
        numbers.iter().copied().eq(0..all.len() as u64),
        "{numbers:?}"
    );
    let copy = logged.dir.path().join("copy");
    fs::copy(&log, &copy)?;
    let mut command = Command::new(NETDP);
    command.args([
        "who",
        &seen,
        "--at",
        &at,
        "--bpffs",
        "/nonexistent",
        "--nat-log",
    ]);
    let out = command
        .arg(&copy)
        .arg("--state-dir")
        .arg(logged.cni())
        .output()?;
    let told = String::from_utf8(out.stdout)?;
    ensure!(
        out.status.success() && told.starts_with("shop/cart ("),
        "{told}"
    );
    Ok(())
}

#[test]
fn a_restart_goes_on_and_a_kill_leaves_a_gap() -> Result<()> {
    let mut logged = Logged::start(&[])?;
    let (log, to) = (logged.log(), logged.to);
    let address = logged.world.pod(0).v4()?;
    let connect = |logged: &Logged, port: u16| -> Result<Tcp> {
        let mut tcp = Tcp::connect(logged.world.pod(0), from_port(port, to), to)?;
        tcp.ask()?;
        Ok(tcp)
    };
    let of = |all: &[Value], event: &str, why: &str| {
        let is = |it: &&Value| it["event"] == event && (why.is_empty() || it["why"] == why);
        all.iter().filter(is).count()
    };
    let _first = connect(&logged, 41_001)?;
    wait_record(&log, "begin", &format!("{address}:41001"))?;
    logged.world.agent.stop()?;
    // It begins without an agent.
    let _second = connect(&logged, 41_002)?;
    logged.world.agent.restart()?;
    let begin = wait_record(&log, "begin", &format!("{address}:41002"))?;
    ensure!(begin.get("to").is_none(), "{begin}");
    let all = records(&log)?;
    assert_eq!((of(&all, "start", ""), of(&all, "gap", "")), (2, 0));
    let first = format!("{address}:41001");
    // Once, or again if the agent ended before it had saved that; the same then.
    let begins = all
        .iter()
        .filter(|it| it["event"] == "begin" && it["pod"] == first);
    let mut begins: Vec<_> = begins
        .map(|it| [&it["id"], &it["begin"], &it["seen_as"]])
        .collect();
    begins.dedup();
    assert_eq!(begins.len(), 1, "{begins:?}");

    // Killed while it writes a record.
    logged.world.agent.kill9()?;
    fs::OpenOptions::new()
        .append(true)
        .open(&log)
        .and_then(|mut file| std::io::Write::write_all(&mut file, b"{\"v\":1,\"seq\":99"))?;
    logged.world.agent.restart()?;
    wait_for(SOON, "the gap in the log", || {
        records(&log).is_ok_and(|all| of(&all, "gap", "killed") == 1)
    })?;
    let numbers: Vec<_> = records(&log)?
        .iter()
        .filter_map(|it| it["seq"].as_u64())
        .collect();
    ensure!(
        numbers.iter().copied().eq(0..numbers.len() as u64),
        "{numbers:?}"
    );
    let gap = records(&log)?.into_iter().find(|it| it["event"] == "gap");
    let gap = gap.context("no gap")?;
    let inside = gap["until"].as_str().context("no end")?;
    let (code, told) = who(&logged.world.agent, &["10.1.0.10:7", "--at", inside])?;
    ensure!(
        code == Some(2) && told.contains("(killed)"),
        "{code:?} {told}"
    );
    Ok(())
}

#[test]
fn ends_by_programs_are_in_the_log() -> Result<()> {
    let mut logged = Logged::start(&["--to-ports", "45000-45000", "--nat-log-destinations"])?;
    let (log, to) = (logged.log(), logged.to);
    let address = logged.world.pod(0).v4()?;
    let other = logged.world.pod(1).v4()?;
    logged.world.agent.stop()?;
    // The only port, which is needed again once the connection is over.
    let mut first = Tcp::connect(logged.world.pod(0), from_port(41_001, to), to)?;
    first.ask()?;
    drop(first);
    let second = wait_some(SOON, "the port to be free", || {
        Tcp::connect(logged.world.pod(1), from_port(41_002, to), to).ok()
    })?;
    logged.world.agent.restart()?;
    let begin = wait_record(&log, "begin", &format!("{address}:41001"))?;
    let end = wait_record(&log, "end", &format!("{address}:41001"))?;
    assert_eq!((&end["why"], &end["id"]), (&json!("room"), &begin["id"]));
    ensure!(end["packets"][0].as_u64() >= Some(3), "{end}");
    let next = wait_record(&log, "begin", &format!("{other}:41002"))?;
    assert_eq!(next["seen_as"], end["seen_as"]);
    drop(second);
    Ok(())
}

#[test]
fn other_protocols_and_ipv6_have_the_same_records() -> Result<()> {
    let logged = Logged::start(&["--timeout=udp-unreplied=2s", "--timeout=udp-lookup=2s"])?;
    let log = logged.log();
    let pod = logged.world.pod(0);
    let v6 = echoes(&logged.world.far)
        .into_iter()
        .find(SocketAddr::is_ipv6);
    let v6 = v6.context("no echo by IPv6")?;
    let mut udp = Udp::connect(pod, from_port(42_001, v6), v6)?;
    let seen = udp.ask()?.to_string();
    let from = format!("[{}]:42001", pod.v6()?);
    let begin = wait_record(&log, "begin", &from)?;
    assert_eq!(
        (&begin["proto"], &begin["seen_as"]),
        (&json!("udp"), &json!(seen))
    );
    // Nobody has asked for destinations.
    ensure!(begin.get("to").is_none(), "{begin}");
    let (code, told) = who(&logged.world.agent, &[&seen, "--proto", "udp"])?;
    ensure!(
        code == Some(0) && told.starts_with(&from),
        "{code:?} {told}"
    );
    ping(pod, logged.world.far.v4()?.into())?;
    let is_ping = || {
        let all = records(&log).unwrap_or_default();
        all.into_iter().find(|it| it["proto"] == "icmp")
    };
    wait_some(SOON, "the ping in the log", is_ping)?;
    let end = wait_record(&log, "end", &from)?;
    assert_eq!(end["packets"], json!([1, 1]));
    let at = begin["begin"].as_str().context("no begin")?;
    let (code, told) = who(&logged.world.agent, &[&seen, "--at", at])?;
    ensure!(
        code == Some(0) && told.starts_with(&from),
        "{code:?} {told}"
    );
    Ok(())
}

#[test]
fn wrong_targets_are_refused() -> Result<()> {
    for (target, says) in [
        ("nat.log", "is none of"),
        ("ipfix://collector:4739", "is not an address and a port"),
        ("/nonexistent/nat.log", "there is no directory /nonexistent"),
    ] {
        let dir = WorkDir::new("refused")?;
        let mut command = Command::new(NETDP);
        command.args([
            "run",
            "--mode=ebpf",
            "--config",
            "/nonexistent",
            "--nat-log",
            target,
        ]);
        command.arg("--bpffs").arg(dir.path().join("bpf"));
        command.arg("--state-dir").arg(dir.path().join("state"));
        let told = refused(command)?;
        ensure!(told.contains(says), "{target}: {told}");
    }
    Ok(())
}

#[test]
fn what_ends_with_the_datapath_is_a_gap() -> Result<()> {
    let mut logged = Logged::start(&["--on-exit=detach"])?;
    let mut tcp = Tcp::connect(logged.world.pod(0), from_port(44_005, logged.to), logged.to)?;
    tcp.ask()?;
    let pod = SocketAddr::new(logged.world.pod(0).v4()?.into(), 44_005).to_string();
    wait_record(&logged.log(), "begin", &pod)?;
    ensure!(logged.world.agent.stop()?.success());
    let all = records(&logged.log())?;
    let last: Vec<_> = all.iter().rev().take(2).collect();
    let [stop, gap] = last.as_slice() else {
        anyhow::bail!("{all:#?}");
    };
    ensure!(
        stop["event"] == "stop" && gap["event"] == "gap",
        "{last:#?}"
    );
    ensure!(gap["why"] == "detached", "{gap}");
    Ok(())
}
