//! Metrics of the ports in use towards single destinations.

use super::float;
use super::samples::Samples;
use super::table::{PORTS, PORTS_USED, RATIO, RATIO_MAX};
use crate::datapath::{Destination, Usage, protocol_name};
use netdp_common::layout::proto;
use std::cmp::Reverse;
use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Time for which a high share of ports is remembered.
const RECENT: Duration = Duration::from_secs(300);

/// Share of the ports from which a destination may have series of its own: one part in this many.
const NOTABLE: u64 = 16;

/// The classes of destinations whose ports are looked at, as labels.
const CLASSES: [(&str, &str); 4] = [
    ("ipv4", "tcp"),
    ("ipv4", "udp"),
    ("ipv6", "tcp"),
    ("ipv6", "udp"),
];

/// Use of the ports, as of the last full pass.
#[derive(Debug, Default)]
pub(super) struct Ports {
    /// Ports towards one destination.
    capacity: u64,
    /// Highest share of a destination's ports in each class.
    shares: [f64; 4],
    /// The same of earlier passes, the oldest first.
    recent: VecDeque<(Instant, [f64; 4])>,
    /// The destinations with most, and how many ports each uses.
    top: Vec<(Destination, u64)>,
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

impl Ports {
    /// Takes in the destinations of a pass. `capacity`: ports towards one destination; `top`: how
    /// many destinations have series.
    pub(super) fn update(&mut self, usage: &Usage, capacity: u64, top: usize, now: Instant) {
        let mut most = [0; 4];
        let mut notable = Vec::new();
        for (destination, used) in &usage.destinations {
            let Some(class) = class(destination) else {
                continue;
            };
            most[class] = most[class].max(used.mappings);
            if used.mappings * NOTABLE > capacity {
                notable.push((*destination, used.mappings));
            }
        }
        notable.sort_by_key(|(destination, used)| (Reverse(*used), *destination));
        notable.truncate(top);
        self.top = notable;
        self.capacity = capacity;
        self.shares = most.map(|used| float(used) / float(capacity.max(1)));
        self.recent.push_back((now, self.shares));
        while self
            .recent
            .front()
            .is_some_and(|(at, _)| now.duration_since(*at) > RECENT)
        {
            self.recent.pop_front();
        }
    }

    pub(super) fn collect(&self, samples: &mut Samples) {
        for (class, (family, protocol)) in CLASSES.into_iter().enumerate() {
            let labels = [family, protocol];
            samples.gauge(RATIO, &labels, self.shares[class]);
            let recent = self.recent.iter().map(|(_, shares)| shares[class]);
            samples.gauge(RATIO_MAX, &labels, recent.fold(0.0, f64::max));
        }
        for (destination, used) in &self.top {
            let labels = [
                protocol_name(destination.protocol),
                destination.seen_as.to_string(),
                destination.address.to_string(),
                destination.id.to_string(),
            ];
            let labels = labels.each_ref().map(String::as_str);
            samples.gauge(PORTS_USED, &labels, float(*used));
            samples.gauge(PORTS, &labels, float(self.capacity));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Ports;
    use crate::datapath::{Destination, Usage, Use};
    use crate::metrics::samples::Samples;
    use netdp_common::layout::proto;
    use std::time::{Duration, Instant};

    fn usage(count: u8, mappings: u64) -> Usage {
        let mut usage = Usage::default();
        for n in 0..count {
            let destination = Destination {
                protocol: proto::TCP,
                address: [192, 0, 2, n].into(),
                id: 443,
                seen_as: [10, 1, 0, 10].into(),
            };
            let used = Use {
                mappings: mappings + u64::from(n),
                ..Use::default()
            };
            usage.destinations.insert(destination, used);
        }
        usage
    }

    fn text(ports: &Ports) -> String {
        let mut samples = Samples::default();
        ports.collect(&mut samples);
        samples.into_text().unwrap()
    }

    #[test]
    fn of_three_hundred_destinations_the_first_ten_have_series() {
        let mut ports = Ports::default();
        ports.update(&usage(255, 100), 1000, 10, Instant::now());
        let told = text(&ports);
        assert_eq!(told.matches("netdp_destination_ports_used{").count(), 10);
        let first =
            "{protocol=\"tcp\",address=\"10.1.0.10\",destination=\"192.0.2.254\",port=\"443\"}";
        assert!(
            told.contains(&format!("netdp_destination_ports_used{first} 354.0\n")),
            "{told}"
        );
        assert!(
            told.contains(&format!("netdp_destination_ports{first} 1000.0\n")),
            "{told}"
        );
        let worst = "netdp_destination_ports_used_ratio{family=\"ipv4\",protocol=\"tcp\"} 0.354\n";
        assert!(told.contains(worst), "{told}");
        ports.update(&usage(255, 100), 1000, 0, Instant::now());
        assert!(!text(&ports).contains("destination="), "{told}");
    }

    #[test]
    fn a_destination_with_few_ports_has_no_series() {
        let mut ports = Ports::default();
        ports.update(&usage(1, 62), 1000, 10, Instant::now());
        assert!(!text(&ports).contains("destination="));
        ports.update(&usage(1, 63), 1000, 10, Instant::now());
        assert!(text(&ports).contains("destination="));
    }

    #[test]
    fn the_highest_share_is_remembered_for_five_minutes() {
        let start = Instant::now();
        let mut ports = Ports::default();
        let max = |ports: &Ports| {
            let told = text(ports);
            let name = "netdp_destination_ports_used_ratio_max{family=\"ipv4\",protocol=\"tcp\"} ";
            let line = told.lines().find_map(|line| line.strip_prefix(name));
            line.unwrap().to_owned()
        };
        assert_eq!(max(&ports), "0.0", "there before the first pass");
        ports.update(&usage(1, 900), 1000, 10, start);
        ports.update(&usage(1, 100), 1000, 10, start + Duration::from_secs(299));
        assert_eq!(max(&ports), "0.9");
        ports.update(&usage(1, 100), 1000, 10, start + Duration::from_secs(301));
        assert_eq!(max(&ports), "0.1");
    }
}
