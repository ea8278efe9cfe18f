//! The decision for one packet, on egress and on ingress.
//!
//! Egress: mapping → policy → the node's own traffic → replies of inbound flows → a new mapping.
//! Ingress: mapping → inbound flows.

mod admit;
mod error;
mod evict;
mod follow;
pub mod fragment;
pub mod hairpin;
mod host;
pub mod inbound;
mod open;
mod origin;
mod search;
mod settle;
mod source;

use crate::abi::{
    Action, MAPPING_PICKUP, NO_LEAK_ADDRESS, NO_LEAK_PASS, NodeProtocol, SETTING_DRAIN,
    SETTING_IPV6, SETTING_SEVERAL_UPLINKS,
};
use crate::addr::{Addr, Family};
use crate::conntrack::{ACK, DRAIN_SECONDS, FIN, RST, SYN, ticks32};
use crate::packet::{Inner, L4, Packet, Plain};
use crate::share::Key;
use crate::tables::Tables;
use crate::tuple::{Tuple, proto};
use crate::verdict::{DropReason, Verdict};
use admit::refusal;
use evict::Recycling;
pub use follow::{Known, fill_new};
use follow::{apply, continue_egress, continue_ingress, is_nodes_by_now};
use host::needs_mapping;
use inbound::Continued;
use open::{Claim, open};
use origin::{is_forged, is_forged_by, key_of};
use settle::{Begins, Settled, settle};
pub use source::Way;
use source::choose_source;

const DRAIN_TICKS: u32 = ticks32(DRAIN_SECONDS);

/// The scratch of one decision: the current packet and working memory. All-zero bytes are a valid
/// value: the datapath keeps one for each CPU in a map, because the 512-byte stack has no room for
/// it.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Work {
    /// The packet to decide about.
    pub pkt: Packet,
    /// The packet inside `pkt`, if that is an ICMP error.
    pub inner: Inner,
    claim: Claim,
    recycling: Recycling,
    /// The key of the source of a packet that may begin a mapping.
    source: Key,
}

impl Work {
    /// The initial value, before the first packet.
    pub const EMPTY: Self = Self {
        pkt: Packet::EMPTY,
        inner: Inner::EMPTY,
        claim: Claim::EMPTY,
        recycling: Recycling::EMPTY,
        source: Key::NONE,
    };
}

/// The permission of a packet without a mapping.
enum Opening {
    /// Begin a new mapping.
    New,
    /// Begin a mapping for a connection that already existed.
    Pickup,
    /// Continue a known flow only; otherwise drop for this reason.
    Not(DropReason),
}

/// Reports whether a packet between these addresses, read by [`crate::packet::peek`] or
/// [`crate::packet::plain`], is a hit in the bypass cache and passes without further checks. A hit
/// is counted.
#[inline(always)]
pub fn passes<T: Tables>(tables: &T, src: &Addr, dst: &Addr, leaving: bool) -> bool {
    if leaving {
        let known = tables.is_known_bypass(src, dst);
        if known {
            tables.count(|c| &mut c.egress_bypassed);
        }
        known
    } else {
        let known = tables.is_known_bypass(dst, src);
        if known {
            tables.count(|c| &mut c.ingress_passed);
        }
        known
    }
}

/// Fast path: returns the decision from the bypass cache or from the mapping of a fast-path packet.
/// `None` means the slow path: `work` is then filled in for [`egress`] or [`ingress`].
///
/// The scope is not checked: an IPv4 packet out of scope never got a mapping, and its addresses are
/// never in the bypass cache.
#[inline(always)]
pub fn plain<T: Tables>(
    tables: &T,
    work: &mut Work,
    plain: &Plain,
    l3_offset: u32,
    leaving: bool,
) -> Option<Known> {
    if passes(tables, &plain.src(), &plain.dst(), leaving) {
        return Some(Known::Bypassed);
    }
    // In memory, because map keys have to be there.
    work.pkt.tuple = plain.tuple();
    let known = known(tables, &mut work.pkt, &plain.l4, Family::V4, leaving);
    if known.is_none() {
        plain.fill(l3_offset, &mut work.pkt);
    }
    known
}

/// Looks up a packet's mapping and returns its decision, or `None` on a miss. Reads only the tuple
/// of `pkt`.
#[inline(always)]
fn known<T: Tables>(
    tables: &T,
    pkt: &mut Packet,
    l4: &L4,
    family: Family,
    leaving: bool,
) -> Option<Known> {
    // On egress an echo reply never hits a mapping: with identifier 0 its tuple would equal that of
    // a request. Nor does a request on ingress.
    let other_way = match l4 {
        L4::QueryReply => leaving,
        L4::Query => !leaving,
        L4::Untranslatable(_) => true,
        _ => false,
    };
    if other_way {
        return None;
    }
    if leaving {
        let slot = tables.snat(&pkt.tuple)?;
        let begins = Begins::of(l4, slot);
        if begins != Begins::Nothing || slot.place() != tables.place() {
            pkt.family = family;
            match settle(tables, pkt, slot, begins) {
                Settled::Stays => {}
                Settled::Rests => return Some(Known::Resting),
                Settled::Ended => return None,
            }
        }
        Some(continue_egress(tables, &pkt.tuple, l4, family, slot))
    } else {
        let slot = tables.rev_snat(&pkt.tuple)?;
        Some(continue_ingress(tables, &pkt.tuple, l4, slot))
    }
}

/// Decides about a packet that leaves by an uplink. `asked`: the lookup by [`plain`] was a miss.
#[inline(always)]
pub fn egress<T: Tables>(tables: &T, work: &mut Work, asked: bool) -> Verdict {
    if out_of_scope(tables, &work.pkt) {
        tables.count(|c| &mut c.egress_untouched);
        return Verdict::Pass;
    }
    let verdict = match work.pkt.l4 {
        // For packets of all other kinds, only new flows are checked for this.
        L4::Error | L4::LaterFragment | L4::Untranslatable(_) if is_bridged(tables, &work.pkt) => {
            return Verdict::Pass;
        }
        L4::Error => error::egress(tables, work),
        L4::LaterFragment => return later_fragment(tables, work),
        _ => egress_flow(tables, work, asked),
    };
    let verdict = match verdict {
        Verdict::Drop(reason) if reason.is_untranslatable() => no_leak(tables, work, reason),
        other => other,
    };
    // A forged fragment must not decide about the datagram that it claims to belong to.
    if work.pkt.is_fragment != 0 && verdict != Verdict::Drop(DropReason::ForgedSource) {
        fragment::first_egress(tables, work, verdict);
    }
    verdict
}

/// Reports whether the packet only crosses the uplink's link and comes from a guest on that link (a
/// macvlan, a virtual machine on a bridge): the node does not translate it. A hit is counted.
#[inline(always)]
fn is_bridged<T: Tables>(tables: &T, pkt: &Packet) -> bool {
    !tables.is_local(&pkt.tuple.src) && others_are_bridged(tables, pkt)
}

/// Reports what [`is_bridged`] does, for a packet whose source is not an address of the node.
#[inline(always)]
fn others_are_bridged<T: Tables>(tables: &T, pkt: &Packet) -> bool {
    let bridged = tables.is_bridged(&pkt.tuple, pkt.family);
    if bridged {
        tables.count(|c| &mut c.egress_untouched);
    }
    bridged
}

#[inline(always)]
fn later_fragment<T: Tables>(tables: &T, work: &mut Work) -> Verdict {
    let Tuple { src, dst, .. } = &work.pkt.tuple;
    if is_forged(tables, src, work.pkt.family) && !matches!(tables.action(dst), Action::Bypass) {
        return Verdict::Drop(DropReason::ForgedSource);
    }
    match fragment::known_egress(tables, work) {
        Some(known) => known,
        None => fragment::early_egress(tables, work),
    }
}

#[inline(always)]
fn egress_flow<T: Tables>(tables: &T, work: &mut Work, asked: bool) -> Verdict {
    let pkt = &mut work.pkt;
    let l4 = pkt.l4;
    if !asked && let Some(known) = known(tables, pkt, &l4, pkt.family, true) {
        return apply(pkt, known);
    }
    let action = tables.action(&pkt.tuple.dst);
    let bypass = matches!(action, Action::Bypass);
    let flags = if tables.is_local(&pkt.tuple.src)
        || tables.ingress_ifindex() == 0 && tables.is_any_ip(&pkt.tuple.src)
    {
        if !needs_mapping(tables, work, bypass) {
            return Verdict::Pass;
        }
        let Work { pkt, source, .. } = work;
        *source = key_of(tables, &pkt.tuple.src);
        if tables.ingress_ifindex() == 0 {
            let bucket = source.bucket();
            work.claim.set_bucket(bucket, 0);
            work.recycling.begin(bucket, false, u32::MAX, 0);
        } else if let Some(reason) = refusal(tables, work) {
            // Translated by a third party, or a forged source: it counts against one share.
            return Verdict::Drop(reason);
        }
        0
    } else {
        if bypass {
            tables.set_known_bypass(&pkt.tuple.src, &pkt.tuple.dst);
            tables.count(|c| &mut c.egress_bypassed);
            return Verdict::Pass;
        }
        if let Some(verdict) = egress_pod(tables, work, action) {
            return verdict;
        }
        let pickup = matches!(opening(&work.pkt.l4), Opening::Pickup);
        if let Some(reason) = refusal(tables, work) {
            return Verdict::Drop(reason);
        }
        if pickup { MAPPING_PICKUP } else { 0 }
    };
    // Not called from `egress_pod`, whose stack frame would still be live: all live frames together
    // may have 512 bytes.
    open(tables, work, flags)
}

/// Decides about a pod's packet without a mapping to a destination that is masqueraded or withheld.
/// `None` if it may begin a mapping.
#[inline(never)]
fn egress_pod<T: Tables>(tables: &T, work: &mut Work, action: Action) -> Option<Verdict> {
    let Work { pkt, source, .. } = work;
    let opening = opening(&pkt.l4);
    let begins_connection = pkt.l4.is_bare_syn();
    if !begins_connection && !matches!(pkt.l4, L4::Query | L4::Untranslatable(_)) {
        match inbound::continued(tables, pkt, &pkt.tuple) {
            Continued::No => {}
            Continued::Yes => {
                tables.count(|c| &mut c.egress_replies);
                return Some(Verdict::Pass);
            }
            Continued::Forged if others_are_bridged(tables, pkt) => return Some(Verdict::Pass),
            Continued::Forged => return Some(Verdict::Drop(DropReason::ForgedSource)),
        }
        if tables.settings().flags & SETTING_SEVERAL_UPLINKS != 0
            && tables.snat(&pkt.tuple.reversed()).is_some()
        {
            // A reply that came in by another uplink; this uplink leads to the pod.
            tables.count(|c| &mut c.egress_replies);
            return Some(Verdict::Pass);
        }
    }
    if others_are_bridged(tables, pkt) {
        return Some(Verdict::Pass);
    }
    *source = key_of(tables, &pkt.tuple.src);
    if is_forged_by(tables, *source, &pkt.tuple.src, pkt.family) {
        return Some(Verdict::Drop(DropReason::ForgedSource));
    }
    if begins_connection {
        // A pod's new SYN is never a reply, regardless of stray packets that came before it
        // (requirement 1.5).
        inbound::forget(tables, &pkt.tuple);
    }
    if was_there_before(tables, pkt) {
        tables.count(|c| &mut c.egress_bypassed);
        return Some(Verdict::Pass);
    }
    if matches!(action, Action::Withhold) {
        return Some(Verdict::Drop(DropReason::IpsecPolicy));
    }
    if let Opening::Not(reason) = opening {
        return Some(Verdict::Drop(reason));
    }
    if matches!(pkt.l4, L4::Address) && is_spoken(tables, pkt) {
        return Some(Verdict::Drop(DropReason::NodeProtocol));
    }
    if !choose_source(tables, pkt) {
        return Some(Verdict::Drop(DropReason::NoSourceAddress));
    }
    None
}

/// Reports whether the node itself uses the packet's protocol, which has no ports, with its
/// destination: all replies then belong to the node.
#[inline(always)]
fn is_spoken<T: Tables>(tables: &T, pkt: &Packet) -> bool {
    if pkt.tuple.proto == proto::SCTP {
        // SCTP has ports ([`Tables::node_answers`]).
        return false;
    }
    let any = match pkt.family {
        Family::V4 => Addr::from_v4([0; 4]),
        Family::V6 => Addr::from_words([0; 4]),
    };
    tables.node_speaks(&NodeProtocol::new(pkt.tuple.dst, pkt.tuple.proto))
        || tables.node_speaks(&NodeProtocol::new(any, pkt.tuple.proto))
}

/// Reports whether the packet continues a connection that an earlier policy bypassed: its peer uses
/// the pod's own address and must keep it (`--on-reload sticky`).
///
/// Only a mid-stream segment is evidence of that. A RST does not count: a stray segment after the
/// end of a mapping is mostly a RST, and must not leave with the pod's address (requirement 4.1).
/// UDP and ICMP packets contain no such evidence; there, a packet from the peer after the change
/// provides it (`ingress_forwarded`).
#[inline(always)]
fn was_there_before<T: Tables>(tables: &T, pkt: &Packet) -> bool {
    let L4::Tcp(segment) = pkt.l4 else {
        return false;
    };
    if segment.flags & (SYN | ACK | RST) != ACK || !tables.was_bypassed(&pkt.tuple.dst) {
        return false;
    }
    let limit = if tables.settings().flags & SETTING_DRAIN == 0 {
        0
    } else {
        DRAIN_TICKS
    };
    inbound::keep(tables, pkt, limit);
    true
}

/// Reports whether the refusal of this packet is answered with an ICMP error. Limited to a number
/// per interval, so that a flood does not cause another.
#[inline(never)]
pub fn is_answered<T: Tables>(tables: &T, pkt: &Packet) -> bool {
    let bucket = key_of(tables, &pkt.tuple.src).bucket();
    (tables.share(bucket)).is_none_or(|share| share.take_answer(tables.now()))
}

/// Returns the verdict for a packet that cannot be translated, by the no-leak policy.
#[inline(never)]
fn no_leak<T: Tables>(tables: &T, work: &mut Work, reason: DropReason) -> Verdict {
    match tables.settings().no_leak {
        NO_LEAK_PASS => {
            tables.count(|c| &mut c.egress_let_out);
            Verdict::Pass
        }
        NO_LEAK_ADDRESS
            if choose_source(tables, &mut work.pkt) && !speaks_for_node(tables, &work.pkt) =>
        {
            tables.count(|c| &mut c.egress_let_out);
            work.pkt.new.id = work.pkt.tuple.src_id.into();
            Verdict::Rewrite
        }
        _ => Verdict::Drop(reason),
    }
}

/// Reports whether a TCP segment with its own port and the node's address would be attributed to
/// another connection: one of the node, or one of a pod by its mapping.
#[inline(always)]
fn speaks_for_node<T: Tables>(tables: &T, pkt: &Packet) -> bool {
    if !matches!(pkt.l4, L4::Tcp(_)) {
        return false;
    }
    let wire = pkt.tuple.reply_to(pkt.new.addr, pkt.tuple.src_id);
    tables.rev_snat(&wire).is_some()
        || is_nodes_by_now(tables, &wire)
        || host::is_nodes(tables, &wire)
}

/// Decides about a packet that arrives by an uplink. `asked`: as in [`egress`].
#[inline(always)]
pub fn ingress<T: Tables>(tables: &T, work: &mut Work, asked: bool) -> Verdict {
    if out_of_scope(tables, &work.pkt) || matches!(work.pkt.l4, L4::Untranslatable(_)) {
        tables.count(|c| &mut c.ingress_passed);
        return Verdict::Pass;
    }
    let verdict = match work.pkt.l4 {
        L4::Error => error::ingress(tables, work),
        L4::LaterFragment => return fragment::later_ingress(tables, work),
        _ => ingress_flow(tables, &mut work.pkt, asked),
    };
    if work.pkt.is_fragment != 0 {
        fragment::first_ingress(tables, work, verdict);
    }
    verdict
}

#[inline(always)]
fn ingress_flow<T: Tables>(tables: &T, pkt: &mut Packet, asked: bool) -> Verdict {
    let l4 = pkt.l4;
    if !asked && let Some(known) = known(tables, pkt, &l4, pkt.family, false) {
        return apply(pkt, known);
    }
    if !tables.is_local(&pkt.tuple.dst) {
        ingress_forwarded(tables, pkt);
    }
    tables.count(|c| &mut c.ingress_passed);
    Verdict::Pass
}

/// Records a packet to an address behind the node if it may begin a flow whose replies would
/// otherwise be masqueraded.
#[inline(never)]
fn ingress_forwarded<T: Tables>(tables: &T, pkt: &Packet) -> bool {
    let begins = begins_outside(&pkt.l4);
    if !begins && !matches!(pkt.l4, L4::Tcp(_)) {
        return false;
    }
    if let Action::Bypass = tables.action(&pkt.tuple.src) {
        tables.set_known_bypass(&pkt.tuple.dst, &pkt.tuple.src);
        return false;
    }
    inbound::came(tables, pkt, begins)
}

/// Reports whether the packet never gets a mapping: multicast, broadcast, unspecified or link-local
/// source, neighbour discovery, and IPv6 while it is disabled.
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
    matches!(pkt.l4, L4::Discovery)
        || pkt.tuple.src.is_special(pkt.family)
        || pkt.tuple.dst.is_special(pkt.family)
}

/// Returns the permission of a packet without a known mapping or inbound flow.
#[inline(always)]
const fn opening(l4: &L4) -> Opening {
    match l4 {
        L4::Udp | L4::Query | L4::Address => Opening::New,
        L4::QueryReply | L4::Error => Opening::Not(DropReason::IcmpNoFlow),
        L4::LaterFragment | L4::Discovery => Opening::Not(DropReason::Malformed),
        L4::Untranslatable(reason) => Opening::Not(*reason),
        L4::Tcp(segment) => match segment.flags & (SYN | ACK | RST | FIN) {
            SYN => Opening::New,
            ACK => Opening::Pickup,
            _ => Opening::Not(DropReason::TcpNoFlow),
        },
    }
}

/// Reports whether an arriving packet can be part of an inbound flow. A SYN-ACK or RST can only be
/// a reply.
#[inline(always)]
const fn begins_outside(l4: &L4) -> bool {
    match l4 {
        L4::Udp | L4::Query | L4::Address => true,
        L4::Tcp(segment) => segment.flags & RST == 0 && segment.flags & (SYN | ACK) != SYN | ACK,
        L4::QueryReply | L4::Error | L4::LaterFragment | L4::Discovery | L4::Untranslatable(_) => {
            false
        }
    }
}
