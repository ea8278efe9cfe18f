//! Ends mappings whose time has come, and lists those that live.
//!
//! A mapping's time is the later of what its two halves saw. Whatever is swept
//! had been silent for its whole timeout: no live flow is ever collected.

use super::batch;
use super::maps::{Maps, ignore_missing};
use anyhow::{Context as _, Result};
use aya::maps::{HashMap, MapData};
use netdp_common::abi::{MAPPING_HOST, Mapping};
use netdp_common::addr::Addr;
use netdp_common::conntrack::{TICK_SHIFT, Timeouts, age, expired, tcp_state, ticks};
use netdp_common::tuple::{Tuple, proto};
use serde::Serialize;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::os::fd::AsFd as _;

/// What a sweep found and did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Swept {
    /// Mappings that live on.
    pub live: usize,
    /// Mappings that ended by time.
    pub expired: usize,
    /// Mappings that ended because their node address is gone.
    pub address_gone: usize,
    /// Mappings of which one half was missing and was made again.
    pub repaired: usize,
    /// Tuples that are reserved for the node's own flows.
    pub host: usize,
}

/// A live mapping.
#[derive(Debug, Clone, Serialize)]
pub struct FlowRecord {
    /// Protocol name, or number.
    pub protocol: String,
    /// The pod's address.
    pub source: IpAddr,
    /// The pod's port or ICMP identifier.
    pub source_id: u16,
    /// The destination.
    pub destination: IpAddr,
    /// The destination's port.
    pub destination_id: u16,
    /// The node's address that the destination sees.
    pub nat_address: IpAddr,
    /// The port or identifier that the destination sees.
    pub nat_id: u16,
    /// TCP state, `replied` or `unreplied`.
    pub state: String,
    /// Seconds since it began.
    pub age_seconds: u64,
    /// Seconds since its last packet in either direction.
    pub idle_seconds: u64,
    /// Packets out.
    pub packets_out: u32,
    /// Packets back.
    pub packets_in: u32,
}

/// The datapath's clock now, in ticks.
fn now(maps: &Maps) -> Result<u32> {
    let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC)
        .context("reading the monotonic clock")?;
    let nanos = i128::from(time.tv_sec()) * 1_000_000_000 + i128::from(time.tv_nsec());
    // Ticks wrap by design.
    let ticks = (nanos >> TICK_SHIFT) & i128::from(u32::MAX);
    Ok(u32::try_from(ticks)?.wrapping_add(maps.settings()?.clock_offset))
}

/// Goes once through all mappings. See [`super::Datapath::sweep`].
pub fn sweep(maps: &mut Maps, timeouts: &Timeouts, local: &BTreeSet<IpAddr>) -> Result<Swept> {
    let now = now(maps)?;
    let local: BTreeSet<Addr> = local.iter().copied().map(Addr::from).collect();
    let mut swept = Swept::default();
    let mut ended = Vec::new();
    let mut torn = Vec::new();
    batch::for_each::<Tuple, Mapping>(maps.snat_data.fd().as_fd(), |tuple, half| {
        let wire = tuple.reply_to(half.addr, half.id);
        let gone = !local.contains(&half.addr);
        // Below the shortest timeout nothing else need be known.
        if !gone && u64::from(age(now, half.last_seen)) < ticks(timeouts.shortest()) {
            swept.live += 1;
            return;
        }
        let reply = maps.rev_snat.get(&wire, 0).ok();
        if gone {
            swept.address_gone += 1;
            ended.push((*tuple, wire));
        } else if is_over(now, timeouts, tuple, half, reply.as_ref()) {
            swept.expired += 1;
            ended.push((*tuple, wire));
        } else {
            swept.live += 1;
            if reply.is_none() {
                torn.push((*tuple, wire, *half));
            }
        }
    })
    .context("reading the snat map")?;
    let mut orphans = Vec::new();
    batch::for_each::<Tuple, Mapping>(maps.rev_snat_data.fd().as_fd(), |wire, half| {
        let host = half.flags & MAPPING_HOST != 0;
        if u64::from(age(now, half.last_seen)) < ticks(timeouts.shortest()) {
            swept.host += usize::from(host);
            return;
        }
        let over = if host {
            is_over(now, timeouts, wire, half, Some(half))
        } else {
            let original = Tuple::new(half.addr, wire.src, half.id, wire.src_id, wire.proto);
            maps.snat.get(&original, 0).is_err()
        };
        if over {
            orphans.push(*wire);
        } else {
            swept.host += usize::from(host);
        }
    })
    .context("reading the rev_snat map")?;
    for (tuple, wire, half) in torn {
        swept.repaired += usize::from(repair(&mut maps.rev_snat, &tuple, &wire, &half)?);
    }
    for (tuple, wire) in &ended {
        remove(&mut maps.snat, tuple)?;
        remove(&mut maps.rev_snat, wire)?;
    }
    for wire in &orphans {
        remove(&mut maps.rev_snat, wire)?;
    }
    Ok(swept)
}

fn is_over(
    now: u32,
    timeouts: &Timeouts,
    tuple: &Tuple,
    original: &Mapping,
    reply: Option<&Mapping>,
) -> bool {
    let (seen, replied, reply_seen) = match reply {
        Some(reply) => (reply.tcp_seen, reply.packets > 0, reply.last_seen),
        None => (0, false, original.last_seen),
    };
    let timeout = timeouts.of(tuple.proto, original.tcp_seen, seen, replied);
    expired(now, original.last_seen, reply_seen, timeout)
}

/// Makes a missing reply half again; false if another mapping has the tuple.
fn repair(
    rev_snat: &mut HashMap<MapData, Tuple, Mapping>,
    tuple: &Tuple,
    wire: &Tuple,
    half: &Mapping,
) -> Result<bool> {
    const BPF_NOEXIST: u64 = 1;
    let reply = Mapping {
        addr: tuple.src,
        id: tuple.src_id,
        tcp_ack: 0,
        tcp_seen: 0,
        packets: 0,
        ..*half
    };
    Ok(rev_snat.insert(wire, reply, BPF_NOEXIST).is_ok())
}

fn remove(map: &mut HashMap<MapData, Tuple, Mapping>, tuple: &Tuple) -> Result<()> {
    ignore_missing(map.remove(tuple)).with_context(|| format!("removing the mapping {tuple:?}"))
}

impl Maps {
    /// Every live mapping.
    ///
    /// # Errors
    /// A map could not be read.
    pub fn flows(&self) -> Result<Vec<FlowRecord>> {
        let now = now(self)?;
        let mut flows = Vec::new();
        batch::for_each::<Tuple, Mapping>(self.snat_data.fd().as_fd(), |tuple, half| {
            let reply = self.rev_snat.get(&tuple.reply_to(half.addr, half.id), 0);
            flows.push(record(now, tuple, half, reply.ok().as_ref()));
        })
        .context("reading the snat map")?;
        flows.sort_by_key(|flow| (flow.source, flow.destination, flow.source_id));
        Ok(flows)
    }

    /// How many mappings there are.
    ///
    /// # Errors
    /// The map could not be read.
    pub fn flow_count(&self) -> Result<usize> {
        let mut count = 0;
        batch::for_each::<Tuple, Mapping>(self.snat_data.fd().as_fd(), |_, _| count += 1)
            .context("reading the snat map")?;
        Ok(count)
    }
}

fn record(now: u32, tuple: &Tuple, half: &Mapping, reply: Option<&Mapping>) -> FlowRecord {
    let packets_in = reply.map_or(0, |reply| reply.packets);
    let seen = reply.map_or(0, |reply| reply.tcp_seen);
    let idle = age(now, half.last_seen).min(reply.map_or(u32::MAX, |r| age(now, r.last_seen)));
    let state = match tuple.proto {
        proto::TCP => format!("{:?}", tcp_state(half.tcp_seen, seen)),
        _ if packets_in > 0 => "replied".into(),
        _ => "unreplied".into(),
    };
    FlowRecord {
        protocol: match tuple.proto {
            proto::TCP => "tcp".into(),
            proto::UDP => "udp".into(),
            proto::ICMP => "icmp".into(),
            proto::ICMPV6 => "icmpv6".into(),
            other => other.to_string(),
        },
        source: tuple.src.into(),
        source_id: tuple.src_id,
        destination: tuple.dst.into(),
        destination_id: tuple.dst_id,
        nat_address: half.addr.into(),
        nat_id: half.id,
        state,
        age_seconds: seconds(age(now, half.created)),
        idle_seconds: seconds(idle),
        packets_out: half.packets,
        packets_in,
    }
}

fn seconds(ticks: u32) -> u64 {
    (u64::from(ticks) << TICK_SHIFT) / 1_000_000_000
}
