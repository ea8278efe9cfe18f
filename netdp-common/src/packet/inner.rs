//! The packet inside an ICMP error.

use super::bytes::Bytes;
use super::parse::{HeaderEnd, parse_v4, parse_v6, set_icmp, set_ports};
use super::parsed::{L4, Packet};
use crate::layout::{Family, Tuple, proto};

/// The packet inside an ICMP error, as far as the error carries it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Inner {
    /// The tuple of the inner packet, as on the wire.
    pub tuple: Tuple,
    /// Offset of the inner IP header from the start of the outer packet.
    pub l3_offset: u32,
    /// Offset of the inner L4 header from the start of the outer packet.
    pub l4_offset: u32,
    /// Offset of the inner L4 checksum, or 0 if the error does not include it.
    pub checksum_offset: u32,
}

impl Inner {
    /// The initial value, before parsing.
    pub const EMPTY: Self = Self {
        tuple: Packet::EMPTY.tuple,
        l3_offset: 0,
        l4_offset: 0,
        checksum_offset: 0,
    };
}

/// Reads the packet inside the ICMP error `pkt`. RFC 5508 3.2 (REQ-3): eight
/// bytes of L4 suffice, and the IP header may have options.
#[inline(always)]
pub fn parse_inner<B: Bytes + ?Sized>(bytes: &B, pkt: &Packet, inner: &mut Inner) -> Option<()> {
    let at = pkt.l4_offset + 8;
    let mut scratch = Packet::EMPTY;
    let header = match pkt.family {
        Family::V4 => parse_v4(bytes, at as usize, &mut scratch)?,
        Family::V6 => parse_v6(bytes, at as usize, &mut scratch)?,
    };
    inner.tuple = scratch.tuple;
    inner.l3_offset = at;
    inner.l4_offset = at + header.len;
    inner.checksum_offset = 0;
    if !matches!(header.end, HeaderEnd::L4) {
        return None;
    }
    let l4 = inner.l4_offset;
    let [w0, w1] = bytes.words::<2>(l4 as usize)?.map(u32::from_be);
    match inner.tuple.proto {
        proto::TCP => {
            set_ports(&mut inner.tuple, w0);
            if bytes.words::<5>(l4 as usize).is_some() {
                inner.checksum_offset = l4 + 16;
            }
        }
        proto::UDP | proto::UDP_LITE | proto::DCCP => {
            set_ports(&mut inner.tuple, w0);
            inner.checksum_offset = l4 + 6;
        }
        proto::SCTP => set_ports(&mut inner.tuple, w0),
        proto::ICMP | proto::ICMPV6 => {
            if !matches!(
                set_icmp(&mut inner.tuple, w0 >> 24, w1 >> 16),
                L4::Query | L4::QueryReply
            ) {
                return None;
            }
            inner.checksum_offset = l4 + 2;
        }
        _ => {}
    }
    Some(())
}
