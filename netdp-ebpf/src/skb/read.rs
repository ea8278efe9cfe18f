//! Packet bytes, read in place, and the packet's metadata.

use super::Skb;
use aya_ebpf::EbpfContext as _;
use aya_ebpf::btf_maps::PerCpuArray;
use aya_ebpf::helpers::{bpf_csum_diff, bpf_set_hash, bpf_skb_load_bytes};
use aya_ebpf::macros::btf_map;
use aya_ebpf::programs::TcContext;
use netdp_common::packet::{Bytes, MAX_OFFSET, SUMMED};
use netdp_common::skb::Linear;

impl Bytes for Skb {
    #[inline(always)]
    fn words<const N: usize>(&self, offset: usize) -> Option<[u32; N]> {
        words(self, offset)
    }

    #[inline(always)]
    fn sum(&self, offset: usize, len: u32) -> Option<u32> {
        sum(self, offset as u32, len)
    }
}

impl Linear for Skb {
    #[inline(always)]
    fn packet_len(&self) -> u32 {
        self.len()
    }

    #[inline(always)]
    fn linear_len(&self) -> u32 {
        (self.data_end() - self.data()) as u32
    }

    #[inline(always)]
    fn pull(&self, len: u32) {
        let _ = self.pull_data(len);
    }

    #[inline(always)]
    fn ethertype(&self) -> u16 {
        // SAFETY: a TC program's context is readable for the program's run.
        u16::from_be(unsafe { (*self.skb.skb).protocol } as u16)
    }

    #[inline(always)]
    fn has_offloaded_tag(&self) -> bool {
        // SAFETY: a TC program's context is readable for the program's run.
        unsafe { (*self.skb.skb).vlan_present != 0 }
    }

    #[inline(always)]
    fn has_hash(&self) -> bool {
        // SAFETY: a TC program's context is readable for the program's run.
        unsafe { (*self.skb.skb).hash != 0 }
    }

    #[inline(always)]
    fn set_hash(&self, hash: u32) {
        // SAFETY: the helper takes the context and a number.
        unsafe {
            bpf_set_hash(self.skb.skb, hash);
        }
    }
}

/// Returns `N` words of the packet, if they are in its linear part.
#[inline(always)]
pub fn words<const N: usize>(ctx: &TcContext, offset: usize) -> Option<[u32; N]> {
    if offset > MAX_OFFSET {
        return None;
    }
    let start = ctx.data() + offset;
    if start + N * 4 > ctx.data_end() {
        return None;
    }
    // SAFETY: the verifier proves that the words lie between data and data_end. They may be
    // unaligned: on architectures whose JIT cannot load unaligned words, the verifier rejects the
    // program (strict alignment).
    Some(unsafe { (start as *const [u32; N]).read() })
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
    // No segment is empty, see `fragment_queue::bounded`.
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
