//! Ports and protocols that the node itself receives and that the programs cannot detect by a
//! socket lookup: pods' flows must not take them.
//!
//! The facts are third-party NAT rules (`foreign`), IPVS services, sockets, IPsec
//! (`Prober`) and tunnels ([`crate::uplinks`]); `decide` derives the contents of the maps
//! `node_ports` and `node_protocols` from them.

mod ipsec_drops;
mod ports;
mod probe;
mod proc;
mod report;
mod xfrm;

#[cfg(test)]
mod tests;

pub(crate) use ipsec_drops::ipsec_drops;
pub(crate) use ports::{PROTOCOLS, PortSet, Ranges, protocol_bit};
pub(crate) use probe::{Probe, Prober};
pub(crate) use report::{NodeReport, PortsReport, ProtocolReport};
pub(crate) use xfrm::{Ipsec, Policy};

use crate::foreign::Redirects;
use crate::uplinks::Tunnel;
use netdp_common::layout::{Addr, NodeProtocol, node_port_bit};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Maximum number of ports of one protocol that are reserved for the node: a quarter of all.
pub const MOST_PORTS: u32 = 16_384;

/// Number of peers of one protocol above which all addresses count as its peers.
const MOST_PEERS: usize = 256;

/// A protocol without ports that the node uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ProtocolPeer {
    /// IP protocol number as assigned by IANA.
    pub protocol: u8,
    /// Address of the peer; the family's unspecified address stands for any peer.
    pub peer: IpAddr,
}

impl ProtocolPeer {
    /// Returns the key in the map `node_protocols`.
    #[must_use]
    pub fn key(&self) -> NodeProtocol {
        NodeProtocol::new(Addr::from(self.peer), u32::from(self.protocol))
    }

    const fn with_any_peer(self) -> Self {
        let peer = match self.peer {
            IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        };
        Self { peer, ..self }
    }
}

/// A virtual service of IPVS.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Service {
    /// `tcp`, `udp`, `sctp`; `fwm` for a service selected by a mark.
    pub protocol: String,
    /// Address; `None` if a mark selects the service.
    pub address: Option<IpAddr>,
    /// Port; 0 stands for every port.
    pub port: u16,
}

/// All facts about the node.
#[derive(Debug)]
pub(crate) struct Facts<'a> {
    /// Third-party NAT rules for packets to the node.
    pub nat: &'a Redirects,
    /// Polled facts: sockets, services, IPsec.
    pub probe: &'a Probe,
    /// Tunnels that are up.
    pub tunnels: &'a [Tunnel],
    /// Addresses of the node.
    pub local: &'a BTreeSet<IpAddr>,
}

/// Desired contents of the maps, with the report about them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DesiredNodeMaps {
    /// `NODE_PORT_*` bits by port; no zeros.
    pub ports: BTreeMap<u16, u32>,
    /// Protocols that the node uses.
    pub protocols: BTreeSet<ProtocolPeer>,
    /// Origins of the ports and protocols.
    pub report: NodeReport,
}

/// Ports with one origin.
struct Source {
    from: String,
    /// Description used in the message if the ports are too many.
    about: String,
    ports: PortSet,
}

/// Returns the desired contents of the maps.
#[must_use]
pub(crate) fn decide(facts: &Facts<'_>) -> DesiredNodeMaps {
    let mut desired = DesiredNodeMaps::default();
    desired.report.unread.clone_from(&facts.nat.unread);
    let mut sources = rules(facts.nat);
    sources.extend(services(facts));
    sources.extend(sockets(facts.probe));
    add_ports(sources, &mut desired);
    add_protocols(protocols(facts), &mut desired);
    desired
}

fn rules(nat: &Redirects) -> Vec<Source> {
    let source = |found: &crate::foreign::Redirect| Source {
        from: format!("{} ({}, {})", found.owner, found.backend, found.family),
        about: format!(
            "{}, {}, {}: {}",
            found.backend, found.family, found.chain, found.rule
        ),
        ports: found.ports.clone(),
    };
    nat.rules.iter().map(source).collect()
}

fn services(facts: &Facts<'_>) -> Vec<Source> {
    let here = |service: &&Service| service.address.is_none_or(|ip| facts.local.contains(&ip));
    let source = |service: &Service| {
        let Service { protocol, port, .. } = service;
        let about = match service.address {
            Some(address) => format!("IPVS: {protocol} {address}, every port"),
            None => "IPVS: a service that a mark chooses".into(),
        };
        let ports = match port {
            0 => Ranges::all(),
            port => Ranges::one(*port, *port),
        };
        let mask = match service.address {
            Some(_) => protocol_bit(protocol),
            None => u32::MAX,
        };
        Source {
            from: "IPVS".into(),
            about,
            ports: PortSet::of(mask, &ports),
        }
    };
    facts
        .probe
        .services
        .iter()
        .filter(here)
        .map(source)
        .collect()
}

fn sockets(probe: &Probe) -> Vec<Source> {
    let source = |&(bit, port): &(u32, u16)| Source {
        from: "sockets".into(),
        about: "sockets".into(),
        ports: PortSet::of(bit, &Ranges::one(port, port)),
    };
    probe.sockets.iter().map(source).collect()
}

/// Adds the sources with the fewest ports first, until there are too many.
fn add_ports(sources: Vec<Source>, desired: &mut DesiredNodeMaps) {
    let mut by_place: BTreeMap<(&str, String), Ranges> = BTreeMap::new();
    let mut too_many: BTreeMap<String, Vec<&str>> = BTreeMap::new();
    for (n, (name, number)) in PROTOCOLS.into_iter().enumerate() {
        let of = |source: &Source| source.ports.by_protocol().nth(n).map(|(_, _, r)| r.clone());
        let mut parts: Vec<_> = sources.iter().filter_map(|s| Some((s, of(s)?))).collect();
        parts.retain(|(_, ports)| !ports.is_empty());
        parts.sort_by_key(|(_, ports)| ports.count());
        let mut all = BTreeSet::new();
        for (source, ports) in parts {
            let new = || ports.ports().filter(|port| !all.contains(port)).count();
            let most = MOST_PORTS as usize;
            if ports.count() > MOST_PORTS || all.len() + new() > most {
                too_many.entry(source.about.clone()).or_default().push(name);
                continue;
            }
            all.extend(ports.ports());
            let known = by_place.entry((name, source.from.clone())).or_default();
            *known = known.union(&ports);
        }
        for port in all {
            *desired.ports.entry(port).or_default() |= node_port_bit(number);
        }
    }
    desired.report.ports = by_place
        .into_iter()
        .map(|((protocol, from), ports)| PortsReport {
            protocol: protocol.into(),
            ports: ports.to_string(),
            from,
        })
        .collect();
    desired.report.not_kept = too_many
        .into_iter()
        .map(|(about, protocols)| format!("{} of {about}", protocols.join(", ")))
        .collect();
}

/// Returns all protocols that the node uses, with their origin.
fn protocols(facts: &Facts<'_>) -> BTreeMap<ProtocolPeer, String> {
    let mut found = BTreeMap::new();
    for tunnel in facts.tunnels {
        found
            .entry(tunnel.protocol)
            .or_insert_with(|| format!("interface {}", tunnel.link));
    }
    for peer in ipsec(&facts.probe.ipsec, facts.local) {
        found.entry(peer).or_insert_with(|| "IPsec".into());
    }
    for peer in &facts.probe.raw {
        found.entry(*peer).or_insert_with(|| "sockets".into());
    }
    found
}

/// Returns the IPsec peers: the endpoints that are not the node's; any peer if none is known.
fn ipsec(all: &BTreeSet<Ipsec>, local: &BTreeSet<IpAddr>) -> BTreeSet<ProtocolPeer> {
    let mut found = BTreeSet::new();
    for &Ipsec { protocol, ends } in all {
        let others: Vec<_> = ends
            .into_iter()
            .filter(|end| !local.contains(end))
            .collect();
        let known = others.iter().any(|end| !end.is_unspecified());
        let peers = others
            .into_iter()
            .filter(|end| !known || !end.is_unspecified());
        found.extend(peers.map(|peer| ProtocolPeer { protocol, peer }));
    }
    found
}

fn add_protocols(found: BTreeMap<ProtocolPeer, String>, desired: &mut DesiredNodeMaps) {
    let mut peers: BTreeMap<ProtocolPeer, usize> = BTreeMap::new();
    for peer in found.keys() {
        *peers.entry(peer.with_any_peer()).or_default() += 1;
    }
    let mut kept: BTreeMap<ProtocolPeer, String> = BTreeMap::new();
    for (peer, from) in found {
        let any_peer = peer.with_any_peer();
        let many = peers
            .get(&any_peer)
            .is_some_and(|count| *count > MOST_PEERS);
        let peer = if many { any_peer } else { peer };
        kept.entry(peer).or_insert(from);
    }
    desired.protocols = kept.keys().copied().collect();
    desired.report.protocols = kept
        .into_iter()
        .map(|(peer, from)| ProtocolReport::new(&peer, from))
        .collect();
}
