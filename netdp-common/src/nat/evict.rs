//! Room that the programs make themselves: mappings that end so that others may begin.
//! Never one that lives ([`crate::spare`]).

use super::Work;
use crate::abi::{MAPPING_HANDED, MAPPING_HOST, MAPPING_YIELDED};
use crate::conntrack::idle;
use crate::port_map;
use crate::share::{self, bucket_of_mapping};
use crate::slot::Slot;
use crate::spare::{self, Spare};
use crate::tables::Tables;
use crate::tuple::Tuple;

/// Mappings that are looked at for one packet.
const LOOKS: u32 = 4;

/// What a look for room is about.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(super) struct Recycling {
    original: Tuple,
    wire: Tuple,
    /// The bucket that asks.
    bucket: u32,
    /// 1: only what is of that bucket.
    own: u32,
    /// How many mappings a bucket may have at the moment.
    most: u32,
    /// 1: one has ended.
    made: u32,
}

impl Recycling {
    /// Nothing yet.
    pub(super) const EMPTY: Self = Self {
        original: crate::packet::Packet::EMPTY.tuple,
        wire: crate::packet::Packet::EMPTY.tuple,
        bucket: 0,
        own: 0,
        most: 0,
        made: 0,
    };

    /// Begins a look for a bucket that may have no more than `most`; with `own` only for
    /// what is of that bucket.
    #[inline(always)]
    pub(super) const fn begin(&mut self, bucket: u32, own: bool, most: u32) {
        self.bucket = bucket;
        self.own = own as u32;
        self.most = most;
        self.made = 0;
    }
}

/// Ends a mapping, and takes it out of all that is counted.
#[inline(never)]
pub(super) fn end<T: Tables>(tables: &T, original: &Tuple, wire: &Tuple) -> bool {
    let Some(half) = tables.snat(original) else {
        return false;
    };
    let bucket = bucket_of_mapping(tables.secret(), &original.src, half.flags());
    tables.remove_snat(original);
    tables.remove_rev_snat(wire);
    for bucket in [bucket, share::TOTAL] {
        if let Some(share) = tables.share(bucket) {
            share.add_mappings(u64::MAX);
        }
    }
    let key = port_map::destination(wire);
    if let Some(map) = tables.port_map(port_map::index(tables.secret(), &key))
        && map.is_of(&key)
    {
        map.set(wire.dst_id, false);
    }
    true
}

/// How willingly a mapping makes room now; `None`: it lives, or is somebody else's.
#[inline(always)]
pub(super) fn class<T: Tables>(
    tables: &T,
    protocol: u32,
    half: Slot,
    reply: Slot,
) -> Option<Spare> {
    if reply.flags() & (MAPPING_HOST | MAPPING_HANDED | MAPPING_YIELDED) != 0 {
        return None;
    }
    let idle = idle(tables.now(), half.last_seen(), reply.last_seen());
    spare::class(
        protocol,
        (half.tcp_seen(), reply.tcp_seen()),
        reply.packets(),
        idle,
    )
}

/// Ends one of the mappings that began longest ago as far as that is remembered: of the
/// bucket that asks, or of one that has more than it may; of others only what has closed
/// or had no answer for a while. `false` if none of a few is of that kind.
#[inline(never)]
pub(super) fn recycle<T: Tables>(tables: &T, work: &mut Work) -> bool {
    let recycling = &mut work.recycling;
    tables.repeat(LOOKS, recycling, |tables, _, recycling| {
        look(tables, recycling);
        recycling.made == 0
    });
    recycling.made != 0
}

/// Looks at the oldest mapping.
#[inline(always)]
fn look<T: Tables>(tables: &T, recycling: &mut Recycling) {
    if !tables.oldest(&mut recycling.original) {
        return;
    }
    let protocol = recycling.original.proto;
    if let Some(half) = tables.snat(&recycling.original) {
        recycling.wire = recycling.original.reply_to(half.addr(), half.id());
        if let Some(reply) = tables.rev_snat(&recycling.wire)
            && let Some(class) = class(tables, protocol, half, reply)
        {
            let owner = bucket_of_mapping(tables.secret(), &recycling.original.src, half.flags());
            let own = owner == recycling.bucket;
            let spared = if recycling.own != 0 {
                own
            } else {
                let greedy =
                    (tables.share(owner)).is_some_and(|share| share.mappings() > recycling.most);
                own || greedy || matches!(class, Spare::Closed | Spare::Unanswered)
            };
            if spared && end(tables, &recycling.original, &recycling.wire) {
                recycling.made = 1;
                return;
            }
        }
    }
    tables.skip_oldest();
}
