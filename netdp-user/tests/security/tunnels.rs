//! A pod that uses a protocol without ports does not receive packets of the node's own tunnel with
//! the same peer. A raw socket of the node stands for the tunnel.

use crate::build;
use crate::flood::Attacker;
use crate::site::{Control, Site, Subject, Wrongs, both, end, ends};
use crate::talk::PATIENCE;
use anyhow::{Context as _, Result, ensure};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use std::io::Read as _;
use std::net::{IpAddr, SocketAddr};
use testbed::{Host, Netns};

/// IP in IP, GRE, ESP.
const PROTOCOLS: [u8; 3] = [4, 47, 50];

/// An endpoint of a tunnel.
struct Tunnel {
    socket: Socket,
    /// Address of the other endpoint.
    to: IpAddr,
}

impl Tunnel {
    fn open(ns: &Netns, protocol: u8, to: IpAddr) -> Result<Self> {
        let opened = ns.enter(|| {
            let domain = Domain::for_address(SocketAddr::new(to, 0));
            let protocol = Protocol::from(i32::from(protocol));
            Socket::new(domain, Type::RAW, Some(protocol))
        })?;
        let socket = opened.with_context(|| format!("protocol {protocol} in {}", ns.name()))?;
        // Accepts packets from that address only.
        socket.connect(&SockAddr::from(SocketAddr::new(to, 0)))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        Ok(Self { socket, to })
    }

    fn says(&self, word: &str) -> Result<()> {
        self.socket.send(word.as_bytes())?;
        Ok(())
    }

    /// Waits for the word; others may arrive before it.
    fn hears(&mut self, word: &str) -> Result<()> {
        loop {
            let mut bytes = [0; 2048];
            let count = self.socket.read(&mut bytes);
            let count = count.with_context(|| format!("{word:?} from {}", self.to))?;
            if bytes[..count].ends_with(word.as_bytes()) {
                return Ok(());
            }
        }
    }

    /// Checks that the word has not arrived.
    fn did_not_hear(&mut self, word: &str) -> Result<()> {
        self.socket.set_nonblocking(true)?;
        let mut bytes = [0; 2048];
        while let Ok(count) = self.socket.read(&mut bytes) {
            ensure!(
                !bytes[..count].ends_with(word.as_bytes()),
                "the pod heard {word:?}"
            );
        }
        Ok(())
    }
}

/// Checks that the node's tunnel works in both directions and that the pod receives nothing of it.
fn works(node: &mut Tunnel, peer: &mut Tunnel, pod: &mut Tunnel, turn: &str) -> Result<()> {
    let (question, answer) = (format!("question {turn}"), format!("answer {turn}"));
    node.says(&question)?;
    // The peer accepts only packets with the node's address, which is not changed.
    peer.hears(&question)?;
    peer.says(&answer)?;
    let heard = node.hears(&answer);
    pod.did_not_hear(&answer)?;
    heard
}

fn beside(site: &Site, peer: &Host, protocol: u8, pod_first: bool, like: IpAddr) -> Result<()> {
    let to = end(peer, like, 0)?.ip();
    let own = site.on_node(like, 0)?.ip();
    let mut attacker = Attacker::new(site.evil(), peer, to)?;
    let mut pod = Tunnel::open(site.evil(), protocol, to)?;
    let mut far = Tunnel::open(peer, protocol, own)?;
    let from = end(site.evil(), like, 0)?.ip();
    let attack = build::other(from, to, protocol, b"from a pod");
    if pod_first {
        attacker.send(&attack)?;
    }
    let mut node = Tunnel::open(site.node(), protocol, to)?;
    works(&mut node, &mut far, &mut pod, "one")?;
    attacker.send(&attack)?;
    works(&mut node, &mut far, &mut pod, "two")
}

fn each(subject: Subject, pod_first: bool) -> Result<()> {
    let site = Site::start(subject, &[])?;
    let mut wrongs = Wrongs::default();
    for family in ends(&site.far, 0) {
        for protocol in PROTOCOLS {
            let result = beside(&site, &site.far, protocol, pod_first, family.ip());
            wrongs.note(format!("protocol {protocol} with {}", family.ip()), result);
        }
    }
    wrongs.none()
}

#[test]
fn a_tunnel_of_the_nodes_goes_on_beside_a_pods_packets() -> Result<()> {
    both(Control::Holds, |subject| each(subject, false))
}

#[test]
fn a_tunnel_of_the_nodes_begins_after_a_pods_packets() -> Result<()> {
    both(Control::Fails, |subject| each(subject, true))
}
