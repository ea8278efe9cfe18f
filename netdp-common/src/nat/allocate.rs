//! New mappings: the search for a free wire tuple, and the claim.

use super::candidate::try_first;
use super::claim::{Claim, ClaimState, EVICTABLES, Evictable};
use super::established::{apply, on_egress_hit};
use super::evict::recycle;
use super::scratch::Scratch;
use super::{endpoints, ports, search, traffic};
use crate::env::{Env, InsertError};
use crate::layout::{
    DropReason, EVENTS_BEGIN, MAPPING_COUNTED_ORIGINAL, MAPPING_COUNTED_REPLY, Mapping,
    PORT_RANGES, PortRange, SETTING_HAIRPIN, SETTING_HASH_PORTS, SETTING_PORTS,
    SETTING_RANDOM_PORTS, SETTING_UDP_ENDPOINTS, SHARE_TOTAL, Traffic, Tuple, packed, proto,
};
use crate::packet::{ACK, L4, Packet, SYN};
use crate::slot::Slot;
use crate::verdict::Verdict;

/// Creates a mapping with the address in `pkt.new`: claims a wire tuple by inserting the reply
/// half, then inserts the original half. If another CPU was faster with the same flow, releases the
/// claim and uses the other mapping.
///
/// Runs in steps, each with a stack frame that is gone before the next: all live frames together
/// may have 512 bytes. Their shared state is in `scratch`.
#[inline(always)]
pub(super) fn allocate<E: Env>(env: &E, scratch: &mut Scratch, flags: u16) -> Verdict {
    begin(env, scratch, flags);
    let Scratch { pkt, claim, .. } = scratch;
    if !search::must_wait(env, claim) {
        if claim.has_wanted != 0 {
            try_first(env, claim);
        }
        search::run(env, pkt, claim);
    }
    match claim.state {
        ClaimState::Claimed => finish(env, scratch, flags),
        ClaimState::Searching => Verdict::Drop(DropReason::NoFreePort),
        ClaimState::Full => {
            // Makes room for the next packet.
            recycle(env, &mut scratch.recycling);
            Verdict::Drop(DropReason::TableFull)
        }
    }
}

/// Initialises the search in `scratch.claim`.
#[inline(never)]
fn begin<E: Env>(env: &E, scratch: &mut Scratch, flags: u16) {
    let Scratch { pkt, claim, .. } = scratch;
    let wanted = wanted_port(env, pkt);
    claim.wire = pkt
        .tuple
        .reply_to(pkt.new.addr, wanted.unwrap_or(pkt.tuple.src_id));
    claim.reply = Mapping::new(
        &pkt.tuple.src,
        pkt.tuple.src_id,
        flags | MAPPING_COUNTED_REPLY,
        env.now(),
    );
    claim.ranges = ranges_for(env, &pkt.tuple);
    claim.state = ClaimState::Searching;
    claim.tried = 0;
    claim.candidates = 0;
    claim.evictable = [Evictable::NONE; EVICTABLES];
    (claim.is_syn, claim.syn) = match pkt.l4 {
        L4::Tcp(segment) if segment.flags & (SYN | ACK) == SYN => (1, segment.seq),
        _ => (0, 0),
    };
    claim.wanted = u32::from(claim.wire.dst_id);
    claim.has_wanted = (wanted.is_some() && may_have(env, claim)).into();
}

/// Completes the mapping and returns its verdict.
#[inline(never)]
fn finish<E: Env>(env: &E, scratch: &mut Scratch, flags: u16) -> Verdict {
    let Scratch { pkt, claim, .. } = scratch;
    // The claim is in the map; its memory is reused for the original half, which counts this
    // packet.
    claim.reply = Mapping::new(
        &pkt.new.addr,
        claim.wire.dst_id,
        flags | claim.origin | MAPPING_COUNTED_ORIGINAL,
        env.now(),
    );
    let place = env.place();
    (claim.reply.uplink, claim.reply.epoch) = (place.uplink, place.epoch);
    claim.reply.traffic = packed(env.l3_len());
    // SAFETY: the claim's own half, which outlives this slot.
    let half = unsafe { Slot::new(&raw mut claim.reply) };
    match pkt.l4 {
        // Its state may be forged.
        L4::Tcp(segment) if segment.bad_checksum != 0 && !pkt.l4.is_bare_syn() => {}
        _ => half.record(&pkt.l4, env.now()),
    }
    match env.insert_snat(&pkt.tuple, &claim.reply) {
        Ok(()) => {
            // Before all are counted: whoever reads them in the other order never has too many of TCP.
            if pkt.tuple.proto != proto::TCP {
                env.count_protocol(pkt.tuple.proto);
            }
            env.count(|c| &mut c.mappings_created);
            env.count_packet(|c| &mut c.egress_masqueraded);
            account(env, &pkt.tuple, claim.bucket);
            env.add_rule_hits(claim.rule, &Traffic::default(), 1);
            if claim.wire.dst_id != pkt.tuple.src_id {
                env.count(|c| &mut c.ports_changed);
            }
            if claim.candidates > 1 {
                env.count_search(claim.candidates);
            }
            if claim.has_wanted == 0 || claim.wanted != u32::from(claim.wire.dst_id) {
                remember_endpoint(env, pkt, claim.wire.dst_id);
            }
            if env.settings().flags & SETTING_HAIRPIN != 0 {
                endpoints::record(env, &claim.wire);
            }
            if env.settings().events & EVENTS_BEGIN != 0 {
                env.report_begin(&pkt.tuple, &claim.wire, claim.rule);
            }
            pkt.new.id = claim.wire.dst_id.into();
            return Verdict::Rewrite;
        }
        Err(InsertError::Full) => {
            traffic::remove_reply(env, &claim.wire);
            return Verdict::Drop(DropReason::TableFull);
        }
        Err(InsertError::Exists) => {}
    }
    match env.lookup_snat(&pkt.tuple) {
        Some(slot) => {
            if slot.id() != claim.wire.dst_id || slot.addr() != pkt.new.addr {
                traffic::remove_reply(env, &claim.wire);
            }
            let hit = on_egress_hit(env, &pkt.tuple, &pkt.l4, pkt.family, slot);
            apply(pkt, hit)
        }
        None => Verdict::Drop(DropReason::TableFull),
    }
}

/// Counts a new mapping, and queues it for recycling.
#[inline(always)]
fn account<E: Env>(env: &E, tuple: &Tuple, bucket: u32) {
    if let Some(total) = env.lookup_share(SHARE_TOTAL) {
        total.add_mappings(1);
    }
    if let Some(share) = env.lookup_share(bucket) {
        share.add_mappings(1);
    }
    env.push_recent(tuple);
}

/// Returns the port to try first: the one that the endpoint has towards other destinations, or its
/// own (port preservation); `None` if ports are never preserved.
#[inline(always)]
fn wanted_port<E: Env>(env: &E, pkt: &Packet) -> Option<u16> {
    let flags = env.settings().flags;
    if !matches!(pkt.tuple.proto, proto::TCP | proto::UDP) {
        return Some(pkt.tuple.src_id);
    }
    if flags & SETTING_UDP_ENDPOINTS != 0
        && pkt.tuple.proto == proto::UDP
        && let Some(port) = env.lookup_endpoint_port(&endpoint(pkt))
    {
        return Some(port);
    }
    if flags & (SETTING_RANDOM_PORTS | SETTING_HASH_PORTS) != 0 {
        return None;
    }
    Some(pkt.tuple.src_id)
}

#[inline(always)]
fn remember_endpoint<E: Env>(env: &E, pkt: &Packet, port: u16) {
    if env.settings().flags & SETTING_UDP_ENDPOINTS != 0 && pkt.tuple.proto == proto::UDP {
        env.insert_endpoint_port(&endpoint(pkt), port);
    }
}

#[inline(always)]
const fn endpoint(pkt: &Packet) -> Tuple {
    let tuple = &pkt.tuple;
    Tuple::new(tuple.src, pkt.new.addr, tuple.src_id, 0, tuple.proto)
}

/// Reports whether the candidate may be tried: port classes limit only the search for another port,
/// configured ranges limit every port.
#[inline(always)]
fn may_have<E: Env>(env: &E, claim: &Claim) -> bool {
    let port = claim.wire.dst_id;
    match claim.wire.proto {
        proto::TCP | proto::UDP if env.settings().flags & SETTING_PORTS != 0 => {
            ports::contains(&claim.ranges, port)
        }
        proto::TCP | proto::UDP => port != 0,
        _ => true,
    }
}

/// Returns the L4 ids that a flow may have on the wire: only its own if just the address is
/// translated.
#[inline(always)]
fn ranges_for<E: Env>(env: &E, tuple: &Tuple) -> [PortRange; PORT_RANGES] {
    let settings = env.settings();
    match tuple.proto {
        proto::TCP | proto::UDP if settings.flags & SETTING_PORTS != 0 => settings.ports,
        proto::TCP | proto::UDP | proto::UDP_LITE | proto::DCCP => {
            single(ports::class_of(tuple.src_id))
        }
        proto::ICMP | proto::ICMPV6 => single(PortRange::new(0, u16::MAX)),
        _ => single(PortRange::new(tuple.src_id, tuple.src_id)),
    }
}

#[inline(always)]
const fn single(range: PortRange) -> [PortRange; PORT_RANGES] {
    let mut ranges = [PortRange::EMPTY; PORT_RANGES];
    ranges[0] = range;
    ranges
}
