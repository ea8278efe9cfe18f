//! The headers of a dropped packet, read as the programs read them.

use super::{Dropped, end};
use netdp_common::packet::{self, ACK, ETH_P_IP, ETH_P_IPV6, FIN, L4, Packet, Parsed, RST, SYN};
use std::net::SocketAddr;

/// EtherTypes of VLAN tags: 802.1Q and 802.1ad.
const TAGS: [u16; 2] = [0x8100, 0x88a8];

/// The addresses and the kind of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Headers {
    /// The number of the IP protocol.
    pub protocol: u32,
    /// The source; the id is 0 where the packet has none.
    pub source: SocketAddr,
    /// The destination.
    pub destination: SocketAddr,
    /// The sort, apart from the protocol.
    pub sort: Sort,
}

/// The sort of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Sort {
    /// A TCP segment with these flags.
    Tcp(u8),
    /// A part of a datagram that has no L4 header.
    Fragment,
    /// An ICMP error.
    Error,
    /// Anything else.
    Other,
}

impl Headers {
    /// Reads the headers; `None` if not even the addresses can be read.
    pub(crate) fn of(dropped: &Dropped) -> Option<Self> {
        let bytes = dropped.packet.as_slice();
        let mut l3_offset = usize::try_from(dropped.l2_len).ok()?;
        let mut ethertype = match (l3_offset, bytes.first()? >> 4) {
            (0, 6) => ETH_P_IPV6,
            (0, _) => ETH_P_IP,
            _ => field(bytes, l3_offset.checked_sub(2)?)?,
        };
        for _ in 0..2 {
            if TAGS.contains(&ethertype) {
                ethertype = field(bytes, l3_offset + 2)?;
                l3_offset += 4;
            }
        }
        let mut pkt = Packet::EMPTY;
        let offset = u32::try_from(l3_offset).ok()?;
        match packet::parse(bytes, ethertype, offset, &mut pkt) {
            Parsed::Ip => {}
            Parsed::NotIp | Parsed::Malformed => return None,
        }
        let tuple = &pkt.tuple;
        Some(Self {
            protocol: tuple.proto,
            source: end(tuple.src, tuple.src_id),
            destination: end(tuple.dst, tuple.dst_id),
            sort: match pkt.l4 {
                L4::Tcp(segment) => Sort::Tcp(segment.flags & (FIN | SYN | RST | ACK)),
                L4::LaterFragment => Sort::Fragment,
                L4::Error => Sort::Error,
                _ => Sort::Other,
            },
        })
    }
}

impl Sort {
    /// Returns it in words; empty if there is nothing to say.
    pub(crate) fn words(self) -> String {
        match self {
            Self::Tcp(flags) => {
                let names = [(SYN, "SYN"), (FIN, "FIN"), (RST, "RST"), (ACK, "ACK")];
                let set = names.iter().filter(|(flag, _)| flags & flag != 0);
                set.map(|(_, name)| *name).collect::<Vec<_>>().join("-")
            }
            Self::Fragment => "fragment".into(),
            Self::Error => "error".into(),
            Self::Other => String::new(),
        }
    }
}

/// Returns 16 bits in network byte order.
fn field(bytes: &[u8], at: usize) -> Option<u16> {
    let field = bytes.get(at..at + 2)?;
    Some(u16::from_be_bytes(field.try_into().ok()?))
}

/// The common properties of events that are shown as one, and have one number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Alike {
    reason: u32,
    ifindex: u32,
    arriving: bool,
    /// Without L4 ids, which differ from connection to connection; a refusal's destination has its
    /// port, on which it depends. `None` if the headers can't be read.
    of: Option<(u32, SocketAddr, SocketAddr, Sort)>,
}

impl Alike {
    /// Returns what a packet has in common with its like.
    pub(crate) fn of(dropped: &Dropped, headers: Option<&Headers>, is_refusal: bool) -> Self {
        let without = |end: SocketAddr| SocketAddr::new(end.ip(), 0);
        Self {
            reason: dropped.reason,
            ifindex: dropped.ifindex,
            arriving: dropped.arriving,
            of: headers.map(|it| {
                let to = match is_refusal {
                    true => it.destination,
                    false => without(it.destination),
                };
                (it.protocol, without(it.source), to, it.sort)
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the dropped TCP segment from 172.16.0.7:4000 to 10.2.0.9:443, after `link`.
    fn dropped(link: &[u8], flags: u8, port: u16) -> Dropped {
        let mut packet = link.to_vec();
        let ip = [
            0x45, 0, 0, 40, 0, 1, 0x40, 0, 64, 6, 0, 0, 172, 16, 0, 7, 10, 2, 0, 9,
        ];
        packet.extend(ip);
        packet.extend(port.to_be_bytes());
        packet.extend([
            1, 0xbb, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, flags, 1, 0, 0, 0, 0, 0,
        ]);
        Dropped {
            reason: 5,
            ifindex: 3,
            arriving: false,
            length: 54,
            l2_len: if link.is_empty() { 0 } else { 14 },
            packet,
            id: None,
        }
    }

    #[test]
    fn headers_are_read_with_and_without_a_link_header_and_tags() {
        let mut link = vec![0; 12];
        link.extend([8, 0]);
        let mut tagged = vec![0; 12];
        tagged.extend([0x81, 0, 0, 5, 8, 0]);
        for link in [&link[..], &tagged, &[]] {
            let headers = Headers::of(&dropped(link, RST | ACK, 4000)).unwrap();
            assert_eq!(headers.source.to_string(), "172.16.0.7:4000");
            assert_eq!(headers.destination.to_string(), "10.2.0.9:443");
            assert_eq!(
                (headers.protocol, headers.sort.words().as_str()),
                (6, "RST-ACK")
            );
        }
        let mut short = dropped(&link, RST, 4000);
        short.packet.truncate(20);
        assert_eq!(Headers::of(&short), None);
        short.packet.clear();
        assert_eq!(Headers::of(&short), None);
    }

    #[test]
    fn segments_of_the_same_flags_between_two_addresses_are_alike() {
        let alike = |flags, port, is_refusal| {
            let dropped = dropped(&[], flags, port);
            Alike::of(&dropped, Headers::of(&dropped).as_ref(), is_refusal)
        };
        assert_eq!(alike(RST, 4000, false), alike(RST, 4001, false));
        assert_ne!(alike(RST, 4000, false), alike(ACK, 4000, false));
        assert_ne!(alike(RST, 4000, false), alike(RST, 4000, true));
        assert_eq!(alike(SYN, 4000, true), alike(SYN, 4001, true));
    }
}
