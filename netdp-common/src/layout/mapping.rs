//! The two halves of mappings, and the ring of the most recent ones.

use super::addr::Addr;
use super::traffic::{Half, Traffic, packed_packets, unpacked};
use crate::flow::SEEN_CARRIED_OVER;

/// [`Mapping::flags`]: the wire tuple belongs to the node itself. The entry is a reservation
/// against pods; packets pass unmodified.
pub const MAPPING_HOST: u16 = 1;

/// [`Mapping::flags`]: the mapping began with a mid-stream TCP segment.
pub const MAPPING_PICKUP: u16 = 2;

/// [`Mapping::flags`] of a reply half: netfilter may already translate the flow. Packets that leave
/// with its wire tuple and the node's source pass unmodified.
pub const MAPPING_HANDOVER_PENDING: u16 = 4;

/// [`Mapping::flags`] of a reply half: netfilter translates the flow. Packets that arrive for it
/// pass unmodified.
pub const MAPPING_HANDED_OVER: u16 = 8;

/// [`Mapping::flags`] of a reply half: [`Mapping::traffic`] has bytes and packets. A half of layout 1
/// counts packets only, until its first packet under layout 2.
pub const MAPPING_COUNTED_REPLY: u16 = 0x10;

/// [`Mapping::flags`] of an original half: what [`MAPPING_COUNTED_REPLY`] is for a reply half.
pub const MAPPING_COUNTED_ORIGINAL: u16 = 8;

/// [`Mapping::flags`] of an original half: the lower bits of the index of the interface by which
/// the pod's last packet came, see [`origin_tag`].
pub const MAPPING_ORIGIN: u16 = 0x7ff0;

/// [`Mapping::flags`] of an original half: counted against that interface, not the pod
/// ([`crate::slot::share`]).
pub const MAPPING_BY_INTERFACE: u16 = 0x8000;

/// Returns the bits of [`MAPPING_ORIGIN`] for an interface index; 0 for packets of the node itself.
#[inline(always)]
#[must_use]
#[expect(clippy::cast_possible_truncation, reason = "masked")]
pub const fn origin_tag(ifindex: u32) -> u16 {
    (ifindex << 4) as u16 & MAPPING_ORIGIN
}

/// One half of a mapping. The SNAT map holds the original direction (key: the original tuple;
/// value: the external endpoint), the RevSNAT map the reply direction (key: the wire tuple; value:
/// the pod's endpoint). Each half records only the packets of its own direction, so that a packet
/// writes to one entry only.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// Address that replaces the packet's source (SNAT) or destination (RevSNAT).
    pub addr: Addr,
    /// Port or ICMP identifier that goes with it, host byte order.
    pub id: u16,
    /// `MAPPING_*` bits. Bits 8 to 15 of a reply half are reserved for the class of the flow; zero
    /// until then.
    pub flags: u16,
    /// Last packet of this direction, in ticks (see [`crate::flow`]).
    pub last_seen: u32,
    /// The time at which the mapping was created, in ticks.
    pub created: u32,
    /// Last TCP acknowledgement number of this direction; in the original half, before there was
    /// one, the number that acknowledges its SYN.
    pub tcp_ack: u32,
    /// TCP flags seen in this direction: `SEEN_*` bits.
    pub tcp_seen: u8,
    /// In an original half: the lower bits of the epoch ([`super::Settings::epoch`]) in which its
    /// address was last found to be right for where the packets leave. In a reply half: the upper
    /// bits of [`crate::flow::Closing`]. While that has not begun, its 24 bits are reserved for a
    /// lease: a bit for "granted" and 11 bits of the tick. A lease exists before any FIN only.
    pub epoch: u8,
    /// In an original half: the lower bits of the index of the interface by which its packets
    /// leave; 0 if unknown. In a reply half: the lower bits of [`crate::flow::Closing`].
    pub uplink: u16,
    /// Packets of this direction (bits 0 to 9) and their bytes (bits 10 to 31) since they were last
    /// carried over into the `traffic` map, see [`super::TRAFFIC_FULL`]. In a half that does not
    /// have [`Half::counted`](super::Half::counted): packets only (wrapping), as in layout 1.
    pub traffic: u32,
}

// The reserved bits of a reply half.
const _: () = assert!(
    (MAPPING_HOST
        | MAPPING_PICKUP
        | MAPPING_HANDOVER_PENDING
        | MAPPING_HANDED_OVER
        | MAPPING_COUNTED_REPLY)
        & 0xff00
        == 0
);
// Those of an original half do not overlap.
const _: () = assert!(
    MAPPING_COUNTED_ORIGINAL & (MAPPING_PICKUP | MAPPING_ORIGIN | MAPPING_BY_INTERFACE) == 0
);
const _: () = assert!(size_of::<Mapping>() == 40);

impl Mapping {
    /// Reports whether part of this half's traffic was carried over into the `traffic` map.
    #[must_use]
    pub const fn is_carried_over(&self) -> bool {
        self.seen() & SEEN_CARRIED_OVER != 0
    }

    /// Returns the `SEEN_*` bits of this direction.
    #[inline(always)]
    #[must_use]
    pub const fn seen(&self) -> u32 {
        self.tcp_seen as u32
    }

    /// Returns the traffic in this half, without what was carried over. The bytes are those of
    /// packets under layout 2.
    #[must_use]
    pub const fn uncarried(&self, half: Half) -> Traffic {
        if self.flags & half.counted() == 0 {
            Traffic {
                packets: self.traffic as u64,
                bytes: 0,
            }
        } else {
            unpacked(self.traffic)
        }
    }

    /// Returns the number of packets of this direction; `u32::MAX` once traffic was carried over,
    /// because decisions distinguish small numbers only.
    #[must_use]
    pub const fn packets(&self, half: Half) -> u32 {
        packets(self.traffic, self.flags, self.seen(), half)
    }

    /// Builds a half of a mapping that begins now, and that counts bytes if `flags` says so.
    #[inline(always)]
    #[must_use]
    pub const fn new(addr: &Addr, id: u16, flags: u16, now: u32) -> Self {
        Self {
            addr: *addr,
            id,
            flags,
            last_seen: now,
            created: now,
            tcp_ack: 0,
            tcp_seen: 0,
            epoch: 0,
            uplink: 0,
            traffic: 0,
        }
    }
}

/// Returns what [`Mapping::packets`] does, from the fields.
#[inline(always)]
#[must_use]
pub(crate) const fn packets(traffic: u32, flags: u16, seen: u32, half: Half) -> u32 {
    if seen & SEEN_CARRIED_OVER != 0 {
        u32::MAX
    } else if flags & half.counted() == 0 {
        traffic
    } else {
        packed_packets(traffic)
    }
}

/// The single entry of `recent_at`: the number of mappings ever put into the ring, and taken out
/// (wrapping).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RecentAt {
    /// Number put in (wrapping).
    pub put: u32,
    /// Number taken out (wrapping).
    pub taken: u32,
}

/// Entries of the ring of the most recent mappings: a power of two.
pub const RECENT: u32 = 65_536;
