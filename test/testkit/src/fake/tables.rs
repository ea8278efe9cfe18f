//! [`Tables`] implemented with the fake's maps and helpers.

use super::{Fake, RECENT};
use crate::abi::{
    Action, Counters, Fragment, Inbound, Limits, Live, Mapping, NodeFlow, NodeProtocol,
    SETTING_NONE_STICKY, Settings, SourceKey, Uplink,
};
use crate::addr::{Addr, Family};
use crate::conntrack::age;
use crate::nat::Way;
use crate::packet::{Endpoint, Packet};
use crate::port_map::{Bits, Owner, PortMapSlot, WORDS};
use crate::share::ShareSlot;
use crate::slot::{AskedSlot, LiveSlot, Slot};
use crate::tables::{InsertError, Origin, Tables};
use crate::tuple::Tuple;
use std::cell::UnsafeCell;

/// Same value as in netdp-ebpf: half a second, in ticks.
const EXHAUSTED_TICKS: u32 = 8;

impl Tables for Fake {
    fn now(&self) -> u32 {
        self.clock.get()
    }

    /// Returns the next value of a linear congruential generator: the same sequence in every run.
    fn random(&self) -> u32 {
        let next = self.random.get().wrapping_mul(1_664_525);
        self.random.set(next.wrapping_add(1_013_904_223));
        self.random.get()
    }

    fn settings(&self) -> &Settings {
        &self.settings
    }

    fn uplink(&self) -> &Uplink {
        &self.uplink
    }

    fn ifindex(&self) -> u32 {
        self.ifindex
    }

    fn epoch(&self) -> u32 {
        self.settings.epoch
    }

    fn count(&self, counter: impl FnOnce(&mut Counters) -> &mut u64) {
        *counter(&mut self.counters.borrow_mut()) += 1;
    }

    fn is_local(&self, addr: &Addr) -> bool {
        self.local.contains(addr)
    }

    fn is_any_ip(&self, addr: &Addr) -> bool {
        self.any_ip.contains(addr)
    }

    fn action(&self, dst: &Addr) -> Action {
        let value = |addr: &Addr| u128::from_be_bytes(*addr.octets());
        let covers = |&&(net, len, _): &&(Addr, u32, Action)| {
            len == 0 || (value(&net) ^ value(dst)) >> (128 - len) == 0
        };
        let longest = self.policy.iter().filter(covers).max_by_key(|rule| rule.1);
        longest.map_or(Action::Masquerade, |rule| rule.2)
    }

    fn is_known_bypass(&self, pod: &Addr, peer: &Addr) -> bool {
        self.settings.flags & SETTING_NONE_STICKY != 0
            && (self.known_bypass.borrow()).contains(&(*pod, *peer, self.settings.epoch))
    }

    fn set_known_bypass(&self, pod: &Addr, peer: &Addr) {
        if self.settings.flags & SETTING_NONE_STICKY != 0 {
            let pair = (*pod, *peer, self.settings.epoch);
            self.known_bypass.borrow_mut().insert(pair);
        }
    }

    fn was_bypassed(&self, dst: &Addr) -> bool {
        self.bypassed_before.contains(dst)
    }

    fn snat(&self, tuple: &Tuple) -> Option<Slot> {
        self.snat.slot(tuple)
    }

    fn rev_snat(&self, tuple: &Tuple) -> Option<Slot> {
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

    fn remove_rev_snat(&self, tuple: &Tuple) {
        self.rev_snat.remove(tuple);
    }

    fn remove_snat(&self, tuple: &Tuple) -> bool {
        let hook = self.before_end.take();
        if let Some(hook) = hook {
            hook(self);
        }
        self.snat.remove(tuple)
    }

    fn limits(&self) -> &Limits {
        &self.limits
    }

    fn share(&self, bucket: u32) -> Option<ShareSlot> {
        let mut shares = self.shares.borrow_mut();
        let cell = shares.entry(bucket).or_default().get();
        // SAFETY: the value is never removed and lives as long as the fake.
        Some(unsafe { ShareSlot::new(&raw mut (*cell).0, &raw const (*cell).1) })
    }

    fn ingress_ifindex(&self) -> u32 {
        self.ingress_ifindex.get()
    }

    fn origin(&self, addr: &Addr, _: Family) -> Origin {
        let known = self.origins.borrow().get(addr).copied();
        known.unwrap_or(Origin::Link)
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

    fn port_map(&self, index: u32) -> Option<PortMapSlot> {
        let mut maps = self.port_maps.borrow_mut();
        let cell = maps.entry(index).or_insert_with(|| {
            let owner = Owner {
                wire: Packet::EMPTY.tuple,
                used_at: 0,
                cleared_at: 0,
                refused: 0,
                refused_at: 0,
                refused_class: 0,
                pad: 0,
            };
            Box::new(UnsafeCell::new((owner, Bits([0; WORDS as usize]))))
        });
        let cell = cell.get();
        // SAFETY: as for shares.
        Some(unsafe { PortMapSlot::new(&raw mut (*cell).0, &raw mut (*cell).1) })
    }

    fn node_flow(&self, wire: &Tuple) -> Option<NodeFlow> {
        self.node_flows.borrow().get(wire).copied()
    }

    fn set_node_flow(&self, wire: &Tuple, flow: &NodeFlow) {
        self.node_flows.borrow_mut().insert(*wire, *flow);
    }

    fn live(&self, tuple: &Tuple) -> Option<LiveSlot> {
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

    fn asked(&self, tuple: &Tuple) -> Option<AskedSlot> {
        let asked = self.asked.borrow();
        let cell = asked.get(tuple)?;
        let mut order = self.asked_order.borrow_mut();
        order.retain(|other| other != tuple);
        order.push(*tuple);
        // SAFETY: as for the live mappings.
        Some(unsafe { AskedSlot::new(cell.get()) })
    }

    fn insert_asked(&self, tuple: &Tuple, limit: u32) {
        self.remove_asked(tuple);
        let (mut asked, mut order) = (self.asked.borrow_mut(), self.asked_order.borrow_mut());
        if asked.len() == self.asked_capacity {
            asked.remove(&order.remove(0));
        }
        let record = Inbound {
            last_seen: self.now(),
            limit,
        };
        asked.insert(*tuple, Box::new(UnsafeCell::new(record)));
        order.push(*tuple);
    }

    fn remove_asked(&self, tuple: &Tuple) {
        self.asked.borrow_mut().remove(tuple);
        self.asked_order.borrow_mut().retain(|other| other != tuple);
    }

    fn is_bridged(&self, _: &Tuple, _: Family) -> bool {
        self.bridged.get()
    }

    fn way(&self, _: &Tuple, _: Family) -> Option<&Way> {
        let hook = self.before_way.take();
        if let Some(hook) = hook {
            hook(self);
        }
        self.way.as_ref()
    }

    fn source(&self, key: &SourceKey, addr: &mut Addr) -> bool {
        let value = |addr: &Addr| u128::from_be_bytes(*addr.octets());
        let covers = |(known, len, _): &&(SourceKey, u32, Addr)| {
            known.link == key.link
                && (*len == 0 || (value(&known.addr) ^ value(&key.addr)) >> (128 - len) == 0)
        };
        let longest = self.sources.iter().filter(covers).max_by_key(|it| it.1);
        longest.is_some_and(|(_, _, found)| {
            *addr = *found;
            true
        })
    }

    fn fragment(&self, key: &Tuple, leaving: bool) -> Option<Fragment> {
        let fragments = self.fragments[usize::from(leaving)].borrow();
        let mut all = fragments.iter();
        all.find(|(known, _)| known == key)
            .map(|(_, fragment)| *fragment)
    }

    fn insert_fragment(&self, key: &Tuple, fragment: &Fragment, leaving: bool) {
        let mut fragments = self.fragments[usize::from(leaving)].borrow_mut();
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

    fn is_exhausted(&self, wire: &Tuple) -> bool {
        let exhausted = self.exhausted.borrow();
        let since = exhausted.get(wire);
        since.is_some_and(|since| age(self.now(), *since) < EXHAUSTED_TICKS)
    }

    fn set_exhausted(&self, wire: &Tuple) {
        self.exhausted.borrow_mut().insert(*wire, self.now());
    }

    fn endpoint_port(&self, endpoint: &Tuple) -> Option<u16> {
        self.endpoints.borrow().get(endpoint).copied()
    }

    fn set_endpoint_port(&self, endpoint: &Tuple, port: u16) {
        self.endpoints.borrow_mut().insert(*endpoint, port);
    }

    fn wire_endpoint(&self, endpoint: &Tuple) -> Option<Endpoint> {
        self.wire_endpoints.borrow().get(endpoint).copied()
    }

    fn set_wire_endpoint(&self, endpoint: &Tuple, far: &Endpoint) {
        self.wire_endpoints.borrow_mut().insert(*endpoint, *far);
    }

    fn port_reserved(&self, port: u16) -> bool {
        self.candidates.borrow_mut().push(port);
        self.reserved.contains(&port)
    }

    fn ports_reserved(&self, word: u32) -> u64 {
        let reserved = self.reserved.iter().map(|port| u32::from(*port));
        let here = reserved.filter(|port| port / 64 == word);
        here.fold(0, |bits, port| bits | 1 << (port % 64))
    }

    fn node_answers(&self, protocol: u32, port: u16) -> bool {
        self.node_ports.contains(&(protocol, port))
    }

    fn node_speaks(&self, key: &NodeProtocol) -> bool {
        self.node_protocols.contains(key)
    }

    fn sent_by_socket(&self) -> bool {
        self.sent_by_socket
    }

    fn socket_receives(&self, wire: &Tuple) -> bool {
        let hook = self.before_sockets.take();
        if let Some(hook) = hook {
            hook(self);
        }
        self.sockets.contains(wire) || self.listeners.contains(&wire.dst_id)
    }

    fn repeat<S, F>(&self, n: u32, state: &mut S, step: F)
    where
        F: Fn(&Self, u32, &mut S) -> bool,
    {
        for i in 0..n {
            if !step(self, i, state) {
                return;
            }
        }
    }
}
