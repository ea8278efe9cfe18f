//! Handover of flows between the datapath and netfilter.

use super::batch;
use super::maps::{Maps, ignore_missing};
use super::sweep::now;
use crate::nf_conntrack::{Flow, NfTcpState, NfTuple};
use anyhow::{Context as _, Result};
use aya::maps::MapError;
use netdp_common::flow::SEEN_DATA;
use netdp_common::flow::SEEN_SYN;
use netdp_common::flow::TcpState;
use netdp_common::flow::age;
use netdp_common::flow::tcp_state;
use netdp_common::flow::ticks;
use netdp_common::layout::Addr;
use netdp_common::layout::Live;
use netdp_common::layout::MAPPING_COUNTED_REPLY;
use netdp_common::layout::MAPPING_HANDED_OVER;
use netdp_common::layout::MAPPING_HANDOVER_PENDING;
use netdp_common::layout::MAPPING_HOST;
use netdp_common::layout::Mapping;
use netdp_common::layout::PORT_RANGES;
use netdp_common::layout::PortRange;
use netdp_common::layout::SETTING_PORTS;
use netdp_common::layout::Settings;
use netdp_common::layout::Tuple;
use netdp_common::layout::proto;
use std::net::IpAddr;

/// `BPF_NOEXIST` and `BPF_EXIST` of include/uapi/linux/bpf.h.
const NOEXIST: u64 = 1;
const EXIST: u64 = 2;

/// Conntrack's default timeouts, in seconds (net.netfilter.nf_conntrack_*; Linux 6.18): the
/// datapath's own timeouts no longer apply once netfilter has the connections.
const ESTABLISHED_SECONDS: u32 = 432_000;
const OTHER_TCP_SECONDS: u32 = 120;
const UDP_SECONDS: u32 = 300;
const OTHER_SECONDS: u32 = 600;

/// `TCP_CONNTRACK_*` of include/uapi/linux/netfilter/nf_conntrack_tcp.h.
const SYN_SENT: u8 = 1;
const TIME_WAIT: u8 = 7;

/// A mapping that can be handed over to netfilter.
#[derive(Debug, Clone, Copy)]
pub struct Handover {
    /// The flow as conntrack will record it.
    pub flow: Flow,
    /// Key of its reply half.
    wire: Tuple,
}

impl Maps {
    /// Restricts the external ports of new TCP and UDP mappings to these ranges, of which there are
    /// at most [`PORT_RANGES`].
    ///
    /// # Errors
    /// Returns an error if the settings can't be written.
    pub fn restrict_ports(&mut self, ranges: &[(u16, u16)]) -> Result<()> {
        let mut settings = self.settings()?;
        settings.flags |= SETTING_PORTS;
        settings.ports = [PortRange::EMPTY; PORT_RANGES];
        for (place, (min, max)) in settings.ports.iter_mut().zip(ranges) {
            *place = PortRange::new(*min, *max);
        }
        self.set_settings(&settings)
    }

    /// Restores the port ranges of `before` for new mappings.
    ///
    /// # Errors
    /// Returns an error if the settings can't be written.
    pub fn restore_ports(&mut self, before: &Settings) -> Result<()> {
        let mut settings = self.settings()?;
        settings.flags = before.flags;
        settings.ports = before.ports;
        self.set_settings(&settings)
    }

    /// Reserves the wire tuples of connections that netfilter translates, so that pods do not get
    /// them, and lets their packets pass. Returns the number of new reservations: the datapath may
    /// have an entry already.
    ///
    /// # Errors
    /// Returns an error if the table is full.
    pub fn reserve(&mut self, flows: &[Flow]) -> Result<usize> {
        let now = now(self)?;
        let mut reserved = 0;
        for flow in flows {
            let wire = tuple(flow.protocol, &flow.translated_original()).reversed();
            let seen = match flow.tcp {
                Some(NfTcpState::Established) => SEEN_SYN | SEEN_DATA,
                _ => SEEN_SYN,
            };
            let marker = Mapping {
                addr: wire.dst,
                id: wire.dst_id,
                flags: MAPPING_HOST | MAPPING_COUNTED_REPLY,
                last_seen: now,
                created: now,
                tcp_ack: 0,
                tcp_seen: u8::try_from(seen)?,
                epoch: 0,
                uplink: 0,
                // A packet whose length is unknown.
                traffic: u32::from(flow.answered),
            };
            match self.rev_snat.insert(wire, marker, NOEXIST) {
                Ok(()) => reserved += 1,
                Err(MapError::SyscallError(err))
                    if err.io_error.raw_os_error() == Some(libc::EEXIST) => {}
                Err(err) => {
                    return Err(err)
                        .context("reserving the tuple of a connection that netfilter translates");
                }
            }
        }
        Ok(reserved)
    }

    /// Lets packets with these endpoints keep their source address: connections that are not
    /// translated.
    ///
    /// # Errors
    /// Returns an error if the map can't be written.
    pub fn pin_addresses(&mut self, connections: &[(u8, NfTuple)]) -> Result<()> {
        let live = Live {
            last_seen: now(self)?,
            limit: 0,
            seen: 0,
            ack: 0,
        };
        if !connections.is_empty() {
            self.enable_inbound()?;
        }
        let pods = self.pods_mut()?;
        for (protocol, ends) in connections {
            (pods.inbound_live)
                .insert(tuple(*protocol, ends), live, 0)
                .context("writing the inbound_live map")?;
        }
        Ok(())
    }

    /// Returns the live mappings that netfilter does not have yet. Those between pods (hairpin) are
    /// left out: netfilter would not translate them in that way.
    ///
    /// # Errors
    /// Returns an error if the maps can't be read.
    pub fn pending_handovers(&self) -> Result<Vec<Handover>> {
        let local = self.local_addresses()?;
        let mut list = Vec::new();
        batch::for_each::<Tuple, Mapping>(&self.snat_data, |tuple, half| {
            let wire = tuple.reply_to(half.addr, half.id);
            if let Ok(reply) = self.rev_snat.get(&wire, 0)
                && reply.flags & MAPPING_HANDED_OVER == 0
                && !local.contains(&IpAddr::from(tuple.dst))
            {
                let flow = flow(tuple, half, &reply);
                list.push(Handover { flow, wire });
            }
        })
        .context("reading the snat map")?;
        Ok(list)
    }

    /// Returns the number of mappings that could not be handed over and had a packet within
    /// `within`.
    ///
    /// # Errors
    /// Returns an error if the maps can't be read.
    pub fn still_active(&self, within: std::time::Duration) -> Result<usize> {
        let now = now(self)?;
        let is_fresh =
            |half: &Mapping| u64::from(age(now, half.last_seen)) < ticks(within.as_secs());
        let mut still_active = 0;
        batch::for_each::<Tuple, Mapping>(&self.rev_snat_data, |_, half| {
            if half.flags & (MAPPING_HOST | MAPPING_HANDED_OVER) == 0 && is_fresh(half) {
                still_active += 1;
            }
        })
        .context("reading the rev_snat map")?;
        Ok(still_active)
    }

    /// Begins the handover: netfilter is about to translate the flow, and packets that it has
    /// translated may leave.
    ///
    /// # Errors
    /// Returns an error if the map can't be written.
    pub fn begin_handover(&mut self, handover: &Handover) -> Result<()> {
        self.mark(&handover.wire, MAPPING_HANDOVER_PENDING)
    }

    /// Completes the handover: netfilter translates the flow, and its replies are netfilter's.
    ///
    /// # Errors
    /// Returns an error if the map can't be written.
    pub fn complete_handover(&mut self, handover: &Handover) -> Result<()> {
        self.mark(
            &handover.wire,
            MAPPING_HANDOVER_PENDING | MAPPING_HANDED_OVER,
        )
    }

    /// Aborts the handover: netfilter does not take the flow, and the datapath goes on translating
    /// it.
    ///
    /// # Errors
    /// Returns an error if the map can't be written.
    pub fn abort_handover(&mut self, handover: &Handover) -> Result<()> {
        self.mark(&handover.wire, 0)
    }

    /// Writes the marks of a reply half. A packet that arrives at the same moment may go
    /// unrecorded.
    fn mark(&mut self, wire: &Tuple, marks: u16) -> Result<()> {
        let Ok(mut half) = self.rev_snat.get(wire, 0) else {
            return Ok(());
        };
        half.flags = half.flags & !(MAPPING_HANDOVER_PENDING | MAPPING_HANDED_OVER) | marks;
        // A mapping that has ended meanwhile is not created again.
        ignore_missing(self.rev_snat.insert(wire, half, EXIST))
            .context("marking a mapping as handed over")
    }
}

/// Returns the tuple of egress packets with these endpoints.
pub(super) fn tuple(protocol: u8, ends: &NfTuple) -> Tuple {
    let protocol = u32::from(protocol);
    let (source, destination) = (Addr::from(ends.source), Addr::from(ends.destination));
    match protocol {
        // An echo request: see `Tuple`.
        proto::ICMP | proto::ICMPV6 => Tuple::new(source, destination, ends.source_id, 0, protocol),
        _ => Tuple::new(
            source,
            destination,
            ends.source_id,
            ends.destination_id,
            protocol,
        ),
    }
}

fn flow(tuple: &Tuple, half: &Mapping, reply: &Mapping) -> Flow {
    let ends = |source: Addr, source_id| NfTuple {
        source: source.into(),
        destination: tuple.dst.into(),
        source_id,
        // An ICMP identifier stands on both sides.
        destination_id: if tuple.is_icmp() {
            source_id
        } else {
            tuple.dst_id
        },
    };
    let tcp = (tuple.proto == proto::TCP).then(|| match tcp_state(half.seen(), reply.seen()) {
        TcpState::SynSent => NfTcpState::Other(SYN_SENT),
        TcpState::TimeWait | TcpState::Closed => NfTcpState::Other(TIME_WAIT),
        TcpState::SynReceived
        | TcpState::Established
        | TcpState::HalfClosed
        | TcpState::Unreplied => NfTcpState::Established,
    });
    Flow {
        // Protocol numbers have eight bits.
        protocol: u8::try_from(tuple.proto).unwrap_or(u8::MAX),
        original: ends(tuple.src, tuple.src_id),
        reply: ends(half.addr, half.id).reversed(),
        answered: true,
        timeout: match (tuple.proto, tcp) {
            (_, Some(NfTcpState::Established)) => ESTABLISHED_SECONDS,
            (_, Some(NfTcpState::Other(_))) => OTHER_TCP_SECONDS,
            (proto::UDP, _) => UDP_SECONDS,
            _ => OTHER_SECONDS,
        },
        tcp,
        // The TCP window is unknown.
        picked_up: true,
    }
}
