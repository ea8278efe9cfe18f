//! Counts of rules: `rule_hits`, the pairs of the bypass cache, what ended mappings had sent
//! (`rule_ended`), and what live ones have.
//!
//! Everything here belongs to the number of a rule. `crate::policy` makes counts of prefixes of it.

use super::entries::{Entries, NO_RULE};
use super::maps::{Maps, NOT_UP_TO_DATE};
use super::sweep::now;
use super::{batch, bpffs, history, policy};
use crate::limits;
use anyhow::{Context as _, Result};
use aya::maps::{Array, HashMap, Map, MapData};
use ipnet::IpNet;
use netdp_common::layout::{
    Addr, Half, Mapping, Pair, PolicyValue, RULE_HITS, RuleEnded, RuleHits, Traffic, Tuple,
    pair_index, pins, rule_index,
};
use netdp_common::packet::pair_slot;
use std::collections::{BTreeMap, HashMap as StdHashMap};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

/// Index in `rule_hits` of destinations for which no rule decides, and of rules whose number is too
/// high for an entry of their own.
pub(crate) const SHARED_INDEX: u32 = RULE_HITS - 1;

/// Serialises the additions to `rule_ended`: the sweeper's thread and the agent's loop end mappings.
static ADDING: Mutex<()> = Mutex::new(());

/// The maps of rules' counts.
pub(super) struct RuleMaps {
    hits: MapData,
    ended: HashMap<MapData, u32, RuleEnded>,
    /// A second handle, for batches.
    ended_data: MapData,
    pairs: Array<MapData, Pair>,
    /// A second handle, for batches.
    pairs_data: MapData,
    /// The number of slots of each CPU, as a power of two.
    pair_bits: u32,
}

impl RuleMaps {
    /// Opens the maps pinned below `bpffs`; `None` if the pins are of a version without them.
    ///
    /// # Errors
    /// Returns an error if a map can't be opened, or has another type or size.
    pub(super) fn open(bpffs: &Path) -> Result<Option<Self>> {
        let files = [pins::RULE_HITS, pins::RULE_ENDED, pins::BYPASS_CACHE];
        if !files.iter().all(|file| bpffs.join(file).exists()) {
            return Ok(None);
        }
        let pinned = |file: &str| bpffs::open_map(bpffs, file);
        let pairs: Array<_, Pair> = Map::Array(pinned(pins::BYPASS_CACHE)?).try_into()?;
        let of_cpu = u64::from(pairs.len()) / limits::cpus()?.max(1);
        Ok(Some(Self {
            hits: pinned(pins::RULE_HITS)?,
            ended: Map::HashMap(pinned(pins::RULE_ENDED)?).try_into()?,
            ended_data: pinned(pins::RULE_ENDED)?,
            pairs,
            pairs_data: pinned(pins::BYPASS_CACHE)?,
            pair_bits: of_cpu.max(1).ilog2(),
        }))
    }
}

impl RuleMaps {
    /// Calls `each` for the pairs in a slot, with the number of the CPU whose pair it is.
    fn for_each_in_slot(&self, slot: u32, mut each: impl FnMut(u32, &Pair)) -> Result<()> {
        for cpu in 0..self.pairs.len() >> self.pair_bits {
            let index = pair_index(cpu, self.pair_bits, slot);
            let pair = self.pairs.get(&index, 0);
            let pair = pair.context("reading the bypass_cache map")?;
            if pair.rule != 0 {
                each(cpu, &pair);
            }
        }
        Ok(())
    }

    /// Adds to entries of `rule_ended`.
    fn add(&self, sums: BTreeMap<u32, RuleEnded>) -> Result<()> {
        let _guard = ADDING.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut indexes, mut entries) = (Vec::new(), Vec::new());
        for (index, more) in sums {
            let mut entry = self.ended.get(&index, 0).unwrap_or_default();
            add_to(&mut entry, &more);
            indexes.push(index);
            entries.push(entry);
        }
        batch::update(&self.ended_data, &indexes, &entries).context("in the rule_ended map")?;
        Ok(())
    }
}

/// Counts of one number of a rule since the maps exist, without live mappings.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct RuleCount {
    /// Packets that left unmodified, and those that pods sent over mappings that have ended.
    pub traffic: Traffic,
    /// Mappings that began.
    pub flows: u64,
    /// Packets that left unmodified, and mappings that began: what has no time of its own.
    pub hits: u64,
    /// Time at which the last of these reached `rule_hits`, in ticks: those in pairs do so later.
    pub hit_at: Option<u32>,
    /// Time of the last packet over mappings that have ended, in ticks.
    pub sent_at: Option<u32>,
}

/// The counts of all rules, by index in `rule_hits`; zero ones are left out.
pub(crate) type RuleCounts = BTreeMap<u32, RuleCount>;

/// The hits of the pair of two addresses, by CPU and epoch: a pair of another epoch began anew.
pub(super) type PairHits = BTreeMap<(u32, u32), Traffic>;

/// The policy in force with the numbers of its rules. Cloning is cheap.
#[derive(Debug, Clone)]
pub(crate) struct NumberedPolicy {
    /// Number of policies that the maps have seen (wrapping).
    pub generation: u32,
    /// Time at which this agent put it in force, in ticks; `None` if another one did.
    pub since: Option<u32>,
    entries: Arc<Entries>,
}

impl NumberedPolicy {
    /// Creates a policy of masquerading rules: prefixes and numbers.
    #[cfg(test)]
    pub(crate) fn of(generation: u32, since: Option<u32>, rules: &[(&str, u32)]) -> Self {
        let entry = |&(prefix, rule): &(&str, u32)| {
            let value = PolicyValue {
                action: netdp_common::layout::Action::Masquerade as u32,
                rule,
            };
            let net: IpNet = prefix.parse().unwrap();
            (policy::prefix(&net), value)
        };
        Self {
            generation,
            since,
            entries: Arc::new(rules.iter().map(entry).collect()),
        }
    }

    /// Returns the prefixes of the rules, with action and number. Destinations outside all of them
    /// are decided about by no rule.
    pub(crate) fn rules(&self) -> impl Iterator<Item = (IpNet, PolicyValue)> {
        let entries = history::without_history(&self.entries);
        let rules: Vec<_> = entries
            .iter()
            .filter(|(_, value)| value.rule != NO_RULE)
            .map(|&((len, addr), value)| (policy::to_net(len, addr), value))
            .collect();
        rules.into_iter()
    }
}

/// Translated packets of destinations, to be added to `rule_ended`.
#[derive(Debug, Default)]
pub(super) struct EndedTraffic(StdHashMap<Addr, RuleEnded>);

impl EndedTraffic {
    /// Adds what a mapping has sent that is about to end.
    pub(super) fn add(&mut self, maps: &Maps, tuple: &Tuple, half: &Mapping) {
        let sum = self.0.entry(tuple.dst).or_default();
        add_ended(sum, &maps.sent(tuple, half), half.last_seen);
    }
}

fn add_ended(sum: &mut RuleEnded, sent: &Traffic, last: u32) {
    let is_later = sum.sent.is_zero() || last.wrapping_sub(sum.last).cast_signed() > 0;
    sum.sent.add(sent);
    if is_later {
        sum.last = last;
    }
}

/// Adds what has been collected to what an entry has.
fn add_to(entry: &mut RuleEnded, more: &RuleEnded) {
    if !more.sent.is_zero() {
        add_ended(entry, &more.sent, more.last);
    }
    entry.own.add(&more.own);
    entry.own_flows = entry.own_flows.wrapping_add(more.own_flows);
}

/// Calls `each` for every pair of the bypass cache that is in use, of each CPU.
///
/// # Errors
/// Returns an error if the map can't be read.
pub(super) fn each_pair(pairs: &MapData, mut each: impl FnMut(&Pair)) -> Result<()> {
    batch::for_each::<u32, Pair>(pairs, |_, pair| {
        if pair.rule != 0 {
            each(pair);
        }
    })
    .context("reading the bypass_cache map")
}

impl Maps {
    /// Returns what the pod has sent over a mapping; of one that an earlier version has begun, the
    /// bytes since the upgrade.
    fn sent(&self, tuple: &Tuple, half: &Mapping) -> Traffic {
        let (packets, bytes) = self.traffic(Half::Original, tuple, half);
        Traffic {
            packets,
            bytes: bytes.unwrap_or_default(),
        }
    }

    /// Returns the policy in force with the numbers of its rules.
    ///
    /// # Errors
    /// Returns an error if the maps can't be read.
    pub(crate) fn numbered_policy(&self) -> Result<NumberedPolicy> {
        Ok(NumberedPolicy {
            generation: self.settings()?.generation,
            since: self.swapped_at,
            entries: self.active_policy()?,
        })
    }

    /// Returns a number that identifies the maps until the next boot: of others counts are not
    /// continued.
    ///
    /// # Errors
    /// Returns an error if the pins are of an earlier version, or the kernel does not tell.
    pub(crate) fn counts_id(&self) -> Result<u32> {
        let info = self.rule_maps()?.hits.info();
        Ok(info.context("querying the rule_hits map")?.id())
    }

    /// Calls `each` for every pair of the bypass cache that is in use, of each CPU.
    ///
    /// # Errors
    /// Returns an error if the map can't be read.
    pub(crate) fn for_each_pair(&self, each: impl FnMut(&Pair)) -> Result<()> {
        each_pair(&self.rule_maps()?.pairs_data, each)
    }

    /// Returns the packets from `pod` to `peer` that hit their pair and are not in `rule_hits` yet, by
    /// CPU and the epoch of the pair.
    ///
    /// # Errors
    /// Returns an error if the map can't be read.
    pub(super) fn pair_hits(&self, pod: &Addr, peer: &Addr) -> Result<PairHits> {
        let maps = self.rule_maps()?;
        let mut hits = PairHits::new();
        let slot = pair_slot(pod, peer, maps.pair_bits);
        maps.for_each_in_slot(slot, |cpu, pair| {
            if pair.pod.is_same(pod) && pair.peer.is_same(peer) {
                hits.insert((cpu, pair.epoch), pair.hits);
            }
        })?;
        Ok(hits)
    }

    /// Returns what all rules have counted. A hit that moves from a pair to its rule meanwhile may
    /// be missing, and is there the next time; none counts twice.
    ///
    /// # Errors
    /// Returns an error if a map can't be read.
    pub(crate) fn rule_counts(&self) -> Result<RuleCounts> {
        let maps = self.rule_maps()?;
        let mut counts = RuleCounts::new();
        // Before the pairs: their hits move here.
        batch::for_each::<u32, RuleHits>(&maps.hits, |index, hits| {
            if !hits.bypassed.is_zero() || hits.flows != 0 {
                let count = RuleCount {
                    traffic: hits.bypassed,
                    flows: hits.flows,
                    hits: hits.bypassed.packets.wrapping_add(hits.flows),
                    hit_at: Some(hits.last),
                    sent_at: None,
                };
                counts.insert(*index, count);
            }
        })
        .context("reading the rule_hits map")?;
        self.for_each_pair(|pair| {
            if !pair.hits.is_zero() {
                let count = counts.entry(pair.rule - 1).or_default();
                count.traffic.add(&pair.hits);
                count.hits = count.hits.wrapping_add(pair.hits.packets);
            }
        })?;
        batch::for_each::<u32, RuleEnded>(&maps.ended_data, |index, ended| {
            let own_hits = ended.own.packets.wrapping_add(ended.own_flows);
            let count = counts.entry(*index).or_default();
            count.traffic.subtract(&ended.own);
            count.flows = count.flows.wrapping_sub(ended.own_flows);
            count.hits = count.hits.wrapping_sub(own_hits);
            count.traffic.add(&ended.sent);
            if !ended.sent.is_zero() {
                count.sent_at = Some(ended.last);
            }
        })
        .context("reading the rule_ended map")?;
        Ok(counts)
    }

    /// Calls `each` for every live mapping with its original half and what the pod has sent.
    ///
    /// # Errors
    /// Returns an error if the map can't be read.
    pub(crate) fn for_each_sent(
        &self,
        mut each: impl FnMut(&Tuple, &Mapping, Traffic),
    ) -> Result<()> {
        batch::for_each::<Tuple, Mapping>(&self.snat_data, |tuple, half| {
            each(tuple, half, self.sent(tuple, half));
        })
        .context("reading the snat map")
    }

    /// Adds what ended mappings had sent to the rules that decide about their destinations. To be
    /// called before the mappings are removed, so that no crash loses it. `rule`: returns the number
    /// of the rule for a destination.
    ///
    /// # Errors
    /// Returns an error if the map can't be read or written.
    pub(super) fn add_ended(
        &self,
        ended: &mut EndedTraffic,
        mut rule: impl FnMut(&Self, Addr) -> Result<u32>,
    ) -> Result<()> {
        // Pins of an earlier version have no such map until an agent has opened them.
        let Some(maps) = &self.rules else {
            ended.0.clear();
            return Ok(());
        };
        if ended.0.is_empty() {
            return Ok(());
        }
        let mut sums: BTreeMap<u32, RuleEnded> = BTreeMap::new();
        for (destination, more) in ended.0.drain() {
            let index = rule_index(rule(self, destination)?);
            add_to(sums.entry(index).or_default(), &more);
        }
        maps.add(sums)
    }

    /// Records what a test packet to `destination` has added to the counts of its rule: a packet that
    /// passed, or new flows.
    ///
    /// # Errors
    /// Returns an error if a map can't be read or written.
    pub(super) fn add_own(&self, destination: &Addr, own: Traffic, own_flows: u64) -> Result<()> {
        let Some(maps) = &self.rules else {
            return Ok(());
        };
        let index = rule_index(self.decision(destination)?.rule);
        let more = RuleEnded {
            own,
            own_flows,
            ..RuleEnded::default()
        };
        maps.add([(index, more)].into())
    }

    /// Returns the datapath's clock, in ticks.
    ///
    /// # Errors
    /// Returns an error if the clock or the settings can't be read.
    pub(crate) fn ticks(&self) -> Result<u32> {
        now(self)
    }

    fn rule_maps(&self) -> Result<&RuleMaps> {
        self.rules.as_ref().context(NOT_UP_TO_DATE)
    }
}
