//! ICMP errors about other pods' flows, and the IPv4 identifications of other pods' datagrams.

use crate::build::{error, udp};
use crate::common::clients::{Udp, any};
use crate::common::wire::Capture;
use crate::common::{ECHO, Echo, SOON};
use crate::flood::Attacker;
use crate::packet::Packet;
use crate::site::{Control, Site, Subject, Wrongs, both, end, ends};
use crate::socket::Socket;
use anyhow::{Context as _, Result, ensure};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};
use testbed::Host;

/// Returns type and code of "port unreachable" for a family.
fn unreachable(like: IpAddr) -> (u8, u8) {
    if like.is_ipv4() { (3, 3) } else { (1, 4) }
}

/// Returns the ICMP errors in a capture: source, and the quoted packet.
fn errors_in(wire: &Capture) -> Result<Vec<(IpAddr, Packet)>> {
    let mut errors = Vec::new();
    for packet in wire.packets()? {
        let is_error = matches!(
            (packet.protocol, packet.payload.first()),
            (1, Some(3)) | (58, Some(1))
        );
        if is_error && let Some(inner) = packet.payload.get(8..) {
            errors.push((packet.source, Packet::parse_cut(inner)?));
        }
    }
    Ok(errors)
}

/// A pod sends the server an error about another pod's port.
fn told_by_another(subject: Subject) -> Result<()> {
    let site = Site::start(subject, &[])?;
    let _echo = Echo::start(&site.far)?;
    let mut wrongs = Wrongs::default();
    for to in ends(&site.far, ECHO) {
        let mut flow = Udp::connect(site.good(), any(to), to)?;
        let wire = flow.ask()?;
        let good = end(site.good(), to.ip(), flow.socket.local_addr()?.port())?;
        let evil = end(site.evil(), to.ip(), 0)?.ip();
        let answer = udp((to.ip(), to.port()), (good.ip(), good.port()), b"answer");
        let attack = error(evil, to.ip(), unreachable(to.ip()), 0, &answer.bytes());
        let mut attacker = Attacker::new(site.evil(), &site.far, to.ip())?;
        let seen = Capture::start(&site.far)?;
        attacker.send(&attack)?;
        for (source, inner) in errors_in(&seen)? {
            let about = inner.dst == wire.ip() && inner.dport() == wire.port();
            let result = if about && source == wire.ip() {
                Err(anyhow::anyhow!("{source} tells of {inner:?}"))
            } else {
                Ok(())
            };
            wrongs.note(to, result);
        }
        flow.ask().context("the flow after it")?;
    }
    wrongs.none()
}

#[test]
fn a_pods_error_about_another_pods_flow_is_not_the_nodes() -> Result<()> {
    both(Control::Fails, told_by_another)
}

/// An outsider sends one pod an error about a packet that left with the node's address.
fn told_to_another(subject: Subject) -> Result<()> {
    let site = Site::start(subject, &[])?;
    let _echo = Echo::start(&site.far)?;
    let mut wrongs = Wrongs::default();
    for to in ends(&site.far, ECHO) {
        let mut flow = Udp::connect(site.good(), any(to), to)?;
        let wire = flow.ask()?;
        let good = end(site.good(), to.ip(), 0)?.ip();
        let evil = end(site.evil(), to.ip(), 0)?.ip();
        let outsider = end(&site.near, to.ip(), 0)?.ip();
        let question = udp((wire.ip(), wire.port()), (to.ip(), to.port()), b"question");
        for told in [evil, good] {
            let attack = error(outsider, told, unreachable(told), 0, &question.bytes());
            let seen = Capture::start(site.good())?;
            // A marker for the good pod, as it takes the path of translated packets.
            Attacker::new(&site.near, site.good(), good)?.send(&attack)?;
            let result = (|| {
                for (_, inner) in errors_in(&seen)? {
                    ensure!(inner.src != good, "the pod is told of {inner:?}");
                }
                flow.ask().context("the flow after it").map(drop)
            })();
            wrongs.note(format!("told {told} about {wire}"), result);
        }
    }
    wrongs.none()
}

#[test]
fn an_error_to_another_address_than_the_flows_is_not_translated() -> Result<()> {
    both(Control::Holds, told_to_another)
}

/// Returns the identification of the node's next fragmented datagram.
fn next_id(wire: &Socket, node: IpAddr) -> Result<u16> {
    let start = Instant::now();
    while start.elapsed() < SOON {
        let Some(frame) = wire.receive(Duration::from_secs(1))? else {
            continue;
        };
        if frame.get(12..14) != Some(&[8, 0]) {
            continue;
        }
        let packet = Packet::parse(&frame[14..])?;
        if packet.src == node && packet.part.is_some_and(|part| part.offset == 0) {
            return Ok(packet.id);
        }
    }
    anyhow::bail!("no fragment came")
}

fn sends_in_fragments(pod: &Host, to: SocketAddr) -> Result<UdpSocket> {
    let socket = pod.open(|| UdpSocket::bind(any(to)))?;
    socket.connect(to)?;
    Ok(socket)
}

/// A pod must not be able to infer the amount of another pod's traffic.
fn identifications(subject: Subject) -> Result<()> {
    const TURNS: usize = 30;
    let site = Site::start(subject, &[])?;
    let node = site.on_node([0; 4].into(), 0)?.ip();
    let mut ids = Vec::new();
    let lines: Vec<_> = [(site.good(), &site.far), (site.evil(), &site.other)]
        .into_iter()
        .map(|(pod, host)| {
            let to = SocketAddr::new(host.v4()?.into(), 9);
            Ok((sends_in_fragments(pod, to)?, Socket::open(host, "eth0")?))
        })
        .collect::<Result<_>>()?;
    for _ in 0..TURNS {
        for (pod, wire) in &lines {
            // The port is closed: an error about an earlier datagram may be reported first.
            let _ = pod.take_error();
            pod.send(&[7; 3000])?;
            ids.push(next_id(wire, node)?);
        }
    }
    let steps = ids.windows(2).map(|two| two[1].wrapping_sub(two[0]));
    let close = steps.filter(|step| (1..=8).contains(step)).count();
    ensure!(
        close * 4 < ids.len(),
        "{close} of {} identifications follow from the other pod's: {ids:?}",
        ids.len()
    );
    Ok(())
}

#[test]
fn pods_cannot_count_each_others_datagrams_by_identifications() -> Result<()> {
    both(Control::Holds, identifications)
}
