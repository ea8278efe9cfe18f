//! Sweeps: requested by a timer, after changes, and as soon as the tables may be nearly full.
//!
//! Between sweeps the agent checks how many mappings have been created; the fewer places were free,
//! the sooner.

use super::modes::{Ebpf, SweepCause};
use super::{Agent, DRAIN_IDLE};
use crate::datapath::{OnReload, SweepRules};
use std::sync::Arc;
use std::time::Duration;

/// Number of live mappings above which the count of the last sweep is accurate enough.
const COUNTED_ANEW: usize = 50_000;

impl Agent {
    /// Starts a sweep, which ends expired mappings. In iptables mode netfilter expires its own
    /// connections.
    pub(super) fn sweep(&mut self, cause: SweepCause) {
        let rules = self.sweep_rules();
        let Some(Ebpf {
            sweeper, datapath, ..
        }) = self.engine.as_ebpf_mut()
        else {
            return;
        };
        let policy = datapath.maps().numbered_policy();
        let policy = policy.inspect_err(|err| log::warn!("counts of prefixes: {err:#}"));
        if let Err(err) = sweeper.request(rules, cause, policy.ok()) {
            log::error!("{err:#}");
        }
    }

    /// Handles the result of a sweep, if there is one.
    pub(super) fn sweep_ended(&mut self) {
        let ebpf = self.engine.as_ebpf_mut();
        let Some((stats, again)) = ebpf.and_then(|ebpf| ebpf.sweeper.take_result()) else {
            return;
        };
        let mut for_room = false;
        let enabled = stats.and_then(|stats| {
            log::debug!("{stats:?}");
            for_room = self.for_room.count(stats.evicted);
            match self.engine.as_datapath() {
                Some(datapath) => datapath.enable_bypass_cache(&stats),
                None => Ok(()),
            }
        });
        if let Err(err) = enabled {
            log::warn!("sweeping the mappings: {err:#}");
        }
        if for_room {
            self.save_report();
        }
        if again {
            self.sweep(SweepCause::Change);
        }
    }

    /// Stops the current sweep, if there is one: its rules are about to change.
    pub(super) fn interrupt_sweep(&mut self) {
        if let Some(ebpf) = self.engine.as_ebpf_mut() {
            ebpf.sweeper.interrupt();
        }
    }

    /// Keeps the current sweep from ending mappings because their address is gone.
    pub(super) fn suspend_address_expiry(&self) {
        if let Some(ebpf) = self.engine.as_ebpf() {
            ebpf.sweeper.suspend_address_expiry();
        }
    }

    /// Starts a sweep if the tables may be full before the next regular one.
    pub(super) fn check_tables(&mut self) {
        let Some(Ebpf {
            sweeper, datapath, ..
        }) = self.engine.as_ebpf_mut()
        else {
            return;
        };
        // The sweep itself reports unreadable counters.
        let counters = datapath.maps().counters().ok();
        let created = counters.map(|counters| counters.mappings_created);
        if sweeper.schedule_check(created) {
            self.sweep(SweepCause::Due);
        }
    }

    fn sweep_rules(&self) -> SweepRules {
        SweepRules {
            timeouts: self.options.timeouts,
            local: self.lost_addresses.with(&self.applied.local),
            retire_after: match self.options.setup.on_reload {
                OnReload::Sticky => None,
                OnReload::Cutover => Some(Duration::ZERO),
                OnReload::Drain => Some(DRAIN_IDLE),
            },
            stop: Arc::default(),
            local_addrs_stale: Arc::default(),
        }
    }

    /// Returns the number of live mappings, without netfilter's connections.
    pub(super) fn mappings(&self) -> usize {
        match self.engine.as_ebpf() {
            Some(ebpf) if ebpf.sweeper.live() > COUNTED_ANEW => ebpf.sweeper.live(),
            Some(ebpf) => ebpf.datapath.maps().flow_count().unwrap_or_default(),
            None => 0,
        }
    }
}
