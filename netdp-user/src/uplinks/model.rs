//! Links, addresses and default routes as plain data.

use super::tunnel::Tunnel;
use ipnet::IpNet;
use netdp_common::layout::Family;
use std::collections::BTreeSet;
use std::net::IpAddr;

pub(crate) use rtnetlink::packet_route::address::AddressScope;
use rtnetlink::packet_route::link::LinkLayerType;

/// The part of a node's network that decides how pod traffic leaves it.
///
/// Links, addresses and routes are read one after the other, so a snapshot taken during a change
/// can be inconsistent: an address may name a link that is not listed. A
/// [`Monitor`](super::Monitor) created earlier reports that change, and the next snapshot is
/// consistent.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot {
    /// Every link of the network namespace.
    pub links: Vec<Link>,
    /// Every address of every link, in the kernel's order, in which the kernel itself considers
    /// source addresses.
    pub addrs: Vec<LinkAddr>,
    /// The unicast default routes of the main table, one entry for each next hop.
    pub default_routes: Vec<DefaultRoute>,
    /// Destinations and links of the unicast routes of all tables but `local`, default routes
    /// included.
    pub routes: Vec<Route>,
    /// Networks that the node receives without having the addresses (`ip route add local`).
    pub any_ip: Vec<IpNet>,
    /// Protocols and peers of the tunnels that are up.
    pub tunnels: Vec<Tunnel>,
}

impl Snapshot {
    /// Returns the link with this index.
    pub fn link(&self, ifindex: u32) -> Option<&Link> {
        self.links.iter().find(|link| link.ifindex == ifindex)
    }

    /// Returns the VRF device that this link is enslaved to, if it is in a VRF.
    pub(super) fn vrf(&self, link: &Link) -> Option<&Link> {
        let master = self.link(link.master?)?;
        master.is_vrf().then_some(master)
    }
}

/// A network interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Index assigned by the kernel, unique in the namespace and never 0.
    pub ifindex: u32,
    /// Name, which can change while the index stays.
    pub name: String,
    /// True if set up by the administrator (`IFF_UP`).
    pub up: bool,
    /// True if able to carry packets (`IFF_RUNNING`: carrier, and not dormant).
    pub running: bool,
    /// True for the loopback device.
    pub loopback: bool,
    /// First header of a packet at this link's TC hooks.
    pub link_layer: LinkLayer,
    /// Hardware address, if it is an Ethernet address.
    pub mac: Option<[u8; 6]>,
    /// Index of the bond, bridge, VRF or other master that the link is enslaved to.
    pub master: Option<u32>,
    /// Index of the lower device in this namespace (`IFLA_LINK`): a VLAN's or macvlan's parent, a
    /// tunnel's carrier, the other end of a veth.
    pub below: Option<u32>,
    /// True if an XDP program is attached.
    pub xdp: bool,
    /// Kind of a virtual link ("veth", "bond", "bridge", "vlan", "vxlan", "vrf", …); `None` for
    /// most hardware.
    pub kind: Option<String>,
}

impl Link {
    /// Reports whether it is a VRF device, which stands for a routing table.
    pub(super) fn is_vrf(&self) -> bool {
        self.kind.as_deref() == Some("vrf")
    }
}

/// First header of a packet at a link's TC hooks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkLayer {
    /// An Ethernet header.
    Ethernet,
    /// The IP header, without a link-layer one: tunnels, WireGuard, PPP, mobile modems.
    None,
    /// Another header, such as InfiniBand's: netdp cannot parse it.
    Other,
}

impl From<LinkLayerType> for LinkLayer {
    /// Follows `dev_is_mac_header_xmit` of Linux's include/linux/if_arp.h, except for `Void`: the
    /// netlink crate reports unknown types as that.
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

/// An address of a link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LinkAddr {
    /// Index of the link that carries it.
    pub ifindex: u32,
    /// The node's own address, also where the link is point-to-point.
    pub addr: IpAddr,
    /// The address that spans the on-link subnet: the peer's if the link is point-to-point,
    /// otherwise equal to `addr`.
    pub prefix_addr: IpAddr,
    /// Prefix length of the on-link subnet, in bits.
    pub prefix_len: u8,
    /// Scope in which the address is valid.
    pub scope: AddressScope,
    /// State and origin (`IFA_F_*`).
    pub flags: AddrFlags,
}

/// State and origin of an address (`IFA_F_*`).
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
}

/// A next hop of a default route of the main table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DefaultRoute {
    /// Family of the routed traffic; the gateway's may differ (RFC 5549).
    pub family: Family,
    /// Index of the outgoing link.
    pub ifindex: u32,
    /// Address of the router; `None` if destinations are on the link itself.
    pub gateway: Option<IpAddr>,
    /// Preferred source address of the route, for the node's own sockets.
    pub prefsrc: Option<IpAddr>,
    /// Priority: the lowest wins.
    pub metric: u32,
}

/// A next hop of a route of any table.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Destination prefix; its length is 0 for a default route.
    pub destination: IpNet,
    /// Index of the outgoing link.
    pub ifindex: u32,
    /// Address of the router, if there is one.
    pub gateway: Option<IpAddr>,
    /// Preferred source address. `None` for routes that the kernel creates for an address: these
    /// say no more than the address does.
    pub prefsrc: Option<IpAddr>,
    /// True if a routing rule leads to its table: else no packet takes it, until there is one.
    pub is_led_to: bool,
}

impl Route {
    /// Reports whether it leads to a single host on the link.
    pub(super) fn is_to_neighbour(&self) -> bool {
        self.gateway.is_none() && self.destination.prefix_len() == self.destination.max_prefix_len()
    }
}

/// Returns every address of every link of the node, both families, loopback included: the set of
/// sources that the datapath treats as the node's own traffic.
pub(crate) fn local_addresses(snapshot: &Snapshot) -> BTreeSet<IpAddr> {
    snapshot.addrs.iter().map(|addr| addr.addr).collect()
}
