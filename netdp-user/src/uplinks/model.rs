//! Links, addresses and default routes as plain data.

use super::tunnel::Tunnel;
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;
use std::net::IpAddr;

pub use rtnetlink::packet_route::address::AddressScope;
use rtnetlink::packet_route::link::LinkLayerType;

/// The part of a node's network that decides how pod traffic leaves it.
///
/// Links, addresses and routes are read one after the other, so a snapshot
/// taken during a change can be inconsistent: an address may name a link that
/// is not listed. A [`Monitor`](super::Monitor) made earlier reports that
/// change, and the next snapshot is whole.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Every link of the network namespace.
    pub links: Vec<Link>,
    /// Every address of every link, in the kernel's order: it is the order in
    /// which the kernel itself considers source addresses.
    pub addrs: Vec<Addr>,
    /// The unicast default routes of the main table, one entry a next hop.
    pub default_routes: Vec<DefaultRoute>,
    /// Where the unicast routes of all tables but `local` lead, these among them.
    pub routes: Vec<Route>,
    /// What the node receives without having the address (`ip route add local`).
    pub any_ip: Vec<IpNet>,
    /// What the tunnels that are up receive.
    pub tunnels: Vec<Tunnel>,
}

impl Snapshot {
    /// The link with this index.
    pub fn link(&self, ifindex: u32) -> Option<&Link> {
        self.links.iter().find(|link| link.ifindex == ifindex)
    }

    /// The VRF device that this link is enslaved to, if it is in a VRF.
    pub(super) fn vrf(&self, link: &Link) -> Option<&Link> {
        let master = self.link(link.master?)?;
        master.is_vrf().then_some(master)
    }
}

/// One network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// The kernel's index, unique in the namespace and never 0.
    pub ifindex: u32,
    /// The name, which can change while the index stays.
    pub name: String,
    /// Set up by the administrator (`IFF_UP`).
    pub up: bool,
    /// Able to carry packets (`IFF_RUNNING`: carrier, and not dormant).
    pub running: bool,
    /// The loopback device.
    pub loopback: bool,
    /// What a packet starts with at this link's TC hooks.
    pub link_layer: LinkLayer,
    /// The hardware address, if it is one of Ethernet.
    pub mac: Option<[u8; 6]>,
    /// The largest network-layer packet, in bytes.
    pub mtu: u32,
    /// The index of the bond, bridge, VRF or the like that it is enslaved to.
    pub master: Option<u32>,
    /// The index of the device of this namespace that it stands on
    /// (`IFLA_LINK`): a VLAN's or macvlan's parent, a tunnel's carrier, the
    /// other end of a veth.
    pub below: Option<u32>,
    /// An XDP program is attached to it.
    pub xdp: bool,
    /// The kind of a virtual link ("veth", "bond", "bridge", "vlan", "vxlan",
    /// "vrf", …); most hardware has none.
    pub kind: Option<String>,
}

impl Link {
    /// Whether it is a VRF device, which stands for a routing table.
    pub(super) fn is_vrf(&self) -> bool {
        self.kind.as_deref() == Some("vrf")
    }
}

impl std::fmt::Display for Family {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

impl Family {
    /// The family of an address.
    pub const fn of(ip: IpAddr) -> Self {
        if ip.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

/// What a packet starts with at a link's TC hooks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkLayer {
    /// An Ethernet header.
    Ethernet,
    /// The IP header: tunnels, WireGuard, PPP, mobile modems.
    None,
    /// Something else, such as InfiniBand: netdp cannot parse it.
    Other,
}

impl From<LinkLayerType> for LinkLayer {
    /// Follows `dev_is_mac_header_xmit` of Linux's include/linux/if_arp.h, but
    /// for `Void`: the netlink crate reports types it does not know as that.
    fn from(link_type: LinkLayerType) -> Self {
        match link_type {
            LinkLayerType::Ether => Self::Ethernet,
            LinkLayerType::None
            | LinkLayerType::Rawip
            | LinkLayerType::Ppp
            | LinkLayerType::Tunnel
            | LinkLayerType::Tunnel6
            | LinkLayerType::Sit
            | LinkLayerType::Ipgre
            | LinkLayerType::Ip6gre
            | LinkLayerType::Pimreg => Self::None,
            _ => Self::Other,
        }
    }
}

/// One address of one link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Addr {
    /// The link that carries it.
    pub ifindex: u32,
    /// The node's own address, also where the link is point-to-point.
    pub addr: IpAddr,
    /// The address that spans the on-link subnet: the peer's where the link is
    /// point-to-point, otherwise the same as `addr`.
    pub prefix_addr: IpAddr,
    /// The length of the on-link subnet, in bits.
    pub prefix_len: u8,
    /// How far the address is valid.
    pub scope: AddressScope,
    /// Its state and origin.
    pub flags: AddrFlags,
}

/// The state and origin of an address (`IFA_F_*`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AddrFlags {
    /// IPv4: another address of the same subnet comes first.
    pub secondary: bool,
    /// IPv6: a privacy address (RFC 8981) that will be replaced.
    pub temporary: bool,
    /// IPv6: past its preferred lifetime, not for new connections.
    pub deprecated: bool,
    /// IPv6: duplicate address detection has not finished.
    pub tentative: bool,
    /// IPv6: another host has the address, so it cannot be used.
    pub dadfailed: bool,
    /// Has no lifetime.
    pub permanent: bool,
}

/// The IP version of a route, which the gateway's may differ from (RFC 5549).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// One next hop of one default route of the main table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DefaultRoute {
    /// The IP version of the traffic that it routes.
    pub family: Family,
    /// The link that it leaves by.
    pub ifindex: u32,
    /// The router; none where the link itself is the way.
    pub gateway: Option<IpAddr>,
    /// The source address that the route asks for, for the node's own sockets.
    pub prefsrc: Option<IpAddr>,
    /// The priority: the lowest wins.
    pub metric: u32,
}

/// A way out of one route of any table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Where it leads.
    pub destination: IpNet,
    /// The link that it leaves by.
    pub ifindex: u32,
    /// The router on the way, if there is one.
    pub gateway: Option<IpAddr>,
    /// The source address that the route asks for. Not of routes that the kernel makes of an
    /// address: these say no more than the address does.
    pub prefsrc: Option<IpAddr>,
}

impl Route {
    /// Whether it leads to one host on the link.
    pub(super) fn is_to_neighbour(&self) -> bool {
        self.gateway.is_none() && self.destination.prefix_len() == self.destination.max_prefix_len()
    }
}

/// Every address of every link of the node, both families, loopback included:
/// the set of sources that the datapath treats as the node's own traffic.
pub fn local_addresses(snapshot: &Snapshot) -> BTreeSet<IpAddr> {
    snapshot.addrs.iter().map(|addr| addr.addr).collect()
}
