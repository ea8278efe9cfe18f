//! All access to packet bytes.

use aya_ebpf::bindings::{BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, BPF_F_RECOMPUTE_CSUM};
use aya_ebpf::helpers::{bpf_csum_update, bpf_set_hash};
use aya_ebpf::programs::TcContext;
use netdp_common::addr::{Addr, Family};
use netdp_common::checksum::{self, Change};
use netdp_common::nat::Work;
use netdp_common::packet::{self, Bytes, KEEP_IP_ID, L4, Packet, Parsed, Plain};
use netdp_common::slot::Slot;
use netdp_common::tuple::{Tuple, proto};
use netdp_common::verdict::DropReason;

/// `BPF_F_IPV6` (include/uapi/linux/bpf.h, Linux 6.16): the pseudo-header that
/// changes is IPv6's. There the address and the checksum cancel out in
/// `skb->csum`, which the helper must then leave alone.
const BPF_F_IPV6: u64 = 1 << 7;

/// Where the checksum is in a TCP header (RFC 9293 3.1).
const TCP_CHECKSUM: usize = 16;
/// And in one of UDP (RFC 768), UDP-Lite or DCCP.
const UDP_CHECKSUM: usize = 6;

/// Bytes of an Ethernet header.
pub const ETHERNET: u32 = 14;

/// No header that the datapath reads begins beyond this offset. Also tells the
/// verifier a bound.
const MAX_OFFSET: usize = 0x1ff;

/// Bytes that are made linear where a header is missing: Ethernet, two VLAN
/// tags, and an ICMP error with IP options outside and inside and a TCP header.
const PULL: u32 = 22 + 60 + 8 + 60 + 20;

/// EtherType of an 802.1Q tag.
const ETH_P_8021Q: u16 = 0x8100;
/// EtherType of an 802.1ad service tag.
const ETH_P_8021AD: u16 = 0x88a8;

/// Whether the packet has a VLAN tag, in band or taken off by a device.
#[inline(always)]
pub fn is_tagged(ctx: &TcContext) -> bool {
    // SAFETY: a TC program's context is readable for the program's run.
    let (taken_off, kind) = unsafe {
        let skb = ctx.skb.skb;
        ((*skb).vlan_present != 0, (*skb).protocol)
    };
    taken_off || matches!(u16::from_be(kind as u16), ETH_P_8021Q | ETH_P_8021AD)
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
        // SAFETY: the verifier proves that the words lie between data and
        // data_end. They may be unaligned: architectures whose JIT can't load
        // them so have the verifier refuse the program (strict alignment).
        Some(unsafe { (start as *const [u32; N]).read() })
    }
}

/// `N` words of the packet, if they are in its linear part.
#[inline(always)]
pub fn words<const N: usize>(ctx: &TcContext, offset: usize) -> Option<[u32; N]> {
    Linear(ctx).words(offset)
}

/// See [`packet::peek`]; tags in band are not looked behind.
#[inline(always)]
pub fn peek(ctx: &TcContext, l2_len: u32) -> Option<(Addr, Addr)> {
    packet::peek(&Linear(ctx), ethertype(ctx), l2_len)
}

/// The EtherType, or that of the first tag in band, host byte order.
#[inline(always)]
fn ethertype(ctx: &TcContext) -> u16 {
    // SAFETY: a TC program's context is readable for the program's run.
    u16::from_be(unsafe { (*ctx.skb.skb).protocol } as u16)
}

/// The packet behind an Ethernet header, if it is [`Plain`].
#[inline(always)]
pub fn plain(ctx: &TcContext) -> Option<Plain> {
    packet::plain(&Linear(ctx), ethertype(ctx), ETHERNET)
}

/// Parses the packet into `work`. Headers outside the linear area are pulled in
/// and the packet is parsed again. `l2_len` is 14, or 0 on devices without
/// Ethernet header.
#[inline(always)]
pub fn parse(ctx: &TcContext, l2_len: u32, work: &mut Work) -> Parsed {
    if let Some(plain) = packet::plain(&Linear(ctx), ethertype(ctx), l2_len) {
        plain.fill(l2_len, &mut work.pkt);
        return Parsed::Ip;
    }
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
    // What can't be pulled is found missing again.
    let _ = ctx.pull_data(want);
    parse_linear(ctx, l2_len, work)
}

#[inline(never)]
fn parse_linear(ctx: &TcContext, l2_len: u32, work: &mut Work) -> Parsed {
    let mut ethertype = ethertype(ctx);
    let mut l3_offset = l2_len;
    // Tags that the device did not take off; those it did are not in the bytes.
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
pub fn rewrite(
    ctx: &TcContext,
    pkt: &Packet,
    leaving: bool,
    forwarded: bool,
) -> Result<(), DropReason> {
    if rewrite_whole(ctx, pkt, leaving, forwarded) {
        return Ok(());
    }
    rewrite_by_helpers(ctx, pkt, leaving)
}

/// The same, every step by the kernel's helpers: for what [`rewrite_plain`] has left
/// alone.
#[inline(always)]
pub fn rewrite_by_helpers(ctx: &TcContext, pkt: &Packet, leaving: bool) -> Result<(), DropReason> {
    match try_rewrite(ctx, pkt, leaving) {
        true => Ok(()),
        false => Err(DropReason::RewriteFailed),
    }
}

/// A packet of which both headers are where they mostly are.
struct Whole<'a> {
    family: Family,
    tuple: Tuple,
    /// What takes an end's place.
    addr: &'a Addr,
    id: u16,
    /// Offset of the IP header.
    l3: usize,
    leaving: bool,
    /// The program is at TC egress.
    forwarded: bool,
}

/// Writes the mapping's end into a packet without the kernel's help, where that is
/// safe: if it is not, nothing has been written.
///
/// The helpers are there for `skb->ip_summed`, which a program can't see: whether
/// the checksum is whole or partial. It is whole where it differs from the
/// pseudo-header's. What is then left of them is `skb->csum`.
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

/// The same for any packet. A function of its own, because main's frame and all below
/// it may have 512 bytes together.
#[inline(never)]
fn rewrite_whole(ctx: &TcContext, pkt: &Packet, leaving: bool, forwarded: bool) -> bool {
    let l3 = pkt.l3_offset as usize;
    // Fragments have another length in their pseudo-header.
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

/// The same for an IP header of this length.
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
    // So have super-packets.
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
    // SAFETY: all that is read and written lies between `start` and the end of
    // the checksum, which was just compared with the packet's. It may be
    // unaligned, see `Linear`.
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
        // At TC egress there is no `skb->csum`: a packet was made here, or it lost
        // that when it was forwarded (`skb_forward_csum`, include/linux/skbuff.h,
        // Linux 6.12). An unnecessary call would be a twentieth of the whole cost.
        if !whole.forwarded {
            let total = change.total(*family, summed.is_some());
            if !matches!(total, 0 | u32::MAX) {
                // Refused where there is none.
                bpf_csum_update(ctx.skb.skb, total);
            }
        }
    }
    Some(())
}

/// The end that changes: the source of what leaves.
#[inline(always)]
fn end(tuple: &Tuple, leaving: bool) -> (&Addr, u16) {
    if leaving {
        (&tuple.src, tuple.src_id)
    } else {
        (&tuple.dst, tuple.dst_id)
    }
}

/// Gives a packet that has none the hash by which queues are chosen. What the
/// kernel would do instead is to look into the packet's headers once more
/// (`skb_get_hash`, net/core/flow_dissector.c, Linux 6.12). Fragments keep
/// theirs, which is the same for all of a datagram.
#[inline(always)]
pub fn set_hash(ctx: &TcContext, pkt: &Packet) {
    if pkt.is_fragment == 0 {
        set_tuple_hash(ctx, &pkt.tuple);
    }
}

/// The same for a packet with this tuple that is no fragment.
#[inline(always)]
pub fn set_tuple_hash(ctx: &TcContext, tuple: &Tuple) {
    hash_by(ctx, || Some(tuple.quick_hash()));
}

/// The same for a packet between these addresses that stays as it is, where that is
/// told from its first words alone.
#[inline(always)]
pub fn set_plain_hash(ctx: &TcContext, l2_len: u32, src: &Addr, dst: &Addr) {
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

#[inline(always)]
fn addr_offset(family: Family, source: bool) -> usize {
    match (family, source) {
        (Family::V4, true) => 12,
        (Family::V4, false) => 16,
        (Family::V6, true) => 8,
        (Family::V6, false) => 24,
    }
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
        Family::V4 => {
            // Checksum and addresses in one write: each helper call has its price.
            let Some([sum, source, destination]) = Linear(ctx).words::<3>(edit.l3 + 8) else {
                return Err(-1);
            };
            let delta = checksum::addr_diff(edit.old, edit.new, Family::V4);
            let [ttl, protocol, high, low] = sum.to_ne_bytes();
            let sum = checksum::replace(u16::from_ne_bytes([high, low]), delta).to_ne_bytes();
            let first = u32::from_ne_bytes([ttl, protocol, sum[0], sum[1]]);
            let new = edit.new.words()[3];
            let (source, destination) = if edit.source {
                (new, destination)
            } else {
                (source, new)
            };
            let start = ctx.data() + edit.l3 + 8;
            if start + 12 > ctx.data_end() {
                return Err(-1);
            }
            // SAFETY: inside the packet.
            unsafe { (start as *mut [u32; 3]).write([first, source, destination]) };
            Ok(())
        }
        Family::V6 => ctx.store(
            edit.l3 + addr_offset(edit.family, edit.source),
            edit.new.octets(),
            follow(edit.summed),
        ),
    }
}

/// Translates an ICMP error: inside, the other end of the tuple than outside;
/// outside only where `outer` is set.
#[inline(never)]
pub fn rewrite_error(ctx: &TcContext, work: &Work, leaving: bool, outer: bool) -> u32 {
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
    let (old_addr, old_id) = if inner_source {
        (&inner.tuple.src, inner.tuple.src_id)
    } else {
        (&inner.tuple.dst, inner.tuple.dst_id)
    };
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
    let old_outer = if leaving {
        &pkt.tuple.src
    } else {
        &pkt.tuple.dst
    };
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
