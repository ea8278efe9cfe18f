//! Names of the watches.

use crate::config::LABEL;
use crate::upstream::custom_iptables;

/// A watch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum WatchId {
    /// Watch of ConfigMaps.
    ConfigMaps(ConfigMapSelection),
    /// Watch of this node.
    Node,
    /// Watch of all Nodes.
    Nodes,
    /// Watch of ServiceCIDRs.
    ServiceCidrs,
    /// Watch of the node's pods.
    Pods,
}

/// Selection of the ConfigMaps of a watch; in the order in which they are merged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum ConfigMapSelection {
    /// ip-masq-agent's ConfigMap, by name.
    Main,
    /// ConfigMaps with netdp's label.
    Labelled,
    /// k8s-custom-iptables' ConfigMap, by name.
    NatRules,
}

impl ConfigMapSelection {
    /// All selections.
    pub(super) const ALL: [Self; 3] = [Self::Main, Self::Labelled, Self::NatRules];

    /// Names the selection for messages; `main` is the name of ip-masq-agent's ConfigMap.
    pub(super) fn name(self, main: &str) -> &str {
        match self {
            Self::Main => main,
            Self::Labelled => LABEL,
            Self::NatRules => custom_iptables::NAME,
        }
    }
}
