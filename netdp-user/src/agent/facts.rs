//! The agent's state as one value: the only input of the status report, of readiness and of the
//! status that is published to the API.

use super::Agent;
use super::findings::Findings;
use super::in_force::InForce;
use super::modes::Iptables;
use crate::config::Rule;
use crate::datapath::{Kernel, OnReload, Placed};
use crate::foreign;
use crate::iptables::ChainReport;
use crate::node::NodeReport;
use crate::reach::Finding;
use crate::report::{EndedForRoom, UplinkReport};
use crate::requirements::NoEbpf;
use crate::sources::kube::ConfigMapRef;
use crate::uplinks::{FormerFamilies, MissingAddress};
use std::path::PathBuf;

/// Facts that stay constant while the agent runs.
#[derive(Debug, Clone, Default)]
pub(super) struct Identity {
    /// `ebpf`, `iptables` or `shadow`.
    pub mode: &'static str,
    /// Reason why the mode is not `ebpf` although that was preferred.
    pub no_ebpf: Option<NoEbpf>,
    /// Detected features of the kernel, in eBPF mode.
    pub kernel: Option<Kernel>,
    /// Effect of a policy change on live flows, in eBPF mode.
    pub on_reload: Option<OnReload>,
    /// Path of the ready file, from `--ready-file`.
    pub ready_file: Option<PathBuf>,
}

/// The agent's state, borrowed.
pub(super) struct Facts<'a> {
    pub identity: &'a Identity,
    pub config: &'a InForce,
    /// Rules of the configuration in force.
    pub rules: &'a [Rule],
    /// Set while one-time work of the start is pending.
    pub starting: bool,
    /// Set if the programs have a policy.
    pub has_policy: bool,
    /// The chains; `None` unless netfilter translates.
    pub chains: Option<&'a [ChainReport]>,
    /// The chains that an earlier agent wrote or this one is about to, as far as they may be there.
    pub recalled_chains: &'a [ChainReport],
    /// The uplinks with attached programs, or those watched in shadow mode.
    pub uplinks: &'a [UplinkReport],
    pub network: &'a Findings,
    /// Missing addresses, as reported.
    pub no_address: &'a [MissingAddress],
    /// The same for the next agent: what an earlier one reported counts until this one has looked.
    pub reported: &'a [MissingAddress],
    /// The families that uplinks have or had an address of, as far as this agent or an earlier one saw.
    pub had: &'a FormerFamilies,
    /// Third-party NAT rules.
    pub foreign: &'a foreign::NatFindings,
    /// Ports and traffic of the node that are withheld from pods' flows, in eBPF mode.
    pub node: Option<&'a NodeReport>,
    /// Rules that could not be taken over yet, and why.
    pub not_taken_over: &'a [String],
    /// Chains that were taken over and then created again.
    pub recreated_chains: &'a [String],
    /// State of the Kubernetes API, if it is followed.
    pub api: Option<String>,
    /// Reason why the policy may differ from the one in the API, if so.
    pub api_unready: Option<String>,
    /// ConfigMaps in the API.
    pub maps: Vec<ConfigMapRef>,
    /// Places that are to have programs.
    pub placed: Vec<Placed>,
    /// Faults that keep packets from being translated.
    pub off: Vec<String>,
    /// Third-party programs that run before netdp's.
    pub behind: Vec<String>,
    /// Reason why the datapath is not pinned, if so.
    pub unpinned: Option<&'a String>,
    /// Reason why the pins end with the agent's mount namespace, if they do.
    pub ephemeral: Option<&'a String>,
    /// Number of times that programs or pins were restored.
    pub repairs: u64,
    /// Fault found by the last self-check.
    pub fault: Option<&'a String>,
    /// Bypassed networks that do not answer pods.
    pub reach: &'a [Finding],
    /// Mappings that were ended for room, if any.
    pub for_room: Option<EndedForRoom>,
    /// Reasons why the node was not ready, as last published.
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
            no_address: &self.no_address.reported,
            reported: self.no_address.to_recall(),
            had: &self.no_address.had,
            foreign: &self.foreign.found,
            node: self.node.report.as_ref(),
            not_taken_over: takeover.map_or(&[], |it| it.failed.as_slice()),
            recreated_chains: takeover.map_or(&[], |it| it.recreated.as_slice()),
            api: self.api.state(),
            api_unready: self.api.unready(required, self.file_documents()),
            maps: self.api.maps(),
            placed: ebpf.map_or_else(Vec::new, |ebpf| ebpf.datapath.placed()),
            off: self.guard.faults(),
            behind: self.guard.ahead.lines(),
            unpinned: self.guard.unpinned.as_ref(),
            ephemeral: self.guard.ephemeral.as_ref(),
            repairs: self.guard.repairs,
            fault: self.publisher.fault.as_ref(),
            reach: &self.reach.findings,
            for_room: self.for_room.ended,
            unready: &self.publisher.unready,
        }
    }
}
