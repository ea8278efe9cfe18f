//! The kernel's routing tables, asked by netlink as the programs ask by `bpf_fib_lookup`
//! (`netdp-ebpf/src/fib.rs`).

use super::LiveEnv;
use crate::datapath::name_of;
use crate::explain::question::{NotAsked, Question};
use crate::routes::{self, Report, RouteQueries, outgoing_interface};
use netdp_common::env::{EgressRoute, PodRoute, Routes};
use netdp_common::layout::{Addr, Family, SourceKey, Tuple, proto};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute};
use std::net::IpAddr;

impl Routes for LiveEnv<'_> {
    /// Looks up the route first as the kernel has routed the packet, then by the routes of this
    /// uplink alone. The packet's mark is unknown, and counts as 0; an IPv4 `ip rule` by source does
    /// not count the second time, because the kernel answers for its own addresses only.
    fn lookup_route(&self, tuple: &Tuple, family: Family) -> Option<&EgressRoute> {
        let (here, came_by) = (self.at.ifindex, self.at.came_by);
        let found = self.with_routes(|queries| {
            (came_by != 0)
                .then(|| self.find_route(queries, tuple, family, came_by))
                .flatten()
                .filter(|route| self.leads_here(route))
                .or_else(|| {
                    self.find_route(queries, tuple, family, 0)
                        .filter(|route| route.link == here)
                })
        });
        self.note(Question::Route {
            tuple: *tuple,
            found,
        });
        let route = found?;
        // A decision asks once.
        Some(self.route.get_or_init(|| route))
    }

    fn lookup_source(&self, key: &SourceKey, addr: &mut Addr) -> bool {
        let source = self.source(key);
        let found = source.filter(|source| source.via == self.at.ifindex);
        let found = found.map(|source| source.addr);
        self.note(Question::Source { key: *key, found });
        match found {
            Some(found) => {
                *addr = found;
                true
            }
            None => false,
        }
    }

    fn lookup_pod_route(&self, addr: &Addr, family: Family) -> Option<PodRoute> {
        let found = self.with_routes(|queries| {
            if !forwards(self.at.ifindex, family) {
                return None;
            }
            let to = IpAddr::from(*addr);
            let route = queries.route(to, 0, &[], Report::Taken).ok()?;
            let ifindex = outgoing_interface(&route)?;
            let next = routes::gateway(&route).unwrap_or(to);
            Some(PodRoute {
                ifindex,
                direct: next == to,
                resolved: queries.is_resolved(ifindex, next),
            })
        });
        self.note(Question::PodRoute { addr: *addr, found });
        found
    }
}

impl LiveEnv<'_> {
    /// Reports whether the kernel, routing a packet with this tuple from its ingress interface,
    /// would send it by this uplink with the source address `mac`.
    pub(super) fn sends_as(&self, tuple: &Tuple, family: Family, mac: [u8; 6]) -> bool {
        let sends = self.with_routes(|queries| {
            let came_by = self.at.came_by;
            let route = self.find_route(queries, tuple, family, came_by)?;
            let own = queries.hardware_address(route.link).ok()??;
            Some(own == mac && queries.is_resolved(route.link, route.next.into()))
        });
        sends == Some(true)
    }

    fn with_routes<T>(&self, ask: impl FnOnce(&mut RouteQueries) -> Option<T>) -> Option<T> {
        match &mut self.kernel.borrow_mut().routes {
            Ok(queries) => ask(queries),
            Err(_) => {
                self.note_not_asked(NotAsked::Routes);
                None
            }
        }
    }

    /// Reports whether a route leads to the interface: to that itself, or to a VLAN device that the
    /// agent knows to be stacked on it.
    fn leads_here(&self, route: &EgressRoute) -> bool {
        let key = SourceKey {
            link: route.link,
            addr: route.next,
        };
        route.link == self.at.ifindex
            || self
                .source(&key)
                .is_some_and(|source| source.via == self.at.ifindex)
    }

    /// Looks up the route once; `came_by` 0 stands for packets that leave by this uplink.
    fn find_route(
        &self,
        queries: &mut RouteQueries,
        tuple: &Tuple,
        family: Family,
        came_by: u32,
    ) -> Option<EgressRoute> {
        let mut packet = Vec::new();
        // The kernel looks up no other protocols (`rtm_getroute_parse_ip_proto`, Linux 6.12).
        if let proto::TCP | proto::UDP | proto::ICMP | proto::ICMPV6 = tuple.proto {
            packet.push(RouteAttribute::IpProto(u8::try_from(tuple.proto).ok()?));
        }
        if matches!(tuple.proto, proto::TCP | proto::UDP) {
            packet.push(RouteAttribute::Sport(tuple.src_id));
            packet.push(RouteAttribute::Dport(tuple.dst_id));
        }
        let from = if came_by == 0 {
            packet.push(RouteAttribute::Oif(self.at.ifindex));
            self.at.ifindex
        } else {
            packet.push(RouteAttribute::Iif(came_by));
            came_by
        };
        // Of a packet that the node itself sends, the IPv4 source has to be the node's own.
        if came_by != 0 || family == Family::V6 {
            let source = RouteAddress::from(IpAddr::from(tuple.src));
            packet.push(RouteAttribute::Source(source));
        }
        if !forwards(from, family) {
            return None;
        }
        let to = IpAddr::from(tuple.dst);
        // Fails if nothing matches; the route that a packet takes would then be on-link.
        let entry = queries.route(to, self.tos, &packet, Report::Entry).ok()?;
        let taken = match outgoing_interface(&entry) {
            Some(_) => entry.clone(),
            None => queries.route(to, self.tos, &packet, Report::Taken).ok()?,
        };
        let link = outgoing_interface(&taken)?;
        let source = routes::source(&entry).or_else(|| {
            let oif = [RouteAttribute::Oif(link)];
            routes::source(&queries.route(to, 0, &oif, Report::Taken).ok()?)
        });
        Some(EgressRoute {
            link,
            has_source: source.is_some().into(),
            source: source.map_or(super::NO_ADDR, Addr::from),
            next: routes::gateway(&taken).map_or(tuple.dst, Addr::from),
        })
    }
}

/// Reports whether the node forwards packets of this family that come by the interface. Otherwise
/// `bpf_fib_lookup` finds no route there.
fn forwards(ifindex: u32, family: Family) -> bool {
    let Some(name) = name_of(ifindex) else {
        return false;
    };
    let directory = match family {
        Family::V4 => "ipv4",
        Family::V6 => "ipv6",
    };
    // Of this thread's network namespace.
    let file = format!("/proc/sys/net/{directory}/conf/{name}/forwarding");
    std::fs::read_to_string(file).is_ok_and(|text| text.trim() != "0")
}
