//! The tables that decisions read and write, by the fake's maps.

use super::state::{Fake, RECENT};
use netdp_common::direction::Direction;
use netdp_common::env::{
    Accounting, Fragments, InboundFlows, InsertError, Mappings, Ports, Reaching,
};
use netdp_common::layout::{
    Addr, Endpoint, Fragment, Inbound, Live, Mapping, PORT_MAP_WORDS, PortMapBits, PortMapOwner,
    Reach, Traffic, Tuple,
};
use netdp_common::packet::Packet;
use netdp_common::slot::{AskedSlot, LiveSlot, PortMapSlot, ReachSlot, ShareSlot, Slot};
use std::cell::UnsafeCell;

impl Mappings for Fake {
    fn lookup_snat(&self, tuple: &Tuple) -> Option<Slot> {
        self.snat.slot(tuple)
    }

    fn lookup_rev_snat(&self, tuple: &Tuple) -> Option<Slot> {
        self.rev_snat.slot(tuple)
    }

    fn insert_snat(&self, tuple: &Tuple, mapping: &Mapping) -> Result<(), InsertError> {
        let hook = self.before_original.take();
        if let Some(hook) = hook {
            hook(self);
        }
        self.snat.insert(tuple, mapping)
    }

    fn insert_rev_snat(&self, tuple: &Tuple, mapping: &Mapping) -> Result<(), InsertError> {
        let hook = self.before_claim.take();
        if let Some(hook) = hook {
            hook(self);
        }
        self.rev_snat.insert(tuple, mapping)
    }

    fn report_end(&self, tuple: &Tuple, wire: &Tuple, why: u32) -> bool {
        self.reported_ends.borrow_mut().push((*tuple, *wire, why));
        true
    }

    fn remove_snat(&self, tuple: &Tuple) -> bool {
        let hook = self.before_end.take();
        if let Some(hook) = hook {
            hook(self);
        }
        self.snat.remove(tuple)
    }

    fn remove_rev_snat(&self, tuple: &Tuple) {
        self.rev_snat.remove(tuple);
    }

    fn push_recent(&self, tuple: &Tuple) {
        let mut recent = self.recent.borrow_mut();
        if recent.len() == RECENT {
            recent.pop_front();
        }
        recent.push_back(*tuple);
    }

    fn pop_recent(&self, tuple: &mut Tuple) -> bool {
        let popped = self.recent.borrow_mut().pop_front();
        popped.is_some_and(|popped| {
            *tuple = popped;
            true
        })
    }

    fn lookup_share(&self, bucket: u32) -> Option<ShareSlot> {
        let mut shares = self.shares.borrow_mut();
        let cell = shares.entry(bucket).or_default().get();
        // SAFETY: the value is never removed and lives as long as the fake.
        Some(unsafe { ShareSlot::new(&raw mut (*cell).0, &raw const (*cell).1) })
    }
}

impl Accounting for Fake {
    fn add_traffic(&self, key: &Tuple, traffic: &Traffic) -> bool {
        let mut entries = self.traffic.borrow_mut();
        let entry = entries.get_mut(key);
        entry.is_some_and(|sum| {
            sum.add(traffic);
            true
        })
    }

    fn insert_traffic(&self, key: &Tuple, traffic: &Traffic) -> bool {
        let mut entries = self.traffic.borrow_mut();
        let fits = entries.len() < self.traffic_capacity || entries.contains_key(key);
        if fits {
            entries.insert(*key, *traffic);
        }
        fits
    }

    fn remove_traffic(&self, key: &Tuple) {
        self.traffic.borrow_mut().remove(key);
    }

    fn add_rule_hits(&self, index: u32, bypassed: &Traffic, flows: u64) {
        let mut hits = self.rule_hits.borrow_mut();
        let hits = hits.entry(index).or_default();
        hits.bypassed.add(bypassed);
        hits.flows += flows;
        hits.last = self.clock.get();
    }
}

impl InboundFlows for Fake {
    fn lookup_live(&self, tuple: &Tuple) -> Option<LiveSlot> {
        let live = self.live.borrow();
        // SAFETY: one thread; nothing removes the value while a slot is used.
        live.get(tuple)
            .map(|cell| unsafe { LiveSlot::new(cell.get()) })
    }

    fn insert_live(&self, tuple: &Tuple, value: &Live) -> bool {
        let mut live = self.live.borrow_mut();
        let room = live.len() < self.limits.inbound_capacity as usize;
        if !room || live.contains_key(tuple) {
            return false;
        }
        live.insert(*tuple, Box::new(UnsafeCell::new(*value)));
        true
    }

    fn remove_live(&self, tuple: &Tuple) -> bool {
        self.live.borrow_mut().remove(tuple).is_some()
    }

    fn lookup_asked(&self, tuple: &Tuple) -> Option<AskedSlot> {
        let asked = self.asked.borrow();
        let cell = asked.get(tuple)?;
        let mut order = self.asked_order.borrow_mut();
        order.retain(|other| other != tuple);
        order.push(*tuple);
        // SAFETY: as for the live mappings.
        Some(unsafe { AskedSlot::new(cell.get()) })
    }

    fn insert_asked(&self, tuple: &Tuple, inbound: &Inbound) {
        self.remove_asked(tuple);
        let (mut asked, mut order) = (self.asked.borrow_mut(), self.asked_order.borrow_mut());
        if asked.len() == self.asked_capacity {
            asked.remove(&order.remove(0));
        }
        asked.insert(*tuple, Box::new(UnsafeCell::new(*inbound)));
        order.push(*tuple);
    }

    fn remove_asked(&self, tuple: &Tuple) {
        self.asked.borrow_mut().remove(tuple);
        self.asked_order.borrow_mut().retain(|other| other != tuple);
    }
}

impl Ports for Fake {
    fn lookup_port_map(&self, index: u32) -> Option<PortMapSlot> {
        let mut maps = self.port_maps.borrow_mut();
        let cell = maps.entry(index).or_insert_with(|| {
            let owner = PortMapOwner {
                wire: Packet::EMPTY.tuple,
                used_at: 0,
                cleared_at: 0,
                refused: 0,
                refused_at: 0,
                refused_class: 0,
                pad: 0,
            };
            Box::new(UnsafeCell::new((
                owner,
                PortMapBits([0; PORT_MAP_WORDS as usize]),
            )))
        });
        let cell = cell.get();
        // SAFETY: as for shares.
        Some(unsafe { PortMapSlot::new(&raw mut (*cell).0, &raw mut (*cell).1) })
    }

    fn is_port_reserved(&self, port: u16) -> bool {
        self.candidates.borrow_mut().push(port);
        self.reserved.contains(&port)
    }

    fn reserved_ports(&self, word: u32) -> u64 {
        let reserved = self.reserved.iter().map(|port| u32::from(*port));
        let here = reserved.filter(|port| port / 64 == word);
        here.fold(0, |bits, port| bits | 1 << (port % 64))
    }

    fn lookup_exhausted(&self, wire: &Tuple) -> Option<u32> {
        self.exhausted.borrow().get(wire).copied()
    }

    fn insert_exhausted(&self, wire: &Tuple, now: u32) {
        self.exhausted.borrow_mut().insert(*wire, now);
    }

    fn lookup_endpoint_port(&self, endpoint: &Tuple) -> Option<u16> {
        self.endpoints.borrow().get(endpoint).copied()
    }

    fn insert_endpoint_port(&self, endpoint: &Tuple, port: u16) {
        self.endpoints.borrow_mut().insert(*endpoint, port);
    }

    fn lookup_wire_endpoint(&self, endpoint: &Tuple) -> Option<Endpoint> {
        self.wire_endpoints.borrow().get(endpoint).copied()
    }

    fn insert_wire_endpoint(&self, endpoint: &Tuple, far: &Endpoint) {
        self.wire_endpoints.borrow_mut().insert(*endpoint, *far);
    }
}

impl Fragments for Fake {
    fn lookup_fragment(&self, key: &Tuple, direction: Direction) -> Option<Fragment> {
        let fragments = self.fragments[direction as usize].borrow();
        let mut all = fragments.iter();
        all.find(|(known, _)| known == key)
            .map(|(_, fragment)| *fragment)
    }

    fn insert_fragment(&self, key: &Tuple, fragment: &Fragment, direction: Direction) {
        let mut fragments = self.fragments[direction as usize].borrow_mut();
        fragments.retain(|(known, _)| known != key);
        if fragments.len() == self.fragments_capacity {
            fragments.remove(0);
        }
        fragments.push((*key, *fragment));
    }

    fn next_ip_id(&self, sequence: u32) -> u32 {
        let mut ip_ids = self.ip_ids.borrow_mut();
        let id = ip_ids.entry(sequence).or_insert(0xfffd);
        *id = (*id + 1) & 0xffff;
        *id
    }
}

impl Reaching for Fake {
    fn lookup_reach(&self, network: &Addr) -> Option<ReachSlot> {
        let counted = self.reach.borrow();
        let cell = counted.get(network)?;
        // SAFETY: the value is never removed and lives as long as the fake.
        Some(unsafe { ReachSlot::new(cell.get()) })
    }

    fn insert_reach(&self, network: &Addr, reach: &Reach) {
        let cell = Box::new(UnsafeCell::new(*reach));
        self.reach.borrow_mut().insert(*network, cell);
    }
}
