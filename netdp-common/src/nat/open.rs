//! New mappings: the search for a free wire tuple, and the claim.

use super::evict::recycle;
use super::follow::{apply, continue_egress};
use super::search::{self, is_free_again};
use super::{Work, hairpin, host};
use crate::abi::{
    Mapping, PORT_RANGES, PortRange, SETTING_HAIRPIN, SETTING_HASH_PORTS, SETTING_PORTS,
    SETTING_RANDOM_PORTS, SETTING_UDP_ENDPOINTS,
};
use crate::addr::Addr;
use crate::conntrack::{
    ACK, Closing, SEEN_FIN, SEEN_OTHERS_FIN, SEEN_OTHERS_RST, SEEN_RST, SYN, age, is_closing,
};
use crate::packet::{L4, Packet};
use crate::port::{self, Search};
use crate::share;
use crate::slot::Slot;
use crate::spare::{UNANSWERED_TICKS, is_silent_stream, spare};
use crate::tables::{InsertError, Tables};
use crate::timeouts::{Carried, lasted};
use crate::tuple::{Tuple, proto};
use crate::verdict::{DropReason, Verdict};

/// The state of one search for a wire tuple.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(super) struct Claim {
    /// The wire tuple of the replies; `dst_id` is the candidate.
    pub(super) wire: Tuple,
    /// The reply half that claims the wire tuple.
    reply: Mapping,
    pub(super) ranges: [PortRange; PORT_RANGES],
    pub(super) search: Search,
    pub(super) outcome: Outcome,
    /// The bucket against which the mapping counts, see [`crate::share`].
    pub(super) bucket: u32,
    /// Flags of the original half in addition to those of the caller.
    origin: u16,
    pad: u16,
    /// Candidates whose mappings may be evicted.
    spares: [SparePort; SPARES],
    /// The sequence number of the SYN that begins the mapping, if `is_syn` is 1.
    syn: u32,
    is_syn: u32,
    /// The position of the search: the first random candidate, or the word of a port map.
    pub(super) at: u32,
    /// Candidates that may still be tried.
    pub(super) tries: u32,
    /// Number of the random candidate that was tried last.
    pub(super) tried: u32,
    /// The preferred port, if `has_wanted` is 1.
    wanted: u32,
    pub(super) has_wanted: u32,
    /// The destination, in the form of a port map's key.
    pub(super) key: Tuple,
    /// The index of the destination's port map.
    pub(super) map: u32,
    /// 1 if all ports were recently found taken.
    pub(super) exhausted: u32,
}

impl Claim {
    /// The initial value, before a search.
    pub(super) const EMPTY: Self = Self {
        wire: Packet::EMPTY.tuple,
        reply: mapping(&Packet::EMPTY.new.addr, 0, 0, 0),
        ranges: [PortRange::EMPTY; PORT_RANGES],
        search: Search::new(0, 0),
        outcome: Outcome::Searching,
        bucket: 0,
        origin: 0,
        pad: 0,
        spares: [SparePort::NONE; SPARES],
        syn: 0,
        is_syn: 0,
        at: 0,
        tries: 0,
        tried: 0,
        wanted: 0,
        has_wanted: 0,
        key: Packet::EMPTY.tuple,
        map: 0,
        exhausted: 0,
    };

    /// A candidate whose mapping may be evicted.
    #[inline(always)]
    pub(super) fn spare_port(&self, n: usize) -> Option<u16> {
        u16::try_from(self.spares[n & (SPARES - 1)].port.checked_sub(1)?).ok()
    }

    /// Reports whether a SYN begins the mapping and its sequence number lies after all that the
    /// earlier connection of this port has sent, so that the peer accepts it as a new connection
    /// even in TIME-WAIT (RFC 9293 3.6.1, RFC 6191; `nf_nat_used_tuple_harder` in
    /// net/netfilter/nf_nat_core.c, Linux 6.12). `acked`: the last acknowledgement number of the
    /// peer.
    #[inline(always)]
    pub(super) const fn follows(&self, acked: u32) -> bool {
        self.is_syn != 0 && age(self.syn, acked) > 0
    }

    /// Sets the bucket against which the mapping will count, and the flags that record it.
    #[inline(always)]
    pub(super) const fn set_bucket(&mut self, bucket: u32, origin: u16) {
        self.bucket = bucket;
        self.origin = origin;
    }
}

/// The number of eviction candidates that a search remembers. A power of two.
pub(super) const SPARES: usize = 4;

/// A candidate whose mapping may be evicted.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
struct SparePort {
    /// The candidate plus 1; 0 for none.
    port: u32,
    /// The eviction rank: the highest is evicted first; the maximum if the mapping is over.
    rank: u32,
}

impl SparePort {
    const NONE: Self = Self { port: 0, rank: 0 };
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Outcome {
    Searching,
    Claimed,
    Full,
}

/// Creates a mapping with the address in `pkt.new`: claims a wire tuple by inserting the reply
/// half, then inserts the original half. If another CPU was faster with the same flow, releases the
/// claim and uses the other mapping.
///
/// Runs in steps, each with a stack frame that is gone before the next: all live frames together
/// may have 512 bytes. Their shared state is in `work`.
#[inline(always)]
pub(super) fn open<T: Tables>(tables: &T, work: &mut Work, flags: u16) -> Verdict {
    begin(tables, work, flags);
    let Work { pkt, claim, .. } = work;
    if !search::must_wait(tables, claim) {
        if claim.has_wanted != 0 {
            try_first(tables, claim);
        }
        search::run(tables, pkt, claim);
    }
    match claim.outcome {
        Outcome::Claimed => finish(tables, work, flags),
        Outcome::Searching => Verdict::Drop(DropReason::NoFreePort),
        Outcome::Full => {
            // Makes room for the next packet.
            recycle(tables, work);
            Verdict::Drop(DropReason::TableFull)
        }
    }
}

/// Initialises the search in `work.claim`.
#[inline(never)]
fn begin<T: Tables>(tables: &T, work: &mut Work, flags: u16) {
    let Work { pkt, claim, .. } = work;
    let wanted = wanted_port(tables, pkt);
    claim.wire = pkt
        .tuple
        .reply_to(pkt.new.addr, wanted.unwrap_or(pkt.tuple.src_id));
    claim.reply = mapping(&pkt.tuple.src, pkt.tuple.src_id, flags, tables.now());
    claim.ranges = ranges_for(tables, &pkt.tuple);
    claim.outcome = Outcome::Searching;
    claim.tried = 0;
    claim.spares = [SparePort::NONE; SPARES];
    (claim.is_syn, claim.syn) = match pkt.l4 {
        L4::Tcp(segment) if segment.flags & (SYN | ACK) == SYN => (1, segment.seq),
        _ => (0, 0),
    };
    claim.wanted = u32::from(claim.wire.dst_id);
    claim.has_wanted = (wanted.is_some() && may_have(tables, claim)).into();
}

/// Claims `claim.wire` as [`try_candidate`] does, for a candidate that is expected to be free:
/// looks up the owner only if the claim fails.
#[inline(never)]
pub(super) fn try_first<T: Tables>(tables: &T, claim: &mut Claim) -> bool {
    if is_kept(tables, claim) || is_nodes(tables, claim) {
        return false;
    }
    if let Err(InsertError::Exists) = insert(tables, claim)
        && let Some(owner) = tables.rev_snat(&claim.wire)
    {
        meet(tables, claim, owner);
    }
    claim.outcome == Outcome::Claimed
}

/// Completes the mapping and returns its verdict.
#[inline(never)]
fn finish<T: Tables>(tables: &T, work: &mut Work, flags: u16) -> Verdict {
    let Work { pkt, claim, .. } = work;
    // The claim is in the map; its memory is reused for the original half, which counts this
    // packet.
    claim.reply = mapping(
        &pkt.new.addr,
        claim.wire.dst_id,
        flags | claim.origin,
        tables.now(),
    );
    let place = tables.place();
    (claim.reply.uplink, claim.reply.epoch) = (place.uplink, place.epoch);
    // SAFETY: the claim's own half, which outlives this slot.
    let half = unsafe { Slot::new(&raw mut claim.reply) };
    match pkt.l4 {
        L4::Tcp(segment) if segment.bad_checksum != 0 && !pkt.l4.is_bare_syn() => {
            half.record_untrusted();
        }
        _ => half.record(&pkt.l4, tables.now()),
    }
    match tables.insert_snat(&pkt.tuple, &claim.reply) {
        Ok(()) => {
            tables.count(|c| &mut c.mappings_created);
            tables.count(|c| &mut c.egress_masqueraded);
            account(tables, &pkt.tuple, claim.bucket);
            if claim.wire.dst_id != pkt.tuple.src_id {
                tables.count(|c| &mut c.ports_changed);
            }
            if claim.has_wanted == 0 || claim.wanted != u32::from(claim.wire.dst_id) {
                remember_endpoint(tables, pkt, claim.wire.dst_id);
            }
            if tables.settings().flags & SETTING_HAIRPIN != 0 {
                hairpin::remember(tables, &claim.wire);
            }
            pkt.new.id = claim.wire.dst_id.into();
            return Verdict::Rewrite;
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
            let known = continue_egress(tables, &pkt.tuple, &pkt.l4, pkt.family, slot);
            apply(pkt, known)
        }
        None => Verdict::Drop(DropReason::TableFull),
    }
}

/// Counts a new mapping, and queues it for recycling.
#[inline(always)]
fn account<T: Tables>(tables: &T, tuple: &Tuple, bucket: u32) {
    if let Some(total) = tables.share(share::TOTAL) {
        total.add_mappings(1);
    }
    if let Some(share) = tables.share(bucket) {
        share.add_mappings(1);
    }
    tables.push_recent(tuple);
}

/// Returns the port to try first: the one that the endpoint has towards other destinations, or its
/// own (port preservation); `None` if ports are never preserved.
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

/// Claims `claim.wire` if it is free and nothing of the node receives by it: no reservation, socket
/// or port on which the node answers.
#[inline(always)]
pub(super) fn try_candidate<T: Tables>(tables: &T, claim: &mut Claim) {
    if is_kept(tables, claim) {
        return;
    }
    if let Some(owner) = tables.rev_snat(&claim.wire) {
        meet(tables, claim, owner);
    } else if !is_nodes(tables, claim) {
        // Fails if another CPU was faster.
        let _ = insert(tables, claim);
    }
}

/// Reports whether the candidate is never given to a mapping.
#[inline(always)]
fn is_kept<T: Tables>(tables: &T, claim: &Claim) -> bool {
    let Tuple { dst_id, proto, .. } = claim.wire;
    has_ports(proto) && tables.port_reserved(dst_id) || tables.node_answers(proto, dst_id)
}

/// Reports whether packets that arrive by the candidate belong to the node.
#[inline(always)]
fn is_nodes<T: Tables>(tables: &T, claim: &Claim) -> bool {
    has_ports(claim.wire.proto) && tables.socket_receives(&claim.wire)
        || host::is_nodes(tables, &claim.wire)
}

#[inline(always)]
const fn has_ports(protocol: u32) -> bool {
    matches!(protocol, proto::TCP | proto::UDP)
}

/// Inserts the reply half, and sets the outcome.
#[inline(always)]
fn insert<T: Tables>(tables: &T, claim: &mut Claim) -> Result<(), InsertError> {
    let inserted = tables.insert_rev_snat(&claim.wire, &claim.reply);
    match inserted {
        Ok(()) => claim.outcome = Outcome::Claimed,
        Err(InsertError::Exists) => {}
        Err(InsertError::Full) => claim.outcome = Outcome::Full,
    }
    inserted
}

/// Adopts a claim of the same flow whose original half does not exist yet (another CPU) or was
/// lost. Of other flows' mappings, remembers those that may be evicted.
#[inline(always)]
fn meet<T: Tables>(tables: &T, claim: &mut Claim, owner: Slot) {
    if !owner.is_host() && owner.addr() == claim.reply.addr && owner.id() == claim.reply.id {
        claim.outcome = Outcome::Claimed;
        if claim.is_syn != 0 && is_closing(0, owner.tcp_seen()) {
            // Left behind by a connection that was reset; this one reopens it.
            owner.reopen(tables.now());
            owner.set_closing(Closing::NONE);
        }
    } else {
        note_spare(tables, claim, owner);
    }
}

/// Remembers the candidate if its mapping may be evicted, as far as this half shows.
#[inline(always)]
fn note_spare<T: Tables>(tables: &T, claim: &mut Claim, owner: Slot) {
    let silent = age(tables.now(), owner.last_seen());
    let Some(over) = is_over(claim, owner, silent) else {
        return;
    };
    let port = u32::from(claim.wire.dst_id);
    let rank = if over { u32::MAX } else { silent };
    let spare = &mut claim.spares[port as usize & (SPARES - 1)];
    // Among mappings that are over the last one met wins, which is arbitrary: if there is an
    // objection to one of them, a fixed choice would meet it every time.
    if rank >= spare.rank {
        *spare = SparePort {
            port: port + 1,
            rank,
        };
    }
}

/// Reports whether a mapping is over, as far as its reply half shows, which has been `silent` for
/// that many ticks; `None` if it is live.
#[inline(always)]
fn is_over(claim: &Claim, reply: Slot, silent: u32) -> Option<bool> {
    if !reply.has_sent(claim.wire.proto) {
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
        return Some(is_free_again(reset, follows, silent));
    }
    let carried = Carried {
        protocol: claim.wire.proto,
        peer_port: claim.wire.src_id,
        acknowledged: false,
        original: 0,
        reply: seen,
        packets: 0,
        replies: reply.packets(),
        lasted: lasted(reply.created(), reply.last_seen(), reply.last_seen()),
    };
    let over = spare(&carried, silent).is_some() || is_silent_stream(&carried, silent);
    over.then_some(true)
}

/// Reports whether the candidate may be tried: port classes limit only the search for another port,
/// configured ranges limit every port.
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

/// Returns the L4 ids that a flow may have on the wire: only its own if just the address is
/// translated.
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
        epoch: 0,
        uplink: 0,
        packets: 0,
    }
}
