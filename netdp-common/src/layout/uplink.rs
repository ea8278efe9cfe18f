//! Uplinks, their source addresses, and the hardware addresses by which the node sends.

use super::addr::Addr;

/// [`Uplink::flags`]: `v4` is set.
pub const UPLINK_V4: u32 = 1;

/// [`Uplink::flags`]: `v6` is set.
pub const UPLINK_V6: u32 = 2;

/// [`Uplink::flags`]: packets with a VLAN tag do not belong to this uplink.
pub const UPLINK_UNTAGGED: u32 = 4;

/// [`Uplink::flags`]: the interface is an observed interface, not an uplink: only packets that
/// arrive by it are examined.
pub const UPLINK_OBSERVED: u32 = 8;

/// [`Uplink::flags`]: `v4` is the source of every IPv4 packet that leaves, whatever its route.
pub const UPLINK_ONLY_V4: u32 = 16;

/// [`Uplink::flags`]: `v6` is the source of every IPv6 packet that leaves, whatever its route.
pub const UPLINK_ONLY_V6: u32 = 32;

/// The numbers that interfaces may have. [`Uplink::number`] 0 is that of all others.
pub const UPLINK_NUMBERS: u32 = 16;

/// First bit of the number in [`Uplink::flags`].
const NUMBER_SHIFT: u32 = 8;

/// [`SourceKey::link`]: `addr` is the source that the kernel selects for packets by that interface.
pub const SOURCE_NAMED: u32 = 1 << 31;

/// [`SourceKey::link`] of addresses whose packets the node receives although it does not have them;
/// no interface has this index.
pub const SOURCE_ANY_IP: u32 = 0;

/// Value of the uplinks map; the key is the interface index.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Uplink {
    /// Address for masqueraded IPv4, if `UPLINK_V4`.
    pub v4: Addr,
    /// Address for masqueraded IPv6, if `UPLINK_V6`.
    pub v6: Addr,
    /// Bytes before the IP header: 14 on Ethernet, 0 on devices without one.
    pub l2_len: u32,
    /// `UPLINK_*` bits, and the interface's number (bits 8 to 11).
    pub flags: u32,
}

impl Uplink {
    /// Returns the interface's number, the index of its counters: below [`UPLINK_NUMBERS`].
    #[inline(always)]
    #[must_use]
    pub const fn number(&self) -> u32 {
        self.flags >> NUMBER_SHIFT & (UPLINK_NUMBERS - 1)
    }

    /// Returns the entry with another number.
    #[must_use]
    pub const fn with_number(mut self, number: u32) -> Self {
        let mask = (UPLINK_NUMBERS - 1) << NUMBER_SHIFT;
        self.flags = self.flags & !mask | number << NUMBER_SHIFT & mask;
        self
    }
}

/// Key of the trie of sources: an interface, and an address to look up.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SourceKey {
    /// The index of the interface, and [`SOURCE_NAMED`] if `addr` is a source; otherwise that is a
    /// next hop.
    pub link: u32,
    /// IPv4 or IPv6, network byte order.
    pub addr: Addr,
}

/// Value of the trie of sources: the source address of leaving packets.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source {
    /// IPv4 or IPv6, network byte order.
    pub addr: Addr,
    /// The index of the uplink at whose hooks the source is valid.
    pub via: u32,
}

/// Key of the set of hardware addresses by which the node itself sends at an uplink.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct MacKey {
    /// The interface index of the uplink.
    pub link: u32,
    /// The hardware address; all zeros marks that those of this uplink are known.
    pub mac: [u8; 6],
    /// Padding, always zero.
    pub pad: u16,
}
