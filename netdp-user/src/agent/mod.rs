//! The agent's loop: watches files and the network, keeps the datapath as both
//! say, sweeps.

mod api;
mod chains;
mod configuration;
mod desired;
mod ending;
mod facts;
mod foreign;
mod guard;
mod memory;
mod modes;
mod monitor;
mod network;
mod no_address;
mod node;
mod notes;
mod options;
mod outrun;
mod program_log;
mod readiness;
mod report;
mod resting;
mod sweeping;
mod takeover;
mod tell;

use crate::config::{self, Config};
use crate::control::Control;
use crate::limits;
use crate::programs;
use crate::reconcile::State;
use crate::report::UplinkReport;
use crate::rollback::Fallback;
use crate::sources::file::Watcher;
use crate::state_dir::StateDir;
use crate::terminal;
use crate::uplinks::{Selection, Snapshot};
use anyhow::{Context as _, Result, bail};
use ending::Ending;
use modes::{Engine, Event};
use netdp_common::conntrack::DRAIN_SECONDS;
use std::collections::BTreeSet;
use std::fs::Permissions;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};

pub(crate) use memory::Memory;
pub use options::{Mode, OnExit, RunOptions};

/// How often mappings are looked at that may have ended.
const SWEEP_INTERVAL: Duration = Duration::from_secs(5);

/// Idle time after which `--on-reload drain` ends a mapping.
const DRAIN_IDLE: Duration = Duration::from_secs(DRAIN_SECONDS);

/// Runs the agent until a signal ends it.
///
/// # Errors
/// It can't start: another agent, privileges, kernel, bpffs.
pub fn run(options: RunOptions) -> Result<()> {
    limits::raise_open_files();
    run_within(options).map_err(limits::explain)
}

fn run_within(options: RunOptions) -> Result<()> {
    let state_dir = StateDir::open(&options.state_dir)?;
    let Some(_lock) = state_dir.lock_soon()? else {
        let owner = state_dir
            .owner()
            .map_or_else(String::new, |pid| format!(" (pid {pid})"));
        bail!(
            "another agent{owner} runs on the state directory {}; give this one its own --state-dir and --bpffs",
            options.state_dir.display()
        );
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting the runtime")?;
    let ended = runtime.block_on(async {
        // From the start: a signal that nobody awaits yet would kill the process.
        let mut ending = Ending::listen()?;
        let hangup = signal(SignalKind::hangup())?;
        let mut agent = tokio::select! {
            agent = Agent::start(options, state_dir) => agent?,
            () = ending.begun() => return Ok(()),
        };
        // Wherever the loop waits, it is left at once, and nothing blocks it.
        tokio::select! {
            biased;
            () = ending.begun() => {}
            ended = agent.turn(hangup) => ended?,
        }
        if let Some(iptables) = agent.engine.as_iptables_mut() {
            iptables.settle().await;
        }
        agent.end()
    });
    // Nor is anything waited for that is done beside the loop.
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
    /// Where it is from, and what became of its sources.
    in_force: configuration::InForce,
    /// What does not change while the agent runs.
    identity: facts::Identity,
    /// What the selection of uplinks has shown.
    found: desired::Findings,
    /// The uplinks that programs are attached to, or that are watched.
    attached: Vec<UplinkReport>,
    /// What was written last for the next agent.
    memory: Memory,
    /// What the datapath was made to look like.
    applied: State,
    snapshot: Snapshot,
    /// Addresses that were lost just now.
    resting: resting::Resting,
    ready: bool,
    takeover: takeover::Takeover,
    /// What has to be done once is not done yet: not ready.
    starting: bool,
    /// What is to be accepted once the chains are written.
    deferred: Option<configuration::Deferred>,
    api: api::Followed,
    told: tell::Telling,
    foreign: foreign::Foreign,
    node: node::Node,
    guard: guard::Guard,
    no_address: no_address::NoAddress,
}

impl Agent {
    async fn start(options: RunOptions, state_dir: StateDir) -> Result<Self> {
        set_ready(&options, false)?;
        let control = Control::start(options.kube.clone(), options.http_listen)?;
        // Both watches stand before the first look, so that nothing falls between.
        let watcher = Watcher::new(&options.config_paths);
        if let Some(problem) = watcher.problem() {
            log::warn!("{problem}");
        }
        let monitor = monitor::Reopening::new().await?;
        let (mut engine, no_ebpf) = Engine::start(&options)?;
        let snapshot = monitor.snapshot().await?;
        let config = config::defaults(&options.config_options);
        let selection = Selection {
            masqueraded: config.masqueraded(),
            patterns: options.patterns.clone(),
            node_addrs: options.node_addrs.clone(),
            enable_ipv6: options.config_options.enable_ipv6,
            keep: match engine.as_datapath() {
                Some(datapath) => datapath.known_uplinks()?.into_iter().collect(),
                None => BTreeSet::new(),
            },
            names: BTreeSet::new(),
            with_guests: BTreeSet::new(),
        };
        let api = api::Followed::new(options.kube.is_some(), &state_dir);
        let ready_file = options.ready_file.clone();
        let memory = Memory::recall(&state_dir);
        let (had, reported) = (memory.had.clone(), memory.no_address.clone());
        let mut agent = Self {
            config,
            applied: State {
                local: engine.local_addresses()?,
                ..State::default()
            },
            options,
            selection,
            monitor,
            watcher,
            in_force: configuration::InForce::after(memory.policy.clone()),
            identity: facts::Identity {
                mode: engine.name(),
                no_ebpf,
                kernel: engine.kernel(),
                ready_file,
            },
            found: desired::Findings::default(),
            attached: Vec::new(),
            memory,
            engine,
            state_dir,
            snapshot,
            resting: resting::Resting::default(),
            ready: false,
            takeover: takeover::Takeover::new(),
            starting: true,
            deferred: None,
            api,
            told: tell::Telling::new(control.is_some()),
            control,
            foreign: foreign::Foreign::new(),
            node: node::Node::default(),
            guard: guard::Guard::new(),
            no_address: no_address::NoAddress::after(had, reported),
        };
        agent.warn_of_fleeting_pins();
        agent.await_api().await;
        agent.first_config();
        if agent.give_back()? {
            agent.starting = false;
            agent.update_ready();
            return Ok(agent);
        }
        agent.save_fallback();
        agent.detach_strangers();
        agent.keep_untranslated().await;
        agent.mark_tracking();
        agent.learn_node().await;
        agent.reconcile();
        agent.first_chains().await;
        agent.forget_translated().await;
        agent.remove_orphans();
        if !agent.take_over() {
            agent.starting = false;
            agent.update_ready();
            agent.ask_foreign();
        }
        if let Some(datapath) = agent.engine.as_datapath() {
            datapath.set_started();
        }
        Ok(agent)
    }

    /// Does what is to be done until the future is dropped.
    ///
    /// # Errors
    /// What the programs log can't be passed on.
    async fn turn(&mut self, mut hangup: Signal) -> Result<()> {
        let mut sweep = ticker(SWEEP_INTERVAL);
        let mut interval = self.config.resync_interval;
        let mut resync = ticker(interval);
        let mut looks = ticker(guard::LOOK_INTERVAL);
        // When it is through, it is known how much room the tables have.
        self.sweep(false);
        loop {
            self.turned();
            tokio::select! {
                _ = hangup.recv() => {
                    self.reload();
                    self.watch_chains();
                }
                () = self.watcher.changed() => self.reload(),
                () = api::changed(&mut self.control) => self.api_changed(),
                _ = resync.tick() => {
                    self.watcher.rearm();
                    self.reload();
                    self.look().await;
                    self.mend_hooks();
                    self.reattach();
                    self.watch_chains();
                    self.check_datapath();
                    self.ask_foreign();
                }
                event = self.foreign.next() => self.on_rules(event),
                event = self.engine.next() => match event? {
                    Event::Ebpf(event) => self.on_ebpf(event),
                    Event::Iptables(event) => self.on_iptables(event),
                },
                done = self.takeover.done() => self.took_over(done),
                probe = self.node.changed() => self.on_probe(probe),
                () = self.monitor.changed() => self.look().await,
                _ = looks.tick() => {
                    self.look_at_hooks();
                    self.tell_addresses();
                }
                event = self.guard.next() => self.on_guard(event),
                _ = sweep.tick() => {
                    let gone = self.resting.end(Instant::now());
                    self.sweep(gone);
                    self.forget_policies();
                    if self.takeover.is_due() {
                        self.take_over();
                    }
                    self.finish_rollback();
                    self.retry_chains();
                    self.mark_tracking();
                    self.tell();
                }
            }
            if interval != self.config.resync_interval {
                interval = self.config.resync_interval;
                resync = ticker(interval);
            }
        }
    }

    fn update_ready(&mut self) {
        let ready = self.facts().is_ready();
        if ready == self.ready {
            return;
        }
        if let Err(err) = set_ready(&self.options, ready) {
            log::error!("{err:#}");
            return;
        }
        self.ready = ready;
        if ready {
            eprintln!(
                "netdp: {} {}: config {} from {}, {} rules",
                self.engine.in_force(),
                terminal::line(&self.facts().places().join(", ")),
                self.in_force.policy.hash,
                terminal::line(&self.in_force.source_name),
                self.config.rules.len()
            );
        }
    }

    /// For `netdp detach --to-iptables`.
    fn save_fallback(&self) {
        let fallback = Fallback {
            chains: self.options.chains.clone(),
            config: self.options.config_options,
        };
        if let Err(err) = fallback.save(&self.state_dir) {
            log::warn!("{err:#}");
        }
    }

    /// Writes the report for `netdp status`, and for the next agent what it has to know.
    fn save_report(&mut self) {
        let facts = self.facts();
        let (report, memory) = (facts.report(), facts.memory());
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
        set_ready(&self.options, false)?;
        match self.options.on_exit {
            OnExit::Keep => log::info!("ending; the datapath stays in force"),
            OnExit::Detach => {
                // The chains can't go without.
                programs::resume();
                let removed = self.engine.remove(&self.options)?;
                self.state_dir.remove()?;
                log::info!("ending; removed {}", removed.join(", "));
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

fn set_ready(options: &RunOptions, ready: bool) -> Result<()> {
    let Some(path) = &options.ready_file else {
        return Ok(());
    };
    if ready {
        // Not into what somebody else has put there: a FIFO would hold the agent up.
        return crate::private::create(path)
            .and_then(|mut file| {
                file.set_permissions(Permissions::from_mode(0o644))?;
                file.write_all(b"ready\n")
            })
            .with_context(|| format!("writing the ready file {}", path.display()));
    }
    match std::fs::remove_file(path) {
        Err(err) if err.kind() != std::io::ErrorKind::NotFound => {
            Err(err).with_context(|| format!("removing the ready file {}", path.display()))
        }
        _ => Ok(()),
    }
}
