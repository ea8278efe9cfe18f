//! A new mapping: the search for a wire tuple, and the claim of it.

use super::follow::{apply, continue_egress};
use super::{Work, hairpin};
use crate::abi::{
    Mapping, PORT_RANGES, PortRange, SETTING_HAIRPIN, SETTING_HASH_PORTS, SETTING_PORTS,
    SETTING_RANDOM_PORTS, SETTING_UDP_ENDPOINTS,
};
use crate::addr::Addr;
use crate::packet::Packet;
use crate::port::{self, Search};
use crate::tables::{InsertError, Tables};
use crate::tuple::{Tuple, proto};
use crate::verdict::{DropReason, Verdict};

/// The state of one search for a wire tuple.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(super) struct Claim {
    /// The wire tuple of the replies; `dst_id` is the candidate.
    wire: Tuple,
    /// The reply half that claims it.
    reply: Mapping,
    ranges: [PortRange; PORT_RANGES],
    search: Search,
    outcome: Outcome,
}

impl Claim {
    /// Nothing yet.
    pub(super) const EMPTY: Self = Self {
        wire: Packet::EMPTY.tuple,
        reply: mapping(&Packet::EMPTY.new.addr, 0, 0, 0),
        ranges: [PortRange::EMPTY; PORT_RANGES],
        search: Search::new(0, 0),
        outcome: Outcome::Searching,
    };
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Outcome {
    Searching,
    Claimed,
    Full,
}

/// Makes a mapping with the address in `pkt.new`: claims a wire tuple by
/// inserting the reply half, then inserts the original half; where another CPU
/// was faster with the same flow, gives the claim back and follows it.
#[inline(never)]
pub(super) fn open<T: Tables>(tables: &T, work: &mut Work, flags: u16) -> Verdict {
    let Work { pkt, claim, .. } = work;
    let now = tables.now();
    let wanted = wanted_port(tables, pkt);
    claim.wire = pkt
        .tuple
        .reply_to(pkt.new.addr, wanted.unwrap_or(pkt.tuple.src_id));
    claim.reply = mapping(&pkt.tuple.src, pkt.tuple.src_id, flags, now);
    claim.ranges = ranges_for(tables, &pkt.tuple);
    claim.outcome = Outcome::Searching;
    if wanted.is_some() && may_have(tables, claim) {
        try_candidate(tables, claim);
    }
    if claim.outcome == Outcome::Searching {
        search(tables, pkt, claim);
    }
    match claim.outcome {
        Outcome::Claimed => {}
        Outcome::Searching => return Verdict::Drop(DropReason::NoFreePort),
        Outcome::Full => return Verdict::Drop(DropReason::TableFull),
    }
    // The claim stands; its room serves for the other half. Before Linux 6.8
    // frames count in steps of 32 bytes, and all may have 512 together.
    claim.reply = mapping(&pkt.new.addr, claim.wire.dst_id, flags, now);
    match tables.insert_snat(&pkt.tuple, &claim.reply) {
        Ok(()) => {
            tables.count(|c| &mut c.mappings_created);
            if claim.wire.dst_id != pkt.tuple.src_id {
                tables.count(|c| &mut c.ports_changed);
            }
            if wanted != Some(claim.wire.dst_id) {
                remember_endpoint(tables, pkt, claim.wire.dst_id);
            }
            if tables.settings().flags & SETTING_HAIRPIN != 0 {
                hairpin::remember(tables, &claim.wire);
            }
        }
        Err(InsertError::Full) => {
            tables.remove_rev_snat(&claim.wire);
            return Verdict::Drop(DropReason::TableFull);
        }
        Err(InsertError::Exists) => {}
    }
    match tables.snat(&pkt.tuple) {
        Some(slot) => {
            if slot.id() != claim.wire.dst_id || slot.addr() != pkt.new.addr {
                tables.remove_rev_snat(&claim.wire);
            }
            let known = continue_egress(tables, &pkt.tuple, &pkt.l4, slot);
            apply(pkt, known)
        }
        None => Verdict::Drop(DropReason::TableFull),
    }
}

/// The port to try before all others: the one that the endpoint has elsewhere,
/// or its own; none where ports are always changed.
#[inline(always)]
fn wanted_port<T: Tables>(tables: &T, pkt: &Packet) -> Option<u16> {
    let flags = tables.settings().flags;
    if !matches!(pkt.tuple.proto, proto::TCP | proto::UDP) {
        return Some(pkt.tuple.src_id);
    }
    if flags & SETTING_UDP_ENDPOINTS != 0
        && pkt.tuple.proto == proto::UDP
        && let Some(port) = tables.endpoint_port(&endpoint(pkt))
    {
        return Some(port);
    }
    if flags & (SETTING_RANDOM_PORTS | SETTING_HASH_PORTS) != 0 {
        return None;
    }
    Some(pkt.tuple.src_id)
}

#[inline(always)]
fn remember_endpoint<T: Tables>(tables: &T, pkt: &Packet, port: u16) {
    if tables.settings().flags & SETTING_UDP_ENDPOINTS != 0 && pkt.tuple.proto == proto::UDP {
        tables.set_endpoint_port(&endpoint(pkt), port);
    }
}

#[inline(always)]
const fn endpoint(pkt: &Packet) -> Tuple {
    let tuple = &pkt.tuple;
    Tuple::new(tuple.src, pkt.new.addr, tuple.src_id, 0, tuple.proto)
}

/// Walks through all ports until one is free. A destination without any is
/// left alone for a moment: a walk through all of them is not for every packet.
#[inline(always)]
fn search<T: Tables>(tables: &T, pkt: &Packet, claim: &mut Claim) {
    // Classes run out one by one.
    let class = claim.ranges[0].min;
    claim.wire.dst_id = class;
    if tables.is_exhausted(&claim.wire) {
        return;
    }
    let start = if tables.settings().flags & SETTING_HASH_PORTS != 0 {
        pkt.tuple.hash()
    } else {
        tables.random()
    };
    claim.search = Search::new(port::total(&claim.ranges), start);
    tables.repeat(claim.search.len(), claim, |tables, n, claim| {
        let offset = claim.search.offset(n);
        if let Some(candidate) = port::nth_port(&claim.ranges, offset) {
            claim.wire.dst_id = candidate;
            try_candidate(tables, claim);
        }
        claim.outcome == Outcome::Searching
    });
    if claim.outcome == Outcome::Searching {
        claim.wire.dst_id = class;
        tables.set_exhausted(&claim.wire);
    }
}

/// Claims `claim.wire` if it is free.
#[inline(always)]
fn try_candidate<T: Tables>(tables: &T, claim: &mut Claim) {
    let has_ports = matches!(claim.wire.proto, proto::TCP | proto::UDP);
    if has_ports && tables.port_reserved(claim.wire.dst_id)
        || tables.node_answers(claim.wire.proto, claim.wire.dst_id)
    {
        return;
    }
    if let Some(owner) = tables.rev_snat(&claim.wire) {
        // Our own claim, its other half not yet there (another CPU) or lost.
        if !owner.is_host() && owner.addr() == claim.reply.addr && owner.id() == claim.reply.id {
            claim.outcome = Outcome::Claimed;
        }
        return;
    }
    if has_ports && tables.socket_receives(&claim.wire) {
        return;
    }
    match tables.insert_rev_snat(&claim.wire, &claim.reply) {
        Ok(()) => claim.outcome = Outcome::Claimed,
        Err(InsertError::Exists) => {}
        Err(InsertError::Full) => claim.outcome = Outcome::Full,
    }
}

/// Whether the candidate may be tried at all: classes only bound the search for
/// another port, ranges that were given bound every port.
#[inline(always)]
fn may_have<T: Tables>(tables: &T, claim: &Claim) -> bool {
    let port = claim.wire.dst_id;
    match claim.wire.proto {
        proto::TCP | proto::UDP if tables.settings().flags & SETTING_PORTS != 0 => {
            port::contains(&claim.ranges, port)
        }
        proto::TCP | proto::UDP => port != 0,
        _ => true,
    }
}

/// The ids that a flow may have on the wire. Where only the address is
/// translated that is its own.
#[inline(always)]
fn ranges_for<T: Tables>(tables: &T, tuple: &Tuple) -> [PortRange; PORT_RANGES] {
    let settings = tables.settings();
    match tuple.proto {
        proto::TCP | proto::UDP if settings.flags & SETTING_PORTS != 0 => settings.ports,
        proto::TCP | proto::UDP | proto::UDP_LITE | proto::DCCP => {
            single(port::class_of(tuple.src_id))
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

#[inline(always)]
pub(super) const fn mapping(addr: &Addr, id: u16, flags: u16, now: u32) -> Mapping {
    Mapping {
        addr: *addr,
        id,
        flags,
        last_seen: now,
        created: now,
        tcp_ack: 0,
        tcp_seen: 0,
        packets: 0,
    }
}
