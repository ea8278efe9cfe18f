//! Sums of pods' mappings by namespace, or by pod: a bounded number of series, whatever comes and
//! goes.

use crate::datapath::{PodChange, Usage};
use crate::pods::{Claim, Index};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Time for which a name without mappings keeps its series.
const KEPT: Duration = Duration::from_secs(3600);

/// Label of pods whose name is not known. Not a possible name of a namespace.
const UNKNOWN: &str = "(unknown)";

/// Label of all that have no series of their own.
const OTHER: &str = "(other)";

/// Sums under one name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Sum {
    /// Mappings that live.
    pub mappings: u64,
    /// Mappings that have begun.
    pub began: u64,
    /// Bytes that pods have sent.
    pub sent: u64,
    /// Bytes that were sent to pods.
    pub received: u64,
    /// Packets of new flows that were refused.
    pub refused: u64,
    /// Last time when there were mappings.
    seen: Instant,
}

/// Sums by name. A name is the values of a series' labels.
#[derive(Debug)]
pub(super) struct Sums {
    name: fn(&Claim) -> Vec<String>,
    /// Values of the labels that a name has.
    labels: usize,
    /// The most names, except for [`UNKNOWN`] and [`OTHER`].
    most: usize,
    sums: BTreeMap<Vec<String>, Sum>,
}

impl Sums {
    /// Returns sums by namespace.
    pub(super) fn by_namespace(most: usize) -> Self {
        let name: fn(&Claim) -> _ = |claim| vec![claim.namespace.clone()];
        Self {
            name,
            labels: 1,
            most,
            sums: BTreeMap::new(),
        }
    }

    /// Returns sums by pod.
    pub(super) fn by_pod(most: usize) -> Self {
        let name: fn(&Claim) -> _ = |claim| vec![claim.namespace.clone(), claim.name.clone()];
        Self {
            name,
            labels: 2,
            most,
            sums: BTreeMap::new(),
        }
    }

    /// Returns all sums by name.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&[String], &Sum)> {
        self.sums.iter().map(|(name, sum)| (name.as_slice(), sum))
    }

    /// Begins a pass: what lives is added anew, and names without mappings for an hour go.
    fn begin(&mut self, now: Instant) {
        self.sums
            .retain(|_, sum| now.duration_since(sum.seen) < KEPT);
        for sum in self.sums.values_mut() {
            sum.mappings = 0;
        }
    }

    /// Adds refusals of a pod.
    pub(super) fn refuse(&mut self, owner: Option<&Claim>, refused: u64, now: Instant) {
        let sum = self.of(owner, now);
        sum.refused += refused;
        sum.seen = now;
    }

    fn of(&mut self, owner: Option<&Claim>, now: Instant) -> &mut Sum {
        let fixed = |label: &str| vec![label.to_owned(); self.labels];
        let mut name = owner.map_or_else(|| fixed(UNKNOWN), self.name);
        if owner.is_some() && !self.sums.contains_key(&name) {
            let is_own = |name: &&Vec<String>| !name.iter().any(|it| it.starts_with('('));
            if self.sums.keys().filter(is_own).count() >= self.most {
                name = fixed(OTHER);
            }
        }
        self.sums.entry(name).or_insert(Sum {
            mappings: 0,
            began: 0,
            sent: 0,
            received: 0,
            refused: 0,
            seen: now,
        })
    }
}

/// The pods by their addresses, from pass to pass.
#[derive(Debug, Default)]
pub(super) struct Pods {
    /// Bytes of both directions over the mappings that lived at the last pass; `None` before the
    /// first, at which mappings of an earlier agent's time begin to count.
    traffic: Option<HashMap<IpAddr, (u64, u64)>>,
}

impl Pods {
    /// Takes in a full pass, and what has happened since the one before.
    pub(super) fn update(
        &mut self,
        all: &mut [&mut Sums],
        (usage, changes): (&Usage, &HashMap<IpAddr, PodChange>),
        names: &Index,
        now: Instant,
    ) {
        for sums in all.iter_mut() {
            sums.begin(now);
        }
        let before = self.traffic.take();
        let mut addresses: HashSet<IpAddr> = usage.pods.keys().copied().collect();
        addresses.extend(changes.keys());
        addresses.extend(before.iter().flat_map(HashMap::keys));
        let mut traffic = HashMap::new();
        for address in addresses {
            let live = usage.pods.get(&address).copied().unwrap_or_default();
            let change = changes.get(&address).copied().unwrap_or_default();
            let (sent, received) = match &before {
                None => (0, 0),
                Some(before) => {
                    let (out, back) = before.get(&address).copied().unwrap_or_default();
                    // Mappings that the programs have ended are missing.
                    (
                        (live.bytes_out + change.bytes_out).saturating_sub(out),
                        (live.bytes_in + change.bytes_in).saturating_sub(back),
                    )
                }
            };
            if (live.bytes_out, live.bytes_in) != (0, 0) {
                traffic.insert(address, (live.bytes_out, live.bytes_in));
            }
            let owner = names.last_owner(address);
            for sums in all.iter_mut() {
                let sum = sums.of(owner, now);
                sum.mappings += live.mappings;
                sum.began += change.began;
                sum.sent += sent;
                sum.received += received;
                if live.mappings > 0 || change.began > 0 {
                    sum.seen = now;
                }
            }
        }
        self.traffic = Some(traffic);
    }
}

#[cfg(test)]
mod tests {
    use super::{Pods, Sum, Sums};
    use crate::datapath::{PodChange, Usage, Use};
    use crate::pods::{Claim, Index};
    use std::collections::HashMap;
    use std::net::IpAddr;
    use std::time::{Duration, Instant};

    fn address(n: u16) -> IpAddr {
        let [a, b] = n.to_be_bytes();
        [172, 16, a, b].into()
    }

    /// Returns names of pods, each in a namespace of its own.
    fn names(count: u16) -> Index {
        let claims = (0..count).map(|n| Claim {
            address: address(n),
            namespace: format!("ns-{n}"),
            name: format!("pod-{n}"),
            uid: None,
            from: 0,
            until: None,
        });
        claims.collect()
    }

    fn usage(pods: impl Iterator<Item = (u16, u64)>) -> Usage {
        let mut usage = Usage::default();
        for (pod, bytes) in pods {
            let used = Use {
                mappings: 1,
                new: 0,
                bytes_out: bytes,
                bytes_in: 2 * bytes,
            };
            usage.pods.insert(address(pod), used);
        }
        usage
    }

    fn ended(pod: u16, bytes: u64) -> HashMap<IpAddr, PodChange> {
        let change = PodChange {
            began: 1,
            bytes_out: bytes,
            bytes_in: 2 * bytes,
        };
        [(address(pod), change)].into()
    }

    fn numbers(sum: &Sum) -> [u64; 4] {
        [sum.mappings, sum.began, sum.sent, sum.received]
    }

    fn of(sums: &Sums, name: &str) -> [u64; 4] {
        let mut found = sums.iter().filter(|(labels, _)| labels[0] == name);
        numbers(found.next().unwrap().1)
    }

    #[test]
    fn traffic_counts_once_whether_its_mapping_has_ended_or_not() {
        let (names, now) = (names(2), Instant::now());
        let (mut pods, mut sums) = (Pods::default(), Sums::by_namespace(64));
        let mut pass = |live: &[(u16, u64)], changes: &HashMap<_, _>| {
            let usage = usage(live.iter().copied());
            pods.update(&mut [&mut sums], (&usage, changes), &names, now);
            of(&sums, "ns-1")
        };
        let none = HashMap::new();
        assert_eq!(pass(&[(1, 500)], &none), [1, 0, 0, 0], "an earlier agent's");
        assert_eq!(pass(&[(1, 600)], &none), [1, 0, 100, 200]);
        // It ends with 650, and another has begun that has sent 40.
        assert_eq!(pass(&[(1, 40)], &ended(1, 650)), [1, 1, 190, 380]);
        // The programs end it.
        assert_eq!(pass(&[], &none), [0, 1, 190, 380]);
        assert_eq!(pass(&[(1, 5)], &none), [1, 1, 195, 390]);
    }

    #[test]
    fn five_hundred_pods_have_bounded_series_whose_sum_is_theirs() {
        let (names, now) = (names(499), Instant::now());
        let mut all = [Sums::by_namespace(64), Sums::by_pod(300)];
        let mut pods = Pods::default();
        for bytes in [0, 10] {
            let usage = usage((0..500).map(|pod| (pod, bytes)));
            let [by_namespace, by_pod] = &mut all;
            let seen = (&usage, &HashMap::new());
            pods.update(&mut [by_namespace, by_pod], seen, &names, now);
        }
        for (sums, most) in all.iter().zip([64, 300]) {
            assert_eq!(sums.iter().count(), most + 2);
            let total: u64 = sums.iter().map(|(_, sum)| sum.mappings).sum();
            assert_eq!(total, 500);
            assert_eq!(of(sums, "(unknown)"), [1, 0, 10, 20]);
            let rest = 499 - u64::try_from(most).unwrap();
            assert_eq!(of(sums, "(other)"), [rest, 0, 10 * rest, 20 * rest]);
        }
    }

    #[test]
    fn names_without_mappings_go_after_an_hour_and_leave_room() {
        let (names, now) = (names(2), Instant::now());
        let (mut pods, mut sums) = (Pods::default(), Sums::by_namespace(1));
        let none = HashMap::new();
        let mut pass = |pod: u16, minutes: u64| {
            let now = now + Duration::from_secs(60 * minutes);
            let usage = usage([(pod, 1)].into_iter());
            pods.update(&mut [&mut sums], (&usage, &none), &names, now);
            let names = sums.iter().map(|(labels, _)| labels[0].clone());
            names.collect::<Vec<_>>()
        };
        assert_eq!(pass(0, 0), ["ns-0"]);
        assert_eq!(pass(1, 59), ["(other)", "ns-0"]);
        assert_eq!(pass(1, 60), ["(other)", "ns-1"]);
    }
}
