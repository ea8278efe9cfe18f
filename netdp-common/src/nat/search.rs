//! The search for a free port. Its work for one packet is bounded: some random candidates, then
//! those that a map of taken ports leaves ([`port_map`]). If none is free, a mapping that is over
//! is evicted.

use super::candidate::{try_candidate, try_first};
use super::claim::{Claim, ClaimState, EVICTABLES};
use super::ports::Search;
use super::{evict, node, ports};
use crate::env::Env;
use crate::flow::{
    EvictionClass, SEEN_RST, age, eviction_class, idle, is_free_again, is_silent_stream, ticks32,
};
use crate::layout::{ENDED_FOR_ROOM, PORT_MAP_WORDS, SETTING_HASH_PORTS, SHARE_TOTAL, Tuple};
use crate::packet::{Packet, keyed_hash, low32};
use crate::slot::{PortMapSlot, ShareSlot, Slot, bucket_of_mapping, port_map};

/// Ranges of at most this many ports are walked completely.
const NARROW: u32 = 256;

/// Random candidates before the port map is consulted.
const AT_RANDOM: u32 = 64;

/// Random candidates if all ports were recently found taken, or if a port map is kept.
const SHORT_LOOKS: u32 = 8;

/// Candidates from a port map, for one packet. Together with the random ones they take a few tens
/// of microseconds.
const FROM_MAP: u32 = 112;

/// Candidates from a port map for the packet that started it, after all random candidates.
const FROM_NEW_MAP: u32 = 16;

/// Random candidates after which ports count as scarce: from then on the destination has a map,
/// well before all random candidates of a packet are likely to be taken. Three quarters of the
/// ports are taken where one packet in a hundred needs so many.
const SCARCE: u32 = 16;

/// Ticks after which a map with no free port is cleared: this finds ports that became free without
/// an update of the map.
const STALE_TICKS: u32 = ticks32(2);

/// Ticks without use after which a map is reassigned to another destination.
const UNUSED_TICKS: u32 = ticks32(1);

/// Ticks for which a pod that found no port has precedence over pods with many mappings.
const TURN_TICKS: u32 = ticks32(30);

/// Ticks for which a destination without free ports is not searched: 0.5 s.
const EXHAUSTED_TICKS: u32 = 8;
/// The number of mappings from which on a pod has many.
const MANY: u32 = 8192;

/// Searches for a free port and claims it. A destination without one is marked as exhausted for a
/// short time. Runs in steps, see [`super::allocate::allocate`].
#[inline(always)]
pub(super) fn run<E: Env>(env: &E, pkt: &Packet, claim: &mut Claim) {
    if claim.state == ClaimState::Searching {
        let has_candidate = begin(env, pkt, claim);
        // If the preferred port was taken, others may be too.
        if has_candidate && claim.has_wanted == 0 {
            try_first(env, claim);
            claim.at = 1;
        }
    }
    if claim.state == ClaimState::Searching {
        at_random(env, claim);
    }
    if claim.state == ClaimState::Claimed && claim.tried >= SCARCE && claim.search.len() > NARROW {
        // A map that is new when the random candidates fail would miss free ports.
        prepare_map(env, claim);
    }
    if claim.state == ClaimState::Searching
        && claim.search.len() > NARROW
        && claim.exhausted == 0
        && prepare_map(env, claim)
    {
        from_map(env, claim);
    }
    if claim.state == ClaimState::Searching {
        instead_of(env, claim);
    }
    if claim.state == ClaimState::Searching && claim.exhausted == 0 {
        give_up(env, claim);
    }
}

/// Reports whether all ports towards a destination were recently found taken.
#[inline(always)]
fn is_exhausted<E: Env>(env: &E, wire: &Tuple) -> bool {
    (env.lookup_exhausted(wire)).is_some_and(|since| age(env.now(), since) < EXHAUSTED_TICKS)
}

/// Computes the key and index of the destination's port map.
#[inline(always)]
fn locate<E: Env>(env: &E, claim: &mut Claim) {
    claim.key = port_map::destination(&claim.wire);
    claim.map = port_map::index(env.secret(), &claim.key);
}

/// Returns the port map of the destination, if one is kept.
#[inline(always)]
fn map_of<E: Env>(env: &E, claim: &Claim) -> Option<PortMapSlot> {
    env.lookup_port_map(claim.map)
        .filter(|map| map.is_of(&claim.key))
}

/// Starts the walk at a random port, or at one derived from the tuple; returns `false` if there is
/// no candidate. Most walks end with the first candidate, so their limits are determined later.
#[inline(never)]
fn begin<E: Env>(env: &E, pkt: &Packet, claim: &mut Claim) -> bool {
    let start = if env.settings().flags & SETTING_HASH_PORTS != 0 {
        low32(keyed_hash(&pkt.tuple, env.secret()))
    } else {
        env.random()
    };
    claim.search = Search::new(ports::total(&claim.ranges), start);
    claim.at = 0;
    match ports::nth_port(&claim.ranges, claim.search.offset(0)) {
        Some(first) => {
            claim.wire.dst_id = first;
            true
        }
        None => false,
    }
}

/// Continues the walk. If the ports are marked as exhausted or have a map, the walk is short and
/// serves to find a mapping to evict.
#[inline(never)]
fn at_random<E: Env>(env: &E, claim: &mut Claim) -> bool {
    locate(env, claim);
    // Each port class is exhausted separately.
    claim.wire.dst_id = claim.ranges[0].min;
    claim.exhausted = is_exhausted(env, &claim.wire).into();
    let len = claim.search.len();
    let short = claim.exhausted != 0 || len > NARROW && map_of(env, claim).is_some();
    if short && env.settings().flags & SETTING_HASH_PORTS != 0 {
        // From the same start, each retransmission would meet the same few candidates.
        claim.search = Search::new(len, env.random());
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
    env.bounded_loop(most.saturating_sub(claim.at), claim, |env, n, claim| {
        claim.tried = n;
        let offset = claim.search.offset(claim.at + n);
        if let Some(candidate) = ports::nth_port(&claim.ranges, offset) {
            claim.wire.dst_id = candidate;
            try_candidate(env, claim);
        }
        claim.state == ClaimState::Searching
    });
    claim.state == ClaimState::Claimed
}

/// Provides a port map of the destination if there is one or a slot for one, and sets the number of
/// its ports that may be tried.
#[inline(never)]
fn prepare_map<E: Env>(env: &E, claim: &mut Claim) -> bool {
    let Some(map) = env.lookup_port_map(claim.map) else {
        return false;
    };
    let now = env.now();
    if map.is_of(&claim.key) {
        map.touch(now);
        claim.tries = FROM_MAP;
        return true;
    }
    if map.is_in_use(now, UNUSED_TICKS) {
        return false;
    }
    map.take(&claim.key, now);
    clear(env, claim);
    claim.tries = FROM_NEW_MAP;
    true
}

/// Clears the map: no port is known to be taken.
#[inline(always)]
fn clear<E: Env>(env: &E, claim: &mut Claim) {
    env.bounded_loop(PORT_MAP_WORDS, claim, |env, n, claim| {
        if let Some(map) = env.lookup_port_map(claim.map) {
            map.set_word(n, 0);
        }
        true
    });
}

/// Tries ports that the map does not show as taken, and marks each of them: it is then taken, by
/// this flow or by another.
#[inline(never)]
fn from_map<E: Env>(env: &E, claim: &mut Claim) -> bool {
    claim.at = env.random();
    // One step for each word, and one more for each try.
    env.bounded_loop(PORT_MAP_WORDS + FROM_MAP, claim, |env, _, claim| {
        step(env, claim)
    });
    let now = env.now();
    if claim.state == ClaimState::Searching
        && claim.tries > 0
        && let Some(map) = env.lookup_port_map(claim.map)
        && map.is_stale(now, STALE_TICKS)
    {
        map.set_cleared(now);
        clear(env, claim);
        // The next packets search the cleared map.
        claim.tries = 0;
    }
    claim.state == ClaimState::Claimed
}

/// Tries one port of the current word, or moves on to the next word; returns `false` at the end.
#[inline(always)]
fn step<E: Env>(env: &E, claim: &mut Claim) -> bool {
    let Some(map) = env.lookup_port_map(claim.map) else {
        return false;
    };
    let n = claim.at & (PORT_MAP_WORDS - 1);
    let reserved = env.reserved_ports(n);
    let free = !(map.word(n) | reserved) & port_map::word_mask(&claim.ranges, n);
    if free == 0 {
        claim.at = claim.at.wrapping_add(1);
        return true;
    }
    let Ok(port) = u16::try_from(n * 64 + port_map::lowest(free)) else {
        return false;
    };
    map.mark_taken(port);
    claim.wire.dst_id = port;
    try_candidate(env, claim);
    claim.tries -= 1;
    claim.state == ClaimState::Searching && claim.tries > 0
}

/// Reports whether a pod with many mappings has to wait for ports towards this destination: a pod
/// with fewer recently found none.
#[inline(never)]
pub(super) fn must_wait<E: Env>(env: &E, claim: &mut Claim) -> bool {
    // Most nodes never refuse a flow, and the map's key is a hash of the whole tuple.
    if (env.lookup_share(SHARE_TOTAL)).is_none_or(|it| !it.has_refused(env.now(), TURN_TICKS)) {
        return false;
    }
    let has = env
        .lookup_share(claim.bucket)
        .map_or(0, ShareSlot::mappings);
    if has < MANY {
        return false;
    }
    locate(env, claim);
    let Some(map) = map_of(env, claim) else {
        return false;
    };
    match map.refused_lately(claim.ranges[0].min, env.now(), TURN_TICKS) {
        Some(other) if other != claim.bucket => {
            (env.lookup_share(other)).is_some_and(|other| other.mappings() < has / 2)
        }
        _ => false,
    }
}

/// Records that no port is free, and the bucket for which none was found.
#[inline(never)]
fn give_up<E: Env>(env: &E, claim: &mut Claim) -> bool {
    claim.wire.dst_id = claim.ranges[0].min;
    // If only the tries have run out, there may be more ports.
    if claim.tries == 0 {
        return false;
    }
    env.insert_exhausted(&claim.wire, env.now());
    if let Some(map) = map_of(env, claim) {
        map.set_refused(claim.bucket, claim.ranges[0].min, env.now());
        if let Some(total) = env.lookup_share(SHARE_TOTAL) {
            total.set_refused(env.now());
        }
    }
    true
}

/// Evicts a remembered mapping and claims its port.
#[inline(always)]
fn instead_of<E: Env>(env: &E, claim: &mut Claim) {
    for n in 0..EVICTABLES {
        if claim.state == ClaimState::Searching
            && let Some(port) = claim.evictable_port(n)
        {
            claim.wire.dst_id = port;
            instead_of_one(env, claim);
        }
    }
}

#[inline(never)]
fn instead_of_one<E: Env>(env: &E, claim: &mut Claim) -> bool {
    let Some(reply) = env.lookup_rev_snat(&claim.wire) else {
        try_candidate(env, claim);
        return true;
    };
    let wire = &claim.wire;
    // Reuses the memory of the map's key, which only `give_up` still needs.
    claim.key = wire.answers(reply.addr(), reply.id());
    let ended =
        gives_way(env, claim, reply) && evict::end(env, &claim.key, &claim.wire, ENDED_FOR_ROOM);
    if ended {
        try_candidate(env, claim);
    }
    claim.key = port_map::destination(&claim.wire);
    ended
}

/// Reports whether the mapping with the original tuple in `claim.key` may be evicted: nothing came
/// back for a while, a request was answered a while ago, a stream is over, or a connection has
/// closed. If its pod has many times as many mappings as this one, any mapping that is not live may
/// be evicted. Not inlined: its stack frame would add to that of [`evict::end`].
#[inline(never)]
fn gives_way<E: Env>(env: &E, claim: &Claim, reply: Slot) -> bool {
    let original = &claim.key;
    let Some(half) = env.lookup_snat(original) else {
        return false;
    };
    let Some(carried) = evict::carried(original, half, reply) else {
        return false;
    };
    let idle = idle(env.now(), half.last_seen(), reply.last_seen());
    let over = match eviction_class(&carried, idle) {
        None => is_silent_stream(&carried, idle),
        Some(EvictionClass::Unanswered | EvictionClass::Answered) => true,
        Some(EvictionClass::Closed | EvictionClass::Closing) => {
            let reset = (carried.original | carried.reply) & SEEN_RST != 0;
            claim.follows(reply.tcp_ack())
                || is_free_again(reset, idle)
                || has_many_more(env, claim, half.flags())
        }
        Some(EvictionClass::LastAck) => false,
        Some(EvictionClass::Asking) => has_many_more(env, claim, half.flags()),
    };
    // Sockets are looked up only for mappings that would be evicted.
    over && !node::receives(env, &claim.wire) && !node::owns_flow(env, &claim.wire)
}

/// Reports whether the bucket of the mapping in `claim.key`, with these flags, has many times as
/// many mappings as the bucket of the claim.
#[inline(always)]
fn has_many_more<E: Env>(env: &E, claim: &Claim, flags: u16) -> bool {
    let owner = bucket_of_mapping(env.secret(), &claim.key.src, flags);
    if owner == claim.bucket {
        return false;
    }
    match (env.lookup_share(owner), env.lookup_share(claim.bucket)) {
        (Some(owner), Some(asks)) => owner.mappings() > asks.mappings() * 4 + 64,
        _ => false,
    }
}
