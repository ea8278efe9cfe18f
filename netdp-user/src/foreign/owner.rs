//! Detection of a rule's author by the names of chains and tables.

use crate::upstream::{custom_iptables, masq_agent};

/// Name of an unknown author.
pub(crate) const UNKNOWN: &str = "an unknown program";

/// Prefixes of chains' and tables' names, with the author.
const NAMES: [(&str, &str); 18] = [
    ("KUBE-", "kube-proxy"),
    ("kube-proxy", "kube-proxy"),
    ("FLANNEL-", "flannel"),
    ("cali-", "Calico"),
    ("CNI-", "a CNI plugin"),
    ("cni_", "a CNI plugin"),
    ("KIND-MASQ-AGENT", "kind"),
    ("kindnet", "kindnet"),
    ("AWS-", "the AWS VPC CNI plugin"),
    (masq_agent::CHAIN, masq_agent::NAME),
    ("IP-MASQ", "GKE"),
    ("CILIUM_", "Cilium"),
    ("OLD_CILIUM_", "Cilium"),
    ("LIBVIRT_", "libvirt"),
    ("DOCKER", "Docker"),
    ("NETAVARK", "Podman"),
    ("netavark", "Podman"),
    ("ts-", "Tailscale"),
];

/// Returns the author of a rule: by the names on the path to it, else by its text.
pub(crate) fn owner(path: &[&str], rule: &str) -> &'static str {
    let by_name = path
        .iter()
        .flat_map(|name| name.split(' '))
        .find_map(|name| NAMES.iter().find(|(start, _)| name.starts_with(start)));
    match by_name {
        Some((_, owner)) => owner,
        None if has_custom_comment(rule) => custom_iptables::NAME,
        None if rule.contains("! -o docker0") || rule.contains("oifname != \"docker0\"") => {
            "Docker"
        }
        None => UNKNOWN,
    }
}

/// Reports whether a rule of iptables or nft has a comment of k8s-custom-iptables.
fn has_custom_comment(rule: &str) -> bool {
    let mut texts = rule.split('"').skip(1).step_by(2);
    texts.any(|text| text.starts_with(custom_iptables::COMMENT_PREFIX))
}
