//! The wire ports that a new mapping may take, and the order in which they are tried.
//!
//! Ranges are inclusive and in host byte order.

use crate::layout::{PORT_RANGES, PortRange, RESERVED_WORDS, SETTING_PORTS, Settings};

/// The order in which candidates are tried: a walk through all ports of the
/// ranges, each exactly once, from a random start.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Search {
    size: u32,
    start: u32,
    step: u32,
}

/// A prime greater than the size of any range, so that its remainder never shares a factor with the
/// size: the walk visits every port before it repeats.
const STRIDE: u32 = 65_537;

impl Search {
    /// Starts a walk through `size` ports at a position derived from `random`.
    #[inline(always)]
    #[must_use]
    pub const fn new(size: u32, random: u32) -> Self {
        if size == 0 {
            return Self {
                size,
                start: 0,
                step: 0,
            };
        }
        Self {
            size,
            start: random % size,
            step: STRIDE % size,
        }
    }

    /// Returns the number of candidates.
    #[inline(always)]
    #[must_use]
    pub const fn len(&self) -> u32 {
        self.size
    }

    /// Reports whether there are no candidates.
    #[inline(always)]
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.size == 0
    }

    /// Returns the offset of candidate `n`, to be resolved by [`nth_port`].
    #[inline(always)]
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "less than size")]
    pub const fn offset(&self, n: u32) -> u32 {
        if self.size == 0 {
            return 0;
        }
        ((self.start as u64 + n as u64 * self.step as u64) % self.size as u64) as u32
    }
}

/// Returns the number of ports in all ranges.
#[inline(always)]
#[must_use]
pub const fn total(ranges: &[PortRange; PORT_RANGES]) -> u32 {
    let mut sum = 0;
    let mut i = 0;
    while i < PORT_RANGES {
        sum += ranges[i].len();
        i += 1;
    }
    sum
}

/// Returns the port at `offset` into the concatenated ranges.
#[inline(always)]
#[must_use]
#[expect(clippy::cast_possible_truncation, reason = "inside a range of u16")]
pub const fn nth_port(ranges: &[PortRange; PORT_RANGES], mut offset: u32) -> Option<u16> {
    let mut i = 0;
    while i < PORT_RANGES {
        let len = ranges[i].len();
        if offset < len {
            return Some((ranges[i].min as u32 + offset) as u16);
        }
        offset -= len;
        i += 1;
    }
    None
}

/// Reports whether `port` lies in one of the ranges.
#[inline(always)]
#[must_use]
pub const fn contains(ranges: &[PortRange; PORT_RANGES], port: u16) -> bool {
    let mut i = 0;
    while i < PORT_RANGES {
        let range = ranges[i];
        if range.min <= port && port <= range.max {
            return true;
        }
        i += 1;
    }
    false
}

/// Returns the range of ports in the class of `port`, as netfilter does
/// (`nf_nat_l4proto_unique_tuple` in `net/netfilter/nf_nat_core.c`, Linux 6.12): below 512, 512 to
/// 1023, and the rest.
#[inline(always)]
#[must_use]
pub const fn class_of(port: u16) -> PortRange {
    match port {
        0..512 => PortRange::new(1, 511),
        512..1024 => PortRange::new(600, 1023),
        1024.. => PortRange::new(1024, u16::MAX),
    }
}

/// Returns the ports of TCP and UDP that clients' ports, 1024 and above, can be given towards one
/// destination: those of `--to-ports`, or their class; never a reserved one. `reserved` is the content of
/// the map `reserved_ports`.
pub fn of_clients<'a>(
    settings: &Settings,
    reserved: &'a [u64; RESERVED_WORDS],
) -> impl Iterator<Item = u16> + 'a {
    let ranges = if settings.flags & SETTING_PORTS == 0 {
        let mut ranges = [PortRange::EMPTY; PORT_RANGES];
        ranges[0] = class_of(u16::MAX);
        ranges
    } else {
        settings.ports
    };
    let is_free = |port: &u16| reserved[*port as usize / 64] >> (port % 64) & 1 == 0;
    (1..=u16::MAX)
        .filter(move |port| contains(&ranges, *port))
        .filter(is_free)
}

#[cfg(test)]
mod tests {
    use super::{Search, class_of, contains, nth_port, of_clients, total};
    use crate::layout::{LAYOUT, PORT_RANGES, PortRange, RESERVED_WORDS, SETTING_PORTS, Settings};
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn ranges(list: &[(u16, u16)]) -> [PortRange; PORT_RANGES] {
        let mut out = [PortRange::EMPTY; PORT_RANGES];
        for (slot, &(min, max)) in out.iter_mut().zip(list) {
            *slot = PortRange::new(min, max);
        }
        out
    }

    #[test]
    fn one_port_is_a_range() {
        let one = ranges(&[(7, 7)]);
        assert_eq!(total(&one), 1);
        assert_eq!(nth_port(&one, 0), Some(7));
        assert_eq!(nth_port(&one, 1), None);
        assert!(contains(&one, 7) && !contains(&one, 6) && !contains(&one, 8));
    }

    #[test]
    fn the_last_port_counts() {
        let full = ranges(&[(0, u16::MAX)]);
        assert_eq!(total(&full), 65_536);
        assert_eq!(nth_port(&full, 65_535), Some(u16::MAX));
        assert!(contains(&full, 0) && contains(&full, u16::MAX));
    }

    #[test]
    fn no_range_is_empty() {
        let none = ranges(&[]);
        assert_eq!(total(&none), 0);
        assert_eq!(nth_port(&none, 0), None);
        assert!(!contains(&none, 0));
        assert!(Search::new(0, 9).is_empty());
    }

    #[test]
    fn classes_are_netfilters() {
        assert_eq!(class_of(1), PortRange::new(1, 511));
        assert_eq!(class_of(511), PortRange::new(1, 511));
        assert_eq!(class_of(512), PortRange::new(600, 1023));
        assert_eq!(class_of(1023), PortRange::new(600, 1023));
        assert_eq!(class_of(1024), PortRange::new(1024, u16::MAX));
        assert_eq!(class_of(u16::MAX), PortRange::new(1024, u16::MAX));
    }

    #[test]
    fn ports_of_clients_are_those_of_their_class_or_of_to_ports() {
        let mut settings = Settings {
            active_policy: 0,
            flags: 0,
            layout: LAYOUT,
            no_leak: 0,
            ports: ranges(&[(2000, 2003), (500, 501)]),
            clock_offset: 0,
            generation: 0,
            epoch: 0,
            events: 0,
        };
        let mut reserved = [0; RESERVED_WORDS];
        assert_eq!(of_clients(&settings, &reserved).count(), 64_512);
        reserved[2001 / 64] |= 1 << (2001 % 64);
        let ports = of_clients(&settings, &reserved);
        assert_eq!(ports.filter(|port| *port != 2001).count(), 64_511);
        settings.flags = SETTING_PORTS;
        let ports: Vec<_> = of_clients(&settings, &reserved).collect();
        assert_eq!(ports, [500, 501, 2000, 2002, 2003]);
    }

    proptest! {
        #[test]
        fn the_walk_visits_every_port_once(size in 1u32..=65_536, random: u32) {
            let search = Search::new(size, random);
            let mut seen = vec![false; size as usize];
            for n in 0..search.len() {
                let offset = search.offset(n) as usize;
                prop_assert!(!seen[offset]);
                seen[offset] = true;
            }
            prop_assert!(seen.into_iter().all(|s| s));
        }

        #[test]
        fn nth_port_walks_the_ranges_in_order(a in 1u16..20_000, b in 0u16..500, gap in 1u16..1000, c in 0u16..500) {
            let list = [(a, a + b), (a + b + gap, a + b + gap + c)];
            let r = ranges(&list);
            let naive: Vec<u16> = list.iter().flat_map(|&(lo, hi)| lo..=hi).collect();
            let ours: Vec<u16> = (0..total(&r)).map(|i| nth_port(&r, i).unwrap()).collect();
            prop_assert_eq!(&naive, &ours);
            let set: BTreeSet<u16> = naive.into_iter().collect();
            for port in a.saturating_sub(2)..=a + b + gap + c + 2 {
                prop_assert_eq!(set.contains(&port), contains(&r, port));
            }
        }
    }
}
