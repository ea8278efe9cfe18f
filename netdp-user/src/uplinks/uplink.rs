//! Links by which traffic leaves the cluster.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::model::LinkLayer;

/// A link by which traffic leaves the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uplink {
    /// Interface index, for attachment.
    pub ifindex: u32,
    /// Interface name, for messages.
    pub name: String,
    /// First header of a packet at its TC hooks.
    pub link_layer: LinkLayer,
    /// Source address of translated IPv4 traffic; `None`: it must be dropped.
    pub v4: Option<Ipv4Addr>,
    /// Source address of translated IPv6 traffic; `None`: it must be dropped, or IPv6 is not
    /// translated at all.
    pub v6: Option<Ipv6Addr>,
    /// True if set up and able to carry packets.
    pub up: bool,
    /// True if VLAN-tagged packets belong to another uplink, and pass unmodified.
    pub untagged: bool,
    /// True if `v4` is the source of all IPv4 traffic that leaves by it, whatever its route.
    pub only_v4: bool,
    /// True if `v6` is the source of all IPv6 traffic that leaves by it, whatever its route.
    pub only_v6: bool,
}

impl Uplink {
    /// Returns the source addresses of translated traffic.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> + use<> {
        let v4 = self.v4.map(IpAddr::from);
        v4.into_iter().chain(self.v6.map(IpAddr::from))
    }
}
