//! The result of parsing: a packet, as far as decisions depend on it.

use crate::layout::{Addr, DropReason, Endpoint, Family, Tuple};

/// TCP header flag FIN (RFC 9293 3.1).
pub const FIN: u8 = 0x01;

/// TCP header flag SYN (RFC 9293 3.1).
pub const SYN: u8 = 0x02;

/// TCP header flag RST (RFC 9293 3.1).
pub const RST: u8 = 0x04;

/// TCP header flag ACK (RFC 9293 3.1).
pub const ACK: u8 = 0x10;

/// [`TcpSegment::payload`] where the IP header does not give the length: for a fragment, or a GSO
/// packet over 64 KiB.
pub const UNKNOWN_LENGTH: u16 = u16::MAX;

/// The TCP header fields on which decisions depend.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct TcpSegment {
    /// The flags octet (RFC 9293 3.1).
    pub flags: u8,
    /// 1 if this is a RST whose checksum is wrong, or that is too long to be verified. 0 for all
    /// other segments, which are not verified.
    pub bad_checksum: u8,
    /// Bytes of payload if this is a FIN, or [`UNKNOWN_LENGTH`]. 0 for all other segments, whose
    /// length is not needed.
    pub payload: u16,
    /// Sequence number, host byte order.
    pub seq: u32,
    /// Acknowledgement number, host byte order.
    pub ack: u32,
}

/// The L4 content of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum L4 {
    /// TCP, with the fields of the segment.
    Tcp(TcpSegment),
    /// UDP, UDP-Lite or DCCP: ports, and a checksum over a pseudo-header.
    Udp,
    /// An ICMP query, such as an echo request.
    Query,
    /// The reply to an ICMP query, such as an echo reply.
    QueryReply,
    /// An ICMP error. It carries the packet that caused it.
    Error,
    /// A neighbour discovery message that no router has forwarded (RFC 4861 7.1: a hop limit of
    /// 255). It is link-local and never translated.
    Discovery,
    /// A protocol of which only the addresses are translated. The ids are 0, or SCTP's ports, which
    /// must not change: its CRC covers them.
    AddressOnly,
    /// A fragment without an L4 header. The ids are 0.
    LaterFragment,
    /// A packet that cannot be translated, with the reason.
    Untranslatable(DropReason),
}

impl L4 {
    /// Reports whether it is a bare SYN: it opens a TCP connection and does nothing else.
    #[inline(always)]
    #[must_use]
    pub const fn is_bare_syn(&self) -> bool {
        match self {
            Self::Tcp(segment) => segment.flags & (SYN | ACK | RST | FIN) == SYN,
            _ => false,
        }
    }
}

/// [`Packet::new_ip_id`]: the identification is not rewritten.
pub const KEEP_IP_ID: u32 = u32::MAX;

/// A parsed packet, and the values to write into it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Packet {
    /// The tuple on the wire. The ids are 0 where the packet has none.
    pub tuple: Tuple,
    /// The address family of both addresses.
    pub family: Family,
    /// The L4 content.
    pub l4: L4,
    /// Offset of the IP header from the start of the packet.
    pub l3_offset: u32,
    /// Offset of the L4 header from the start of the packet.
    pub l4_offset: u32,
    /// 1 if the packet is a fragment, including the first one.
    pub is_fragment: u32,
    /// The identification field that all fragments of one datagram share.
    pub fragment_id: u32,
    /// The new endpoint, written if the verdict is to rewrite: the source on egress, the
    /// destination on ingress.
    pub new: Endpoint,
    /// The IPv4 identification to write, or [`KEEP_IP_ID`].
    pub new_ip_id: u32,
}

impl Packet {
    /// The initial value, before parsing.
    pub const EMPTY: Self = Self {
        tuple: Tuple::new(Addr::from_v6([0; 16]), Addr::from_v6([0; 16]), 0, 0, 0),
        family: Family::V4,
        l4: L4::Udp,
        l3_offset: 0,
        l4_offset: 0,
        is_fragment: 0,
        fragment_id: 0,
        new: Endpoint {
            addr: Addr::from_v6([0; 16]),
            id: 0,
        },
        new_ip_id: KEEP_IP_ID,
    };
}

/// The result of parsing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Parsed {
    /// IP; the [`Packet`] is complete.
    Ip,
    /// Not IP, for example ARP.
    NotIp,
    /// IP, but not even its addresses can be read.
    Malformed,
}
