//! The search for a port that is free. Its work for one packet is bounded: some
//! candidates at random, then those that a map of taken ports leaves ([`port_map`]).
//! Where none is free, a mapping that is over gives way.

use super::follow::is_nodes_by_now;
use super::open::{Claim, Outcome, SPARES, try_candidate, try_first};
use super::{evict, host};
use crate::abi::SETTING_HASH_PORTS;
use crate::conntrack::{CLOSED_SECONDS, SEEN_RST, idle, ticks32};
use crate::packet::Packet;
use crate::port::{self, Search};
use crate::port_map::{self, PortMapSlot, WORDS};
use crate::share::{ShareSlot, bucket_of_mapping};
use crate::slot::Slot;
use crate::spare::{CLOSED_TICKS, Spare, is_silent_stream, spare};
use crate::tables::Tables;

/// Ranges of no more ports are walked through whole.
const NARROW: u32 = 256;
/// Candidates at random before a map of the taken ones is asked.
const AT_RANDOM: u32 = 64;
/// Candidates at random where all were found taken just now, or a map is kept.
const SHORT_LOOKS: u32 = 8;
/// Candidates that a map leaves, for one packet. With those at random they take a few
/// tens of microseconds.
const FROM_MAP: u32 = 112;
/// The same for a packet that has begun the map, after all candidates at random.
const FROM_NEW_MAP: u32 = 16;
/// After this time a map in which all is taken begins anew: what ended meanwhile is found
/// though nobody has told of it.
const STALE_TICKS: u32 = ticks32(2);
/// A map that nobody has looked for this long goes to another destination.
const UNUSED_TICKS: u32 = ticks32(1);
/// For how long a pod that found no port has precedence over those that have many.
const TURN_TICKS: u32 = ticks32(30);
/// So many mappings are many.
const MANY: u32 = 8192;

/// Looks for a free port and claims it. A destination without any is left alone for a
/// moment. Step by step, see [`super::open::open`].
#[inline(always)]
pub(super) fn run<T: Tables>(tables: &T, pkt: &Packet, claim: &mut Claim) {
    if claim.outcome == Outcome::Searching {
        let has_candidate = begin(tables, pkt, claim);
        // Where the port that is wanted most was taken, others may be too.
        if has_candidate && claim.has_wanted == 0 {
            try_first(tables, claim);
            claim.at = 1;
        }
    }
    if claim.outcome == Outcome::Searching {
        at_random(tables, claim);
    }
    if claim.outcome == Outcome::Searching
        && claim.search.len() > NARROW
        && claim.exhausted == 0
        && prepare_map(tables, claim)
    {
        from_map(tables, claim);
    }
    if claim.outcome == Outcome::Searching {
        instead_of(tables, claim);
    }
    if claim.outcome == Outcome::Searching && claim.exhausted == 0 {
        give_up(tables, claim);
    }
}

/// Notes where the map of the destination is.
#[inline(always)]
fn locate<T: Tables>(tables: &T, claim: &mut Claim) {
    claim.key = port_map::destination(&claim.wire);
    claim.map = port_map::index(tables.secret(), &claim.key);
}

/// The map of the destination, if one is kept.
#[inline(always)]
fn map_of<T: Tables>(tables: &T, claim: &Claim) -> Option<PortMapSlot> {
    tables
        .port_map(claim.map)
        .filter(|map| map.is_of(&claim.key))
}

/// Begins a walk from a random start, or from one that follows from the tuple; `false` if it has
/// no candidate. Most walks end with the first one: what bounds them is asked about later.
#[inline(never)]
fn begin<T: Tables>(tables: &T, pkt: &Packet, claim: &mut Claim) -> bool {
    let start = if tables.settings().flags & SETTING_HASH_PORTS != 0 {
        port_map::fold(pkt.tuple.keyed_hash(tables.secret()))
    } else {
        tables.random()
    };
    claim.search = Search::new(port::total(&claim.ranges), start);
    claim.at = 0;
    match port::nth_port(&claim.ranges, claim.search.offset(0)) {
        Some(first) => {
            claim.wire.dst_id = first;
            true
        }
        None => false,
    }
}

/// Goes on with the walk; with a short one where more is known, for one that gives way.
#[inline(never)]
fn at_random<T: Tables>(tables: &T, claim: &mut Claim) -> bool {
    locate(tables, claim);
    // Classes run out one by one.
    claim.wire.dst_id = claim.ranges[0].min;
    claim.exhausted = tables.is_exhausted(&claim.wire).into();
    let len = claim.search.len();
    let short = claim.exhausted != 0 || len > NARROW && map_of(tables, claim).is_some();
    if short && tables.settings().flags & SETTING_HASH_PORTS != 0 {
        // From the same start it would meet the same few whenever a packet is sent again.
        claim.search = Search::new(len, tables.random());
        claim.at = 0;
    }
    let most = if short {
        SHORT_LOOKS
    } else if len > NARROW {
        AT_RANDOM
    } else {
        NARROW
    };
    let most = if most < len { most } else { len };
    claim.tries = (most == len).into();
    tables.repeat(most.saturating_sub(claim.at), claim, |tables, n, claim| {
        let offset = claim.search.offset(claim.at + n);
        if let Some(candidate) = port::nth_port(&claim.ranges, offset) {
            claim.wire.dst_id = candidate;
            try_candidate(tables, claim);
        }
        claim.outcome == Outcome::Searching
    });
    claim.outcome == Outcome::Claimed
}

/// Has a map of the destination, if there is one or place for one, and notes how many of its
/// ports may be tried.
#[inline(never)]
fn prepare_map<T: Tables>(tables: &T, claim: &mut Claim) -> bool {
    let Some(map) = tables.port_map(claim.map) else {
        return false;
    };
    let now = tables.now();
    if map.is_of(&claim.key) {
        map.touch(now);
        claim.tries = FROM_MAP;
        return true;
    }
    if map.is_in_use(now, UNUSED_TICKS) {
        return false;
    }
    map.take(&claim.key, now);
    clear(tables, claim);
    claim.tries = FROM_NEW_MAP;
    true
}

/// Notes of no port that it is taken.
#[inline(always)]
fn clear<T: Tables>(tables: &T, claim: &mut Claim) {
    tables.repeat(WORDS, claim, |tables, n, claim| {
        if let Some(map) = tables.port_map(claim.map) {
            map.set_word(n, 0);
        }
        true
    });
}

/// Tries ports that the map does not know to be taken. Whatever is tried is taken then,
/// by this flow or by another.
#[inline(never)]
fn from_map<T: Tables>(tables: &T, claim: &mut Claim) -> bool {
    claim.at = tables.random();
    // Each word once, and once more for each try.
    tables.repeat(WORDS + FROM_MAP, claim, |tables, _, claim| {
        step(tables, claim)
    });
    let now = tables.now();
    if claim.outcome == Outcome::Searching
        && claim.tries > 0
        && let Some(map) = tables.port_map(claim.map)
        && map.is_stale(now, STALE_TICKS)
    {
        map.set_cleared(now);
        clear(tables, claim);
        // Those that are to be found again are found with the next packets.
        claim.tries = 0;
    }
    claim.outcome == Outcome::Claimed
}

/// Tries one port of the word at hand, or goes on to the next word; `false` at the end.
#[inline(always)]
fn step<T: Tables>(tables: &T, claim: &mut Claim) -> bool {
    let Some(map) = tables.port_map(claim.map) else {
        return false;
    };
    let n = claim.at & (WORDS - 1);
    let reserved = tables.ports_reserved(n);
    let free = !(map.word(n) | reserved) & port_map::word_mask(&claim.ranges, n);
    if free == 0 {
        claim.at = claim.at.wrapping_add(1);
        return true;
    }
    let Ok(port) = u16::try_from(n * 64 + port_map::lowest(free)) else {
        return false;
    };
    map.set(port, true);
    claim.wire.dst_id = port;
    try_candidate(tables, claim);
    claim.tries -= 1;
    claim.outcome == Outcome::Searching && claim.tries > 0
}

/// Whether a pod with many mappings has to wait for ports towards this destination: one
/// with fewer found none lately.
#[inline(never)]
pub(super) fn must_wait<T: Tables>(tables: &T, claim: &mut Claim) -> bool {
    let has = tables.share(claim.bucket).map_or(0, ShareSlot::mappings);
    if has < MANY {
        return false;
    }
    locate(tables, claim);
    let Some(map) = map_of(tables, claim) else {
        return false;
    };
    match map.refused_lately(claim.ranges[0].min, tables.now(), TURN_TICKS) {
        Some(other) if other != claim.bucket => {
            (tables.share(other)).is_some_and(|other| other.mappings() < has / 2)
        }
        _ => false,
    }
}

/// Remembers that there is no port, and who found none.
#[inline(never)]
fn give_up<T: Tables>(tables: &T, claim: &mut Claim) -> bool {
    claim.wire.dst_id = claim.ranges[0].min;
    // Where tries have run out there may be more.
    if claim.tries == 0 {
        return false;
    }
    tables.set_exhausted(&claim.wire);
    if let Some(map) = map_of(tables, claim) {
        map.set_refused(claim.bucket, claim.ranges[0].min, tables.now());
    }
    true
}

/// Claims the port of a mapping that gives way.
#[inline(always)]
fn instead_of<T: Tables>(tables: &T, claim: &mut Claim) {
    for n in 0..SPARES {
        if claim.outcome == Outcome::Searching
            && let Some(port) = claim.spare_port(n)
        {
            claim.wire.dst_id = port;
            instead_of_one(tables, claim);
        }
    }
}

#[inline(never)]
fn instead_of_one<T: Tables>(tables: &T, claim: &mut Claim) -> bool {
    let Some(reply) = tables.rev_snat(&claim.wire) else {
        try_candidate(tables, claim);
        return true;
    };
    let wire = &claim.wire;
    // The room for the key of maps: it is not asked for any more but by `give_up`.
    claim.key = wire.answers(reply.addr(), reply.id());
    let ended = gives_way(tables, claim, reply) && evict::end(tables, &claim.key, &claim.wire);
    if ended {
        try_candidate(tables, claim);
    }
    claim.key = port_map::destination(&claim.wire);
    ended
}

/// Whether the mapping with the original tuple in `claim.key` gives way: nothing came back
/// for a while, a question was answered a while ago, a stream is over, or a connection has
/// closed. Of a pod that has many times as many mappings as this one, whatever does not
/// live gives way.
#[inline(always)]
fn gives_way<T: Tables>(tables: &T, claim: &Claim, reply: Slot) -> bool {
    let original = &claim.key;
    let Some(half) = tables.snat(original) else {
        return false;
    };
    let Some(carried) = evict::carried(original, half, reply) else {
        return false;
    };
    let idle = idle(tables.now(), half.last_seen(), reply.last_seen());
    let over = match spare(&carried, idle) {
        None => is_silent_stream(&carried, idle),
        Some(Spare::Unanswered | Spare::Answered) => true,
        Some(Spare::Closed | Spare::Closing) => {
            let reset = (carried.original | carried.reply) & SEEN_RST != 0;
            is_free_again(reset, claim.follows(reply.tcp_ack()), idle)
                || has_many_more(tables, claim, half.flags())
        }
        Some(Spare::LastAck) => false,
        Some(Spare::Asking) => has_many_more(tables, claim, half.flags()),
    };
    // Sockets are looked up for what gives way only.
    over && !is_nodes_by_now(tables, &claim.wire) && !host::is_nodes(tables, &claim.wire)
}

/// Whether the port of a connection that has closed, with both FINs acknowledged or long ago, may
/// be used for another one to the same peer: with a sequence number that lies after the earlier
/// connection's (`follows`) at once; else when a RST has ended it, and nothing is under way any more, or when the peer's
/// TIME-WAIT is over (`TCP_TIMEWAIT_LEN`, include/net/tcp.h, Linux 6.12).
#[inline(always)]
pub(super) const fn is_free_again(reset: bool, follows: bool, idle: u32) -> bool {
    follows || reset && idle >= CLOSED_TICKS || idle >= ticks32(CLOSED_SECONDS)
}

/// Whether the bucket of the mapping in `claim.key`, with these flags, has many times as many
/// mappings as the one that asks.
#[inline(always)]
fn has_many_more<T: Tables>(tables: &T, claim: &Claim, flags: u16) -> bool {
    let owner = bucket_of_mapping(tables.secret(), &claim.key.src, flags);
    if owner == claim.bucket {
        return false;
    }
    match (tables.share(owner), tables.share(claim.bucket)) {
        (Some(owner), Some(asks)) => owner.mappings() > asks.mappings() * 4 + 64,
        _ => false,
    }
}
