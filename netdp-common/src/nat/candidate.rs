//! One candidate of the search for a wire tuple: the claim, or the mapping that has it.

use super::claim::{Claim, ClaimState, EVICTABLES, Evictable};
use super::node;
use crate::env::{Env, InsertError};
use crate::flow::{
    Carried, Closing, SEEN_FIN, SEEN_OTHERS_FIN, SEEN_OTHERS_RST, SEEN_RST, UNANSWERED_TICKS, age,
    eviction_class, is_closing, is_free_again, is_silent_stream, lasted,
};
use crate::layout::{Half, Tuple, proto};
use crate::slot::Slot;

/// Claims `claim.wire` as [`try_candidate`] does, for a candidate that is expected to be free:
/// looks up the owner only if the claim fails.
#[inline(never)]
pub(super) fn try_first<E: Env>(env: &E, claim: &mut Claim) -> bool {
    claim.candidates += 1;
    if is_kept(env, claim) || belongs_to_node(env, claim) {
        return false;
    }
    if let Err(InsertError::Exists) = insert(env, claim)
        && let Some(owner) = env.lookup_rev_snat(&claim.wire)
    {
        meet(env, claim, owner);
    }
    claim.state == ClaimState::Claimed
}

/// Claims `claim.wire` if it is free and nothing of the node receives by it: no reservation, socket
/// or port on which the node answers.
#[inline(always)]
pub(super) fn try_candidate<E: Env>(env: &E, claim: &mut Claim) {
    claim.candidates += 1;
    if is_kept(env, claim) {
        return;
    }
    if let Some(owner) = env.lookup_rev_snat(&claim.wire) {
        meet(env, claim, owner);
    } else if !belongs_to_node(env, claim) {
        // Fails if another CPU was faster.
        let _ = insert(env, claim);
    }
}

/// Reports whether the candidate is never given to a mapping.
#[inline(always)]
fn is_kept<E: Env>(env: &E, claim: &Claim) -> bool {
    let Tuple { dst_id, proto, .. } = claim.wire;
    has_ports(proto) && env.is_port_reserved(dst_id) || env.is_node_port(proto, dst_id)
}

/// Reports whether packets that arrive by the candidate belong to the node.
#[inline(always)]
fn belongs_to_node<E: Env>(env: &E, claim: &Claim) -> bool {
    has_ports(claim.wire.proto) && env.has_socket(&claim.wire) || node::owns_flow(env, &claim.wire)
}

#[inline(always)]
const fn has_ports(protocol: u32) -> bool {
    matches!(protocol, proto::TCP | proto::UDP)
}

/// Inserts the reply half, and sets the outcome.
#[inline(always)]
fn insert<E: Env>(env: &E, claim: &mut Claim) -> Result<(), InsertError> {
    let inserted = env.insert_rev_snat(&claim.wire, &claim.reply);
    match inserted {
        Ok(()) => claim.state = ClaimState::Claimed,
        Err(InsertError::Exists) => {}
        Err(InsertError::Full) => claim.state = ClaimState::Full,
    }
    inserted
}

/// Adopts a claim of the same flow whose original half does not exist yet (another CPU) or was
/// lost. Of other flows' mappings, remembers those that may be evicted.
#[inline(always)]
fn meet<E: Env>(env: &E, claim: &mut Claim, owner: Slot) {
    if !owner.is_host() && owner.addr() == claim.reply.addr && owner.id() == claim.reply.id {
        claim.state = ClaimState::Claimed;
        if claim.is_syn != 0 && is_closing(0, owner.tcp_seen()) {
            // Left behind by a connection that was reset; this one reopens it.
            owner.reopen(env.now());
            owner.set_closing(Closing::NONE);
        }
    } else {
        note_evictable(env, claim, owner);
    }
}

/// Remembers the candidate if its mapping may be evicted, as far as this half shows.
#[inline(always)]
fn note_evictable<E: Env>(env: &E, claim: &mut Claim, owner: Slot) {
    let silent = age(env.now(), owner.last_seen());
    let Some(over) = is_over(claim, owner, silent) else {
        return;
    };
    let port = u32::from(claim.wire.dst_id);
    let rank = if over { u32::MAX } else { silent };
    let spare = &mut claim.evictable[port as usize & (EVICTABLES - 1)];
    // Among mappings that are over the last one met wins, which is arbitrary: if there is an
    // objection to one of them, a fixed choice would meet it every time.
    if rank >= spare.rank {
        *spare = Evictable {
            port: port + 1,
            rank,
        };
    }
}

/// Reports whether a mapping is over, as far as its reply half shows, which has been `silent` for
/// that many ticks; `None` if it is live.
#[inline(always)]
fn is_over(claim: &Claim, reply: Slot, silent: u32) -> Option<bool> {
    if !reply.has_replied(claim.wire.proto) {
        return Some(silent >= UNANSWERED_TICKS);
    }
    let seen = reply.tcp_seen();
    if claim.wire.proto == proto::TCP {
        let reset = seen & (SEEN_RST | SEEN_OTHERS_RST) != 0;
        let closed = seen & SEEN_FIN != 0 && seen & SEEN_OTHERS_FIN != 0;
        if !reset && !closed {
            // The hint may be lost if both sides close at the same time.
            return (seen & SEEN_FIN != 0).then_some(false);
        }
        let ack = reply.tcp_ack();
        let follows = (reset || reply.closing().may_be_over(ack)) && claim.follows(ack);
        return Some(follows || is_free_again(reset, silent));
    }
    let carried = Carried {
        protocol: claim.wire.proto,
        peer_port: claim.wire.src_id,
        acknowledged: false,
        original: 0,
        reply: seen,
        packets: 0,
        replies: reply.packets(Half::Reply),
        lasted: lasted(reply.created(), reply.last_seen(), reply.last_seen()),
    };
    let over = eviction_class(&carried, silent).is_some() || is_silent_stream(&carried, silent);
    over.then_some(true)
}
