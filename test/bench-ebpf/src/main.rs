//! The generator, the sink and the empty program of `cargo xtask bench`; not part of netdp.

#![no_std]
#![no_main]
#![expect(
    missing_docs,
    reason = "aya's macros wrap the programs in functions without their comments"
)]
#![expect(
    clippy::cast_possible_truncation,
    reason = "fields of headers and counters are narrower than what is computed"
)]

use aya_ebpf::bindings::TC_ACT_UNSPEC;
use aya_ebpf::bindings::xdp_action::{XDP_ABORTED, XDP_DROP, XDP_PASS, XDP_TX};
use aya_ebpf::btf_maps::{Array, PerCpuArray};
use aya_ebpf::helpers::{bpf_get_smp_processor_id, bpf_ktime_get_ns};
use aya_ebpf::macros::{btf_map, classifier, xdp};
use aya_ebpf::programs::{TcContext, XdpContext};
use bench_ebpf::{FIRST_PORT, FRAME, LOOK, PORT, PORT_BITS, Seen, Stream};
use netdp_common::packet::checksum::{add, fold};

#[btf_map]
static STREAM: Array<Stream, 1> = Array::new();
/// Number of the next flow.
#[btf_map]
static CURSOR: PerCpuArray<u64, 1> = PerCpuArray::new();
#[btf_map]
static SEEN: PerCpuArray<Seen, 1> = PerCpuArray::new();

/// EtherType of IPv4, and the IP protocol number of UDP.
const ETH_P_IP: u16 = 0x0800;
const UDP: u8 = 17;

/// Generator, run by `BPF_PROG_TEST_RUN`: rewrites the whole frame, because the stack has modified
/// the recycled page, and sends it.
#[xdp]
pub fn bench_generate(ctx: XdpContext) -> u32 {
    generate(&ctx).unwrap_or(XDP_ABORTED)
}

#[inline(always)]
fn generate(ctx: &XdpContext) -> Option<u32> {
    let stream = STREAM.get(0)?;
    let cursor = CURSOR.get_ptr_mut(0)?;
    // SAFETY: this CPU's own entry.
    let number = unsafe {
        let number = *cursor;
        *cursor = number.wrapping_add(1);
        number as u32
    };
    let seen = SEEN.get_ptr_mut(0)?;
    // SAFETY: this CPU's own entry; a helper without arguments.
    unsafe {
        if (*seen).first == 0 {
            (*seen).first = bpf_ktime_get_ns();
        }
    }
    let data = ctx.data();
    if data + FRAME > ctx.data_end() {
        return None;
    }
    // SAFETY: a helper without arguments.
    let cpu = unsafe { bpf_get_smp_processor_id() };
    let flow = number & stream.mask;
    let port_bits = stream.port_bits & 31;
    let low = flow & ((1 << port_bits) - 1);
    let client = (u32::from(FIRST_PORT) + ((cpu & 1) << PORT_BITS) + low) as u16;
    let server = stream.server + (flow >> port_bits);
    let sum = server.to_be();
    let (addr_at, port_at) = if stream.reply == 0 {
        (30, 34)
    } else {
        (26, 36)
    };
    let ip = !fold(add(stream.ip_sum, sum).into());
    let udp = !fold(add(add(stream.udp_sum, sum), u32::from(client.to_be())).into());
    // SAFETY: the frame has FRAME bytes from `data` on, checked above.
    unsafe {
        (data as *mut [u32; FRAME / 4]).write(stream.frame);
        let store = |at: usize, value: u16| ((data + at) as *mut u16).write(value);
        store(24, ip);
        store(40, udp);
        store(port_at, client.to_be());
        store(addr_at, ((server >> 16) as u16).to_be());
        store(addr_at + 2, (server as u16).to_be());
    }
    Some(XDP_TX)
}

/// Counts and drops the generator's packets.
#[xdp]
pub fn bench_sink(ctx: XdpContext) -> u32 {
    let data = ctx.data();
    if data + FRAME > ctx.data_end() {
        return XDP_PASS;
    }
    // SAFETY: the packet has FRAME bytes, checked above.
    let load = |at: usize| unsafe { ((data + at) as *const u16).read() };
    // SAFETY: as before.
    let protocol = unsafe { ((data + 23) as *const u8).read() };
    if u16::from_be(load(12)) != ETH_P_IP || protocol != UDP {
        return XDP_PASS;
    }
    if u16::from_be(load(34)) != PORT && u16::from_be(load(36)) != PORT {
        return XDP_PASS;
    }
    if let Some(seen) = SEEN.get_ptr_mut(0) {
        let word = |at| u32::from(load(at)) | u32::from(load(at + 2)) << 16;
        // SAFETY: this CPU's own entry; a helper without arguments.
        unsafe {
            (*seen).packets += 1;
            if (*seen).packets % LOOK == 0 {
                (*seen).last = bpf_ktime_get_ns();
            }
            (*seen).source = word(26);
            (*seen).destination = word(30);
        }
    }
    XDP_DROP
}

/// Does nothing: measures the cost of a hook and of the kernel's program statistics.
#[classifier]
pub fn bench_empty(_: TcContext) -> i32 {
    TC_ACT_UNSPEC
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
pub static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
