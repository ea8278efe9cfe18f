//! A pod that uses a port of the node towards a client does not receive what the client then sends
//! to that port.

use crate::build;
use crate::common::clients::{any, from_port};
use crate::common::wire::Capture;
use crate::common::{SOON, nft};
use crate::flood::{Raw, Template, burst};
use crate::site::{Control, Site, Subject, Wrongs, both, end, ends};
use crate::talk::{Found, Named, Pending, who, who_udp};
use anyhow::{Result, ensure};
use std::net::{SocketAddr, UdpSocket};
use testbed::wait_for;

/// Ports of sshd, of a typical service, of the kubelet, and an unused one.
const PORTS: [u16; 4] = [22, 8080, 10_250, 44_444];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Listener {
    Before,
    After,
    Never,
}

const EACH: [Listener; 3] = [Listener::Before, Listener::After, Listener::Never];

/// Client endpoint, port, and the time at which the node's program begins to use it.
type Case = (SocketAddr, u16, Listener);

/// Calls `attack` with another client port for each case.
fn each_case(
    site: &Site,
    first: u16,
    listeners: &[Listener],
    attack: impl Fn(&Site, Case) -> Result<()>,
) -> Result<()> {
    let mut wrongs = Wrongs::default();
    let mut client = first;
    for family in ends(&site.far, 0) {
        for port in PORTS {
            for &listener in listeners {
                client += 1;
                let from = SocketAddr::new(family.ip(), client);
                let what = format!("port {port}, client {from}, the node listens {listener:?}");
                wrongs.note(what, attack(site, (from, port, listener)));
            }
        }
    }
    wrongs.none()
}

/// Checks that the client reaches the node's program, or a closed port.
fn is_the_nodes(found: Found, listener: Listener) -> Result<()> {
    match listener {
        Listener::Never => found.is_refused(),
        _ => found.is("node"),
    }
}

fn after_a_refusal(site: &Site, (client, port, listener): Case) -> Result<()> {
    let (node, every) = (site.on_node(client.ip(), port)?, from_port(port, client));
    let listen = |when| {
        (listener == when)
            .then(|| Named::tcp(site.node(), every, "node"))
            .transpose()
    };
    let _before = listen(Listener::Before)?;
    let attempt = who(site.evil(), every, client)?;
    ensure!(attempt == Found::Refused, "the pod found {attempt:?}");
    let _pod = Named::tcp(site.evil(), every, "pod")?;
    let _after = listen(Listener::After)?;
    is_the_nodes(
        who(&site.far, from_port(client.port(), client), node)?,
        listener,
    )
}

/// The pod's attempt ends, then it listens on the same port.
#[test]
fn a_refused_attempt_leaves_the_port_to_the_node() -> Result<()> {
    both(Control::Holds, |subject| {
        let site = Site::start(subject, &[])?;
        each_case(&site, 50_000, &EACH, after_a_refusal)
    })
}

fn while_pending(site: &Site, (client, port, listener): Case) -> Result<()> {
    let (node, every) = (site.on_node(client.ip(), port)?, from_port(port, client));
    let listen = |when| {
        (listener == when)
            .then(|| Named::tcp(site.node(), every, "node"))
            .transpose()
    };
    let _before = listen(Listener::Before)?;
    let wire = Capture::start(&site.far)?;
    let _pod = Pending::start(site.evil(), every, client, "pod")?;
    wait_for(SOON, "the pod's SYN", || {
        let packets = wire.packets().unwrap_or_default();
        let to = client.port().to_be_bytes();
        packets.iter().any(|p| p.payload.get(2..4) == Some(&to))
    })?;
    let _after = listen(Listener::After)?;
    is_the_nodes(
        who(&site.far, from_port(client.port(), client), node)?,
        listener,
    )
}

/// The client drops the unsolicited SYN, so that the pod's attempt is still pending: its socket
/// would treat the client's SYN as a simultaneous open.
#[test]
fn a_pending_attempt_leaves_the_port_to_the_node() -> Result<()> {
    both(Control::Holds, |subject| {
        let site = Site::start(subject, &[])?;
        nft(
            &site.far,
            "add table inet own; \
             add chain inet own in { type filter hook input priority 0; }; \
             add rule inet own in tcp dport 51000-51999 tcp flags & (syn | ack) == syn drop",
        )?;
        let listening = [Listener::Before, Listener::After];
        each_case(&site, 51_000, &listening, while_pending)
    })
}

fn after_a_datagram(site: &Site, (client, port, listener): Case) -> Result<()> {
    let (node, every) = (site.on_node(client.ip(), port)?, from_port(port, client));
    let bind = |when| {
        (listener == when)
            .then(|| Named::udp(site.node(), every, "node"))
            .transpose()
    };
    let _before = bind(Listener::Before)?;
    let wire = Capture::start(&site.far)?;
    let pod: UdpSocket = site.evil().open(|| UdpSocket::bind(every))?;
    pod.send_to(b"mine?", client)?;
    wait_for(SOON, "the pod's datagram", || {
        let packets = wire.packets().unwrap_or_default();
        packets.iter().any(|p| p.payload.ends_with(b"mine?"))
    })?;
    drop(pod);
    let _pod = Named::udp(site.evil(), every, "pod")?;
    let _after = bind(Listener::After)?;
    who_udp(&site.far, from_port(client.port(), client), node)?.is("node")
}

#[test]
fn a_datagram_leaves_the_port_to_the_nodes_socket() -> Result<()> {
    both(Control::Holds, |subject| {
        let site = Site::start(subject, &[])?;
        let bound = [Listener::Before, Listener::After];
        each_case(&site, 52_000, &bound, after_a_datagram)
    })
}

/// From the kubelet's port to every port of a client: 65,535 packets of each kind.
fn in_bulk(subject: Subject) -> Result<()> {
    const PORT: u16 = 10_250;
    const CONNECTIONS: usize = 20;
    let site = Site::start(subject, &[])?;
    let mut wrongs = Wrongs::default();
    for client in ends(&site.far, 1) {
        let raw = Raw::towards(site.evil(), client.ip())?;
        let pod = (end(site.evil(), client.ip(), 0)?.ip(), PORT);
        let to = (client.ip(), client.port());
        for attack in [
            build::tcp(pod, to, build::SYN, (1, 0), b""),
            build::udp(pod, to, b"x"),
        ] {
            burst(&raw, &Template::new(&attack), 65_535, |n, packet| {
                packet.dport(u16::try_from(n + 1).unwrap_or(1));
            })?;
        }
        let every = from_port(PORT, client);
        let _tcp = Named::tcp(site.node(), every, "node")?;
        let _udp = Named::udp(site.node(), every, "node")?;
        let node = site.on_node(client.ip(), PORT)?;
        for n in 0..CONNECTIONS {
            let mut check = |what, found: Result<Found>| {
                let result = found.and_then(|found| found.is("node"));
                let failed = result.is_err();
                wrongs.note(format!("{what} {n} from {}", client.ip()), result);
                failed
            };
            let failed = [
                check("connection", who(&site.far, any(node), node)),
                check("datagram", who_udp(&site.far, any(node), node)),
            ];
            // One failure of each kind is sufficient.
            if failed.contains(&true) {
                break;
            }
        }
    }
    wrongs.none()
}

#[test]
fn all_ports_of_a_client_taken_in_bulk_leave_the_nodes_listeners_reachable() -> Result<()> {
    both(Control::Holds, in_bulk)
}
