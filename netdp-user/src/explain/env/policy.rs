//! The policy, the addresses of the node, and the caches of address pairs.

use super::{LiveEnv, NO_PAIR};
use crate::explain::question::{NotAsked, Question};
use aya::maps::lpm_trie::Key;
use netdp_common::env::{Masqueraded, Policy};
use netdp_common::layout::{Addr, PolicyValue, SOURCE_ANY_IP, Source, SourceKey};
use netdp_common::slot::PairSlot;

/// Length of a complete [`SourceKey`], in bits.
const SOURCE_BITS: u32 = 160;

impl Policy for LiveEnv<'_> {
    fn is_local(&self, addr: &Addr) -> bool {
        let yes = self
            .found(self.maps.local_addrs.get(addr, 0), "local_addrs")
            .is_some();
        self.note(Question::Local { addr: *addr, yes });
        yes
    }

    fn is_any_ip(&self, addr: &Addr) -> bool {
        let key = SourceKey {
            link: SOURCE_ANY_IP,
            addr: *addr,
        };
        let yes = self.source(&key).is_some();
        self.note(Question::AnyIp { addr: *addr, yes });
        yes
    }

    fn lookup_policy(&self, dst: &Addr) -> Option<PolicyValue> {
        let [first, second] = &self.maps.policy;
        let value = match (&self.maps.other_policy, self.settings.active_policy) {
            (Some(policy), _) => policy(dst),
            (None, 0) => self.found(first.get(&Key::new(128, *dst), 0), "policy"),
            (None, _) => self.found(second.get(&Key::new(128, *dst), 0), "policy"),
        };
        self.note(Question::Policy { dst: *dst, value });
        value
    }

    fn pair_bits(&self) -> u32 {
        self.maps.pair_bits
    }

    /// Returns an empty slot: each CPU has its own, and which one a packet would meet is unknown. A
    /// pair is only cached after the policy was asked, in this epoch, and while no mapping is older
    /// than the policy: a miss asks that again and leads to the same verdict.
    fn lookup_pair(&self, index: u32) -> Option<PairSlot> {
        let slot = self.pairs.slot(&index, || Some(NO_PAIR))?;
        // SAFETY: valid for as long as the environment, which nothing else uses.
        Some(unsafe { PairSlot::new(slot) })
    }

    /// Returns `None`: as for the bypass cache, a miss asks the questions whose answers were cached.
    /// Only a route to the pod that has changed within the epoch can answer otherwise.
    fn lookup_masqueraded(&self, _: &Addr, _: &Addr, _: u32) -> Option<Masqueraded> {
        None
    }

    fn cache_masqueraded(&self, _: &Addr, _: &Addr, _: u32, _: Masqueraded) {}
}

impl LiveEnv<'_> {
    /// Returns the agent's entry for a source.
    pub(super) fn source(&self, key: &SourceKey) -> Option<Source> {
        let Some(sources) = &self.maps.unpinned.sources else {
            self.note_not_asked(NotAsked::Sources);
            return None;
        };
        self.found(sources.get(&Key::new(SOURCE_BITS, *key), 0), "SOURCES")
    }
}
