//! The maps and helpers, as [`Tables`] wants them.

use super::{Fake, Inbound};
use crate::abi::{
    Action, Counters, Fragment, Mapping, NodeProtocol, SETTING_NONE_STICKY, Settings, Uplink,
};
use crate::addr::{Addr, Family};
use crate::conntrack::{INBOUND_SECONDS, age, ticks};
use crate::packet::Endpoint;
use crate::slot::Slot;
use crate::tables::{InsertError, Tables};
use crate::tuple::Tuple;

/// As netdp-ebpf's: half a second.
const EXHAUSTED_TICKS: u32 = 8;

impl Tables for Fake {
    fn now(&self) -> u32 {
        self.clock.get()
    }

    /// A linear congruential generator: the same in every run.
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

    fn count(&self, counter: impl FnOnce(&mut Counters) -> &mut u64) {
        *counter(&mut self.counters.borrow_mut()) += 1;
    }

    fn is_local(&self, addr: &Addr) -> bool {
        self.local.contains(addr)
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

    fn refresh_inbound(&self, tuple: &Tuple) -> bool {
        let mut inbound = self.inbound.borrow_mut();
        let Some(at) = inbound.iter().position(|record| record.tuple == *tuple) else {
            return false;
        };
        let record = inbound[at];
        let limit = match record.limit {
            0 => ticks(INBOUND_SECONDS),
            limit => limit.into(),
        };
        let last_seen = self.now();
        let fresh = u64::from(age(last_seen, record.last_seen)) < limit;
        if fresh {
            inbound.remove(at);
            inbound.push(Inbound {
                last_seen,
                ..record
            });
        }
        fresh
    }

    fn insert_inbound(&self, tuple: &Tuple, limit: u32) {
        let mut inbound = self.inbound.borrow_mut();
        inbound.retain(|record| record.tuple != *tuple);
        if inbound.len() == self.inbound_capacity {
            inbound.remove(0);
        }
        inbound.push(Inbound {
            tuple: *tuple,
            last_seen: self.now(),
            limit,
        });
    }

    fn remove_inbound(&self, tuple: &Tuple) {
        self.inbound
            .borrow_mut()
            .retain(|record| record.tuple != *tuple);
    }

    fn route_source(&self, _: &Addr, _: Family) -> Option<Addr> {
        self.route_source
    }

    fn fragment(&self, key: &Tuple) -> Option<Fragment> {
        let fragments = self.fragments.borrow();
        let mut all = fragments.iter();
        all.find(|(known, _)| known == key)
            .map(|(_, fragment)| *fragment)
    }

    fn insert_fragment(&self, key: &Tuple, fragment: &Fragment) {
        let mut fragments = self.fragments.borrow_mut();
        fragments.retain(|(known, _)| known != key);
        if fragments.len() == self.fragments_capacity {
            fragments.remove(0);
        }
        fragments.push((*key, *fragment));
    }

    fn next_ip_id(&self) -> u32 {
        self.ip_id.set((self.ip_id.get() + 1) & 0xffff);
        self.ip_id.get()
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
        self.sockets.contains(wire)
    }

    fn socket_listens(&self, wire: &Tuple) -> bool {
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
