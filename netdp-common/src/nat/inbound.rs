//! Flows that keep the pod's address although their peer is masqueraded: inbound flows, and flows
//! that an earlier policy bypassed.
//!
//! Unanswered flows are kept in a map with LRU eviction
//! ([`lookup_asked`](crate::env::InboundFlows::lookup_asked)). Answered flows are kept in a map
//! without eviction ([`lookup_live`](crate::env::InboundFlows::lookup_live)), of which no pod or
//! peer takes more than its share. A closed flow moves back to the former.

use super::origin::is_forged;
use crate::env::Env;
use crate::flow::{
    BY_PROTOCOL, INBOUND_SECONDS, LINGER_TICKS, SEEN_DATA, fin_is_plausible, is_asked_still,
    is_fresh, rst_is_acceptable, ticks32,
};
use crate::layout::{
    Inbound, LIVE_FIN_IN, LIVE_FIN_OUT, LIVE_ORIGIN_SHIFT, Live, SHARE_TOTAL, Tuple,
};
use crate::packet::{ACK, FIN, L4, Packet, RST, SYN};
use crate::slot::{Key, Role, ShareSlot, share};

/// The relation of a pod's packet to such a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Continued {
    /// It continues no such flow.
    No,
    /// It continues such a flow.
    Yes,
    /// It has the tuple of such a flow, but does not come from the pod.
    Forged,
}

/// Checks whether a pod's packet continues the flow of `tuple`, and if so records the packet.
#[inline(never)]
pub(super) fn continued<E: Env>(env: &E, pkt: &Packet, tuple: &Tuple) -> Continued {
    let now = env.now();
    if let Some(slot) = env.lookup_live(tuple) {
        let live = slot.get();
        if is_fresh(tuple.proto, &live, now) {
            let ifindex = env.ingress_ifindex();
            if live.seen >> LIVE_ORIGIN_SHIFT != ifindex & 0xffff {
                if is_forged(env, &pkt.tuple.src, pkt.family) {
                    return Continued::Forged;
                }
                slot.set_origin(ifindex);
            }
            slot.refresh(now);
            if let L4::Tcp(segment) = pkt.l4 {
                if segment.flags & ACK != 0 {
                    slot.set_ack(segment.ack);
                }
                let closed = segment.flags & FIN != 0 && slot.set_fin(LIVE_FIN_OUT)
                    || segment.flags & RST != 0 && segment.bad_checksum == 0;
                if closed {
                    end(env, tuple, LINGER_TICKS);
                }
            }
            return Continued::Yes;
        }
        end(env, tuple, 0);
    }
    let Some(slot) = env.lookup_asked(tuple) else {
        return Continued::No;
    };
    let asked = slot.get();
    if !is_asked_still(tuple.proto, asked, now) {
        return Continued::No;
    }
    if is_forged(env, &pkt.tuple.src, pkt.family) {
        return Continued::Forged;
    }
    slot.refresh(now);
    if asked.limit != LINGER_TICKS
        && is_answer(&pkt.l4)
        && !promote(env, pkt, tuple, now, 0)
        && matches!(pkt.l4, L4::Tcp(_))
    {
        // Over its share the flow gets the same timeout, but may be evicted.
        slot.set_limit(ticks32(INBOUND_SECONDS));
    }
    Continued::Yes
}

/// Reports whether a flow with this `tuple` is known. Records nothing.
#[inline(never)]
pub(super) fn is_recorded<E: Env>(env: &E, tuple: &Tuple) -> bool {
    let now = env.now();
    let live = env.lookup_live(tuple);
    if live.is_some_and(|slot| is_fresh(tuple.proto, &slot.get(), now)) {
        return true;
    }
    (env.lookup_asked(tuple)).is_some_and(|slot| is_asked_still(tuple.proto, slot.get(), now))
}

/// Records a packet from outside to an address behind the node that may begin such a flow
/// (`begins`) or continues one.
#[inline(never)]
pub(super) fn record_arrival<E: Env>(env: &E, pkt: &Packet, begins: bool) -> bool {
    let now = env.now();
    let tuple = pkt.tuple.reversed();
    if let Some(slot) = env.lookup_live(&tuple) {
        let live = slot.get();
        if is_fresh(tuple.proto, &live, now) {
            slot.refresh(now);
            if let L4::Tcp(segment) = pkt.l4 {
                // A segment that the pod would not accept changes nothing.
                let fin =
                    segment.flags & FIN != 0 && fin_is_plausible(SEEN_DATA, live.ack, segment);
                let closed = fin && slot.set_fin(LIVE_FIN_IN)
                    || segment.flags & RST != 0 && rst_is_acceptable(SEEN_DATA, live.ack, segment);
                if closed {
                    end(env, &tuple, LINGER_TICKS);
                }
            }
            return true;
        }
        end(env, &tuple, 0);
    }
    if !begins {
        return false;
    }
    let syn = matches!(pkt.l4, L4::Tcp(segment) if segment.flags & (SYN | ACK) == SYN);
    match env.lookup_asked(&tuple) {
        Some(slot) if !syn && is_asked_still(tuple.proto, slot.get(), now) => slot.refresh(now),
        _ => record_asked(env, &tuple, BY_PROTOCOL),
    }
    true
}

/// Records that the pod's packet continues a flow that was bypassed. `limit`: silence in ticks
/// after which the flow ends, or 0 for the usual timeout.
#[inline(always)]
pub(super) fn record_bypassed<E: Env>(env: &E, pkt: &Packet, limit: u32) {
    if !promote(env, pkt, &pkt.tuple, env.now(), limit) {
        record_asked(env, &pkt.tuple, limit);
    }
}

/// Removes a flow, because its pod begins another with the same tuple.
#[inline(always)]
pub(super) fn forget<E: Env>(env: &E, tuple: &Tuple) {
    if env.lookup_live(tuple).is_some() {
        end(env, tuple, 0);
    }
    env.remove_asked(tuple);
}

/// Records a flow that the pod has not answered, or that has closed. `limit`: [`Inbound::limit`].
#[inline(always)]
fn record_asked<E: Env>(env: &E, tuple: &Tuple, limit: u32) {
    let inbound = Inbound {
        last_seen: env.now(),
        limit,
    };
    env.insert_asked(tuple, &inbound);
}

/// Reports whether this kind of packet is sent by a pod only if it takes part in the flow.
#[inline(always)]
const fn is_answer(l4: &L4) -> bool {
    match l4 {
        L4::Tcp(segment) => segment.flags & RST == 0,
        L4::Udp | L4::QueryReply | L4::AddressOnly => true,
        L4::Query | L4::Error | L4::LaterFragment | L4::Discovery | L4::Untranslatable(_) => false,
    }
}

/// Moves a flow to the map without eviction, unless its pod or its peer has used up its share of
/// that map.
#[inline(never)]
fn promote<E: Env>(env: &E, pkt: &Packet, tuple: &Tuple, now: u32, limit: u32) -> bool {
    let Some([pod, peer, total]) = shares(env, tuple) else {
        return false;
    };
    let most = share::limit(env.limits().inbound_capacity, total.inbound());
    if pod.inbound() >= most || peer.inbound() >= most {
        return false;
    }
    let ack = match pkt.l4 {
        L4::Tcp(segment) => segment.ack,
        _ => 0,
    };
    let live = Live {
        last_seen: now,
        limit,
        seen: env.ingress_ifindex() << LIVE_ORIGIN_SHIFT,
        ack,
    };
    if !env.insert_live(tuple, &live) {
        return false;
    }
    pod.add_inbound(1);
    peer.add_inbound(1);
    total.add_inbound(1);
    env.remove_asked(tuple);
    true
}

/// Ends a live flow; its packets that are still in flight keep the pod's address for `linger`
/// ticks.
#[inline(never)]
fn end<E: Env>(env: &E, tuple: &Tuple, linger: u32) -> bool {
    if linger > 0 {
        record_asked(env, tuple, linger);
    }
    let removed = env.remove_live(tuple);
    if removed && let Some([pod, peer, total]) = shares(env, tuple) {
        pod.add_inbound(u64::MAX);
        peer.add_inbound(u64::MAX);
        total.add_inbound(u64::MAX);
    }
    removed
}

/// Returns the shares against which a flow counts: its pod's, its peer's, and the total.
#[inline(always)]
fn shares<E: Env>(env: &E, tuple: &Tuple) -> Option<[ShareSlot; 3]> {
    let secret = env.secret();
    let pod = env.lookup_share(Key::of(secret, &tuple.src, Role::Pod).bucket())?;
    let peer = env.lookup_share(Key::of(secret, &tuple.dst, Role::Peer).bucket())?;
    Some([pod, peer, env.lookup_share(SHARE_TOTAL)?])
}
