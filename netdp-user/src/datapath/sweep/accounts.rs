//! Recount of the pods' shares: the programs count new mappings, the sweep counts ended ones.

use crate::datapath::batch;
use crate::datapath::maps::Maps;
use anyhow::{Context as _, Result};
use netdp_common::layout::Mapping;
use netdp_common::layout::SHARE_TOTAL;
use netdp_common::layout::Secret;
use netdp_common::layout::Share;
use netdp_common::layout::ShareEnded;
use netdp_common::layout::Tuple;
use netdp_common::slot::bucket_of_mapping;
use std::collections::HashMap;

/// The mappings of a pass, counted by bucket.
#[derive(Debug, Default)]
pub struct Accounts {
    secret: Secret,
    /// The programs' counts halfway through the pass.
    opened: HashMap<u32, u64>,
    live: HashMap<u32, u64>,
    ended: HashMap<u32, u64>,
}

impl Accounts {
    /// Starts a count, with the secret key by which buckets are chosen.
    pub fn new(secret: Secret) -> Self {
        Self {
            secret,
            ..Self::default()
        }
    }

    /// Restarts the count of mappings; the secret key and the programs' counts are kept.
    pub fn restart(self) -> Self {
        Self {
            live: HashMap::new(),
            ended: HashMap::new(),
            ..self
        }
    }

    /// Records the programs' counts `before` all mappings were scanned, and the current ones. A
    /// mapping is seen at some moment between the two: of thousands that begin and end meanwhile,
    /// as many are seen as there were halfway, within chance.
    ///
    /// # Errors
    /// Returns an error if the map can't be read.
    pub fn set_opened(&mut self, maps: &Maps, before: &HashMap<u32, Share>) -> Result<()> {
        let after = maps.shares()?;
        self.opened = after
            .into_iter()
            .map(|(bucket, after)| {
                let before = before.get(&bucket).map_or(after.opened, |it| it.opened);
                (bucket, halfway(before, after.opened))
            })
            .collect();
        Ok(())
    }

    /// Counts a live mapping.
    pub fn count_live(&mut self, tuple: &Tuple, half: &Mapping) {
        for bucket in self.buckets(tuple, half) {
            *self.live.entry(bucket).or_default() += 1;
        }
    }

    /// Counts an ended mapping.
    pub fn count_ended(&mut self, tuple: &Tuple, half: &Mapping) {
        for bucket in self.buckets(tuple, half) {
            *self.ended.entry(bucket).or_default() += 1;
        }
    }

    /// Counts a mapping that was counted as live and has ended.
    pub fn count_evicted(&mut self, tuple: &Tuple, half: &Mapping) {
        for bucket in self.buckets(tuple, half) {
            if let Some(live) = self.live.get_mut(&bucket) {
                *live = live.saturating_sub(1);
            }
        }
        self.count_ended(tuple, half);
    }

    fn buckets(&self, tuple: &Tuple, half: &Mapping) -> [u32; 2] {
        let bucket = bucket_of_mapping(self.secret, &tuple.src, half.flags);
        [bucket, SHARE_TOTAL]
    }

    /// Corrects the shares after a pass through all mappings.
    ///
    /// # Errors
    /// Returns an error if a map can't be read or written.
    pub fn settle_all(&self, maps: &mut Maps) -> Result<()> {
        maps.settle_shares(&self.opened, |bucket, opened, ended| {
            let live = self.live.get(&bucket).copied().unwrap_or_default();
            ended.mappings = opened.wrapping_sub(live);
        })
    }

    /// Subtracts ended mappings from the shares after any other pass.
    ///
    /// # Errors
    /// Returns an error if a map can't be read or written.
    pub fn settle_ended(&self, maps: &mut Maps) -> Result<()> {
        for (bucket, count) in &self.ended {
            let mut ended = maps.shares_ended(*bucket)?;
            ended.mappings = ended.mappings.wrapping_add(*count);
            maps.set_shares_ended(*bucket, ended)?;
        }
        Ok(())
    }
}

/// Returns the middle of two readings of a wrapping counter that goes up and down.
const fn halfway(before: u64, after: u64) -> u64 {
    let change = after.wrapping_sub(before).cast_signed() / 2;
    before.wrapping_add(change.cast_unsigned())
}

impl Maps {
    fn shares_ended(&self, bucket: u32) -> Result<ShareEnded> {
        (self.pods()?.shares_ended)
            .get(&bucket, 0)
            .context("reading the shares_ended map")
    }

    fn set_shares_ended(&mut self, bucket: u32, ended: ShareEnded) -> Result<()> {
        (self.pods_mut()?.shares_ended)
            .set(bucket, ended, 0)
            .context("writing the shares_ended map")
    }

    /// Returns the number of mappings by what programs have counted as created and the agent as ended:
    /// without a walk, and after ends that are not settled yet a little too high.
    ///
    /// # Errors
    /// Returns an error if a map can't be read.
    pub(crate) fn mappings_by_shares(&self) -> Result<u64> {
        let opened = self.shares()?.get(&SHARE_TOTAL).map_or(0, |it| it.opened);
        let count = opened.wrapping_sub(self.shares_ended(SHARE_TOTAL)?.mappings);
        // Ends may be counted before the creations that were read earlier.
        Ok(u64::try_from(count.cast_signed()).unwrap_or(0))
    }

    /// Reads the programs' counts of each bucket.
    ///
    /// # Errors
    /// Returns an error if the map can't be read.
    pub fn shares(&self) -> Result<HashMap<u32, Share>> {
        let mut shares = HashMap::new();
        batch::for_each::<u32, Share>(&self.pods()?.shares_data, |bucket, share| {
            shares.insert(*bucket, *share);
        })
        .context("reading the shares map")?;
        Ok(shares)
    }

    /// Writes the entries that `change` changes.
    pub(super) fn settle_shares<T>(
        &mut self,
        shares: &HashMap<u32, T>,
        change: impl Fn(u32, &T, &mut ShareEnded),
    ) -> Result<()> {
        let mut changed = Vec::new();
        batch::for_each::<u32, ShareEnded>(&self.pods()?.shares_ended_data, |bucket, before| {
            let mut ended = *before;
            if let Some(share) = shares.get(bucket) {
                change(*bucket, share, &mut ended);
            }
            if ended != *before {
                changed.push((*bucket, ended));
            }
        })
        .context("reading the shares_ended map")?;
        for (bucket, ended) in changed {
            self.set_shares_ended(bucket, ended)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::halfway;

    #[test]
    fn halfway_is_right_up_down_and_around() {
        assert_eq!(halfway(10, 20), 15);
        assert_eq!(halfway(20, 10), 15);
        assert_eq!(halfway(u64::MAX, 3), 1);
        assert_eq!(halfway(3, u64::MAX), 1);
        assert_eq!(halfway(7, 7), 7);
    }
}
