//! One pass through the mappings.

mod removal;

use super::accounts::Accounts;
use super::eviction::Candidates;
use super::replies::Replies;
use super::stale::StaleMappings;
use super::tally::Tally;
use super::{SweepRules, SweepStats};
use crate::datapath::batch;
use crate::datapath::mapping_log::{SharedLog, Teller};
use crate::datapath::maps::Maps;
use crate::datapath::rule_counts::EndedTraffic;
use crate::datapath::{EndedBy, EndedMapping};
use anyhow::{Context as _, Result};
use netdp_common::flow::{Carried, age, idle, ticks};
use netdp_common::layout::{Action, Addr, Half, MAPPING_HOST, Mapping, PolicyValue, Secret, Tuple};
use netdp_common::sweep::{Compared, Conditions, Disposition, ExternalAddress};
use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::atomic::Ordering;

pub struct Pass<'a> {
    pub conditions: Conditions,
    local: BTreeSet<Addr>,
    rules: &'a SweepRules,
    /// Cache of the policy's entry, by destination.
    policy: HashMap<Addr, PolicyValue>,
    pub stats: SweepStats,
    ended: Vec<(Tuple, Tuple)>,
    /// The keys in `traffic` of their halves.
    carried: Vec<Tuple>,
    /// Traffic that pods had sent over them.
    sent: EndedTraffic,
    /// Original halves without reply half.
    torn: Vec<(Tuple, Tuple, Mapping)>,
    /// Live mappings that may end before the horizon, with the ticks until then.
    pub due: Vec<(u32, Tuple)>,
    /// Mappings that the policy would not create, if any.
    pub stale: StaleMappings,
    evictable: Candidates,
    /// Shares of the pods.
    accounts: Accounts,
    /// Wire tuples that have become free.
    freed: Vec<Tuple>,
    /// Counts for metrics, if they are wanted.
    pub tally: Option<Tally>,
    /// What is told of mappings.
    teller: Teller,
}

impl<'a> Pass<'a> {
    pub fn new(now: u32, secret: Secret, rules: &'a SweepRules, horizon: u64) -> Self {
        Self {
            conditions: Conditions {
                now,
                timeouts: rules.timeouts,
                retire_after: rules.retire_after.map(|after| ticks(after.as_secs())),
                horizon,
                scheduled_before: None,
                compared: Compared::BeforeHorizon,
            },
            local: rules.local.iter().copied().map(Addr::from).collect(),
            rules,
            policy: HashMap::new(),
            stats: SweepStats::default(),
            ended: Vec::new(),
            carried: Vec::new(),
            sent: EndedTraffic::default(),
            torn: Vec::new(),
            due: Vec::new(),
            stale: StaleMappings::default(),
            evictable: Candidates::default(),
            accounts: Accounts::new(secret),
            freed: Vec::new(),
            tally: None,
            teller: Teller::default(),
        }
    }

    /// Tells `log`, if there is one, which mappings live and which end.
    pub fn telling(mut self, log: Option<&SharedLog>) -> Self {
        self.teller = Teller::new(log);
        self
    }

    /// Restarts the pass to collect mappings to evict. Counts of ended mappings are kept.
    pub fn restart_to_evict(self) -> Self {
        let Conditions { now, horizon, .. } = self.conditions;
        let mut pass = Self {
            stats: SweepStats {
                live: 0,
                ..self.stats
            },
            freed: self.freed,
            tally: self.tally.map(Tally::restart),
            accounts: self.accounts.restart(),
            teller: self.teller,
            ..Self::new(now, Secret::default(), self.rules, horizon)
        };
        pass.conditions.compared = Compared::All;
        pass
    }

    const fn evicts(&self) -> bool {
        matches!(self.conditions.compared, Compared::All)
    }

    /// Reads all reply halves that affect a decision.
    pub fn read_replies(&mut self, maps: &Maps) -> Result<Replies> {
        let (conditions, tally) = (&self.conditions, &mut self.tally);
        let mut replies = Replies::default();
        batch::for_each::<Tuple, Mapping>(&maps.rev_snat_data, |wire, half| {
            let idle = u64::from(age(conditions.now, half.last_seen));
            replies.carried.note(Half::Reply, wire, half);
            if half.flags & MAPPING_HOST != 0 {
                if conditions.remaining(wire, half, Some(half)) == 0 {
                    replies.expired_reservations.push(*wire);
                } else {
                    replies.reservations += 1;
                }
                return;
            }
            if let Some(tally) = tally {
                tally.add_reply(maps, wire, half);
            }
            if idle >= conditions.min_idle(wire.proto) {
                replies.insert(wire, half);
            }
        })
        .context("reading the rev_snat map")?;
        Ok(replies)
    }

    /// Scans every original half. Ended ones are removed with their reply halves, batch by batch.
    pub fn scan_originals(&mut self, maps: &Maps, replies: &mut Replies) -> Result<()> {
        let snat = &maps.snat_data;
        let before = maps.shares()?;
        batch::for_each_batch::<Tuple, Mapping>(snat, |tuples, halves| {
            if self.rules.stopped() {
                self.stats.stopped = true;
                return Ok(());
            }
            for (tuple, half) in tuples.iter().zip(halves) {
                self.scan_original(maps, replies, tuple, half)?;
            }
            self.remove_ended(maps)
        })
        .context("walking the snat map")?;
        self.accounts.set_opened(maps, &before)
    }

    fn scan_original(
        &mut self,
        maps: &Maps,
        replies: &mut Replies,
        tuple: &Tuple,
        half: &Mapping,
    ) -> Result<()> {
        replies.carried.note(Half::Original, tuple, half);
        let wire = tuple.reply_to(half.addr, half.id);
        let read = replies.take(&wire, half);
        let mut looked_up = None;
        let mut disposition = self.disposition(maps, tuple, half, || {
            read.or_else(|| *looked_up.insert(maps.rev_snat.get(&wire, 0).ok()))
        })?;
        if let (Disposition::Expired, Some(_)) = (disposition, read) {
            // A packet may have arrived since it was read.
            disposition = self.disposition(maps, tuple, half, || {
                *looked_up.insert(maps.rev_snat.get(&wire, 0).ok())
            })?;
        }
        let reply = looked_up.flatten().or(read);
        self.record(maps, disposition, tuple, &wire, half, reply);
        let Disposition::Keep(remaining) = disposition else {
            return Ok(());
        };
        if remaining <= self.conditions.horizon {
            self.add_due(remaining, tuple);
        }
        if read.is_none() && looked_up == Some(None) {
            self.torn.push((*tuple, wire, *half));
        }
        if self.evicts()
            && let Some(reply) = read.or_else(|| maps.rev_snat.get(&wire, 0).ok())
        {
            let idle = idle(self.conditions.now, half.last_seen, reply.last_seen);
            let carried = Carried::by(tuple, half, Some(&reply));
            self.evictable.add(&carried, idle, tuple, &wire);
        }
        Ok(())
    }

    /// Looks these mappings up, ends those that have timed out, and collects the others in `due`.
    pub fn check(&mut self, maps: &Maps, tuples: &[Tuple]) -> Result<()> {
        let mut ended = HashSet::new();
        for tuple in tuples {
            let Ok(half) = maps.snat.get(tuple, 0) else {
                continue;
            };
            let wire = tuple.reply_to(half.addr, half.id);
            let mut reply = None;
            let disposition = self.disposition(maps, tuple, &half, || {
                reply = maps.rev_snat.get(&wire, 0).ok();
                reply
            })?;
            match disposition {
                Disposition::Keep(remaining) => self.add_due(remaining, tuple),
                // A mapping that is listed twice ends once.
                _ if !ended.insert(*tuple) => continue,
                _ => {}
            }
            self.record(maps, disposition, tuple, &wire, &half, reply);
        }
        self.remove_ended(maps)
    }

    fn add_due(&mut self, remaining: u64, tuple: &Tuple) {
        let remaining = u32::try_from(remaining).unwrap_or(u32::MAX);
        self.due.push((remaining, *tuple));
    }

    /// Counts a mapping, and records it if it ends. `reply`: its reply half, if that was read.
    fn record(
        &mut self,
        maps: &Maps,
        disposition: Disposition,
        tuple: &Tuple,
        wire: &Tuple,
        half: &Mapping,
        reply: Option<Mapping>,
    ) {
        if let Some(tally) = &mut self.tally {
            tally.scanned(tuple, half);
        }
        let (count, why) = match disposition {
            Disposition::Keep(_) => {
                if let Some(tally) = &mut self.tally {
                    tally.kept(maps, tuple, half);
                }
                self.stats.live += 1;
                self.stale.add(tuple.dst);
                self.accounts.count_live(tuple, half);
                self.teller.lives(self.conditions.now, tuple, half);
                return;
            }
            Disposition::Expired => (&mut self.stats.expired, EndedBy::Timeout),
            Disposition::AddressGone => (&mut self.stats.address_gone, EndedBy::AddressGone),
            Disposition::Retired => (&mut self.stats.retired, EndedBy::Policy),
        };
        *count += 1;
        self.accounts.count_ended(tuple, half);
        // One that a pass has read lacks its bytes.
        let needs_bytes = self.is_followed();
        let is_complete =
            |reply: &Mapping| !needs_bytes || reply.flags & Half::Reply.counted() != 0;
        let reply = reply.filter(is_complete);
        let reply = reply.or_else(|| maps.rev_snat.get(wire, 0).ok());
        self.end(maps, (tuple, wire), half, reply.as_ref(), (why, false));
    }

    /// Reports whether somebody wants to know which mappings end.
    const fn is_followed(&self) -> bool {
        self.tally.is_some() || self.teller.wants_ends()
    }

    /// Adds a mapping, with its original tuple and its wire tuple, to those that end. `was_kept`: it was
    /// counted as staying before.
    fn end(
        &mut self,
        maps: &Maps,
        (tuple, wire): (&Tuple, &Tuple),
        half: &Mapping,
        reply: Option<&Mapping>,
        (why, was_kept): (EndedBy, bool),
    ) {
        self.ended.push((*tuple, *wire));
        if self.is_followed() {
            let now = self.conditions.now;
            let ended = EndedMapping::of(maps, (tuple, wire), half, reply, (why, now));
            if let Some(tally) = &mut self.tally {
                tally.ended(&ended, half, reply, was_kept);
            }
            self.teller.ends(&ended);
        }
        self.sent.add(maps, tuple, half);
        if half.is_carried_over() {
            self.carried.push(Half::Original.traffic_key(tuple));
        }
        if reply.is_some_and(Mapping::is_carried_over) {
            self.carried.push(Half::Reply.traffic_key(wire));
        }
    }

    fn disposition(
        &mut self,
        maps: &Maps,
        tuple: &Tuple,
        half: &Mapping,
        reply: impl FnOnce() -> Option<Mapping>,
    ) -> Result<Disposition> {
        let is_lost = !self.local.contains(&half.addr)
            && !self.rules.local_addrs_stale.load(Ordering::Acquire);
        let external = if is_lost {
            ExternalAddress::Lost
        } else {
            ExternalAddress::Present
        };
        let conditions = self.conditions;
        let would_bypass = || -> Result<bool> {
            // Hairpin mappings do not depend on the policy.
            if self.local.contains(&tuple.dst) {
                return Ok(false);
            }
            let decision = decision(&mut self.policy, maps, tuple.dst)?;
            Ok(Action::from_raw(decision.action) == Action::Bypass)
        };
        conditions.disposition(tuple, half, external, would_bypass, reply)
    }

    /// Corrects the programs' counts after a pass that has seen every mapping; after one that was
    /// stopped, as [`correct_counts`](Self::correct_counts) does.
    pub fn correct_all_counts(&mut self, maps: &mut Maps) -> Result<()> {
        if self.stats.stopped {
            return self.correct_counts(maps);
        }
        self.accounts.settle_all(maps)?;
        self.release_ports(maps)
    }

    /// Subtracts the ended mappings from the programs' counts.
    pub fn correct_counts(&mut self, maps: &mut Maps) -> Result<()> {
        self.accounts.settle_ended(maps)?;
        self.release_ports(maps)
    }

    fn release_ports(&mut self, maps: &mut Maps) -> Result<()> {
        let freed = std::mem::take(&mut self.freed);
        if freed.is_empty() {
            return Ok(());
        }
        maps.release_ports(&freed)
    }

    /// Returns the result, including whether the policy of `epoch` would create all mappings.
    pub fn into_stats(self, maps: &Maps, epoch: u32) -> Result<SweepStats> {
        let mut stats = self.stats;
        let none = self.stale.none_bypassed(maps, &self.local)?;
        stats.bypass_cache_epoch = none.then_some(epoch);
        Ok(stats)
    }
}

/// Returns the policy's entry for a destination, from the cache if it is there.
fn decision(
    cache: &mut HashMap<Addr, PolicyValue>,
    maps: &Maps,
    destination: Addr,
) -> Result<PolicyValue> {
    if let Some(value) = cache.get(&destination) {
        return Ok(*value);
    }
    let value = maps.decision(&destination)?;
    cache.insert(destination, value);
    Ok(value)
}
