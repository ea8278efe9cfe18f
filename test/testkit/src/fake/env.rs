//! The environment of the decisions, by the fake's maps and settings.

use super::state::{Fake, Origin, RECENT};
use netdp_common::direction::Direction;
use netdp_common::env::{
    Accounting, BoundedLoop, Clock, Config, Counting, EgressRoute, Events, Fragments, InboundFlows,
    InsertError, Interface, Mappings, Masqueraded, Node, PodRoute, Policy, Ports, Reaching, Routes,
};
use netdp_common::layout::{
    Action, Addr, Counters, DropReason, Endpoint, Family, Fragment, Inbound, Limits, Live, Mapping,
    NodeFlow, NodeProtocol, PAIR_BITS, POLICY_WAS_BYPASSED, PORT_MAP_WORDS, Pair, PolicyValue,
    PortMapBits, PortMapOwner, Reach, Settings, SourceKey, Traffic, Tuple, Uplink,
};
use netdp_common::packet::Packet;
use netdp_common::slot::{AskedSlot, LiveSlot, PairSlot, PortMapSlot, ReachSlot, ShareSlot, Slot};
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
        self.searches.borrow_mut().count(candidates);
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
