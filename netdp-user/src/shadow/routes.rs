//! Route lookups in the kernel, one by one.

use super::compare::RouteLookup;
use crate::routes::{self, Report, RouteQueries, outgoing_interface};
use anyhow::Result;
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage};
use std::collections::HashMap;
use std::net::IpAddr;

/// Limit of cached interfaces towards sources.
const CACHE_LIMIT: usize = 16_384;

/// Route lookups in this network namespace.
#[derive(Debug)]
pub(super) struct Routes {
    queries: RouteQueries,
    /// Ingress interface of each source's packets, assumed to be the one of the route back to it.
    incoming: HashMap<IpAddr, Option<u32>>,
}

impl Routes {
    pub(super) fn open() -> Result<Self> {
        Ok(Self {
            queries: RouteQueries::open()?,
            incoming: HashMap::new(),
        })
    }

    /// Clears the cached lookups, which may be out of date.
    pub(super) fn clear_cache(&mut self) {
        self.incoming.clear();
    }

    fn query(&mut self, to: IpAddr, more: &[RouteAttribute]) -> Result<RouteMessage> {
        self.queries.route(to, 0, more, Report::Taken)
    }

    fn incoming(&mut self, from: IpAddr) -> Option<u32> {
        if let Some(known) = self.incoming.get(&from) {
            return *known;
        }
        let ifindex = self
            .query(from, &[])
            .ok()
            .as_ref()
            .and_then(outgoing_interface);
        if self.incoming.len() >= CACHE_LIMIT {
            self.incoming.clear();
        }
        self.incoming.insert(from, ifindex);
        ifindex
    }
}

impl RouteLookup for Routes {
    fn egress_interface(&mut self, from: IpAddr, to: IpAddr, own: bool) -> Option<u32> {
        let source = RouteAttribute::Source(RouteAddress::from(from));
        let route = match self.incoming(from).filter(|_| !own) {
            Some(ifindex) => self.query(to, &[source, RouteAttribute::Iif(ifindex)]),
            None if own => self.query(to, &[source]),
            None => self.query(to, &[]),
        };
        // If the kernel would reject such a packet (reverse path filter), the route of the node's
        // own packets is the best guess: connection tracking has seen it pass.
        route
            .or_else(|_| self.query(to, &[]))
            .ok()
            .as_ref()
            .and_then(outgoing_interface)
    }

    fn source(&mut self, to: IpAddr, ifindex: u32) -> Option<IpAddr> {
        let route = self.query(to, &[RouteAttribute::Oif(ifindex)]).ok()?;
        routes::source(&route)
    }
}
