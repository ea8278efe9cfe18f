//! A flow that keeps the pod's address, in place in a BPF map.

use crate::layout::{Inbound, LIVE_FIN_IN, LIVE_FIN_OUT, LIVE_ORIGIN_SHIFT, Live};

/// An [`Inbound`] in place, as [`super::Slot`].
#[derive(Clone, Copy)]
pub struct AskedSlot(*mut Inbound);

impl AskedSlot {
    /// # Safety
    /// As for [`super::Slot::new`].
    #[inline(always)]
    #[must_use]
    pub const unsafe fn new(inbound: *mut Inbound) -> Self {
        Self(inbound)
    }

    /// Returns a copy of the value.
    #[inline(always)]
    #[must_use]
    pub fn get(self) -> Inbound {
        // SAFETY: valid by the contract of `new`.
        unsafe { *self.0 }
    }

    /// Records the time of a packet of either direction, in ticks.
    #[inline(always)]
    pub fn refresh(self, now: u32) {
        // SAFETY: valid by the contract of `new`.
        unsafe { (*self.0).last_seen = now }
    }

    /// Sets the silence in ticks after which the record expires.
    #[inline(always)]
    pub fn set_limit(self, limit: u32) {
        // SAFETY: valid by the contract of `new`.
        unsafe { (*self.0).limit = limit }
    }
}

/// A [`Live`] in place, as [`super::Slot`].
#[derive(Clone, Copy)]
pub struct LiveSlot(*mut Live);

impl LiveSlot {
    /// # Safety
    /// As for [`super::Slot::new`].
    #[inline(always)]
    #[must_use]
    pub const unsafe fn new(live: *mut Live) -> Self {
        Self(live)
    }

    /// Returns a copy of the value.
    #[inline(always)]
    #[must_use]
    pub fn get(self) -> Live {
        // SAFETY: valid by the contract of `new`.
        unsafe { *self.0 }
    }

    /// Records the time of a packet of either direction, in ticks.
    #[inline(always)]
    pub fn refresh(self, now: u32) {
        // SAFETY: valid by the contract of `new`.
        unsafe {
            if (*self.0).last_seen != now {
                (*self.0).last_seen = now;
            }
        }
    }

    /// Records the pod's last acknowledgement number.
    #[inline(always)]
    pub fn set_ack(self, ack: u32) {
        // SAFETY: valid by the contract of `new`.
        unsafe { (*self.0).ack = ack }
    }

    /// Records a FIN of one side; reports whether both sides have now sent one.
    #[inline(always)]
    pub fn set_fin(self, side: u32) -> bool {
        const BOTH: u32 = LIVE_FIN_OUT | LIVE_FIN_IN;
        // SAFETY: valid by the contract of `new`.
        unsafe {
            (*self.0).seen |= side;
            (*self.0).seen & BOTH == BOTH
        }
    }

    /// Records the index of the interface by which the pod's packets come; its lower 16 bits are
    /// kept.
    #[inline(always)]
    pub fn set_origin(self, ifindex: u32) {
        // SAFETY: valid by the contract of `new`.
        unsafe {
            let bits = (*self.0).seen & ((1 << LIVE_ORIGIN_SHIFT) - 1);
            (*self.0).seen = bits | ifindex << LIVE_ORIGIN_SHIFT;
        }
    }
}
