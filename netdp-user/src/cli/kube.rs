//! The flags that have to do with Kubernetes.

use super::go::parse_bool;
use crate::sources::kube::{KubeOptions, in_cluster};
use clap::{Args, ValueEnum};
use std::path::PathBuf;

/// Whether the API is a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Kube {
    /// In a pod with a ServiceAccount, or with a kubeconfig; files are enough where the API refuses.
    Auto,
    /// Yes, and the node is not ready before the API has answered.
    On,
    /// No.
    Off,
}

/// How to reach the API.
#[derive(Debug, Args)]
pub(super) struct KubeAccess {
    /// Kubeconfig file; without it, the pod's ServiceAccount (`netdp fleet`: as kubectl).
    #[arg(long, value_name = "PATH", env = "KUBECONFIG")]
    pub(super) kubeconfig: Option<PathBuf>,
    /// Namespace of the Leases that `netdp fleet` shows.
    #[arg(long, value_name = "NAMESPACE", default_value = "netdp-fleet")]
    pub(super) lease_namespace: String,
}

/// The flags of `netdp run`.
#[derive(Debug, Args)]
pub(super) struct KubeFlags {
    /// Follow ConfigMaps and the Node through the Kubernetes API.
    #[arg(long, value_enum, default_value_t = Kube::Auto)]
    kube: Kube,
    #[command(flatten)]
    access: KubeAccess,
    /// This node's name in Kubernetes.
    #[arg(long, value_name = "NAME", env = "NODE_NAME")]
    node_name: Option<String>,
    /// Namespace of the ConfigMaps.
    #[arg(
        long,
        value_name = "NAMESPACE",
        env = "POD_NAMESPACE",
        default_value = "kube-system"
    )]
    kube_namespace: String,
    /// ConfigMap with the configuration of ip-masq-agent, under the key `config`. Those with the
    /// label netdp.io/config, and k8s-custom-iptables with its key nat.rules, count besides.
    #[arg(long, value_name = "NAME", default_value = "ip-masq-agent")]
    config_map: String,
    /// Whether ConfigMaps with the label netdp.io/config count. The right to read them is the right to
    /// read all of the namespace.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true,
          default_value_t = true, default_missing_value = "true", action = clap::ArgAction::Set,
          value_parser = parse_bool)]
    labelled_config_maps: bool,
}

impl KubeFlags {
    /// What to follow, if anything.
    pub(super) fn options(self) -> Option<KubeOptions> {
        // An empty variable is as good as none.
        let some = |path: &PathBuf| !path.as_os_str().is_empty();
        let kubeconfig = self.access.kubeconfig.filter(some);
        let on = match self.kube {
            Kube::On => true,
            Kube::Off => false,
            Kube::Auto => kubeconfig.is_some() || in_cluster(),
        };
        on.then(|| KubeOptions {
            kubeconfig,
            required: self.kube == Kube::On,
            namespace: self.kube_namespace,
            config_map: self.config_map,
            labelled: self.labelled_config_maps,
            node_name: self.node_name.filter(|name| !name.is_empty()),
            lease_namespace: self.access.lease_namespace,
        })
    }
}
