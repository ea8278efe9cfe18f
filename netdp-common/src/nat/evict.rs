//! Recycling: the programs evict mappings in favour of a new flow, but never a live one
//! ([`crate::flow::eviction_class`]).

use super::traffic;
use crate::env::Env;
use crate::flow::{Carried, EvictionClass, eviction_class, idle, lasted};
use crate::layout::{
    ENDED_FOR_ROOM, Half, MAPPING_HANDED_OVER, MAPPING_HANDOVER_PENDING, MAPPING_HOST, SHARE_TOTAL,
    Tuple,
};
use crate::slot::{ShareSlot, Slot, bucket_of_mapping, port_map};

/// Mappings that are examined for one packet, at most.
const LOOKS: u32 = 8;

/// The mappings that may be evicted for a new flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Among {
    /// Those of its bucket, of one over its limit, or that have closed or had no reply for a while.
    All = 0,
    /// Those of its bucket, or of one with many more mappings.
    Own = 1,
}

/// The state of one attempt to recycle a mapping.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(super) struct Recycling {
    original: Tuple,
    wire: Tuple,
    /// The bucket of the new flow.
    bucket: u32,
    /// The mappings that may be evicted.
    among: Among,
    /// The number of mappings that a bucket may have at the moment.
    most: u32,
    /// The number of mappings of the new flow's bucket.
    has: u32,
    /// 1: a mapping was evicted.
    made: u32,
}

impl Recycling {
    /// The initial value, before an attempt.
    pub(super) const EMPTY: Self = Self {
        original: crate::packet::Packet::EMPTY.tuple,
        wire: crate::packet::Packet::EMPTY.tuple,
        bucket: 0,
        among: Among::All,
        most: 0,
        has: 0,
        made: 0,
    };

    /// Initialises an attempt for a bucket that has `has` mappings and may have no more than
    /// `most`; `among`: the mappings that may be evicted.
    #[inline(always)]
    pub(super) const fn begin(&mut self, bucket: u32, among: Among, most: u32, has: u32) {
        self.bucket = bucket;
        self.among = among;
        self.most = most;
        self.has = has;
        self.made = 0;
    }
}

/// Ends a mapping for a reason (`ENDED_*`), and removes it from all counts. Returns `false` if it does
/// not have both halves, or another CPU ends it: its wire tuple may by then belong to another mapping.
#[inline(always)]
pub(super) fn end<E: Env>(env: &E, original: &Tuple, wire: &Tuple, why: u32) -> bool {
    // While its halves are there, and not within `remove`, whose stack frame adds to that of the report.
    // Where another CPU ends it at the same moment, it is reported twice.
    env.report_end(original, wire, why);
    remove(env, original, wire)
}

#[inline(never)]
fn remove<E: Env>(env: &E, original: &Tuple, wire: &Tuple) -> bool {
    let half = env.lookup_snat(original);
    // The original half of another mapping must not be removed.
    let Some(half) = half.filter(|half| half.id() == wire.dst_id && half.addr().is_same(&wire.dst))
    else {
        // Nor the reply half of another mapping.
        let reply = env.lookup_rev_snat(wire);
        if reply.is_some_and(|it| it.id() == original.src_id && it.addr().is_same(&original.src)) {
            traffic::remove_reply(env, wire);
        }
        return false;
    };
    let bucket = bucket_of_mapping(env.secret(), &original.src, half.flags());
    let carried = half.is_carried_over();
    // The CPU that removes this half ends the mapping.
    if !env.remove_snat(original) {
        return false;
    }
    if carried {
        traffic::forget(env, original, Half::Original);
    }
    traffic::remove_reply(env, wire);
    for bucket in [bucket, SHARE_TOTAL] {
        if let Some(share) = env.lookup_share(bucket) {
            share.add_mappings(u64::MAX);
        }
    }
    let key = port_map::destination(wire);
    if let Some(map) = env.lookup_port_map(port_map::index(env.secret(), &key))
        && map.is_of(&key)
    {
        map.mark_free(wire.dst_id);
    }
    true
}

/// Returns the traffic that a mapping has carried so far; `None` if the flow is not translated by
/// netdp.
#[inline(always)]
pub(super) fn carried(original: &Tuple, half: Slot, reply: Slot) -> Option<Carried> {
    if reply.flags() & (MAPPING_HOST | MAPPING_HANDOVER_PENDING | MAPPING_HANDED_OVER) != 0 {
        return None;
    }
    Some(Carried {
        protocol: original.proto,
        peer_port: original.dst_id,
        acknowledged: reply.closing().is_over(half.tcp_ack(), reply.tcp_ack()),
        original: half.tcp_seen(),
        reply: reply.tcp_seen(),
        packets: half.packets(Half::Original),
        replies: reply.packets(Half::Reply),
        lasted: lasted(half.created(), half.last_seen(), reply.last_seen()),
    })
}

/// Evicts one of the mappings that began longest ago, as far as they are remembered: one of the
/// requesting bucket, or of a bucket over its limit; of other buckets only one that has closed or
/// had no reply for a while. Returns `false` if none of a few qualifies.
#[inline(never)]
pub(super) fn recycle<E: Env>(env: &E, recycling: &mut Recycling) -> bool {
    env.bounded_loop(LOOKS, recycling, |env, _, recycling| {
        look(env, recycling);
        recycling.made == 0
    });
    recycling.made != 0
}

/// Examines the remembered mapping that began or closed longest ago. A live one is dropped from the
/// queue until it closes; one that may be evicted later is queued again.
#[inline(always)]
fn look<E: Env>(env: &E, recycling: &mut Recycling) {
    if !env.pop_recent(&mut recycling.original) {
        return;
    }
    let Some(half) = env.lookup_snat(&recycling.original) else {
        return;
    };
    recycling.wire = recycling.original.reply_to(half.addr(), half.id());
    let Some(reply) = env.lookup_rev_snat(&recycling.wire) else {
        return;
    };
    let idle = idle(env.now(), half.last_seen(), reply.last_seen());
    let carried = carried(&recycling.original, half, reply);
    let Some(class) = carried.and_then(|carried| eviction_class(&carried, idle)) else {
        return;
    };
    let (pod, flags) = (&recycling.original.src, half.flags());
    let owner = bucket_of_mapping(env.secret(), pod, flags);
    let own = owner == recycling.bucket;
    let owned = env.lookup_share(owner).map_or(0, ShareSlot::mappings);
    let makes_room = if matches!(class, EvictionClass::LastAck) {
        false
    } else {
        match recycling.among {
            Among::Own => own || owned / 2 > recycling.has,
            Among::All => {
                own || owned > recycling.most
                    || matches!(
                        class,
                        EvictionClass::Closed | EvictionClass::Answered | EvictionClass::Unanswered
                    )
            }
        }
    };
    if makes_room {
        recycling.made = end(env, &recycling.original, &recycling.wire, ENDED_FOR_ROOM).into();
    } else {
        env.push_recent(&recycling.original);
    }
}
