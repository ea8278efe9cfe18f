//! A mapping where it lies in a map, shared with other CPUs.

use crate::abi::{
    Inbound, LIVE_FIN_IN, LIVE_FIN_OUT, LIVE_ORIGIN_SHIFT, Live, MAPPING_BY_INTERFACE,
    MAPPING_HANDED, MAPPING_HOST, MAPPING_ORIGIN, MAPPING_YIELDED, Mapping,
};
use crate::addr::Addr;
use crate::conntrack::{self, Closing};
use crate::packet::L4;
use crate::tuple::proto;

/// Where packets leave: the lower bits of the uplink's interface index, and of the epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Of the interface index.
    pub uplink: u16,
    /// Of the epoch.
    pub epoch: u8,
}

impl Place {
    /// Whether another uplink is known to be meant.
    #[inline(always)]
    #[must_use]
    pub const fn is_elsewhere(self, now: Self) -> bool {
        self.uplink != 0 && self.uplink != now.uplink
    }
}

/// A live [`Mapping`]. Fields are read and written one by one and never through
/// references: another CPU may change any of them meanwhile. Each field is at
/// most a word and each value any mix of them may show is harmless, but for the
/// address, which never changes while the entry lives.
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

    /// The address to put in.
    #[inline(always)]
    #[must_use]
    pub fn addr(self) -> Addr {
        // SAFETY: valid by the contract of `new`.
        unsafe { (*self.0).addr }
    }

    /// The port or identifier to put in, host byte order.
    #[inline(always)]
    #[must_use]
    pub fn id(self) -> u16 {
        // SAFETY: valid by the contract of `new`.
        unsafe { (*self.0).id }
    }

    /// Whether the node itself owns the tuple.
    #[inline(always)]
    #[must_use]
    pub fn is_host(self) -> bool {
        // SAFETY: valid by the contract of `new`.
        unsafe { (*self.0).flags & MAPPING_HOST != 0 }
    }

    /// Whether what comes in for the tuple is not ours to translate: the node's
    /// own, or netfilter's.
    #[inline(always)]
    #[must_use]
    pub fn is_others(self) -> bool {
        // SAFETY: valid by the contract of `new`.
        unsafe { (*self.0).flags & (MAPPING_HOST | MAPPING_YIELDED) != 0 }
    }

    /// Whether what leaves with the tuple and the node's source is where it
    /// belongs: the node's own, or a pod's flow that netfilter has translated.
    #[inline(always)]
    #[must_use]
    pub fn may_leave(self) -> bool {
        // SAFETY: valid by the contract of `new`.
        unsafe { (*self.0).flags & (MAPPING_HOST | MAPPING_HANDED) != 0 }
    }

    /// All `MAPPING_*` bits.
    #[inline(always)]
    #[must_use]
    pub fn flags(self) -> u16 {
        // SAFETY: valid by the contract of `new`.
        unsafe { (*self.0).flags }
    }

    /// Notes by which interface the pod's packets come, as [`crate::abi::origin_tag`] has it.
    #[inline(always)]
    pub fn set_origin(self, tag: u16) {
        // SAFETY: valid by the contract of `new`; of an original half nobody else
        // writes the flags.
        unsafe {
            let flags = (*self.0).flags;
            // Where it counts must stay.
            if flags & MAPPING_BY_INTERFACE == 0 {
                (*self.0).flags = flags & !MAPPING_ORIGIN | tag;
            }
        }
    }

    /// Packets in this direction.
    #[inline(always)]
    #[must_use]
    pub fn packets(self) -> u32 {
        // SAFETY: valid by the contract of `new`.
        unsafe { (*self.0).packets }
    }

    /// Whether this direction has sent anything, on a connection that was opened anew: since
    /// then. What may be forged does not count there.
    #[inline(always)]
    #[must_use]
    pub fn has_sent(self, protocol: u32) -> bool {
        if protocol == proto::TCP {
            self.tcp_seen() & !conntrack::SEEN_OTHERS != 0
        } else {
            self.packets() != 0
        }
    }

    /// When the mapping began, in ticks.
    #[inline(always)]
    #[must_use]
    pub fn created(self) -> u32 {
        // SAFETY: valid by the contract of `new`.
        unsafe { (*self.0).created }
    }

    /// Last packet of this direction, in ticks.
    #[inline(always)]
    #[must_use]
    pub fn last_seen(self) -> u32 {
        // SAFETY: valid by the contract of `new`.
        unsafe { (*self.0).last_seen }
    }

    /// Forgets that this direction sent a RST: its connection goes on.
    #[inline(always)]
    pub fn mend(self) {
        self.set_tcp_seen(self.tcp_seen() & !conntrack::SEEN_RST);
    }

    /// Where the packets of this original half leave, as far as its address was found to be
    /// right for that.
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

    /// Notes where they leave.
    #[inline(always)]
    pub fn set_place(self, place: Place) {
        // SAFETY: valid by the contract of `new`.
        unsafe {
            (*self.0).uplink = place.uplink;
            (*self.0).epoch = place.epoch;
        }
    }

    /// How far the connection of this reply half has closed.
    #[inline(always)]
    #[must_use]
    pub fn closing(self) -> Closing {
        // SAFETY: valid by the contract of `new`.
        unsafe { Closing::from_parts((*self.0).epoch, (*self.0).uplink) }
    }

    /// Notes how far.
    #[inline(always)]
    pub fn set_closing(self, closing: Closing) {
        // SAFETY: valid by the contract of `new`. Where both sides send a FIN at the same moment
        // one of them may be lost, or a mixture stay that no number fits.
        unsafe { ((*self.0).epoch, (*self.0).uplink) = closing.parts() }
    }

    #[inline(always)]
    #[expect(clippy::cast_possible_truncation, reason = "there are fewer bits")]
    fn set_tcp_seen(self, seen: u32) {
        // SAFETY: valid by the contract of `new`.
        unsafe { (*self.0).tcp_seen = seen as u8 }
    }

    /// Notes that the other direction has closed: `SEEN_OTHERS_*` bits.
    #[inline(always)]
    pub fn note_others(self, hints: u32) {
        // A packet of this direction may undo it meanwhile: it is only a hint.
        self.set_tcp_seen(self.tcp_seen() | hints);
    }

    /// TCP flags seen in this direction.
    #[inline(always)]
    #[must_use]
    pub fn tcp_seen(self) -> u32 {
        // SAFETY: valid by the contract of `new`.
        unsafe { (*self.0).tcp_seen.into() }
    }

    /// The acknowledgement number last sent in this direction.
    #[inline(always)]
    #[must_use]
    pub fn tcp_ack(self) -> u32 {
        // SAFETY: valid by the contract of `new`.
        unsafe { (*self.0).tcp_ack }
    }

    /// Forgets the TCP flags: the tuple is opened anew.
    #[inline(always)]
    pub fn reopen(self, now: u32) {
        // SAFETY: valid by the contract of `new`.
        unsafe {
            (*self.0).tcp_seen = 0;
            (*self.0).last_seen = now;
        }
    }

    /// Records a packet of this direction.
    #[inline(always)]
    pub fn record(self, l4: &L4, now: u32) {
        // SAFETY: valid by the contract of `new`. The count may lose updates
        // that race; it is only ever shown.
        unsafe {
            let m = self.0;
            (*m).packets = (*m).packets.wrapping_add(1);
            let before = self.tcp_seen();
            if (*m).last_seen != now && conntrack::refreshes(before, l4) {
                (*m).last_seen = now;
            }
            if let L4::Tcp(segment) = *l4 {
                let after = conntrack::observe(before, segment);
                if after != before {
                    self.set_tcp_seen(after);
                }
                let syn = segment.flags & conntrack::SYN != 0;
                if syn && before & conntrack::SEEN_DATA == 0 {
                    (*m).tcp_ack = segment.seq.wrapping_add(1);
                } else if !syn && segment.flags & conntrack::ACK != 0 {
                    (*m).tcp_ack = segment.ack;
                }
            }
        }
    }

    /// Counts a segment without learning anything of it: for one that may be forged.
    #[inline(always)]
    pub fn record_untrusted(self) {
        // SAFETY: valid by the contract of `new`.
        unsafe {
            (*self.0).packets = (*self.0).packets.wrapping_add(1);
        }
    }
}

/// A live [`Inbound`], as [`Slot`].
#[derive(Clone, Copy)]
pub struct AskedSlot(*mut Inbound);

impl AskedSlot {
    /// # Safety
    /// As for [`Slot::new`].
    #[inline(always)]
    #[must_use]
    pub const unsafe fn new(inbound: *mut Inbound) -> Self {
        Self(inbound)
    }

    /// Copies it out.
    #[inline(always)]
    #[must_use]
    pub fn get(self) -> Inbound {
        // SAFETY: valid by the contract of `new`.
        unsafe { *self.0 }
    }

    /// Notes a packet of either direction.
    #[inline(always)]
    pub fn refresh(self, now: u32) {
        // SAFETY: valid by the contract of `new`.
        unsafe { (*self.0).last_seen = now }
    }

    /// Writes the silence in ticks after which it no longer counts.
    #[inline(always)]
    pub fn set_limit(self, limit: u32) {
        // SAFETY: valid by the contract of `new`.
        unsafe { (*self.0).limit = limit }
    }
}

/// A live [`Live`], as [`Slot`].
#[derive(Clone, Copy)]
pub struct LiveSlot(*mut Live);

impl LiveSlot {
    /// # Safety
    /// As for [`Slot::new`].
    #[inline(always)]
    #[must_use]
    pub const unsafe fn new(live: *mut Live) -> Self {
        Self(live)
    }

    /// Copies it out.
    #[inline(always)]
    #[must_use]
    pub fn get(self) -> Live {
        // SAFETY: valid by the contract of `new`.
        unsafe { *self.0 }
    }

    /// Notes a packet of either direction.
    #[inline(always)]
    pub fn refresh(self, now: u32) {
        // SAFETY: valid by the contract of `new`.
        unsafe {
            if (*self.0).last_seen != now {
                (*self.0).last_seen = now;
            }
        }
    }

    /// Notes what the pod acknowledges.
    #[inline(always)]
    pub fn set_ack(self, ack: u32) {
        // SAFETY: valid by the contract of `new`.
        unsafe { (*self.0).ack = ack }
    }

    /// Notes a FIN of one side; whether both have sent one by now.
    #[inline(always)]
    pub fn set_fin(self, side: u32) -> bool {
        const BOTH: u32 = LIVE_FIN_OUT | LIVE_FIN_IN;
        // SAFETY: valid by the contract of `new`.
        unsafe {
            (*self.0).seen |= side;
            (*self.0).seen & BOTH == BOTH
        }
    }

    /// Notes by which interface the pod's packets come.
    #[inline(always)]
    pub fn set_origin(self, ifindex: u32) {
        // SAFETY: valid by the contract of `new`.
        unsafe {
            let bits = (*self.0).seen & ((1 << LIVE_ORIGIN_SHIFT) - 1);
            (*self.0).seen = bits | ifindex << LIVE_ORIGIN_SHIFT;
        }
    }
}
