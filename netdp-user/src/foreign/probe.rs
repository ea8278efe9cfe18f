//! The rules that translate one packet.

use super::assess::{NatContext, is_named};
use super::rule::{Match, Ruleset, Target};
use super::walk::ReachableRule;
use super::{Finding, owner};
use ipnet::IpNet;
use netdp_common::layout::Family;
use std::collections::BTreeSet;
use std::net::IpAddr;

/// A packet of a pod on its way out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Packet {
    /// Source address.
    pub src: IpAddr,
    /// Destination address.
    pub dst: IpAddr,
    /// Name of the interface that it leaves by.
    pub uplink: String,
    /// True if kube-proxy has marked it for its own masquerading; else it has no mark.
    pub is_marked: bool,
}

/// A rule that translates the packet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Translation {
    /// The rule. Its assessment is not about the policy.
    pub finding: Finding,
    /// The addresses that it gives; none for that of the interface, or if they could not be read.
    pub to: Vec<IpAddr>,
    /// False if it depends on what is not known of the packet.
    pub is_certain: bool,
    /// Packets that it has matched since it was created, if its program counts them.
    pub packets: Option<u64>,
}

/// Result of a probe.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Probed {
    /// Rules that translate the packet or may, in the order in which it meets them.
    pub translations: Vec<Translation>,
    /// Number of rules that translate sources.
    pub looked_at: usize,
    /// Single addresses that rules which translate sources name as sources, in the packet's family.
    pub named: BTreeSet<IpAddr>,
    /// Owner of the rule that changes the destination: a service's address.
    pub service: Option<String>,
    /// Places that could not be read, with the reason.
    pub unread: Vec<String>,
    /// True if neither nft nor iptables is present.
    pub no_programs: bool,
}

/// A probe in progress.
#[derive(Debug)]
pub(super) struct Probe<'a> {
    pub(super) packet: &'a Packet,
    pub(super) found: Probed,
}

impl Probe<'_> {
    /// Notes a rule that translates sources, if it may translate the packet.
    pub(super) fn meet(
        &mut self,
        rule: &ReachableRule<'_, '_>,
        family: &str,
        backend: &str,
        context: &NatContext,
    ) {
        self.found.looked_at += 1;
        self.note_named(rule);
        let Some(is_certain) = self.is_met(rule, context) else {
            return;
        };
        let finding = Finding {
            conflict: is_certain,
            ..Finding::of(rule, family, backend)
        };
        let to = match &rule.rule.target {
            Target::Snat(to) => to.clone(),
            _ => Vec::new(),
        };
        self.found.translations.push(Translation {
            finding,
            to,
            is_certain,
            packets: None,
        });
    }

    /// Notes the single addresses that a rule names as sources.
    fn note_named(&mut self, rule: &ReachableRule<'_, '_>) {
        let is_v4 = self.packet.dst.is_ipv4();
        let sources = rule.matches.iter().filter_map(|it| match it {
            Match::Source { nets, .. } => Some(nets),
            _ => None,
        });
        let single = sources.flatten().filter(|net| {
            let addr = net.addr();
            addr.is_ipv4() == is_v4 && net.prefix_len() == net.max_prefix_len()
        });
        self.found.named.extend(single.map(IpNet::addr));
    }

    /// Notes whether the packet is addressed to a service, whose rules have its address alone.
    pub(super) fn look_for_service(&mut self, set: &Ruleset) {
        let whole = IpNet::from(self.packet.dst);
        let is_service = |condition: &Match| matches!(condition, Match::Destination { nets, not: false } if *nets == [whole]);
        for (chain, rules) in &set.chains {
            if chain.starts_with("KUBE-SERVICES")
                && let Some(rule) = rules
                    .iter()
                    .find(|rule| rule.matches.iter().any(is_service))
            {
                self.found.service = Some(owner::owner(&[chain], &rule.text).into());
            }
        }
    }

    /// Reports whether the rule certainly translates the packet; `None` if it does not.
    fn is_met(&self, rule: &ReachableRule<'_, '_>, context: &NatContext) -> Option<bool> {
        let family = Family::of(self.packet.dst);
        if rule.family.is_some_and(|only| only != family)
            || (rule.mark.is_some() && !self.packet.is_marked)
            || rule.excluded.covers(&self.packet.dst.into())
        {
            return None;
        }
        let mut is_certain = match self.all(rule.matches.iter().copied(), context) {
            Some(false) => return None,
            answer => answer.is_some(),
        };
        for conditions in rule.leaves {
            match self.all(conditions.iter(), context) {
                Some(true) => return None,
                Some(false) => {}
                None => is_certain = false,
            }
        }
        Some(is_certain)
    }

    /// Reports whether the packet fulfils all conditions; `None` if that is unknown.
    fn all<'m>(
        &self,
        conditions: impl Iterator<Item = &'m Match>,
        context: &NatContext,
    ) -> Option<bool> {
        let mut all = Some(true);
        for condition in conditions {
            match self.answer(condition, context) {
                Some(true) => {}
                Some(false) => return Some(false),
                None => all = None,
            }
        }
        all
    }

    /// Reports whether the packet fulfils a condition; `None` if that is unknown.
    fn answer(&self, condition: &Match, context: &NatContext) -> Option<bool> {
        let Packet {
            src,
            dst,
            uplink,
            is_marked,
        } = self.packet;
        let within = |nets: &[IpNet], ip: &IpAddr| nets.iter().any(|net| net.contains(ip));
        match condition {
            Match::Source { nets, not } => Some(within(nets, src) != *not),
            Match::Destination { nets, not } => Some(within(nets, dst) != *not),
            Match::Out { names, not } => {
                Some(names.iter().any(|name| is_named(uplink, name)) != *not)
            }
            Match::Mark { set, .. } => Some(set == is_marked),
            Match::LocalSource { not } => Some(context.local.contains(src) != *not),
            Match::LocalDestination { not } => Some(context.local.contains(dst) != *not),
            Match::Translated => Some(*is_marked),
            Match::In { .. } | Match::Other(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Packet, Probe, Probed};
    use crate::foreign::assess::{NatContext, Translator};
    use crate::foreign::{iptables, walk};
    use crate::iptables::Table;
    use netdp_common::layout::Family;
    use std::collections::BTreeSet;

    /// Rules of kube-proxy, flannel and the bridge plugin, as they write them.
    const TABLE: &str = "\
*nat
:POSTROUTING ACCEPT [0:0]
:KUBE-POSTROUTING - [0:0]
:FLANNEL-POSTRTG - [0:0]
:KUBE-SERVICES - [0:0]
-A POSTROUTING -j KUBE-POSTROUTING
-A POSTROUTING -j FLANNEL-POSTRTG
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MASQUERADE
-A FLANNEL-POSTRTG -d 10.9.0.0/16 -j RETURN
-A FLANNEL-POSTRTG -s 172.16.0.0/16 -d 172.16.0.0/16 -j RETURN
-A FLANNEL-POSTRTG -s 172.16.0.0/16 ! -d 224.0.0.0/4 -j MASQUERADE
-A POSTROUTING -s 172.16.0.0/16 -o eth1 -j SNAT --to-source 192.0.2.1
-A POSTROUTING -s 172.16.0.0/16 -p tcp -m tcp --dport 25 -j SNAT --to-source 192.0.2.2
-A KUBE-SERVICES -d 10.96.0.1/32 -p tcp -j KUBE-SVC-X
COMMIT
";

    fn probe(src: &str, dst: &str, uplink: &str) -> Probed {
        let packet = Packet {
            src: src.parse().unwrap(),
            dst: dst.parse().unwrap(),
            uplink: uplink.into(),
            is_marked: false,
        };
        let context = NatContext {
            translator: Translator::Ebpf,
            rules: Vec::new().into(),
            uplinks: vec!["eth0".into()],
            wire: Vec::new(),
            pods: Vec::new(),
            local: ["10.1.0.10".parse().unwrap()].into(),
            enable_ipv6: false,
        };
        let set = iptables::ruleset(&Table::parse(TABLE), Family::V4, &BTreeSet::new());
        let mut probe = Probe {
            packet: &packet,
            found: Probed::default(),
        };
        walk::translating(&set, |rule| probe.meet(rule, "IPv4", "nft", &context));
        probe.look_for_service(&set);
        probe.found
    }

    fn told(found: &Probed) -> Vec<String> {
        let each = found.translations.iter();
        each.map(|it| format!("{} {} {:?}", it.finding.owner, it.is_certain, it.to))
            .collect()
    }

    #[test]
    fn only_rules_that_a_packet_meets_translate_it() {
        let found = probe("172.16.0.2", "10.2.0.17", "eth0");
        let unsure = "an unknown program false [192.0.2.2]";
        assert_eq!(told(&found), ["flannel true []", unsure]);
        assert_eq!(found.looked_at, 4);
        assert_eq!(found.service, None);
        let elsewhere = probe("172.17.0.2", "10.2.0.17", "eth1");
        assert_eq!(told(&elsewhere), Vec::<String>::new());
        let second = probe("172.16.0.2", "10.9.0.17", "eth1");
        let snat = "an unknown program true [192.0.2.1]";
        assert_eq!(told(&second), [snat, unsure]);
    }

    #[test]
    fn a_packet_that_leaves_the_chain_does_not_meet_the_rules_after() {
        let unsure = ["an unknown program false [192.0.2.2]"];
        assert_eq!(told(&probe("172.16.0.2", "172.16.1.5", "eth0")), unsure);
        assert_eq!(told(&probe("172.16.0.2", "172.17.1.5", "eth0")).len(), 2);
    }

    #[test]
    fn a_service_is_known_by_its_address() {
        let found = probe("172.16.0.2", "10.96.0.1", "eth0");
        assert_eq!(found.service.as_deref(), Some("kube-proxy"));
    }
}
