//! Route lookups in the kernel, one by one.

use super::compare::RouteLookup;
use anyhow::{Context as _, Result, bail};
use netlink_packet_core::{NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteType};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use std::collections::HashMap;
use std::net::IpAddr;

/// Limit of cached interfaces towards sources.
const CACHE_LIMIT: usize = 16_384;

/// Route lookups in this network namespace.
#[derive(Debug)]
pub(super) struct Routes {
    socket: Socket,
    sequence: u32,
    /// Ingress interface of each source's packets, assumed to be the one of the route back to it.
    incoming: HashMap<IpAddr, Option<u32>>,
}

impl Routes {
    pub(super) fn open() -> Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE).context("a netlink socket for routes")?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self {
            socket,
            sequence: 0,
            incoming: HashMap::new(),
        })
    }

    /// Clears the cached lookups, which may be out of date.
    pub(super) fn clear_cache(&mut self) {
        self.incoming.clear();
    }

    fn query(&mut self, to: IpAddr, more: &[RouteAttribute]) -> Result<RouteMessage> {
        let mut request = RouteMessage::default();
        request.header.address_family = match to {
            IpAddr::V4(_) => AddressFamily::Inet,
            IpAddr::V6(_) => AddressFamily::Inet6,
        };
        let whole = if to.is_ipv4() { 32 } else { 128 };
        request.header.destination_prefix_length = whole;
        request
            .attributes
            .push(RouteAttribute::Destination(to.into()));
        for attribute in more {
            if let RouteAttribute::Source(_) = attribute {
                request.header.source_prefix_length = whole;
            }
            request.attributes.push(attribute.clone());
        }
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST;
        header.sequence_number = self.sequence;
        let payload = NetlinkPayload::from(RouteNetlinkMessage::GetRoute(request));
        let mut message = NetlinkMessage::new(header, payload);
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.socket.send(&bytes, 0).context("querying a route")?;
        loop {
            let mut datagram = Vec::with_capacity(1 << 13);
            self.socket
                .recv(&mut datagram, 0)
                .context("waiting for a route")?;
            let answer = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&datagram)?;
            if answer.header.sequence_number != self.sequence {
                continue;
            }
            return match answer.payload {
                NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewRoute(route)) => Ok(route),
                NetlinkPayload::Error(error) => Err(error.to_io().into()),
                other => bail!("no route, but {other:?}"),
            };
        }
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
        route
            .attributes
            .iter()
            .find_map(|attribute| match attribute {
                RouteAttribute::PrefSource(RouteAddress::Inet(v4)) => Some(IpAddr::from(*v4)),
                RouteAttribute::PrefSource(RouteAddress::Inet6(v6)) => Some(IpAddr::from(*v6)),
                _ => None,
            })
    }
}

/// Returns the interface of a route that leads out of the node.
fn outgoing_interface(route: &RouteMessage) -> Option<u32> {
    if route.header.kind != RouteType::Unicast {
        return None;
    }
    route
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::Oif(ifindex) => Some(*ifindex),
            _ => None,
        })
}
