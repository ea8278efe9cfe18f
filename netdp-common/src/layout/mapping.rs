//! The two halves of mappings, and the ring of the most recent ones.

use super::addr::Addr;

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
    /// `MAPPING_*` bits.
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
    /// bits of [`crate::flow::Closing`].
    pub epoch: u8,
    /// In an original half: the lower bits of the index of the interface by which its packets
    /// leave; 0 if unknown. In a reply half: the lower bits of [`crate::flow::Closing`].
    pub uplink: u16,
    /// Packets in this direction (wrapping).
    pub packets: u32,
}

impl Mapping {
    /// Returns the `SEEN_*` bits of this direction.
    #[inline(always)]
    #[must_use]
    pub const fn seen(&self) -> u32 {
        self.tcp_seen as u32
    }

    /// Builds a half of a mapping that begins now.
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
            packets: 0,
        }
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
