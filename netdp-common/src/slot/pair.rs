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

    /// Returns the packets that have hit the pair of these addresses in all epochs; 0 if another pair is
    /// here.
    #[inline(always)]
    #[must_use]
    pub fn packets_between(self, pod: &Addr, peer: &Addr) -> u64 {
        // SAFETY: valid by the contract of `new`.
        let pair = unsafe { &*self.0 };
        if pair.rule != 0 && pair.peer.is_same(peer) && pair.pod.is_same(pod) {
            pair.packets()
        } else {
            0
        }
    }

    /// Replaces the pair by another without hits. `rule`: the index in `rule_hits`; `earlier`: packets of
    /// the same pair in earlier epochs.
    #[inline(always)]
    pub fn set(self, pod: &Addr, peer: &Addr, epoch: u32, rule: u32, earlier: u64) {
        // SAFETY: valid by the contract of `new`.
        unsafe {
            (*self.0).pod = *pod;
            (*self.0).peer = *peer;
            (*self.0).epoch = epoch;
            (*self.0).rule = rule + 1;
            (*self.0).hits = Traffic::default();
            (*self.0).earlier = earlier;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::PairSlot;
    use crate::layout::{Addr, Pair, Traffic};
    use std::net::IpAddr;

    #[test]
    fn packets_stay_with_the_pair_and_not_with_the_slot() {
        let [pod, peer, other] = ["172.16.0.2", "10.2.0.1", "10.2.0.2"]
            .map(|address| Addr::from(address.parse::<IpAddr>().unwrap()));
        let mut pair = Pair {
            pod,
            peer,
            epoch: 1,
            rule: 0,
            hits: Traffic::default(),
            earlier: 0,
        };
        // SAFETY: it outlives the slot, and nothing else uses it meanwhile.
        let slot = unsafe { PairSlot::new(&raw mut pair) };
        assert_eq!(slot.packets_between(&pod, &peer), 0, "the slot is free");
        slot.set(&pod, &peer, 1, 0, 0);
        for epoch in 2..5 {
            slot.add_hit(100);
            let earlier = slot.packets_between(&pod, &peer);
            assert_eq!(slot.take_hits().map(|(_, hits)| hits.packets), Some(1));
            slot.set(&pod, &peer, epoch, 0, earlier);
        }
        assert_eq!(slot.packets_between(&pod, &peer), 3);
        assert_eq!(slot.packets_between(&pod, &other), 0);
        slot.set(&pod, &other, 5, 0, slot.packets_between(&pod, &other));
        assert_eq!(slot.packets_between(&pod, &other), 0);
    }
}
