//! Packets to explain: built from a tuple, or given as bytes or as a line of tcpdump.

mod build;
mod hex;
mod pcap;
mod tcpdump;

pub use build::{Description, Kind};
pub use hex::from_hex;
pub use pcap::from_pcap;
pub use tcpdump::from_line;

use netdp_common::packet::{ETH_P_IP, ETH_P_IPV6, ETHERNET};

/// Lengths of an Ethernet header and of its addresses, in bytes.
const LINK: usize = ETHERNET as usize;

/// The bytes of a packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PacketBytes {
    /// With the Ethernet header, if there is one.
    bytes: Vec<u8>,
    /// Length of the Ethernet header: 14 or 0.
    link: usize,
}

/// A packet on a link.
pub(super) struct Frame {
    /// All bytes, from the link header on.
    pub(super) bytes: Vec<u8>,
    pub(super) ethertype: u16,
    /// Source address of its Ethernet header, if the packet came with one.
    pub(super) source: Option<[u8; 6]>,
}

impl PacketBytes {
    /// Returns a packet that begins with its IP header.
    #[must_use]
    pub const fn ip_only(bytes: Vec<u8>) -> Self {
        Self { bytes, link: 0 }
    }

    /// Returns a packet that begins with an Ethernet header; `None` if it is shorter than that.
    #[must_use]
    pub fn ethernet(bytes: Vec<u8>) -> Option<Self> {
        (bytes.len() >= LINK).then_some(Self { bytes, link: LINK })
    }

    /// Returns the bytes after the Ethernet header: VLAN tags if there are any, else the IP header.
    #[must_use]
    pub fn ip(&self) -> &[u8] {
        self.bytes.get(self.link..).unwrap_or_default()
    }

    /// Returns the EtherType, or that of the first VLAN tag.
    #[must_use]
    pub fn ethertype(&self) -> u16 {
        if self.link != 0 {
            let field = self.bytes.get(12..14).and_then(|it| it.try_into().ok());
            return field.map_or(0, u16::from_be_bytes);
        }
        match self.bytes.first().map(|first| first >> 4) {
            Some(6) => ETH_P_IPV6,
            _ => ETH_P_IP,
        }
    }

    /// Returns DSCP and ECN of the IP header.
    pub(super) fn tos(&self) -> u8 {
        match *self.ip() {
            [first, second, ..] if self.ethertype() == ETH_P_IPV6 => first << 4 | second >> 4,
            [_, tos, ..] => tos,
            _ => 0,
        }
    }

    /// Returns the packet on a link whose header has `l2_len` bytes. `own` is the hardware address
    /// by which the node would send a packet that has no link header yet.
    pub(super) fn on_link(&self, l2_len: u32, own: impl FnOnce() -> Option<[u8; 6]>) -> Frame {
        let ethertype = self.ethertype();
        let source = self.bytes.get(6..12).filter(|_| self.link != 0);
        let source = source.and_then(|it| <[u8; 6]>::try_from(it).ok());
        let bytes = match (l2_len, self.link) {
            (0, _) => self.ip().to_vec(),
            (_, 0) => {
                let mut bytes = vec![0; 6];
                bytes.extend(own().unwrap_or_default());
                bytes.extend(ethertype.to_be_bytes());
                bytes.extend(&self.bytes);
                bytes
            }
            _ => self.bytes.clone(),
        };
        Frame {
            bytes,
            ethertype,
            source,
        }
    }
}
