//! The decision for one packet that arrives.
//!
//! Mapping → inbound flows.

use super::established::apply;
use super::lookup::{Progress, lookup_mapping};
use super::policy::{self, Decision};
use super::reach::{self, Whose};
use super::scope::{begins_outside, out_of_scope};
use super::scratch::Scratch;
use super::{fragment, icmp_error, inbound};
use crate::direction::Direction;
use crate::env::Env;
use crate::layout::Action;
use crate::packet::{L4, Packet};
use crate::verdict::Verdict;

/// Decides about a packet that arrives by an uplink.
#[inline(always)]
pub fn ingress<E: Env>(env: &E, scratch: &mut Scratch, progress: Progress) -> Verdict {
    if out_of_scope(env, &scratch.pkt) || matches!(scratch.pkt.l4, L4::Untranslatable(_)) {
        env.count_packet(|c| &mut c.ingress_passed);
        return Verdict::Pass;
    }
    let verdict = match scratch.pkt.l4 {
        L4::Error => icmp_error::ingress(env, scratch),
        L4::LaterFragment => return fragment::later_ingress(env, scratch),
        _ => ingress_flow(env, &mut scratch.pkt, progress),
    };
    if scratch.pkt.is_fragment != 0 {
        fragment::first_ingress(env, scratch, verdict);
    }
    verdict
}

#[inline(always)]
fn ingress_flow<E: Env>(env: &E, pkt: &mut Packet, progress: Progress) -> Verdict {
    if progress == Progress::Pending {
        let l4 = pkt.l4;
        if let Some(hit) = lookup_mapping(env, pkt, &l4, pkt.family, Direction::Ingress) {
            return apply(pkt, hit);
        }
    }
    let whose = if env.is_local(&pkt.tuple.dst) {
        Whose::Nodes
    } else {
        ingress_forwarded(env, pkt);
        Whose::Pods
    };
    if reach::is_answer(&pkt.l4) {
        reach::count_answer(env, &pkt.tuple.src, whose);
    }
    env.count_packet(|c| &mut c.ingress_passed);
    Verdict::Pass
}

/// Records a packet to an address behind the node if it may begin a flow whose replies would
/// otherwise be masqueraded.
#[inline(never)]
fn ingress_forwarded<E: Env>(env: &E, pkt: &Packet) -> bool {
    let begins = begins_outside(&pkt.l4);
    if !begins && !matches!(pkt.l4, L4::Tcp(_)) {
        return false;
    }
    let Decision { action, rule } = policy::decide(env, &pkt.tuple.src);
    if action == Action::Bypass {
        policy::cache_bypass(env, &pkt.tuple.dst, &pkt.tuple.src, rule);
        return false;
    }
    inbound::record_arrival(env, pkt, begins)
}
