//! The report that the agent writes and `netdp status` reads.

use crate::datapath::{Attached, Kernel, Mechanism, OnReload, Placed};
use crate::foreign;
use crate::iptables::ChainReport;
use crate::node::NodeReport;
use crate::reach::Finding;
use crate::requirements::NoEbpf;
use crate::state_dir::StateDir;
use crate::uplinks::MissingAddress;
use anyhow::Result;
use serde::{Deserialize, Serialize};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

/// The agent's status report.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// Version of the agent's netdp binary.
    pub version: String,
    /// Mode: `ebpf`, `iptables` or `shadow`.
    pub mode: String,
    /// Reason why the mode is not `ebpf` although that was preferred.
    #[serde(default)]
    pub no_ebpf: Option<NoEbpf>,
    /// Detected features of the kernel, in eBPF mode.
    #[serde(default)]
    pub kernel: Option<Kernel>,
    /// Effect of a policy change on live flows, in eBPF mode.
    #[serde(default)]
    pub on_reload: Option<OnReload>,
    /// The configuration in force.
    pub config: ConfigReport,
    /// Uplinks with attached programs.
    pub uplinks: Vec<UplinkReport>,
    /// `--uplink` patterns without a matching interface yet.
    pub waiting_for: Vec<String>,
    /// `--hairpin-interface` patterns without a matching interface yet.
    #[serde(default)]
    pub waiting_for_pods: Vec<String>,
    /// Suggestions for some of those patterns.
    #[serde(default)]
    pub hints: Vec<String>,
    /// Reason why there is no uplink at all, if so.
    pub no_uplink: Option<String>,
    /// Reason why not all addresses of the node are in the map, if so.
    #[serde(default)]
    pub no_room: Option<String>,
    /// Interfaces named by `--uplink` that cannot be uplinks.
    #[serde(default)]
    pub left_out: Vec<String>,
    /// Uplinks without an address of a family that pods use.
    #[serde(default)]
    pub no_address: Vec<MissingAddress>,
    /// Decisions about stacked devices.
    #[serde(default)]
    pub stacked: Vec<String>,
    /// Interfaces other than uplinks to which the node routes masqueraded destinations: packets
    /// leave there untranslated.
    #[serde(default)]
    pub leaks: Vec<String>,
    /// Interfaces towards guests of the node that the policy masquerades and netdp does not.
    #[serde(default)]
    pub guests: Vec<String>,
    /// IPsec policies that cover pods' packets after translation to the node's address.
    #[serde(default)]
    pub ipsec: Vec<String>,
    /// Paths past the hooks of the uplinks.
    #[serde(default)]
    pub detours: Vec<String>,
    /// Chains that were taken over and then created again.
    #[serde(default)]
    pub chains_back: Vec<String>,
    /// Chains and rules that could not be taken over yet, and why.
    #[serde(default)]
    pub not_taken_over: Vec<String>,
    /// Written chains, in iptables mode.
    #[serde(default)]
    pub chains: Vec<ChainReport>,
    /// Third-party NAT rules.
    #[serde(default)]
    pub foreign: foreign::NatFindings,
    /// Ports and traffic that the node itself receives, withheld from pods' flows, in eBPF mode.
    #[serde(default)]
    pub node: Option<NodeReport>,
    /// State of the Kubernetes API, if it is followed.
    #[serde(default)]
    pub api: Option<String>,
    /// Reasons why the node is not ready; empty if it is, or if readiness is not published.
    #[serde(default)]
    pub unready: Vec<String>,
    /// Places that are to have programs.
    #[serde(default)]
    pub placed: Vec<Placed>,
    /// Places whose programs were detached, as last seen by the agent.
    #[serde(default)]
    pub off: Vec<String>,
    /// The file that exists while the node is ready.
    #[serde(default)]
    pub ready_file: Option<PathBuf>,
    /// Third-party programs that run before ours on an uplink.
    #[serde(default)]
    pub behind: Vec<String>,
    /// Reason why the datapath is not pinned and ends with the agent, if so.
    #[serde(default)]
    pub unpinned: Option<String>,
    /// Reason why the pins end with the agent's mount namespace, if they do.
    #[serde(default)]
    pub fleeting: Option<String>,
    /// Number of times that the agent restored missing programs or pins.
    #[serde(default)]
    pub repairs: u64,
    /// Bypassed networks that do not answer pods, in eBPF mode.
    #[serde(default)]
    pub reach: Vec<Finding>,
    /// Mappings that were ended before their timeout for room, if there were any since the agent's
    /// start.
    #[serde(default)]
    pub ended_for_room: Option<EndedForRoom>,
}

/// Mappings that sweeps have ended before their timeout, because the tables were nearly full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndedForRoom {
    /// Number of mappings since the agent's start.
    pub mappings: u64,
    /// Time of the last, in seconds since 1970.
    pub last_at: u64,
}

/// The report's name in the state directory.
pub(crate) const FILE: &str = "status.json";

impl Report {
    /// Writes the report for `netdp status`.
    ///
    /// # Errors
    /// Returns an error if the file cannot be written.
    pub fn save(&self, state_dir: &StateDir) -> Result<()> {
        state_dir.write_json(FILE, self)
    }

    /// Reads the report that an agent last wrote.
    ///
    /// # Errors
    /// Returns an error if the file does not exist or cannot be parsed.
    pub(crate) fn read(state_dir: &StateDir) -> Result<Self> {
        state_dir.read_json(FILE)
    }
}

/// The configuration in force.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigReport {
    /// Source: `files`, `defaults` or `last good`.
    pub source: String,
    /// Names of the files that were read.
    pub files: Vec<String>,
    /// Hash of the policy.
    pub hash: String,
    /// Number of policies that have been in force here, including this one.
    #[serde(default)]
    pub generation: u64,
    /// Time at which it came into force, in seconds since 1970.
    pub applied_at: u64,
    /// Rules in force, each `prefix action origin`.
    pub rules: Vec<RuleReport>,
    /// Warnings about the configuration.
    pub warnings: Vec<String>,
    /// Reasons why the current files were rejected.
    pub rejected: Vec<String>,
}

/// A rule of the configuration in force.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleReport {
    /// Prefix of the destinations.
    pub prefix: String,
    /// Action: `bypass` or `masquerade`.
    pub action: String,
    /// Source of the rule: file or ConfigMap and line, a flag, or built in.
    pub origin: String,
}

/// An uplink and its addresses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UplinkReport {
    /// Name of the interface.
    pub name: String,
    /// The kernel's index of the interface.
    pub ifindex: u32,
    /// Attachment: `tcx` or `clsact`; `no` in shadow mode.
    pub attached: String,
    /// Address for masquerading IPv4.
    pub v4: Option<Ipv4Addr>,
    /// Address for masquerading IPv6.
    pub v6: Option<Ipv6Addr>,
    /// Set if the link is up.
    pub up: bool,
}

impl UplinkReport {
    /// Describes an uplink with attached programs.
    pub fn new(attached: &Attached, uplink: &crate::uplinks::Uplink) -> Self {
        Self {
            // An interface may be renamed after programs were attached.
            name: uplink.name.clone(),
            ifindex: attached.ifindex,
            attached: match attached.mechanism {
                Mechanism::Clsact => "clsact".into(),
                Mechanism::Auto | Mechanism::Tcx => "tcx".into(),
            },
            v4: uplink.v4,
            v6: uplink.v6,
            up: uplink.up,
        }
    }

    /// Describes an uplink without attached programs.
    pub fn watched(uplink: &crate::uplinks::Uplink) -> Self {
        Self {
            name: uplink.name.clone(),
            ifindex: uplink.ifindex,
            attached: "no".into(),
            v4: uplink.v4,
            v6: uplink.v6,
            up: uplink.up,
        }
    }
}
