//! IPFIX, as tshark decodes it.

use crate::common::clients::{Tcp, Udp, from_port};
use crate::common::{Echo, POLICY, SOON, World, echoes};
use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use std::fs;
use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::process::Command;
use std::time::Duration;
use testbed::{WorkDir, output, wait_for};

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
    let collector = world.near.open(|| UdpSocket::bind(("10.1.0.20", PORT)))?;
    collector.set_read_timeout(Some(Duration::from_millis(200)))?;
    let mut udp = Udp::connect(world.pod(0), from_port(44_002, v6), v6)?;
    let seen_v6 = udp.ask()?;
    let dir = WorkDir::new("ipfix")?;
    let file = dir.path().join("ipfix.pcap");
    let mut messages = Vec::new();
    let mut decoded = Value::Null;
    let fields = |decoded: &Value, name: &str| -> Vec<String> {
        let mut found = Vec::new();
        values(decoded, name, &mut found);
        found.into_iter().map(str::to_owned).collect()
    };
    wait_for(SOON, "begin and end of both flows", || {
        let mut message = vec![0; 65_536];
        while let Ok(length) = collector.recv(&mut message) {
            messages.push(message[..length].to_vec());
        }
        let mut tshark = Command::new("tshark");
        tshark
            .arg("-r")
            .arg(&file)
            .args(["-T", "json", "-d", "udp.port==4739,cflow"]);
        let told = write_pcap(&file, &messages).and_then(|()| output(&mut tshark));
        decoded = told
            .ok()
            .and_then(|told| serde_json::from_str(&told).ok())
            .unwrap_or_default();
        let has = |name, value: &str| fields(&decoded, name).iter().any(|it| it == value);
        has("cflow.nat_event", "5") && has("cflow.flowset_id", "258")
    })
    .with_context(|| format!("{decoded:#}"))?;
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
    let text = decoded.to_string();
    ensure!(
        !text.contains("_ws.malformed") && !text.contains("no template found"),
        "{decoded:#}"
    );
    Ok(())
}
