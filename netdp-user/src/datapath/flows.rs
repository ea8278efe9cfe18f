//! Live mappings one by one, for diagnosis.

use super::batch;
use super::join::ReplyHalves;
use super::maps::Maps;
use super::sweep::now;
use anyhow::{Context as _, Result};
use netdp_common::flow::{TICK_SHIFT, TcpState, age, tcp_state};
use netdp_common::layout::{Addr, Half, Mapping, Tuple, proto};
use serde::Serialize;
use std::net::IpAddr;

/// State of a mapping, as both halves tell it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
#[value(rename_all = "verbatim")]
pub enum FlowState {
    /// TCP: the pod sent a SYN; there was no reply.
    SynSent,
    /// TCP: both sent a SYN; the pod has not acknowledged.
    SynReceived,
    /// TCP: both directions can carry data.
    Established,
    /// TCP: one side has sent a FIN.
    HalfClosed,
    /// TCP: both sides have sent a FIN.
    TimeWait,
    /// TCP: a RST ended it.
    Closed,
    /// Another protocol, with a packet from the peer.
    #[value(name = "replied")]
    Replied,
    /// No packet from the peer; TCP: picked up in mid-stream.
    #[value(name = "unreplied")]
    Unreplied,
}

impl FlowState {
    /// Returns the state for the `SEEN_*` bits of both halves.
    const fn of(protocol: u32, original: u32, reply: u32, packets_in: u64) -> Self {
        if protocol != proto::TCP {
            return if packets_in > 0 {
                Self::Replied
            } else {
                Self::Unreplied
            };
        }
        match tcp_state(original, reply) {
            TcpState::SynSent => Self::SynSent,
            TcpState::SynReceived => Self::SynReceived,
            TcpState::Established => Self::Established,
            TcpState::Unreplied => Self::Unreplied,
            TcpState::HalfClosed => Self::HalfClosed,
            TcpState::TimeWait => Self::TimeWait,
            TcpState::Closed => Self::Closed,
        }
    }
}

/// A live mapping, joined from its halves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flow {
    /// The tuple of the pod's packets.
    pub tuple: Tuple,
    /// Address of the node that the destination sees.
    pub nat_address: Addr,
    /// The port or identifier that the destination sees.
    pub nat_id: u16,
    /// Lower bits of the index of the interface by which the pod's packets leave; 0 if unknown.
    pub uplink: u16,
    /// State.
    pub state: FlowState,
    /// Ticks since the mapping was created.
    pub age: u32,
    /// Ticks since the last packet in either direction.
    pub idle: u32,
    /// Number of packets sent by the pod.
    pub packets_out: u64,
    /// Number of packets sent to the pod.
    pub packets_in: u64,
    /// Bytes of the packets sent by the pod; `None` if they were not counted.
    pub bytes_out: Option<u64>,
    /// Bytes of the packets sent to the pod; `None` if they were not counted.
    pub bytes_in: Option<u64>,
}

impl Flow {
    /// Returns the bytes of both directions, as far as they were counted.
    pub fn bytes(&self) -> u64 {
        self.bytes_out.unwrap_or(0) + self.bytes_in.unwrap_or(0)
    }

    /// Returns the packets of both directions.
    pub const fn packets(&self) -> u64 {
        self.packets_out + self.packets_in
    }

    /// Returns the name of the state.
    pub fn state_name(&self) -> String {
        match self.state {
            FlowState::Replied => "replied".into(),
            FlowState::Unreplied if self.tuple.proto != proto::TCP => "unreplied".into(),
            state => format!("{state:?}"),
        }
    }

    /// Returns the mapping in the form for programs.
    pub fn record(&self) -> FlowRecord {
        FlowRecord {
            protocol: protocol_name(self.tuple.proto),
            source: self.tuple.src.into(),
            source_id: self.tuple.src_id,
            destination: self.tuple.dst.into(),
            destination_id: self.tuple.dst_id,
            nat_address: self.nat_address.into(),
            nat_id: self.nat_id,
            state: self.state_name(),
            age_seconds: seconds(self.age),
            idle_seconds: seconds(self.idle),
            packets_out: self.packets_out,
            packets_in: self.packets_in,
            bytes_out: self.bytes_out,
            bytes_in: self.bytes_in,
        }
    }
}

/// A live mapping, as `netdp flows` prints it for programs.
#[derive(Debug, Clone, Serialize)]
pub struct FlowRecord {
    /// Protocol name, or number.
    pub protocol: String,
    /// Address of the pod.
    pub source: IpAddr,
    /// The pod's port or ICMP identifier.
    pub source_id: u16,
    /// Address of the destination.
    pub destination: IpAddr,
    /// Port of the destination.
    pub destination_id: u16,
    /// Address of the node that the destination sees.
    pub nat_address: IpAddr,
    /// The port or identifier that the destination sees.
    pub nat_id: u16,
    /// TCP state, `replied` or `unreplied`.
    pub state: String,
    /// Seconds since the mapping was created.
    pub age_seconds: u64,
    /// Seconds since the last packet in either direction.
    pub idle_seconds: u64,
    /// Number of packets sent by the pod.
    pub packets_out: u64,
    /// Number of packets sent to the pod.
    pub packets_in: u64,
    /// Bytes of the packets sent by the pod; absent if an earlier version began the mapping and the
    /// pod has sent nothing since the upgrade.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_out: Option<u64>,
    /// Bytes of the packets sent to the pod; absent if an earlier version began the mapping and
    /// nothing was sent to the pod since the upgrade.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_in: Option<u64>,
}

impl Maps {
    /// Calls `each` for every live mapping whose original half `is_wanted`, in no order. Mappings
    /// that begin or end meanwhile may be included or not.
    ///
    /// # Errors
    /// Returns an error if a map can't be read, and any error of `each`.
    pub(crate) fn for_each_flow(
        &self,
        is_wanted: impl Fn(&Tuple, &Mapping) -> bool,
        mut each: impl FnMut(&Flow) -> Result<()>,
    ) -> Result<()> {
        let now = now(self)?;
        let mut replies = ReplyHalves::new(self);
        batch::for_each_batch::<Tuple, Mapping>(&self.snat_data, |tuples, halves| {
            for (tuple, half) in tuples.iter().zip(halves) {
                if is_wanted(tuple, half) {
                    each(&self.join(now, tuple, half, &mut replies)?)?;
                }
            }
            Ok(())
        })
        .context("reading the mappings")
    }

    /// Returns every live mapping.
    ///
    /// # Errors
    /// Returns an error if a map can't be read.
    pub fn flows(&self) -> Result<Vec<FlowRecord>> {
        let mut flows = Vec::new();
        self.for_each_flow(
            |_, _| true,
            |flow| {
                flows.push(flow.record());
                Ok(())
            },
        )?;
        flows.sort_by_key(|flow| (flow.source, flow.destination, flow.source_id));
        Ok(flows)
    }

    /// Returns the number of mappings.
    ///
    /// # Errors
    /// Returns an error if the map can't be read.
    pub fn flow_count(&self) -> Result<usize> {
        let mut count = 0;
        batch::for_each::<Tuple, Mapping>(&self.snat_data, |_, _| count += 1)
            .context("reading the snat map")?;
        Ok(count)
    }

    fn join(
        &self,
        now: u32,
        tuple: &Tuple,
        half: &Mapping,
        replies: &mut ReplyHalves<'_>,
    ) -> Result<Flow> {
        let wire = tuple.reply_to(half.addr, half.id);
        let (packets_out, bytes_out) = self.traffic(Half::Original, tuple, half);
        let reply = replies.get(&wire)?;
        let (packets_in, bytes_in) =
            reply.map_or((0, None), |reply| self.traffic(Half::Reply, &wire, &reply));
        let seen = reply.map_or(0, |reply| reply.seen());
        let idle = age(now, half.last_seen).min(reply.map_or(u32::MAX, |r| age(now, r.last_seen)));
        Ok(Flow {
            tuple: *tuple,
            nat_address: half.addr,
            nat_id: half.id,
            uplink: half.uplink,
            state: FlowState::of(tuple.proto, half.seen(), seen, packets_in),
            age: age(now, half.created),
            idle,
            packets_out,
            packets_in,
            bytes_out,
            bytes_in,
        })
    }
}

/// Converts ticks to seconds.
pub(crate) fn seconds(ticks: u32) -> u64 {
    (u64::from(ticks) << TICK_SHIFT) / 1_000_000_000
}

/// Returns a protocol's name, or its number.
pub(crate) fn protocol_name(number: u32) -> String {
    match number {
        proto::TCP => "tcp".into(),
        proto::UDP => "udp".into(),
        proto::ICMP => "icmp".into(),
        proto::ICMPV6 => "icmpv6".into(),
        other => other.to_string(),
    }
}
