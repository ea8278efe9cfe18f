//! Hooks of interfaces, and the mechanisms by which programs are attached to them.

use aya::programs::TcAttachType;
use nix::net::if_::if_indextoname;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// Program at TC egress of uplinks.
pub const EGRESS: &str = "egress_snat";
/// Program at TC ingress of uplinks.
pub const INGRESS: &str = "ingress_rev_snat";

/// Program at TC ingress of interfaces towards pods.
pub const HAIRPIN: &str = "pod_hairpin";

/// A hook at which a program of the datapath runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Hook {
    /// TC egress of an uplink.
    Egress,
    /// TC ingress of an uplink.
    Ingress,
    /// TC ingress of the node's end of a pod's interface: packets that pods send.
    Pod,
}

impl Hook {
    pub(super) const UPLINK: [Self; 2] = [Self::Ingress, Self::Egress];

    pub(super) const fn program(self) -> &'static str {
        match self {
            Self::Egress => EGRESS,
            Self::Ingress => INGRESS,
            Self::Pod => HAIRPIN,
        }
    }

    pub(super) const fn attach_type(self) -> TcAttachType {
        match self {
            Self::Egress => TcAttachType::Egress,
            Self::Ingress | Self::Pod => TcAttachType::Ingress,
        }
    }

    /// Returns the name used in messages.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Egress => "egress",
            Self::Ingress => "ingress",
            Self::Pod => "hairpin",
        }
    }

    pub(super) fn pin(self, bpffs: &Path, ifindex: u32) -> PathBuf {
        bpffs
            .join("links")
            .join(format!("{}_{ifindex}", self.name()))
    }
}

/// Mechanism by which programs are attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Mechanism {
    /// TCX where the kernel has it, else clsact.
    Auto,
    /// TCX links (Linux 6.6).
    Tcx,
    /// Filters of a clsact qdisc.
    Clsact,
}

/// An interface to attach to.
#[derive(Clone, Copy)]
pub(super) struct Device<'a> {
    pub(super) ifindex: u32,
    pub(super) name: &'a str,
}

/// Returns the name of an interface of this network namespace.
pub fn name_of(ifindex: u32) -> Option<String> {
    if_indextoname(ifindex).ok()?.into_string().ok()
}
