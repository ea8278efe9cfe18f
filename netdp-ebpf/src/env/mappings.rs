//! The mapping tables, and the flows that keep the pod's address.

use super::TcEnv;
use crate::ended;
use crate::maps::{
    INBOUND, INBOUND_LIVE, INBOUND_USED, RECENT, RECENT_AT, REV_SNAT, RULE_HITS, SHARES,
    SHARES_ENDED, SNAT, TRAFFIC,
};
use aya_ebpf::bindings::BPF_NOEXIST;
use aya_ebpf::btf_maps::HashMap;
use netdp_common::env::{Accounting, Clock as _, InboundFlows, InsertError, Mappings};
use netdp_common::layout::{Inbound, Live, Mapping, RECENT as RECENT_LEN, Traffic, Tuple};
use netdp_common::slot::{AskedSlot, LiveSlot, ShareSlot, Slot};

impl Mappings for TcEnv<'_> {
    #[inline(always)]
    fn lookup_snat(&self, tuple: &Tuple) -> Option<Slot> {
        slot(&SNAT, tuple)
    }

    #[inline(always)]
    fn lookup_rev_snat(&self, tuple: &Tuple) -> Option<Slot> {
        slot(&REV_SNAT, tuple)
    }

    #[inline(always)]
    fn insert_snat(&self, tuple: &Tuple, mapping: &Mapping) -> Result<(), InsertError> {
        insert(&SNAT, tuple, mapping)
    }

    #[inline(always)]
    fn insert_rev_snat(&self, tuple: &Tuple, mapping: &Mapping) -> Result<(), InsertError> {
        insert(&REV_SNAT, tuple, mapping)
    }

    #[inline(always)]
    fn remove_snat(&self, tuple: &Tuple) -> bool {
        SNAT.remove(tuple).is_ok()
    }

    #[inline(always)]
    fn report_end(&self, tuple: &Tuple, wire: &Tuple, why: u32) -> bool {
        ended::report(self, tuple, wire, why)
    }

    #[inline(always)]
    fn remove_rev_snat(&self, tuple: &Tuple) {
        // If it is already removed, the result is the same.
        let _ = REV_SNAT.remove(tuple);
    }

    #[inline(always)]
    fn push_recent(&self, tuple: &Tuple) {
        let Some(at) = RECENT_AT.get_ptr_mut(0) else {
            return;
        };
        // SAFETY: map values. Two CPUs may write to one slot at the same time: one mapping is lost,
        // or if their words mix, none is found by them.
        unsafe {
            let put = (*at).put;
            if let Some(place) = RECENT.get_ptr_mut(put & (RECENT_LEN - 1)) {
                place.write(*tuple);
            }
            (*at).put = put.wrapping_add(1);
            if put.wrapping_sub((*at).taken) >= RECENT_LEN {
                (*at).taken = put.wrapping_sub(RECENT_LEN - 1);
            }
        }
    }

    #[inline(always)]
    fn pop_recent(&self, tuple: &mut Tuple) -> bool {
        let Some(at) = RECENT_AT.get_ptr_mut(0) else {
            return false;
        };
        // SAFETY: as above.
        unsafe {
            let taken = (*at).taken;
            if taken == (*at).put {
                return false;
            }
            (*at).taken = taken.wrapping_add(1);
            match RECENT.get(taken & (RECENT_LEN - 1)) {
                Some(oldest) => *tuple = *oldest,
                None => return false,
            }
        }
        true
    }

    #[inline(always)]
    fn lookup_share(&self, bucket: u32) -> Option<ShareSlot> {
        let share = SHARES.get_ptr_mut(bucket)?;
        let ended = SHARES_ENDED.get_ptr(bucket)?;
        // SAFETY: map values, readable and writable for the program's run.
        Some(unsafe { ShareSlot::new(share, ended) })
    }
}

impl Accounting for TcEnv<'_> {
    #[inline(always)]
    fn add_traffic(&self, key: &Tuple, traffic: &Traffic) -> bool {
        match TRAFFIC.get_ptr_mut(key) {
            Some(sum) => {
                // SAFETY: a map value; an addition by another CPU at the same time may be lost.
                unsafe { (*sum).add(traffic) };
                true
            }
            None => false,
        }
    }

    #[inline(always)]
    fn insert_traffic(&self, key: &Tuple, traffic: &Traffic) -> bool {
        TRAFFIC.insert(key, traffic, 0).is_ok()
    }

    #[inline(always)]
    fn remove_traffic(&self, key: &Tuple) {
        // If it is already removed, the result is the same.
        let _ = TRAFFIC.remove(key);
    }

    #[inline(always)]
    fn add_rule_hits(&self, index: u32, bypassed: &Traffic, flows: u64) {
        if let Some(hits) = RULE_HITS.get_ptr_mut(index) {
            // SAFETY: a map value; an addition by another CPU at the same time may be lost.
            unsafe {
                (*hits).bypassed.add(bypassed);
                (*hits).flows += flows;
                (*hits).last = self.now();
            }
        }
    }
}

impl InboundFlows for TcEnv<'_> {
    #[inline(always)]
    fn lookup_live(&self, tuple: &Tuple) -> Option<LiveSlot> {
        if !inbound_is_used() {
            return None;
        }
        // SAFETY: a map value is readable and writable for the program's run.
        INBOUND_LIVE
            .get_ptr_mut(tuple)
            .map(|p| unsafe { LiveSlot::new(p) })
    }

    #[inline(always)]
    fn insert_live(&self, tuple: &Tuple, live: &Live) -> bool {
        use_inbound();
        INBOUND_LIVE.insert(tuple, live, BPF_NOEXIST.into()).is_ok()
    }

    #[inline(always)]
    fn remove_live(&self, tuple: &Tuple) -> bool {
        INBOUND_LIVE.remove(tuple).is_ok()
    }

    #[inline(always)]
    fn lookup_asked(&self, tuple: &Tuple) -> Option<AskedSlot> {
        if !inbound_is_used() {
            return None;
        }
        // SAFETY: as above; each field is one word, and any racing value is a recent time.
        INBOUND
            .get_ptr_mut(tuple)
            .map(|p| unsafe { AskedSlot::new(p) })
    }

    #[inline(always)]
    fn insert_asked(&self, tuple: &Tuple, inbound: &Inbound) {
        use_inbound();
        // The map evicts its least recently used entry; a failed insertion costs the flow its
        // direct replies, which are counted where they are dropped.
        let _ = INBOUND.insert(tuple, inbound, 0);
    }

    #[inline(always)]
    fn remove_asked(&self, tuple: &Tuple) {
        if inbound_is_used() {
            let _ = INBOUND.remove(tuple);
        }
    }
}

#[inline(always)]
fn insert(
    map: &HashMap<Tuple, Mapping, 262_144>,
    tuple: &Tuple,
    mapping: &Mapping,
) -> Result<(), InsertError> {
    const EEXIST: i32 = -17;
    match map.insert(tuple, mapping, BPF_NOEXIST.into()) {
        Ok(()) => Ok(()),
        Err(EEXIST) => Err(InsertError::Exists),
        Err(_) => Err(InsertError::Full),
    }
}

#[inline(always)]
fn slot(map: &HashMap<Tuple, Mapping, 262_144>, tuple: &Tuple) -> Option<Slot> {
    // SAFETY: a map value is readable and writable for the program's run.
    map.get_ptr_mut(tuple).map(|p| unsafe { Slot::new(p) })
}

/// Reports whether any flow that keeps the pod's address was ever recorded.
#[inline(always)]
fn inbound_is_used() -> bool {
    INBOUND_USED.get(0).is_some_and(|used| *used != 0)
}

/// Enables lookups of such flows. Must be called before the first one is recorded.
#[inline(always)]
fn use_inbound() {
    if !inbound_is_used()
        && let Some(used) = INBOUND_USED.get_ptr_mut(0)
    {
        // SAFETY: a map value, one word.
        unsafe { used.write(1) };
    }
}
