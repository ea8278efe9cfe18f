//! IPFIX, as tshark decodes it.

use crate::common::clients::{Tcp, Udp, any, from_port};
use crate::common::{Echo, POLICY, SOON, World, echoes};
use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use std::fs;
use std::net::{SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use testbed::{Host, WorkDir, output, wait_for};

/// Port of the collector.
const PORT: u16 = 4739;

/// Writes messages as UDP packets to a file in libpcap's format.
fn write_pcap(path: &Path, messages: &[Vec<u8>]) -> Result<()> {
    let mut file = Vec::new();
    // LINKTYPE_RAW.
    for word in [0xa1b2_c3d4_u32, 0x0004_0002, 0, 0, 65_535, 101] {
        file.extend(word.to_le_bytes());
    }
    for message in messages {
        let udp = u16::try_from(8 + message.len())?;
        let mut packet = vec![0x45, 0];
        packet.extend((20 + udp).to_be_bytes());
        packet.extend([0, 0, 0, 0, 64, 17, 0, 0, 10, 1, 0, 10, 10, 1, 0, 20]);
        packet.extend(40_000_u16.to_be_bytes());
        packet.extend(PORT.to_be_bytes());
        packet.extend(udp.to_be_bytes());
        packet.extend([0, 0]);
        packet.extend(message);
        let len = u32::try_from(packet.len())?;
        for word in [0, 0, len, len] {
            file.extend(word.to_le_bytes());
        }
        file.extend(packet);
    }
    Ok(fs::write(path, file)?)
}

/// Returns every value of a field that tshark decodes, at any depth.
fn values<'a>(of: &'a Value, name: &str, found: &mut Vec<&'a str>) {
    match of {
        Value::Object(fields) => {
            for (key, value) in fields {
                if key == name {
                    found.extend(value.as_str());
                }
                values(value, name, found);
            }
        }
        Value::Array(all) => all.iter().for_each(|one| values(one, name, found)),
        _ => {}
    }
}

/// Returns every value of a field that tshark decodes.
fn fields(decoded: &Value, name: &str) -> Vec<String> {
    let mut found = Vec::new();
    values(decoded, name, &mut found);
    found.into_iter().map(str::to_owned).collect()
}

/// Returns the records of NAT events, by their fields.
fn nat_events<'a>(of: &'a Value, found: &mut Vec<&'a serde_json::Map<String, Value>>) {
    match of {
        Value::Object(fields) => {
            if fields.contains_key("cflow.nat_event") {
                found.push(fields);
            }
            fields.values().for_each(|value| nat_events(value, found));
        }
        Value::Array(all) => all.iter().for_each(|one| nat_events(one, found)),
        _ => {}
    }
}

/// Reports whether tshark has decoded a record with these fields.
fn has_record(decoded: &Value, wanted: &[(&str, &str)]) -> bool {
    let mut found = Vec::new();
    nat_events(decoded, &mut found);
    found.iter().any(|record| {
        wanted
            .iter()
            .all(|(name, value)| record.get(*name).and_then(Value::as_str) == Some(value))
    })
}

/// Ensures that tshark has understood all of it.
fn ensure_complete(decoded: &Value) -> Result<()> {
    let text = decoded.to_string();
    ensure!(
        !text.contains("_ws.malformed") && !text.contains("no template found"),
        "{decoded:#}"
    );
    Ok(())
}

/// A collector, which keeps what it receives for tshark.
struct Collector {
    socket: UdpSocket,
    messages: Vec<Vec<u8>>,
    _dir: WorkDir,
    file: PathBuf,
}

impl Collector {
    fn start(host: &Host) -> Result<Self> {
        let socket = host.open(|| UdpSocket::bind(("10.1.0.20", PORT)))?;
        socket.set_read_timeout(Some(Duration::from_millis(200)))?;
        let dir = WorkDir::new("ipfix")?;
        Ok(Self {
            socket,
            messages: Vec::new(),
            file: dir.path().join("ipfix.pcap"),
            _dir: dir,
        })
    }

    /// Takes what has come, and returns all so far, as tshark decodes it.
    fn decode(&mut self) -> Result<Value> {
        let mut message = vec![0; 65_536];
        while let Ok(length) = self.socket.recv(&mut message) {
            self.messages.push(message[..length].to_vec());
        }
        let mut tshark = Command::new("tshark");
        tshark
            .arg("-r")
            .arg(&self.file)
            .args(["-T", "json", "-d", "udp.port==4739,cflow"]);
        write_pcap(&self.file, &self.messages)?;
        Ok(serde_json::from_str(&output(&mut tshark)?)?)
    }

    /// Waits for something to come.
    fn wait(&mut self, what: &str, mut is_it: impl FnMut(&Value) -> bool) -> Result<Value> {
        let mut decoded = Value::Null;
        wait_for(SOON, what, || {
            decoded = self.decode().unwrap_or_default();
            is_it(&decoded)
        })
        .with_context(|| format!("{decoded:#}"))?;
        Ok(decoded)
    }
}

#[test]
fn tshark_decodes_every_field() -> Result<()> {
    let target = format!("ipfix://10.1.0.20:{PORT}");
    let world = World::with(
        POLICY,
        &[
            "--enable-ipv6",
            "--nat-log",
            &target,
            "--nat-log-destinations",
            "--timeout=tcp-closing=2s",
            "--timeout=udp-lookup=2s",
            "--timeout=udp-replied=2s",
        ],
    )?;
    let _echo = Echo::start(&world.far)?;
    let v4 = echoes(&world.far).into_iter().find(SocketAddr::is_ipv4);
    let v6 = echoes(&world.far).into_iter().find(SocketAddr::is_ipv6);
    let (v4, v6) = v4.zip(v6).context("no echo")?;
    let mut tcp = Tcp::connect(world.pod(0), from_port(44_001, v4), v4)?;
    let seen_v4 = tcp.ask()?;
    drop(tcp);
    // Nobody listens so far: what was sent is sent again.
    wait_for(SOON, "the agent to say that nobody listens", || {
        world.agent.log().contains("the NAT log can't be written")
    })?;
    let mut collector = Collector::start(&world.near)?;
    let mut udp = Udp::connect(world.pod(0), from_port(44_002, v6), v6)?;
    let seen_v6 = udp.ask()?;
    let decoded = collector.wait("begin and end of both flows", |decoded| {
        let has = |name, value: &str| fields(decoded, name).iter().any(|it| it == value);
        has("cflow.nat_event", "5") && has("cflow.flowset_id", "258")
    })?;
    ensure!(fields(&decoded, "cflow.nat_event").contains(&"4".to_owned()));
    let pod = world.pod(0);
    for (name, value) in [
        ("cflow.srcaddr", pod.v4()?.to_string()),
        (
            "cflow.post_natsource_ipv4_address",
            seen_v4.ip().to_string(),
        ),
        ("cflow.srcport", "44001".into()),
        (
            "cflow.post_naptsource_transport_port",
            seen_v4.port().to_string(),
        ),
        ("cflow.protocol", "6".into()),
        ("cflow.dstaddr", v4.ip().to_string()),
        ("cflow.dstport", v4.port().to_string()),
        ("cflow.srcaddrv6", pod.v6()?.to_string()),
        (
            "cflow.post_nat_source_ipv6_address",
            seen_v6.ip().to_string(),
        ),
        ("cflow.srcport", "44002".into()),
        (
            "cflow.post_naptsource_transport_port",
            seen_v6.port().to_string(),
        ),
        ("cflow.protocol", "17".into()),
        ("cflow.dstaddrv6", v6.ip().to_string()),
    ] {
        let found = fields(&decoded, name);
        ensure!(
            found.contains(&value),
            "{name} {value}: {found:?} in {decoded:#}"
        );
    }
    // What the flow of IPv6 has sent: one datagram.
    ensure_complete(&decoded)
}

/// Opens UDP flows from a pod that go on: each is answered twice.
fn open(pod: &Host, to: SocketAddr, count: usize) -> Result<Vec<Udp>> {
    let flow = |n| {
        let mut flow = Udp::connect(pod, any(to), to)?;
        flow.ask().with_context(|| format!("flow {n} of {count}"))?;
        flow.ask()?;
        Ok(flow)
    };
    (0..count).map(flow).collect()
}

/// Opens at most so many UDP flows from a pod, until one is refused.
fn open_some(pod: &Host, to: SocketAddr, most: usize) -> Vec<Udp> {
    let flow = |_| open(pod, to, 1).ok()?.pop();
    (0..most).map_while(flow).collect()
}

#[test]
fn a_collector_is_told_of_exhausted_ports_and_of_limits_of_pods() -> Result<()> {
    let target = format!("ipfix://10.1.0.20:{PORT}");
    let world = World::with(
        POLICY,
        &[
            "--enable-ipv6",
            "--nat-log",
            &target,
            "--nat-log-destinations",
            "--to-ports",
            "40000-40001",
            "--pod-flows",
            "2",
        ],
    )?;
    let _echo = Echo::start(&world.far)?;
    let mut collector = Collector::start(&world.near)?;
    let node = |like: SocketAddr| world.node_address(like.ip());
    let mut flows = Vec::new();
    let mut refused = Vec::new();
    let mut wanted = Vec::new();
    for to in echoes(&world.far) {
        flows.extend(open(world.pod(0), to, 2)?);
        // Its limit is reached, whatever the destination; and there is no port for others.
        let elsewhere = SocketAddr::new(to.ip(), 9);
        for (pod, to) in [(0, elsewhere), (1, to)] {
            let socket = world.pod(pod).open(|| UdpSocket::bind(any(to)))?;
            refused.push((socket, to));
        }
        let seen_as = node(to)?.to_string();
        let pod = match to.is_ipv4() {
            true => world.pod(0).v4()?.to_string(),
            false => world.pod(0).v6()?.to_string(),
        };
        let [nat, destination, source] = match to.is_ipv4() {
            true => [
                "cflow.post_natsource_ipv4_address",
                "cflow.dstaddr",
                "cflow.srcaddr",
            ],
            false => [
                "cflow.post_nat_source_ipv6_address",
                "cflow.dstaddrv6",
                "cflow.srcaddrv6",
            ],
        };
        wanted.push(vec![
            ("cflow.nat_event", "12".to_owned()),
            (nat, seen_as),
            ("cflow.protocol", "17".to_owned()),
            (destination, to.ip().to_string()),
            ("cflow.dstport", to.port().to_string()),
        ]);
        wanted.push(vec![
            ("cflow.nat_event", "13".to_owned()),
            ("cflow.nat_quota_exceeded_event", "3".to_owned()),
            ("cflow.max_entries_per_user", "2".to_owned()),
            (source, pod),
        ]);
    }
    let is_told = |decoded: &Value, wanted: &[(&str, String)]| {
        let wanted: Vec<_> = wanted
            .iter()
            .map(|(name, it)| (*name, it.as_str()))
            .collect();
        has_record(decoded, &wanted)
    };
    let decoded = collector.wait("the notices", |decoded| {
        for flow in &mut flows {
            flow.ask().ok();
        }
        for (socket, to) in &refused {
            socket.send_to(b"x", to).ok();
        }
        wanted.iter().all(|wanted| is_told(decoded, wanted))
    })?;
    let mut found = Vec::new();
    nat_events(&decoded, &mut found);
    for record in found {
        let time = record.get("cflow.observation_time_milliseconds");
        let time = time.and_then(Value::as_str).unwrap_or_default();
        ensure!(time.contains(" 20"), "a time of this century: {record:?}");
    }
    // The log goes on beside them.
    collector.wait("begins of all flows", |decoded| {
        has_record(
            decoded,
            &[("cflow.nat_event", "4"), ("cflow.protocol", "17")],
        )
    })?;
    ensure_complete(&decoded)
}

#[test]
fn a_collector_is_told_of_full_tables_and_without_destinations() -> Result<()> {
    let target = format!("ipfix://10.1.0.20:{PORT}");
    let world = World::with(
        POLICY,
        &[
            "--enable-ipv6",
            "--nat-log",
            &target,
            "--to-ports",
            "40000-40399",
            "--max-flows",
            "1024",
        ],
    )?;
    let _echo = Echo::start(&world.far)?;
    let mut collector = Collector::start(&world.near)?;
    let to = echoes(&world.far).into_iter().find(SocketAddr::is_ipv4);
    let to = to.context("no echo by IPv4")?;
    // One pod uses up its share of the tables, three eighths at most; the other takes the last ports.
    let mut flows = open_some(world.pod(0), to, 384);
    let left = 400 - flows.len();
    flows.extend(open_some(world.pod(1), to, left));
    let refused = [0, 1].map(|pod| world.pod(pod).open(|| UdpSocket::bind(any(to))));
    let decoded = collector.wait("the notices", |decoded| {
        for flow in &mut flows {
            flow.ask().ok();
        }
        for socket in refused.iter().flatten() {
            socket.send_to(b"x", to).ok();
        }
        has_record(
            decoded,
            &[
                ("cflow.nat_event", "13"),
                ("cflow.nat_quota_exceeded_event", "1"),
                ("cflow.max_session_entries", "1024"),
            ],
        ) && has_record(
            decoded,
            &[
                ("cflow.nat_event", "12"),
                ("cflow.post_natsource_ipv4_address", "10.1.0.10"),
                ("cflow.protocol", "17"),
            ],
        )
    })?;
    let text = decoded.to_string();
    ensure!(!text.contains("cflow.dstaddr"), "{decoded:#}");
    ensure_complete(&decoded)
}
