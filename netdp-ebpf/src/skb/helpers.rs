//! Rewriting with the kernel's helpers, and the cases that need them: partial checksums, fragments,
//! ICMP errors.

use super::write::{self, TCP_CHECKSUM, UDP_CHECKSUM};
use aya_ebpf::bindings::{BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, BPF_F_RECOMPUTE_CSUM};
use aya_ebpf::programs::TcContext;
use netdp_common::direction::End;
use netdp_common::layout::{Addr, Family, proto};
use netdp_common::nat::scratch::Scratch;
use netdp_common::packet::{KEEP_IP_ID, L4, Packet, checksum};
use netdp_common::skb::ErrorPart;

/// `BPF_F_IPV6` (include/uapi/linux/bpf.h, Linux 6.16): the pseudo-header that changes is IPv6's.
/// There the changes of address and checksum cancel out in `skb->csum`, which the helper must then
/// not update.
const BPF_F_IPV6: u64 = 1 << 7;

/// The rewrite of one end of a packet: its place, and its old and new address.
struct Edit<'a> {
    family: Family,
    old: &'a Addr,
    new: &'a Addr,
    end: End,
    /// Offset of the IP header from the start of the packet.
    l3: usize,
    /// True if a checksum compensates for the address in `skb->csum`. In IPv4 the header's always
    /// does.
    summed: bool,
}

/// Replaces one end by `pkt.new` and updates every checksum over it, with the kernel's helpers,
/// which know whether a checksum is partial.
#[inline(never)]
pub fn rewrite(ctx: &TcContext, pkt: &Packet, end: End) -> bool {
    replace_end(ctx, pkt, end).is_ok()
}

#[inline(always)]
fn replace_end(ctx: &TcContext, pkt: &Packet, end: End) -> Result<(), i64> {
    let (old_addr, old_id) = end.of(&pkt.tuple);
    let delta = checksum::fold32(checksum::addr_diff(old_addr, &pkt.new.addr, pkt.family));
    let mut summed = false;
    if let Some(l4) = checksummed(pkt, end) {
        summed = true;
        let csum_at = pkt.l4_offset as usize + l4.checksum;
        if l4.pseudo && delta != 0 && delta != u32::MAX {
            replace_pseudo(ctx, csum_at, pkt.family, delta, l4.mangled_0)?;
        }
        let new_id = pkt.new.id as u16;
        // Without a checksum nothing cancels out a change: `skb->csum` has to be updated.
        let may_lack = l4.mangled_0 != 0 && (new_id != old_id || pkt.family == Family::V6);
        if may_lack && ctx.load::<u16>(csum_at)? == 0 {
            summed = false;
        }
        if new_id != old_id {
            let (old, new) = (old_id.to_be(), new_id.to_be());
            ctx.l4_csum_replace(csum_at, old.into(), new.into(), 2 | l4.mangled_0)?;
            ctx.store(
                pkt.l4_offset as usize + l4.id,
                &new,
                recompute_unless(summed),
            )?;
        }
    }
    store_end(ctx, pkt, old_addr, end, summed)
}

/// Reports whether the packet has at least one more hop left.
#[inline(always)]
pub fn has_hops(ctx: &TcContext, pkt: &Packet) -> bool {
    ctx.load::<u8>(hops_at(pkt)).is_ok_and(|hops| hops > 1)
}

/// Decrements the time to live or hop limit, as a router does.
#[inline(always)]
pub fn decrement_hops(ctx: &TcContext, pkt: &Packet) -> Result<(), i64> {
    let at = hops_at(pkt);
    let old = ctx.load::<[u8; 2]>(at)?;
    let new = [old[0].wrapping_sub(1), old[1]];
    if pkt.family == Family::V4 {
        let word = |bytes| u64::from(u16::from_ne_bytes(bytes));
        let check = pkt.l3_offset as usize + 10;
        ctx.l3_csum_replace(check, word(old), word(new), 2)?;
    }
    // In IPv6 no checksum compensates for it.
    ctx.store(at, &new, recompute_unless(pkt.family == Family::V4))
}

/// Returns the offset of the time to live, or the hop limit.
#[inline(always)]
fn hops_at(pkt: &Packet) -> usize {
    pkt.l3_offset as usize
        + match pkt.family {
            Family::V4 => 8,
            Family::V6 => 7,
        }
}

/// Returns the flags of a write: it updates `skb->csum` unless a checksum compensates for it.
#[inline(always)]
fn recompute_unless(summed: bool) -> u64 {
    if summed {
        0
    } else {
        u64::from(BPF_F_RECOMPUTE_CSUM)
    }
}

/// Writes the new identification of a datagram's fragments, and the header checksum, which
/// compensates for it.
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

/// Offsets of the checksum and of the rewritten id in the L4 header.
struct Checksummed {
    checksum: usize,
    id: usize,
    /// The checksum covers a pseudo-header with the addresses.
    pseudo: bool,
    /// The flag for UDP, where a checksum of 0 means none and is not changed (RFC 768, IPv4).
    mangled_0: u64,
}

#[inline(always)]
fn checksummed(pkt: &Packet, end: End) -> Option<Checksummed> {
    if matches!(pkt.l4, L4::LaterFragment | L4::Untranslatable(_)) {
        return None;
    }
    let port = match end {
        End::Source => 0,
        End::Destination => 2,
    };
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

/// Updates a checksum over a pseudo-header in which an address changed.
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
        // Kernels without BPF_F_IPV6 reject it; there the complete checksum of a received packet is
        // lost either way.
        ctx.l4_csum_replace(csum_at, 0, delta.into(), flags)?;
    }
    Ok(())
}

/// Writes `pkt.new` into the IP header, with the identification of fragments.
#[inline(always)]
fn store_end(ctx: &TcContext, pkt: &Packet, old: &Addr, end: End, summed: bool) -> Result<(), i64> {
    let l3 = pkt.l3_offset as usize;
    store_ip_id(ctx, pkt)?;
    store_addr(
        ctx,
        &Edit {
            family: pkt.family,
            old,
            new: &pkt.new.addr,
            end,
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
        Family::V4 => write::store_v4(ctx, edit.l3, edit.old, edit.new, edit.end).ok_or(-1),
        Family::V6 => ctx.store(
            edit.l3 + write::addr_offset(edit.family, edit.end),
            edit.new.octets(),
            recompute_unless(edit.summed),
        ),
    }
}

/// Translates an ICMP error: in the inner packet, the opposite end of the tuple than in the outer
/// one. Returns 0, or 1 if it failed.
#[inline(never)]
pub fn rewrite_error(ctx: &TcContext, scratch: &Scratch, end: End, part: ErrorPart) -> u32 {
    match try_rewrite_error(ctx, scratch, end, part) {
        Ok(()) => 0,
        Err(_) => 1,
    }
}

#[inline(always)]
fn try_rewrite_error(
    ctx: &TcContext,
    scratch: &Scratch,
    end: End,
    part: ErrorPart,
) -> Result<(), i64> {
    let Scratch { pkt, inner, .. } = scratch;
    let csum_at = pkt.l4_offset as usize + 2;
    // The inner packet went the other way: its source is the outer packet's destination.
    let inner_end = end.opposite();
    let (old_addr, old_id) = inner_end.of(&inner.tuple);
    let new_id = pkt.new.id as u16;
    let addr_delta = checksum::addr_diff(old_addr, &pkt.new.addr, pkt.family);
    let id_delta = checksum::diff(old_id.to_be().into(), new_id.to_be().into());
    let inner_l3 = inner.l3_offset as usize;
    // The inner L4 checksum, if present and in use.
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
        let at = inner.l4_offset as usize + inner_id_offset(inner.tuple.proto, inner_end);
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
            end: inner_end,
            l3: inner_l3,
            summed: true,
        },
    )?;
    // In IPv4 the inner header's checksum compensates for its address.
    if pkt.family == Family::V6 {
        ctx.l4_csum_replace(csum_at, 0, checksum::fold32(addr_delta).into(), 0)?;
    }
    if part == ErrorPart::Inner {
        return Ok(());
    }
    let (old_outer, _) = end.of(&pkt.tuple);
    if pkt.family == Family::V6 {
        let delta = checksum::addr_diff(old_outer, &pkt.new.addr, Family::V6);
        replace_pseudo(ctx, csum_at, Family::V6, checksum::fold32(delta), 0)?;
    }
    store_end(ctx, pkt, old_outer, end, true)
}

#[inline(always)]
const fn has_id(protocol: u32) -> bool {
    matches!(
        protocol,
        proto::TCP | proto::UDP | proto::UDP_LITE | proto::DCCP | proto::ICMP | proto::ICMPV6
    )
}

#[inline(always)]
const fn inner_id_offset(protocol: u32, end: End) -> usize {
    match (protocol, end) {
        (proto::ICMP | proto::ICMPV6, _) => 4,
        (_, End::Source) => 0,
        (_, End::Destination) => 2,
    }
}
