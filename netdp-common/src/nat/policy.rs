//! The policy's decision for a destination, and the cache of address pairs that it bypasses.

use crate::direction::Direction;
use crate::env::Env;
use crate::layout::{
    Action, Addr, POLICY_WAS_BYPASSED, PolicyValue, SETTING_BYPASS_CACHE_VALID, Traffic, rule_index,
};
use crate::packet::pair_slot;
use crate::slot::PairSlot;

/// The policy's decision for new flows to a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Decision {
    /// The action.
    pub(super) action: Action,
    /// The index in `rule_hits` of the rule that decides.
    pub(super) rule: u32,
}

/// The index in `rule_hits` of what no rule decides.
pub(super) const NO_RULE: u32 = rule_index(u32::MAX);

/// Returns the policy's decision for new flows to `dst`.
#[inline(always)]
pub(super) fn decide<E: Env>(env: &E, dst: &Addr) -> Decision {
    let value = lookup(env, dst);
    Decision {
        action: Action::from_raw(value.action),
        rule: rule_index(value.rule),
    }
}

/// Returns the policy's action for new flows to `dst`.
#[inline(always)]
pub(super) fn action<E: Env>(env: &E, dst: &Addr) -> Action {
    decide(env, dst).action
}

/// Reports whether an earlier policy bypassed `dst`, which is now masqueraded.
#[inline(always)]
pub(super) fn was_bypassed<E: Env>(env: &E, dst: &Addr) -> bool {
    lookup(env, dst).action & POLICY_WAS_BYPASSED != 0
}

/// Returns the entry for `dst`; what no entry covers is masqueraded.
#[inline(always)]
fn lookup<E: Env>(env: &E, dst: &Addr) -> PolicyValue {
    env.lookup_policy(dst).unwrap_or(PolicyValue {
        action: Action::Masquerade as u32,
        rule: u32::MAX,
    })
}

/// Counts a packet that passes because of a rule: in its outcome, and as a hit of the rule.
#[inline(always)]
pub(super) fn count_bypassed<E: Env>(env: &E, rule: u32) {
    env.count_packet(|c| &mut c.egress_bypassed);
    env.add_rule_hits(rule, &Traffic::packet(env.l3_len()), 0);
}

/// Reports whether the bypass cache may be used: no live mapping is older than the policy that
/// bypasses its destination.
#[inline(always)]
fn is_cache_valid<E: Env>(env: &E) -> bool {
    env.settings().flags & SETTING_BYPASS_CACHE_VALID != 0
}

/// Returns the slot of the cache for packets between `pod` and `peer`.
#[inline(always)]
fn slot_of<E: Env>(env: &E, pod: &Addr, peer: &Addr) -> Option<PairSlot> {
    env.lookup_pair(pair_slot(pod, peer, env.pair_bits()))
}

/// Returns the cached pair, if it may be used and was found to be bypassed in this epoch.
#[inline(always)]
fn cached<E: Env>(env: &E, pod: &Addr, peer: &Addr) -> Option<PairSlot> {
    if !is_cache_valid(env) {
        return None;
    }
    slot_of(env, pod, peer).filter(|pair| pair.is_of(pod, peer, env.epoch()))
}

/// Reports whether a packet between these addresses, read by [`crate::packet::peek`] or
/// [`crate::packet::parse_fast`], is a hit in the bypass cache and passes without further checks:
/// the pod's address is not one of the node, the policy bypasses the peer, and no live mapping
/// overrides it. A hit is counted; as a hit of the rule only on egress, where rules decide.
#[inline(always)]
pub fn passes<E: Env>(env: &E, src: &Addr, dst: &Addr, direction: Direction) -> bool {
    match direction {
        Direction::Egress => match cached(env, src, dst) {
            Some(pair) => {
                pair.add_hit(env.l3_len());
                env.count_packet(|c| &mut c.egress_bypassed);
                true
            }
            None => false,
        },
        Direction::Ingress => {
            let hit = cached(env, dst, src).is_some();
            if hit {
                env.count_packet(|c| &mut c.ingress_passed);
            }
            hit
        }
    }
}

/// Caches that packets between `pod` and `peer` are bypassed by a rule.
#[inline(never)]
pub(super) fn cache_bypass<E: Env>(env: &E, pod: &Addr, peer: &Addr, rule: u32) -> bool {
    if is_cache_valid(env)
        && let Some(pair) = slot_of(env, pod, peer)
        && !pair.is_of(pod, peer, env.epoch())
    {
        replace(env, pair, (pod, peer), env.epoch(), rule);
    }
    true
}

/// Counts a packet that leaves from `pod` because a rule bypasses `peer`, and caches the pair. While
/// the cache may not be used, the pair counts under an epoch that never comes: CPUs would otherwise
/// write to the rule's one entry for each packet.
#[inline(never)]
pub(super) fn bypass<E: Env>(env: &E, pod: &Addr, peer: &Addr, rule: u32) -> bool {
    let Some(pair) = slot_of(env, pod, peer) else {
        count_bypassed(env, rule);
        return true;
    };
    env.count_packet(|c| &mut c.egress_bypassed);
    let epoch = if is_cache_valid(env) {
        env.epoch()
    } else {
        !env.epoch()
    };
    if !pair.is_of(pod, peer, epoch) {
        replace(env, pair, (pod, peer), epoch, rule);
    }
    pair.add_hit(env.l3_len());
    true
}

/// Puts another pair of a pod and a peer, or the same one in another epoch, into a slot. The hits of the
/// one that was there go to its rule.
#[inline(always)]
fn replace<E: Env>(env: &E, pair: PairSlot, (pod, peer): (&Addr, &Addr), epoch: u32, rule: u32) {
    let earlier = pair.packets_between(pod, peer);
    if let Some((rule, hits)) = pair.take_hits() {
        env.add_rule_hits(rule, &hits, 0);
    }
    pair.set(pod, peer, epoch, rule, earlier);
}
