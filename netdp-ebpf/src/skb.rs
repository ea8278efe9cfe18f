//! Packet bytes, read and written in place.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::btf_maps::PerCpuArray;
use aya_ebpf::helpers::{bpf_csum_diff, bpf_csum_update, bpf_set_hash, bpf_skb_load_bytes};
use aya_ebpf::macros::btf_map;
use aya_ebpf::programs::TcContext;
use netdp_common::addr::{Addr, Family};
use netdp_common::checksum::{self, Change};
use netdp_common::nat::Work;
use netdp_common::packet::{self, Bytes, L4, Packet, Parsed, Plain, SUMMED};
use netdp_common::slot::Slot;
use netdp_common::tuple::{Tuple, proto};
use netdp_common::verdict::DropReason;

/// Offset of the checksum in a TCP header (RFC 9293 3.1).
pub const TCP_CHECKSUM: usize = 16;
/// Offset of the checksum in a UDP (RFC 768), UDP-Lite or DCCP header.
pub const UDP_CHECKSUM: usize = 6;

/// Length of an Ethernet header, in bytes.
pub const ETHERNET: u32 = 14;

/// The maximum offset of any header that the datapath reads. Also gives the verifier a bound.
const MAX_OFFSET: usize = 0x1ff;

/// The number of bytes that are made linear if a header is missing: Ethernet, two VLAN tags, and an
/// ICMP error with IP options outside and inside and a TCP header.
const PULL: u32 = 22 + 60 + 8 + 60 + 20;

/// EtherType of an 802.1Q tag.
const ETH_P_8021Q: u16 = 0x8100;
/// EtherType of an 802.1ad service tag.
const ETH_P_8021AD: u16 = 0x88a8;

/// Reports whether the packet has a VLAN tag, in band or offloaded by the device.
#[inline(always)]
pub fn is_tagged(ctx: &TcContext) -> bool {
    // SAFETY: a TC program's context is readable for the program's run.
    let (taken_off, kind) = unsafe {
        let skb = ctx.skb.skb;
        ((*skb).vlan_present != 0, (*skb).protocol)
    };
    taken_off || matches!(u16::from_be(kind as u16), ETH_P_8021Q | ETH_P_8021AD)
}

/// Returns the source address of the Ethernet header.
#[inline(always)]
pub fn source_mac(ctx: &TcContext) -> Option<[u8; 6]> {
    /// Offset: after the destination (IEEE 802.3 3.2).
    const AT: usize = 6;
    let start = ctx.data() + AT;
    if start + 6 > ctx.data_end() {
        return None;
    }
    // SAFETY: the verifier proves that the bytes lie between data and data_end.
    Some(unsafe { (start as *const [u8; 6]).read() })
}

struct Linear<'a>(&'a TcContext);

impl Bytes for Linear<'_> {
    #[inline(always)]
    fn words<const N: usize>(&self, offset: usize) -> Option<[u32; N]> {
        if offset > MAX_OFFSET {
            return None;
        }
        let start = self.0.data() + offset;
        if start + N * 4 > self.0.data_end() {
            return None;
        }
        // SAFETY: the verifier proves that the words lie between data and data_end. They may be
        // unaligned: on architectures whose JIT cannot load unaligned words, the verifier rejects
        // the program (strict alignment).
        Some(unsafe { (start as *const [u32; N]).read() })
    }

    #[inline(always)]
    fn sum(&self, offset: usize, len: u32) -> Option<u32> {
        sum(self.0, offset as u32, len)
    }
}

/// Buffer for the bytes to sum: too large for the stack.
#[btf_map]
static SUMMED_BYTES: PerCpuArray<[u64; SUMMED as usize / 8], 1> = PerCpuArray::new();

/// Returns the ones' complement sum of up to [`SUMMED`] bytes.
#[inline(never)]
fn sum(ctx: &TcContext, offset: u32, len: u32) -> Option<u32> {
    let room = SUMMED_BYTES.get_ptr_mut(0)?;
    // SAFETY: a local. Volatile, so that LLVM makes no assumption about the length and keeps the
    // bounds checks that the verifier needs.
    let len = unsafe { (&raw const len).read_volatile() };
    if len > SUMMED {
        return None;
    }
    // No segment is empty, see `hold::bounded`.
    let len = if len > 1 { len } else { 1 };
    // SAFETY: this CPU's own buffer; the helper writes `len` bytes, which fit, and the bytes after
    // them are 0.
    let sum = unsafe {
        for n in 0..SUMMED as usize / 8 {
            (&raw mut (*room)[n]).write_volatile(0);
        }
        let copied = bpf_skb_load_bytes(ctx.as_ptr(), offset, room.cast(), len);
        if copied != 0 {
            return None;
        }
        bpf_csum_diff(core::ptr::null_mut(), 0, room.cast(), SUMMED, 0)
    };
    u32::try_from(sum).ok()
}

/// Returns `N` words of the packet, if they are in its linear part.
#[inline(always)]
pub fn words<const N: usize>(ctx: &TcContext, offset: usize) -> Option<[u32; N]> {
    Linear(ctx).words(offset)
}

/// Reads the addresses by [`packet::peek`]; does not look behind in-band tags.
#[inline(always)]
pub fn peek(ctx: &TcContext, l2_len: u32) -> Option<(Addr, Addr)> {
    packet::peek(&Linear(ctx), ethertype(ctx), l2_len)
}

/// Returns the EtherType, or that of the first in-band tag, host byte order.
#[inline(always)]
fn ethertype(ctx: &TcContext) -> u16 {
    // SAFETY: a TC program's context is readable for the program's run.
    u16::from_be(unsafe { (*ctx.skb.skb).protocol } as u16)
}

/// Parses the packet after an Ethernet header, if it is [`Plain`].
#[inline(always)]
pub fn plain(ctx: &TcContext) -> Option<Plain> {
    packet::plain(&Linear(ctx), ethertype(ctx), ETHERNET)
}

/// Parses the packet into `work`. `l2_len` is 14, or 0 on devices without Ethernet
/// header.
#[inline(always)]
pub fn parse(ctx: &TcContext, l2_len: u32, work: &mut Work) -> Parsed {
    if let Some(plain) = packet::plain(&Linear(ctx), ethertype(ctx), l2_len) {
        plain.fill(l2_len, &mut work.pkt);
        return Parsed::Ip;
    }
    parse_any(ctx, l2_len, work)
}

/// Parses a packet that is not [`Plain`]. Headers outside the linear area are pulled in and the
/// packet is parsed again.
#[inline(always)]
pub fn parse_any(ctx: &TcContext, l2_len: u32, work: &mut Work) -> Parsed {
    let parsed = parse_linear(ctx, l2_len, work);
    let cut = match parsed {
        Parsed::Ip => matches!(
            work.pkt.l4,
            L4::Untranslatable(DropReason::Malformed | DropReason::ExtensionHeader)
        ),
        Parsed::Malformed => true,
        Parsed::NotIp => false,
    };
    let linear = (ctx.data_end() - ctx.data()) as u32;
    if !cut || linear >= PULL || linear >= ctx.len() {
        return parsed;
    }
    let want = if ctx.len() < PULL { ctx.len() } else { PULL };
    // If pulling fails, the second parse finds the header missing again.
    let _ = ctx.pull_data(want);
    parse_linear(ctx, l2_len, work)
}

#[inline(never)]
fn parse_linear(ctx: &TcContext, l2_len: u32, work: &mut Work) -> Parsed {
    let mut ethertype = ethertype(ctx);
    let mut l3_offset = l2_len;
    // Tags that the device did not offload; offloaded ones are not in the bytes.
    for _ in 0..2 {
        if ethertype != ETH_P_8021Q && ethertype != ETH_P_8021AD {
            break;
        }
        // The tag's last two bytes are the EtherType that follows it.
        let Some([tag]) = Linear(ctx).words::<1>(l3_offset as usize) else {
            return Parsed::Malformed;
        };
        ethertype = (u32::from_be(tag) & 0xffff) as u16;
        l3_offset += 4;
    }
    let parsed = packet::parse(&Linear(ctx), ethertype, l3_offset, &mut work.pkt);
    if let L4::Error = work.pkt.l4
        && packet::parse_inner(&Linear(ctx), &work.pkt, &mut work.inner).is_none()
    {
        work.pkt.l4 = L4::Untranslatable(DropReason::Malformed);
    }
    parsed
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
    leaving: bool,
    /// True if the program is at TC egress.
    forwarded: bool,
}

/// Writes the mapping's endpoint into a packet without the kernel's helpers, if that is safe;
/// otherwise returns `false` and has written nothing.
///
/// The helpers are needed because of `skb->ip_summed`, which a program cannot read: whether the
/// checksum is complete or partial. It is complete if it differs from that of the pseudo-header.
/// Then only `skb->csum` has to be updated by a helper.
#[inline(always)]
pub fn rewrite_plain(ctx: &TcContext, plain: &Plain, slot: Slot, leaving: bool) -> bool {
    let whole = Whole {
        family: Family::V4,
        tuple: plain.tuple(),
        addr: &slot.addr(),
        id: slot.id(),
        l3: ETHERNET as usize,
        leaving,
        forwarded: leaving,
    };
    write_whole::<20>(ctx, &whole).is_some()
}

/// Rewrites any packet like [`rewrite_plain`]. A function of its own, because main's stack frame
/// and all below it may have 512 bytes together.
#[inline(never)]
pub fn rewrite_whole(ctx: &TcContext, pkt: &Packet, leaving: bool, forwarded: bool) -> bool {
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
        leaving,
        forwarded,
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
        leaving,
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
    let (old, old_id) = end(tuple, *leaving);
    let addr_at = start + addr_offset(*family, *leaving);
    let id_at = if *leaving { l4 } else { l4 + 2 };
    // SAFETY: all bytes that are read and written lie between `start` and the end of the checksum,
    // which was just compared with the packet's. They may be unaligned, see `Linear`.
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
        let change = Change {
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
        if !whole.forwarded {
            let total = change.total(*family, summed.is_some());
            if !matches!(total, 0 | u32::MAX) {
                // Fails if there is no `skb->csum`.
                bpf_csum_update(ctx.skb.skb, total);
            }
        }
    }
    Some(())
}

/// Returns one end of a tuple, such as the one that changes: the source of a leaving packet.
#[inline(always)]
pub fn end(tuple: &Tuple, source: bool) -> (&Addr, u16) {
    if source {
        (&tuple.src, tuple.src_id)
    } else {
        (&tuple.dst, tuple.dst_id)
    }
}

/// Returns the offset of an address in the IP header.
#[inline(always)]
pub fn addr_offset(family: Family, source: bool) -> usize {
    match (family, source) {
        (Family::V4, true) => 12,
        (Family::V4, false) => 16,
        (Family::V6, true) => 8,
        (Family::V6, false) => 24,
    }
}

/// Writes an IPv4 address and the header checksum that compensates for it: both in one write,
/// because every helper call costs.
#[inline(always)]
pub fn store_v4(ctx: &TcContext, l3: usize, old: &Addr, new: &Addr, source: bool) -> Option<()> {
    let [sum, src, dst] = words::<3>(ctx, l3 + 8)?;
    let delta = checksum::addr_diff(old, new, Family::V4);
    let [ttl, protocol, high, low] = sum.to_ne_bytes();
    let sum = checksum::replace(u16::from_ne_bytes([high, low]), delta).to_ne_bytes();
    let first = u32::from_ne_bytes([ttl, protocol, sum[0], sum[1]]);
    let new = new.words()[3];
    let (src, dst) = if source { (new, dst) } else { (src, new) };
    let start = ctx.data() + l3 + 8;
    if start + 12 > ctx.data_end() {
        return None;
    }
    // SAFETY: the 12 bytes lie inside the packet, by the comparison with data_end above.
    unsafe { (start as *mut [u32; 3]).write([first, src, dst]) };
    Some(())
}

/// Sets the hash that selects the queue, for a packet that has none. Otherwise the kernel would
/// parse the packet's headers once more (`skb_get_hash`, net/core/flow_dissector.c, Linux 6.12).
/// Fragments keep theirs, which is the same for all of a datagram.
#[inline(always)]
pub fn set_hash(ctx: &TcContext, pkt: &Packet) {
    if pkt.is_fragment == 0 {
        set_tuple_hash(ctx, &pkt.tuple);
    }
}

/// Sets the hash of an unfragmented packet with this tuple, as [`set_hash`] does.
#[inline(always)]
pub fn set_tuple_hash(ctx: &TcContext, tuple: &Tuple) {
    hash_by(ctx, || Some(tuple.quick_hash()));
}

/// Sets the hash of an unmodified packet between these addresses, as [`set_hash`] does, if it can
/// be read from the first words alone.
#[inline(always)]
pub fn set_queue_hash(ctx: &TcContext, l2_len: u32, src: &Addr, dst: &Addr) {
    hash_by(ctx, || {
        packet::queue_hash(&Linear(ctx), ethertype(ctx), l2_len, src, dst)
    });
}

#[inline(always)]
fn hash_by(ctx: &TcContext, hash: impl FnOnce() -> Option<u32>) {
    // SAFETY: a TC program's context is readable for the program's run; the
    // helper takes it and a number.
    unsafe {
        if (*ctx.skb.skb).hash == 0
            && let Some(hash) = hash()
        {
            bpf_set_hash(ctx.skb.skb, hash);
        }
    }
}
