//! Reports of the mappings that programs end, for the NAT log and for those who listen to events.

use crate::maps::{REV_SNAT, SNAT, TRAFFIC};
use aya_ebpf::btf_maps::{PerCpuArray, RingBuf};
use aya_ebpf::macros::btf_map;
use netdp_common::env::Env;
use netdp_common::layout::{
    ENDED_BYTES, EVENTS_END, Ended, Half, Mapping, SETTING_LOG_ENDS, Traffic, Tuple,
};

#[btf_map]
static ENDED: RingBuf<Ended, ENDED_BYTES> = RingBuf::new();
#[btf_map]
static ENDED_LOST: PerCpuArray<u64, 1> = PerCpuArray::new();

/// Reports a mapping if a log or a listener wants that. Returns `false` if there is no such mapping, or no room,
/// which is counted.
#[inline(never)]
pub fn report<E: Env>(env: &E, tuple: &Tuple, wire: &Tuple, why: u32) -> bool {
    let settings = env.settings();
    if settings.flags & SETTING_LOG_ENDS == 0 && settings.events & EVENTS_END == 0 {
        return false;
    }
    let Some(original) = SNAT.get_ptr(tuple) else {
        return false;
    };
    // SAFETY: a map value; its address and port never change.
    let is_its = unsafe { (*original).id == wire.dst_id && (*original).addr.is_same(&wire.dst) };
    if !is_its {
        return false;
    }
    let Some(mut entry) = ENDED.reserve_untyped::<Ended>(0) else {
        if let Some(lost) = ENDED_LOST.get_ptr_mut(0) {
            // SAFETY: this CPU's own entry; a TC program is not preempted by another on the same CPU.
            unsafe { *lost += 1 };
        }
        return false;
    };
    let ended = entry.as_mut_ptr();
    // SAFETY: memory of this size that is reserved for this run alone, all of whose fields are written;
    // and map values, whose fields may change meanwhile: any mixture is a state that they had.
    unsafe {
        (*ended).tuple = *tuple;
        (*ended).original = *original;
        (*ended).at = env.now();
        (*ended).why = why;
        if let Some(reply) = REV_SNAT.get_ptr(wire) {
            (*ended).reply = *reply;
        } else {
            (*ended).reply = *original;
            (*ended).reply.flags = 0;
            (*ended).reply.tcp_seen = 0;
            (*ended).reply.traffic = 0;
        }
        let [out, back] = &mut (*ended).carried;
        copy_carried(out, tuple, &(*ended).original, Half::Original);
        copy_carried(back, wire, &(*ended).reply, Half::Reply);
    }
    entry.submit(0);
    true
}

/// Copies what was carried over from a half.
#[inline(always)]
fn copy_carried(to: &mut Traffic, tuple: &Tuple, mapping: &Mapping, half: Half) {
    to.packets = 0;
    to.bytes = 0;
    if !mapping.is_carried_over() {
        return;
    }
    let key = half.traffic_key(tuple);
    if let Some(carried) = TRAFFIC.get_ptr(key) {
        // SAFETY: a map value; an addition by another CPU at the same time may be missed.
        unsafe {
            to.packets = (*carried).packets;
            to.bytes = (*carried).bytes;
        }
    }
}
