//! The list of live mappings, for diagnosis.

use super::batch;
use super::maps::Maps;
use super::sweep::now;
use anyhow::{Context as _, Result};
use netdp_common::flow::{TICK_SHIFT, age, tcp_state};
use netdp_common::layout::{Half, Mapping, Tuple, proto};
use serde::Serialize;
use std::net::IpAddr;

/// A live mapping, as listed by `netdp flows`.
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
    /// Returns every live mapping.
    ///
    /// # Errors
    /// Returns an error if a map can't be read.
    pub fn flows(&self) -> Result<Vec<FlowRecord>> {
        let now = now(self)?;
        let mut flows = Vec::new();
        batch::for_each::<Tuple, Mapping>(&self.snat_data, |tuple, half| {
            flows.push(self.record(now, tuple, half));
        })
        .context("reading the snat map")?;
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

    fn record(&self, now: u32, tuple: &Tuple, half: &Mapping) -> FlowRecord {
        let wire = tuple.reply_to(half.addr, half.id);
        let reply = self.rev_snat.get(&wire, 0).ok();
        let (packets_out, bytes_out) = self.traffic(Half::Original, tuple, half);
        let (packets_in, bytes_in) =
            reply.map_or((0, None), |reply| self.traffic(Half::Reply, &wire, &reply));
        let seen = reply.map_or(0, |reply| reply.seen());
        let idle = age(now, half.last_seen).min(reply.map_or(u32::MAX, |r| age(now, r.last_seen)));
        let state = match tuple.proto {
            proto::TCP => format!("{:?}", tcp_state(half.seen(), seen)),
            _ if packets_in > 0 => "replied".into(),
            _ => "unreplied".into(),
        };
        FlowRecord {
            protocol: protocol_name(tuple.proto),
            source: tuple.src.into(),
            source_id: tuple.src_id,
            destination: tuple.dst.into(),
            destination_id: tuple.dst_id,
            nat_address: half.addr.into(),
            nat_id: half.id,
            state,
            age_seconds: seconds(age(now, half.created)),
            idle_seconds: seconds(idle),
            packets_out,
            packets_in,
            bytes_out,
            bytes_in,
        }
    }
}

fn seconds(ticks: u32) -> u64 {
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
