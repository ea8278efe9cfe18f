//! The netfilter step: rules of other programs that translate the packet before netdp sees it.

use super::ask::Case;
use super::model::{Detail, Step};
use super::node::Node;
use crate::foreign::{self, NatContext, Packet, Probed, Translation, Translator};
use crate::format::grouped;
use crate::uplinks::AddressScope;
use std::net::IpAddr;

/// Remedies against the programs that write such rules, by the names of their owners.
const OFF: [(&str, &str); 6] = [
    (
        "flannel",
        "start flanneld without --ip-masq, in its DaemonSet's arguments",
    ),
    (
        "a CNI plugin",
        "set \"ipMasq\": false in the configuration of the plugin, in /etc/cni/net.d",
    ),
    ("Calico", "set natOutgoing: false in the IPPool"),
    (
        "Cilium",
        "set enable-ipv4-masquerade and enable-ipv6-masquerade to \"false\" in the ConfigMap cilium-config",
    ),
    (
        "the AWS VPC CNI plugin",
        "set AWS_VPC_K8S_CNI_EXTERNALSNAT=true in the DaemonSet aws-node",
    ),
    (
        "ip-masq-agent",
        "remove the DaemonSet of ip-masq-agent; netdp then takes its chain over (--takeover)",
    ),
];

/// Remedy that has kube-proxy mark less: its own rule stays, for what comes from elsewhere than pods.
const MARK_LESS: &str = "to have netdp decide: start kube-proxy without --masquerade-all, and with the pods' networks as \
     --cluster-cidr";

/// Finds the rules that translate the packet on its way to an interface.
pub(super) fn probe(node: &Node<'_>, case: &Case, src: IpAddr, leaves_by: &str) -> Probed {
    let context = NatContext {
        translator: Translator::Ebpf,
        rules: Vec::new().into(),
        uplinks: vec![leaves_by.to_owned()],
        wire: Vec::new(),
        pods: Vec::new(),
        local: node.local(),
        enable_ipv6: case.dst.is_ipv6(),
    };
    let packet = Packet {
        src,
        dst: case.dst,
        uplink: leaves_by.to_owned(),
        is_marked: case.service.as_ref().is_some_and(|via| via.is_marked),
    };
    foreign::probe(&context, &packet)
}

/// Returns the rule that certainly translates the packet.
pub(super) fn first(probed: &Probed) -> Option<&Translation> {
    probed.translations.iter().find(|rule| rule.is_certain)
}

/// Returns the source that the packet has after netfilter, if that changes it. Of a node's own
/// packets it is the same.
pub(super) fn translated(
    node: &Node<'_>,
    probed: &Probed,
    dst: IpAddr,
    ifindex: u32,
    is_own: bool,
) -> Option<IpAddr> {
    let rule = first(probed).filter(|_| !is_own)?;
    rule.to.first().copied().or_else(|| {
        // As `inet_select_addr` does, but for the next hop's network.
        let mut of = node.addresses.iter().filter(|it| {
            it.ifindex == ifindex
                && it.addr.is_ipv6() == dst.is_ipv6()
                && it.scope == AddressScope::Universe
                && !it.flags.secondary
        });
        of.next().map(|it| it.addr)
    })
}

/// Makes the step.
pub(super) fn step(probed: &Probed) -> Step {
    if probed.no_programs {
        return Step::new(
            "netfilter",
            "not asked",
            "neither nft nor iptables is installed here (--tool-dir)",
        );
    }
    let looked_at = match probed.looked_at {
        0 => "no rule translates sources".to_owned(),
        1 => "1 translating rule examined".to_owned(),
        number => format!("{} translating rules examined", grouped(number as u64)),
    };
    let mut step = match first(probed) {
        None if probed.translations.is_empty() => {
            let none = if probed.looked_at == 0 {
                ""
            } else {
                ", none for this packet"
            };
            Step::new("netfilter", "untouched", format!("{looked_at}{none}"))
        }
        None => Step::new("netfilter", "may be translated", looked_at),
        Some(_) => Step::new("netfilter", "translated", looked_at),
    };
    for rule in &probed.translations {
        step.details.push(Detail {
            label: if rule.is_certain { "by" } else { "may be by" },
            what: rule.finding.rule.clone(),
            why: by(rule),
        });
    }
    let unread = probed.unread.iter().map(|why| Detail {
        label: "unread",
        what: String::new(),
        why: why.clone(),
    });
    step.details.extend(unread);
    step
}

/// Describes a rule's place: owner, chain, and how often it was met.
fn by(rule: &Translation) -> String {
    let finding = &rule.finding;
    let packets = rule.packets.map_or_else(String::new, |packets| {
        let s = if packets == 1 { "" } else { "s" };
        format!(", {} connection{s} so far", grouped(packets))
    });
    format!(
        "{}, chain {} ({}, {}){packets}",
        finding.owner, finding.chain, finding.backend, finding.family
    )
}

/// Returns what switches the rule off.
pub(super) fn remedy(rule: &Translation) -> String {
    let finding = &rule.finding;
    if finding.owner == "kube-proxy" {
        return MARK_LESS.to_owned();
    }
    let known = OFF.iter().find(|(owner, _)| *owner == finding.owner);
    let rule = match finding.backend.as_str() {
        "nftables" => format!("the rule of chain {}: {}", finding.chain, finding.rule),
        backend => {
            let tables = match finding.family.as_str() {
                "IPv6" => "ip6tables",
                _ => "iptables",
            };
            let text = finding.rule.replacen("-A ", "-D ", 1);
            format!("{tables}-{backend} -t nat {text}")
        }
    };
    match known {
        Some((_, how)) => format!("to have netdp decide: {how}; then remove what is left: {rule}"),
        None => format!(
            "to have netdp decide: stop the program that writes the rule, then remove it: {rule}"
        ),
    }
}
