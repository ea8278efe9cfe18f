//! Sweep of the live inbound flows: ends silent ones, and counts the others by pod and peer.

use super::clock::now;
use crate::datapath::batch;
use crate::datapath::maps::Maps;
use anyhow::{Context as _, Result};
use netdp_common::flow::is_fresh;
use netdp_common::layout::Live;
use netdp_common::layout::SHARE_TOTAL;
use netdp_common::layout::Tuple;
use netdp_common::slot::Key;
use netdp_common::slot::Role;
use std::collections::HashMap;

impl Maps {
    /// Counts live inbound flows by pod and peer: some were not written by the programs.
    ///
    /// # Errors
    /// Returns an error if a map can't be read or written.
    pub fn count_inbound(&mut self) -> Result<()> {
        let now = now(self)?;
        self.sweep_inbound(now).map(drop)
    }

    /// Ends live inbound flows that have been silent for too long, and counts the remaining ones by
    /// pod and peer.
    ///
    /// # Errors
    /// Returns an error if a map can't be read or written.
    pub fn sweep_inbound(&mut self, now: u32) -> Result<usize> {
        let secret = self.limits()?.secret;
        let shares = self.shares()?;
        let mut over = Vec::new();
        let mut live = HashMap::<u32, u64>::new();
        batch::for_each::<Tuple, Live>(&self.pods()?.inbound_live_data, |tuple, flow| {
            if !is_fresh(tuple.proto, flow, now) {
                over.push(*tuple);
                return;
            }
            for bucket in [
                Key::of(secret, &tuple.src, Role::Pod).bucket(),
                Key::of(secret, &tuple.dst, Role::Peer).bucket(),
                SHARE_TOTAL,
            ] {
                *live.entry(bucket).or_default() += 1;
            }
        })
        .context("reading the inbound_live map")?;
        // A packet may have arrived since it was read.
        let pods = self.pods()?;
        over.retain(|tuple| {
            let flow = pods.inbound_live.get(tuple, 0);
            flow.is_ok_and(|flow| !is_fresh(tuple.proto, &flow, now))
        });
        batch::remove(&self.pods()?.inbound_live_data, &over).context("in the inbound_live map")?;
        self.settle_shares(&shares, |bucket, share, ended| {
            let live = live.get(&bucket).copied().unwrap_or_default();
            ended.inbound = share.inbound.wrapping_sub(live);
        })?;
        let count = live.get(&SHARE_TOTAL).copied().unwrap_or_default();
        Ok(usize::try_from(count).unwrap_or(usize::MAX))
    }
}
