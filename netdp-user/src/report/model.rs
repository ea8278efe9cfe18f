//! The report that the agent writes, and `netdp status` reads.

use crate::datapath::{Attached, Kernel, Mechanism, Placed};
use crate::foreign;
use crate::iptables::ChainReport;
use crate::node::NodeReport;
use crate::pod::NoEbpf;
use crate::state_dir::StateDir;
use crate::uplinks::Lacking;
use anyhow::Result;
use serde::{Deserialize, Serialize};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

/// What the agent writes down about itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// netdp's version.
    pub version: String,
    /// `ebpf`, `iptables` or `shadow`.
    pub mode: String,
    /// Why it is not `ebpf`, where that was wanted most.
    #[serde(default)]
    pub no_ebpf: Option<NoEbpf>,
    /// What the kernel was found to have, in eBPF mode.
    #[serde(default)]
    pub kernel: Option<Kernel>,
    /// The configuration in force.
    pub config: ConfigReport,
    /// What is attached.
    pub uplinks: Vec<UplinkReport>,
    /// `--uplink` patterns that match no interface yet.
    pub waiting_for: Vec<String>,
    /// `--hairpin` patterns that match no interface yet.
    #[serde(default)]
    pub waiting_for_pods: Vec<String>,
    /// What may have been meant by some of those.
    #[serde(default)]
    pub hints: Vec<String>,
    /// Why there is no uplink at all, if so.
    pub no_uplink: Option<String>,
    /// Why not all addresses of the node count, if so.
    #[serde(default)]
    pub no_room: Option<String>,
    /// What `--uplink` names and can't be an uplink.
    #[serde(default)]
    pub left_out: Vec<String>,
    /// Uplinks without an address of a family that pods use.
    #[serde(default)]
    pub no_address: Vec<Lacking>,
    /// What was decided about uplinks that stand on each other.
    #[serde(default)]
    pub stacked: Vec<String>,
    /// Interfaces that the node routes masqueraded destinations by and that are no uplinks: packets
    /// leave there untranslated.
    #[serde(default)]
    pub leaks: Vec<String>,
    /// Interfaces towards guests of the node that the policy masquerades, and netdp does not.
    #[serde(default)]
    pub guests: Vec<String>,
    /// IPsec policies that cover what pods send once it has the node's address.
    #[serde(default)]
    pub ipsec: Vec<String>,
    /// Ways for packets past the uplinks' hooks.
    #[serde(default)]
    pub detours: Vec<String>,
    /// Chains that were taken over and that somebody has put back.
    #[serde(default)]
    pub chains_back: Vec<String>,
    /// Chains and rules that were to be taken over and could not be yet, and why.
    #[serde(default)]
    pub not_taken_over: Vec<String>,
    /// The chains, in iptables mode.
    #[serde(default)]
    pub chains: Vec<ChainReport>,
    /// Other rules that translate sources.
    #[serde(default)]
    pub foreign: foreign::Seen,
    /// What is kept from pods' flows because the node itself receives it, in eBPF mode.
    #[serde(default)]
    pub node: Option<NodeReport>,
    /// How it stands with the Kubernetes API, if that is followed.
    #[serde(default)]
    pub api: Option<String>,
    /// Why the node is not ready; nothing if it is, or if nobody asks.
    #[serde(default)]
    pub unready: Vec<String>,
    /// Where programs are to be.
    #[serde(default)]
    pub placed: Vec<Placed>,
    /// Where programs were to be and are not, as the agent last knew.
    #[serde(default)]
    pub off: Vec<String>,
    /// The file that exists while the node is ready.
    #[serde(default)]
    pub ready_file: Option<PathBuf>,
    /// Others' programs that come before ours on an uplink.
    #[serde(default)]
    pub behind: Vec<String>,
    /// Why the datapath is not pinned, if so: it ends with the agent.
    #[serde(default)]
    pub unpinned: Option<String>,
    /// Why the pins end with the agent's mount namespace, if they do.
    #[serde(default)]
    pub fleeting: Option<String>,
    /// How often the agent has put back programs or pins that were gone.
    #[serde(default)]
    pub repairs: u64,
}

/// The report's name in the state directory.
pub(crate) const FILE: &str = "status.json";

impl Report {
    /// Writes it for `netdp status`.
    ///
    /// # Errors
    /// The file can't be written.
    pub fn save(&self, state_dir: &StateDir) -> Result<()> {
        state_dir.write_json(FILE, self)
    }

    /// Reads what an agent wrote last.
    ///
    /// # Errors
    /// There is none, or it is not one.
    pub(super) fn read(state_dir: &StateDir) -> Result<Self> {
        state_dir.read_json(FILE)
    }
}

/// The configuration in force.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigReport {
    /// `files`, `defaults` or `last good`.
    pub source: String,
    /// The files that were read.
    pub files: Vec<String>,
    /// Hash of the policy.
    pub hash: String,
    /// How many policies have been in force here, this one included.
    #[serde(default)]
    pub generation: u64,
    /// When it came into force, in seconds since 1970.
    pub applied_at: u64,
    /// Rules in force, each `prefix action origin`.
    pub rules: Vec<RuleReport>,
    /// Warnings about it.
    pub warnings: Vec<String>,
    /// Why the files that are there now were not taken.
    pub rejected: Vec<String>,
}

/// One rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleReport {
    /// Destinations.
    pub prefix: String,
    /// `bypass` or `masquerade`.
    pub action: String,
    /// Who says so.
    pub origin: String,
}

/// One uplink.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UplinkReport {
    /// Interface.
    pub name: String,
    /// Its index.
    pub ifindex: u32,
    /// `tcx` or `clsact`; `no` in shadow mode.
    pub attached: String,
    /// Address for IPv4.
    pub v4: Option<Ipv4Addr>,
    /// Address for IPv6.
    pub v6: Option<Ipv6Addr>,
    /// Whether it is up.
    pub up: bool,
}

impl UplinkReport {
    /// From an attached uplink and its addresses.
    pub fn new(attached: &Attached, uplink: &crate::uplinks::Uplink) -> Self {
        Self {
            // An interface may get another name after it was attached to.
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

    /// An uplink that nothing is attached to.
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
