//! Drops for IPsec: a packet of a pod may match an IPsec policy of the node once it has the node's
//! address. The kernel checked the policies for the pod's address (`xfrm_route_forward`,
//! include/net/xfrm.h), and does not check again: the packet would leave in clear. netfilter
//! repeats the check (`nf_xfrm_me_harder`, net/netfilter/nf_nat_core.c, Linux 6.18). Packets that
//! match such a policy are dropped.

use super::xfrm::Policy;
use crate::reconcile::PolicyRule;
use crate::uplinks::{Sources, Uplink};
use ipnet::IpNet;
use netdp_common::layout::Action;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

/// Effect of IPsec policies on masqueraded packets.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct IpsecDrops {
    /// Destinations, and whether masqueraded packets to them match a policy. The longest prefix
    /// counts.
    pub destinations: BTreeMap<IpNet, bool>,
    /// Messages, a line for each policy.
    pub messages: Vec<String>,
    /// The messages about packets that leave in clear or are dropped, though netfilter would have
    /// them protected.
    pub unprotected: Vec<String>,
}

/// Finds the policies that match packets with the uplinks' addresses: their own, and those that
/// `sources` has for them. `pods` are the known networks of the pods.
#[must_use]
pub(crate) fn ipsec_drops<'a>(
    policies: &[Policy],
    uplinks: impl Iterator<Item = &'a Uplink>,
    sources: &Sources,
    pods: &[IpNet],
) -> IpsecDrops {
    // Of two policies that match, the one with the lower number counts; of equal ones the older,
    // which is listed first.
    let mut sorted: Vec<_> = policies.iter().collect();
    sorted.sort_by_key(|policy| policy.priority);
    let mut all = IpsecDrops::default();
    for uplink in uplinks {
        let choices = (sources.iter()).filter(|(_, choice)| choice.via == uplink.ifindex);
        // The interface of packets of a VLAN device above the uplink is that device.
        let choices = choices.map(|(query, choice)| (query.link, choice.addr));
        let own = uplink.addresses().map(|address| (uplink.ifindex, address));
        let addresses: BTreeSet<(u32, IpAddr)> = own.chain(choices).collect();
        let covers = |policy: &&&Policy| {
            addresses.iter().any(|(ifindex, address)| {
                (policy.ifindex == 0 || policy.ifindex == *ifindex)
                    && policy.source.contains(address)
            })
        };
        let covering: Vec<&Policy> = sorted.iter().filter(covers).copied().collect();
        let mut own: BTreeMap<IpNet, bool> = BTreeMap::new();
        // Policies of higher priority overwrite those of lower priority.
        for policy in covering.iter().rev().filter(|policy| !policy.narrow) {
            own.retain(|net, _| !policy.destination.contains(net));
            own.insert(policy.destination, policy.protects);
        }
        for policy in covering.iter().filter(|policy| policy.protects) {
            let withheld = own.get(&policy.destination) == Some(&true) && !policy.narrow;
            if !withheld && !policy.narrow {
                // Another policy takes precedence.
                continue;
            }
            let before = covers_pods(policy, pods);
            let what = if before && withheld {
                "is dropped, except what the policy covers with pods' own addresses: the kernel \
                 protects that before netdp sees it"
            } else if withheld {
                "is dropped"
            } else {
                "leaves in clear text: netdp can't distinguish it by ports, protocols or marks"
            };
            let message = format!(
                "{}: pods' traffic that the IPsec policy {policy} covers after translation {what}",
                uplink.name
            );
            if !before && !all.unprotected.contains(&message) {
                all.unprotected.push(message.clone());
            }
            if !all.messages.contains(&message) {
                all.messages.push(message);
            }
        }
        for (net, protects) in own {
            // A destination applies to every uplink.
            *all.destinations.entry(net).or_default() |= protects;
        }
    }
    if !all.destinations.values().any(|protects| *protects) {
        all.destinations.clear();
    }
    all
}

/// Reports whether the kernel also finds the policy for every pod's own address when it routes the
/// packet.
fn covers_pods(policy: &Policy, pods: &[IpNet]) -> bool {
    let is_of = |net: &IpNet| {
        matches!(
            (net, policy.source),
            (IpNet::V4(_), IpNet::V4(_)) | (IpNet::V6(_), IpNet::V6(_))
        )
    };
    let mut pods = pods.iter().filter(|net| is_of(net)).peekable();
    policy.source.prefix_len() == 0
        || pods.peek().is_some() && pods.all(|net| policy.source.contains(net))
}

impl IpsecDrops {
    /// Returns the policy rules with the withheld destinations added.
    #[must_use]
    pub(crate) fn apply(&self, mut rules: Vec<PolicyRule>) -> Vec<PolicyRule> {
        if self.destinations.is_empty() {
            return rules;
        }
        let actions: HashMap<IpNet, Action> = rules
            .iter()
            .map(|rule| (rule.prefix, rule.action))
            .collect();
        let combined = |prefix: IpNet, action: Action| match action {
            Action::Masquerade
                if longest(&prefix, |net| self.destinations.get(net).copied()) == Some(true) =>
            {
                Action::Withhold
            }
            action => action,
        };
        for rule in &mut rules {
            rule.action = combined(rule.prefix, rule.action);
        }
        let missing = self
            .destinations
            .keys()
            .filter(|net| !actions.contains_key(net));
        rules.extend(missing.map(|&prefix| {
            let action = longest(&prefix, |net| actions.get(net).copied());
            PolicyRule {
                prefix,
                action: combined(prefix, action.unwrap_or(Action::Masquerade)),
            }
        }));
        rules
    }
}

/// Returns the value of the longest prefix that covers this one.
fn longest<T>(prefix: &IpNet, known: impl Fn(&IpNet) -> Option<T>) -> Option<T> {
    let above = std::iter::successors(Some(prefix.trunc()), IpNet::supernet);
    above.into_iter().find_map(|net| known(&net))
}

#[cfg(test)]
mod tests {
    use super::{IpsecDrops, ipsec_drops};
    use crate::node::xfrm::Policy;
    use crate::reconcile::PolicyRule;
    use crate::uplinks::{LinkLayer, SourceChoice, SourceQuery, Sources, Uplink};
    use netdp_common::layout::Action;
    use netdp_common::layout::Action::{Bypass, Masquerade, Withhold};

    fn uplink() -> Uplink {
        Uplink {
            ifindex: 2,
            name: "eth0".into(),
            link_layer: LinkLayer::Ethernet,
            v4: Some([10, 1, 0, 10].into()),
            v6: Some("fd00:1::10".parse().unwrap()),
            up: true,
            untagged: false,
            only_v4: false,
            only_v6: false,
        }
    }

    fn policy(source: &str, destination: &str, protects: bool, priority: u32) -> Policy {
        Policy {
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
            ifindex: 0,
            narrow: false,
            protects,
            priority,
        }
    }

    fn found(policies: &[Policy]) -> IpsecDrops {
        ipsec_drops(policies, [uplink()].iter(), &Sources::new(), &[])
    }

    fn rules(list: &[(&str, Action)]) -> Vec<PolicyRule> {
        let rule = |&(prefix, action): &(&str, Action)| PolicyRule {
            prefix: prefix.parse().unwrap(),
            action,
        };
        list.iter().map(rule).collect()
    }

    #[test]
    fn what_a_policy_covers_is_withheld_where_it_is_masqueraded() {
        let found = found(&[
            policy("10.1.0.10/32", "10.2.0.0/16", true, 0),
            policy("fd00:1::/64", "fd00:2::/64", true, 0),
            policy("172.16.0.0/16", "10.3.0.0/16", true, 0),
        ]);
        assert_eq!(found.messages.len(), 2, "{:?}", found.messages);
        let before = rules(&[("10.2.7.0/24", Bypass), ("10.2.7.128/25", Masquerade)]);
        let mut after = found.apply(before);
        after.sort_by_key(|rule| rule.prefix);
        let expected = rules(&[
            ("10.2.0.0/16", Withhold),
            ("10.2.7.0/24", Bypass),
            ("10.2.7.128/25", Withhold),
            ("fd00:2::/64", Withhold),
        ]);
        assert_eq!(after, expected);
        // Bypassed packets keep the pod's address, for which the kernel checked.
        let bypassed = rules(&[("10.0.0.0/8", Bypass)]);
        let after = found.apply(bypassed);
        assert!(
            after.contains(&rules(&[("10.2.0.0/16", Bypass)])[0]),
            "{after:?}"
        );
    }

    #[test]
    fn of_two_policies_the_lower_number_counts() {
        let all = policy("0.0.0.0/0", "0.0.0.0/0", true, 20);
        let spared = policy("0.0.0.0/0", "10.2.0.0/16", false, 10);
        let after = found(&[all.clone(), spared.clone()]).apply(Vec::new());
        let expected = rules(&[("0.0.0.0/0", Withhold), ("10.2.0.0/16", Masquerade)]);
        assert_eq!(after, expected);
        let first = Policy { priority: 5, ..all };
        let found = found(&[first, spared]);
        assert_eq!(found.apply(Vec::new()), rules(&[("0.0.0.0/0", Withhold)]));
        assert_eq!(found.messages.len(), 1);
    }

    /// A route's `src`, a second subnet, a VLAN device above the uplink.
    #[test]
    fn every_address_that_packets_may_leave_with_counts() {
        for (address, to) in [
            ("10.9.0.4", "10.2.0.0/16"),
            ("2001:db8:9::4", "2001:db8:2::/64"),
        ] {
            let query = SourceQuery {
                link: 7,
                named: true,
                net: "198.18.0.1/32".parse().unwrap(),
            };
            let sources = |via| -> Sources {
                let addr = address.parse().unwrap();
                [(query, SourceChoice { addr, via })].into()
            };
            let length = if address.contains(':') { 128 } else { 32 };
            let policy = policy(&format!("{address}/{length}"), to, true, 0);
            let found = |policy: &Policy, via| {
                let found = ipsec_drops(
                    std::slice::from_ref(policy),
                    [uplink()].iter(),
                    &sources(via),
                    &[],
                );
                found.apply(Vec::new())
            };
            assert_eq!(found(&policy, 2), rules(&[(to, Withhold)]));
            assert_eq!(found(&policy, 3), [], "not by this uplink");
            let above = |ifindex| Policy {
                ifindex,
                ..policy.clone()
            };
            assert_eq!(found(&above(7), 2), rules(&[(to, Withhold)]));
            assert_eq!(found(&above(9), 2), []);
        }
    }

    /// Packets that the kernel protects by pods' own addresses never arrive here; those that arrive
    /// are others.
    #[test]
    fn a_policy_that_covers_pods_too_is_distinguished() {
        let pods = ["172.16.0.0/16", "fd00:172::/64"].map(|net| net.parse().unwrap());
        let found = |source: &str, destination: &str| {
            let policy = policy(source, destination, true, 0);
            ipsec_drops(&[policy], [uplink()].iter(), &Sources::new(), &pods)
        };
        for (source, to) in [("0.0.0.0/0", "10.2.0.0/16"), ("::/0", "fd00:2::/64")] {
            let found = found(source, to);
            assert!(
                found.messages[0].contains("before netdp sees it"),
                "{found:?}"
            );
            assert_eq!(found.unprotected, [""; 0]);
            assert_eq!(found.apply(Vec::new()), rules(&[(to, Withhold)]));
        }
        for (source, to) in [
            ("10.0.0.0/8", "10.2.0.0/16"),
            ("fd00:1::/64", "fd00:2::/64"),
        ] {
            let found = found(source, to);
            assert!(!found.messages[0].contains("before netdp"), "{found:?}");
            assert_eq!(found.unprotected, found.messages);
        }
    }

    #[test]
    fn what_cannot_be_distinguished_is_only_reported() {
        let narrow = Policy {
            narrow: true,
            ..policy("10.1.0.10/32", "10.2.0.0/16", true, 0)
        };
        let found = found(&[narrow]);
        assert_eq!(found.apply(Vec::new()), Vec::new());
        assert!(
            found.messages[0].contains("leaves in clear"),
            "{:?}",
            found.messages
        );
    }
}
