//! The agent's loop: watches files and the network, keeps the datapath as both
//! say, sweeps.

use crate::config::{self, Config, Document, Options};
use crate::datapath::{self, Datapath, Setup, SweepRules};
use crate::reconcile::{self, Change, PolicyRule, State};
use crate::sources::file::{self, Watcher};
use crate::state_dir::StateDir;
use crate::status::{self, ConfigReport, Report, RuleReport, UplinkReport};
use crate::uplinks::{Monitor, Patterns, Selection, Snapshot, local_addresses, select};
use anyhow::{Context as _, Result, anyhow, bail};
use netdp_common::abi::Action;
use netdp_common::conntrack::Timeouts;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};

/// How often mappings are looked at that may have ended.
const SWEEP_INTERVAL: Duration = Duration::from_secs(5);

/// Idle time after which `--on-reload drain` ends a mapping.
const DRAIN_IDLE: Duration = Duration::from_secs(30);

/// What becomes of the datapath when the agent ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum OnExit {
    /// It goes on without the agent.
    Keep,
    /// It is removed.
    Detach,
}

/// What a changed policy means for live mappings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum OnReload {
    /// They live on as they were made.
    Sticky,
    /// Those that the policy would not make any more end at once.
    Cutover,
    /// Those end when they have been idle for half a minute.
    Drain,
}

/// Everything that `netdp run` is told.
#[derive(Debug)]
pub struct RunOptions {
    /// Files and directories.
    pub config_paths: Vec<PathBuf>,
    /// Flags that change what they mean.
    pub config_options: Options,
    /// `--uplink`.
    pub patterns: Patterns,
    /// `--node-ip`.
    pub node_addrs: Vec<IpAddr>,
    /// `--bpffs`.
    pub bpffs: PathBuf,
    /// `--state-dir`.
    pub state_dir: PathBuf,
    /// The datapath's fixed settings.
    pub setup: Setup,
    /// `--timeout` over the defaults.
    pub timeouts: Timeouts,
    /// `--on-reload`.
    pub on_reload: OnReload,
    /// `--on-exit`.
    pub on_exit: OnExit,
    /// `--ready-file`.
    pub ready_file: Option<PathBuf>,
}

/// Runs the agent until a signal ends it.
///
/// # Errors
/// It can't start: another agent, privileges, kernel, bpffs.
pub fn run(options: RunOptions) -> Result<()> {
    let state_dir = StateDir::open(&options.state_dir)?;
    let Some(_lock) = state_dir.lock()? else {
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
    runtime.block_on(async {
        let mut agent = Agent::start(options, state_dir).await?;
        agent.turn().await
    })
}

/// Where the configuration in force came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    Files,
    Defaults,
    LastGood,
}

struct Agent {
    options: RunOptions,
    state_dir: StateDir,
    selection: Selection,
    monitor: Monitor,
    watcher: Watcher,
    datapath: Datapath,
    config: Config,
    report: Report,
    /// What the datapath was made to look like.
    applied: State,
    snapshot: Snapshot,
    ready: bool,
}

impl Agent {
    async fn start(options: RunOptions, state_dir: StateDir) -> Result<Self> {
        set_ready(&options, false)?;
        // Both watches stand before the first look, so that nothing falls between.
        let watcher = Watcher::new(&options.config_paths);
        if let Some(problem) = watcher.problem() {
            log::warn!("{problem}");
        }
        let monitor = Monitor::new().await?;
        let datapath = Datapath::load(&options.bpffs, &options.setup)?;
        let snapshot = monitor.snapshot().await?;
        let selection = Selection {
            patterns: options.patterns.clone(),
            node_addrs: options.node_addrs.clone(),
            enable_ipv6: options.config_options.enable_ipv6,
            keep: datapath.known_uplinks()?.into_iter().collect(),
        };
        let mut agent = Self {
            config: config::defaults(&options.config_options),
            applied: State {
                local: datapath.maps().local_addresses()?,
                ..State::default()
            },
            options,
            state_dir,
            selection,
            monitor,
            watcher,
            datapath,
            report: Report {
                version: env!("CARGO_PKG_VERSION").into(),
                mode: "ebpf".into(),
                ..Report::default()
            },
            snapshot,
            ready: false,
        };
        agent.first_config();
        agent.detach_strangers();
        agent.reconcile();
        Ok(agent)
    }

    async fn turn(&mut self) -> Result<()> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut hangup = signal(SignalKind::hangup())?;
        let log = self.datapath.take_log()?;
        // SAFETY: the logger owns its ring buffer's descriptor, and gives the
        // same one for as long as it lives.
        let log = unsafe { AsyncFd::register_with_interest(log, Interest::READABLE) };
        let mut log = log.map_err(|err| anyhow!("watching the programs' log: {err}"))?;
        let mut sweep = ticker(SWEEP_INTERVAL);
        let mut interval = self.config.resync_interval;
        let mut resync = ticker(interval);
        loop {
            tokio::select! {
                spoke = log.readable_mut() => {
                    let mut spoke = spoke.context("reading the programs' log")?;
                    spoke.get_inner_mut().flush();
                    spoke.clear_ready();
                }
                _ = terminate.recv() => break,
                _ = interrupt.recv() => break,
                _ = hangup.recv() => self.reload(),
                () = self.watcher.changed() => self.reload(),
                _ = resync.tick() => {
                    self.watcher.rearm();
                    self.reload();
                    self.look().await;
                    self.reattach();
                }
                changed = self.monitor.changed() => {
                    if let Err(err) = changed {
                        log::warn!("watching the network: {err:#}");
                        tokio::time::sleep(Duration::from_secs(1)).await;
                        match Monitor::new().await {
                            Ok(monitor) => self.monitor = monitor,
                            Err(err) => log::warn!("{err:#}"),
                        }
                    }
                    self.look().await;
                }
                _ = sweep.tick() => self.sweep(false),
            }
            if interval != self.config.resync_interval {
                interval = self.config.resync_interval;
                resync = ticker(interval);
            }
        }
        self.end()
    }

    /// The configuration at start: files; where those are bad, the policy of an
    /// earlier agent that is still in force; else the defaults.
    fn first_config(&mut self) {
        match self.read() {
            Ok((documents, loaded)) => self.accept(documents, loaded, Source::Files),
            Err(rejected) => {
                self.reject(&rejected);
                let last_good = self
                    .state_dir
                    .last_good()
                    .filter(|_| self.datapath.adopted())
                    .and_then(|documents| {
                        let loaded = config::load(&documents, &self.options.config_options).ok()?;
                        Some((documents, loaded))
                    });
                let (documents, loaded, source) = match last_good {
                    Some((documents, loaded)) => (documents, loaded, Source::LastGood),
                    None => {
                        let config = config::defaults(&self.options.config_options);
                        let warnings = Vec::new();
                        let loaded = config::Loaded { config, warnings };
                        (Vec::new(), loaded, Source::Defaults)
                    }
                };
                log::error!(
                    "THE CONFIGURATION IS BAD: {} in force until it is mended",
                    match source {
                        Source::LastGood => "the last good one stays",
                        _ => "the defaults are",
                    }
                );
                self.accept(documents, loaded, source);
                self.report.config.rejected = lines(&rejected.errors);
            }
        }
    }

    fn read(&self) -> Result<(Vec<Document>, config::Loaded), config::Rejected> {
        let documents = file::read(&self.options.config_paths)?;
        let loaded = config::load(&documents, &self.options.config_options)?;
        Ok((documents, loaded))
    }

    /// Reads the files again; a bad one changes nothing.
    fn reload(&mut self) {
        match self.read() {
            Ok((documents, loaded)) => {
                let mended = !self.report.config.rejected.is_empty();
                if mended {
                    log::info!("the configuration is good again");
                }
                if mended
                    || loaded.config != self.config
                    || lines(&loaded.warnings) != self.report.config.warnings
                    || self.report.config.source != name(Source::Files)
                {
                    self.accept(documents, loaded, Source::Files);
                    self.reconcile();
                }
            }
            Err(rejected) => {
                if self.report.config.rejected != lines(&rejected.errors) {
                    self.reject(&rejected);
                    log::error!("the configuration is bad: what was in force stays");
                    self.report.config.rejected = lines(&rejected.errors);
                    self.save_report();
                }
            }
        }
    }

    fn reject(&self, rejected: &config::Rejected) {
        for error in &rejected.errors {
            log::error!("{error}");
        }
    }

    fn accept(&mut self, documents: Vec<Document>, loaded: config::Loaded, source: Source) {
        for warning in &loaded.warnings {
            log::warn!("{warning}");
        }
        for path in file::absent(&self.options.config_paths) {
            log::info!("{} does not exist; it is read once it does", path.display());
        }
        if source == Source::Files
            && let Err(err) = self.state_dir.save_last_good(&documents)
        {
            log::warn!("{err:#}");
        }
        self.report.config = ConfigReport {
            source: match (source, documents.is_empty()) {
                (Source::Files, true) => "defaults (no file)".into(),
                (source, _) => name(source).into(),
            },
            files: documents.into_iter().map(|d| d.name).collect(),
            hash: loaded.config.hash(),
            applied_at: status::now(),
            rules: loaded.config.rules.iter().map(rule_report).collect(),
            warnings: lines(&loaded.warnings),
            rejected: Vec::new(),
        };
        self.config = loaded.config;
    }

    /// Takes programs off interfaces that are no uplinks any more.
    fn detach_strangers(&mut self) {
        let selected = select(&self.snapshot, &self.selection);
        let known = self.datapath.known_uplinks().unwrap_or_default();
        for ifindex in known {
            if selected.uplinks.iter().any(|u| u.ifindex == ifindex) {
                continue;
            }
            let link = self.snapshot.link(ifindex);
            let name = link.map_or_else(|| format!("index {ifindex}"), |l| l.name.clone());
            log::info!("{name} is no uplink any more: detaching");
            let change = Change::Detach { ifindex, name };
            if let Err(err) = self.datapath.apply(&change) {
                log::error!("{err:#}");
            }
        }
    }

    /// Looks at the network anew.
    async fn look(&mut self) {
        match self.monitor.snapshot().await {
            Ok(snapshot) => {
                self.snapshot = snapshot;
                self.reconcile();
            }
            Err(err) => log::warn!("looking at the network: {err:#}"),
        }
    }

    fn wanted(&mut self) -> State {
        let selected = select(&self.snapshot, &self.selection);
        if selected.unmatched != self.report.waiting_for {
            for pattern in &selected.unmatched {
                log::warn!("no interface matches --uplink {pattern} yet: waiting for it");
            }
        }
        self.report.waiting_for = selected.unmatched;
        if selected.reason != self.report.no_uplink
            && let Some(reason) = &selected.reason
            && self.report.waiting_for.is_empty()
        {
            log::warn!("no uplink: {reason}");
        }
        self.report.no_uplink = selected.reason;
        State {
            policy: Some(self.config.rules.iter().map(policy_rule).collect()),
            local: local_addresses(&self.snapshot),
            uplinks: selected
                .uplinks
                .into_iter()
                .map(|uplink| (uplink.ifindex, uplink))
                .collect(),
        }
    }

    /// Makes the datapath what it is to be. What fails is said and tried again
    /// at the next event.
    fn reconcile(&mut self) {
        let wanted = self.wanted();
        let mut reached = wanted.clone();
        for change in reconcile::diff(&self.applied, &wanted) {
            log::debug!("{change:?}");
            if let Err(err) = self.datapath.apply(&change) {
                log::error!("{err:#}");
                match &change {
                    Change::SetPolicy(_) if self.applied.policy.is_none() => {
                        // Attached without a policy it would masquerade all.
                        reached = self.applied.clone();
                        break;
                    }
                    Change::SetPolicy(_) => reached.policy.clone_from(&self.applied.policy),
                    Change::AddLocal(ip) => drop(reached.local.remove(ip)),
                    Change::RemoveLocal(ip) => drop(reached.local.insert(*ip)),
                    Change::SetUplink(uplink) | Change::Attach(uplink) => {
                        reached.uplinks.remove(&uplink.ifindex);
                    }
                    Change::Detach { .. } => {}
                }
            } else {
                announce(&change);
            }
        }
        let lost = self
            .applied
            .local
            .difference(&reached.local)
            .next()
            .is_some();
        let repolicied = self.applied.policy != reached.policy;
        self.applied = reached;
        self.selection.keep = wanted.uplinks.keys().copied().collect();
        if lost || (repolicied && self.options.on_reload != OnReload::Sticky) {
            self.sweep(true);
        }
        let attached = self.datapath.attached();
        self.report.uplinks = attached
            .iter()
            .filter_map(|a| Some(UplinkReport::new(a, self.applied.uplinks.get(&a.ifindex)?)))
            .collect();
        self.save_report();
        self.update_ready();
    }

    /// Brings back the programs that somebody took off an uplink.
    fn reattach(&mut self) {
        let uplinks: Vec<_> = self.applied.uplinks.values().cloned().collect();
        for uplink in uplinks {
            for change in [Change::SetUplink(uplink.clone()), Change::Attach(uplink)] {
                log::debug!("again: {change:?}");
                if let Err(err) = self.datapath.apply(&change) {
                    log::error!("{err:#}");
                }
            }
        }
    }

    fn update_ready(&mut self) {
        let ready = self.applied.policy.is_some() && !self.report.uplinks.is_empty();
        if ready == self.ready {
            return;
        }
        if let Err(err) = set_ready(&self.options, ready) {
            log::error!("{err:#}");
            return;
        }
        self.ready = ready;
        if ready {
            let names: Vec<_> = self
                .report
                .uplinks
                .iter()
                .map(|u| u.name.as_str())
                .collect();
            eprintln!(
                "netdp: in force on {}: config {} from {}, {} rules",
                names.join(", "),
                self.report.config.hash,
                self.report.config.source,
                self.config.rules.len()
            );
        }
    }

    fn save_report(&self) {
        if let Err(err) = self.state_dir.save_report(&self.report) {
            log::warn!("{err:#}");
        }
    }

    fn sweep(&mut self, all: bool) {
        let retire = match self.options.on_reload {
            OnReload::Sticky => None,
            OnReload::Cutover => Some(Duration::ZERO),
            OnReload::Drain => Some(DRAIN_IDLE),
        };
        let rules = SweepRules {
            timeouts: &self.options.timeouts,
            local: &self.applied.local,
            config: &self.config,
            retire,
        };
        let swept = if all {
            self.datapath.sweep(&rules)
        } else {
            self.datapath.sweep_some(&rules)
        };
        match swept {
            Ok(swept) => log::debug!("{swept:?}"),
            Err(err) => log::warn!("sweeping the mappings: {err:#}"),
        }
    }

    fn end(&mut self) -> Result<()> {
        set_ready(&self.options, false)?;
        match self.options.on_exit {
            OnExit::Keep => log::info!("ending; the datapath stays in force"),
            OnExit::Detach => {
                let removed = datapath::detach(&self.options.bpffs)?;
                self.state_dir.forget()?;
                log::info!("ending; removed {} pins", removed.len());
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

fn announce(change: &Change) {
    match change {
        Change::SetPolicy(rules) => log::info!("policy in force: {} rules", rules.len()),
        Change::Attach(uplink) => log::info!("attached to {}", uplink.name),
        Change::Detach { name, .. } => log::info!("detached from {name}"),
        Change::SetUplink(uplink) => {
            let show = |ip: Option<IpAddr>| ip.map_or_else(|| "none".into(), |ip| ip.to_string());
            log::info!(
                "{} masquerades with {} and {}",
                uplink.name,
                show(uplink.v4.map(IpAddr::from)),
                show(uplink.v6.map(IpAddr::from))
            );
        }
        Change::AddLocal(_) | Change::RemoveLocal(_) => {}
    }
}

fn set_ready(options: &RunOptions, ready: bool) -> Result<()> {
    let Some(path) = &options.ready_file else {
        return Ok(());
    };
    if ready {
        return std::fs::write(path, "ready\n")
            .with_context(|| format!("writing the ready file {}", path.display()));
    }
    match std::fs::remove_file(path) {
        Err(err) if err.kind() != std::io::ErrorKind::NotFound => {
            Err(err).with_context(|| format!("removing the ready file {}", path.display()))
        }
        _ => Ok(()),
    }
}

fn policy_rule(rule: &config::Rule) -> PolicyRule {
    PolicyRule {
        prefix: rule.prefix,
        action: match rule.action {
            config::Action::Bypass => Action::Bypass,
            config::Action::Masquerade => Action::Masquerade,
        },
    }
}

fn rule_report(rule: &config::Rule) -> RuleReport {
    RuleReport {
        prefix: rule.prefix.to_string(),
        action: rule.action.to_string(),
        origin: rule.origin.to_string(),
    }
}

const fn name(source: Source) -> &'static str {
    match source {
        Source::Files => "files",
        Source::Defaults => "defaults",
        Source::LastGood => "last good",
    }
}

fn lines(diagnostics: &[config::Diagnostic]) -> Vec<String> {
    diagnostics.iter().map(ToString::to_string).collect()
}
