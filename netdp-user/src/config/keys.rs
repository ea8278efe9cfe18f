//! The keys of ConfigMaps that contain configurations: the same ones in manifests and over the API.

use super::document::Format;

/// Name of ip-masq-agent's ConfigMap.
pub(super) const MASQ_AGENT_MAP: &str = "ip-masq-agent";

/// Name of k8s-custom-iptables' ConfigMap.
pub const NAT_RULES_MAP: &str = "k8s-custom-iptables";

/// The label that selects further ConfigMaps, whatever its value.
pub const LABEL: &str = "netdp.io/config";

/// The key in ip-masq-agent's ConfigMap.
const CONFIG: &str = "config";

/// Prefix of the keys that Azure's agent reads.
const AZURE_PREFIX: &str = "ip-masq";

/// The key in k8s-custom-iptables' ConfigMap.
const NAT_RULES: &str = "nat.rules";

/// The keys of a ConfigMap that are read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keys {
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
    pub fn of(name: &str, main: &str, is_labelled: bool) -> Self {
        if is_labelled {
            Self::All
        } else if name == main {
            Self::MasqAgent
        } else if name == NAT_RULES_MAP {
            Self::NatRules
        } else {
            Self::Either
        }
    }

    /// Reports whether this key is read.
    pub fn count(self, key: &str) -> bool {
        let masq_agent = || key == CONFIG || key.starts_with(AZURE_PREFIX);
        match self {
            Self::All => true,
            Self::MasqAgent => masq_agent(),
            Self::NatRules => key == NAT_RULES,
            Self::Either => masq_agent() || Format::of(key) == Format::NatRules,
        }
    }

    /// Returns the expected key, if there is exactly one.
    pub const fn usual(self) -> Option<&'static str> {
        match self {
            Self::MasqAgent => Some(CONFIG),
            Self::NatRules => Some(NAT_RULES),
            Self::All | Self::Either => None,
        }
    }
}
