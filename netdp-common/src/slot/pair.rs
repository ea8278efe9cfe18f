//! A pair of the bypass cache in place: its CPU's own.

use crate::layout::{Addr, Pair, Traffic};

/// A [`Pair`] in place. Only its own CPU writes to it; the agent may read it at the same time.
#[derive(Clone, Copy)]
pub struct PairSlot(*mut Pair);

impl PairSlot {
    /// # Safety
    /// `pair` must point to a `Pair` that stays readable and writable for as long as the slot is
    /// used, and that nothing else writes to.
    #[inline(always)]
    #[must_use]
    pub const unsafe fn new(pair: *mut Pair) -> Self {
        Self(pair)
    }

    /// Reports whether packets between these addresses were found to be bypassed in `epoch`.
    #[inline(always)]
    #[must_use]
    pub fn is_of(self, pod: &Addr, peer: &Addr, epoch: u32) -> bool {
        // SAFETY: valid by the contract of `new`.
        let pair = unsafe { &*self.0 };
        pair.rule != 0 && pair.epoch == epoch && pair.peer.is_same(peer) && pair.pod.is_same(pod)
    }

    /// Counts a packet with `bytes` bytes.
    #[inline(always)]
    pub fn add_hit(self, bytes: u32) {
        // SAFETY: valid by the contract of `new`.
        unsafe { (*self.0).hits.add(&Traffic::packet(bytes)) }
    }

    /// Takes the hits that were counted since the last call, with the index of their rule; `None`
    /// if there were none.
    #[inline(always)]
    #[must_use]
    pub fn take_hits(self) -> Option<(u32, Traffic)> {
        // SAFETY: valid by the contract of `new`.
        unsafe {
            let hits = (*self.0).hits;
            let rule = (*self.0).rule.checked_sub(1)?;
            if hits.is_zero() {
                return None;
            }
            (*self.0).hits = Traffic::default();
            Some((rule, hits))
        }
    }

    /// Replaces the pair by another without hits. `rule`: the index in `rule_hits`.
    #[inline(always)]
    pub fn set(self, pod: &Addr, peer: &Addr, epoch: u32, rule: u32) {
        // SAFETY: valid by the contract of `new`.
        unsafe {
            (*self.0).pod = *pod;
            (*self.0).peer = *peer;
            (*self.0).epoch = epoch;
            (*self.0).rule = rule + 1;
            (*self.0).hits = Traffic::default();
        }
    }
}
