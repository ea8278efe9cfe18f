//! `netdp monitor`: what it shows, and that nothing is missing from its sums.

use crate::common::clients::{Udp, any};
use crate::common::{Echo, SOON, World, clock, drops, echoes, refused, status};
use anyhow::{Context as _, Result, ensure};
use netdp_common::layout::{EventCount, Settings, pins};
use nix::sys::signal::Signal;
use serde_json::Value;
use socket2::{Domain, Protocol, Socket, Type};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::process::Command;
use testbed::{Agent, Host, Running, WorkDir, output, wait_for};

/// A running `netdp monitor`.
struct Monitor(Running);

impl Monitor {
    /// Starts the command, and waits until it listens.
    fn start(agent: &Agent, arguments: &[&str]) -> Result<Self> {
        let mut all = vec!["monitor"];
        all.extend(arguments);
        let running = Running::start(agent.command(&all))?;
        wait_for(SOON, "the monitor to listen", || {
            running.stderr().contains("netdp: listening")
        })
        .with_context(|| running.written())?;
        Ok(Self(running))
    }

    /// Returns the lines of JSON so far.
    fn lines(&self) -> Vec<Value> {
        let text = self.0.stdout();
        let lines = text.lines().map(serde_json::from_str);
        lines.filter_map(Result::ok).collect()
    }

    /// Waits for an event.
    fn wait(&self, what: &str, is_it: impl Fn(&Value) -> bool) -> Result<Value> {
        let mut found = None;
        wait_for(SOON, what, || {
            found = self.lines().into_iter().find(|line| is_it(line));
            found.is_some()
        })
        .with_context(|| self.0.written())?;
        found.context("just found")
    }

    /// Ends it, and returns all its lines.
    fn end(mut self) -> Result<Vec<Value>> {
        self.0.signal(Signal::SIGINT)?;
        let status = self.0.wait(SOON)?;
        ensure!(status.success(), "{status}: {}", self.0.written());
        Ok(self.lines())
    }
}

/// Returns a field of the sums of a kind in the summary; 0 if there was none.
fn total(lines: &[Value], kind: &str, field: &str) -> Result<u64> {
    let summary = lines.last().context("no summary")?;
    ensure!(summary["event"] == "summary", "{summary}");
    let totals = summary["totals"].as_array().context("no totals")?;
    let of_kind = totals.iter().find(|it| it["kind"] == kind);
    Ok(of_kind.and_then(|it| it[field].as_u64()).unwrap_or(0))
}

/// Sends TCP segments with a flag from a pod, past its own stack: they belong to no mapping.
struct Stray {
    socket: Socket,
    to: SocketAddr,
}

impl Stray {
    fn new(pod: &Host, to: IpAddr) -> Result<Self> {
        let kind = Type::RAW;
        let socket = pod.open(|| {
            Socket::new(
                Domain::for_address((to, 0).into()),
                kind,
                Some(Protocol::TCP),
            )
        })?;
        let to = SocketAddr::new(to, 0);
        Ok(Self { socket, to })
    }

    /// Sends a segment from a port; `RST` is 4.
    fn send(&self, port: u16, flags: u8) -> Result<()> {
        let mut segment = port.to_be_bytes().to_vec();
        segment.extend([
            1, 0xbb, 0, 0, 0, 9, 0, 0, 0, 0, 0x50, flags, 1, 0, 0, 0, 0, 0,
        ]);
        self.socket.send_to(&segment, &self.to.into())?;
        Ok(())
    }
}

const RST: u8 = 4;

fn settings(agent: &Agent) -> Result<Settings> {
    let map = aya::maps::MapData::from_pin(agent.bpffs().join(pins::SETTINGS))?;
    let map: aya::maps::Array<_, Settings> = aya::maps::Map::Array(map).try_into()?;
    Ok(map.get(&0, 0)?)
}

/// Returns what the programs have counted of all kinds.
fn counted(agent: &Agent) -> Result<EventCount> {
    let map = aya::maps::MapData::from_pin(agent.bpffs().join(pins::EVENT_COUNTS))?;
    let map: aya::maps::PerCpuArray<_, EventCount> = aya::maps::Map::PerCpuArray(map).try_into()?;
    let mut sum = EventCount::default();
    for kind in 0..netdp_common::layout::EVENT_KINDS {
        for cpu in map.get(&kind, 0)?.iter() {
            sum.seen += cpu.seen;
            sum.limited += cpu.limited;
            sum.full += cpu.full;
        }
    }
    Ok(sum)
}

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

/// Returns the IPv4 endpoint of the far echo server.
fn far(world: &World) -> Result<SocketAddr> {
    let all = echoes(&world.far);
    all.into_iter().find(SocketAddr::is_ipv4).context("no IPv4")
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

/// Packets of the flood.
const FLOOD: u64 = 100_000;

#[test]
fn every_event_of_a_flood_is_shown_or_counted_as_lost() -> Result<()> {
    let world = World::start()?;
    let to = far(&world)?;
    let arguments = ["-o", "jsonl", "--kind", "drop,refused", "--rate", "2000"];
    let quick = Monitor::start(&world.agent, &arguments)?;
    let slow = Monitor::start(&world.agent, &arguments)?;
    let stray = Stray::new(world.pod(0), to.ip())?;
    let before = (
        drops(&world.agent, "tcp_no_flow")?,
        counted(&world.agent)?.seen,
    );
    let flood = |what: &str, is_enough: &dyn Fn(&EventCount) -> bool| -> Result<()> {
        wait_for(SOON, what, || {
            for port in 2000..4000 {
                stray.send(port, RST).ok();
            }
            counted(&world.agent).is_ok_and(|now| is_enough(&now))
        })
    };
    // One does not read, until the agent's queue for it and the socket are full; then the agent does
    // not, until the ring buffer is.
    slow.0.signal(Signal::SIGSTOP)?;
    let begin = before.1;
    flood("a flood", &|now| {
        let reported = now.seen - now.limited - now.full;
        now.seen - begin >= FLOOD && reported >= 12_000 && now.limited > 0
    })?;
    world.agent.signal(Signal::SIGSTOP)?;
    let stopped = flood("a full buffer", &|now| now.full > 0);
    world.agent.signal(Signal::SIGCONT)?;
    stopped?;
    slow.0.signal(Signal::SIGCONT)?;
    let dropped = drops(&world.agent, "tcp_no_flow")? - before.0;
    ensure!(dropped >= FLOOD, "{dropped}");
    let after = counted(&world.agent)?;
    assert_eq!(
        after.seen - before.1,
        dropped,
        "the programs have seen what they dropped"
    );
    let (quick, slow) = (quick.end()?, slow.end()?);
    for (lines, who) in [(&quick, "quick"), (&slow, "slow")] {
        let part = |field| total(lines, "drop", field);
        let parts = [
            part("shown")?,
            part("limited")?,
            part("full")?,
            part("reader")?,
        ];
        assert_eq!(parts.iter().sum::<u64>(), dropped, "{who}: {parts:?}");
        assert_eq!(part("seen")?, dropped, "{who}");
        ensure!(
            parts[0] > 0 && parts[1] > 0 && parts[2] > 0,
            "{who}: {parts:?}"
        );
        // The lines tell of the same numbers as the sums.
        let drops = lines.iter().filter(|it| it["event"] == "drop");
        let shown = drops.filter_map(|it| it["count"].as_u64()).sum::<u64>();
        let lost = lines.iter().filter(|it| it["event"] == "lost");
        let lost = lost.filter_map(|it| it["lost"].as_array()).flatten();
        let lost: u64 = lost
            .flat_map(|it| ["limited", "full", "reader"].map(|cause| it[cause].as_u64()))
            .flatten()
            .sum();
        assert_eq!((shown, lost), (parts[0], parts[1..].iter().sum()), "{who}");
    }
    ensure!(
        total(&slow, "drop", "reader")? > 0,
        "the slow one took everything"
    );
    assert_eq!(after.limited, total(&quick, "drop", "limited")?);
    assert_eq!(after.full, total(&quick, "drop", "full")?);
    wait_for(SOON, "the programs to report nothing", || {
        settings(&world.agent).is_ok_and(|settings| settings.events == 0)
    })?;
    stray.send(5000, RST)?;
    assert_eq!(counted(&world.agent)?.seen, after.seen, "nobody listens");
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

#[test]
fn without_an_agent_the_ring_buffer_is_read_until_one_starts() -> Result<()> {
    let mut world = World::start()?;
    let to = far(&world)?;
    let before = Monitor::start(&world.agent, &["-o", "jsonl", "--kind", "drop"])?;
    world.agent.kill9()?;
    // The one that has lost its agent goes on by itself.
    let wait_direct = |running: &Running| {
        wait_for(SOON, "the monitor to read by itself", || {
            running.stderr().contains("no agent runs")
        })
    };
    wait_direct(&before.0)?;
    let stray = Stray::new(world.pod(0), to.ip())?;
    stray.send(5000, RST)?;
    let drop = before.wait("a drop", |it| it["event"] == "drop")?;
    assert_eq!(drop["id"], Value::Null, "nobody remembers it");
    let second = refused(world.agent.command(&["monitor"]))?;
    let named = format!("process {} reads the programs' events", before.0.pid());
    ensure!(second.contains(&named), "{second}");
    world.agent.restart()?;
    wait_for(SOON, "the monitor to listen to the agent", || {
        before.0.stderr().contains("an agent has started")
            && settings(&world.agent).is_ok_and(|settings| settings.events != 0)
    })?;
    stray.send(5000, RST)?;
    before.wait("a drop with a number", |it| it["id"].is_string())?;
    before.end()?;
    Ok(())
}

#[test]
fn the_bits_of_a_killed_monitor_are_cleared_by_the_next_agent() -> Result<()> {
    let mut world = World::start()?;
    world.agent.kill9()?;
    let mut monitor = Monitor::start(&world.agent, &["--kind", "begin"])?;
    ensure!(settings(&world.agent)?.events != 0, "nothing is reported");
    monitor.0.kill9()?;
    ensure!(settings(&world.agent)?.events != 0, "who cleared them?");
    world.agent.restart()?;
    assert_eq!(settings(&world.agent)?.events, 0);
    Ok(())
}

#[test]
fn the_socket_is_private_and_takes_no_nonsense() -> Result<()> {
    let world = World::start()?;
    let path = world.agent.state_dir().join("events.sock");
    let mode = std::fs::symlink_metadata(&path)?.permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let ask = |request: &[u8]| -> Result<String> {
        let mut stream = UnixStream::connect(&path)?;
        stream.set_read_timeout(Some(SOON))?;
        stream.write_all(request)?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line)?;
        Ok(line)
    };
    for nonsense in [
        &b"GET / HTTP/1.1\n"[..],
        b"{\"listen\":{}}\n",
        b"\xff\xff\n",
        &[b'x'; 8192],
    ] {
        let told = ask(nonsense)?;
        ensure!(told.starts_with("{\"error\":") || told.is_empty(), "{told}");
    }
    // The most listeners, which do not even read; one more is refused.
    let request = b"{\"listen\":{\"kinds\":[\"config\"],\"rate\":0}}\n";
    let mut silent = Vec::new();
    for _ in 0..32 {
        let mut stream = UnixStream::connect(&path)?;
        stream.write_all(request)?;
        let mut first = [0; 12];
        stream.read_exact(&mut first)?;
        ensure!(&first == b"{\"listening\"", "{first:?}");
        silent.push(stream);
    }
    let told = ask(request)?;
    ensure!(told.contains("32 listen already"), "{told}");
    drop(silent);
    wait_for(SOON, "a listener to be let in", || {
        ask(request).is_ok_and(|told| told.starts_with("{\"listening\""))
    })?;
    status(&world.agent)?;
    Ok(())
}
