//! Metrics of the ports in use towards single destinations.

use super::float;
use super::samples::Samples;
use super::table::{Metric, PORTS, PORTS_USED, PORTS_USED_MAX, RATIO, RATIO_MAX};
use crate::datapath::{Destination, Peaks, Usage, protocol_name};
use netdp_common::layout::proto;
use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::time::{Duration, Instant};

/// Time for which a high use of ports is remembered.
const RECENT: Duration = Duration::from_secs(300);

/// Time whose passes are remembered as one, so that there are few to remember however often passes
/// run.
const TOGETHER: Duration = Duration::from_secs(5);

/// Share of the ports from which a destination may have series of its own: one part in this many.
const NOTABLE: u64 = 16;

/// The classes of destinations whose ports are looked at, as labels.
const CLASSES: [(&str, &str); 4] = [
    ("ipv4", "tcp"),
    ("ipv4", "udp"),
    ("ipv6", "tcp"),
    ("ipv6", "udp"),
];

/// The highest use of ports that passes have seen within [`TOGETHER`].
#[derive(Debug)]
struct Peak {
    /// Time of the first of these passes.
    since: Instant,
    /// Highest share of a destination's ports in each class.
    shares: [f64; 4],
    /// The destinations with most, and how many ports each had in use.
    top: Vec<(Destination, u64)>,
}

/// Use of the ports, as of the last passes.
#[derive(Debug, Default)]
pub(super) struct Ports {
    /// Ports towards one destination.
    capacity: u64,
    /// Highest share of a destination's ports in each class.
    shares: [f64; 4],
    /// The destinations with most, and how many ports each uses.
    top: Vec<(Destination, u64)>,
    /// What passes saw in the last five minutes, the oldest first.
    recent: VecDeque<Peak>,
    /// The destinations with most in these, and how many ports each had in use at most.
    highest: Vec<(Destination, u64)>,
}

/// Returns the class of a destination; `None` if its protocol has no ports.
fn class(destination: &Destination) -> Option<usize> {
    let family = if destination.address.is_ipv4() { 0 } else { 2 };
    match destination.protocol {
        proto::TCP => Some(family),
        proto::UDP => Some(family + 1),
        _ => None,
    }
}

/// Returns the highest share of the ports in each class, and the `top` destinations with most of
/// those that have a notable share. `capacity`: ports towards one destination.
fn most_used(
    destinations: impl Iterator<Item = (Destination, u64)>,
    capacity: u64,
    top: usize,
) -> ([f64; 4], Vec<(Destination, u64)>) {
    let mut most = [0; 4];
    let mut notable = Vec::new();
    for (destination, used) in destinations {
        let Some(class) = class(&destination) else {
            continue;
        };
        most[class] = most[class].max(used);
        if used * NOTABLE > capacity {
            notable.push((destination, used));
        }
    }
    let shares = most.map(|used| float(used) / float(capacity.max(1)));
    (shares, first(notable, top))
}

/// Returns the `top` destinations with most.
fn first(mut destinations: Vec<(Destination, u64)>, top: usize) -> Vec<(Destination, u64)> {
    destinations.sort_unstable_by_key(|(destination, used)| (Reverse(*used), *destination));
    destinations.truncate(top);
    destinations
}

/// Returns the `top` destinations with most of several lists, each with its highest number. Where
/// each list has its own first `top`, none is missing.
fn highest<'a>(
    lists: impl Iterator<Item = &'a Vec<(Destination, u64)>>,
    top: usize,
) -> Vec<(Destination, u64)> {
    let mut highest = HashMap::<_, u64>::new();
    for (destination, used) in lists.flatten() {
        let most = highest.entry(*destination).or_default();
        *most = (*most).max(*used);
    }
    first(highest.into_iter().collect(), top)
}

impl Ports {
    /// Takes in what a pass has seen before it ended any mapping, and `left`: what was left after it,
    /// if it was a full one. `capacity`: ports towards one destination; `top`: how many destinations
    /// have series.
    pub(super) fn update(
        &mut self,
        seen: &Peaks,
        left: Option<&Usage>,
        (capacity, top): (u64, usize),
        now: Instant,
    ) {
        self.capacity = capacity;
        if let Some(left) = left {
            let used = left.destinations.iter();
            let used = used.map(|(destination, used)| (*destination, used.mappings));
            (self.shares, self.top) = most_used(used, capacity, top);
        }
        self.remember(seen, top, now);
    }

    fn remember(&mut self, seen: &Peaks, top: usize, now: Instant) {
        let capacity = self.capacity;
        // A port that is free again while a pass runs may have been seen twice.
        let used = seen.iter();
        let used = used.map(|(destination, used)| (*destination, (*used).min(capacity)));
        let (shares, destinations) = most_used(used, capacity, top);
        match self.recent.back_mut() {
            Some(last) if now.duration_since(last.since) < TOGETHER => {
                for (before, share) in last.shares.iter_mut().zip(shares) {
                    *before = before.max(share);
                }
                last.top = highest([&last.top, &destinations].into_iter(), top);
            }
            _ => self.recent.push_back(Peak {
                since: now,
                shares,
                top: destinations,
            }),
        }
        let is_old = |peak: &Peak| now.duration_since(peak.since) > RECENT;
        while self.recent.front().is_some_and(is_old) {
            self.recent.pop_front();
        }
        self.highest = highest(self.recent.iter().map(|peak| &peak.top), top);
    }

    pub(super) fn collect(&self, samples: &mut Samples) {
        for (class, (family, protocol)) in CLASSES.into_iter().enumerate() {
            let labels = [family, protocol];
            samples.gauge(RATIO, &labels, self.shares[class]);
            let recent = self.recent.iter().map(|peak| peak.shares[class]);
            samples.gauge(RATIO_MAX, &labels, recent.fold(0.0, f64::max));
        }
        for (metric, destinations) in [(PORTS_USED, &self.top), (PORTS_USED_MAX, &self.highest)] {
            for (destination, used) in destinations {
                add(samples, metric, destination, *used);
            }
        }
        let shown: BTreeSet<_> = self
            .top
            .iter()
            .chain(&self.highest)
            .map(|it| it.0)
            .collect();
        for destination in shown {
            add(samples, PORTS, &destination, self.capacity);
        }
    }
}

/// Adds a number of a destination.
fn add(samples: &mut Samples, metric: &'static Metric, destination: &Destination, number: u64) {
    let labels = [
        protocol_name(destination.protocol),
        destination.seen_as.to_string(),
        destination.address.to_string(),
        destination.id.to_string(),
    ];
    let labels = labels.each_ref().map(String::as_str);
    samples.gauge(metric, &labels, float(number));
}

#[cfg(test)]
mod tests {
    use super::{Ports, RECENT, TOGETHER};
    use crate::datapath::{Destination, Peaks, Usage, Use};
    use crate::metrics::samples::Samples;
    use netdp_common::layout::proto;
    use std::time::{Duration, Instant};

    const CAPACITY: u64 = 1000;

    fn destination(n: u8) -> Destination {
        Destination {
            protocol: proto::TCP,
            address: [192, 0, 2, n].into(),
            id: 443,
            seen_as: [10, 1, 0, 10].into(),
        }
    }

    /// Mappings of `count` destinations, one more for each than for the one before.
    fn peaks(count: u8, mappings: u64) -> Peaks {
        let mappings = |n| mappings + u64::from(n);
        (0..count).map(|n| (destination(n), mappings(n))).collect()
    }

    /// Takes in a pass that has seen these mappings, of which all stayed.
    fn pass(ports: &mut Ports, seen: &Peaks, top: usize, now: Instant) {
        let mut usage = Usage::default();
        for (destination, mappings) in seen {
            let used = Use {
                mappings: *mappings,
                ..Use::default()
            };
            usage.destinations.insert(*destination, used);
        }
        ports.update(seen, Some(&usage), (CAPACITY, top), now);
    }

    fn text(ports: &Ports) -> String {
        let mut samples = Samples::default();
        ports.collect(&mut samples);
        samples.into_text().unwrap()
    }

    /// Returns a metric's series, as their lines have them.
    fn series(ports: &Ports, metric: &str) -> Vec<String> {
        let told = text(ports);
        let lines = told.lines();
        let of = lines.filter(|line| line.split('{').next() == Some(metric));
        of.map(str::to_owned).collect()
    }

    /// Returns the highest share of the ports that is remembered.
    fn max(ports: &Ports) -> String {
        let told = text(ports);
        let name = "netdp_destination_ports_used_ratio_max{family=\"ipv4\",protocol=\"tcp\"} ";
        let line = told.lines().find_map(|line| line.strip_prefix(name));
        line.unwrap().to_owned()
    }

    /// Returns the most ports in use that are remembered of a destination.
    fn most(ports: &Ports, n: u8) -> Option<String> {
        let of = format!("destination=\"192.0.2.{n}\"");
        let all = series(ports, "netdp_destination_ports_used_max");
        let line = all.into_iter().find(|line| line.contains(&of))?;
        Some(line.rsplit_once(' ').unwrap().1.to_owned())
    }

    #[test]
    fn of_three_hundred_destinations_the_first_ten_have_series() {
        let mut ports = Ports::default();
        pass(&mut ports, &peaks(255, 100), 10, Instant::now());
        for metric in ["", "_used", "_used_max"] {
            let metric = format!("netdp_destination_ports{metric}");
            assert_eq!(series(&ports, &metric).len(), 10, "{metric}");
        }
        let told = text(&ports);
        let first =
            "{protocol=\"tcp\",address=\"10.1.0.10\",destination=\"192.0.2.254\",port=\"443\"}";
        for line in [
            format!("netdp_destination_ports_used{first} 354.0\n"),
            format!("netdp_destination_ports_used_max{first} 354.0\n"),
            format!("netdp_destination_ports{first} 1000.0\n"),
            "netdp_destination_ports_used_ratio{family=\"ipv4\",protocol=\"tcp\"} 0.354\n".into(),
        ] {
            assert!(told.contains(&line), "{line}{told}");
        }
        pass(&mut ports, &peaks(255, 100), 0, Instant::now());
        assert!(!text(&ports).contains("destination="), "{told}");
    }

    #[test]
    fn a_destination_with_few_ports_has_no_series() {
        let mut ports = Ports::default();
        pass(&mut ports, &peaks(1, 62), 10, Instant::now());
        assert!(!text(&ports).contains("destination="));
        pass(&mut ports, &peaks(1, 63), 10, Instant::now());
        assert!(text(&ports).contains("destination="));
    }

    #[test]
    fn the_highest_use_is_remembered_for_five_minutes() {
        let start = Instant::now();
        let mut ports = Ports::default();
        assert_eq!(max(&ports), "0.0", "there before the first pass");
        pass(&mut ports, &peaks(1, 900), 10, start);
        let later = |seconds| start + Duration::from_secs(seconds);
        pass(&mut ports, &peaks(1, 100), 10, later(299));
        assert_eq!(
            (&*max(&ports), most(&ports, 0)),
            ("0.9", Some("900.0".into()))
        );
        pass(&mut ports, &peaks(1, 100), 10, later(301));
        assert_eq!(
            (&*max(&ports), most(&ports, 0)),
            ("0.1", Some("100.0".into()))
        );
    }

    /// What a pass has ended is in no series of what is in use, but in those of the most.
    #[test]
    fn what_came_and_went_between_two_passes_is_remembered() {
        let mut ports = Ports::default();
        let now = Instant::now();
        let nothing = Usage::default();
        ports.update(&peaks(1, 700), Some(&nothing), (CAPACITY, 10), now);
        assert_eq!(
            (&*max(&ports), most(&ports, 0)),
            ("0.7", Some("700.0".into()))
        );
        assert!(series(&ports, "netdp_destination_ports_used").is_empty());
        let sizes = series(&ports, "netdp_destination_ports");
        assert!(matches!(&sizes[..], [line] if line.ends_with(" 1000.0")));
        // Ports that were free in between were seen twice.
        ports.update(&peaks(1, 1700), None, (CAPACITY, 10), now);
        assert_eq!(
            (&*max(&ports), most(&ports, 0)),
            ("1.0", Some("1000.0".into()))
        );
    }

    #[test]
    fn passes_that_follow_each_other_quickly_are_remembered_as_one() {
        let start = Instant::now();
        let mut ports = Ports::default();
        for n in 0..10_000_u32 {
            // The destinations with most are others each time.
            let [.., last] = n.to_be_bytes();
            let seen = (0..3).map(|more| (destination(last ^ more), 500 + u64::from(n % 7)));
            let now = start + Duration::from_millis(50) * n;
            ports.update(&seen.collect(), None, (CAPACITY, 2), now);
        }
        let most = RECENT.as_secs() / TOGETHER.as_secs() + 1;
        assert!(ports.recent.len() as u64 <= most, "{}", ports.recent.len());
        assert!(ports.recent.iter().all(|peak| peak.top.len() == 2));
        assert_eq!(max(&ports), "0.506");
        assert_eq!(series(&ports, "netdp_destination_ports_used_max").len(), 2);
    }
}
