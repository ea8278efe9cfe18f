//! Events for those who listen: begins of mappings, and dropped packets. Called on slow paths only,
//! while [`Settings::events`](netdp_common::layout::Settings::events) is not 0.

use crate::skb::Skb;
use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::btf_maps::{PerCpuArray, RingBuf};
use aya_ebpf::helpers::{bpf_ktime_get_ns, bpf_skb_load_bytes};
use aya_ebpf::macros::btf_map;
use netdp_common::direction::Direction;
use netdp_common::env::Env;
use netdp_common::layout::{
    BeginEvent, CAPTURED, DropEvent, DropReason, EVENT_BEGIN, EVENT_DROP, EVENT_IN, EVENT_KINDS,
    EVENT_OUT, EVENT_REFUSED, EVENTS_BEGIN, EventCount, Tuple, event_rate,
};

/// Bytes of the ring buffer, a power of two: some 5,900 dropped packets.
const SIZE: usize = 1 << 20;

#[btf_map]
static EVENTS: RingBuf<DropEvent, SIZE> = RingBuf::new();
#[btf_map]
static EVENT_COUNTS: PerCpuArray<EventCount, { EVENT_KINDS as usize }> = PerCpuArray::new();

/// Returns this CPU's count of a kind, if somebody listens to it and another event may be reported.
#[inline(always)]
fn admitted<E: Env>(env: &E, kind: u32) -> Option<*mut EventCount> {
    let setting = env.settings().events;
    if setting & EVENTS_BEGIN << kind == 0 {
        return None;
    }
    let count = EVENT_COUNTS.get_ptr_mut(kind)?;
    // SAFETY: this CPU's own entry; a TC program is not preempted by another on the same CPU.
    let admitted = unsafe { (*count).admit(env.now(), event_rate(setting)) };
    admitted.then_some(count)
}

/// Reports a mapping that has begun. Returns `false` if it was left out.
#[inline(never)]
pub fn begin<E: Env>(env: &E, tuple: &Tuple, wire: &Tuple, rule: u32) -> bool {
    let Some(count) = admitted(env, EVENT_BEGIN) else {
        return false;
    };
    let Some(mut entry) = EVENTS.reserve_untyped::<BeginEvent>(0) else {
        // SAFETY: as above.
        unsafe { (*count).full += 1 };
        return false;
    };
    let event = entry.as_mut_ptr();
    // SAFETY: memory of this size that is reserved for this run alone; all fields are written.
    unsafe {
        (*event).kind = EVENT_BEGIN;
        (*event).ifindex = env.ifindex();
        (*event).at = bpf_ktime_get_ns();
        (*event).tuple = *tuple;
        (*event).addr = wire.dst;
        (*event).id = wire.dst_id.into();
        (*event).rule = rule;
    }
    entry.submit(0);
    true
}

/// Reports a dropped packet, with its first bytes. Returns `false` if it was left out.
#[inline(never)]
pub fn dropped<E: Env>(skb: &Skb, env: &E, reason: DropReason, direction: Direction) -> bool {
    let kind = if direction == Direction::Egress && reason.is_refusal() {
        EVENT_REFUSED
    } else {
        EVENT_DROP
    };
    let Some(count) = admitted(env, kind) else {
        return false;
    };
    let Some(mut entry) = EVENTS.reserve_untyped::<DropEvent>(0) else {
        // SAFETY: as above.
        unsafe { (*count).full += 1 };
        return false;
    };
    let event = entry.as_mut_ptr();
    let ctx = skb.skb.skb;
    // SAFETY: memory of this size that is reserved for this run alone; the program's own context.
    unsafe {
        (*event).kind = kind;
        (*event).ifindex = env.ifindex();
        (*event).at = bpf_ktime_get_ns();
        (*event).reason = reason as u32;
        (*event).direction = match direction {
            Direction::Egress => EVENT_OUT,
            Direction::Ingress => EVENT_IN,
        };
        (*event).length = (*ctx).len;
        (*event).l2_len = (*ctx).len.wrapping_sub(env.l3_len());
        (*event).pad = 0;
        (*event).captured = capture(ctx, (&raw mut (*event).packet).cast());
    }
    entry.submit(0);
    true
}

/// Copies the first bytes of the packet; returns their number.
///
/// # Safety
/// `ctx` is the program's context, and `packet` has room for [`CAPTURED`] bytes.
#[inline(always)]
unsafe fn capture(ctx: *mut __sk_buff, packet: *mut u8) -> u32 {
    // SAFETY: by the contract.
    unsafe {
        let mut len = (*ctx).len;
        if len > CAPTURED as u32 {
            len = CAPTURED as u32;
        }
        // No packet is empty, see `fragment_queue::bounded`.
        let len = if len > 1 { len } else { 1 };
        if bpf_skb_load_bytes(ctx.cast(), 0, packet.cast(), len) != 0 {
            return 0;
        }
        len
    }
}
