//! The lookup of a packet's mapping: on the fast path together with the bypass cache.

use super::established::{Hit, on_egress_hit, on_ingress_hit};
use super::policy::passes;
use super::scratch::Scratch;
use super::settle::{Begins, Settled, settle};
use crate::direction::Direction;
use crate::env::Env;
use crate::layout::Family;
use crate::packet::{FastPacket, L4, Packet};

/// The progress of the lookup of a packet's mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Nothing has been looked up yet.
    Pending,
    /// [`fast_path`] found no mapping.
    Missed,
}

/// Returns the fast path's decision about a packet: from the bypass cache, or from its mapping.
/// `None` means the slow path: `scratch` is then filled in for [`egress`](super::egress::egress) or
/// [`ingress`](super::ingress::ingress).
///
/// The scope is not checked: an IPv4 packet out of scope never got a mapping, and its addresses are
/// never in the bypass cache.
#[inline(always)]
pub fn fast_path<E: Env>(
    env: &E,
    scratch: &mut Scratch,
    fast: &FastPacket,
    l3_offset: u32,
    direction: Direction,
) -> Option<Hit> {
    // What begins a connection, or answers, is counted on the slow path.
    if !fast.has_syn() && passes(env, &fast.src(), &fast.dst(), direction) {
        return Some(Hit::Bypassed);
    }
    // In memory, because map keys have to be there.
    scratch.pkt.tuple = fast.tuple();
    let hit = lookup_mapping(env, &mut scratch.pkt, &fast.l4, Family::V4, direction);
    if hit.is_none() {
        fast.fill(l3_offset, &mut scratch.pkt);
    }
    hit
}

/// Looks up a packet's mapping and returns its decision, or `None` on a miss. Reads only the tuple
/// of `pkt`.
#[inline(always)]
pub(super) fn lookup_mapping<E: Env>(
    env: &E,
    pkt: &mut Packet,
    l4: &L4,
    family: Family,
    direction: Direction,
) -> Option<Hit> {
    // On egress an echo reply never hits a mapping: with identifier 0 its tuple would equal that of
    // a request. Nor does a request on ingress.
    let other_way = match l4 {
        L4::QueryReply => direction == Direction::Egress,
        L4::Query => direction == Direction::Ingress,
        L4::Untranslatable(_) => true,
        _ => false,
    };
    if other_way {
        return None;
    }
    match direction {
        Direction::Egress => {
            let slot = env.lookup_snat(&pkt.tuple)?;
            let begins = Begins::of(l4, slot);
            if begins != Begins::Nothing || slot.place() != env.place() {
                pkt.family = family;
                match settle(env, pkt, slot, begins) {
                    Settled::Stays => {}
                    Settled::Rests => return Some(Hit::Resting),
                    Settled::Ended => return None,
                }
            }
            Some(on_egress_hit(env, &pkt.tuple, l4, family, slot))
        }
        Direction::Ingress => {
            let slot = env.lookup_rev_snat(&pkt.tuple)?;
            Some(on_ingress_hit(env, &pkt.tuple, l4, slot))
        }
    }
}
