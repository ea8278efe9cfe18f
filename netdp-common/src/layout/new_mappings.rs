//! Counts of new mappings besides their number: searches for ports, and protocols.

use super::tuple::proto;

/// The number of counts in a [`NewMappings`]. A power of two.
const COUNTS: usize = 16;

/// The number of classes of searches by their candidates: the last one ends with 4,096, many more
/// than one packet tries.
pub const SEARCH_CLASSES: usize = 13;

/// Positions of the counts of protocols, which were classes of searches that never occur: in the map
/// of an earlier version they are 0.
const UDP: usize = 13;
const ICMP: usize = 14;
const OTHER: usize = 15;

/// Value of the `port_searches` map, which is named after the older part of it: of the mappings that
/// were created, those that had to search for a port, and those of other protocols than TCP. The
/// common cases, TCP and a first candidate that is free, are the rest of
/// [`Counters::mappings_created`](super::Counters::mappings_created). One entry for each CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NewMappings {
    /// Searches whose first candidate was taken, by [`search_class`], of which class 0 stays empty;
    /// then mappings of UDP, of ICMP and ICMPv6, and of all other protocols but TCP.
    pub counts: [u64; COUNTS],
    /// Candidates tried by all searches.
    pub candidates: u64,
}

impl NewMappings {
    /// Counts a search that tried this many candidates.
    #[inline(always)]
    pub const fn count_search(&mut self, candidates: u32) {
        // Masked for the verifier: a search has fewer candidates than the last classes stand for.
        self.counts[search_class(candidates) as usize & (COUNTS - 1)] += 1;
        self.candidates += candidates as u64;
    }

    /// Counts a mapping of this protocol ([`proto`]); nothing for TCP.
    #[inline(always)]
    pub const fn count_protocol(&mut self, protocol: u32) {
        let at = match protocol {
            proto::TCP => return,
            proto::UDP => UDP,
            proto::ICMP | proto::ICMPV6 => ICMP,
            _ => OTHER,
        };
        self.counts[at] += 1;
    }

    /// Returns the searches by class.
    #[must_use]
    pub fn searches(&self) -> &[u64] {
        &self.counts[..SEARCH_CLASSES]
    }

    /// Returns the mappings of UDP.
    #[must_use]
    pub const fn udp(&self) -> u64 {
        self.counts[UDP]
    }

    /// Returns the mappings of ICMP and ICMPv6.
    #[must_use]
    pub const fn icmp(&self) -> u64 {
        self.counts[ICMP]
    }

    /// Returns the mappings of other protocols than TCP, UDP, ICMP and ICMPv6.
    #[must_use]
    pub const fn other(&self) -> u64 {
        self.counts[OTHER]
    }

    /// Adds other counts.
    pub fn add(&mut self, more: &Self) {
        for (sum, more) in self.counts.iter_mut().zip(more.counts) {
            *sum += more;
        }
        self.candidates += more.candidates;
    }
}

/// Returns the class of a search: n for more than 2ⁿ⁻¹ and at most 2ⁿ candidates.
#[inline(always)]
#[must_use]
pub const fn search_class(candidates: u32) -> u32 {
    u32::BITS - candidates.saturating_sub(1).leading_zeros()
}

#[cfg(test)]
mod tests {
    use super::{NewMappings, SEARCH_CLASSES, search_class};
    use crate::layout::proto;

    #[test]
    fn a_class_ends_with_a_power_of_two() {
        for (candidates, class) in [(0, 0), (1, 0), (2, 1), (3, 2), (4, 2), (5, 3), (256, 8)] {
            assert_eq!(search_class(candidates), class, "{candidates}");
        }
        assert_eq!(search_class(u32::MAX), 32);
    }

    #[test]
    fn searches_and_their_candidates_are_counted() {
        let mut counted = NewMappings::default();
        for candidates in [2, 3, 4, 257] {
            counted.count_search(candidates);
        }
        assert_eq!(counted.searches()[..4], [0, 1, 2, 0]);
        assert_eq!(counted.searches()[9], 1);
        assert_eq!(counted.candidates, 266);
        assert_eq!([counted.udp(), counted.icmp(), counted.other()], [0; 3]);
    }

    #[test]
    fn protocols_other_than_tcp_are_counted() {
        let mut counted = NewMappings::default();
        for protocol in [proto::TCP, proto::UDP, proto::ICMP, proto::ICMPV6, 47] {
            counted.count_protocol(protocol);
        }
        let earlier = counted;
        counted.add(&earlier);
        let counts = [counted.udp(), counted.icmp(), counted.other()];
        assert_eq!(counts, [2, 4, 2]);
        assert_eq!(counted.searches(), [0; SEARCH_CLASSES]);
    }
}
