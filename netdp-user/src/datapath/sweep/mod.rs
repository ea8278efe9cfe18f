//! The sweep: ends mappings that have timed out.
//!
//! A mapping's last packet is the later of the ones recorded in its two halves. Every swept mapping
//! has been silent for its whole timeout: no live flow is ever collected.
//!
//! | pass | when | reads | ends |
//! |---|---|---|---|
//! | full | at the interval that its cost allows, at most the shortest timeout that a packet can give a mapping; as soon as the tables may be nearly full; after a change, if that is cheap | both halves of all mappings | all that are due; evicts if the tables are nearly full |
//! | scan | once in the shortest of all timeouts; after a change | the original half of all mappings, and the reply half of those that are not scheduled yet, which it schedules | those of lost addresses or of a changed policy, and those that have timed out among the unscheduled |
//! | due mappings | every few seconds | the mappings that earlier passes scheduled for now | those that have timed out |
//!
//! `netdp_common::sweep` decides about each mapping, [`schedule`] about the passes.

mod accounts;
mod carried_over;
mod clock;
mod eviction;
mod inbound;
mod pass;
mod ports;
mod replies;
mod schedule;
mod stale;
mod sweeper;
mod tally;

use netdp_common::flow::Timeouts;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

pub(crate) use clock::cpu_time;
pub(super) use clock::now;
pub use sweeper::Sweeper;
pub(crate) use tally::{Peaks, PodChange};

/// Result of a sweep.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SweepStats {
    /// Mappings that are kept.
    pub live: usize,
    /// Mappings that have timed out.
    pub expired: usize,
    /// Mappings that ended because their node address is gone.
    pub address_gone: usize,
    /// Mappings that ended because the policy would not create them any more.
    pub retired: usize,
    /// Mappings that were evicted.
    pub evicted: usize,
    /// True if the tables were nearly full.
    pub pressure: bool,
    /// Mappings with a missing half, which was restored.
    pub repaired: usize,
    /// Reservations for the node's own flows.
    pub reservations: usize,
    /// The epoch of the settings in which no mapping was found whose destination the policy
    /// bypasses, for [`super::Datapath::enable_bypass_cache`].
    pub bypass_cache_epoch: Option<u32>,
    /// True if it was stopped before it had seen everything.
    pub stopped: bool,
}

impl SweepStats {
    /// Adds the mappings that another pass has ended.
    fn add_ended(&mut self, other: &Self) {
        self.expired += other.expired;
        self.address_gone += other.address_gone;
        self.retired += other.retired;
        self.stopped |= other.stopped;
    }
}

/// Rules by which mappings end.
#[derive(Debug, Clone)]
pub struct SweepRules {
    /// Timeouts of idle mappings.
    pub timeouts: Timeouts,
    /// Addresses of the node: a mapping with another one ends.
    pub local: BTreeSet<IpAddr>,
    /// Idle time after which mappings end that the policy in force would not create any more;
    /// `None`: never.
    pub retire_after: Option<Duration>,
    /// Becomes true when these rules are out of date: from then on the sweep ends no more mappings.
    pub stop: Arc<AtomicBool>,
    /// Becomes true when the node has addresses that are not in `local`: from then on the sweep
    /// ends no mapping for its address.
    pub local_addrs_stale: Arc<AtomicBool>,
}

impl SweepRules {
    fn stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }
}
