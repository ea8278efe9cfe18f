//! Packet bytes, written in place.

use super::read::words;
use aya_ebpf::helpers::bpf_csum_update;
use aya_ebpf::programs::TcContext;
use netdp_common::direction::{Direction, End};
use netdp_common::layout::{Addr, Family, Tuple, proto};
use netdp_common::packet::checksum::{self, ChecksumDelta};
use netdp_common::packet::{ETHERNET, FastPacket, L4, MAX_OFFSET, Packet};
use netdp_common::slot::Slot;

/// Offset of the checksum in a TCP header (RFC 9293 3.1).
pub const TCP_CHECKSUM: usize = 16;

/// Offset of the checksum in a UDP (RFC 768), UDP-Lite or DCCP header.
pub const UDP_CHECKSUM: usize = 6;

/// Writes the endpoint of a half into a fast-path packet without the kernel's helpers, if that is
/// safe; otherwise returns `false` and has written nothing.
///
/// The helpers are needed because of `skb->ip_summed`, which a program cannot read: whether the
/// checksum is complete or partial. It is complete if it differs from that of the pseudo-header.
/// Then only `skb->csum` has to be updated by a helper.
#[inline(always)]
pub fn rewrite_fast(ctx: &TcContext, fast: &FastPacket, slot: Slot, direction: Direction) -> bool {
    let whole = Whole {
        family: Family::V4,
        tuple: fast.tuple(),
        addr: &slot.addr(),
        id: slot.id(),
        l3: ETHERNET as usize,
        end: direction.translated_end(),
        hook: direction,
    };
    write_whole::<20>(ctx, &whole).is_some()
}

/// A packet with both headers in their usual place, and the values to write into it.
struct Whole<'a> {
    family: Family,
    tuple: Tuple,
    /// The new address of the rewritten end.
    addr: &'a Addr,
    id: u16,
    /// Offset of the IP header from the start of the packet.
    l3: usize,
    /// The end to replace.
    end: End,
    /// The hook at which the program runs.
    hook: Direction,
}

/// Rewrites any packet without the kernel's helpers; returns `false` if that is not possible. A
/// function of its own, because main's stack frame and all below it may have 512 bytes together.
#[inline(never)]
pub fn rewrite_whole(ctx: &TcContext, pkt: &Packet, end: End, hook: Direction) -> bool {
    let l3 = pkt.l3_offset as usize;
    // The length in the pseudo-header of a fragment is not its own.
    if pkt.is_fragment != 0 || l3 > MAX_OFFSET || !matches!(pkt.l4, L4::Tcp(_) | L4::Udp) {
        return false;
    }
    let whole = Whole {
        family: pkt.family,
        tuple: pkt.tuple,
        addr: &pkt.new.addr,
        id: pkt.new.id as u16,
        l3,
        end,
        hook,
    };
    let written = match (pkt.family, pkt.l4_offset - pkt.l3_offset) {
        (Family::V4, 20) => write_whole::<20>(ctx, &whole),
        (Family::V6, 40) => write_whole::<40>(ctx, &whole),
        _ => None,
    };
    written.is_some()
}

/// Writes the new endpoint, for an IP header of this length.
#[inline(always)]
fn write_whole<const HEADER: usize>(ctx: &TcContext, whole: &Whole<'_>) -> Option<()> {
    let Whole {
        family,
        tuple,
        addr,
        l3,
        end,
        ..
    } = whole;
    // SAFETY: a TC program's context is readable for the program's run.
    let segments = unsafe { (*ctx.skb.skb).gso_size } != 0;
    // The length in the pseudo-header of a GSO packet is not its own.
    if segments {
        return None;
    }
    let csum = match tuple.proto {
        proto::TCP => TCP_CHECKSUM,
        proto::UDP => UDP_CHECKSUM,
        _ => return None,
    };
    let start = ctx.data() + l3;
    if start + HEADER + csum + 2 > ctx.data_end() {
        return None;
    }
    let l4 = start + HEADER;
    let (old, old_id) = end.of(tuple);
    let addr_at = start + addr_offset(*family, *end);
    let id_at = match end {
        End::Source => l4,
        End::Destination => l4 + 2,
    };
    // SAFETY: all bytes that are read and written lie between `start` and the end of the checksum,
    // which was just compared with the packet's. They may be unaligned, see `read::words`.
    unsafe {
        let len = match family {
            Family::V4 => {
                u16::from_be(((start + 2) as *const u16).read()).checked_sub(HEADER as u16)?
            }
            Family::V6 => u16::from_be(((start + 4) as *const u16).read()),
        };
        let field = ((l4 + csum) as *const u16).read();
        let pseudo = checksum::pseudo_sum(&tuple.src, &tuple.dst, *family, tuple.proto as u8, len);
        if checksum::may_be_partial(field, pseudo) {
            return None;
        }
        let id = whole.id.to_be();
        let change = ChecksumDelta {
            addr: checksum::addr_diff(old, addr, *family),
            id: checksum::diff(old_id.to_be().into(), id.into()),
        };
        match family {
            Family::V4 => {
                let sum = (start + 10) as *mut u16;
                sum.write(checksum::replace(sum.read(), change.addr));
                (addr_at as *mut u32).write(addr.words()[3]);
            }
            Family::V6 => (addr_at as *mut [u32; 4]).write(addr.words()),
        }
        let summed = change.field(field, csum == UDP_CHECKSUM);
        if let Some(sum) = summed {
            ((l4 + csum) as *mut u16).write(sum);
        }
        (id_at as *mut u16).write(id);
        // At TC egress there is no `skb->csum`: a packet originates here, or lost it when it was
        // forwarded (`skb_forward_csum`, include/linux/skbuff.h, Linux 6.12). An unnecessary call
        // would be a twentieth of the whole cost.
        if whole.hook == Direction::Ingress {
            let total = change.total(*family, summed.is_some());
            if !matches!(total, 0 | u32::MAX) {
                // Fails if there is no `skb->csum`.
                bpf_csum_update(ctx.skb.skb, total);
            }
        }
    }
    Some(())
}

/// Returns the offset of an address in the IP header.
#[inline(always)]
pub fn addr_offset(family: Family, end: End) -> usize {
    match (family, end) {
        (Family::V4, End::Source) => 12,
        (Family::V4, End::Destination) => 16,
        (Family::V6, End::Source) => 8,
        (Family::V6, End::Destination) => 24,
    }
}

/// Writes an IPv4 address and the header checksum that compensates for it: both in one write,
/// because every helper call costs.
#[inline(always)]
pub fn store_v4(ctx: &TcContext, l3: usize, old: &Addr, new: &Addr, end: End) -> Option<()> {
    let [sum, src, dst] = words::<3>(ctx, l3 + 8)?;
    let delta = checksum::addr_diff(old, new, Family::V4);
    let [ttl, protocol, high, low] = sum.to_ne_bytes();
    let sum = checksum::replace(u16::from_ne_bytes([high, low]), delta).to_ne_bytes();
    let first = u32::from_ne_bytes([ttl, protocol, sum[0], sum[1]]);
    let new = new.words()[3];
    let (src, dst) = match end {
        End::Source => (new, dst),
        End::Destination => (src, new),
    };
    let start = ctx.data() + l3 + 8;
    if start + 12 > ctx.data_end() {
        return None;
    }
    // SAFETY: the 12 bytes lie inside the packet, by the comparison with data_end above.
    unsafe { (start as *mut [u32; 3]).write([first, src, dst]) };
    Some(())
}
