//! IP packets as values: built, parsed, and compared as a whole.

use super::checksum::{crc32c, internet, pseudo};
use std::fmt;
use std::net::IpAddr;

pub const ICMP: u8 = 1;
pub const TCP: u8 = 6;
pub const UDP: u8 = 17;
pub const DCCP: u8 = 33;
pub const ICMPV6: u8 = 58;
pub const SCTP: u8 = 132;
pub const UDP_LITE: u8 = 136;

/// An address and a port.
pub type End = (IpAddr, u16);

/// Position of a fragment in its datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Part {
    /// Offset in the datagram, in bytes.
    pub offset: u16,
    pub more: bool,
    /// The IPv6 identification; IPv4's is in the packet.
    pub id: u32,
}

/// An IPv4 or IPv6 packet.
#[derive(Clone, PartialEq, Eq)]
pub struct Packet {
    pub src: IpAddr,
    pub dst: IpAddr,
    pub ttl: u8,
    /// TOS or traffic class, ECN included.
    pub tos: u8,
    /// The IPv6 flow label.
    pub label: u32,
    /// The IPv4 identification.
    pub id: u16,
    pub df: bool,
    pub part: Option<Part>,
    /// IPv4 options, padded to whole words.
    pub options: Vec<u8>,
    /// IPv6 extension headers before the fragment header: number, and the bytes after the
    /// next-header field.
    pub extensions: Vec<(u8, Vec<u8>)>,
    pub proto: u8,
    /// The bytes from the L4 header on.
    pub body: Vec<u8>,
}

impl Packet {
    pub fn new(src: IpAddr, dst: IpAddr, proto: u8, body: Vec<u8>) -> Self {
        Self {
            src,
            dst,
            ttl: 64,
            tos: 0,
            label: 0,
            id: 0x1234,
            df: false,
            part: None,
            options: Vec::new(),
            extensions: Vec::new(),
            proto,
            body,
        }
    }

    pub fn is_v4(&self) -> bool {
        self.src.is_ipv4()
    }

    /// Returns the offset of the checksum in the body, and whether it covers the addresses.
    fn checksum_at(&self) -> Option<(usize, bool)> {
        match self.proto {
            TCP => Some((16, true)),
            UDP | UDP_LITE | DCCP => Some((6, true)),
            ICMP => Some((2, false)),
            ICMPV6 => Some((2, true)),
            _ => None,
        }
        .filter(|(at, _)| self.body.len() >= at + 2)
    }

    /// Returns the Internet checksum over the body; 0 if the body contains its own right checksum.
    fn sum(&self, with_addresses: bool) -> u16 {
        let head = pseudo(self.src, self.dst, self.proto, self.body.len());
        internet(&[if with_addresses { &head } else { &[] }, &self.body])
    }

    /// Reports whether the L4 checksum is right or absent.
    pub fn checksum_ok(&self) -> bool {
        if self.part.is_some() {
            return true;
        }
        if self.proto == SCTP && self.body.len() >= 12 {
            return self.body[8..12] == crc32c(&self.body);
        }
        match self.checksum_at() {
            Some((6, _)) if self.proto == UDP && self.body[6..8] == [0, 0] => self.is_v4(),
            Some((_, with_addresses)) => self.sum(with_addresses) == 0,
            None => true,
        }
    }

    /// Returns the packet with the right L4 checksum. A UDP checksum of 0 becomes 0xffff.
    #[must_use]
    pub fn summed(mut self) -> Self {
        if self.proto == SCTP && self.body.len() >= 12 {
            let crc = crc32c(&self.body);
            self.body[8..12].copy_from_slice(&crc);
        } else if let Some((at, with_addresses)) = self.checksum_at() {
            self.body[at..at + 2].fill(0);
            let sum = match self.sum(with_addresses) {
                0 if self.proto == UDP => 0xffff,
                sum => sum,
            };
            self.body[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        }
        self
    }

    /// Returns the packet with one bit of the payload flipped, so that the checksum is wrong.
    #[must_use]
    pub fn spoiled(mut self) -> Self {
        if let Some(last) = self.body.last_mut() {
            *last ^= 0x10;
        }
        self
    }

    /// Returns the offset of the L4 id of one end in the body.
    fn id_at(&self, source: bool) -> Option<usize> {
        match (self.proto, source) {
            (TCP | UDP | UDP_LITE | DCCP | SCTP, true) => Some(0),
            (TCP | UDP | UDP_LITE | DCCP | SCTP, false) => Some(2),
            (ICMP, _) if matches!(self.body.first(), Some(0 | 8 | 13 | 14)) => Some(4),
            (ICMPV6, _) if matches!(self.body.first(), Some(128 | 129)) => Some(4),
            _ => None,
        }
        .filter(|at| self.body.len() >= at + 2)
    }

    /// Returns the source port or ICMP identifier; 0 if there is none.
    pub fn sport(&self) -> u16 {
        self.id_at(true).map_or(0, |at| word(&self.body, at))
    }

    /// Returns the destination port or ICMP identifier; 0 if there is none.
    pub fn dport(&self) -> u16 {
        self.id_at(false).map_or(0, |at| word(&self.body, at))
    }

    /// Returns the packet with another source; a right checksum stays right, and an absent one
    /// absent.
    #[must_use]
    pub fn from(mut self, (addr, id): End) -> Self {
        let (right, none) = (self.checksum_ok(), self.no_udp_checksum());
        self.src = addr;
        if let Some(at) = self.id_at(true) {
            self.body[at..at + 2].copy_from_slice(&id.to_be_bytes());
        }
        if right && !none { self.summed() } else { self }
    }

    /// Returns the packet with another destination.
    #[must_use]
    pub fn to(mut self, (addr, id): End) -> Self {
        let (right, none) = (self.checksum_ok(), self.no_udp_checksum());
        self.dst = addr;
        if let Some(at) = self.id_at(false) {
            self.body[at..at + 2].copy_from_slice(&id.to_be_bytes());
        }
        if right && !none { self.summed() } else { self }
    }

    fn no_udp_checksum(&self) -> bool {
        self.part.is_some() || self.proto == UDP && self.body.get(6..8) == Some(&[0, 0])
    }

    /// Returns the packet as a router forwards it.
    #[must_use]
    pub fn forwarded(mut self) -> Self {
        self.ttl -= 1;
        self
    }
}

/// Returns two bytes as a big-endian number; 0 beyond the end.
pub fn word(bytes: &[u8], at: usize) -> u16 {
    match bytes.get(at..at + 2) {
        Some(&[high, low]) => u16::from_be_bytes([high, low]),
        _ => 0,
    }
}

impl fmt::Debug for Packet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (src, dst) = (self.src, self.dst);
        write!(
            f,
            "[{src} {} > {dst} {} proto {}",
            self.sport(),
            self.dport(),
            self.proto
        )?;
        write!(
            f,
            " ttl {} tos {} id {:#x} df {}",
            self.ttl, self.tos, self.id, self.df
        )?;
        if let Some(part) = self.part {
            write!(
                f,
                " part {}{}",
                part.offset,
                if part.more { "+" } else { "" }
            )?;
        }
        if !self.checksum_ok() {
            write!(f, " BAD CHECKSUM")?;
        }
        write!(f, " body {}: ", self.body.len())?;
        for byte in self.body.iter().take(48) {
            write!(f, "{byte:02x}")?;
        }
        write!(f, "]")
    }
}
