//! Metrics from the pinned maps of counters, which outlive the agent.

use super::samples::{Distribution, Samples};
use super::table::{ALLOCATIONS, BYTES, CREATED, DROPPED, FRAGMENTS, ICMP_ERRORS, PACKETS, SEARCH};
use super::{Source, lock};
use crate::datapath::Maps;
use anyhow::Result;
use netdp_common::direction::Direction;
use netdp_common::layout::{Counters, DropReason, NewMappings, Traffic};
use nix::net::if_::if_indextoname;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

/// Label of all interfaces without a number of their own. No label of another interface: brackets
/// are unusual, and equal names are added up.
const OTHERS: &str = "(other)";

/// The pinned counters.
pub(crate) struct PinnedCounters {
    maps: Mutex<Maps>,
    /// Mappings of TCP, as last told.
    tcp: AtomicU64,
    /// Mappings that kept their pod's port, as last told.
    kept: AtomicU64,
    /// Mappings whose first candidate was free, as last told.
    at_once: AtomicU64,
}

impl PinnedCounters {
    /// Opens the maps pinned below `bpffs`.
    ///
    /// # Errors
    /// Returns an error if a map is missing or has another type or size.
    pub(crate) fn open(bpffs: &Path) -> Result<Self> {
        Ok(Self {
            maps: Mutex::new(Maps::open(bpffs)?),
            tcp: AtomicU64::new(0),
            kept: AtomicU64::new(0),
            at_once: AtomicU64::new(0),
        })
    }
}

impl Source for PinnedCounters {
    fn collect(&self, samples: &mut Samples) -> Result<()> {
        let maps = lock(&self.maps);
        // Before the counters: a number that is given to another interface meanwhile begins at 0.
        let mut names = BTreeMap::from([(0, OTHERS.to_owned())]);
        for ifindex in maps.interfaces()? {
            // An interface that has just gone has no counters any more.
            if let (Ok(uplink), Ok(name)) = (maps.uplink(ifindex), if_indextoname(ifindex))
                && uplink.number() != 0
            {
                names.insert(uplink.number(), name.to_string_lossy().into_owned());
            }
        }
        let (sum, by_number) = maps.counters_by_number()?;
        // After all mappings: what is subtracted from these below is then never too little.
        let new = maps.new_mappings()?;
        drop(maps);
        let mut by_name = BTreeMap::<String, Counters>::new();
        for (number, counters) in (0..).zip(&by_number) {
            if let Some(name) = names.remove(&number) {
                by_name.entry(name).or_default().add(counters);
            }
        }
        for (name, counters) in &by_name {
            add(samples, name, counters);
        }
        samples.count(ICMP_ERRORS, &[], sum.errors_translated);
        samples.count(FRAGMENTS, &[], sum.fragments_held);
        let others = new.udp() + new.icmp() + new.other();
        let tcp = sum.mappings_created.saturating_sub(others);
        let tcp = never_less(&self.tcp, tcp);
        samples.count(CREATED, &["tcp"], tcp);
        samples.count(CREATED, &["udp"], new.udp());
        samples.count(CREATED, &["icmp"], new.icmp());
        samples.count(CREATED, &["other"], new.other());
        // A mapping is counted before its changed port: what was read in between must not shrink.
        let kept = sum.mappings_created.saturating_sub(sum.ports_changed);
        let kept = never_less(&self.kept, kept);
        let refused = sum.drops.get(DropReason::NoFreePort);
        samples.count(ALLOCATIONS, &["kept"], kept);
        samples.count(ALLOCATIONS, &["changed"], sum.ports_changed);
        samples.count(ALLOCATIONS, &["refused"], refused);
        let longer: u64 = new.searches().iter().sum();
        let at_once = sum.mappings_created.saturating_sub(longer);
        let at_once = never_less(&self.at_once, at_once);
        samples.distribution(SEARCH, by_candidates(&new, at_once));
        Ok(())
    }
}

/// Returns a number, but never less than before.
pub(crate) fn never_less(before: &AtomicU64, number: u64) -> u64 {
    before.fetch_max(number, Ordering::Relaxed).max(number)
}

/// Returns the distribution of the candidates of searches. `at_once`: those whose first candidate was
/// free, which the programs do not count.
fn by_candidates(new: &NewMappings, at_once: u64) -> Distribution {
    /// Class of the highest bound, 65,536.
    const LAST: u32 = 16;
    let mut counted = new.searches().iter().skip(1);
    let mut classes = vec![(1.0, at_once)];
    for class in 1..=LAST {
        // What one packet tries is bounded: the last classes are always empty.
        let count = counted.next().copied().unwrap_or_default();
        classes.push((f64::from(1_u32 << class), count));
    }
    classes.push((f64::MAX, 0));
    Distribution {
        sum: new.candidates + at_once,
        classes,
    }
}

/// Returns the outcomes of packets, each with its direction and its label.
fn outcomes(counters: &Counters) -> [(&'static str, &'static str, Traffic); 8] {
    [
        ("egress", "masqueraded", counters.egress_masqueraded),
        ("egress", "bypassed", counters.egress_bypassed),
        ("egress", "host", counters.egress_host),
        ("egress", "reply", counters.egress_replies),
        ("egress", "untouched", counters.egress_untouched),
        ("egress", "let_out", counters.egress_let_out),
        ("ingress", "translated", counters.ingress_translated),
        ("ingress", "passed", counters.ingress_passed),
    ]
}

/// Adds the counters of an interface.
fn add(samples: &mut Samples, uplink: &str, counters: &Counters) {
    for (direction, outcome, traffic) in outcomes(counters) {
        let labels = [uplink, direction, outcome];
        samples.count(PACKETS, &labels, traffic.packets);
        samples.count(BYTES, &labels, traffic.bytes);
    }
    for reason in DropReason::ALL {
        let dropped = counters.drops.get(*reason);
        let labels = [uplink, direction_of(*reason), reason.name()];
        samples.count(DROPPED, &labels, dropped);
    }
}

/// Returns the label of the direction in which packets are dropped for a reason.
const fn direction_of(reason: DropReason) -> &'static str {
    match reason.direction() {
        Some(Direction::Egress) => "egress",
        Some(Direction::Ingress) => "ingress",
        None => "either",
    }
}

#[cfg(test)]
mod tests {
    use super::{add, by_candidates, direction_of, outcomes};
    use crate::metrics::samples::Samples;
    use netdp_common::layout::{Counters, DropReason, NewMappings};

    #[test]
    fn every_counter_with_bytes_is_an_outcome_except_what_is_counted_twice() {
        let outcomes = outcomes(&Counters::default());
        assert_eq!(outcomes.len(), Counters::WITH_BYTES - 1);
        assert_eq!(
            super::DROPPED.most,
            super::super::table::INTERFACES * DropReason::ALL.len()
        );
    }

    #[test]
    fn what_was_never_counted_is_there_with_0() {
        let mut samples = Samples::default();
        add(&mut samples, "eth0", &Counters::default());
        let text = samples.into_text().unwrap();
        for reason in DropReason::ALL {
            let (direction, name) = (direction_of(*reason), reason.name());
            let labels = format!("uplink=\"eth0\",direction=\"{direction}\",reason=\"{name}\"");
            let line = format!("netdp_dropped_packets_total{{{labels}}} 0\n");
            assert!(text.contains(&line), "{line}{text}");
        }
        for (direction, reasons) in [("either", 3), ("ingress", 1), ("egress", 11)] {
            let label = format!("direction=\"{direction}\",reason=");
            assert_eq!(text.matches(&label).count(), reasons, "{direction}");
        }
        assert_eq!(text.matches("outcome=").count(), 16);
    }
    #[test]
    fn searches_have_bounds_up_to_65536() {
        let mut new = NewMappings::default();
        for candidates in [2, 3, 256, 4096] {
            new.count_search(candidates);
        }
        let told = by_candidates(&new, 10);
        assert_eq!(told.sum, 2 + 3 + 256 + 4096 + 10);
        let (bounds, counts): (Vec<_>, Vec<_>) = told.classes.into_iter().unzip();
        let powers = (0..=16).map(|n| f64::from(1_u32 << n));
        assert_eq!(bounds, powers.chain([f64::MAX]).collect::<Vec<_>>());
        assert_eq!(counts.iter().sum::<u64>(), 14);
        assert_eq!(
            [counts[0], counts[1], counts[2], counts[8], counts[12]],
            [10, 1, 1, 1, 1]
        );
    }
}
