//! What does the translating: the datapath, or netfilter by the chains.

use super::takeover::is_pinned;
use super::{Mode, RunOptions};
use crate::config::Config;
use crate::datapath::{self, Attached, Datapath, Kernel, Placed, Traces};
use crate::iptables::{self, Backend, Chains, KEEP_CHAIN};
use crate::pod::{self, Lacking, NoEbpf};
use crate::reconcile::{self, Change, State};
use crate::rights;
use crate::shadow::{Node, Shadow};
use crate::state_dir::StateDir;
use anyhow::{Context as _, Result, anyhow, bail};
use aya_log::EbpfLogger;
use netdp_common::abi::Counters;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

pub(super) enum Engine {
    Ebpf(Box<Datapath>),
    Iptables(Chains),
    Shadow(Shadow),
}

impl Engine {
    /// The engine of `--mode`; and why it is not the eBPF one, where that was wanted most.
    ///
    /// # Errors
    /// It can't work here.
    pub(super) fn start(options: &RunOptions) -> Result<(Self, Option<NoEbpf>)> {
        match options.mode {
            Mode::Ebpf => Self::ebpf(options)
                .map_err(|err| Lacking::look(&options.bpffs, &options.state_dir).explain(err)),
            Mode::Iptables => Self::chains(options),
            Mode::Shadow if is_pinned(&options.bpffs) => bail!(
                "an eBPF datapath is in force in {}: there is no other to compare with; end it with netdp detach",
                options.bpffs.display()
            ),
            Mode::Shadow => {
                let dir = StateDir::at(&options.state_dir);
                Ok(Self::Shadow(Shadow::start(&options.chains.name, dir)?))
            }
            Mode::Auto => return Self::best(options),
        }
        .map(|engine| (engine, None))
    }

    /// The programs where they can be loaded and outlive the agent, else the chains.
    fn best(options: &RunOptions) -> Result<(Self, Option<NoEbpf>)> {
        let lacking = Lacking::look(&options.bpffs, &options.state_dir);
        // What translates already is not left for something else.
        if is_pinned(&options.bpffs) {
            let engine = Self::ebpf(options).map_err(|err| lacking.explain(err));
            return Ok((
                engine.with_context(|| stays(&options.bpffs.display().to_string()))?,
                None,
            ));
        }
        match datapath::traces() {
            Traces::None => {}
            Traces::Adoptable => return Ok((Self::ebpf(options)?, None)),
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
            Self::kept(options)?
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
        let chains = Self::chains(options)
            .with_context(|| format!("eBPF does not work here ({why}), nor does iptables"))?;
        Ok((chains, Some(NoEbpf { why, add })))
    }

    /// The programs, if they would outlive the agent, or why not.
    ///
    /// # Errors
    /// Something that another mode would only hide: a wrong directory, too little memory.
    fn kept(options: &RunOptions) -> Result<Result<Self, String>> {
        let mut engine = match Self::ebpf(options) {
            Ok(engine) => engine,
            Err(err) if pod::is_refusal(&err) => {
                return Ok(Err(format!("{:#}", rights::explain(err))));
            }
            Err(err) => return Err(err),
        };
        let Some(datapath) = engine.as_datapath() else {
            return Ok(Ok(engine));
        };
        let Some(why) = datapath.fleeting().map(str::to_owned) else {
            return Ok(Ok(engine));
        };
        // Nothing is attached yet.
        datapath.remove()?;
        Ok(Err(why))
    }

    fn ebpf(options: &RunOptions) -> Result<Self> {
        let state_dir = StateDir::at(&options.state_dir);
        let mut setup = options.setup.clone();
        setup.secret = state_dir.secret()?;
        let datapath = Datapath::load(&options.bpffs, &setup)?;
        let limits = datapath.maps().limits()?;
        if limits.secret != setup.secret {
            state_dir.save_secret(limits.secret)?;
        }
        Ok(Self::Ebpf(Box::new(datapath)))
    }

    fn chains(options: &RunOptions) -> Result<Self> {
        for flag in &options.ebpf_only {
            log::warn!("{flag} has no effect in iptables mode");
        }
        let chains = Chains::new(&options.chains)?;
        if chains.backend() == Backend::Legacy && pod::has_lock_of_its_own() {
            log::warn!(
                "the node's programs of iptables-legacy do not see the lock of this pod's: writing may \
                 fail now and then, and is tried again. To be added, {}: {}",
                pod::BELOW,
                pod::LOCK_VOLUME
            );
        }
        Ok(Self::Iptables(chains))
    }

    pub(super) const fn name(&self) -> &'static str {
        match self {
            Self::Ebpf(_) => "ebpf",
            Self::Iptables(_) => "iptables",
            Self::Shadow(_) => "shadow",
        }
    }

    /// Whether an earlier agent's policy is in force.
    pub(super) fn adopted(&self) -> bool {
        match self {
            Self::Ebpf(datapath) => datapath.adopted(),
            Self::Iptables(chains) => chains.adopted(),
            Self::Shadow(_) => false,
        }
    }

    /// The chains, if they do it.
    pub(super) const fn as_chains(&self) -> Option<&Chains> {
        match self {
            Self::Ebpf(_) | Self::Shadow(_) => None,
            Self::Iptables(chains) => Some(chains),
        }
    }

    /// What `netdp run` says of it once it is ready.
    pub(super) const fn in_force(&self) -> &'static str {
        match self {
            Self::Ebpf(_) | Self::Iptables(_) => "in force on",
            Self::Shadow(_) => "translates nothing, compares with netfilter on",
        }
    }

    /// Whether nothing is translated, only compared.
    pub(super) const fn is_shadow(&self) -> bool {
        matches!(self, Self::Shadow(_))
    }

    /// Gives what is compared with netfilter.
    pub(super) fn compare(&self, config: &Config, state: &State, enable_ipv6: bool) {
        if let Self::Shadow(shadow) = self {
            shadow.set(Node {
                config: config.clone(),
                local: state.local.clone(),
                uplinks: state.uplinks.clone(),
                enable_ipv6,
            });
        }
    }

    /// The datapath, if it does it.
    pub(super) const fn as_datapath(&mut self) -> Option<&mut Datapath> {
        match self {
            Self::Ebpf(datapath) => Some(datapath),
            Self::Iptables(_) | Self::Shadow(_) => None,
        }
    }

    /// What the kernel was found to have, where that matters.
    pub(super) fn kernel(&self) -> Option<Kernel> {
        match self {
            Self::Ebpf(datapath) => Some(datapath.kernel()),
            Self::Iptables(_) | Self::Shadow(_) => None,
        }
    }

    /// What became of packets so far.
    pub(super) fn counters(&self) -> Counters {
        match self {
            Self::Ebpf(datapath) => datapath.maps().counters().unwrap_or_default(),
            Self::Iptables(_) | Self::Shadow(_) => Counters::default(),
        }
    }

    pub(super) fn known_uplinks(&self) -> Result<Vec<u32>> {
        match self {
            Self::Ebpf(datapath) => datapath.known_uplinks(),
            Self::Iptables(_) | Self::Shadow(_) => Ok(Vec::new()),
        }
    }

    /// Uplinks of an earlier agent, and interfaces that it observed.
    pub(super) fn known_interfaces(&self) -> Result<Vec<u32>> {
        match self {
            Self::Ebpf(datapath) => datapath.known_interfaces(),
            Self::Iptables(_) | Self::Shadow(_) => Ok(Vec::new()),
        }
    }

    pub(super) fn local_addresses(&self) -> Result<BTreeSet<IpAddr>> {
        match self {
            Self::Ebpf(datapath) => datapath.maps().local_addresses(),
            Self::Iptables(_) | Self::Shadow(_) => Ok(BTreeSet::new()),
        }
    }

    /// How many addresses of the node have room.
    pub(super) const fn address_room(&self) -> usize {
        match self {
            Self::Ebpf(datapath) => datapath.maps().address_room(),
            Self::Iptables(_) | Self::Shadow(_) => usize::MAX,
        }
    }

    /// Takes the hairpin program off all interfaces but these.
    pub(super) fn detach_pods_except(&mut self, pods: &BTreeMap<u32, String>) -> Result<()> {
        match self {
            Self::Ebpf(datapath) => datapath.detach_pods_except(pods),
            Self::Iptables(_) | Self::Shadow(_) => Ok(()),
        }
    }

    pub(super) fn attached(&self) -> Vec<Attached> {
        match self {
            Self::Ebpf(datapath) => datapath.attached(),
            Self::Iptables(_) | Self::Shadow(_) => Vec::new(),
        }
    }

    /// Where programs are to be.
    pub(super) fn placed(&self) -> Vec<Placed> {
        match self {
            Self::Ebpf(datapath) => datapath.placed(),
            Self::Iptables(_) | Self::Shadow(_) => Vec::new(),
        }
    }

    pub(super) fn forget_earlier_policies(&mut self) -> Result<()> {
        match self {
            Self::Ebpf(datapath) => datapath.forget_earlier_policies(),
            Self::Iptables(_) | Self::Shadow(_) => Ok(()),
        }
    }

    /// Makes ready for the next change of the policy.
    pub(super) fn prepare_policy(&mut self) -> Result<()> {
        match self {
            Self::Ebpf(datapath) => datapath.prepare_policy().map(drop),
            Self::Iptables(_) | Self::Shadow(_) => Ok(()),
        }
    }

    /// What the programs log.
    pub(super) fn take_log(&mut self) -> Result<Option<EbpfLogger<&'static dyn log::Log>>> {
        match self {
            Self::Ebpf(datapath) => datapath.take_log().map(Some),
            Self::Iptables(_) | Self::Shadow(_) => Ok(None),
        }
    }

    /// Removes what is in force; says what that was.
    ///
    /// # Errors
    /// What could not be removed.
    pub(super) fn remove(&mut self, options: &RunOptions) -> Result<Vec<String>> {
        let mut chains = BTreeSet::from([KEEP_CHAIN]);
        let mut removed = Vec::new();
        match self {
            Self::Ebpf(datapath) => removed = datapath.remove()?,
            Self::Iptables(_) => drop(chains.insert(&options.chains.name)),
            Self::Shadow(_) => return Ok(removed),
        }
        let from_tables = iptables::remove(&chains);
        removed.extend(from_tables.removed);
        if !from_tables.failed.is_empty() {
            bail!("not removed: {}", from_tables.failed.join("; "));
        }
        Ok(removed)
    }
}

impl reconcile::Backend for Engine {
    fn apply(&mut self, change: &Change) -> Result<()> {
        match self {
            Self::Ebpf(datapath) => datapath.apply(change),
            Self::Iptables(_) | Self::Shadow(_) => Ok(()),
        }
    }
}

/// Why the programs of an earlier agent are not left for iptables.
fn stays(place: &str) -> String {
    format!(
        "netdp's eBPF programs are in force ({place}), and --mode auto does not leave them for iptables: \
         packets would be translated twice, or by an old policy. They go on as they are. `--mode iptables` \
         with what they were started with gives their connections to netfilter; `netdp detach` on the \
         node ends them"
    )
}
