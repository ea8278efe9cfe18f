//! Who had an address when: claims of pods on addresses, with begin and end.

use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::net::IpAddr;

/// The most ended claims that are remembered.
const ENDED: usize = 4096;

/// Milliseconds by which a mapping may seem older than it is: a tick of the datapath, and the rounding
/// of a file's time.
const TICK: u64 = 68;

/// A pod that has, or had, an address. Times are in milliseconds since 1970.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Claim {
    /// The address.
    pub address: IpAddr,
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub name: String,
    /// The pod's UID, if the container runtime has told it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<String>,
    /// The time at which it got the address.
    pub from: u64,
    /// The time at which it gave the address up; `None` while it has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<u64>,
}

impl Claim {
    /// Makes the claims of a pod to addresses that it has from a time on, in milliseconds since 1970.
    pub(crate) fn all(
        namespace: &str,
        name: &str,
        uid: Option<&str>,
        addresses: impl Iterator<Item = IpAddr>,
        from: u64,
    ) -> Vec<Self> {
        let claim = |address| Self {
            address,
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            uid: uid.map(str::to_owned),
            from,
            until: None,
        };
        addresses.map(claim).collect()
    }

    fn is_of_same_pod(&self, other: &Self) -> bool {
        self.address == other.address
            && self.namespace == other.namespace
            && self.name == other.name
            && self.uid == other.uid
    }

    /// Reports whether the pod had the address at a time.
    fn covers(&self, time: u64) -> bool {
        self.from <= time.saturating_add(TICK) && self.until.is_none_or(|until| time <= until)
    }
}

/// The owner of an address at a time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Owner<'a> {
    /// The pod, and for how long it had the address.
    pub claim: &'a Claim,
    /// False if another pod claims the address for that time, too.
    pub is_sure: bool,
}

/// Claims by address.
#[derive(Debug, Default)]
pub(crate) struct Index {
    /// The claims of each address, by their begin.
    claims: HashMap<IpAddr, Vec<Claim>>,
}

impl FromIterator<Claim> for Index {
    fn from_iter<I: IntoIterator<Item = Claim>>(claims: I) -> Self {
        let mut index = Self::default();
        for claim in claims {
            index.insert(claim);
        }
        index
    }
}

impl Index {
    /// Returns the owner of an address at a time; of several claims the newest counts.
    pub(crate) fn owner(&self, address: IpAddr, time: u64) -> Option<Owner<'_>> {
        let claims = self.claims.get(&address)?;
        let mut covering = claims.iter().rev().filter(|claim| claim.covers(time));
        let claim = covering.next()?;
        Some(Owner {
            claim,
            is_sure: covering.all(|other| other.is_of_same_pod(claim)),
        })
    }

    /// Returns the last owner of an address, whether it has it still or not.
    pub(crate) fn last_owner(&self, address: IpAddr) -> Option<&Claim> {
        self.claims.get(&address)?.last()
    }

    /// Returns all claims.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Claim> {
        self.claims.values().flatten()
    }

    /// Takes in the claims that are there at the time `now`: others have ended. Ended ones are
    /// remembered for `keep` milliseconds. Reports whether anything changed.
    pub(crate) fn refresh(&mut self, found: Vec<Claim>, now: u64, keep: u64) -> bool {
        let mut changed = false;
        let mut by_address = HashMap::<IpAddr, Vec<Claim>>::new();
        for claim in found {
            by_address.entry(claim.address).or_default().push(claim);
        }
        for (address, claims) in &mut self.claims {
            let there = by_address.get(address).map_or(&[][..], Vec::as_slice);
            for claim in claims.iter_mut().filter(|claim| claim.until.is_none()) {
                if !there.iter().any(|found| found.is_of_same_pod(claim)) {
                    let begins = there.iter().map(|next| next.from);
                    let next = begins.filter(|from| *from > claim.from).min();
                    claim.until = Some(next.unwrap_or(now).min(now));
                    changed = true;
                }
            }
        }
        for claim in by_address.into_values().flatten() {
            changed |= self.insert(claim);
        }
        self.expire(now, keep) || changed
    }

    /// Adds a claim; reports whether it was unknown.
    fn insert(&mut self, claim: Claim) -> bool {
        let claims = self.claims.entry(claim.address).or_default();
        let known = claims.iter_mut().find(|known| {
            // A pod that gets an address again after it has lost it has another claim.
            known.is_of_same_pod(&claim) && known.until.is_none_or(|until| claim.from < until)
        });
        if let Some(known) = known {
            let before = (known.from, known.until);
            known.from = known.from.min(claim.from);
            known.until = claim.until;
            return before != (known.from, known.until);
        }
        let at = claims.partition_point(|other| other.from <= claim.from);
        claims.insert(at, claim);
        true
    }

    /// Forgets claims that ended long ago, and the oldest of too many.
    fn expire(&mut self, now: u64, keep: u64) -> bool {
        let mut ends: Vec<_> = self.iter().filter_map(|claim| claim.until).collect();
        ends.sort_unstable_by_key(|end| std::cmp::Reverse(*end));
        let too_many = ends.get(ENDED).map_or(0, |end| end.saturating_add(1));
        let oldest = now.saturating_sub(keep).max(too_many);
        let mut changed = false;
        self.claims.retain(|_, claims| {
            let before = claims.len();
            claims.retain(|claim| claim.until.is_none_or(|until| until >= oldest));
            changed |= claims.len() < before;
            !claims.is_empty()
        });
        changed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEEP: u64 = 1_000_000;

    fn claim(address: &str, name: &str, from: u64) -> Claim {
        Claim {
            address: address.parse().unwrap(),
            namespace: "shop".into(),
            name: name.into(),
            uid: Some(format!("uid-of-{name}")),
            from,
            until: None,
        }
    }

    fn name(index: &Index, time: u64) -> Option<(&str, bool)> {
        let owner = index.owner("10.0.0.2".parse().unwrap(), time)?;
        Some((&owner.claim.name, owner.is_sure))
    }

    #[test]
    fn the_owner_is_who_had_the_address_then() {
        let mut index = Index::default();
        assert!(index.refresh(vec![claim("10.0.0.2", "a", 1_000)], 1_100, KEEP));
        assert!(!index.refresh(vec![claim("10.0.0.2", "a", 1_000)], 2_000, KEEP));
        assert!(index.refresh(vec![], 3_000, KEEP));
        assert!(index.refresh(vec![claim("10.0.0.2", "b", 5_000)], 5_100, KEEP));
        assert_eq!(name(&index, 900), None);
        // The mapping's time is that of the tick in which it began.
        assert_eq!(name(&index, 950), Some(("a", true)));
        assert_eq!(name(&index, 3_000), Some(("a", true)));
        assert_eq!(name(&index, 4_000), None);
        assert_eq!(name(&index, 9_000), Some(("b", true)));
        let last = index.last_owner("10.0.0.2".parse().unwrap());
        assert_eq!(last.map(|claim| claim.name.as_str()), Some("b"));
    }

    #[test]
    fn a_successor_ends_a_claim_whose_end_nobody_saw() {
        let mut index: Index = [claim("10.0.0.2", "a", 1_000)].into_iter().collect();
        index.refresh(vec![claim("10.0.0.2", "b", 5_000)], 9_000, KEEP);
        assert_eq!(
            name(&index, 4_999),
            Some(("b", false)),
            "within a tick of both"
        );
        assert_eq!(name(&index, 4_000), Some(("a", true)));
        assert_eq!(name(&index, 6_000), Some(("b", true)));
    }

    #[test]
    fn of_two_claims_the_newest_counts_and_is_unsure() {
        let both = vec![claim("10.0.0.2", "b", 5_000), claim("10.0.0.2", "a", 1_000)];
        let mut index = Index::default();
        index.refresh(both, 6_000, KEEP);
        assert_eq!(name(&index, 7_000), Some(("b", false)));
        assert_eq!(name(&index, 2_000), Some(("a", true)));
    }

    #[test]
    fn a_pod_with_two_interfaces_and_one_address_is_no_dispute() {
        let both = vec![claim("10.0.0.2", "a", 1_000), claim("10.0.0.2", "a", 1_010)];
        let mut index = Index::default();
        index.refresh(both, 6_000, KEEP);
        assert_eq!(name(&index, 7_000), Some(("a", true)));
        assert_eq!(index.iter().count(), 1);
    }

    #[test]
    fn a_pod_that_gets_its_address_again_has_two_claims() {
        let mut index = Index::default();
        index.refresh(vec![claim("10.0.0.2", "a", 1_000)], 1_100, KEEP);
        index.refresh(vec![], 2_000, KEEP);
        index.refresh(vec![claim("10.0.0.2", "a", 4_000)], 4_100, KEEP);
        assert_eq!(index.iter().count(), 2);
        assert_eq!(name(&index, 3_000), None);
        assert_eq!(name(&index, 4_500), Some(("a", true)));
        // A directory that could not be read for a while.
        index.refresh(vec![], 5_000, KEEP);
        index.refresh(vec![claim("10.0.0.2", "a", 4_000)], 5_100, KEEP);
        assert_eq!(index.iter().count(), 2);
        assert_eq!(name(&index, 9_000), Some(("a", true)));
    }

    #[test]
    fn ended_claims_are_forgotten_by_age_and_number() {
        let mut index = Index::default();
        index.refresh(vec![claim("10.0.0.2", "a", 1_000)], 1_100, KEEP);
        index.refresh(vec![], 2_000, KEEP);
        assert!(!index.refresh(vec![], 2_000 + KEEP, KEEP));
        assert!(index.refresh(vec![], 2_001 + KEEP, KEEP));
        assert_eq!(index.iter().count(), 0);

        let ended = (0..).map(|end| Claim {
            until: Some(10_000 + end),
            ..claim("10.0.0.2", &format!("pod-{end}"), 10 * end)
        });
        let mut index: Index = ended.take(ENDED + 3).collect();
        index.refresh(vec![], 20_000, KEEP);
        let oldest = index.iter().filter_map(|claim| claim.until).min();
        assert_eq!((index.iter().count(), oldest), (ENDED, Some(10_003)));
    }
}
