//! The environment of the datapath's decision about the first packet of a flow, made from the
//! agent's configuration: in shadow mode there are no maps, no earlier flows and no limits.

use super::compare::{Node, RouteLookup};
use crate::config::RuleAction;
use netdp_common::direction::Direction;
use netdp_common::env::{
    Accounting, BoundedLoop, Clock, Config, Counting, EgressRoute, Events, Fragments, InboundFlows,
    InsertError, Interface, Mappings, Masqueraded, Node as NodeTraffic, PodRoute, Policy, Ports,
    Reaching, Routes,
};
use netdp_common::layout::{
    Action, Addr, Counters, DropReason, Endpoint, Family, Fragment, Inbound, LAYOUT, Limits, Live,
    Mapping, NO_LEAK_DROP, NodeFlow, NodeProtocol, PORT_RANGES, PolicyValue, PortRange, Reach,
    SETTING_ANY_SOURCE, SETTING_IPV6, SOURCE_NAMED, Settings, SourceKey, Traffic, Tuple, Uplink,
};
use netdp_common::slot::{AskedSlot, LiveSlot, PairSlot, PortMapSlot, ReachSlot, ShareSlot, Slot};
use std::cell::{OnceCell, RefCell};
use std::net::IpAddr;

/// The configuration as an environment, at one uplink.
pub(super) struct ConfigEnv<'a, R> {
    node: &'a Node,
    routes: RefCell<&'a mut R>,
    ifindex: u32,
    uplink: Uplink,
    settings: Settings,
    limits: Limits,
    counters: RefCell<Counters>,
    route: OnceCell<EgressRoute>,
}

impl<'a, R: RouteLookup> ConfigEnv<'a, R> {
    /// Returns the environment at the uplink with this index; `uplink` is its entry.
    pub(super) fn new(node: &'a Node, routes: &'a mut R, ifindex: u32, uplink: Uplink) -> Self {
        // No route contradicts a source: connection tracking has seen the flow's packets pass.
        let mut flags = SETTING_ANY_SOURCE;
        if node.enable_ipv6 {
            flags |= SETTING_IPV6;
        }
        Self {
            node,
            routes: RefCell::new(routes),
            ifindex,
            uplink,
            settings: Settings {
                layout: LAYOUT,
                active_policy: 0,
                flags,
                no_leak: NO_LEAK_DROP,
                ports: [PortRange::EMPTY; PORT_RANGES],
                clock_offset: 0,
                generation: 1,
                epoch: 1,
                events: 0,
            },
            limits: Limits::UNLIMITED,
            counters: RefCell::default(),
            route: OnceCell::new(),
        }
    }

    /// Returns what was counted.
    pub(super) fn counters(&self) -> Counters {
        *self.counters.borrow()
    }
}

impl<R> Clock for ConfigEnv<'_, R> {
    fn now(&self) -> u32 {
        1
    }

    fn random(&self) -> u32 {
        0
    }
}

impl<R> Counting for ConfigEnv<'_, R> {
    fn count(&self, counter: impl FnOnce(&mut Counters) -> &mut u64) {
        *counter(&mut self.counters.borrow_mut()) += 1;
    }

    fn count_traffic(&self, counter: impl FnOnce(&mut Counters) -> &mut Traffic, more: &Traffic) {
        counter(&mut self.counters.borrow_mut()).add(more);
    }

    fn count_drop(&self, _: DropReason) {}

    fn count_refusal(&self, _: u32) {}

    fn count_search(&self, _: u32) {}

    fn count_protocol(&self, _: u32) {}
}

impl<R> Config for ConfigEnv<'_, R> {
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
        self.node.uplinks.contains_key(&ifindex)
    }

    fn limits(&self) -> &Limits {
        &self.limits
    }
}

impl<R> Interface for ConfigEnv<'_, R> {
    fn ifindex(&self) -> u32 {
        self.ifindex
    }

    fn l3_len(&self) -> u32 {
        0
    }

    fn ingress_ifindex(&self) -> u32 {
        0
    }

    fn is_bridged(&self, _: &Tuple, _: Family) -> bool {
        false
    }

    fn has_foreign_mac(&self) -> bool {
        false
    }

    fn is_sent_by_socket(&self) -> bool {
        true
    }
}

impl<R> Policy for ConfigEnv<'_, R> {
    fn is_local(&self, addr: &Addr) -> bool {
        self.node.local.contains(&IpAddr::from(*addr))
    }

    fn is_any_ip(&self, _: &Addr) -> bool {
        false
    }

    fn lookup_policy(&self, dst: &Addr) -> Option<PolicyValue> {
        let action = match self.node.config.decide((*dst).into()).action {
            RuleAction::Bypass => Action::Bypass,
            RuleAction::Masquerade => Action::Masquerade,
        };
        Some(PolicyValue {
            action: action as u32,
            rule: u32::MAX,
        })
    }

    /// Returns the least that gives a slot; there are none.
    fn pair_bits(&self) -> u32 {
        1
    }

    fn lookup_pair(&self, _: u32) -> Option<PairSlot> {
        None
    }

    fn lookup_masqueraded(&self, _: &Addr, _: &Addr, _: u32) -> Option<Masqueraded> {
        None
    }

    fn cache_masqueraded(&self, _: &Addr, _: &Addr, _: u32, _: Masqueraded) {}
}

impl<R> Mappings for ConfigEnv<'_, R> {
    fn lookup_snat(&self, _: &Tuple) -> Option<Slot> {
        None
    }

    fn lookup_rev_snat(&self, _: &Tuple) -> Option<Slot> {
        None
    }

    fn insert_snat(&self, _: &Tuple, _: &Mapping) -> Result<(), InsertError> {
        Ok(())
    }

    fn insert_rev_snat(&self, _: &Tuple, _: &Mapping) -> Result<(), InsertError> {
        Ok(())
    }

    fn remove_snat(&self, _: &Tuple) -> bool {
        false
    }

    fn report_end(&self, _: &Tuple, _: &Tuple, _: u32) -> bool {
        false
    }

    fn remove_rev_snat(&self, _: &Tuple) {}

    fn push_recent(&self, _: &Tuple) {}

    fn pop_recent(&self, _: &mut Tuple) -> bool {
        false
    }

    fn lookup_share(&self, _: u32) -> Option<ShareSlot> {
        None
    }
}

impl<R> Accounting for ConfigEnv<'_, R> {
    fn add_traffic(&self, _: &Tuple, _: &Traffic) -> bool {
        false
    }

    fn insert_traffic(&self, _: &Tuple, _: &Traffic) -> bool {
        false
    }

    fn remove_traffic(&self, _: &Tuple) {}

    fn add_rule_hits(&self, _: u32, _: &Traffic, _: u64) {}
}

impl<R> Reaching for ConfigEnv<'_, R> {
    fn lookup_reach(&self, _network: &Addr) -> Option<ReachSlot> {
        None
    }

    fn insert_reach(&self, _network: &Addr, _reach: &Reach) {}
}

impl<R> InboundFlows for ConfigEnv<'_, R> {
    fn lookup_live(&self, _: &Tuple) -> Option<LiveSlot> {
        None
    }

    fn insert_live(&self, _: &Tuple, _: &Live) -> bool {
        false
    }

    fn remove_live(&self, _: &Tuple) -> bool {
        false
    }

    fn lookup_asked(&self, _: &Tuple) -> Option<AskedSlot> {
        None
    }

    fn insert_asked(&self, _: &Tuple, _: &Inbound) {}

    fn remove_asked(&self, _: &Tuple) {}
}

impl<R> NodeTraffic for ConfigEnv<'_, R> {
    fn lookup_node_flow(&self, _: &Tuple) -> Option<NodeFlow> {
        None
    }

    fn insert_node_flow(&self, _: &Tuple, _: &NodeFlow) {}

    fn node_flow_stamp(&self, _: u16) -> u8 {
        0
    }

    fn set_node_flow_stamp(&self, _: u16, _: u8) {}

    fn is_node_port(&self, _: u32, _: u16) -> bool {
        false
    }

    fn is_node_protocol(&self, _: &NodeProtocol) -> bool {
        false
    }

    fn has_socket(&self, _: &Tuple) -> bool {
        false
    }
}

impl<R> Ports for ConfigEnv<'_, R> {
    fn lookup_port_map(&self, _: u32) -> Option<PortMapSlot> {
        None
    }

    fn reserved_ports(&self, _: u32) -> u64 {
        0
    }

    fn lookup_exhausted(&self, _: &Tuple) -> Option<u32> {
        None
    }

    fn insert_exhausted(&self, _: &Tuple, _: u32) {}

    fn lookup_endpoint_port(&self, _: &Tuple) -> Option<u16> {
        None
    }

    fn insert_endpoint_port(&self, _: &Tuple, _: u16) {}

    fn lookup_wire_endpoint(&self, _: &Tuple) -> Option<Endpoint> {
        None
    }

    fn insert_wire_endpoint(&self, _: &Tuple, _: &Endpoint) {}
}

impl<R> Fragments for ConfigEnv<'_, R> {
    fn lookup_fragment(&self, _: &Tuple, _: Direction) -> Option<Fragment> {
        None
    }

    fn insert_fragment(&self, _: &Tuple, _: &Fragment, _: Direction) {}

    fn next_ip_id(&self, _: u32) -> u32 {
        0
    }
}

impl<R: RouteLookup> Routes for ConfigEnv<'_, R> {
    fn lookup_route(&self, tuple: &Tuple, _: Family) -> Option<&EgressRoute> {
        let mut routes = self.routes.borrow_mut();
        let source = routes.source(tuple.dst.into(), self.ifindex)?;
        Some(self.route.get_or_init(|| EgressRoute {
            link: self.ifindex,
            has_source: 1,
            source: source.into(),
            next: tuple.dst,
        }))
    }

    /// Accepts the source that a route names; the agent's choice by the subnet of the next hop is
    /// not known here.
    fn lookup_source(&self, key: &SourceKey, addr: &mut Addr) -> bool {
        let is_named = key.link & SOURCE_NAMED != 0;
        if is_named {
            *addr = key.addr;
        }
        is_named
    }

    fn lookup_pod_route(&self, _: &Addr, _: Family) -> Option<PodRoute> {
        None
    }
}

impl<R> Events for ConfigEnv<'_, R> {
    /// Reports nothing: no mapping begins here.
    fn report_begin(&self, _: &Tuple, _: &Tuple, _: u32) -> bool {
        false
    }
}

impl<R> BoundedLoop for ConfigEnv<'_, R> {
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
