//! A mapping in place in a BPF map, shared with other CPUs.

use crate::flow::{Closing, SEEN_CARRIED_OVER, SEEN_DATA, SEEN_OWN, SEEN_RST, observe, refreshes};
use crate::layout::{
    self, Addr, Half, MAPPING_BY_INTERFACE, MAPPING_HANDED_OVER, MAPPING_HANDOVER_PENDING,
    MAPPING_HOST, MAPPING_ORIGIN, Mapping, TRAFFIC_FULL, proto,
};
use crate::packet::{ACK, L4, SYN};

/// The place where packets leave: the lower bits of the uplink's interface index, and of the epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Lower 16 bits of the interface index.
    pub uplink: u16,
    /// Lower 8 bits of the epoch.
    pub epoch: u8,
}

impl Place {
    /// Reports whether the recorded uplink is known and another than that of `now`.
    #[inline(always)]
    #[must_use]
    pub const fn is_elsewhere(self, now: Self) -> bool {
        self.uplink != 0 && self.uplink != now.uplink
    }
}

/// A [`Mapping`] in place. Fields are read and written one by one and never through references:
/// another CPU may change any of them at the same time. Each field is at most a word, and any mix
/// of old and new values is harmless, except for the address, which never changes while the entry
/// exists.
#[derive(Clone, Copy)]
pub struct Slot(*mut Mapping);

impl Slot {
    /// # Safety
    /// `mapping` must point to a `Mapping` that stays readable and writable for
    /// as long as the slot is used (a map value inside one program run).
    #[inline(always)]
    #[must_use]
    pub const unsafe fn new(mapping: *mut Mapping) -> Self {
        Self(mapping)
    }

    /// Returns the address to write into the packet.
    #[inline(always)]
    #[must_use]
    pub fn addr(self) -> Addr {
        // SAFETY: valid by the contract of `new`.
        unsafe { (*self.0).addr }
    }

    /// Returns the port or identifier to write into the packet, host byte order.
    #[inline(always)]
    #[must_use]
    pub fn id(self) -> u16 {
        // SAFETY: valid by the contract of `new`.
        unsafe { (*self.0).id }
    }

    /// Reports whether the tuple belongs to the node itself.
    #[inline(always)]
    #[must_use]
    pub fn is_host(self) -> bool {
        // SAFETY: valid by the contract of `new`.
        unsafe { (*self.0).flags & MAPPING_HOST != 0 }
    }

    /// Reports whether packets that arrive for the tuple are not translated by netdp: they belong
    /// to the node, or netfilter translates them.
    #[inline(always)]
    #[must_use]
    pub fn passes_ingress(self) -> bool {
        // SAFETY: valid by the contract of `new`.
        unsafe { (*self.0).flags & (MAPPING_HOST | MAPPING_HANDED_OVER) != 0 }
    }

    /// Reports whether packets that leave with the tuple and the node's source are legitimate: they
    /// belong to the node, or to a pod's flow that netfilter has translated.
    #[inline(always)]
    #[must_use]
    pub fn passes_egress(self) -> bool {
        // SAFETY: valid by the contract of `new`.
        unsafe { (*self.0).flags & (MAPPING_HOST | MAPPING_HANDOVER_PENDING) != 0 }
    }

    /// Returns all `MAPPING_*` bits.
    #[inline(always)]
    #[must_use]
    pub fn flags(self) -> u16 {
        // SAFETY: valid by the contract of `new`.
        unsafe { (*self.0).flags }
    }

    /// Records the interface by which the pod's packets come, in the form of
    /// [`crate::layout::origin_tag`].
    #[inline(always)]
    pub fn set_origin(self, tag: u16) {
        // SAFETY: valid by the contract of `new`; in an original half, nothing else writes the
        // flags.
        unsafe {
            let flags = (*self.0).flags;
            // The bucket of a mapping must not change.
            if flags & MAPPING_BY_INTERFACE == 0 {
                (*self.0).flags = flags & !MAPPING_ORIGIN | tag;
            }
        }
    }

    /// Returns the number of packets of this direction; `u32::MAX` once traffic was carried over,
    /// because decisions distinguish small numbers only.
    #[inline(always)]
    #[must_use]
    pub fn packets(self, half: Half) -> u32 {
        layout::packets(self.traffic(), self.flags(), self.tcp_seen(), half)
    }

    /// Returns the packets and bytes that were not carried over, packed.
    #[inline(always)]
    #[must_use]
    pub fn traffic(self) -> u32 {
        // SAFETY: valid by the contract of `new`.
        unsafe { (*self.0).traffic }
    }

    /// Replaces the packed traffic.
    #[inline(always)]
    pub fn set_traffic(self, packed: u32) {
        // SAFETY: valid by the contract of `new`.
        unsafe { (*self.0).traffic = packed }
    }

    /// Adds one packet, packed, to them; returns `false` if they must be carried over first. Updates
    /// that race may be lost, which is harmless.
    #[inline(always)]
    #[must_use]
    pub fn add_traffic(self, packed: u32) -> bool {
        let before = self.traffic();
        let fits = before & TRAFFIC_FULL == 0;
        if fits {
            self.set_traffic(before.wrapping_add(packed));
        }
        fits
    }

    /// Records that the half counts bytes from now on: [`Half::counted`].
    #[inline(always)]
    pub fn set_counted(self, counted: u16) {
        // SAFETY: valid by the contract of `new`. Should the agent mark a reply half at the same
        // moment, the bit is set by the next packet.
        unsafe { (*self.0).flags |= counted }
    }

    /// Reports whether traffic of this half was carried over.
    #[inline(always)]
    #[must_use]
    pub fn is_carried_over(self) -> bool {
        self.tcp_seen() & SEEN_CARRIED_OVER != 0
    }

    /// Marks the half as carried over.
    #[inline(always)]
    pub fn set_carried_over(self) {
        self.set_tcp_seen(self.tcp_seen() | SEEN_CARRIED_OVER);
    }

    /// Reports whether this half, a reply half, has sent anything; on a reopened connection, since
    /// then. Segments that may be forged do not count for TCP.
    #[inline(always)]
    #[must_use]
    pub fn has_replied(self, protocol: u32) -> bool {
        if protocol == proto::TCP {
            self.tcp_seen() & SEEN_OWN != 0
        } else {
            self.packets(Half::Reply) != 0
        }
    }

    /// Returns the time at which the mapping began, in ticks.
    #[inline(always)]
    #[must_use]
    pub fn created(self) -> u32 {
        // SAFETY: valid by the contract of `new`.
        unsafe { (*self.0).created }
    }

    /// Returns the time of the last packet of this direction, in ticks.
    #[inline(always)]
    #[must_use]
    pub fn last_seen(self) -> u32 {
        // SAFETY: valid by the contract of `new`.
        unsafe { (*self.0).last_seen }
    }

    /// Clears the RST of this direction: its connection is still alive.
    #[inline(always)]
    pub fn clear_rst(self) {
        self.set_tcp_seen(self.tcp_seen() & !SEEN_RST);
    }

    /// Returns the place where the packets of this original half leave, as of the last check that
    /// its address is right for that.
    #[inline(always)]
    #[must_use]
    pub fn place(self) -> Place {
        // SAFETY: valid by the contract of `new`.
        unsafe {
            Place {
                uplink: (*self.0).uplink,
                epoch: (*self.0).epoch,
            }
        }
    }

    /// Records the place where they leave.
    #[inline(always)]
    pub fn set_place(self, place: Place) {
        // SAFETY: valid by the contract of `new`.
        unsafe {
            (*self.0).uplink = place.uplink;
            (*self.0).epoch = place.epoch;
        }
    }

    /// Returns how far the connection of this reply half has closed.
    #[inline(always)]
    #[must_use]
    pub fn closing(self) -> Closing {
        // SAFETY: valid by the contract of `new`.
        unsafe { Closing::from_parts((*self.0).epoch, (*self.0).uplink) }
    }

    /// Records how far it has closed.
    #[inline(always)]
    pub fn set_closing(self, closing: Closing) {
        // SAFETY: valid by the contract of `new`. If both sides send a FIN at the same moment, one
        // update may be lost, or a mixture remain that matches no acknowledgement number.
        unsafe { ((*self.0).epoch, (*self.0).uplink) = closing.parts() }
    }

    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "there are fewer bits")]
    fn set_tcp_seen(self, seen: u32) {
        // SAFETY: valid by the contract of `new`.
        unsafe { (*self.0).tcp_seen = seen as u8 }
    }

    /// Records that the other direction has closed: `SEEN_OTHERS_*` bits.
    #[inline(always)]
    pub fn note_other_side(self, hints: u32) {
        // A concurrent packet of this direction may undo it: it is only a hint.
        self.set_tcp_seen(self.tcp_seen() | hints);
    }

    /// Returns the TCP flags seen in this direction: `SEEN_*` bits.
    #[inline(always)]
    #[must_use]
    pub fn tcp_seen(self) -> u32 {
        // SAFETY: valid by the contract of `new`.
        unsafe { (*self.0).tcp_seen.into() }
    }

    /// Returns the last acknowledgement number of this direction.
    #[inline(always)]
    #[must_use]
    pub fn tcp_ack(self) -> u32 {
        // SAFETY: valid by the contract of `new`.
        unsafe { (*self.0).tcp_ack }
    }

    /// Clears the TCP flags: the tuple is reopened.
    #[inline(always)]
    pub fn reopen(self, now: u32) {
        // SAFETY: valid by the contract of `new`.
        unsafe {
            (*self.0).last_seen = now;
        }
        self.set_tcp_seen(self.tcp_seen() & SEEN_CARRIED_OVER);
    }

    /// Records a packet of this direction: time and TCP state.
    #[inline(always)]
    pub fn record(self, l4: &L4, now: u32) {
        // SAFETY: valid by the contract of `new`.
        unsafe {
            let m = self.0;
            let before = self.tcp_seen();
            if (*m).last_seen != now && refreshes(before, l4) {
                (*m).last_seen = now;
            }
            if let L4::Tcp(segment) = *l4 {
                let after = observe(before, segment);
                if after != before {
                    self.set_tcp_seen(after);
                }
                let syn = segment.flags & SYN != 0;
                if syn && before & SEEN_DATA == 0 {
                    (*m).tcp_ack = segment.seq.wrapping_add(1);
                } else if !syn && segment.flags & ACK != 0 {
                    (*m).tcp_ack = segment.ack;
                }
            }
        }
    }
}
