//! The environment of the decisions, by the fake's settings; [`tables`](super::tables) has their tables.

use super::state::{Fake, Origin};
use netdp_common::env::{
    BoundedLoop, Clock, Config, Counting, EgressRoute, Events, Interface, Masqueraded, Node,
    PodRoute, Policy, Routes,
};
use netdp_common::layout::{
    Action, Addr, Counters, DropReason, Family, Limits, NodeFlow, NodeProtocol, PAIR_BITS,
    POLICY_WAS_BYPASSED, Pair, PolicyValue, Settings, SourceKey, Traffic, Tuple, Uplink,
};
use netdp_common::packet::Packet;
use netdp_common::slot::PairSlot;
use std::cell::UnsafeCell;

/// Index of an interface behind which other pods are.
const ELSEWHERE: u32 = 99;

impl Clock for Fake {
    fn now(&self) -> u32 {
        self.clock.get()
    }

    /// Returns the next value of a linear congruential generator: the same sequence in every run.
    fn random(&self) -> u32 {
        let next = self.random.get().wrapping_mul(1_664_525);
        self.random.set(next.wrapping_add(1_013_904_223));
        self.random.get()
    }
}

impl Counting for Fake {
    fn count(&self, counter: impl FnOnce(&mut Counters) -> &mut u64) {
        *counter(&mut self.counters.borrow_mut()) += 1;
    }

    fn count_traffic(&self, counter: impl FnOnce(&mut Counters) -> &mut Traffic, more: &Traffic) {
        counter(&mut self.counters.borrow_mut()).add(more);
    }

    fn count_drop(&self, reason: DropReason) {
        *self.counters.borrow_mut().drops.get_mut(reason) += 1;
        let earlier = self.dropped.replace(Some(reason));
        assert_eq!(earlier, None, "one packet, dropped twice");
    }

    fn count_refusal(&self, bucket: u32) {
        *self.refusals.borrow_mut().entry(bucket).or_default() += 1;
    }

    fn count_search(&self, candidates: u32) {
        self.new_mappings.borrow_mut().count_search(candidates);
    }

    fn count_protocol(&self, protocol: u32) {
        self.new_mappings.borrow_mut().count_protocol(protocol);
    }
}

impl Config for Fake {
    fn settings(&self) -> &Settings {
        &self.settings
    }

    fn epoch(&self) -> u32 {
        self.settings.epoch
    }

    fn uplink(&self) -> &Uplink {
        &self.uplink
    }

    fn is_uplink(&self, ifindex: u32) -> bool {
        ifindex == self.ifindex
    }

    fn limits(&self) -> &Limits {
        &self.limits
    }
}

impl Interface for Fake {
    fn ifindex(&self) -> u32 {
        self.ifindex
    }

    fn l3_len(&self) -> u32 {
        self.l3_len.get()
    }

    fn ingress_ifindex(&self) -> u32 {
        self.ingress_ifindex.get()
    }

    fn is_bridged(&self, tuple: &Tuple, _: Family) -> bool {
        self.bridged.get() && !self.routed.borrow().contains(&tuple.src)
    }

    fn has_foreign_mac(&self) -> bool {
        self.bridged.get()
    }

    fn is_sent_by_socket(&self) -> bool {
        self.sent_by_socket
    }
}

impl Policy for Fake {
    fn is_local(&self, addr: &Addr) -> bool {
        self.local.contains(addr)
    }

    fn is_any_ip(&self, addr: &Addr) -> bool {
        self.any_ip.contains(addr)
    }

    fn lookup_policy(&self, dst: &Addr) -> Option<PolicyValue> {
        let value = |addr: &Addr| u128::from_be_bytes(*addr.octets());
        let covers = |&(net, len, _): &(Addr, u32, Action)| {
            len == 0 || (value(&net) ^ value(dst)) >> (128 - len) == 0
        };
        let rules = (0..).zip(&self.policy);
        let covering = rules.filter(|(_, rule)| covers(rule));
        let longest = covering.max_by_key(|(_, rule)| rule.1);
        let value = longest.map(|(number, rule)| PolicyValue {
            action: rule.2 as u32,
            rule: number,
        });
        if self.bypassed_before.contains(dst) {
            let mut value = value.unwrap_or(PolicyValue {
                action: Action::Masquerade as u32,
                rule: u32::MAX,
            });
            value.action |= POLICY_WAS_BYPASSED;
            return Some(value);
        }
        value
    }

    fn pair_bits(&self) -> u32 {
        PAIR_BITS
    }

    fn lookup_pair(&self, index: u32) -> Option<PairSlot> {
        let mut pairs = self.pairs.borrow_mut();
        let none = Packet::EMPTY.tuple.src;
        let cell = pairs.entry(index).or_insert_with(|| {
            Box::new(UnsafeCell::new(Pair {
                pod: none,
                peer: none,
                epoch: 0,
                rule: 0,
                hits: Traffic::default(),
                earlier: 0,
            }))
        });
        // SAFETY: the value is never removed and lives as long as the fake.
        Some(unsafe { PairSlot::new(cell.get()) })
    }

    fn lookup_masqueraded(&self, pod: &Addr, peer: &Addr, epoch: u32) -> Option<Masqueraded> {
        let pair = (*pod, *peer, epoch, self.ingress_ifindex.get());
        self.known_masqueraded.borrow().get(&pair).copied()
    }

    fn cache_masqueraded(&self, pod: &Addr, peer: &Addr, epoch: u32, known: Masqueraded) {
        let pair = (*pod, *peer, epoch, self.ingress_ifindex.get());
        self.known_masqueraded.borrow_mut().insert(pair, known);
    }
}

impl Node for Fake {
    fn lookup_node_flow(&self, wire: &Tuple) -> Option<NodeFlow> {
        self.node_flows.borrow().get(wire).copied()
    }

    fn insert_node_flow(&self, wire: &Tuple, flow: &NodeFlow) {
        self.node_flows.borrow_mut().insert(*wire, *flow);
    }

    fn node_flow_stamp(&self, port: u16) -> u8 {
        self.node_flow_stamps
            .borrow()
            .get(&port)
            .map_or(0, |it| *it)
    }

    fn set_node_flow_stamp(&self, port: u16, stamp: u8) {
        self.node_flow_stamps.borrow_mut().insert(port, stamp);
    }

    fn is_node_port(&self, protocol: u32, port: u16) -> bool {
        self.node_ports.contains(&(protocol, port))
    }

    fn is_node_protocol(&self, key: &NodeProtocol) -> bool {
        self.node_protocols.contains(key)
    }

    fn has_socket(&self, wire: &Tuple) -> bool {
        let hook = self.before_sockets.take();
        if let Some(hook) = hook {
            hook(self);
        }
        self.sockets.contains(wire) || self.listeners.contains(&wire.dst_id)
    }
}

impl Routes for Fake {
    fn lookup_route(&self, _: &Tuple, _: Family) -> Option<&EgressRoute> {
        let hook = self.before_route.take();
        if let Some(hook) = hook {
            hook(self);
        }
        self.route.as_ref()
    }

    fn lookup_source(&self, key: &SourceKey, addr: &mut Addr) -> bool {
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

    fn lookup_pod_route(&self, addr: &Addr, _: Family) -> Option<PodRoute> {
        let origin = self.origins.borrow().get(addr).copied();
        let here = self.ingress_ifindex.get();
        let (ifindex, direct, resolved) = match origin.unwrap_or(Origin::Link) {
            Origin::Unknown => return None,
            Origin::Link => (here, true, true),
            Origin::Unresolved => (here, true, false),
            Origin::Routed => (here, false, true),
            Origin::Elsewhere => (ELSEWHERE, true, true),
            Origin::Uplink => (self.ifindex, true, true),
        };
        Some(PodRoute {
            ifindex,
            direct,
            resolved,
        })
    }
}

impl Events for Fake {
    fn report_begin(&self, tuple: &Tuple, wire: &Tuple, rule: u32) -> bool {
        self.begun.borrow_mut().push((*tuple, *wire, rule));
        true
    }
}

impl BoundedLoop for Fake {
    fn bounded_loop<S, F>(&self, n: u32, state: &mut S, step: F)
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
