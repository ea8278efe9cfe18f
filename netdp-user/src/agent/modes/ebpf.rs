//! eBPF mode: the programs of the datapath translate.

use super::super::RunOptions;
use super::super::program_log::ProgramLog;
use super::super::sweeping::Sweeping;
use super::super::takeover::{Done, Takeover};
use super::{Engine, iptables};
use crate::datapath::{self, Datapath, Traces};
use crate::pod::{self, Lacking, NoEbpf};
use crate::rights;
use crate::state_dir::StateDir;
use anyhow::{Context as _, Result, anyhow};
use netdp_common::layout::Counters;
use tokio::time::Instant;

/// The datapath, and state that only it needs.
pub(in crate::agent) struct Ebpf {
    pub datapath: Datapath,
    pub sweeping: Sweeping,
    pub takeover: Takeover,
    log: ProgramLog,
    /// Time by which connections that an earlier policy bypassed have ended, if there may be any.
    pub forget_policies: Option<Instant>,
    /// Set while the standby trie is out of date.
    pub unprepared: bool,
}

/// Event for the agent's loop.
pub(in crate::agent) enum Event {
    /// A sweep has ended, or may have.
    SweepEnded,
    /// The time has come to check whether the tables are nearly full.
    RoomDue,
    /// The standby trie can be brought up to date.
    Unprepared,
    /// A takeover, or a check after one, has ended.
    TookOver(Done),
}

impl Ebpf {
    fn with(mut datapath: Datapath, options: &RunOptions) -> Result<Engine> {
        let log = ProgramLog::watch(datapath.take_log()?)?;
        Ok(Engine::Ebpf(Box::new(Self {
            sweeping: Sweeping::start(&options.bpffs)?,
            takeover: Takeover::new(),
            datapath,
            log,
            forget_policies: None,
            unprepared: false,
        })))
    }

    /// Waits for the next event. Cancel-safe.
    ///
    /// # Errors
    /// Returns an error if the log of the programs cannot be read.
    pub(in crate::agent) async fn next(&mut self) -> Result<Event> {
        loop {
            tokio::select! {
                passed_on = self.log.pass_on() => passed_on?,
                () = std::future::ready(()), if self.unprepared => return Ok(Event::Unprepared),
                done = self.takeover.done() => return Ok(Event::TookOver(done)),
                () = self.sweeping.ended() => return Ok(Event::SweepEnded),
                () = self.sweeping.wants_look() => return Ok(Event::RoomDue),
            }
        }
    }

    /// Returns the packet counters of the programs.
    pub(in crate::agent) fn counters(&self) -> Counters {
        self.datapath.maps().counters().unwrap_or_default()
    }
}

pub(super) fn start(options: &RunOptions) -> Result<Engine> {
    Ebpf::with(load(options)?, options)
}

fn load(options: &RunOptions) -> Result<Datapath> {
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
pub(super) fn start_or_iptables(options: &RunOptions) -> Result<(Engine, Option<NoEbpf>)> {
    let lacking = Lacking::look(&options.bpffs, &options.state_dir);
    // A datapath that already translates is not given up for iptables.
    if datapath::is_pinned(&options.bpffs) {
        let engine = start(options).map_err(|err| lacking.explain(err));
        return Ok((
            engine.with_context(|| stays(&options.bpffs.display().to_string()))?,
            None,
        ));
    }
    match datapath::traces() {
        Traces::None => {}
        Traces::Adoptable => return Ok((start(options)?, None)),
        Traces::OutOfReach(what) => {
            let why = lacking.explain(anyhow!("their maps are out of reach"));
            return Err(why.context(stays(&what.join(", "))));
        }
        Traces::Unknown(interfaces) => log::warn!(
            "programs are attached to {} by TCX, and whose they are the kernel tells with \
             CAP_SYS_ADMIN only: if they are an earlier netdp's, they go on by its policy. \
             `netdp detach` on the node ends them",
            interfaces.join(", ")
        ),
    }
    let tried = if lacking.is_decisive() {
        Err(lacking.sentence())
    } else {
        start_kept(options)?
    };
    let why = match tried {
        Ok(engine) => return Ok((engine, None)),
        Err(why) => why,
    };
    log::warn!("--mode auto: iptables, because eBPF does not work here: {why}");
    let add = lacking.manifest();
    if !add.is_empty() {
        log::info!("for eBPF add, {}:", pod::BELOW);
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
fn start_kept(options: &RunOptions) -> Result<Result<Engine, String>> {
    let mut datapath = match load(options) {
        Ok(datapath) => datapath,
        Err(err) if pod::is_refusal(&err) => {
            return Ok(Err(format!("{:#}", rights::explain(err))));
        }
        Err(err) => return Err(err),
    };
    let Some(why) = datapath.fleeting().map(str::to_owned) else {
        return Ebpf::with(datapath, options).map(Ok);
    };
    // No program is attached yet.
    datapath.remove()?;
    Ok(Err(why))
}

/// Returns the reason why programs of an earlier agent are not given up for iptables.
fn stays(place: &str) -> String {
    format!(
        "netdp's eBPF programs are in force ({place}), and --mode auto does not leave them for iptables: \
         packets would be translated twice, or by an old policy. They go on as they are. `--mode iptables` \
         with what they were started with gives their connections to netfilter; `netdp detach` on the \
         node ends them"
    )
}
