//! Look-ups in the kernel's routing and neighbour tables, one by one.

use anyhow::{Context as _, Result, bail};
use netlink_packet_core::{NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_ROUTE};
use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage};
use rtnetlink::packet_route::neighbour::{NeighbourAttribute, NeighbourMessage, NeighbourState};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteType, RouteVia,
};
use rtnetlink::packet_route::{AddressFamily, RouteNetlinkMessage};
use std::net::IpAddr;

/// Which route a look-up reports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Report {
    /// The one that a packet would take: of several next hops, the one that the kernel chooses.
    Taken,
    /// The entry of the table that matched, with the source that it names (`RTM_F_FIB_MATCH`). An
    /// error if there is none.
    Entry,
}

/// A socket to the tables of this network namespace.
#[derive(Debug)]
pub(crate) struct RouteQueries {
    socket: Socket,
    sequence: u32,
}

impl RouteQueries {
    /// Opens the socket.
    ///
    /// # Errors
    /// Returns an error if the kernel refuses.
    pub(crate) fn open() -> Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE).context("a netlink socket for routes")?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self {
            socket,
            sequence: 0,
        })
    }

    /// Returns the route to `to`; `more` are further attributes of the packet.
    ///
    /// # Errors
    /// Returns the kernel's error: there is no such route, or it would reject such a packet.
    pub(crate) fn route(
        &mut self,
        to: IpAddr,
        tos: u8,
        more: &[RouteAttribute],
        report: Report,
    ) -> Result<RouteMessage> {
        let mut request = RouteMessage::default();
        request.header.address_family = family(to);
        let whole = if to.is_ipv4() { 32 } else { 128 };
        request.header.destination_prefix_length = whole;
        request.header.tos = tos;
        if report == Report::Entry {
            // Without the second flag the kernel names the main table, whichever it was.
            request.header.flags = RouteFlags::FibMatch | RouteFlags::LookupTable;
        }
        request
            .attributes
            .push(RouteAttribute::Destination(to.into()));
        for attribute in more {
            if let RouteAttribute::Source(_) = attribute {
                request.header.source_prefix_length = whole;
            }
            request.attributes.push(attribute.clone());
        }
        match self.ask(RouteNetlinkMessage::GetRoute(request))? {
            RouteNetlinkMessage::NewRoute(route) => Ok(route),
            other => bail!("no route, but {other:?}"),
        }
    }

    /// Reports whether the hardware address of a neighbour is known and in use.
    pub(crate) fn is_resolved(&mut self, ifindex: u32, neighbour: IpAddr) -> bool {
        let mut request = NeighbourMessage::default();
        request.header.family = family(neighbour);
        request.header.ifindex = ifindex;
        request
            .attributes
            .push(NeighbourAttribute::Destination(neighbour.into()));
        let answer = self.ask(RouteNetlinkMessage::GetNeighbour(request));
        let Ok(RouteNetlinkMessage::NewNeighbour(found)) = answer else {
            return false;
        };
        // `NUD_VALID` of include/net/neighbour.h, Linux 6.12.
        matches!(
            found.header.state,
            NeighbourState::Permanent
                | NeighbourState::Noarp
                | NeighbourState::Reachable
                | NeighbourState::Probe
                | NeighbourState::Stale
                | NeighbourState::Delay
        )
    }

    /// Returns the hardware address of an interface.
    ///
    /// # Errors
    /// Returns an error if there is no such interface.
    pub(crate) fn hardware_address(&mut self, ifindex: u32) -> Result<Option<Vec<u8>>> {
        let mut request = LinkMessage::default();
        request.header.index = ifindex;
        match self.ask(RouteNetlinkMessage::GetLink(request))? {
            RouteNetlinkMessage::NewLink(link) => {
                Ok(link.attributes.into_iter().find_map(|it| match it {
                    LinkAttribute::Address(address) => Some(address),
                    _ => None,
                }))
            }
            other => bail!("no interface, but {other:?}"),
        }
    }

    fn ask(&mut self, question: RouteNetlinkMessage) -> Result<RouteNetlinkMessage> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::from(question));
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
                NetlinkPayload::InnerMessage(message) => Ok(message),
                NetlinkPayload::Error(error) => Err(error.to_io().into()),
                other => bail!("no answer, but {other:?}"),
            };
        }
    }
}

const fn family(ip: IpAddr) -> AddressFamily {
    match ip {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

/// Returns the interface of a route that leads out of the node.
pub(crate) fn outgoing_interface(route: &RouteMessage) -> Option<u32> {
    if route.header.kind != RouteType::Unicast {
        return None;
    }
    route.attributes.iter().find_map(|it| match it {
        RouteAttribute::Oif(ifindex) => Some(*ifindex),
        _ => None,
    })
}

/// Returns the router of a route, which may be of the other family.
pub(crate) fn gateway(route: &RouteMessage) -> Option<IpAddr> {
    route.attributes.iter().find_map(|it| match it {
        RouteAttribute::Gateway(gateway) => ip(gateway),
        RouteAttribute::Via(RouteVia::Inet(v4)) => Some(IpAddr::from(*v4)),
        RouteAttribute::Via(RouteVia::Inet6(v6)) => Some(IpAddr::from(*v6)),
        _ => None,
    })
}

/// Returns the source that a route gives.
pub(crate) fn source(route: &RouteMessage) -> Option<IpAddr> {
    route.attributes.iter().find_map(|it| match it {
        RouteAttribute::PrefSource(source) => ip(source),
        _ => None,
    })
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some(IpAddr::from(*v4)),
        RouteAddress::Inet6(v6) => Some(IpAddr::from(*v6)),
        _ => None,
    }
}
