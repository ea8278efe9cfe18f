//! Remaining lifetime of a mapping, from its two halves.

use anyhow::Result;
use aya::maps::{HashMap, MapData};
use netdp_common::flow::{self, Carried, Timeouts};
use netdp_common::layout::{Mapping, Tuple};

/// Decision on one mapping: keep it, or end it for a reason.
pub enum Fate {
    /// It lives for at least so many ticks, unless a packet changes it; not computed exactly beyond
    /// the horizon.
    Lives(u64),
    Expired,
    AddressGone,
    Retired,
}

/// Returns the remaining lifetime of a mapping without further packets, in ticks; 0: it has timed
/// out.
pub fn left(
    now: u32,
    timeouts: &Timeouts,
    tuple: &Tuple,
    original: &Mapping,
    reply: Option<&Mapping>,
) -> u64 {
    let timeout = timeouts.of(&Carried::by(tuple, original, reply));
    let reply_seen = reply.unwrap_or(original).last_seen;
    flow::left(now, original.last_seen, reply_seen, timeout)
}

/// Restores a missing reply half. Returns `false` if another mapping has the tuple.
pub fn repair(
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
        epoch: 0,
        uplink: 0,
        packets: 0,
        ..*half
    };
    Ok(rev_snat.insert(wire, reply, BPF_NOEXIST).is_ok())
}
