//! Rewriting by the kernel's helpers, and what only they can: partial checksums,
//! fragments, ICMP errors.

use crate::skb::{self, TCP_CHECKSUM, UDP_CHECKSUM, end, rewrite_whole};
use aya_ebpf::bindings::{BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, BPF_F_RECOMPUTE_CSUM};
use aya_ebpf::programs::TcContext;
use netdp_common::addr::{Addr, Family};
use netdp_common::checksum;
use netdp_common::nat::Work;
use netdp_common::packet::{KEEP_IP_ID, L4, Packet};
use netdp_common::tuple::proto;
use netdp_common::verdict::DropReason;

/// `BPF_F_IPV6` (include/uapi/linux/bpf.h, Linux 6.16): the pseudo-header that
/// changes is IPv6's. There the address and the checksum cancel out in
/// `skb->csum`, which the helper must then leave alone.
const BPF_F_IPV6: u64 = 1 << 7;

/// One end of a packet that is to change: where it is and from what to what.
struct Edit<'a> {
    family: Family,
    old: &'a Addr,
    new: &'a Addr,
    /// Whether it is the source.
    source: bool,
    /// Offset of the IP header.
    l3: usize,
    /// Whether a checksum makes up for the address in `skb->csum`. In IPv4 the
    /// header's always does.
    summed: bool,
}

/// Puts `pkt.new` in place of the source (`leaving`) or the destination and
/// updates every checksum over it. `forwarded`: the program is at TC egress.
#[inline(always)]
pub fn packet(
    ctx: &TcContext,
    pkt: &Packet,
    leaving: bool,
    forwarded: bool,
) -> Result<(), DropReason> {
    if rewrite_whole(ctx, pkt, leaving, forwarded) {
        return Ok(());
    }
    by_helpers(ctx, pkt, leaving)
}

/// The same by the kernel's helpers, which know whether a checksum is partial: for what
/// can't be written directly.
#[inline(always)]
pub fn by_helpers(ctx: &TcContext, pkt: &Packet, leaving: bool) -> Result<(), DropReason> {
    match try_rewrite(ctx, pkt, leaving) {
        true => Ok(()),
        false => Err(DropReason::RewriteFailed),
    }
}

#[inline(never)]
fn try_rewrite(ctx: &TcContext, pkt: &Packet, leaving: bool) -> bool {
    replace_end(ctx, pkt, leaving).is_ok()
}

#[inline(always)]
fn replace_end(ctx: &TcContext, pkt: &Packet, leaving: bool) -> Result<(), i64> {
    let (old_addr, old_id) = end(&pkt.tuple, leaving);
    let delta = checksum::narrow(checksum::addr_diff(old_addr, &pkt.new.addr, pkt.family));
    let mut summed = false;
    if let Some(l4) = checksummed(pkt, leaving) {
        summed = true;
        let csum_at = pkt.l4_offset as usize + l4.checksum;
        if l4.pseudo && delta != 0 && delta != u32::MAX {
            replace_pseudo(ctx, csum_at, pkt.family, delta, l4.mangled_0)?;
        }
        let new_id = pkt.new.id as u16;
        // Without a checksum nothing cancels a change out: skb->csum has to
        // follow it.
        let may_lack = l4.mangled_0 != 0 && (new_id != old_id || pkt.family == Family::V6);
        if may_lack && ctx.load::<u16>(csum_at)? == 0 {
            summed = false;
        }
        if new_id != old_id {
            let (old, new) = (old_id.to_be(), new_id.to_be());
            ctx.l4_csum_replace(csum_at, old.into(), new.into(), 2 | l4.mangled_0)?;
            ctx.store(pkt.l4_offset as usize + l4.id, &new, follow(summed))?;
        }
    }
    store_end(ctx, pkt, old_addr, leaving, summed)
}

/// Whether the packet may go on by one more hop.
#[inline(always)]
pub fn has_hops(ctx: &TcContext, pkt: &Packet) -> bool {
    ctx.load::<u8>(hops_at(pkt)).is_ok_and(|hops| hops > 1)
}

/// One hop less, as a router does.
#[inline(always)]
pub fn hop(ctx: &TcContext, pkt: &Packet) -> Result<(), i64> {
    let at = hops_at(pkt);
    let old = ctx.load::<[u8; 2]>(at)?;
    let new = [old[0].wrapping_sub(1), old[1]];
    if pkt.family == Family::V4 {
        let word = |bytes| u64::from(u16::from_ne_bytes(bytes));
        let check = pkt.l3_offset as usize + 10;
        ctx.l3_csum_replace(check, word(old), word(new), 2)?;
    }
    // In IPv6 nothing makes up for it.
    ctx.store(at, &new, follow(pkt.family == Family::V4))
}

/// Offset of the time to live, or the hop limit.
#[inline(always)]
fn hops_at(pkt: &Packet) -> usize {
    pkt.l3_offset as usize
        + match pkt.family {
            Family::V4 => 8,
            Family::V6 => 7,
        }
}

/// The flag for a write that no checksum makes up for.
#[inline(always)]
fn follow(summed: bool) -> u64 {
    if summed {
        0
    } else {
        u64::from(BPF_F_RECOMPUTE_CSUM)
    }
}

/// Writes the identification that the fragments of a datagram get, which the
/// header checksum makes up for.
#[inline(always)]
fn store_ip_id(ctx: &TcContext, pkt: &Packet) -> Result<(), i64> {
    if pkt.new_ip_id == KEEP_IP_ID {
        return Ok(());
    }
    let l3 = pkt.l3_offset as usize;
    let (old, new) = (
        (pkt.fragment_id as u16).to_be(),
        (pkt.new_ip_id as u16).to_be(),
    );
    ctx.l3_csum_replace(l3 + 10, old.into(), new.into(), 2)?;
    ctx.store(l3 + 4, &new, 0)
}

/// Where the L4 header has its checksum and the id that changes.
struct Checksummed {
    checksum: usize,
    id: usize,
    /// The checksum covers a pseudo-header with the addresses.
    pseudo: bool,
    /// RFC 768: an IPv4 UDP checksum of 0 means none, and stays so.
    mangled_0: u64,
}

#[inline(always)]
fn checksummed(pkt: &Packet, leaving: bool) -> Option<Checksummed> {
    if matches!(pkt.l4, L4::LaterFragment | L4::Untranslatable(_)) {
        return None;
    }
    let port = if leaving { 0 } else { 2 };
    let (checksum, id, pseudo) = match pkt.tuple.proto {
        proto::TCP => (TCP_CHECKSUM, port, true),
        proto::UDP | proto::UDP_LITE | proto::DCCP => (UDP_CHECKSUM, port, true),
        proto::ICMPV6 => (2, 4, true),
        proto::ICMP => (2, 4, false),
        _ => return None,
    };
    let mangled_0 = if pkt.tuple.proto == proto::UDP {
        u64::from(BPF_F_MARK_MANGLED_0)
    } else {
        0
    };
    Some(Checksummed {
        checksum,
        id,
        pseudo,
        mangled_0,
    })
}

/// Updates a checksum over a pseudo-header of which an address changed.
#[inline(always)]
fn replace_pseudo(
    ctx: &TcContext,
    csum_at: usize,
    family: Family,
    delta: u32,
    mangled_0: u64,
) -> Result<(), i64> {
    let flags = u64::from(BPF_F_PSEUDO_HDR) | mangled_0;
    let ipv6 = match family {
        Family::V4 => 0,
        Family::V6 => BPF_F_IPV6,
    };
    if ctx
        .l4_csum_replace(csum_at, 0, delta.into(), flags | ipv6)
        .is_err()
    {
        // Kernels that do not know BPF_F_IPV6 refuse it; there the complete
        // checksum of a received packet is lost either way.
        ctx.l4_csum_replace(csum_at, 0, delta.into(), flags)?;
    }
    Ok(())
}

/// Puts `pkt.new` into the IP header, with the identification of fragments.
#[inline(always)]
fn store_end(
    ctx: &TcContext,
    pkt: &Packet,
    old: &Addr,
    leaving: bool,
    summed: bool,
) -> Result<(), i64> {
    let l3 = pkt.l3_offset as usize;
    store_ip_id(ctx, pkt)?;
    store_addr(
        ctx,
        &Edit {
            family: pkt.family,
            old,
            new: &pkt.new.addr,
            source: leaving,
            l3,
            summed,
        },
    )
}

/// Writes an address and, for IPv4, the header checksum; the two cancel out in
/// a complete checksum of the packet (`skb->csum`).
#[inline(always)]
fn store_addr(ctx: &TcContext, edit: &Edit<'_>) -> Result<(), i64> {
    match edit.family {
        Family::V4 => skb::store_v4(ctx, edit.l3, edit.old, edit.new, edit.source).ok_or(-1),
        Family::V6 => ctx.store(
            edit.l3 + skb::addr_offset(edit.family, edit.source),
            edit.new.octets(),
            follow(edit.summed),
        ),
    }
}

/// Translates an ICMP error: inside, the other end of the tuple than outside;
/// outside only where `outer` is set.
#[inline(never)]
pub fn error(ctx: &TcContext, work: &Work, leaving: bool, outer: bool) -> u32 {
    match try_rewrite_error(ctx, work, leaving, outer) {
        Ok(()) => 0,
        Err(_) => 1,
    }
}

#[inline(always)]
fn try_rewrite_error(ctx: &TcContext, work: &Work, leaving: bool, outer: bool) -> Result<(), i64> {
    let Work { pkt, inner, .. } = work;
    let csum_at = pkt.l4_offset as usize + 2;
    // The inner packet went the other way: what is its source is the outer
    // packet's destination.
    let inner_source = !leaving;
    let (old_addr, old_id) = end(&inner.tuple, inner_source);
    let new_id = pkt.new.id as u16;
    let addr_delta = checksum::addr_diff(old_addr, &pkt.new.addr, pkt.family);
    let id_delta = checksum::diff(old_id.to_be().into(), new_id.to_be().into());
    let inner_l3 = inner.l3_offset as usize;
    // Inner L4 checksum, where it is there and in use.
    if inner.checksum_offset != 0 {
        let at = inner.checksum_offset as usize;
        let old = ctx.load::<u16>(at)?;
        let none = old == 0 && inner.tuple.proto == proto::UDP;
        let covers_addr = inner.tuple.proto != proto::ICMP;
        let mut delta = id_delta;
        if covers_addr {
            delta += addr_delta;
        }
        let new = checksum::replace(old, delta);
        if !none && new != old {
            ctx.store(at, &new, 0)?;
            ctx.l4_csum_replace(csum_at, old.into(), new.into(), 2)?;
        }
    }
    if new_id != old_id && has_id(inner.tuple.proto) {
        let at = inner.l4_offset as usize + inner_id_offset(inner.tuple.proto, inner_source);
        let (old, new) = (old_id.to_be(), new_id.to_be());
        ctx.store(at, &new, 0)?;
        ctx.l4_csum_replace(csum_at, old.into(), new.into(), 2)?;
    }
    store_addr(
        ctx,
        &Edit {
            family: pkt.family,
            old: old_addr,
            new: &pkt.new.addr,
            source: inner_source,
            l3: inner_l3,
            summed: true,
        },
    )?;
    // In IPv4 the inner header's checksum makes up for its address.
    if pkt.family == Family::V6 {
        ctx.l4_csum_replace(csum_at, 0, checksum::narrow(addr_delta).into(), 0)?;
    }
    if !outer {
        return Ok(());
    }
    let (old_outer, _) = end(&pkt.tuple, leaving);
    if pkt.family == Family::V6 {
        let delta = checksum::addr_diff(old_outer, &pkt.new.addr, Family::V6);
        replace_pseudo(ctx, csum_at, Family::V6, checksum::narrow(delta), 0)?;
    }
    store_end(ctx, pkt, old_outer, leaving, true)
}

#[inline(always)]
const fn has_id(protocol: u32) -> bool {
    matches!(
        protocol,
        proto::TCP | proto::UDP | proto::UDP_LITE | proto::DCCP | proto::ICMP | proto::ICMPV6
    )
}

#[inline(always)]
const fn inner_id_offset(protocol: u32, source: bool) -> usize {
    match (protocol, source) {
        (proto::ICMP | proto::ICMPV6, _) => 4,
        (_, true) => 0,
        (_, false) => 2,
    }
}
