//! The keys of ConfigMaps that contain configurations: the same ones in manifests and over the API.

use super::document::Format;
use crate::upstream::{custom_iptables, masq_agent};

/// The label that selects further ConfigMaps, whatever its value.
pub(crate) const LABEL: &str = "netdp.io/config";

/// The keys of a ConfigMap that are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Keys {
    /// All keys of a labelled ConfigMap.
    All,
    /// The keys that ip-masq-agent reads, and those of Azure's fork.
    MasqAgent,
    /// The key that k8s-custom-iptables reads.
    NatRules,
    /// The keys of either, if the origin of the ConfigMap is unknown.
    Either,
}

impl Keys {
    /// Returns the keys of a ConfigMap that is read by its name; `main` is the name of
    /// ip-masq-agent's.
    pub(crate) fn of(name: &str, main: &str, is_labelled: bool) -> Self {
        if is_labelled {
            Self::All
        } else if name == main {
            Self::MasqAgent
        } else if name == custom_iptables::NAME {
            Self::NatRules
        } else {
            Self::Either
        }
    }

    /// Reports whether this key is read.
    pub(crate) fn count(self, key: &str) -> bool {
        let is_agents = || key == masq_agent::KEY || key.starts_with(masq_agent::AZURE_KEY_PREFIX);
        match self {
            Self::All => true,
            Self::MasqAgent => is_agents(),
            Self::NatRules => key == custom_iptables::KEY,
            Self::Either => is_agents() || Format::of(key) == Format::NatRules,
        }
    }

    /// Returns the expected key, if there is exactly one.
    pub(crate) const fn usual(self) -> Option<&'static str> {
        match self {
            Self::MasqAgent => Some(masq_agent::KEY),
            Self::NatRules => Some(custom_iptables::KEY),
            Self::All | Self::Either => None,
        }
    }
}
