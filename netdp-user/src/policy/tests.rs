//! The accounting: numbers that go to other prefixes, mappings whose rule changes, counters that wrap,
//! ledgers of other maps.

use super::ledger::{Amount, FILE, Ledger, LiveMapping, MapsId, Source};
use crate::datapath::{NumberedPolicy, RuleCount, RuleCounts};
use crate::state_dir::StateDir;
use anyhow::Result;
use ipnet::IpNet;
use netdp_common::layout::{Addr, Traffic};

/// Bytes of every packet.
const BYTES: u64 = 100;

/// Maps as a source.
#[derive(Default)]
struct Fake {
    counts: RuleCounts,
    live: Vec<LiveMapping>,
}

impl Source for Fake {
    fn counts(&self) -> Result<RuleCounts> {
        Ok(self.counts.clone())
    }

    fn for_each_live(&self, each: &mut dyn FnMut(&LiveMapping)) -> Result<()> {
        self.live.iter().for_each(each);
        Ok(())
    }
}

const fn traffic(packets: u64) -> Traffic {
    Traffic {
        packets,
        bytes: packets.wrapping_mul(BYTES),
    }
}

impl Fake {
    /// Counts bypassed packets.
    fn hit(&mut self, number: u32, packets: u64) {
        let count = self.counts.entry(number).or_default();
        count.traffic.add(&traffic(packets));
        count.hits += packets;
        count.hit_at = Some(7);
    }

    /// Begins a mapping, or sends more over it.
    fn send(&mut self, to: [u8; 4], packets: u64, created: u32) {
        self.live.push(LiveMapping {
            destination: Addr::from_v4(to),
            sent: traffic(packets),
            created,
        });
    }

    /// Ends all mappings under the rule with this number.
    fn end(&mut self, number: u32) {
        for mapping in std::mem::take(&mut self.live) {
            self.hit(number, mapping.sent.packets);
        }
    }
}

fn id() -> MapsId {
    MapsId {
        boot: "a".into(),
        map: 3,
    }
}

fn policy(generation: u32, rules: &[(&str, u32)]) -> NumberedPolicy {
    NumberedPolicy::of(generation, None, rules)
}

fn begin(rules: &[(&str, u32)], maps: &Fake) -> Ledger {
    Ledger::begin(id(), &policy(1, rules), maps, 1_000).unwrap()
}

/// Returns the packets of a prefix; an empty one stands for all other destinations.
fn packets(ledger: &Ledger, maps: &Fake, prefix: &str) -> u64 {
    let key: Option<IpNet> = prefix.parse().ok();
    let Some(entry) = ledger.entries.get(&key) else {
        return 0;
    };
    let mut finder = ledger.finder();
    let mut live = Traffic::default();
    for mapping in &maps.live {
        if entry.removed == 0 && finder.find(mapping.destination) == key {
            live.add(&mapping.sent);
        }
    }
    let Amount { packets, bytes, .. } = Ledger::amount(entry, &maps.counts, live);
    assert_eq!(bytes, packets * BYTES, "{prefix}");
    packets
}

#[test]
fn what_was_counted_before_the_ledger_began_is_left_out() {
    let mut maps = Fake::default();
    maps.hit(0, 50);
    maps.hit(9, 60);
    maps.send([10, 0, 0, 1], 5, 0);
    let mut ledger = begin(&[("10.0.0.0/8", 0)], &maps);
    assert_eq!(packets(&ledger, &maps, "10.0.0.0/8"), 0);
    maps.hit(0, 3);
    maps.send([10, 0, 0, 2], 4, 0);
    assert_eq!(packets(&ledger, &maps, "10.0.0.0/8"), 7);
    // Number 9 had counted, for whatever prefix.
    let next = policy(2, &[("10.0.0.0/8", 0), ("10.1.0.0/16", 9)]);
    ledger.follow(&next, None, &maps, 2_000).unwrap();
    assert_eq!(packets(&ledger, &maps, "10.1.0.0/16"), 0);
    maps.hit(9, 1);
    assert_eq!(packets(&ledger, &maps, "10.1.0.0/16"), 1);
}

#[test]
fn mappings_leave_what_they_have_sent_with_the_former_rule() {
    let mut maps = Fake::default();
    let mut ledger = begin(&[], &maps);
    maps.send([10, 1, 0, 1], 10, 0);
    assert_eq!(packets(&ledger, &maps, ""), 10);
    let next = policy(2, &[("10.0.0.0/8", 0)]);
    assert!(ledger.follow(&next, None, &maps, 2_000).unwrap());
    assert_eq!(packets(&ledger, &maps, ""), 10);
    assert_eq!(packets(&ledger, &maps, "10.0.0.0/8"), 0);
    maps.live[0].sent = traffic(25);
    assert_eq!(packets(&ledger, &maps, "10.0.0.0/8"), 15);
    // It ends with all that it has sent, under the new rule.
    maps.end(0);
    assert_eq!(packets(&ledger, &maps, ""), 10);
    assert_eq!(packets(&ledger, &maps, "10.0.0.0/8"), 15);
}

#[test]
fn mappings_that_began_after_the_change_belong_to_the_new_rule_alone() {
    let mut maps = Fake::default();
    let mut ledger = begin(&[], &maps);
    let change = u32::MAX - 5;
    maps.send([10, 1, 0, 1], 10, change - 1);
    maps.send([10, 1, 0, 2], 7, change);
    // The clock wraps.
    maps.send([10, 1, 0, 3], 5, 3);
    let next = policy(2, &[("10.0.0.0/8", 0)]);
    ledger.follow(&next, Some(change), &maps, 2_000).unwrap();
    assert_eq!(packets(&ledger, &maps, ""), 10);
    assert_eq!(packets(&ledger, &maps, "10.0.0.0/8"), 12);
}

#[test]
fn hits_of_a_new_number_count_from_the_first() {
    let mut maps = Fake::default();
    let mut ledger = begin(&[("10.0.0.0/8", 0)], &maps);
    // Between the change and the next sweep.
    maps.hit(1, 4);
    let next = policy(2, &[("10.0.0.0/8", 0), ("10.2.0.0/16", 1)]);
    ledger.follow(&next, None, &maps, 2_000).unwrap();
    assert_eq!(packets(&ledger, &maps, "10.2.0.0/16"), 4);
}

#[test]
fn a_number_that_goes_to_another_prefix_leaves_its_hits_behind() {
    let mut maps = Fake::default();
    let mut ledger = begin(&[("10.0.0.0/8", 0), ("10.2.0.0/16", 1)], &maps);
    maps.hit(0, 10);
    maps.hit(1, 20);
    // All numbers were given anew.
    let next = policy(2, &[("10.2.0.0/16", 0), ("10.3.0.0/16", 1)]);
    ledger.follow(&next, None, &maps, 2_000).unwrap();
    maps.hit(0, 1);
    maps.hit(1, 2);
    assert_eq!(packets(&ledger, &maps, "10.0.0.0/8"), 10);
    assert_eq!(packets(&ledger, &maps, "10.2.0.0/16"), 21);
    assert_eq!(packets(&ledger, &maps, "10.3.0.0/16"), 2);
}

#[test]
fn a_removed_prefix_is_remembered_for_a_day() {
    let day = 86_400;
    let with = |generation| policy(generation, &[("10.0.0.0/8", generation)]);
    for (back_at, expected) in [(day - 1, 6), (day, 1)] {
        let mut maps = Fake::default();
        let mut ledger = begin(&[("10.0.0.0/8", 0)], &maps);
        maps.hit(0, 2);
        ledger.follow(&policy(2, &[]), None, &maps, 5_000).unwrap();
        // The hits of pairs reach their rule late.
        maps.hit(0, 3);
        assert_eq!(packets(&ledger, &maps, "10.0.0.0/8"), 5);
        ledger
            .follow(&with(3), None, &maps, 5_000 + back_at)
            .unwrap();
        maps.hit(3, 1);
        assert_eq!(packets(&ledger, &maps, "10.0.0.0/8"), expected);
    }
}

#[test]
fn counts_wrap() {
    let mut maps = Fake::default();
    maps.counts.entry(0).or_default().traffic = traffic(u64::MAX - 3);
    let ledger = begin(&[("10.0.0.0/8", 0)], &maps);
    maps.hit(0, 10);
    assert_eq!(packets(&ledger, &maps, "10.0.0.0/8"), 10);
}

#[test]
fn an_amount_that_a_reading_misses_shows_as_nothing() {
    let mut maps = Fake::default();
    maps.hit(0, 10);
    let ledger = begin(&[("10.0.0.0/8", 0)], &maps);
    maps.counts.insert(0, RuleCount::default());
    assert_eq!(packets(&ledger, &maps, "10.0.0.0/8"), 0);
}

#[test]
fn the_same_rules_change_nothing() {
    let maps = Fake::default();
    let rules = [("10.0.0.0/8", 0)];
    let mut ledger = begin(&rules, &maps);
    let before = ledger.entries.clone();
    assert!(
        !ledger
            .follow(&policy(1, &rules), None, &maps, 2_000)
            .unwrap()
    );
    assert!(
        ledger
            .follow(&policy(2, &rules), None, &maps, 2_000)
            .unwrap()
    );
    assert_eq!(ledger.entries, before);
}

#[test]
fn hits_have_a_time_from_the_maps_or_from_the_last_reading() {
    let mut maps = Fake::default();
    let mut ledger = begin(&[("10.0.0.0/8", 0), ("10.2.0.0/16", 1)], &maps);
    assert!(!ledger.note_hits(&maps.counts, |_| 0, 1_060));
    maps.hit(0, 1);
    // Hits of a pair have no time.
    maps.counts.entry(1).or_default().hits = 1;
    assert!(ledger.note_hits(&maps.counts, |tick| 1_100 + u64::from(tick), 1_120));
    let last = |ledger: &Ledger, prefix: &str| {
        let key: Option<IpNet> = prefix.parse().ok();
        ledger.entries[&key].last
    };
    assert_eq!(last(&ledger, "10.0.0.0/8"), 1_107);
    assert_eq!(last(&ledger, "10.2.0.0/16"), 1_060);
    // Earlier hits move from a pair to their rule.
    assert!(!ledger.note_hits(&maps.counts, |_| 9_999, 1_180));
    assert_eq!(last(&ledger, "10.0.0.0/8"), 1_107);
    let shown = |ledger: &Ledger, maps: &Fake| {
        let key: Option<IpNet> = "10.2.0.0/16".parse().ok();
        let hit = Ledger::last(&ledger.entries[&key], &maps.counts, 1_180, |tick| {
            1_100 + u64::from(tick)
        });
        (hit.known, hit.later)
    };
    assert_eq!(shown(&ledger, &maps), (1_060, false));
    maps.counts.entry(1).or_default().hits = 2;
    assert_eq!(shown(&ledger, &maps), (1_060, true));
    // Mappings that end say when their last packet left.
    maps.counts.entry(1).or_default().hits = 1;
    maps.counts.entry(1).or_default().sent_at = Some(3);
    assert_eq!(shown(&ledger, &maps), (1_103, false));
}

#[test]
fn a_ledger_comes_back_for_the_same_maps_alone() {
    let dir = tempfile::tempdir().unwrap();
    let state = StateDir::open(dir.path()).unwrap();
    assert_eq!(Ledger::read(&state, &id()).unwrap(), None);
    let mut maps = Fake::default();
    maps.hit(4, 9);
    let ledger = begin(&[("10.0.0.0/8", 0), ("fd00::/8", 1)], &maps);
    ledger.save(&state).unwrap();
    assert_eq!(Ledger::read(&state, &id()).unwrap(), Some(ledger));
    let of = |boot: &str, map| MapsId {
        boot: boot.into(),
        map,
    };
    for other in [of("b", 3), of("a", 4)] {
        let refused = Ledger::read(&state, &other).unwrap_err();
        assert!(refused.to_string().contains("other maps"), "{refused}");
    }
    for broken in ["", "{}", r#"{"version":2}"#] {
        std::fs::write(dir.path().join(FILE), broken).unwrap();
        assert!(Ledger::read(&state, &id()).is_err(), "{broken}");
    }
}
