//! Packet builder for tests: packets as bytes, with every checksum computed from its definition.
//!
//! The host tests and the tests of the eBPF programs share these packets.

use std::net::{IpAddr, SocketAddr};

pub const FIN: u8 = 0x01;
pub const SYN: u8 = 0x02;
pub const RST: u8 = 0x04;
pub const ACK: u8 = 0x10;

/// Payload type of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Tcp {
        flags: u8,
        seq: u32,
        ack: u32,
    },
    Udp,
    /// UDP over IPv4 without a checksum (RFC 768).
    UdpNoChecksum,
    /// An echo request; the source's "port" is the identifier.
    Echo,
    /// An echo reply; the destination's "port" is the identifier.
    EchoReply,
    /// Any other ICMP type.
    Icmp(u8),
    /// UDP-Lite with a checksum over everything (RFC 3828).
    UdpLite,
    /// Another protocol with `data` as its payload; SCTP is preceded by its ports.
    Other(u8),
}

/// A packet to build. Two packets that differ only in one endpoint have the same bytes except for
/// that endpoint and the checksums that cover it: the expected result of a translation.
#[derive(Clone, Debug)]
pub struct Build {
    pub src: SocketAddr,
    pub dst: SocketAddr,
    pub kind: Kind,
    /// Remaining hops: TTL or hop limit.
    pub hops: u8,
    /// IPv4 options, a multiple of four bytes.
    pub options: Vec<u8>,
    /// IPv4 flags and fragment offset; for IPv6, a fragment header with the same meaning. With an
    /// offset other than 0, `data` is the whole IP payload.
    pub fragment: u16,
    /// IPv4 and IPv6 fragment identification; IPv4 uses the lower 16 bits.
    pub ip_id: u32,
    /// IPv6 extension headers that precede the fragment header, 8 bytes each.
    pub extensions: Vec<u8>,
    pub data: Vec<u8>,
    /// XORed into the L4 checksum to corrupt it.
    pub csum_error: u16,
}

fn endpoint(text: &str) -> SocketAddr {
    text.parse()
        .unwrap_or_else(|_| panic!("{text}: not ADDRESS:PORT"))
}

impl Build {
    pub fn new(src: &str, dst: &str, kind: Kind) -> Self {
        Self {
            src: endpoint(src),
            dst: endpoint(dst),
            kind,
            hops: 63,
            options: Vec::new(),
            fragment: 0,
            ip_id: 0x5678_1234,
            extensions: Vec::new(),
            data: b"netdp test payload.".to_vec(),
            csum_error: 0,
        }
    }

    pub fn tcp(src: &str, dst: &str, flags: u8) -> Self {
        let kind = Kind::Tcp {
            flags,
            seq: 1_000,
            ack: if flags & ACK == 0 { 0 } else { 2_000 },
        };
        Self::new(src, dst, kind)
    }

    pub fn udp(src: &str, dst: &str) -> Self {
        Self::new(src, dst, Kind::Udp)
    }

    /// Builds an echo request: `src` as ADDRESS:IDENTIFIER, `dst` with port 0.
    pub fn echo(src: &str, dst: &str) -> Self {
        Self::new(src, dst, Kind::Echo)
    }

    /// Builds an ICMP error that quotes the first `len` bytes of `about`, or all of it if it is
    /// shorter.
    pub fn error(src: &str, dst: &str, message: u8, about: &Self, len: usize) -> Self {
        let mut error = Self::new(src, dst, Kind::Icmp(message));
        error.data = about.bytes();
        error.data.truncate(len);
        error
    }

    /// Returns the first fragment of the packet.
    pub fn first(&self) -> Self {
        self.part(0x2000)
    }

    /// Returns the last fragment of the packet.
    pub fn last(&self) -> Self {
        self.part(0x0010)
    }

    fn part(&self, fragment: u16) -> Self {
        let mut part = self.clone();
        part.fragment = fragment;
        part
    }

    /// Returns the packet with this fragment identification.
    pub fn with_ip_id(&self, ip_id: u32) -> Self {
        let mut other = self.clone();
        other.ip_id = ip_id;
        other
    }

    /// Returns the packet with `src` as its source.
    pub fn from(&self, src: &str) -> Self {
        let mut other = self.clone();
        other.src = endpoint(src);
        other
    }

    /// Returns the packet with `dst` as its destination.
    pub fn to(&self, dst: &str) -> Self {
        let mut other = self.clone();
        other.dst = endpoint(dst);
        other
    }

    /// Returns the peer's answer: SYN-ACK to a SYN, otherwise a packet of the same kind.
    pub fn answer(&self) -> Self {
        let mut other = self.clone();
        (other.src, other.dst) = (self.dst, self.src);
        other.kind = match self.kind {
            Kind::Tcp { flags, seq, ack } => Kind::Tcp {
                flags: flags & SYN | ACK,
                seq: ack,
                ack: seq + 1,
            },
            Kind::Echo => Kind::EchoReply,
            Kind::EchoReply => Kind::Echo,
            same => same,
        };
        other
    }

    pub fn ethertype(&self) -> u16 {
        if self.src.is_ipv4() { 0x0800 } else { 0x86dd }
    }

    fn protocol(&self) -> u8 {
        match self.kind {
            Kind::Tcp { .. } => 6,
            Kind::Udp | Kind::UdpNoChecksum => 17,
            Kind::UdpLite => 136,
            Kind::Other(number) => number,
            Kind::Echo | Kind::EchoReply | Kind::Icmp(_) if self.src.is_ipv4() => 1,
            Kind::Echo | Kind::EchoReply | Kind::Icmp(_) => 58,
        }
    }

    /// Returns the bytes of the packet from the IP header on.
    pub fn bytes(&self) -> Vec<u8> {
        let l4 = self.l4();
        let mut out = Vec::new();
        match (self.src.ip(), self.dst.ip()) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                let header = 20 + self.options.len();
                out.push(0x40 | u8::try_from(header / 4).unwrap());
                out.push(0x28);
                let total = u16::try_from(header + l4.len()).unwrap();
                out.extend(total.to_be_bytes());
                out.extend(&self.ip_id.to_be_bytes()[2..]);
                out.extend(self.fragment.to_be_bytes());
                out.extend([self.hops, self.protocol(), 0, 0]);
                out.extend(src.octets());
                out.extend(dst.octets());
                out.extend(&self.options);
                let sum = internet(&out);
                out[10..12].copy_from_slice(&sum.to_be_bytes());
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                out.extend([0x62, 0x8a, 0xbc, 0xde]);
                let (first, extensions) = self.v6_extensions();
                let len = u16::try_from(extensions.len() + l4.len()).unwrap();
                out.extend(len.to_be_bytes());
                out.extend([first, self.hops]);
                out.extend(src.octets());
                out.extend(dst.octets());
                out.extend(extensions);
            }
            _ => panic!("{} and {}: two families", self.src, self.dst),
        }
        out.extend(l4);
        out
    }

    /// Returns the protocol number of the first extension header and the headers (RFC 8200 4).
    fn v6_extensions(&self) -> (u8, Vec<u8>) {
        const FRAGMENT: u8 = 44;
        let mut kinds = self.extensions.clone();
        if self.fragment & 0x3fff != 0 {
            kinds.push(FRAGMENT);
        }
        kinds.push(self.protocol());
        let mut out = Vec::new();
        for pair in kinds.windows(2) {
            if pair[0] == FRAGMENT {
                let offset = (self.fragment & 0x1fff) << 3 | self.fragment >> 13 & 1;
                out.extend([pair[1], 0]);
                out.extend(offset.to_be_bytes());
                out.extend(self.ip_id.to_be_bytes());
            } else {
                // Padding (RFC 8200 4.2).
                out.extend([pair[1], 0, 1, 4, 0, 0, 0, 0]);
            }
        }
        (kinds[0], out)
    }

    /// Returns the L4 header and its payload, with the checksum filled in.
    fn l4(&self) -> Vec<u8> {
        if self.fragment & 0x1fff != 0 {
            return self.data.clone();
        }
        let mut out = Vec::new();
        let csum_at = match self.kind {
            Kind::Tcp { flags, seq, ack } => {
                out.extend(self.src.port().to_be_bytes());
                out.extend(self.dst.port().to_be_bytes());
                out.extend(seq.to_be_bytes());
                out.extend(ack.to_be_bytes());
                out.extend([0x50, flags, 0x20, 0, 0, 0, 0, 0]);
                Some(16)
            }
            Kind::Udp | Kind::UdpNoChecksum | Kind::UdpLite => {
                out.extend(self.src.port().to_be_bytes());
                out.extend(self.dst.port().to_be_bytes());
                let len = u16::try_from(8 + self.data.len()).unwrap();
                out.extend(len.to_be_bytes());
                out.extend([0, 0]);
                (self.kind != Kind::UdpNoChecksum).then_some(6)
            }
            Kind::Echo | Kind::EchoReply | Kind::Icmp(_) => {
                let (v4, v6, id) = match self.kind {
                    Kind::Echo => (8, 128, self.src.port()),
                    Kind::EchoReply => (0, 129, self.dst.port()),
                    Kind::Icmp(other) => (other, other, 0),
                    _ => unreachable!(),
                };
                out.extend([if self.src.is_ipv4() { v4 } else { v6 }, 0, 0, 0]);
                out.extend(id.to_be_bytes());
                out.extend([0, 7]);
                Some(2)
            }
            Kind::Other(132) => {
                out.extend(self.src.port().to_be_bytes());
                out.extend(self.dst.port().to_be_bytes());
                out.extend([0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88]);
                None
            }
            Kind::Other(_) => None,
        };
        out.extend(&self.data);
        if let Some(at) = csum_at {
            let covered = [self.pseudo_header(out.len()), out.clone()].concat();
            let mut sum = internet(&covered);
            if sum == 0 && self.kind == Kind::Udp {
                sum = 0xffff;
            }
            sum ^= self.csum_error;
            out[at..at + 2].copy_from_slice(&sum.to_be_bytes());
        }
        out
    }

    /// Returns the pseudo-header (RFC 9293 3.1, RFC 8200 8.1); ICMP for IPv4 has none.
    fn pseudo_header(&self, len: usize) -> Vec<u8> {
        let mut out = Vec::new();
        match (self.src.ip(), self.dst.ip()) {
            (IpAddr::V4(_), _) if self.protocol() == 1 => return out,
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                out.extend(src.octets());
                out.extend(dst.octets());
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                out.extend(src.octets());
                out.extend(dst.octets());
            }
            _ => unreachable!(),
        }
        out.extend([0, self.protocol()]);
        out.extend(u16::try_from(len).unwrap().to_be_bytes());
        out
    }
}

/// Returns the Internet checksum, computed by its definition (RFC 1071).
pub fn internet(data: &[u8]) -> u16 {
    let mut sum = 0u64;
    for pair in data.chunks(2) {
        sum += u64::from(pair[0]) << 8 | u64::from(*pair.get(1).unwrap_or(&0));
    }
    while sum >> 16 != 0 {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap()
}
