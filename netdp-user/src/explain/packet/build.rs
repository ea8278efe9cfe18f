//! Packets built from a tuple.

use super::PacketBytes;
use anyhow::{Result, bail};
use netdp_common::layout::{Addr, Family, proto};
use netdp_common::packet::{ACK, SYN, checksum};
use std::net::IpAddr;

/// Remaining hops: as a pod's packet has after the node has forwarded it.
const HOPS: u8 = 63;

/// The kind of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A TCP segment, with the flags of its header and its numbers.
    Tcp {
        /// The flags octet (RFC 9293 3.1).
        flags: u8,
        /// Sequence number.
        seq: u32,
        /// Acknowledgement number.
        ack: u32,
    },
    /// A UDP datagram.
    Udp,
    /// An echo request, whose identifier is the source's id.
    Echo,
    /// An echo reply, whose identifier is the destination's id.
    EchoReply,
    /// A packet of another protocol, without ports; SCTP's are the ids.
    Other(u8),
}

impl Kind {
    /// Returns the kind of the first packet of a flow of this IP protocol.
    #[must_use]
    pub fn first_of(protocol: u8) -> Self {
        match u32::from(protocol) {
            proto::TCP => Self::Tcp {
                flags: SYN,
                seq: 1,
                ack: 0,
            },
            proto::UDP => Self::Udp,
            proto::ICMP | proto::ICMPV6 => Self::Echo,
            _ => Self::Other(protocol),
        }
    }
}

/// A packet to build: without payload, TTL 63, all checksums right.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Description {
    /// Source address.
    pub src: IpAddr,
    /// Source port, or the identifier of an echo request.
    pub src_id: u16,
    /// Destination address, of the same family.
    pub dst: IpAddr,
    /// Destination port, or the identifier of an echo reply.
    pub dst_id: u16,
    /// The content.
    pub kind: Kind,
}

impl Description {
    /// Returns the bytes of the packet, from the IP header on.
    ///
    /// # Errors
    /// Returns an error if the addresses are of two families.
    pub fn build(&self) -> Result<PacketBytes> {
        if self.src.is_ipv4() != self.dst.is_ipv4() {
            bail!("{} and {} are of two families", self.src, self.dst);
        }
        let l4 = self.l4()?;
        let mut bytes = Vec::new();
        match (self.src, self.dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                const HEADER: usize = 20;
                bytes.extend([0x45, 0]);
                bytes.extend(u16::try_from(HEADER + l4.len())?.to_be_bytes());
                // Not to be fragmented.
                bytes.extend([0, 1, 0x40, 0, HOPS, self.protocol(), 0, 0]);
                bytes.extend(src.octets());
                bytes.extend(dst.octets());
                let sum = !checksum::fold(sum_of(&bytes));
                bytes[10..12].copy_from_slice(&sum.to_ne_bytes());
            }
            _ => {
                bytes.extend([0x60, 0, 0, 0]);
                bytes.extend(u16::try_from(l4.len())?.to_be_bytes());
                bytes.extend([self.protocol(), HOPS]);
                bytes.extend(Addr::from(self.src).octets());
                bytes.extend(Addr::from(self.dst).octets());
            }
        }
        bytes.extend(l4);
        Ok(PacketBytes::ip_only(bytes))
    }

    const fn protocol(&self) -> u8 {
        match self.kind {
            Kind::Tcp { .. } => 6,
            Kind::Udp => 17,
            Kind::Echo | Kind::EchoReply if self.src.is_ipv4() => 1,
            Kind::Echo | Kind::EchoReply => 58,
            Kind::Other(protocol) => protocol,
        }
    }

    /// Returns the L4 header, with its checksum.
    fn l4(&self) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let ports = [self.src_id.to_be_bytes(), self.dst_id.to_be_bytes()].concat();
        let sum_at = match self.kind {
            Kind::Tcp { flags, seq, ack } => {
                bytes.extend(ports);
                bytes.extend(seq.to_be_bytes());
                bytes.extend(if flags & ACK == 0 { 0 } else { ack }.to_be_bytes());
                bytes.extend([0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
                16
            }
            Kind::Udp => {
                bytes.extend(ports);
                bytes.extend([0, 8, 0, 0]);
                6
            }
            Kind::Echo | Kind::EchoReply => {
                let (kind, id) = match (self.kind, self.src) {
                    (Kind::Echo, IpAddr::V4(_)) => (8, self.src_id),
                    (Kind::Echo, IpAddr::V6(_)) => (128, self.src_id),
                    (_, IpAddr::V4(_)) => (0, self.dst_id),
                    (_, IpAddr::V6(_)) => (129, self.dst_id),
                };
                bytes.extend([kind, 0, 0, 0]);
                bytes.extend(id.to_be_bytes());
                bytes.extend([0, 1]);
                2
            }
            Kind::Other(protocol) => {
                // Ports where the protocol has them (SCTP, UDP-Lite, DCCP), and the least header
                // after them.
                bytes.extend(ports);
                bytes.extend([0; 12]);
                if u32::from(protocol) != proto::UDP_LITE && u32::from(protocol) != proto::DCCP {
                    return Ok(bytes);
                }
                6
            }
        };
        let mut sum = sum_of(&bytes);
        if self.protocol() != 1 {
            let family = Family::of(self.src);
            let (src, dst) = (Addr::from(self.src), Addr::from(self.dst));
            let len = u16::try_from(bytes.len())?;
            sum += checksum::pseudo_sum(&src, &dst, family, self.protocol(), len);
        }
        let sum = match !checksum::fold(sum) {
            0 => u16::MAX,
            sum => sum,
        };
        bytes[sum_at..sum_at + 2].copy_from_slice(&sum.to_ne_bytes());
        Ok(bytes)
    }
}

/// Returns the ones' complement sum of the bytes, as words in memory order (RFC 1071).
pub(in crate::explain) fn sum_of(bytes: &[u8]) -> checksum::Sum {
    let words = bytes.chunks(2).map(|pair| {
        let second = pair.get(1).copied().unwrap_or(0);
        checksum::Sum::from(u16::from_ne_bytes([pair[0], second]))
    });
    words.sum()
}

#[cfg(test)]
mod tests {
    use super::{Description, Kind};
    use netdp_common::packet::{L4, Packet, Parsed, parse};
    use testkit::build::{self, Build};

    fn end(text: &str) -> (std::net::IpAddr, u16) {
        let end: std::net::SocketAddr = text.parse().unwrap();
        (end.ip(), end.port())
    }

    fn describe(src: &str, dst: &str, kind: Kind) -> Description {
        let ((src, src_id), (dst, dst_id)) = (end(src), end(dst));
        Description {
            src,
            src_id,
            dst,
            dst_id,
            kind,
        }
    }

    #[test]
    fn what_is_built_is_what_was_described() {
        let v4 = ("172.16.0.2:44216", "10.2.0.17:443");
        let v6 = ("[fd00:1::2]:44216", "[2001:db8::7]:443");
        for (src, dst) in [v4, v6] {
            for protocol in [1, 6, 17, 47, 58, 132, 136] {
                let kind = Kind::first_of(protocol);
                let description = describe(src, dst, kind);
                let packet = description.build().unwrap();
                let mut parsed = Packet::EMPTY;
                let ip = parse(packet.ip(), packet.ethertype(), 0, &mut parsed);
                assert_eq!(ip, Parsed::Ip, "{description:?}");
                assert_eq!(parsed.tuple.src, description.src.into());
                assert_eq!(parsed.tuple.dst, description.dst.into());
                assert!(!matches!(parsed.l4, L4::Untranslatable(_)), "{parsed:?}");
                match kind {
                    Kind::Tcp { .. } | Kind::Udp => {
                        assert_eq!((parsed.tuple.src_id, parsed.tuple.dst_id), (44_216, 443));
                    }
                    Kind::Echo => assert_eq!(parsed.tuple.src_id, 44_216),
                    _ => {}
                }
            }
        }
    }

    #[test]
    fn checksums_are_right() {
        for (src, dst) in [
            ("172.16.0.2:44216", "10.2.0.17:443"),
            ("[fd00:1::2]:44216", "[2001:db8::7]:443"),
        ] {
            let mut wanted = Build::udp(src, dst);
            wanted.data.clear();
            let packet = describe(src, dst, Kind::Udp).build().unwrap();
            let header = if src.starts_with('[') { 40 } else { 20 };
            assert_eq!(packet.ip()[header..], wanted.bytes()[header..], "{src}");
        }
        let packet = describe("10.0.0.1:7", "10.0.0.2:9", Kind::Udp)
            .build()
            .unwrap();
        assert_eq!(build::internet(&packet.ip()[..20]), 0);
    }

    #[test]
    fn two_families_are_refused() {
        let mixed = describe("10.0.0.1:7", "[::1]:9", Kind::Udp);
        let told = mixed.build().unwrap_err().to_string();
        assert_eq!(told, "10.0.0.1 and ::1 are of two families");
    }
}
