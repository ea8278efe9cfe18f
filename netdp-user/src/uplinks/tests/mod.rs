//! Tests of the selection on synthetic networks, and of netlink on a real one.

mod address;
mod kernel_snapshot;
mod kernel_watch;
mod missing_address;
mod netns;
mod observed;
mod route_classes;
mod select;
mod stacked;
mod tunnel;
mod watch;

use std::net::IpAddr;

use super::model::{AddrFlags, AddressScope, DefaultRoute, Link, LinkAddr, Route};
use super::select::Selected;
use super::{LinkLayer, Patterns, Selection, Snapshot, select as choose};
use crate::config::{Masqueraded, Origin, Rule, RuleAction};
use netdp_common::layout::Family;

/// A synthetic network, built link by link.
#[derive(Clone, Default)]
struct Net(Snapshot);

impl Net {
    /// Returns a network that has only `lo`, with index 1.
    fn new() -> Self {
        let mut net = Self::default();
        net.link("lo");
        net.0.links[0].loopback = true;
        net.addr_with("lo", "127.0.0.1/8", |addr| addr.scope = AddressScope::Host);
        net.addr_with("lo", "::1/128", |addr| addr.scope = AddressScope::Host);
        net
    }

    fn index(&self, name: &str) -> u32 {
        let found = self.0.links.iter().find(|link| link.name == name);
        found
            .unwrap_or_else(|| panic!("no link {name} in the test's network"))
            .ifindex
    }

    /// Adds a running Ethernet link; indices count up from 1.
    fn link(&mut self, name: &str) -> &mut Link {
        let ifindex = u32::try_from(self.0.links.len()).unwrap() + 1;
        self.0.links.push(Link {
            ifindex,
            name: name.into(),
            up: true,
            running: true,
            loopback: false,
            link_layer: LinkLayer::Ethernet,
            mac: None,
            master: None,
            below: None,
            xdp: false,
            kind: None,
        });
        self.0.links.last_mut().unwrap()
    }

    /// Adds a link of a kind, and enslaves others to it.
    fn master(&mut self, name: &str, kind: &str, members: &[&str]) {
        let link = self.link(name);
        link.kind = Some(kind.into());
        let master = link.ifindex;
        for member in members {
            let index = self.index(member);
            let member = self.0.links.iter_mut().find(|link| link.ifindex == index);
            member.unwrap().master = Some(master);
        }
    }

    fn addr(&mut self, link: &str, cidr: &str) {
        self.addr_with(link, cidr, |_| ());
    }

    fn addr_with(&mut self, link: &str, cidr: &str, change: impl FnOnce(&mut LinkAddr)) {
        let (addr, prefix_len) = cidr.split_once('/').unwrap();
        let addr: IpAddr = addr.parse().unwrap();
        let mut addr = LinkAddr {
            ifindex: self.index(link),
            addr,
            prefix_addr: addr,
            prefix_len: prefix_len.parse().unwrap(),
            scope: AddressScope::Universe,
            flags: AddrFlags::default(),
        };
        change(&mut addr);
        self.0.addrs.push(addr);
    }

    fn route(&mut self, family: Family, link: &str, gateway: Option<&str>, metric: u32) {
        let ifindex = self.index(link);
        let gateway = gateway.map(|gateway| gateway.parse().unwrap());
        self.0.default_routes.push(DefaultRoute {
            family,
            ifindex,
            gateway,
            prefsrc: None,
            metric,
        });
    }

    /// Adds a route to some table.
    fn leads(&mut self, link: &str, destination: &str, by_gateway: bool) {
        self.leads_by(link, destination, by_gateway.then_some("192.0.2.254"));
    }

    /// Adds a route by the given router, if there is one.
    fn leads_by(&mut self, link: &str, destination: &str, gateway: Option<&str>) {
        let ifindex = self.index(link);
        self.0.routes.push(Route {
            destination: destination.parse().unwrap(),
            ifindex,
            gateway: gateway.map(|gateway| gateway.parse().unwrap()),
            prefsrc: None,
            is_led_to: true,
        });
    }

    /// Returns the selection where pods (172.16/16 and fd00:172::/64) and 10.1/16 are bypassed.
    fn by_routes(&self, patterns: &[&str]) -> Selected {
        let bypassed = ["172.16.0.0/16", "fd00:172::/64", "10.1.0.0/16"];
        self.with_bypassed(&bypassed, patterns)
    }

    fn with_bypassed(&self, bypassed: &[&str], patterns: &[&str]) -> Selected {
        choose(&self.0, &self.selection(bypassed, patterns))
    }

    fn selection(&self, bypassed: &[&str], patterns: &[&str]) -> Selection {
        let rule = |prefix: &&str| Rule {
            prefix: prefix.parse().unwrap(),
            action: RuleAction::Bypass,
            origin: Origin::BuiltIn,
            also: Vec::new(),
        };
        let rules: Vec<_> = bypassed.iter().map(rule).collect();
        Selection {
            patterns: Patterns::parse("--uplink", patterns).unwrap(),
            enable_ipv6: true,
            masqueraded: Masqueraded::of(&rules),
            ..Selection::default()
        }
    }

    fn route4(&mut self, link: &str, gateway: &str) {
        self.route(Family::V4, link, Some(gateway), 0);
    }

    fn route6(&mut self, link: &str, gateway: &str) {
        self.route(Family::V6, link, Some(gateway), 1024);
    }

    fn by_role(&self, node_addrs: &[&str], enable_ipv6: bool) -> Selected {
        let node_addrs = node_addrs
            .iter()
            .map(|addr| addr.parse().unwrap())
            .collect();
        choose(
            &self.0,
            &Selection {
                node_addrs,
                enable_ipv6,
                ..Selection::default()
            },
        )
    }

    fn by_name(&self, patterns: &[&str]) -> Selected {
        let patterns = Patterns::parse("--uplink", patterns).unwrap();
        choose(
            &self.0,
            &Selection {
                patterns,
                enable_ipv6: true,
                ..Selection::default()
            },
        )
    }
}

fn names(selected: &Selected) -> Vec<&str> {
    selected
        .uplinks
        .iter()
        .map(|uplink| uplink.name.as_str())
        .collect()
}
