//! The decision for one packet, each way.
//!
//! Egress: mapping → policy → the node's own traffic → replies of flows from
//! outside → a new mapping. Ingress: mapping → flows that begin outside.

mod error;
pub mod fragment;

use crate::abi::{
    Action, MAPPING_HOST, MAPPING_PICKUP, Mapping, NO_LEAK_ADDRESS, NO_LEAK_PASS, PORT_RANGES,
    PortRange, SETTING_HASH_PORTS, SETTING_IPV6, SETTING_PORTS, SETTING_RANDOM_PORTS,
    SETTING_UDP_ENDPOINTS, UPLINK_V4, UPLINK_V6,
};
use crate::addr::{Addr, Family};
use crate::conntrack::{self, ACK, FIN, RST, SEEN_DATA, SYN};
use crate::packet::{Inner, L4, Packet, TcpSegment};
use crate::port::{self, Search};
use crate::slot::Slot;
use crate::tables::{InsertError, Tables};
use crate::tuple::{Tuple, proto};
use crate::verdict::{DropReason, Verdict};

/// The packet at hand and room to work on it. All-zero bytes are a valid value:
/// the datapath keeps one for each CPU in a map, because the 512-byte stack has
/// no room for it.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Work {
    /// The packet.
    pub pkt: Packet,
    /// The packet inside, where `pkt` is an ICMP error.
    pub inner: Inner,
    claim: Claim,
}

impl Work {
    /// Nothing yet.
    pub const EMPTY: Self = Self {
        pkt: Packet::EMPTY,
        inner: Inner::EMPTY,
        claim: Claim {
            wire: Packet::EMPTY.tuple,
            reply: mapping(&Packet::EMPTY.new.addr, 0, 0, 0),
            ranges: [PortRange::EMPTY; PORT_RANGES],
            search: Search::new(0, 0),
            outcome: Outcome::Searching,
        },
    };
}

/// The state of one search for a wire tuple.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
struct Claim {
    /// The wire tuple of the replies; `dst_id` is the candidate.
    wire: Tuple,
    /// The reply half that claims it.
    reply: Mapping,
    ranges: [PortRange; PORT_RANGES],
    search: Search,
    outcome: Outcome,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
enum Outcome {
    Searching,
    Claimed,
    Full,
}

/// What a packet without a mapping is allowed to do.
enum Opening {
    /// Begin a mapping.
    New,
    /// Begin a mapping for a connection that was there before.
    Pickup,
    /// Only continue something that is known.
    Not(DropReason),
}

/// Decides about a packet that leaves by an uplink.
#[inline(always)]
pub fn egress<T: Tables>(tables: &T, work: &mut Work) -> Verdict {
    if out_of_scope(tables, &work.pkt) {
        tables.count(|c| &mut c.egress_untouched);
        return Verdict::Pass;
    }
    let verdict = match work.pkt.l4 {
        L4::Error => error::egress(tables, work),
        L4::LaterFragment => return fragment::later_egress(tables, work),
        _ => egress_flow(tables, work),
    };
    let verdict = match verdict {
        Verdict::Drop(reason) if reason.is_untranslatable() => no_leak(tables, work, reason),
        other => other,
    };
    if work.pkt.is_fragment != 0 {
        fragment::first_egress(tables, work, verdict);
    }
    verdict
}

#[inline(always)]
fn egress_flow<T: Tables>(tables: &T, work: &mut Work) -> Verdict {
    let pkt = &mut work.pkt;
    // An echo reply continues no mapping of this direction; with identifier 0 its
    // tuple would be that of a request.
    if !matches!(pkt.l4, L4::QueryReply | L4::Untranslatable(_))
        && let Some(slot) = tables.snat(&pkt.tuple)
    {
        return continue_egress(tables, pkt, slot);
    }
    let bypass = matches!(tables.action(&pkt.tuple.dst), Action::Bypass);
    if tables.is_local(&pkt.tuple.src) {
        return egress_host(tables, work, bypass);
    }
    if bypass {
        tables.count(|c| &mut c.egress_bypassed);
        return Verdict::Pass;
    }
    egress_pod(tables, work)
}

/// A pod's packet to a masqueraded destination, not of a known mapping.
#[inline(never)]
fn egress_pod<T: Tables>(tables: &T, work: &mut Work) -> Verdict {
    let pkt = &mut work.pkt;
    let opening = opening(&pkt.l4);
    if matches!(opening, Opening::New) && matches!(pkt.l4, L4::Tcp(_)) {
        // A pod's new SYN is never a reply, whatever stray packet came before
        // it (requirement 1.5).
        tables.remove_inbound(&pkt.tuple);
    } else if !matches!(pkt.l4, L4::Query | L4::Untranslatable(_))
        && tables.refresh_inbound(&pkt.tuple)
    {
        tables.count(|c| &mut c.egress_replies);
        return Verdict::Pass;
    }
    let flags = match opening {
        Opening::New => 0,
        Opening::Pickup => MAPPING_PICKUP,
        Opening::Not(reason) => return Verdict::Drop(reason),
    };
    if !choose_source(tables, pkt) {
        return Verdict::Drop(DropReason::NoSourceAddress);
    }
    open(tables, work, flags)
}

/// Puts the address to masquerade with into `pkt.new`: the kernel's own choice
/// for this destination, else the uplink's. `false` if there is none.
#[inline(always)]
fn choose_source<T: Tables>(tables: &T, pkt: &mut Packet) -> bool {
    // A route may name a preferred source. It counts only while the node has it.
    if let Some(addr) = tables.route_source(&pkt.tuple.dst, pkt.family)
        && tables.is_local(&addr)
    {
        pkt.new.addr = addr;
        return true;
    }
    let uplink = tables.uplink();
    pkt.new.addr = match pkt.family {
        Family::V4 if uplink.flags & UPLINK_V4 != 0 => uplink.v4,
        Family::V6 if uplink.flags & UPLINK_V6 != 0 => uplink.v6,
        _ => return false,
    };
    true
}

/// What becomes of a packet that can't be translated.
#[inline(never)]
fn no_leak<T: Tables>(tables: &T, work: &mut Work, reason: DropReason) -> Verdict {
    match tables.settings().no_leak {
        NO_LEAK_PASS => {
            tables.count(|c| &mut c.egress_let_out);
            Verdict::Pass
        }
        NO_LEAK_ADDRESS if choose_source(tables, &mut work.pkt) => {
            tables.count(|c| &mut c.egress_let_out);
            work.pkt.new.id = work.pkt.tuple.src_id.into();
            Verdict::Rewrite
        }
        _ => Verdict::Drop(reason),
    }
}

/// Decides about a packet that comes in by an uplink.
#[inline(always)]
pub fn ingress<T: Tables>(tables: &T, work: &mut Work) -> Verdict {
    if out_of_scope(tables, &work.pkt) || matches!(work.pkt.l4, L4::Untranslatable(_)) {
        tables.count(|c| &mut c.ingress_passed);
        return Verdict::Pass;
    }
    let verdict = match work.pkt.l4 {
        L4::Error => error::ingress(tables, work),
        L4::LaterFragment => return fragment::later_ingress(tables, work),
        _ => ingress_flow(tables, &mut work.pkt),
    };
    if work.pkt.is_fragment != 0 {
        fragment::first_ingress(tables, work, verdict);
    }
    verdict
}

#[inline(always)]
fn ingress_flow<T: Tables>(tables: &T, pkt: &mut Packet) -> Verdict {
    // Nor does an echo request continue one of this.
    if !matches!(pkt.l4, L4::Query)
        && let Some(slot) = tables.rev_snat(&pkt.tuple)
    {
        return continue_ingress(tables, pkt, slot);
    }
    if !tables.is_local(&pkt.tuple.dst) {
        ingress_forwarded(tables, pkt);
    }
    tables.count(|c| &mut c.ingress_passed);
    Verdict::Pass
}

/// A packet straight to an address behind the node: remembered if it may begin
/// a flow whose answers would otherwise be masqueraded.
#[inline(never)]
fn ingress_forwarded<T: Tables>(tables: &T, pkt: &Packet) -> bool {
    if !begins_outside(&pkt.l4) {
        return false;
    }
    if let Action::Bypass = tables.action(&pkt.tuple.src) {
        return false;
    }
    let reply = pkt.tuple.reversed();
    if !tables.refresh_inbound(&reply) {
        tables.insert_inbound(&reply);
    }
    true
}

/// Packets that no mapping is ever made for: multicast, broadcast, unspecified
/// or link-local source, and IPv6 while it is off.
#[inline(always)]
fn out_of_scope<T: Tables>(tables: &T, pkt: &Packet) -> bool {
    match pkt.family {
        Family::V4 => {}
        Family::V6 => {
            if tables.settings().flags & SETTING_IPV6 == 0 || pkt.tuple.src.is_v6_link_local() {
                return true;
            }
        }
    }
    pkt.tuple.src.is_special(pkt.family) || pkt.tuple.dst.is_special(pkt.family)
}

/// A packet of a known mapping, from the pod's side.
#[inline(always)]
fn continue_egress<T: Tables>(tables: &T, pkt: &mut Packet, slot: Slot) -> Verdict {
    let now = tables.now();
    if let L4::Tcp(TcpSegment { flags, .. }) = pkt.l4
        && flags & (SYN | ACK | RST | FIN) == SYN
    {
        reopen(tables, pkt, slot, now);
    }
    slot.record(pkt, now);
    tables.count(|c| &mut c.egress_masqueraded);
    rewrite(pkt, slot)
}

/// RFC 9293 3.6.1: a new SYN may reopen a connection in TIME-WAIT.
#[inline(never)]
fn reopen<T: Tables>(tables: &T, pkt: &Packet, slot: Slot, now: u32) -> bool {
    let wire = pkt.tuple.reply_to(slot.addr(), slot.id());
    match tables.rev_snat(&wire) {
        Some(reply) if conntrack::is_closing(slot.tcp_seen(), reply.tcp_seen()) => {
            slot.reopen(now);
            reply.reopen(now);
            true
        }
        _ => false,
    }
}

/// A packet that comes back for a known wire tuple.
#[inline(always)]
fn continue_ingress<T: Tables>(tables: &T, pkt: &mut Packet, slot: Slot) -> Verdict {
    let now = tables.now();
    if slot.is_host() {
        slot.record(pkt, now);
        tables.count(|c| &mut c.ingress_passed);
        return Verdict::Pass;
    }
    if let L4::Tcp(segment) = pkt.l4
        && segment.flags & RST != 0
        && !rst_is_credible(tables, pkt, slot)
    {
        slot.record_untrusted();
    } else {
        slot.record(pkt, now);
    }
    tables.count(|c| &mut c.ingress_translated);
    rewrite(pkt, slot)
}

/// Whether the pod will believe this RST: only then may it shorten the mapping
/// (RFC 7857 2.2; RFC 5961 3.2: the exact next sequence number, or, before the
/// pod has acknowledged anything, an acknowledgement).
#[inline(never)]
fn rst_is_credible<T: Tables>(tables: &T, pkt: &Packet, slot: Slot) -> bool {
    let L4::Tcp(segment) = pkt.l4 else {
        return false;
    };
    let wire = &pkt.tuple;
    let original = Tuple::new(slot.addr(), wire.src, slot.id(), wire.src_id, wire.proto);
    match tables.snat(&original) {
        Some(half) if half.tcp_seen() & SEEN_DATA != 0 => half.tcp_ack() == segment.seq,
        Some(_) => segment.flags & ACK != 0,
        None => false,
    }
}

/// The node's own traffic: left alone, unless a pod's mapping holds its wire
/// tuple; then the node's flow gets another port. Towards a bypassed destination
/// too, for the mapping may be older than the policy.
#[inline(never)]
fn egress_host<T: Tables>(tables: &T, work: &mut Work, bypass: bool) -> Verdict {
    let pkt = &work.pkt;
    tables.count(|c| &mut c.egress_host);
    let opens = match pkt.l4 {
        L4::Udp | L4::Query | L4::Address => true,
        L4::Tcp(segment) => segment.flags & (SYN | ACK | RST | FIN) == SYN,
        _ => return Verdict::Pass,
    };
    let wire = pkt.tuple.reversed();
    match tables.rev_snat(&wire) {
        Some(slot) if slot.is_host() => {
            slot.record(pkt, tables.now());
            Verdict::Pass
        }
        Some(_) => {
            work.pkt.new.addr = work.pkt.tuple.src;
            open(tables, work, 0)
        }
        // Sockets are looked up when a port is given away. What a lookup does
        // not find (pings, what netfilter translated to a node address) is
        // remembered here.
        None => {
            let found_by_lookup = matches!(pkt.tuple.proto, proto::TCP | proto::UDP);
            if opens && !bypass && !(found_by_lookup && tables.sent_by_socket()) {
                let now = tables.now();
                let marker = mapping(&wire.dst, wire.dst_id, MAPPING_HOST, now);
                // A full table only costs this flow its protection.
                let _ = tables.insert_rev_snat(&wire, &marker);
            }
            Verdict::Pass
        }
    }
}

/// What this packet may do when nothing is known about it.
#[inline(always)]
const fn opening(l4: &L4) -> Opening {
    match l4 {
        L4::Udp | L4::Query | L4::Address => Opening::New,
        L4::QueryReply | L4::Error => Opening::Not(DropReason::IcmpNoFlow),
        L4::LaterFragment => Opening::Not(DropReason::Malformed),
        L4::Untranslatable(reason) => Opening::Not(*reason),
        L4::Tcp(segment) => match segment.flags & (SYN | ACK | RST | FIN) {
            SYN => Opening::New,
            ACK => Opening::Pickup,
            _ => Opening::Not(DropReason::TcpNoFlow),
        },
    }
}

/// Whether an inbound packet can be part of a flow that began outside. A
/// SYN-ACK or RST can only be an answer to something.
#[inline(always)]
const fn begins_outside(l4: &L4) -> bool {
    match l4 {
        L4::Udp | L4::Query | L4::Address => true,
        L4::Tcp(segment) => segment.flags & RST == 0 && segment.flags & (SYN | ACK) != SYN | ACK,
        L4::QueryReply | L4::Error | L4::LaterFragment | L4::Untranslatable(_) => false,
    }
}

/// Makes a mapping with the address in `pkt.new`: claims a wire tuple by
/// inserting the reply half, then inserts the original half; where another CPU
/// was faster with the same flow, gives the claim back and follows it.
#[inline(never)]
fn open<T: Tables>(tables: &T, work: &mut Work, flags: u16) -> Verdict {
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
    let original = mapping(&pkt.new.addr, claim.wire.dst_id, flags, now);
    match tables.insert_snat(&pkt.tuple, &original) {
        Ok(()) => {
            tables.count(|c| &mut c.mappings_created);
            if claim.wire.dst_id != pkt.tuple.src_id {
                tables.count(|c| &mut c.ports_changed);
            }
            if wanted != Some(claim.wire.dst_id) {
                remember_endpoint(tables, pkt, claim.wire.dst_id);
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
            continue_egress(tables, pkt, slot)
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
    if has_ports && tables.port_reserved(claim.wire.dst_id) {
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
const fn mapping(addr: &Addr, id: u16, flags: u16, now: u32) -> Mapping {
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

#[inline(always)]
fn rewrite(pkt: &mut Packet, slot: Slot) -> Verdict {
    pkt.new.addr = slot.addr();
    pkt.new.id = slot.id().into();
    Verdict::Rewrite
}
