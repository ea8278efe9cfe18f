//! The flags that have to do with Kubernetes.

use super::go_flags::parse_bool;
use crate::sources::kube::{KubeOptions, in_cluster};
use crate::upstream::masq_agent;
use clap::{Args, ValueEnum};
use std::path::PathBuf;

/// Use of the API as a source.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Kube {
    /// In a pod with a ServiceAccount, or with a kubeconfig; files suffice where the API denies
    /// access.
    Auto,
    /// Always; the node is not ready before the API has answered.
    On,
    /// Never.
    Off,
}

/// Access to the API.
#[derive(Debug, Args)]
pub(super) struct KubeAccess {
    /// Kubeconfig file. Without it, the pod's ServiceAccount; for `netdp fleet`, as kubectl.
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
    /// ConfigMap with the configuration of ip-masq-agent, under the key `config`. ConfigMaps with
    /// the label netdp.io/config, and k8s-custom-iptables with its key nat.rules, are read too.
    #[arg(long, value_name = "NAME", default_value = masq_agent::NAME)]
    config_map: String,
    /// Read ConfigMaps with the label netdp.io/config. This needs permission to read all ConfigMaps
    /// of the namespace.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true,
          default_value_t = true, default_missing_value = "true", action = clap::ArgAction::Set,
          value_parser = parse_bool)]
    labelled_config_maps: bool,
}

impl KubeFlags {
    /// Returns the options for the API, if it is used.
    pub(super) fn options(self) -> Option<KubeOptions> {
        // An empty variable counts as unset.
        let some = |path: &PathBuf| !path.as_os_str().is_empty();
        let kubeconfig = self.access.kubeconfig.filter(some);
        let on = match self.kube {
            Kube::On => true,
            Kube::Off => false,
            Kube::Auto => kubeconfig.is_some() || in_cluster(),
        };
        if on {
            for (flag, name) in [
                ("--config-map", Some(&self.config_map)),
                ("--kube-namespace", Some(&self.kube_namespace)),
                ("--lease-namespace", Some(&self.access.lease_namespace)),
                ("--node-name", self.node_name.as_ref()),
            ] {
                if let Some(problem) = name.and_then(|name| name_problem(name)) {
                    log::warn!("{flag}: {problem}");
                }
            }
        }
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

/// Returns the reason why no Kubernetes object can have this name, if so, with a suggestion: names
/// are those of RFC 1123's hosts (Kubernetes, "Object Names and IDs"). An empty name is accepted as
/// unset.
fn name_problem(name: &str) -> Option<String> {
    let is_valid = |name: &str| {
        let inside = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        name.bytes().all(|b| inside(b) || matches!(b, b'-' | b'.'))
            && name.bytes().next().is_none_or(inside)
            && name.bytes().last().is_none_or(inside)
    };
    if is_valid(name) {
        return None;
    }
    if let Some((namespace, name)) = name.split_once('/') {
        return Some(format!(
            "{namespace:?} before the slash is not part of a name; write {name}, and \
             --kube-namespace {namespace} for its namespace"
        ));
    }
    let likely = name.trim().to_lowercase().replace(['_', ' '], "-");
    let hint = if is_valid(&likely) {
        format!("; did you mean {likely}?")
    } else {
        String::new()
    };
    Some(format!(
        "{name:?} is not a valid object name: names consist of lower-case letters, digits, '-' and \
         '.'{hint}"
    ))
}

#[cfg(test)]
mod tests {
    use super::name_problem;

    #[test]
    fn impossible_names_are_reported() {
        for good in [
            "",
            "ip-masq-agent",
            "kube-system",
            "node-1.example.org",
            "10.0.0.1",
        ] {
            assert_eq!(name_problem(good), None, "{good}");
        }
        for (bad, words) in [
            (
                "kube-system/ip-masq-agent",
                "write ip-masq-agent, and --kube-namespace kube-system",
            ),
            ("Node-1", "did you mean node-1?"),
            ("ip_masq_agent", "did you mean ip-masq-agent?"),
            ("-x", "lower-case letters, digits"),
            ("$(NODE_NAME)", "lower-case letters, digits"),
        ] {
            let problem = name_problem(bad);
            assert!(
                problem
                    .as_ref()
                    .is_some_and(|problem| problem.contains(words)),
                "{bad}: {problem:?}"
            );
        }
    }
}
