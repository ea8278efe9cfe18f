//! The modes: the datapath translates, or netfilter by the chains, or netdp translates nothing.
//! Code of a single mode is in its module.

mod ebpf;
mod iptables;
mod shadow;
mod sweeper;
mod takeover;

use super::{Mode, RunOptions};
use crate::config::Config;
use crate::datapath::{Attached, Datapath};
use crate::events::Recent;
use crate::iptables::KEEP_CHAIN;
use crate::reconcile::{self, Change, State};
use crate::report::UplinkReport;
use crate::requirements::{Missing, NoEbpf};
use crate::shadow::{Node, Shadow};
use anyhow::{Result, bail};
use std::collections::BTreeSet;

pub(super) use ebpf::{Ebpf, Event as EbpfEvent};
pub(super) use iptables::{Event as IptablesEvent, Iptables};
pub(super) use sweeper::Cause as SweepCause;
pub(super) use takeover::{Done as TakeoverDone, Job as TakeoverJob};

/// Event of a single mode.
pub(super) enum Event {
    Ebpf(EbpfEvent),
    Iptables(IptablesEvent),
}

/// The mode in use and its state.
pub(super) enum Engine {
    Ebpf(Box<Ebpf>),
    Iptables(Iptables),
    Shadow(Shadow),
}

impl Engine {
    /// Starts the mode of `--mode`, which keeps refusals in `recent`. Also returns why it is not eBPF, if that was preferred.
    ///
    /// # Errors
    /// Returns an error if the mode does not work here.
    pub(super) fn start(options: &RunOptions, recent: &Recent) -> Result<(Self, Option<NoEbpf>)> {
        let engine = match options.mode {
            Mode::Ebpf => ebpf::start(options, recent)
                .map_err(|err| Missing::detect(&options.bpffs, &options.state_dir).explain(err)),
            Mode::Iptables => iptables::start(options),
            Mode::Shadow => shadow::start(options),
            Mode::Auto => return ebpf::start_or_iptables(options, recent),
        };
        Ok((engine?, None))
    }

    pub(super) const fn name(&self) -> &'static str {
        match self {
            Self::Ebpf(_) => "ebpf",
            Self::Iptables(_) => "iptables",
            Self::Shadow(_) => "shadow",
        }
    }

    /// Reports whether an earlier agent's policy is in force.
    pub(super) fn adopted(&self) -> bool {
        match self {
            Self::Ebpf(ebpf) => ebpf.datapath.adopted(),
            Self::Iptables(iptables) => iptables.adopted(),
            Self::Shadow(_) => false,
        }
    }

    /// Returns the chains, if netfilter translates.
    pub(super) const fn as_iptables(&self) -> Option<&Iptables> {
        match self {
            Self::Ebpf(_) | Self::Shadow(_) => None,
            Self::Iptables(iptables) => Some(iptables),
        }
    }

    /// Returns the chains mutably, if netfilter translates.
    pub(super) const fn as_iptables_mut(&mut self) -> Option<&mut Iptables> {
        match self {
            Self::Ebpf(_) | Self::Shadow(_) => None,
            Self::Iptables(iptables) => Some(iptables),
        }
    }

    /// Waits for an event of the mode. Cancel-safe.
    ///
    /// # Errors
    /// Returns an error if the log of the programs cannot be read.
    pub(super) async fn next(&mut self) -> Result<Event> {
        match self {
            Self::Ebpf(ebpf) => ebpf.next().await.map(Event::Ebpf),
            Self::Iptables(iptables) => Ok(Event::Iptables(iptables.next().await)),
            Self::Shadow(_) => std::future::pending().await,
        }
    }

    /// Returns the words with which `netdp run` announces that it is ready.
    pub(super) const fn in_force(&self) -> &'static str {
        match self {
            Self::Ebpf(_) | Self::Iptables(_) => "in force on",
            Self::Shadow(_) => "translates nothing, compares with netfilter on",
        }
    }

    /// Reports whether netdp only compares and translates nothing.
    pub(super) const fn is_shadow(&self) -> bool {
        matches!(self, Self::Shadow(_))
    }

    /// Passes the state to compare with netfilter's decisions to shadow mode.
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

    /// Returns the datapath with its state, if the programs translate.
    pub(super) const fn as_ebpf(&self) -> Option<&Ebpf> {
        match self {
            Self::Ebpf(ebpf) => Some(ebpf),
            Self::Iptables(_) | Self::Shadow(_) => None,
        }
    }

    /// Returns the datapath with its state mutably, if the programs translate.
    pub(super) const fn as_ebpf_mut(&mut self) -> Option<&mut Ebpf> {
        match self {
            Self::Ebpf(ebpf) => Some(ebpf),
            Self::Iptables(_) | Self::Shadow(_) => None,
        }
    }

    /// Returns the datapath, if the programs translate.
    pub(super) fn as_datapath(&mut self) -> Option<&mut Datapath> {
        self.as_ebpf_mut().map(|ebpf| &mut ebpf.datapath)
    }

    /// Returns the number of node addresses that the map has room for.
    pub(super) const fn address_capacity(&self) -> usize {
        match self {
            Self::Ebpf(ebpf) => ebpf.datapath.maps().address_capacity(),
            Self::Iptables(_) | Self::Shadow(_) => usize::MAX,
        }
    }

    /// Returns the uplinks with attached programs, or those watched in shadow mode.
    pub(super) fn uplink_reports(&self, state: &State) -> Vec<UplinkReport> {
        let uplinks = &state.uplinks;
        match self {
            Self::Ebpf(ebpf) => {
                let attached = ebpf.datapath.attached();
                let report = |a: &Attached| Some(UplinkReport::new(a, uplinks.get(&a.ifindex)?));
                attached.iter().filter_map(report).collect()
            }
            Self::Iptables(_) => Vec::new(),
            Self::Shadow(_) => uplinks.values().map(UplinkReport::watched).collect(),
        }
    }

    /// Removes everything that is in force. Returns what was removed.
    ///
    /// # Errors
    /// Returns an error that names what could not be removed.
    pub(super) fn remove(&mut self, options: &RunOptions) -> Result<Vec<String>> {
        let mut chains = BTreeSet::from([KEEP_CHAIN]);
        let mut removed = Vec::new();
        match self {
            Self::Ebpf(ebpf) => removed = ebpf.datapath.remove()?,
            Self::Iptables(_) => drop(chains.insert(&options.chains.name)),
            Self::Shadow(_) => return Ok(removed),
        }
        let from_tables = crate::iptables::remove(&chains);
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
            Self::Ebpf(ebpf) => ebpf.datapath.apply(change),
            Self::Iptables(_) | Self::Shadow(_) => Ok(()),
        }
    }
}
