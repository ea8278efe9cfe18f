//! Refusals by pod, from the programs' counts by bucket.

use super::namespaces::Sums;
use crate::datapath::Maps;
use crate::pods::{Claim, Index};
use anyhow::Result;
use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Instant;

/// The counts of the last pass by bucket; `None` before the first: an earlier agent's refusals are not
/// counted again.
#[derive(Debug, Default)]
pub(super) struct Refusals(Option<HashMap<u32, u64>>);

impl Refusals {
    /// Adds what was refused since the last pass to the sums of the pods. `pods`: addresses with mappings,
    /// in addition to those of known names.
    ///
    /// # Errors
    /// Returns an error if a map can't be read.
    pub(super) fn update(
        &mut self,
        all: &mut [&mut Sums],
        maps: &Maps,
        pods: impl Iterator<Item = IpAddr>,
        names: &Index,
        now: Instant,
    ) -> Result<()> {
        if all.is_empty() {
            return Ok(());
        }
        let refused = self.since_last(maps.refusals()?);
        if refused.is_empty() {
            return Ok(());
        }
        let bucket = maps.bucket_of_pod()?;
        for (owner, count) in by_owner(&refused, bucket, pods, names) {
            for sums in all.iter_mut() {
                sums.refuse(owner, count, now);
            }
        }
        Ok(())
    }

    /// Returns what the buckets have more than at the last pass.
    fn since_last(&mut self, counts: HashMap<u32, u64>) -> HashMap<u32, u64> {
        let more = |before: &HashMap<u32, u64>| {
            let all = counts.iter().map(|(bucket, count)| {
                let before = before.get(bucket).copied().unwrap_or_default();
                (*bucket, count.saturating_sub(before))
            });
            all.filter(|(_, more)| *more != 0).collect()
        };
        let more = self.0.as_ref().map(more).unwrap_or_default();
        self.0 = Some(counts);
        more
    }
}

/// Returns the pods to which the refusals of buckets belong. A bucket of several pods, or of none that is
/// known, has no owner.
fn by_owner<'a>(
    refused: &HashMap<u32, u64>,
    bucket: impl Fn(IpAddr) -> u32,
    pods: impl Iterator<Item = IpAddr>,
    names: &'a Index,
) -> Vec<(Option<&'a Claim>, u64)> {
    let mut addresses = HashMap::<u32, Vec<IpAddr>>::new();
    for address in pods.chain(names.iter().map(|claim| claim.address)) {
        let of_bucket = addresses.entry(bucket(address)).or_default();
        if !of_bucket.contains(&address) {
            of_bucket.push(address);
        }
    }
    let owner = |bucket: &u32| match addresses.get(bucket).map(Vec::as_slice) {
        Some([address]) => names.last_owner(*address),
        _ => None,
    };
    let all = refused.iter();
    all.map(|(bucket, count)| (owner(bucket), *count)).collect()
}

#[cfg(test)]
mod tests {
    use super::{Refusals, by_owner};
    use crate::pods::{Claim, Index};
    use std::collections::HashMap;
    use std::net::IpAddr;

    fn address(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn only_what_is_new_counts() {
        let mut refusals = Refusals::default();
        let counts = |of: &[(u32, u64)]| of.iter().copied().collect::<HashMap<_, _>>();
        assert!(refusals.since_last(counts(&[(1, 5)])).is_empty());
        let more = refusals.since_last(counts(&[(1, 7), (2, 1)]));
        assert_eq!(more, counts(&[(1, 2), (2, 1)]));
        // The maps were made anew.
        assert!(refusals.since_last(counts(&[(1, 1)])).is_empty());
        assert_eq!(refusals.since_last(counts(&[(1, 2)])), counts(&[(1, 1)]));
    }

    #[test]
    fn a_bucket_that_pods_share_has_no_owner() {
        let names = ["172.16.0.2", "172.16.0.3", "fd00::2"]
            .map(|text| Claim::all("shop", text, None, [address(text)].into_iter(), 0));
        let names: Index = names.into_iter().flatten().collect();
        let bucket = |it: IpAddr| match it.to_string().as_str() {
            "172.16.0.2" | "172.16.0.9" => 1,
            "172.16.0.3" => 2,
            _ => 3,
        };
        let refused = HashMap::from([(1, 10), (2, 20), (3, 30), (4, 40)]);
        // The first is known by a name and by its mappings.
        let pods = ["172.16.0.3", "172.16.0.9"].map(address);
        let mut by_name: Vec<_> = by_owner(&refused, bucket, pods.into_iter(), &names)
            .into_iter()
            .map(|(owner, count)| (count, owner.map(|claim| claim.name.as_str())))
            .collect();
        by_name.sort_unstable();
        let expected = [
            (10, None),
            (20, Some("172.16.0.3")),
            (30, Some("fd00::2")),
            (40, None),
        ];
        assert_eq!(by_name, expected);
    }
}
