//! The agent's event loop: watches files and the network, keeps the datapath in line with both, and
//! sweeps the mappings.

mod api;
mod chains;
mod configuration;
mod desired;
mod events;
mod facts;
mod findings;
mod for_room;
mod foreign;
mod guard;
mod in_force;
mod lost_addresses;
mod memory;
mod metrics;
mod modes;
mod monitor;
mod network;
mod networks;
mod no_address;
mod node;
mod notes;
mod options;
mod pins;
mod program_log;
mod programs_ahead;
mod publish;
mod reach;
mod readiness;
mod ready;
mod reload;
mod report;
mod start;
mod sweeping;
mod takeover;
mod termination;

use crate::config::Config;
use crate::control::Control;
use crate::limits;
use crate::logging;
use crate::metrics::Metrics;
use crate::pods::Recorder;
use crate::programs;
use crate::reconcile::State;
use crate::report::UplinkReport;
use crate::sources::file::Watcher;
use crate::state_dir::StateDir;
use crate::uplinks::{Selection, Snapshot};
use anyhow::{Context as _, Result, bail};
use modes::{Engine, Event, SweepCause};
use netdp_common::flow::DRAIN_SECONDS;
use std::sync::Arc;
use std::time::Duration;
use termination::Termination;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};

pub(crate) use memory::Memory;
pub use options::{Mode, OnExit, RunOptions};

/// Interval between sweeps for expired mappings.
const SWEEP_INTERVAL: Duration = Duration::from_secs(5);

/// Idle time after which `--on-reload drain` ends a mapping.
const DRAIN_IDLE: Duration = Duration::from_secs(DRAIN_SECONDS);

/// Runs the agent until a signal ends it.
///
/// # Errors
/// Returns an error if the agent cannot start: another agent holds the state directory, privileges
/// are missing, or the kernel or the bpffs does not suffice.
pub fn run(options: RunOptions) -> Result<()> {
    limits::raise_open_files();
    run_within(options).map_err(limits::explain)
}

fn run_within(options: RunOptions) -> Result<()> {
    let state_dir = StateDir::open(&options.state_dir)?;
    let Some(_lock) = state_dir.lock_with_retries()? else {
        let owner = state_dir
            .lock_holder()
            .map_or_else(String::new, |pid| format!(" (pid {pid})"));
        bail!(
            "another agent{owner} runs on the state directory {}; give this one its own --state-dir and --bpffs",
            options.state_dir.display()
        );
    };
    if let Err(err) = logging::keep_in(&state_dir) {
        log::warn!("the latest messages are not kept for netdp support-bundle: {err:#}");
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting the runtime")?;
    let ended = runtime.block_on(async {
        // First of all: a signal without a handler would kill the process.
        let mut termination = Termination::install()?;
        let hangup = signal(SignalKind::hangup())?;
        let mut agent = tokio::select! {
            agent = Agent::new(options, state_dir) => agent?,
            // Nothing is touched yet.
            () = termination.requested() => return Ok(()),
        };
        // A signal ends the loop at once, whatever it waits for.
        tokio::select! {
            biased;
            () = termination.requested() => {}
            ended = agent.start_and_run(hangup) => ended?,
        }
        if let Some(iptables) = agent.engine.as_iptables_mut() {
            iptables.await_tasks().await;
        }
        agent.end()
    });
    // Background tasks are not waited for either.
    runtime.shutdown_background();
    ended
}

struct Agent {
    options: RunOptions,
    state_dir: StateDir,
    control: Option<Control>,
    selection: Selection,
    monitor: monitor::Reopening,
    watcher: Watcher,
    engine: Engine,
    config: Config,
    /// The configuration's origin, and the state of its sources.
    in_force: in_force::InForce,
    /// Facts that stay constant while the agent runs.
    identity: facts::Identity,
    /// Findings of the uplink selection.
    found: findings::Findings,
    /// The uplinks with attached programs, or those watched in shadow mode.
    attached: Vec<UplinkReport>,
    /// The memory file as last written for the next agent.
    memory: Memory,
    /// The state last applied to the datapath.
    applied: State,
    snapshot: Snapshot,
    /// Addresses that the node lost a moment ago.
    lost_addresses: lost_addresses::LostAddresses,
    ready: bool,
    /// Set while one-time work of the start is pending: the node is not ready.
    starting: bool,
    /// The configuration to accept once the chains are written.
    deferred: Option<in_force::Deferred>,
    api: api::ApiState,
    publisher: publish::StatusPublisher,
    foreign: foreign::Foreign,
    node: node::Node,
    guard: guard::Guard,
    followed: networks::Followed,
    no_address: no_address::NoAddress,
    reach: reach::Reach,
    /// The metrics, if they are served.
    metrics: Option<Arc<Metrics>>,
    for_room: for_room::ForRoom,
    /// Follows the names of pods, where mappings are ours.
    pods: Option<Recorder>,
    /// Passes events on to those who listen.
    events: events::Events,
}

impl Agent {
    /// Puts the configuration in force, and keeps it so until the future is dropped.
    ///
    /// # Errors
    /// Returns an error if the start fails, or the log of the programs cannot be read.
    async fn start_and_run(&mut self, hangup: Signal) -> Result<()> {
        self.start().await?;
        self.run_loop(hangup).await
    }

    /// Runs the event loop until the future is dropped.
    ///
    /// # Errors
    /// Returns an error if the log of the programs cannot be read.
    async fn run_loop(&mut self, mut hangup: Signal) -> Result<()> {
        let mut sweep = ticker(SWEEP_INTERVAL);
        let mut interval = self.config.resync_interval;
        let mut resync = ticker(interval);
        let mut hook_checks = ticker(guard::CHECK_INTERVAL);
        // The first sweep determines how much room the tables have.
        self.sweep(SweepCause::Due);
        loop {
            self.record_heartbeat();
            tokio::select! {
                _ = hangup.recv() => {
                    self.reload();
                    self.check_recreated_chains();
                }
                () = self.watcher.changed() => self.reload(),
                () = api::changed(&mut self.control) => self.api_changed(),
                _ = resync.tick() => {
                    self.watcher.rearm();
                    self.reload();
                    self.refresh_network().await;
                    self.reattach_missing();
                    self.reattach_all();
                    self.check_recreated_chains();
                    self.run_self_check();
                    self.scan_foreign();
                }
                event = self.foreign.next() => self.on_rules(event),
                event = self.engine.next() => match event? {
                    Event::Ebpf(event) => self.on_ebpf(event),
                    Event::Iptables(event) => self.on_iptables(event),
                },
                probe = self.node.changed() => self.on_probe(probe),
                () = self.monitor.changed() => self.refresh_network().await,
                _ = hook_checks.tick() => {
                    self.check_hooks();
                    self.report_missing_addresses();
                }
                event = self.guard.next() => self.on_guard(event),
                setting = self.events.wanted() => self.report_events(setting),
                _ = sweep.tick() => {
                    let cause = if self.lost_addresses.expire(Instant::now()) {
                        SweepCause::Change
                    } else {
                        SweepCause::Due
                    };
                    self.sweep(cause);
                    self.expire_policy_history();
                    self.take_over_if_due();
                    self.finish_rollback();
                    self.retry_chains();
                    self.retry_unknown();
                    self.mark_conntrack();
                    self.follow_waiting_networks();
                    self.judge_networks();
                    self.publish_status();
                }
            }
            if interval != self.config.resync_interval {
                interval = self.config.resync_interval;
                resync = ticker(interval);
            }
        }
    }

    /// Writes the report for `netdp status` and the memory file for the next agent.
    fn save_report(&mut self) {
        let facts = self.facts();
        let (report, memory) = (facts.report(), facts.memory());
        self.events.compare(&report.findings());
        if let Err(err) = report.save(&self.state_dir) {
            log::warn!("{err:#}");
        }
        if memory == self.memory {
            return;
        }
        match memory.save(&self.state_dir) {
            Ok(()) => self.memory = memory,
            Err(err) => log::warn!("{err:#}"),
        }
    }

    fn end(&mut self) -> Result<()> {
        ready::set(&self.options, false)?;
        if let Some(ebpf) = self.engine.as_ebpf_mut() {
            ebpf.close_log(self.options.on_exit == OnExit::Detach);
        }
        match self.options.on_exit {
            OnExit::Keep => {
                log::info!("exiting; the datapath stays in force");
                self.events
                    .agent("the agent ends; the datapath stays in force", false);
                self.events.save(&self.state_dir);
            }
            OnExit::Detach => {
                // Removing chains requires running programs.
                programs::resume();
                let removed = self.engine.remove(&self.options)?;
                // It writes to the state directory until it ends.
                drop(self.pods.take());
                self.state_dir.remove()?;
                log::info!("exiting; removed {}", removed.join(", "));
            }
        }
        Ok(())
    }
}

fn ticker(period: Duration) -> Interval {
    let mut interval = interval_at(Instant::now() + period, period);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}
