//! Tunnels of this node, with their protocols and peers.

use crate::node::ProtocolPeer;
use rtnetlink::packet_route::IpProtocol;
use rtnetlink::packet_route::link::{
    InfoData, InfoGre, InfoGre6, InfoIpTunnel, InfoKind, InfoVti, LinkInfo,
};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// IP protocol numbers as assigned by IANA.
const IPIP: u8 = 4;
const IPV6: u8 = 41;
const GRE: u8 = 47;
const ESP: u8 = 50;
const AH: u8 = 51;
const IPCOMP: u8 = 108;
const MPLS: u8 = 137;

/// Traffic that a tunnel that is up receives.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tunnel {
    /// Name of the tunnel's interface.
    pub link: String,
    /// IP protocol and peer address.
    pub protocol: ProtocolPeer,
}

/// Returns the protocols of a link that is up, with its peer.
pub(super) fn protocols(infos: &[LinkInfo]) -> Vec<ProtocolPeer> {
    let kind = infos.iter().find_map(|info| match info {
        LinkInfo::Kind(kind) => Some(kind),
        _ => None,
    });
    let data = infos.iter().find_map(|info| match info {
        LinkInfo::Data(data) => Some(data),
        _ => None,
    });
    let remote = data.and_then(remote);
    let v4 = remote.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
    let v6 = remote.unwrap_or(IpAddr::V6(Ipv6Addr::UNSPECIFIED));
    let (peer, protocols): (IpAddr, &[u8]) = match kind {
        Some(InfoKind::GreTun | InfoKind::GreTap | InfoKind::ErSpan) => (v4, &[GRE]),
        Some(InfoKind::GreTun6 | InfoKind::GreTap6 | InfoKind::Ip6ErSpan) => (v6, &[GRE]),
        // All payload protocols that can be enabled later count, whatever it carries now.
        Some(InfoKind::IpIp) => (v4, &[IPIP, MPLS]),
        Some(InfoKind::SitTun) => (v4, &[IPV6, IPIP, MPLS]),
        Some(InfoKind::Ip6Tnl) => (v6, &[IPV6, IPIP, MPLS]),
        Some(InfoKind::Vti) => (v4, &[ESP, AH, IPCOMP]),
        Some(InfoKind::Vti6) => (v6, &[ESP, AH, IPCOMP]),
        _ => return Vec::new(),
    };
    let only = data.and_then(carried);
    let matching = protocols
        .iter()
        .filter(|protocol| only.is_none_or(|only| only == **protocol));
    matching
        .map(|&protocol| ProtocolPeer { protocol, peer })
        .collect()
}

/// Reports whether packets have the outer header already at the link's TC hooks: a GRE tunnel
/// without a peer, or with a group of peers, has a `header_ops` that adds it (`ipgre_tunnel_init`
/// of net/ipv4/ip_gre.c and `ip6gre_tunnel_init` of net/ipv6/ip6_gre.c, Linux 6.12). One for which
/// each route names the peer has not.
pub(super) fn shows_outer_header(infos: &[LinkInfo]) -> bool {
    let has_none = |remote: Option<IpAddr>| {
        remote.is_none_or(|remote| remote.is_unspecified() || remote.is_multicast())
    };
    infos.iter().any(|info| match info {
        LinkInfo::Data(data @ InfoData::GreTun(all)) => {
            has_none(remote(data)) && !all.contains(&InfoGre::CollectMetadata)
        }
        LinkInfo::Data(data @ InfoData::GreTun6(all)) => {
            has_none(remote(data)) && !all.contains(&InfoGre6::CollectMetadata)
        }
        _ => false,
    })
}

fn remote(data: &InfoData) -> Option<IpAddr> {
    let v4 = |ip: &Ipv4Addr| IpAddr::V4(*ip);
    let v6 = |ip: &Ipv6Addr| IpAddr::V6(*ip);
    match data {
        InfoData::GreTun(all) | InfoData::GreTap(all) | InfoData::ErSpan(all) => {
            all.iter().find_map(|info| match info {
                InfoGre::Remote(ip) => Some(v4(ip)),
                _ => None,
            })
        }
        InfoData::GreTun6(all) | InfoData::GreTap6(all) | InfoData::Ip6ErSpan(all) => {
            all.iter().find_map(|info| match info {
                InfoGre6::Remote(ip) => Some(v6(ip)),
                _ => None,
            })
        }
        InfoData::IpTunnel(all) => all.iter().find_map(|info| match info {
            InfoIpTunnel::Remote(ip) => Some(*ip),
            _ => None,
        }),
        InfoData::Vti(all) => all.iter().find_map(|info| match info {
            InfoVti::Remote(ip) => Some(*ip),
            _ => None,
        }),
        _ => None,
    }
}

/// Returns the only protocol that a tunnel carries, if it is limited to one.
fn carried(data: &InfoData) -> Option<u8> {
    let InfoData::IpTunnel(all) = data else {
        return None;
    };
    all.iter().find_map(|info| match info {
        InfoIpTunnel::Protocol(IpProtocol::Ipip) => Some(IPIP),
        InfoIpTunnel::Protocol(IpProtocol::Ipv6) => Some(IPV6),
        InfoIpTunnel::Protocol(IpProtocol::Mpls) => Some(MPLS),
        _ => None,
    })
}
