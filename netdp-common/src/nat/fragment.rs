//! Fragments: only the first has the L4 header that identifies its flow. Its verdict is stored for
//! the others.
//!
//! On egress, a fragment that overtook the first one gets the uplink's address too. On ingress its
//! flow is unknown: it is queued.

use super::policy::{self, Decision};
use super::scratch::Scratch;
use super::source::choose_source;
use crate::direction::Direction;
use crate::env::Env;
use crate::flow::{age, ticks};
use crate::layout::{
    Action, DropReason, FRAGMENT_DROP, FRAGMENT_PASS, FRAGMENT_REWRITE, Family, Fragment, Tuple,
};
use crate::packet::{KEEP_IP_ID, Packet, keyed_hash, low32};
use crate::slot::{Key, Role};
use crate::verdict::Verdict;

/// Seconds for which the verdict of a datagram is stored (Linux reassembles for 30 s in IPv4 and 60
/// s in IPv6; RFC 6146 3.5 requires 2 s at least).
const SECONDS: u64 = 60;

/// Returns the map key of a datagram's fragments.
#[inline(always)]
#[must_use]
pub const fn key(pkt: &Packet) -> Tuple {
    let id = pkt.fragment_id;
    Tuple::new(
        pkt.tuple.src,
        pkt.tuple.dst,
        (id >> 16) as u16,
        (id & 0xffff) as u16,
        pkt.tuple.proto,
    )
}

#[inline(always)]
fn recorded<E: Env>(env: &E, key: &Tuple, direction: Direction) -> Option<Fragment> {
    env.lookup_fragment(key, direction)
        .filter(|f| (age(env.now(), f.last_seen) as u64) < ticks(SECONDS))
}

/// Stores the verdict of the first fragment, and gives it the identification of the other
/// fragments.
#[inline(never)]
pub fn first_egress<E: Env>(env: &E, scratch: &mut Scratch, verdict: Verdict) -> bool {
    let pkt = &mut scratch.pkt;
    let key = key(pkt);
    let fragment = match verdict {
        Verdict::Rewrite | Verdict::RewriteError => {
            pkt.new_ip_id = match (pkt.family, recorded(env, &key, Direction::Egress)) {
                (Family::V4, Some(earlier)) => earlier.new_ip_id,
                (Family::V4, None) => new_ip_id(env, pkt),
                // The 32 random bits of IPv6 need no change.
                (Family::V6, _) => KEEP_IP_ID,
            };
            fragment(env, pkt, FRAGMENT_REWRITE)
        }
        Verdict::Drop(_) => fragment(env, pkt, FRAGMENT_DROP),
        _ => fragment(env, pkt, FRAGMENT_PASS),
    };
    remember(env, pkt, &key, &fragment)
}

/// Stores the verdict of a datagram that leaves, unless the pod has sent too many in this interval:
/// they would displace those of other pods.
#[inline(always)]
fn remember<E: Env>(env: &E, pkt: &Packet, key: &Tuple, fragment: &Fragment) -> bool {
    let bucket = Key::of(env.secret(), &pkt.tuple.src, Role::Pod).bucket();
    let may = (env.lookup_share(bucket)).is_none_or(|share| share.take_fragment(env.now()));
    if may {
        env.insert_fragment(key, fragment, Direction::Egress);
    }
    may
}

/// Returns an identification for a datagram's fragments: each pair of addresses counts separately
/// (RFC 6864 5.3.1), from an unpredictable start.
#[inline(always)]
fn new_ip_id<E: Env>(env: &E, pkt: &Packet) -> u32 {
    let key = Tuple::new(pkt.new.addr, pkt.tuple.dst, 0, 0, pkt.tuple.proto);
    let hash = keyed_hash(&key, env.secret());
    (env.next_ip_id(low32(hash)).wrapping_add(low32(hash >> 32))) & 0xffff
}

/// Stores the verdict of the first fragment.
#[inline(never)]
pub fn first_ingress<E: Env>(env: &E, scratch: &mut Scratch, verdict: Verdict) -> bool {
    let verdict = match verdict {
        Verdict::Rewrite | Verdict::RewriteError => FRAGMENT_REWRITE,
        Verdict::Drop(_) => FRAGMENT_DROP,
        _ => FRAGMENT_PASS,
    };
    let fragment = fragment(env, &scratch.pkt, verdict);
    env.insert_fragment(&key(&scratch.pkt), &fragment, Direction::Ingress);
    true
}

/// Decides about a leaving fragment without L4 header. `None` if it is a pod's and precedes its
/// first fragment.
#[inline(never)]
pub(super) fn known_egress<E: Env>(env: &E, scratch: &mut Scratch) -> Option<Verdict> {
    let pkt = &mut scratch.pkt;
    let key = key(pkt);
    if let Some(known) = recorded(env, &key, Direction::Egress) {
        return Some(follow(env, pkt, &known, Direction::Egress));
    }
    let Decision { action, rule } = policy::decide(env, &pkt.tuple.dst);
    if let Action::Bypass = action {
        policy::count_bypassed(env, rule);
        return Some(Verdict::Pass);
    }
    if env.is_local(&pkt.tuple.src) {
        env.count_packet(|c| &mut c.egress_host);
        return Some(Verdict::Pass);
    }
    match action {
        Action::Withhold => Some(Verdict::Drop(DropReason::IpsecPolicy)),
        _ => None,
    }
}

/// Decides about a pod's fragment without L4 header that overtook the first one.
#[inline(always)]
pub(super) fn early_egress<E: Env>(env: &E, scratch: &mut Scratch) -> Verdict {
    // Not called from `begin_early`, whose stack frame would be live during the lookup.
    if !choose_source(env, &mut scratch.pkt) {
        return Verdict::Drop(DropReason::NoSourceAddress);
    }
    begin_early(env, scratch)
}

#[inline(never)]
fn begin_early<E: Env>(env: &E, scratch: &mut Scratch) -> Verdict {
    let pkt = &mut scratch.pkt;
    let key = key(pkt);
    pkt.new_ip_id = match pkt.family {
        Family::V4 => new_ip_id(env, pkt),
        Family::V6 => KEEP_IP_ID,
    };
    let fragment = fragment(env, pkt, FRAGMENT_REWRITE);
    if !remember(env, pkt, &key, &fragment) {
        return Verdict::Drop(DropReason::PodLimit);
    }
    env.count_packet(|c| &mut c.egress_masqueraded);
    Verdict::Rewrite
}

/// Decides about an arriving fragment without L4 header.
#[inline(never)]
pub fn later_ingress<E: Env>(env: &E, scratch: &mut Scratch) -> Verdict {
    let pkt = &mut scratch.pkt;
    match recorded(env, &key(pkt), Direction::Ingress) {
        Some(known) => follow(env, pkt, &known, Direction::Ingress),
        None if env.is_local(&pkt.tuple.dst) => Verdict::Hold,
        None => {
            env.count_packet(|c| &mut c.ingress_passed);
            Verdict::Pass
        }
    }
}

#[inline(always)]
fn follow<E: Env>(env: &E, pkt: &mut Packet, known: &Fragment, direction: Direction) -> Verdict {
    match known.verdict {
        FRAGMENT_REWRITE => {
            pkt.new.addr = known.addr;
            pkt.new_ip_id = known.new_ip_id;
            env.count_packet(|c| match direction {
                Direction::Egress => &mut c.egress_masqueraded,
                Direction::Ingress => &mut c.ingress_translated,
            });
            Verdict::Rewrite
        }
        FRAGMENT_DROP => Verdict::Drop(DropReason::FragmentOfDropped),
        _ => Verdict::Pass,
    }
}

#[inline(always)]
fn fragment<E: Env>(env: &E, pkt: &Packet, verdict: u32) -> Fragment {
    Fragment {
        addr: pkt.new.addr,
        verdict,
        new_ip_id: pkt.new_ip_id,
        last_seen: env.now(),
        pad: 0,
    }
}
