//! The traffic of mappings: in each half, and carried over into the `traffic` map before the half's
//! word overflows.
//!
//! Counts are not atomic: of two CPUs that count the same half at the same time, one may be lost,
//! and if one of them carries over at that moment, up to 2 MiB may count twice or not at all. The
//! counters of outcomes, one for each CPU, are exact.

use crate::env::Env;
use crate::layout::{Half, TRAFFIC_FULL, TRAFFIC_PLAIN, Traffic, Tuple, packed, unpacked};
use crate::packet::L4;
use crate::slot::Slot;

/// Records a packet in its half, which counts bytes: traffic, time and TCP state. `tuple`: the key
/// of the half.
#[inline(always)]
pub(super) fn record<E: Env>(env: &E, tuple: &Tuple, half: Half, slot: Slot, l4: &L4, now: u32) {
    count(env, tuple, half, slot);
    slot.record(l4, now);
}

/// Counts a packet in its half, which counts bytes.
#[inline(always)]
pub(super) fn count<E: Env>(env: &E, tuple: &Tuple, half: Half, slot: Slot) {
    if !slot.add_traffic(packed(env.l3_len())) {
        carry_over(env, tuple, half, slot);
    }
}

/// Counts a packet in a half whose word is nearly full, and moves what was there into the map.
#[inline(never)]
fn carry_over<E: Env>(env: &E, tuple: &Tuple, half: Half, slot: Slot) -> bool {
    let before = slot.traffic();
    let one = packed(env.l3_len());
    if before & TRAFFIC_FULL == 0 {
        // Another CPU has carried it over.
        slot.set_traffic(before.wrapping_add(one));
        return false;
    }
    slot.set_traffic(one);
    keep(env, tuple, half, slot, &unpacked(before));
    true
}

/// Lets a half count bytes that layout 1 began; a half that does so already stays as it is. Packets
/// that layout 1 counted stay in the word if they fit there.
#[inline(never)]
pub(super) fn begin_counting<E: Env>(env: &E, tuple: &Tuple, half: Half, slot: Slot) -> bool {
    let counted = half.counted();
    // Before the mark is read: if another CPU converts the half in between, this is still the plain
    // count.
    let packets = slot.traffic();
    if slot.flags() & counted != 0 {
        return false;
    }
    if packets > TRAFFIC_PLAIN {
        slot.set_traffic(0);
        let before = Traffic {
            packets: packets.into(),
            bytes: 0,
        };
        keep(env, tuple, half, slot, &before);
    }
    slot.set_counted(counted);
    true
}

/// Adds traffic to the entry of a half. An entry of a half that is not marked is the remains of an
/// earlier mapping with that tuple.
#[inline(always)]
fn keep<E: Env>(env: &E, tuple: &Tuple, half: Half, slot: Slot, traffic: &Traffic) {
    let key = half.traffic_key(tuple);
    let may_have_entry = slot.is_carried_over();
    // Before the entry exists: the sweep removes those of halves without the mark.
    slot.set_carried_over();
    let kept = may_have_entry && env.add_traffic(&key, traffic);
    if !kept && !env.insert_traffic(&key, traffic) {
        env.count_traffic(|c| &mut c.traffic_unattributed, traffic);
    }
}

/// Removes the entry of a half that ends.
#[inline(never)]
pub(super) fn forget<E: Env>(env: &E, tuple: &Tuple, half: Half) -> bool {
    env.remove_traffic(&half.traffic_key(tuple));
    true
}

/// Removes a reply half with its entry.
#[inline(always)]
pub(super) fn remove_reply<E: Env>(env: &E, wire: &Tuple) {
    let carried = env.lookup_rev_snat(wire).is_some_and(Slot::is_carried_over);
    env.remove_rev_snat(wire);
    if carried {
        forget(env, wire, Half::Reply);
    }
}
