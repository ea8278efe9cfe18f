//! The agent's state as one value to read: the report, readiness and what the API is told are made of
//! it, and of nothing else.

use super::Agent;
use super::configuration::InForce;
use super::findings::Findings;
use super::modes::Iptables;
use crate::config::Rule;
use crate::datapath::{Kernel, Placed};
use crate::foreign;
use crate::iptables::ChainReport;
use crate::node::NodeReport;
use crate::pod::NoEbpf;
use crate::report::UplinkReport;
use crate::sources::kube::MapRef;
use crate::uplinks::{Had, Lacking};
use std::path::PathBuf;

/// What does not change while the agent runs.
#[derive(Debug, Clone, Default)]
pub(super) struct Identity {
    /// `ebpf`, `iptables` or `shadow`.
    pub mode: &'static str,
    /// Why it is not `ebpf`, where that was wanted most.
    pub no_ebpf: Option<NoEbpf>,
    /// What the kernel was found to have, in eBPF mode.
    pub kernel: Option<Kernel>,
    /// `--ready-file`.
    pub ready_file: Option<PathBuf>,
}

/// The agent's state.
pub(super) struct Facts<'a> {
    pub identity: &'a Identity,
    pub config: &'a InForce,
    /// The rules in force.
    pub rules: &'a [Rule],
    /// What has to be done once, at the start, is not done yet.
    pub starting: bool,
    /// The programs go by a policy.
    pub has_policy: bool,
    /// The chains; `None` unless netfilter translates.
    pub chains: Option<&'a [ChainReport]>,
    /// The chains that an earlier agent wrote or this one is about to, as far as they may be there.
    pub recalled_chains: &'a [ChainReport],
    /// The uplinks that programs are attached to, or that are watched.
    pub uplinks: &'a [UplinkReport],
    pub network: &'a Findings,
    /// Missing addresses, as they were reported.
    pub no_address: &'a [Lacking],
    /// The same for the next agent: what an earlier one reported counts until this one has looked.
    pub reported: &'a [Lacking],
    /// The families that uplinks have or had an address of, as far as this agent or an earlier one saw.
    pub had: &'a Had,
    /// Others' NAT rules.
    pub foreign: &'a foreign::Seen,
    /// What is kept from pods' flows, in eBPF mode.
    pub node: Option<&'a NodeReport>,
    /// What could not be taken over yet, and why.
    pub not_taken_over: &'a [String],
    /// Chains that were taken over and are back.
    pub chains_back: &'a [String],
    /// How the Kubernetes API stands, if it is followed.
    pub api: Option<String>,
    /// Why the policy may not be the one that the API has, if so.
    pub api_unready: Option<String>,
    /// The ConfigMaps that the API has.
    pub maps: Vec<MapRef>,
    /// Where programs are to be.
    pub placed: Vec<Placed>,
    /// What keeps packets from being translated.
    pub off: Vec<String>,
    /// Others' programs that come before netdp's.
    pub behind: Vec<String>,
    /// Why the datapath is not pinned, if so.
    pub unpinned: Option<&'a String>,
    /// Why the pins end with the agent's mount namespace, if they do.
    pub fleeting: Option<&'a String>,
    /// How often programs or pins were put back.
    pub repairs: u64,
    /// What the last self-check found wrong.
    pub fault: Option<&'a String>,
    /// Why the node was not ready when that was published last.
    pub unready: &'a [String],
}

impl Agent {
    pub(super) fn facts(&self) -> Facts<'_> {
        let required = self.options.kube.as_ref().is_some_and(|kube| kube.required);
        let ebpf = self.engine.as_ebpf();
        let takeover = ebpf.map(|ebpf| &ebpf.takeover);
        Facts {
            identity: &self.identity,
            config: &self.in_force,
            rules: &self.config.rules,
            starting: self.starting,
            has_policy: self.applied.policy.is_some(),
            chains: self.engine.as_iptables().map(Iptables::reports),
            // Once they are taken over, a chain of that name is another's.
            recalled_chains: if takeover.is_some_and(|it| it.complete) {
                &[]
            } else {
                &self.memory.chains
            },
            uplinks: &self.attached,
            network: &self.found,
            no_address: &self.no_address.told,
            reported: self.no_address.reported(),
            had: &self.no_address.had,
            foreign: &self.foreign.found,
            node: self.node.report.as_ref(),
            not_taken_over: takeover.map_or(&[], |it| it.failed.as_slice()),
            chains_back: takeover.map_or(&[], |it| it.back.as_slice()),
            api: self.api.state(),
            api_unready: self.api.unready(required, self.file_documents()),
            maps: self.api.maps(),
            placed: ebpf.map_or_else(Vec::new, |ebpf| ebpf.datapath.placed()),
            off: self.guard.faults(),
            behind: self.guard.outrun.lines(),
            unpinned: self.guard.unpinned.as_ref(),
            fleeting: self.guard.fleeting.as_ref(),
            repairs: self.guard.repairs,
            fault: self.told.fault.as_ref(),
            unready: &self.told.unready,
        }
    }
}
