//! eBPF mode: the programs of the datapath translate.

use super::super::RunOptions;
use super::super::program_log::{ProgramLog, Refusals};
use super::sweeper::SweeperThread;
use super::takeover::{Done, Takeover};
use super::{Engine, iptables};
use crate::datapath::{self, Datapath, SharedLog, Traces};
use crate::ends::{Ends, SharedEnds};
use crate::events::Recent;
use crate::nat_log::{self, NatLog};
use crate::pod;
use crate::requirements::{self, Missing, NoEbpf};
use crate::rights;
use crate::state_dir::StateDir;
use anyhow::{Context as _, Result, anyhow};
use netdp_common::layout::Counters;
use std::sync::{Arc, Mutex};
use tokio::time::Instant;

/// The datapath, and state that only it needs.
pub(in crate::agent) struct Ebpf {
    pub datapath: Datapath,
    pub sweeper: SweeperThread,
    pub takeover: Takeover,
    /// Whoever is told of ends of mappings.
    pub ends: SharedEnds,
    /// The NAT log, if there is one.
    pub nat_log: Option<NatLog>,
    log: ProgramLog,
    /// Time by which connections that an earlier policy bypassed have ended, if there may be any.
    pub policy_history_expires: Option<Instant>,
    /// Set while the standby trie is out of date.
    pub standby_stale: bool,
}

/// Event for the agent's loop.
pub(in crate::agent) enum Event {
    /// A sweep has ended, or may have.
    SweepEnded,
    /// The time has come to check whether the tables are nearly full.
    TableCheckDue,
    /// The standby trie can be brought up to date.
    StandbyStale,
    /// A takeover, or a check after one, has ended.
    Takeover(Done),
}

impl Ebpf {
    fn with(mut datapath: Datapath, options: &RunOptions, recent: &Recent) -> Result<Engine> {
        let log = ProgramLog::watch(datapath.take_log(Refusals(recent.clone()))?)?;
        let state_dir = StateDir::at(&options.state_dir);
        let secret = datapath.maps().limits()?.secret;
        let ends = Arc::new(Mutex::new(Ends::open(&options.bpffs, secret)?));
        let nat_log = match &options.nat_log {
            Some(log) => Some(NatLog::start(
                log,
                &options.bpffs,
                &state_dir,
                &options.pod_names,
                &ends,
            )?),
            None => {
                nat_log::note_off(&state_dir);
                None
            }
        };
        let told: SharedLog = Arc::clone(&ends) as _;
        datapath.maps_mut().tell(Arc::clone(&told));
        let adopted = datapath.adopted();
        Ok(Engine::Ebpf(Box::new(Self {
            sweeper: SweeperThread::start(&options.bpffs, &options.state_dir, adopted, told)?,
            ends,
            nat_log,
            takeover: Takeover::new(),
            datapath,
            log,
            policy_history_expires: None,
            standby_stale: false,
        })))
    }

    /// Waits for the next event. Cancel-safe.
    ///
    /// # Errors
    /// Returns an error if the log of the programs cannot be read.
    pub(in crate::agent) async fn next(&mut self) -> Result<Event> {
        loop {
            tokio::select! {
                forwarded = self.log.forward() => forwarded?,
                () = std::future::ready(()), if self.standby_stale => return Ok(Event::StandbyStale),
                done = self.takeover.done() => return Ok(Event::Takeover(done)),
                () = self.sweeper.ended() => return Ok(Event::SweepEnded),
                () = self.sweeper.check_due() => return Ok(Event::TableCheckDue),
            }
        }
    }

    /// Writes the NAT log to its end. To be called last: no sweep runs afterwards. `detaches`: the mappings
    /// go too.
    pub(in crate::agent) fn close_log(&mut self, detaches: bool) {
        let Some(log) = self.nat_log.take() else {
            return;
        };
        if self.sweeper.finish() {
            log.close(detaches);
        } else {
            log::warn!("a sweep goes on: the next agent records a gap in the NAT log");
        }
    }

    /// Returns the packet counters of the programs.
    pub(in crate::agent) fn counters(&self) -> Counters {
        self.datapath.maps().counters().unwrap_or_default()
    }
}

pub(super) fn start(options: &RunOptions, recent: &Recent) -> Result<Engine> {
    Ebpf::with(load(options)?, options, recent)
}

fn load(options: &RunOptions) -> Result<Datapath> {
    // Before anything is pinned.
    if let Some(log) = &options.nat_log {
        log.target.check()?;
    }
    let state_dir = StateDir::at(&options.state_dir);
    let mut setup = options.setup.clone();
    setup.secret = state_dir.secret()?;
    let datapath = Datapath::load(&options.bpffs, &setup)?;
    let limits = datapath.maps().limits()?;
    if limits.secret != setup.secret {
        state_dir.save_secret(limits.secret)?;
    }
    Ok(datapath)
}

/// Starts the programs if they can be loaded and outlive the agent; otherwise the chains.
///
/// # Errors
/// Returns an error if neither works here, or if programs of an earlier agent that cannot be
/// adopted are in force.
pub(super) fn start_or_iptables(
    options: &RunOptions,
    recent: &Recent,
) -> Result<(Engine, Option<NoEbpf>)> {
    let missing = Missing::detect(&options.bpffs, &options.state_dir);
    // A datapath that already translates is not given up for iptables.
    if datapath::is_pinned(&options.bpffs) {
        let engine = start(options, recent).map_err(|err| missing.explain(err));
        return Ok((
            engine.with_context(|| stays(&options.bpffs.display().to_string()))?,
            None,
        ));
    }
    match datapath::traces() {
        Traces::None => {}
        Traces::Adoptable => return Ok((start(options, recent)?, None)),
        Traces::OutOfReach(what) => {
            let why = missing.explain(anyhow!("their maps are out of reach"));
            return Err(why.context(stays(&what.join(", "))));
        }
        Traces::Unknown(interfaces) => log::warn!(
            "TCX programs of an unknown owner are attached to {} (identifying it needs \
             CAP_SYS_ADMIN): those of an earlier netdp keep translating by its policy. `netdp \
             detach` on the node removes them",
            interfaces.join(", ")
        ),
    }
    let attempt = if missing.is_decisive() {
        Err(missing.sentence())
    } else {
        start_kept(options, recent)?
    };
    let why = match attempt {
        Ok(engine) => return Ok((engine, None)),
        Err(why) => why,
    };
    log::warn!("--mode auto: iptables, because eBPF does not work here: {why}");
    let add = missing.manifest();
    if !add.is_empty() {
        log::info!("for eBPF, add {}:", pod::BELOW);
    }
    for line in &add {
        log::info!("  {line}");
    }
    let chains = iptables::start(options)
        .with_context(|| format!("eBPF does not work here ({why}), nor does iptables"))?;
    Ok((chains, Some(NoEbpf { why, add })))
}

/// Starts the programs if they would outlive the agent; otherwise returns why not.
///
/// # Errors
/// Returns an error that a change of mode would only hide: a wrong directory, too little memory.
fn start_kept(options: &RunOptions, recent: &Recent) -> Result<Result<Engine, String>> {
    let mut datapath = match load(options) {
        Ok(datapath) => datapath,
        Err(err) if requirements::is_refusal(&err) => {
            return Ok(Err(format!("{:#}", rights::explain(err))));
        }
        Err(err) => return Err(err),
    };
    let Some(why) = datapath.ephemeral().map(str::to_owned) else {
        return Ebpf::with(datapath, options, recent).map(Ok);
    };
    // No program is attached yet.
    datapath.remove()?;
    Ok(Err(why))
}

/// Returns the reason why programs of an earlier agent are not given up for iptables.
fn stays(place: &str) -> String {
    format!(
        "netdp's eBPF programs are in force ({place}), and --mode auto does not replace them by \
         iptables: packets would be translated twice, or by an outdated policy. The programs stay \
         as they are. `--mode iptables`, with the earlier manifest's rights and volumes, hands \
         their connections over to netfilter; `netdp detach` on the node removes them"
    )
}
