//! Which keys of which ConfigMaps are configurations: the same ones in manifests and over the API.

use super::document::Format;

/// ip-masq-agent's ConfigMap.
pub(super) const MASQ_AGENT_MAP: &str = "ip-masq-agent";

/// k8s-custom-iptables' ConfigMap.
pub const NAT_RULES_MAP: &str = "k8s-custom-iptables";

/// The label by which further ConfigMaps count, whatever its value.
pub const LABEL: &str = "netdp.io/config";

/// The key in ip-masq-agent's ConfigMap.
const CONFIG: &str = "config";

/// How the keys begin that Azure's agent takes.
const AZURE_PREFIX: &str = "ip-masq";

/// The key in k8s-custom-iptables' ConfigMap.
const NAT_RULES: &str = "nat.rules";

/// The keys of a ConfigMap that count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keys {
    /// All of one that has the label.
    All,
    /// Those that ip-masq-agent takes, Azure's too.
    MasqAgent,
    /// The one that k8s-custom-iptables takes.
    NatRules,
    /// Those of either: nothing tells whose ConfigMap it is.
    Either,
}

impl Keys {
    /// Those of a ConfigMap that is read by its name; `main` is what ip-masq-agent's is called.
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

    /// Whether this one counts.
    pub fn count(self, key: &str) -> bool {
        let masq_agent = || key == CONFIG || key.starts_with(AZURE_PREFIX);
        match self {
            Self::All => true,
            Self::MasqAgent => masq_agent(),
            Self::NatRules => key == NAT_RULES,
            Self::Either => masq_agent() || Format::of(key) == Format::NatRules,
        }
    }

    /// The key that one expects there, if it is one.
    pub const fn usual(self) -> Option<&'static str> {
        match self {
            Self::MasqAgent => Some(CONFIG),
            Self::NatRules => Some(NAT_RULES),
            Self::All | Self::Either => None,
        }
    }
}
