//! One pass through the mappings.

use super::accounts::Accounts;
use super::fate::{Fate, left, repair};
use super::replies::Replies;
use super::sticky::Sticky;
use super::{Room, SweepRules, Swept};
use crate::datapath::batch;
use crate::datapath::maps::Maps;
use anyhow::{Context as _, Result};
use netdp_common::flow::{Carried, EvictionClass, age, eviction_class, idle, ticks};
use netdp_common::layout::{Action, Addr, MAPPING_HOST, Mapping, Secret, Tuple};
use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::Ordering;

/// Mappings that are removed by one system call.
const REMOVED_AT_ONCE: usize = 256;

/// Mappings that are looked up once more before they are evicted: few, so that little time passes
/// in between.
const LOOKED_UP_AT_ONCE: usize = 32;

/// Ticks by which the recorded creation of a mapping may be too early: the programs' clock is up to
/// a jiffy late.
const CLOCK_SLACK: u32 = 2;

pub struct Pass<'a> {
    now: u32,
    local: BTreeSet<Addr>,
    rules: &'a SweepRules,
    /// Cache of the policy's action, by destination.
    policy: HashMap<Addr, Action>,
    /// Time before which created mappings are in the schedule.
    pub looked: Option<u32>,
    /// True if mappings to evict are collected.
    pressed: bool,
    pub swept: Swept,
    ended: Vec<(Tuple, Tuple)>,
    /// Original halves without reply half.
    torn: Vec<(Tuple, Tuple, Mapping)>,
    /// Live mappings that may end before the horizon, with the ticks until then.
    pub due: Vec<(u32, Tuple)>,
    /// Ticks until the next full sweep.
    horizon: u64,
    /// Mappings that are older than the policy, if any.
    pub sticky: Sticky,
    /// Evictable mappings: eviction class, and `u32::MAX` less their idle time.
    spare: Vec<(EvictionClass, u32, Tuple, Tuple)>,
    /// Shares of the pods.
    pub accounts: Accounts,
    /// Wire tuples that have become free.
    freed: Vec<Tuple>,
}

impl<'a> Pass<'a> {
    pub fn new(now: u32, secret: Secret, rules: &'a SweepRules, horizon: u64) -> Self {
        Self {
            now,
            local: rules.local.iter().copied().map(Addr::from).collect(),
            rules,
            policy: HashMap::new(),
            looked: None,
            pressed: false,
            swept: Swept::default(),
            ended: Vec::new(),
            torn: Vec::new(),
            due: Vec::new(),
            horizon,
            sticky: Sticky::default(),
            spare: Vec::new(),
            accounts: Accounts::new(secret),
            freed: Vec::new(),
        }
    }

    /// Restarts the pass to collect mappings to evict. Counts of ended mappings are kept.
    pub fn once_more(self, rules: &'a SweepRules) -> Self {
        Self {
            pressed: true,
            swept: Swept {
                live: 0,
                ..self.swept
            },
            freed: self.freed,
            accounts: self.accounts.again(),
            ..Self::new(self.now, Secret::default(), rules, self.horizon)
        }
    }

    /// Returns the idle time below which a mapping of this protocol lives beyond the horizon,
    /// whatever its state. Where full sweeps are frequent, halves are compared sooner than that, so
    /// that missing ones are found.
    fn young(&self, protocol: u32) -> u64 {
        if self.pressed {
            return 0;
        }
        let timeouts = &self.rules.timeouts;
        let sooner = ticks(timeouts.shortest()).saturating_sub(self.horizon);
        if sooner > 0 {
            return sooner;
        }
        ticks(timeouts.shortest_of(protocol)).saturating_sub(self.horizon)
    }

    /// Reads all reply halves that affect a decision.
    pub fn replies(&self, maps: &Maps) -> Result<Replies> {
        let mut replies = Replies::default();
        batch::for_each::<Tuple, Mapping>(&maps.rev_snat_data, |wire, half| {
            let idle = u64::from(age(self.now, half.last_seen));
            if half.flags & MAPPING_HOST != 0 {
                if left(self.now, &self.rules.timeouts, wire, half, Some(half)) == 0 {
                    replies.over.push(*wire);
                } else {
                    replies.host += 1;
                }
            } else if idle >= self.young(wire.proto) {
                replies.insert(wire, half);
            }
        })
        .context("reading the rev_snat map")?;
        Ok(replies)
    }

    /// Scans every original half. Ended ones are removed with their reply halves, batch by batch.
    pub fn originals(&mut self, maps: &Maps, replies: &mut Replies) -> Result<()> {
        let snat = &maps.snat_data;
        let before = maps.shares()?;
        batch::for_each_batch::<Tuple, Mapping>(snat, |tuples, halves| {
            if self.rules.stopped() {
                self.swept.stopped = true;
                return Ok(());
            }
            for (tuple, half) in tuples.iter().zip(halves) {
                self.original(maps, replies, tuple, half)?;
            }
            self.remove_ended(maps)
        })
        .context("going through the snat map")?;
        self.accounts.looked(maps, &before)
    }

    fn original(
        &mut self,
        maps: &Maps,
        replies: &mut Replies,
        tuple: &Tuple,
        half: &Mapping,
    ) -> Result<()> {
        let wire = tuple.reply_to(half.addr, half.id);
        let read = replies.take(&wire, half);
        let mut asked = None;
        let mut fate = self.fate(maps, tuple, half, || {
            read.or_else(|| *asked.insert(maps.rev_snat.get(&wire, 0).ok()))
        })?;
        if let (Fate::Expired, Some(_)) = (&fate, read) {
            // A packet may have arrived since it was read.
            fate = self.fate(maps, tuple, half, || maps.rev_snat.get(&wire, 0).ok())?;
        }
        self.note(&fate, tuple, &wire, half);
        let Fate::Lives(left) = fate else {
            return Ok(());
        };
        if left <= self.horizon {
            let left = u32::try_from(left).unwrap_or(u32::MAX);
            self.due.push((left, *tuple));
        }
        if let Some(None) = asked {
            self.torn.push((*tuple, wire, *half));
        }
        if self.pressed
            && let Some(reply) = read.or_else(|| maps.rev_snat.get(&wire, 0).ok())
        {
            let idle = idle(self.now, half.last_seen, reply.last_seen);
            if let Some(willing) = eviction_class(&Carried::by(tuple, half, Some(&reply)), idle)
                && willing != EvictionClass::LastAck
            {
                self.spare.push((willing, u32::MAX - idle, *tuple, wire));
            }
        }
        Ok(())
    }

    /// Counts a mapping, and records it if it ends.
    pub fn note(&mut self, fate: &Fate, tuple: &Tuple, wire: &Tuple, half: &Mapping) {
        match fate {
            Fate::Lives(_) => {
                self.swept.live += 1;
                self.sticky.note(tuple.dst);
                self.accounts.lives(tuple, half);
                return;
            }
            Fate::Expired => self.swept.expired += 1,
            Fate::AddressGone => self.swept.address_gone += 1,
            Fate::Retired => self.swept.retired += 1,
        }
        self.accounts.ends(tuple, half);
        self.ended.push((*tuple, *wire));
    }

    pub fn fate(
        &mut self,
        maps: &Maps,
        tuple: &Tuple,
        half: &Mapping,
        reply: impl FnOnce() -> Option<Mapping>,
    ) -> Result<Fate> {
        if !self.local.contains(&half.addr) && !self.rules.grown.load(Ordering::Acquire) {
            return Ok(Fate::AddressGone);
        }
        let idle = u64::from(age(self.now, half.last_seen));
        if let Some(after) = self.rules.retire
            && idle >= ticks(after.as_secs())
            // Hairpin mappings do not depend on the policy.
            && !self.local.contains(&tuple.dst)
            && self.action(maps, tuple.dst)? == Action::Bypass
        {
            return Ok(Fate::Retired);
        }
        if idle < self.young(tuple.proto) || self.is_scheduled(half) {
            return Ok(Fate::Lives(u64::MAX));
        }
        let timeouts = &self.rules.timeouts;
        Ok(
            match left(self.now, timeouts, tuple, half, reply().as_ref()) {
                0 => Fate::Expired,
                left => Fate::Lives(left),
            },
        )
    }

    /// Reports whether an earlier pass has seen the mapping.
    fn is_scheduled(&self, half: &Mapping) -> bool {
        self.looked.is_some_and(|looked| {
            let since = age(self.now, looked).saturating_add(CLOCK_SLACK);
            age(self.now, half.created) > since
        })
    }

    fn action(&mut self, maps: &Maps, destination: Addr) -> Result<Action> {
        if let Some(action) = self.policy.get(&destination) {
            return Ok(*action);
        }
        let action = maps.action(&destination)?;
        self.policy.insert(destination, action);
        Ok(action)
    }

    /// Removes the mappings that have ended so far. Both halves go within a moment: a packet in
    /// between finds one of them.
    pub fn remove_ended(&mut self, maps: &Maps) -> Result<()> {
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
        let mut over = std::mem::take(&mut replies.over);
        // A packet of the node may have arrived since they were read.
        let timeouts = &self.rules.timeouts;
        over.retain(|wire| {
            let half = maps.rev_snat.get(wire, 0);
            half.is_ok_and(|half| {
                half.flags & MAPPING_HOST != 0
                    && left(self.now, timeouts, wire, &half, Some(&half)) == 0
            })
        });
        if !replies.is_empty() {
            over.extend(self.orphans(maps, replies)?);
        }
        self.swept.host = replies.host;
        for (tuple, wire, half) in self.torn.drain(..) {
            let repaired = repair(&mut maps.rev_snat, &tuple, &wire, &half)?;
            self.swept.repaired += usize::from(repaired);
        }
        self.remove_ended(maps)?;
        batch::remove(&maps.rev_snat_data, &over).context("in the rev_snat map")
    }

    /// Returns the reply halves without original half.
    fn orphans(&self, maps: &Maps, replies: &Replies) -> Result<Vec<Tuple>> {
        let mut orphans = Vec::new();
        let shortest = ticks(self.rules.timeouts.shortest());
        batch::for_each::<Tuple, Mapping>(&maps.rev_snat_data, |wire, half| {
            let idle = u64::from(age(self.now, half.last_seen));
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

    /// Evicts evictable mappings if the tables are nearly full, the longest idle first, down to the
    /// targets of `room`. Established ones are never touched: a mapping that has become active
    /// since it was read stays.
    pub fn relieve(&mut self, maps: &Maps, room: &Room) -> Result<()> {
        let mut spares = std::mem::take(&mut self.spare);
        spares.sort_unstable_by_key(|(willing, idle, ..)| (*willing, *idle));
        let up_to = |willing| spares.partition_point(|(other, ..)| *other <= willing);
        let (closed, unanswered) = (
            up_to(EvictionClass::Closed),
            up_to(EvictionClass::Unanswered),
        );
        spares.truncate(room.ending(self.swept.live, closed, unanswered));
        for some in spares.chunks(LOOKED_UP_AT_ONCE) {
            if self.rules.stopped() {
                self.swept.stopped = true;
                break;
            }
            for (willing, _, tuple, wire) in some {
                let halves = (maps.snat.get(tuple, 0), maps.rev_snat.get(wire, 0));
                let (Ok(half), Ok(reply)) = halves else {
                    continue;
                };
                let idle = idle(self.now, half.last_seen, reply.last_seen);
                let carried = Carried::by(tuple, &half, Some(&reply));
                if eviction_class(&carried, idle) == Some(*willing) {
                    self.ended.push((*tuple, *wire));
                    self.accounts.ends_after_all(tuple, &half);
                    self.swept.live -= 1;
                    self.swept.made_room += 1;
                }
            }
            self.remove_ended(maps)?;
        }
        self.swept.pressure = true;
        Ok(())
    }

    /// Corrects the programs' counts; `all`: every mapping was seen.
    pub fn settle(&mut self, maps: &mut Maps, all: bool) -> Result<()> {
        if all && !self.swept.stopped {
            self.accounts.settle_all(maps)?;
        } else {
            self.accounts.settle_ended(maps)?;
        }
        let freed = std::mem::take(&mut self.freed);
        if !freed.is_empty() {
            maps.release_ports(&freed)?;
        }
        Ok(())
    }

    /// Returns the result, including whether mappings are older than the policy of `epoch`.
    pub fn tell(self, maps: &Maps, epoch: u32) -> Result<Swept> {
        let mut swept = self.swept;
        let none = self.sticky.none(maps, &self.local)?;
        swept.none_sticky = none.then_some(epoch);
        Ok(swept)
    }
}
