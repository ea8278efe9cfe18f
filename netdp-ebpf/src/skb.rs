//! All access to packet bytes.

use aya_ebpf::bindings::{BPF_F_MARK_MANGLED_0, BPF_F_PSEUDO_HDR, BPF_F_RECOMPUTE_CSUM};
use aya_ebpf::programs::TcContext;
use netdp_common::addr::Family;
use netdp_common::checksum;
use netdp_common::packet::{self, Bytes, Packet, Parsed};
use netdp_common::tuple::proto;
use netdp_common::verdict::DropReason;

/// `BPF_F_IPV6` (include/uapi/linux/bpf.h, Linux 6.16): the pseudo-header that
/// changes is IPv6's. There the address and the checksum cancel out in
/// `skb->csum`, which the helper must then leave alone.
const BPF_F_IPV6: u64 = 1 << 7;

/// No header that the datapath reads lies beyond this offset. Also tells the
/// verifier a bound.
const MAX_OFFSET: usize = 0x1ff;

/// Bytes that are made linear before parsing is tried again: Ethernet, two
/// VLAN tags, the longest IPv4 header and TCP.
const PULL: u32 = 22 + 60 + 20;

struct Linear<'a>(&'a TcContext);

impl Bytes for Linear<'_> {
    #[inline(always)]
    fn words<const N: usize>(&self, offset: usize) -> Option<[u32; N]> {
        let start = self.0.data() + (offset & MAX_OFFSET);
        if start + N * 4 > self.0.data_end() {
            return None;
        }
        // SAFETY: the verifier proves that the words lie between data and
        // data_end. They may be unaligned: architectures whose JIT can't load
        // them so have the verifier refuse the program (strict alignment).
        Some(unsafe { (start as *const [u32; N]).read() })
    }
}

/// Parses the packet into `pkt`. Headers outside the linear area are pulled in
/// first.
#[inline(always)]
pub fn parse(ctx: &TcContext, l3_offset: u32, pkt: &mut Packet) -> Parsed {
    // SAFETY: a TC program's context is readable for the program's run.
    let ethertype = u16::from_be(unsafe { (*ctx.skb.skb).protocol } as u16);
    let linear = (ctx.data_end() - ctx.data()) as u32;
    if linear < PULL && linear < ctx.len() {
        let want = if ctx.len() < PULL { ctx.len() } else { PULL };
        // What can't be pulled is found missing by the parser.
        let _ = ctx.pull_data(want);
    }
    packet::parse(&Linear(ctx), ethertype, l3_offset, pkt)
}

/// Puts `pkt.new` in place of the source (`leaving`) or the destination and
/// updates every checksum over it.
#[inline(always)]
pub fn rewrite(ctx: &TcContext, pkt: &Packet, leaving: bool) -> Result<(), DropReason> {
    try_rewrite(ctx, pkt, leaving).map_err(|_| DropReason::RewriteFailed)
}

#[inline(always)]
fn try_rewrite(ctx: &TcContext, pkt: &Packet, leaving: bool) -> Result<(), i64> {
    let (l3, l4) = (pkt.l3_offset as usize, pkt.l4_offset as usize);
    let (old_addr, old_id) = if leaving {
        (&pkt.tuple.src, pkt.tuple.src_id)
    } else {
        (&pkt.tuple.dst, pkt.tuple.dst_id)
    };
    let new_id = pkt.new.id as u16;
    let delta = checksum::addr_diff(old_addr, &pkt.new.addr, pkt.family);
    // Offsets of the checksum and of the id in the L4 header; whether the
    // checksum covers a pseudo-header.
    let port_at = if leaving { 0 } else { 2 };
    let (csum_at, id_at, pseudo) = match pkt.tuple.proto {
        proto::TCP => (16, port_at, true),
        proto::UDP => (6, port_at, true),
        proto::ICMPV6 => (2, 4, true),
        _ => (2, 4, false),
    };
    // RFC 768: an IPv4 UDP checksum of 0 means none, and stays so.
    let mangled_0 = if pkt.tuple.proto == proto::UDP {
        u64::from(BPF_F_MARK_MANGLED_0)
    } else {
        0
    };
    if pseudo && delta != 0 && delta != u32::MAX {
        let flags = u64::from(BPF_F_PSEUDO_HDR) | mangled_0;
        let ipv6 = if pkt.family == Family::V6 {
            BPF_F_IPV6
        } else {
            0
        };
        let done = ctx.l4_csum_replace(l4 + csum_at, 0, delta.into(), flags | ipv6);
        if done.is_err() {
            // Kernels that do not know BPF_F_IPV6 refuse it; there the complete
            // checksum of a received packet is lost either way.
            ctx.l4_csum_replace(l4 + csum_at, 0, delta.into(), flags)?;
        }
    }
    if new_id != old_id {
        let (old, new) = (old_id.to_be(), new_id.to_be());
        ctx.l4_csum_replace(l4 + csum_at, old.into(), new.into(), 2 | mangled_0)?;
        // Where there is no checksum that cancels the change out, skb->csum has
        // to follow it.
        let unsummed = mangled_0 != 0 && ctx.load::<u16>(l4 + csum_at)? == 0;
        let follow = if unsummed {
            u64::from(BPF_F_RECOMPUTE_CSUM)
        } else {
            0
        };
        ctx.store(l4 + id_at, &new, follow)?;
    }
    let side = usize::from(!leaving);
    match pkt.family {
        Family::V4 => {
            // The IP header's checksum and the address cancel out in skb->csum.
            ctx.l3_csum_replace(l3 + 10, 0, delta.into(), 0)?;
            ctx.store(l3 + 12 + side * 4, &pkt.new.addr.v4_octets(), 0)
        }
        Family::V6 => ctx.store(l3 + 8 + side * 16, pkt.new.addr.octets(), 0),
    }
}
