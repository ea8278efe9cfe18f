//! Removal of what a pass has found: ended mappings, single halves, and evicted mappings.

use super::super::clock::now;
use super::super::replies::Replies;
use super::{Pass, decision};
use crate::datapath::EndedBy;
use crate::datapath::batch;
use crate::datapath::maps::Maps;
use crate::datapath::rule_counts::EndedTraffic;
use anyhow::{Context as _, Result};
use aya::maps::{HashMap as BpfHashMap, MapData};
use netdp_common::flow::{Carried, age, eviction_class, idle, ticks};
use netdp_common::layout::{
    Half, MAPPING_COUNTED_REPLY, MAPPING_HOST, MAPPING_PICKUP, Mapping, Tuple,
};
use netdp_common::sweep::EvictionTargets;

/// Mappings that are removed by one system call.
const REMOVED_AT_ONCE: usize = 256;

/// Mappings that are looked up once more before they are evicted: few, so that little time passes
/// in between.
const LOOKED_UP_AT_ONCE: usize = 32;

/// `BPF_NOEXIST` of include/uapi/linux/bpf.h.
const BPF_NOEXIST: u64 = 1;

impl Pass<'_> {
    /// Removes the mappings that have ended so far. Both halves go within a moment: a packet in
    /// between finds one of them. The entries of what was carried over go last: where that is not
    /// reached, the next full pass removes them. What the mappings had sent is added to their rules
    /// first: where the agent is killed in between, some of it counts twice, and none is lost.
    pub(super) fn remove_ended(&mut self, maps: &Maps) -> Result<()> {
        let policy = &mut self.policy;
        let added = maps.add_ended(&mut self.sent, |maps, destination| {
            Ok(decision(policy, maps, destination)?.rule)
        });
        // Mappings have to end, counted or not.
        if let Err(err) = added {
            log::warn!("counting for their rules what ended mappings had sent: {err:#}");
            self.sent = EndedTraffic::default();
        }
        self.teller.removing();
        let removed = self.remove_halves(maps);
        self.teller.tell(now(maps), removed.is_ok())?;
        removed?;
        maps.remove_traffic(&self.carried)?;
        self.carried.clear();
        Ok(())
    }

    fn remove_halves(&mut self, maps: &Maps) -> Result<()> {
        for ended in self.ended.chunks(REMOVED_AT_ONCE) {
            let (tuples, wires): (Vec<_>, Vec<_>) = ended.iter().copied().unzip();
            batch::remove(&maps.snat_data, &tuples).context("in the snat map")?;
            batch::remove(&maps.rev_snat_data, &wires).context("in the rev_snat map")?;
            self.freed.extend(wires);
        }
        self.ended.clear();
        Ok(())
    }

    /// Restores missing halves, and removes halves without a counterpart and evicted mappings.
    pub fn finish(&mut self, maps: &mut Maps, replies: &mut Replies) -> Result<()> {
        let mut over = std::mem::take(&mut replies.expired_reservations);
        // A packet of the node may have arrived since they were read.
        over.retain(|wire| {
            let half = maps.rev_snat.get(wire, 0);
            half.is_ok_and(|half| {
                half.flags & MAPPING_HOST != 0
                    && self.conditions.remaining(wire, &half, Some(&half)) == 0
            })
        });
        if !replies.is_empty() {
            over.extend(self.orphans(maps, replies)?);
        }
        self.stats.reservations = replies.reservations;
        for (tuple, wire, half) in self.torn.drain(..) {
            let repaired = restore_reply(&mut maps.rev_snat, &tuple, &wire, &half);
            self.stats.repaired += usize::from(repaired);
        }
        self.remove_ended(maps)?;
        batch::remove(&maps.rev_snat_data, &over).context("in the rev_snat map")?;
        let keys = over.iter().map(|wire| Half::Reply.traffic_key(wire));
        maps.remove_traffic(&keys.collect::<Vec<_>>())?;
        replies.carried.remove_others(maps)
    }

    /// Returns the reply halves without original half.
    fn orphans(&self, maps: &Maps, replies: &Replies) -> Result<Vec<Tuple>> {
        let mut orphans = Vec::new();
        let shortest = ticks(self.rules.timeouts.shortest());
        batch::for_each::<Tuple, Mapping>(&maps.rev_snat_data, |wire, half| {
            let idle = u64::from(age(self.conditions.now, half.last_seen));
            if idle >= shortest && half.flags & MAPPING_HOST == 0 && replies.has(wire) {
                let original = wire.answers(half.addr, half.id);
                if maps.snat.get(&original, 0).is_err() {
                    orphans.push(*wire);
                }
            }
        })
        .context("reading the rev_snat map")?;
        Ok(orphans)
    }

    /// Evicts evictable mappings down to the targets, the longest idle first. Established ones are
    /// never touched: a mapping that has become active since it was read stays.
    pub fn evict(&mut self, maps: &Maps, targets: &EvictionTargets) -> Result<()> {
        let chosen = std::mem::take(&mut self.evictable).choose(self.stats.live, targets);
        for some in chosen.chunks(LOOKED_UP_AT_ONCE) {
            if self.rules.stopped() {
                self.stats.stopped = true;
                break;
            }
            for candidate in some {
                let (tuple, wire) = (&candidate.tuple, &candidate.wire);
                let halves = (maps.snat.get(tuple, 0), maps.rev_snat.get(wire, 0));
                let (Ok(half), Ok(reply)) = halves else {
                    continue;
                };
                let idle = idle(self.conditions.now, half.last_seen, reply.last_seen);
                let carried = Carried::by(tuple, &half, Some(&reply));
                if eviction_class(&carried, idle) == Some(candidate.class) {
                    let why = (EndedBy::Room, true);
                    self.end(maps, (tuple, wire), &half, Some(&reply), why);
                    self.accounts.count_evicted(tuple, &half);
                    self.stats.live -= 1;
                    self.stats.evicted += 1;
                }
            }
            self.remove_ended(maps)?;
        }
        self.stats.pressure = true;
        Ok(())
    }
}

/// Restores a missing reply half. Returns `false` if another mapping has the tuple.
fn restore_reply(
    rev_snat: &mut BpfHashMap<MapData, Tuple, Mapping>,
    tuple: &Tuple,
    wire: &Tuple,
    half: &Mapping,
) -> bool {
    let reply = Mapping {
        addr: tuple.src,
        id: tuple.src_id,
        // The other bits of an original half have another meaning here.
        flags: half.flags & MAPPING_PICKUP | MAPPING_COUNTED_REPLY,
        tcp_ack: 0,
        tcp_seen: 0,
        epoch: 0,
        uplink: 0,
        traffic: 0,
        ..*half
    };
    rev_snat.insert(wire, reply, BPF_NOEXIST).is_ok()
}
