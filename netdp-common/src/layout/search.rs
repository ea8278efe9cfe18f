//! Counts of the search for ports and of refusals, which metrics show.

/// The number of classes of searches by their candidates.
pub const SEARCH_CLASSES: usize = 16;

/// Value of the `port_searches` map: searches whose first candidate was taken, of mappings that
/// were created. One entry for each CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PortSearches {
    /// Searches by [`search_class`]; class 0 stays empty.
    pub searches: [u64; SEARCH_CLASSES],
    /// Candidates tried by all of them.
    pub candidates: u64,
}

impl PortSearches {
    /// Counts a search that tried this many candidates.
    #[inline(always)]
    pub const fn count(&mut self, candidates: u32) {
        self.searches[search_class(candidates) as usize & (SEARCH_CLASSES - 1)] += 1;
        self.candidates += candidates as u64;
    }

    /// Adds other counts.
    pub fn add(&mut self, other: &Self) {
        for (sum, more) in self.searches.iter_mut().zip(other.searches) {
            *sum += more;
        }
        self.candidates += other.candidates;
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
    use super::{PortSearches, search_class};

    #[test]
    fn a_class_ends_with_a_power_of_two() {
        for (candidates, class) in [(0, 0), (1, 0), (2, 1), (3, 2), (4, 2), (5, 3), (256, 8)] {
            assert_eq!(search_class(candidates), class, "{candidates}");
        }
        assert_eq!(search_class(u32::MAX), 32);
    }

    #[test]
    fn searches_and_their_candidates_are_counted() {
        let mut counted = PortSearches::default();
        for candidates in [2, 3, 4, 257] {
            counted.count(candidates);
        }
        assert_eq!(counted.searches[..4], [0, 1, 2, 0]);
        assert_eq!(counted.searches[9], 1);
        assert_eq!(counted.candidates, 266);
    }
}
