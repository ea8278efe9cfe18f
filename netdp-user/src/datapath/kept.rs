//! Flows that keep the pod's address, one by one, for diagnosis.

use super::maps::Maps;
use super::sweep::now;
use super::{batch, bpffs};
use anyhow::{Context as _, Result};
use aya::maps::MapError;
use aya::maps::lpm_trie::Key;
use netdp_common::flow::{BY_PROTOCOL, LINGER_TICKS, age, is_asked_still, is_fresh, ticks32};
use netdp_common::flow::{DRAIN_SECONDS, INBOUND_SECONDS};
use netdp_common::layout::{Addr, Inbound, Live, POLICY_WAS_BYPASSED, Tuple, pins, proto};
use std::path::Path;

/// The reason for which a flow keeps the pod's address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeptReason {
    /// It began outside.
    BeganOutside,
    /// An earlier policy bypassed it.
    BypassedEarlier,
    /// One of the two: the record does not tell.
    Either,
}

/// Progress of a flow that keeps the pod's address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KeptState {
    /// The pod has sent nothing yet.
    Unanswered,
    /// Both sides take part.
    Answered,
    /// It has closed, and its last packets may be under way.
    Closed,
}

/// A flow that keeps the pod's address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Kept {
    /// The tuple of the pod's packets.
    pub tuple: Tuple,
    /// The reason for which it keeps the address.
    pub reason: KeptReason,
    /// Progress.
    pub state: KeptState,
    /// Ticks since the last packet in either direction.
    pub idle: u32,
}

impl Kept {
    /// Interprets a record of `inbound_live`. `was_bypassed`: an earlier policy bypassed the peer.
    fn live(tuple: &Tuple, live: &Live, now: u32, was_bypassed: bool) -> Self {
        let reason = match live.limit {
            // Whatever is found answered is recorded alike.
            0 if tuple.proto == proto::TCP && was_bypassed => KeptReason::Either,
            0 => KeptReason::BeganOutside,
            // `--on-reload drain` alone sets a limit.
            _ => KeptReason::BypassedEarlier,
        };
        Self {
            tuple: *tuple,
            reason,
            state: KeptState::Answered,
            idle: age(now, live.last_seen),
        }
    }

    /// Interprets a record of `inbound`.
    fn asked(tuple: &Tuple, asked: &Inbound, now: u32, was_bypassed: bool) -> Self {
        let answered_over_share = ticks32(INBOUND_SECONDS);
        let (reason, state) = match asked.limit {
            BY_PROTOCOL => (KeptReason::BeganOutside, KeptState::Unanswered),
            limit if limit == answered_over_share => {
                (KeptReason::BeganOutside, KeptState::Answered)
            }
            LINGER_TICKS if tuple.proto == proto::TCP && was_bypassed => {
                (KeptReason::Either, KeptState::Closed)
            }
            LINGER_TICKS => (KeptReason::BeganOutside, KeptState::Closed),
            // No limit, or that of `--on-reload drain`.
            _ => (KeptReason::BypassedEarlier, KeptState::Answered),
        };
        Self {
            tuple: *tuple,
            reason,
            state,
            idle: age(now, asked.last_seen),
        }
    }
}

// The limits are told apart by their values.
const _: () =
    assert!(LINGER_TICKS != ticks32(INBOUND_SECONDS) && LINGER_TICKS != ticks32(DRAIN_SECONDS));

impl Maps {
    /// Calls `each` for every flow that keeps the pod's address, in no order. `bpffs`: where the maps
    /// are pinned.
    ///
    /// # Errors
    /// Returns an error if a map can't be read, and any error of `each`.
    pub(crate) fn for_each_kept(
        &self,
        bpffs: &Path,
        mut each: impl FnMut(&Kept) -> Result<()>,
    ) -> Result<()> {
        let now = now(self)?;
        let asked = bpffs::open_map(bpffs, pins::INBOUND)?;
        batch::for_each_batch::<Tuple, Live>(&self.pods()?.inbound_live_data, |tuples, flows| {
            for (tuple, live) in tuples.iter().zip(flows) {
                if is_fresh(tuple.proto, live, now) {
                    let was_bypassed = self.was_bypassed(&tuple.dst)?;
                    each(&Kept::live(tuple, live, now, was_bypassed))?;
                }
            }
            Ok(())
        })
        .context("reading the flows that keep the pod's address")?;
        batch::for_each_batch::<Tuple, Inbound>(&asked, |tuples, flows| {
            for (tuple, asked) in tuples.iter().zip(flows) {
                if is_asked_still(tuple.proto, *asked, now) {
                    let was_bypassed = self.was_bypassed(&tuple.dst)?;
                    each(&Kept::asked(tuple, asked, now, was_bypassed))?;
                }
            }
            Ok(())
        })
        .context("reading the flows that keep the pod's address")
    }

    /// Reports whether an earlier policy bypassed `destination`, which is now masqueraded.
    fn was_bypassed(&self, destination: &Addr) -> Result<bool> {
        let active = usize::from(self.settings()?.active_policy != 0);
        let trie = self.policy.get(active).context("no policy is active")?;
        match trie.get(&Key::new(128, *destination), 0) {
            Ok(value) => Ok(value.action & POLICY_WAS_BYPASSED != 0),
            Err(MapError::KeyNotFound) => Ok(false),
            Err(err) => Err(err).context("querying the policy in force"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tuple(protocol: u32) -> Tuple {
        let (pod, peer) = ([172, 16, 0, 2], [203, 0, 113, 9]);
        Tuple::new(
            Addr::from_v4(pod),
            Addr::from_v4(peer),
            80,
            40_000,
            protocol,
        )
    }

    #[test]
    fn the_reason_is_read_from_the_limit() {
        let live = |protocol, limit, was_bypassed| {
            let live = Live {
                last_seen: 90,
                limit,
                seen: 0,
                ack: 0,
            };
            let kept = Kept::live(&tuple(protocol), &live, 100, was_bypassed);
            assert_eq!((kept.state, kept.idle), (KeptState::Answered, 10));
            kept.reason
        };
        assert_eq!(live(proto::TCP, 0, false), KeptReason::BeganOutside);
        assert_eq!(live(proto::TCP, 0, true), KeptReason::Either);
        assert_eq!(live(proto::UDP, 0, true), KeptReason::BeganOutside);
        let drain = ticks32(DRAIN_SECONDS);
        assert_eq!(live(proto::TCP, drain, true), KeptReason::BypassedEarlier);

        let asked = |limit, was_bypassed| {
            let asked = Inbound {
                last_seen: 100,
                limit,
            };
            let kept = Kept::asked(&tuple(proto::TCP), &asked, 100, was_bypassed);
            (kept.reason, kept.state)
        };
        let outside = KeptReason::BeganOutside;
        assert_eq!(asked(BY_PROTOCOL, true), (outside, KeptState::Unanswered));
        let over_share = ticks32(INBOUND_SECONDS);
        assert_eq!(asked(over_share, true), (outside, KeptState::Answered));
        assert_eq!(asked(LINGER_TICKS, false), (outside, KeptState::Closed));
        assert_eq!(
            asked(LINGER_TICKS, true),
            (KeptReason::Either, KeptState::Closed)
        );
        for limit in [0, drain] {
            let earlier = (KeptReason::BypassedEarlier, KeptState::Answered);
            assert_eq!(asked(limit, true), earlier);
        }
    }
}
