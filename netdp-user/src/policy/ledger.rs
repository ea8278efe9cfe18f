//! The ledger: which numbers belong to which prefix, and what has to be added to their counts.
//!
//! The count of a prefix is the sum of what its numbers have counted, of what pods have sent over the
//! live mappings to its destinations, and of an offset (all wrapping). The offset changes only when
//! the policy does: mappings whose destination has another rule from then on, and numbers that go to
//! another prefix, leave with the former prefix what they had counted until then. So nothing has to be
//! written while packets are counted.

use crate::datapath::{NumberedPolicy, RuleCount, RuleCounts, SHARED_INDEX};
use crate::machine;
use crate::prefixes::Prefixes;
use crate::state_dir::StateDir;
use anyhow::{Context as _, Result, ensure};
use ipnet::IpNet;
use netdp_common::layout::{Addr, Traffic};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

/// Name in the state directory.
pub(crate) const FILE: &str = "counts.json";

/// Version of the file's format.
const VERSION: u32 = 1;

/// Seconds for which a removed prefix keeps its counts.
const REMEMBERED: u64 = 86_400;

/// A rule's prefix; `None` stands for all destinations for which no rule decides.
pub(crate) type Key = Option<IpNet>;

/// Identity of the pinned maps: counts of others are not continued.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct MapsId {
    /// The kernel's `boot_id`.
    pub boot: String,
    /// The kernel's id of the map `rule_hits`.
    pub map: u32,
}

impl MapsId {
    /// Returns the id of maps that exist since this boot.
    ///
    /// # Errors
    /// Returns an error if the kernel does not tell its boot id.
    pub(super) fn of(map: u32) -> Result<Self> {
        Ok(Self {
            boot: machine::boot_id()?,
            map,
        })
    }
}

/// Packets, their bytes, and new flows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Amount {
    #[serde(rename = "p", default, skip_serializing_if = "is_zero")]
    pub packets: u64,
    #[serde(rename = "b", default, skip_serializing_if = "is_zero")]
    pub bytes: u64,
    #[serde(rename = "f", default, skip_serializing_if = "is_zero")]
    pub flows: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde passes references")]
const fn is_zero(number: &u64) -> bool {
    *number == 0
}

impl Amount {
    const fn add(&mut self, other: &Self) {
        self.packets = self.packets.wrapping_add(other.packets);
        self.bytes = self.bytes.wrapping_add(other.bytes);
        self.flows = self.flows.wrapping_add(other.flows);
    }

    const fn subtract(&mut self, other: &Self) {
        self.packets = self.packets.wrapping_sub(other.packets);
        self.bytes = self.bytes.wrapping_sub(other.bytes);
        self.flows = self.flows.wrapping_sub(other.flows);
    }
}

impl From<&RuleCount> for Amount {
    fn from(count: &RuleCount) -> Self {
        Self {
            packets: count.traffic.packets,
            bytes: count.traffic.bytes,
            flows: count.flows,
        }
    }
}

impl From<Traffic> for Amount {
    fn from(traffic: Traffic) -> Self {
        Self {
            packets: traffic.packets,
            bytes: traffic.bytes,
            flows: 0,
        }
    }
}

/// Entry of the ledger about a prefix.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Entry {
    /// Numbers of the rule that count for it.
    #[serde(rename = "n")]
    pub numbers: Vec<u32>,
    /// Amount to be added, wrapping.
    #[serde(flatten)]
    pub offset: Amount,
    /// Packets that passed and mappings that began until the last reading (wrapping).
    #[serde(rename = "s", default, skip_serializing_if = "is_zero")]
    pub seen: u64,
    /// Time of the last hit known then, in seconds since 1970; 0 for never.
    #[serde(rename = "l", default, skip_serializing_if = "is_zero")]
    pub last: u64,
    /// Time at which the policy lost the prefix, in seconds since 1970; 0 if it has it.
    #[serde(rename = "r", default, skip_serializing_if = "is_zero")]
    pub removed: u64,
}

/// Knowledge of the last hit of a prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LastHit {
    /// The reading with which [`Entry::seen`] is to be compared.
    pub hits: u64,
    /// Time of the last hit that is known, in seconds since 1970; 0 for none.
    pub known: u64,
    /// True if there were hits after the last reading, at an unknown time.
    pub later: bool,
}

/// The ledger of one set of maps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Ledger {
    version: u32,
    pub maps: MapsId,
    /// Time from which on it counts, in seconds since 1970.
    pub since: u64,
    /// Generation of the policy that it follows ([`NumberedPolicy::generation`]).
    pub generation: u32,
    /// Time of the last reading, in seconds since 1970.
    pub read_at: u64,
    #[serde(with = "as_list")]
    pub entries: BTreeMap<Key, Entry>,
    /// Counts of numbers that no prefix has any more.
    #[serde(default)]
    free: BTreeMap<u32, Amount>,
}

/// Keys of JSON's objects are strings: a list instead.
mod as_list {
    use super::{Entry, Key};
    use serde::{Deserialize as _, Deserializer, Serializer};
    use std::collections::BTreeMap;

    pub(super) fn serialize<S: Serializer>(
        entries: &BTreeMap<Key, Entry>,
        to: S,
    ) -> Result<S::Ok, S::Error> {
        to.collect_seq(entries)
    }

    pub(super) fn deserialize<'a, D: Deserializer<'a>>(
        from: D,
    ) -> Result<BTreeMap<Key, Entry>, D::Error> {
        let list = Vec::<(Key, Entry)>::deserialize(from)?;
        Ok(list.into_iter().collect())
    }
}

/// A live mapping, as far as counting is concerned.
#[derive(Debug, Clone, Copy)]
pub(super) struct LiveMapping {
    pub destination: Addr,
    /// Traffic that its pod has sent.
    pub sent: Traffic,
    /// Time at which it began, in ticks.
    pub created: u32,
}

/// Counts of the maps, at one time.
pub(super) trait Source {
    /// Returns the counts of all numbers.
    ///
    /// # Errors
    /// Returns an error if a map can't be read.
    fn counts(&self) -> Result<RuleCounts>;

    /// Calls `each` for every live mapping.
    ///
    /// # Errors
    /// Returns an error if a map can't be read.
    fn for_each_live(&self, each: &mut dyn FnMut(&LiveMapping)) -> Result<()>;
}

/// Finds the prefix of destinations, with a cache.
pub(super) struct Finder {
    prefixes: Vec<IpNet>,
    index: Prefixes,
    cache: HashMap<Addr, Option<usize>>,
}

/// Addresses in the cache of a [`Finder`] before it is emptied.
const CACHED: usize = 65_536;

impl Finder {
    pub(super) fn new(prefixes: impl Iterator<Item = IpNet>) -> Self {
        let prefixes: Vec<_> = prefixes.collect();
        Self {
            index: Prefixes::new(prefixes.iter().copied()),
            prefixes,
            cache: HashMap::new(),
        }
    }

    /// Returns the longest prefix that contains the address.
    pub(super) fn find(&mut self, address: Addr) -> Key {
        if self.cache.len() > CACHED {
            self.cache.clear();
        }
        let index = &self.index;
        let found = *self.cache.entry(address).or_insert_with(|| {
            let net = IpNet::from(IpAddr::from(address));
            index.covering(net).next()
        });
        found.and_then(|place| self.prefixes.get(place).copied())
    }
}

impl Ledger {
    /// Begins a ledger: everything that the maps have counted until now is left out.
    ///
    /// # Errors
    /// Returns an error if a map can't be read.
    pub(super) fn begin(
        maps: MapsId,
        policy: &NumberedPolicy,
        source: &impl Source,
        now: u64,
    ) -> Result<Self> {
        let free = source.counts()?;
        let mut ledger = Self {
            version: VERSION,
            maps,
            since: now,
            generation: policy.generation.wrapping_sub(1),
            read_at: now,
            entries: BTreeMap::new(),
            free: free.iter().map(|(n, it)| (*n, it.into())).collect(),
        };
        ledger.follow(policy, None, source, now)?;
        Ok(ledger)
    }

    /// Follows a change of the policy; does nothing if there was none. `since`: when it came into
    /// force, in ticks, if that is known: mappings that began later have never belonged to the former
    /// policy. Reports whether there was a change.
    ///
    /// # Errors
    /// Returns an error if a map can't be read; then nothing has changed.
    pub(super) fn follow(
        &mut self,
        policy: &NumberedPolicy,
        since: Option<u32>,
        source: &impl Source,
        now: u64,
    ) -> Result<bool> {
        if self.generation == policy.generation {
            return Ok(false);
        }
        let mut wanted: BTreeMap<Key, u32> = policy
            .rules()
            .map(|(prefix, value)| (Some(prefix), value.rule))
            .filter(|(_, number)| *number < SHARED_INDEX)
            .collect();
        // Rules with higher numbers share that entry: then nobody's count is known.
        if policy.rules().all(|(_, value)| value.rule < SHARED_INDEX) {
            wanted.insert(None, SHARED_INDEX);
        }
        let present = self.entries.iter().filter(|(_, entry)| entry.removed == 0);
        let is_same = present.clone().count() == wanted.len()
            && present
                .zip(&wanted)
                .all(|((is, entry), (key, number))| is == key && entry.numbers.contains(number));
        if !is_same {
            self.change(&wanted, since, source, now)?;
        }
        self.generation = policy.generation;
        Ok(true)
    }

    fn change(
        &mut self,
        wanted: &BTreeMap<Key, u32>,
        since: Option<u32>,
        source: &impl Source,
        now: u64,
    ) -> Result<()> {
        let mut before = self.finder();
        let mut after = Finder::new(wanted.keys().filter_map(|key| *key));
        let (mut leaving, mut coming) = (BTreeMap::new(), BTreeMap::new());
        source.for_each_live(&mut |mapping| {
            let is_new = since.is_some_and(|at| mapping.created.wrapping_sub(at) < 1 << 31);
            if is_new {
                return;
            }
            for (sums, finder) in [(&mut leaving, &mut before), (&mut coming, &mut after)] {
                let sum: &mut Amount = sums.entry(finder.find(mapping.destination)).or_default();
                sum.add(&mapping.sent.into());
            }
        })?;
        let counts = source.counts()?;
        let counted = |number: &u32| counts.get(number).map(Amount::from).unwrap_or_default();
        self.forget(counted, now);
        for (key, sum) in &leaving {
            self.entries.entry(*key).or_default().offset.add(sum);
        }
        for (key, sum) in &coming {
            self.entries.entry(*key).or_default().offset.subtract(sum);
        }
        let owners: HashMap<u32, Key> = self
            .entries
            .iter()
            .flat_map(|(key, entry)| entry.numbers.iter().map(|number| (*number, *key)))
            .collect();
        for (key, number) in wanted {
            if owners.get(number) == Some(key) {
                continue;
            }
            if let Some(entry) = owners.get(number).and_then(|it| self.entries.get_mut(it)) {
                entry.offset.add(&counted(number));
                entry.numbers.retain(|it| it != number);
                self.free.insert(*number, counted(number));
            }
            let entry = self.entries.entry(*key).or_default();
            if let Some(before) = self.free.remove(number) {
                entry.offset.subtract(&before);
            }
            entry.numbers.push(*number);
        }
        for (key, entry) in &mut self.entries {
            match (wanted.contains_key(key), entry.removed) {
                (true, _) => entry.removed = 0,
                (false, 0) => entry.removed = now,
                (false, _) => {}
            }
        }
        Ok(())
    }

    /// Forgets prefixes that the policy lost more than a day ago. What their numbers have counted is
    /// left out if another prefix gets them.
    fn forget(&mut self, counted: impl Fn(&u32) -> Amount, now: u64) {
        let free = &mut self.free;
        self.entries.retain(|_, entry| {
            let is_remembered = entry.removed == 0 || now < entry.removed + REMEMBERED;
            if !is_remembered {
                free.extend(entry.numbers.iter().map(|it| (*it, counted(it))));
            }
            is_remembered
        });
    }

    /// Returns a finder of the prefixes that the ledger counts live mappings under.
    pub(super) fn finder(&self) -> Finder {
        let present = self.entries.iter().filter(|(_, entry)| entry.removed == 0);
        Finder::new(present.filter_map(|(key, _)| *key))
    }

    /// Returns the amount of an entry. `live`: what pods have sent over live mappings to its
    /// destinations.
    pub(super) fn amount(entry: &Entry, counts: &RuleCounts, live: Traffic) -> Amount {
        let mut sum = entry.offset;
        for count in entry.numbers.iter().filter_map(|it| counts.get(it)) {
            sum.add(&count.into());
        }
        sum.add(&live.into());
        // A reading may miss what moves from one map to another meanwhile.
        let settled = |number: u64| if number < 1 << 63 { number } else { 0 };
        Amount {
            packets: settled(sum.packets),
            bytes: settled(sum.bytes),
            flows: settled(sum.flows),
        }
    }

    /// Records at what time prefixes were hit, as far as their numbers have counted since the last
    /// reading. `at`: converts ticks to seconds since 1970. Reports whether anything has changed.
    pub(super) fn note_hits(
        &mut self,
        counts: &RuleCounts,
        at: impl Fn(u32) -> u64,
        now: u64,
    ) -> bool {
        let mut changed = false;
        let read_at = self.read_at.min(now);
        for entry in self.entries.values_mut() {
            let last = Self::last(entry, counts, read_at, &at);
            if last.hits != entry.seen {
                // At some time after the last reading, if it is not known.
                entry.last = last.known.max(read_at);
                entry.seen = last.hits;
                changed = true;
            }
        }
        self.read_at = now;
        changed
    }

    /// Returns what is known of the last hit. `read_at`: when [`Entry::seen`] was read; `at`: converts
    /// ticks to seconds since 1970.
    pub(super) fn last(
        entry: &Entry,
        counts: &RuleCounts,
        read_at: u64,
        at: impl Fn(u32) -> u64,
    ) -> LastHit {
        let of_numbers = || entry.numbers.iter().filter_map(|it| counts.get(it));
        let sent_at = of_numbers().filter_map(|it| it.sent_at).map(&at);
        let hit_at = of_numbers().filter_map(|it| it.hit_at).map(&at);
        let hits = of_numbers().fold(0u64, |sum, it| sum.wrapping_add(it.hits));
        let mut known = sent_at.fold(entry.last, u64::max);
        let mut later = false;
        // Without new hits, only earlier ones have moved from pairs to their rule.
        if hits != entry.seen {
            known = hit_at.fold(known, u64::max);
            later = known < read_at;
        }
        LastHit { hits, known, later }
    }

    /// Reads the ledger of an earlier run; `None` if there is none.
    ///
    /// # Errors
    /// Returns an error if it can't be read, or belongs to other maps or another version.
    pub(super) fn read(state_dir: &StateDir, maps: &MapsId) -> Result<Option<Self>> {
        let Some(bytes) = state_dir.read_optional(FILE)? else {
            return Ok(None);
        };
        let path = state_dir.file(FILE);
        let reading = || format!("reading {}", path.display());
        let ledger: Self = serde_json::from_slice(&bytes).with_context(reading)?;
        ensure!(
            ledger.version == VERSION,
            "{} has version {}, and this netdp reads version {VERSION}",
            path.display(),
            ledger.version
        );
        ensure!(
            ledger.maps == *maps,
            "{} belongs to other maps: the node was rebooted, or the datapath removed",
            path.display()
        );
        Ok(Some(ledger))
    }

    /// Writes it to the state directory.
    ///
    /// # Errors
    /// Returns an error if the file can't be written.
    pub(super) fn save(&self, state_dir: &StateDir) -> Result<()> {
        state_dir.write_compact_json(FILE, self)
    }
}
