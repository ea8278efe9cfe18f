//! The policy's action for a destination, and the cache of address pairs that it bypasses.

use crate::direction::Direction;
use crate::env::Env;
use crate::layout::{Action, Addr, POLICY_WAS_BYPASSED, SETTING_BYPASS_CACHE_VALID};

/// Returns the policy's action for new flows to `dst`.
#[inline(always)]
pub(super) fn action<E: Env>(env: &E, dst: &Addr) -> Action {
    Action::from_raw(lookup(env, dst))
}

/// Reports whether an earlier policy bypassed `dst`, which is now masqueraded.
#[inline(always)]
pub(super) fn was_bypassed<E: Env>(env: &E, dst: &Addr) -> bool {
    lookup(env, dst) & POLICY_WAS_BYPASSED != 0
}

/// Returns the raw action; what no entry covers is masqueraded.
#[inline(always)]
fn lookup<E: Env>(env: &E, dst: &Addr) -> u32 {
    env.lookup_policy(dst).unwrap_or(Action::Masquerade as u32)
}

/// Reports whether the bypass cache may be used: no live mapping is older than the policy that
/// bypasses its destination.
#[inline(always)]
fn is_cache_valid<E: Env>(env: &E) -> bool {
    env.settings().flags & SETTING_BYPASS_CACHE_VALID != 0
}

/// Reports whether a packet between these addresses, read by [`crate::packet::peek`] or
/// [`crate::packet::parse_fast`], is a hit in the bypass cache and passes without further checks:
/// the pod's address is not one of the node, the policy bypasses the peer, and no live mapping
/// overrides it. A hit is counted.
#[inline(always)]
pub fn passes<E: Env>(env: &E, src: &Addr, dst: &Addr, direction: Direction) -> bool {
    match direction {
        Direction::Egress => {
            let cached = is_cache_valid(env) && env.is_bypass_cached(src, dst, env.epoch());
            if cached {
                env.count(|c| &mut c.egress_bypassed);
            }
            cached
        }
        Direction::Ingress => {
            let cached = is_cache_valid(env) && env.is_bypass_cached(dst, src, env.epoch());
            if cached {
                env.count(|c| &mut c.ingress_passed);
            }
            cached
        }
    }
}

/// Caches that packets between `pod` and `peer` are bypassed.
#[inline(always)]
pub(super) fn cache_bypass<E: Env>(env: &E, pod: &Addr, peer: &Addr) {
    if is_cache_valid(env) {
        env.cache_bypass(pod, peer, env.epoch());
    }
}
