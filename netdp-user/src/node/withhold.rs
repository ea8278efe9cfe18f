//! What pods send may fall under an IPsec policy of the node's once it has the node's address. The kernel
//! asked for the pod's (`xfrm_route_forward`, include/net/xfrm.h), and asks no more: the packet would
//! leave in clear. netfilter asks again (`nf_xfrm_me_harder`, net/netfilter/nf_nat_core.c, Linux 6.18). What
//! falls under such a policy is dropped.

use super::xfrm::Policy;
use crate::reconcile::PolicyRule;
use crate::uplinks::Uplink;
use ipnet::IpNet;
use netdp_common::abi::Action;
use std::collections::{BTreeMap, HashMap};

/// What IPsec policies mean for masqueraded packets.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Withheld {
    /// Destinations, and whether what is masqueraded towards them falls under a policy. The longest
    /// prefix counts.
    pub destinations: BTreeMap<IpNet, bool>,
    /// What is said of it, a line for each policy.
    pub told: Vec<String>,
}

/// Looks for policies that cover what leaves with the uplinks' addresses.
#[must_use]
pub fn withheld<'a>(policies: &[Policy], uplinks: impl Iterator<Item = &'a Uplink>) -> Withheld {
    // Of two that match, the one with the lower number counts; of equal ones the older, which is told
    // first.
    let mut sorted: Vec<_> = policies.iter().collect();
    sorted.sort_by_key(|policy| policy.priority);
    let mut all = Withheld::default();
    for uplink in uplinks {
        let covers = |policy: &&&Policy| {
            (policy.ifindex == 0 || policy.ifindex == uplink.ifindex)
                && uplink
                    .addresses()
                    .any(|address| policy.source.contains(&address))
        };
        let covering: Vec<&Policy> = sorted.iter().filter(covers).copied().collect();
        let mut own: BTreeMap<IpNet, bool> = BTreeMap::new();
        // Whatever counts more is painted over what counts less.
        for policy in covering.iter().rev().filter(|policy| !policy.narrow) {
            own.retain(|net, _| !policy.destination.contains(net));
            own.insert(policy.destination, policy.protects);
        }
        for policy in covering.iter().filter(|policy| policy.protects) {
            let withheld = own.get(&policy.destination) == Some(&true) && !policy.narrow;
            if !withheld && !policy.narrow {
                // Another one counts.
                continue;
            }
            let what = if withheld {
                "is dropped"
            } else {
                "leaves in clear: netdp can't tell it apart by ports, protocols or marks"
            };
            let told = format!(
                "{}: what pods send and the IPsec policy {policy} covers once it has the node's \
                 address {what}",
                uplink.name
            );
            if !all.told.contains(&told) {
                all.told.push(told);
            }
        }
        for (net, protects) in own {
            // A destination counts for every uplink.
            *all.destinations.entry(net).or_default() |= protects;
        }
    }
    if !all.destinations.values().any(|protects| *protects) {
        all.destinations.clear();
    }
    all
}

impl Withheld {
    /// The policy with this in it.
    #[must_use]
    pub fn apply(&self, mut rules: Vec<PolicyRule>) -> Vec<PolicyRule> {
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

/// What is known of the longest prefix that covers this one.
fn longest<T>(prefix: &IpNet, known: impl Fn(&IpNet) -> Option<T>) -> Option<T> {
    let above = std::iter::successors(Some(prefix.trunc()), IpNet::supernet);
    above.into_iter().find_map(|net| known(&net))
}

#[cfg(test)]
mod tests {
    use super::{Withheld, withheld};
    use crate::node::xfrm::Policy;
    use crate::reconcile::PolicyRule;
    use crate::uplinks::{LinkLayer, Uplink};
    use netdp_common::abi::Action::{self, Bypass, Masquerade, Withhold};

    fn uplink() -> Uplink {
        Uplink {
            ifindex: 2,
            name: "eth0".into(),
            link_layer: LinkLayer::Ethernet,
            v4: Some([10, 1, 0, 10].into()),
            v6: Some("fd00:1::10".parse().unwrap()),
            up: true,
            untagged: false,
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

    fn found(policies: &[Policy]) -> Withheld {
        withheld(policies, [uplink()].iter())
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
        assert_eq!(found.told.len(), 2, "{:?}", found.told);
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
        // What is bypassed keeps the pod's address, for which the kernel asked.
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
        assert_eq!(found.told.len(), 1);
    }

    #[test]
    fn what_can_not_be_told_apart_is_only_told() {
        let narrow = Policy {
            narrow: true,
            ..policy("10.1.0.10/32", "10.2.0.0/16", true, 0)
        };
        let found = found(&[narrow]);
        assert_eq!(found.apply(Vec::new()), Vec::new());
        assert!(
            found.told[0].contains("leaves in clear"),
            "{:?}",
            found.told
        );
    }
}
