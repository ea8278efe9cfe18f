//! Forged segments, and segments that an endpoint would reject, do not affect a connection.

use crate::build::{self, ACK, FIN, PSH, RST, SYN};
use crate::common::wire::Capture;
use crate::common::{SOON, clock, flows, nft};
use crate::flood::{Attacker, Raw};
use crate::packet::{Packet, word};
use crate::site::{Control, Site, Subject, Wrongs, both, end, ends};
use crate::talk::{PATIENCE, Pair, connecting};
use anyhow::{Context as _, Result, ensure};
use std::io::Read as _;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;
use testbed::{wait_for, wait_some};

/// Longer than the timeout of a closed connection's mapping, shorter than that of an open one.
const CLOSED: Duration = Duration::from_secs(300);

/// Sequence and acknowledgement number that no connection has agreed on.
const ASTRAY: Numbers = (0x7f00_0000, 0x7e00_0000);

/// A segment's sequence and acknowledgement number.
type Numbers = (u32, u32);

/// Returns numbers outside the windows of both directions, which begin at random numbers.
fn outside(pair: &Pair) -> Result<Numbers> {
    /// More than any window, and than what is taken for one (`netdp_common::flow`).
    const FAR: u32 = 1 << 26;
    let used = pair.numbers()?;
    let is_far = |number: u32| {
        let distance = |used: u32| number.wrapping_sub(used).cast_signed().unsigned_abs();
        used.into_iter().all(|used| distance(used) > FAR)
    };
    let mut quarters = (0..4).map(|n| ASTRAY.0.wrapping_add(n << 30));
    let sequence = quarters.find(|number| is_far(*number));
    let sequence = sequence.context("two windows are at three places")?;
    Ok((sequence, sequence.wrapping_sub(1 << 24)))
}

fn pair_of(end: SocketAddr) -> (std::net::IpAddr, u16) {
    (end.ip(), end.port())
}

/// An outsider has connected directly to the pod; another pod sends a SYN with its source.
fn syn_of_another(subject: Subject) -> Result<()> {
    let site = Site::start(subject, &[])?;
    let mut wrongs = Wrongs::default();
    for outsider in ends(&site.near, 0) {
        let mut attacker = Attacker::new(site.evil(), &site.near, outsider.ip())?;
        for (right, port) in [(false, 5000), (true, 5001)] {
            let to = end(site.good(), outsider.ip(), port)?;
            let mut pair = Pair::between(&site.near, site.good(), to)?;
            pair.goes_on().context("before the attack")?;
            let syn = build::tcp(pair_of(to), pair_of(pair.seen), SYN, ASTRAY, b"");
            attacker.send(&if right { syn } else { syn.spoiled() })?;
            let result = pair.server_speaks().and_then(|()| pair.goes_on());
            wrongs.note(format!("{}, right checksum: {right}", pair.seen), result);
        }
    }
    wrongs.none()
}

#[test]
fn a_pods_inbound_connection_survives_a_syn_of_another_pod() -> Result<()> {
    both(Control::Holds, syn_of_another)
}

/// Returns the state of a pod's connection.
fn state(site: &mut Site, pod: SocketAddr, to: SocketAddr) -> Result<String> {
    if let Some(agent) = site.agent() {
        let found = flows(agent)?.into_iter().find(|flow| {
            flow["protocol"] == "tcp"
                && flow["source"] == pod.ip().to_string()
                && flow["source_id"] == pod.port()
                && flow["destination_id"] == to.port()
        });
        let found = found.context("the connection has no mapping")?;
        return Ok(found["state"].as_str().context("a state")?.to_owned());
    }
    let family = if pod.is_ipv4() { "ipv4" } else { "ipv6" };
    let port = pod.port().to_string();
    let argv = [
        "conntrack",
        "-L",
        "-f",
        family,
        "-p",
        "tcp",
        "--orig-port-src",
        &port,
    ];
    let listed = site.node().run(&argv)?;
    let state = listed.split_whitespace().nth(3);
    Ok(match state.context("the connection is not tracked")? {
        "ESTABLISHED" => "Established".into(),
        other => other.to_owned(),
    })
}

/// Checks that it is open, and still is after the timeout of a closed one.
fn stays_open(site: &mut Site, pod: SocketAddr, to: SocketAddr) -> Result<()> {
    let found = state(site, pod, to)?;
    ensure!(found == "Established", "the connection is {found}");
    Ok(())
}

/// Advances the clock beyond the timeout of a closed connection's mapping.
fn time_passes(site: &mut Site) -> Result<()> {
    let Some(agent) = site.agent() else {
        return Ok(());
    };
    clock::advance(agent, CLOSED)?;
    // The attackers' markers expire in the same sweep.
    wait_for(Duration::from_secs(60), "a sweep", || {
        flows(agent).is_ok_and(|flows| !flows.iter().any(|flow| flow["destination_id"] == 9))
    })
}

/// Forged segments about pods' connections to `far`.
type Forge = fn(SocketAddr, SocketAddr, SocketAddr, Numbers) -> Vec<(By, Packet)>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum By {
    Evil,
    Itself,
    Outside,
}

impl By {
    fn sends(self, site: &Site, packet: &Packet) -> Result<()> {
        let (host, seen_at) = match self {
            Self::Evil => (site.evil(), &site.far.ns),
            Self::Itself => (site.good(), &site.far.ns),
            Self::Outside => (&site.far, site.node()),
        };
        Attacker::new(host, seen_at, packet.dst)?.send(packet)
    }
}

fn open_despite(subject: Subject, forge: Forge) -> Result<()> {
    let mut site = Site::start(subject, &[])?;
    let mut wrongs = Wrongs::default();
    let mut pairs = Vec::new();
    for family in ends(&site.far, 0) {
        let wire = site.on_node(family.ip(), 0)?;
        let count = forge(family, family, wire, ASTRAY).len();
        for n in 0..count {
            let to = SocketAddr::new(family.ip(), 6000 + u16::try_from(n)?);
            let mut pair = Pair::between(site.good(), &site.far, to)?;
            pair.goes_on().context("before the attack")?;
            let pod = pair.client.local_addr()?;
            let (by, packet) = forge(pod, to, pair.seen, outside(&pair)?).swap_remove(n);
            by.sends(&site, &packet)?;
            pair.goes_on().context("after the attack")?;
            let what = format!("after {packet:?} by {by:?}");
            wrongs.note(&what, stays_open(&mut site, pod, to));
            // Once more, and then an idle period.
            by.sends(&site, &packet)?;
            pairs.push((what, pair));
        }
    }
    time_passes(&mut site)?;
    for (what, pair) in &mut pairs {
        // The server sends first: a packet of the pod could create a new mapping.
        let result = pair.server_speaks().and_then(|()| pair.goes_on());
        wrongs.note(format!("later, {what}"), result);
    }
    wrongs.none()
}

#[test]
fn a_rst_in_a_pods_name_does_not_end_its_mapping() -> Result<()> {
    both(Control::Holds, |subject| {
        open_despite(subject, |pod, to, _, numbers| {
            let rst = |flags| build::tcp(pair_of(pod), pair_of(to), flags, numbers, b"");
            vec![
                (By::Evil, rst(RST)),
                (By::Evil, rst(RST | ACK).spoiled()),
                (By::Itself, rst(RST).spoiled()),
            ]
        })
    })
}

#[test]
fn a_fin_outside_the_window_does_not_close_a_mapping() -> Result<()> {
    both(Control::Holds, |subject| {
        open_despite(subject, |pod, to, wire, numbers| {
            let fin = |from, to| build::tcp(pair_of(from), pair_of(to), FIN | ACK, numbers, b"");
            vec![
                (By::Outside, fin(to, wire)),
                (By::Evil, fin(pod, to)),
                (By::Evil, fin(pod, to).spoiled()),
            ]
        })
    })
}

/// A forged reply, which the pod rejects, arrives before the server's.
fn refused_by_another(subject: Subject) -> Result<()> {
    let mut site = Site::start(subject, &[])?;
    // The test plays the server's side.
    nft(
        &site.far,
        "add table inet own; \
         add chain inet own in { type filter hook input priority 0; }; \
         add rule inet own in tcp dport 7000 drop",
    )?;
    let mut wrongs = Wrongs::default();
    let mut open = Vec::new();
    for to in ends(&site.far, 7000) {
        let seen = Capture::start(&site.far)?;
        let pending = connecting(site.good(), SocketAddr::new(unspecified(to), 0), to)?;
        let syn = wait_some(SOON, "the pod's SYN", || {
            let packets = seen.packets().ok()?;
            packets
                .into_iter()
                .find(|packet| packet.protocol == 6 && word(&packet.payload, 2) == to.port())
        })?;
        let number =
            |at| u32::from(word(&syn.payload, at)) << 16 | u32::from(word(&syn.payload, at + 2));
        let (wire, next) = (
            (syn.source, word(&syn.payload, 0)),
            number(4).wrapping_add(1),
        );
        let raw = Raw::towards(&site.far, wire.0)?;
        let send =
            |flags, numbers, data| raw.send(&build::tcp(pair_of(to), wire, flags, numbers, data));
        send(RST | ACK, (0, next.wrapping_add(ASTRAY.0)), b"")?;
        send(SYN | ACK, (5000, next), b"")?;
        let mut stream = TcpStream::from(pending);
        stream.set_nonblocking(false)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut word = [0; 5];
        send(PSH | ACK, (5001, next), b"early")?;
        stream.read_exact(&mut word).context("the first word")?;
        let pod = stream.local_addr()?;
        // The flow that expires in the sweep.
        let mark = end(site.good(), to.ip(), 0)?.ip();
        Raw::towards(site.good(), to.ip())?.send(&build::udp((mark, 9), (to.ip(), 9), b"x"))?;
        wrongs.note(to, stays_open(&mut site, pod, to));
        open.push((to, wire, next, raw, stream));
    }
    time_passes(&mut site)?;
    for (to, wire, next, raw, mut stream) in open {
        let data = build::tcp(pair_of(to), wire, PSH | ACK, (5006, next), b"late!");
        raw.send(&data)?;
        let mut word = [0; 5];
        let heard = stream
            .read_exact(&mut word)
            .context("the word after a while");
        wrongs.note(to, heard);
    }
    wrongs.none()
}

fn unspecified(like: SocketAddr) -> std::net::IpAddr {
    crate::common::clients::any(like).ip()
}

#[test]
fn a_rst_that_acknowledges_nothing_does_not_end_a_mapping() -> Result<()> {
    both(Control::Holds, refused_by_another)
}
