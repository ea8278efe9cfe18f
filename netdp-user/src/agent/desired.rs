//! The desired state of the datapath, computed from configuration and network without side effects.

use super::Agent;
use super::findings::{Findings, Flag, Waiting};
use crate::config::Rule;
use crate::node::{self, Policy};
use crate::reconcile::{PolicyRule, State};
use crate::uplinks::{
    Patterns, Selection, Snapshot, Uplink, hint, local_addresses, pod_links, select, unhooked_paths,
};
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};

/// Number of addresses that a new map has room for (`LOCAL_ADDRS` of netdp-ebpf).
const ADDRESSES: usize = 131_072;

/// Inputs of the desired state.
struct Inputs<'a> {
    rules: &'a [Rule],
    snapshot: &'a Snapshot,
    selection: &'a Selection,
    hairpin: &'a Patterns,
    /// The kernel's IPsec policies.
    policies: &'a [Policy],
    /// Networks known to be pods'.
    pods: &'a [IpNet],
    /// State last applied to the datapath.
    applied: &'a State,
    /// Number of node addresses that the map has room for.
    room: usize,
}

/// The desired state, and findings from its computation.
pub(super) struct Desired {
    pub state: State,
    pub found: Findings,
    /// Uplinks that remain uplinks although guests are on them.
    pub with_guests: BTreeSet<u32>,
    /// Traffic that IPsec policies cover, and that netdp does not protect as netfilter would.
    pub missed_ipsec: Vec<String>,
}

fn desire(inputs: &Inputs<'_>) -> Desired {
    let Inputs {
        snapshot, hairpin, ..
    } = inputs;
    let mut selected = select(snapshot, inputs.selection);
    let pod_links = links_to_pods(snapshot, hairpin, &selected.uplinks);
    (selected.observed).retain(|link| !pod_links.contains_key(&link.ifindex));
    let withheld = node::ipsec_drops(
        inputs.policies,
        selected.uplinks.iter(),
        &selected.sources,
        inputs.pods,
    );
    let policy = inputs.rules.iter().map(policy_rule).collect();
    let mut found = Findings {
        waiting: waiting(snapshot, std::mem::take(&mut selected.unmatched), hairpin),
        no_uplink: selected.reason,
        no_room: None,
        left_out: selected.left_out,
        stacked: selected.stacked,
        leaks: selected.leaks,
        guests: selected.guests,
        detours: unhooked_paths(snapshot, &selected.uplinks),
        ipsec: withheld.messages.clone(),
    };
    let by_index = |links: Vec<Uplink>| links.into_iter().map(|it| (it.ifindex, it)).collect();
    let mut state = State {
        pod_links,
        policy: Some(withheld.apply(policy)),
        local: local_addresses(snapshot),
        observed: by_index(selected.observed),
        macs: selected.macs,
        sources: selected.sources,
        unknown: BTreeMap::new(),
        uplinks: by_index(selected.uplinks),
    };
    let count = state.local.len();
    if !state.fit(inputs.room, inputs.applied) {
        found.no_room = Some(no_room(count, inputs.room));
    }
    Desired {
        state,
        found,
        with_guests: selected.with_guests,
        missed_ipsec: withheld.unprotected,
    }
}

fn waiting(snapshot: &Snapshot, uplinks: Vec<String>, hairpin: &Patterns) -> Vec<Waiting> {
    let uplinks = uplinks.into_iter().map(|it| (Flag::Uplink, it));
    let pods = hairpin.unmatched(snapshot).into_iter();
    uplinks
        .chain(pods.map(|it| (Flag::Hairpin, it)))
        .map(|(flag, pattern)| Waiting {
            flag,
            hint: hint(flag.name(), &pattern, snapshot),
            pattern,
        })
        .collect()
}

fn no_room(count: usize, room: usize) -> String {
    let remedy = if room < ADDRESSES {
        format!("; after `netdp detach` a new map holds {ADDRESSES}")
    } else {
        String::new()
    };
    format!(
        "the node has {count} addresses, but the datapath's map holds {room}: no further interface \
         is attached. Remove addresses{remedy}"
    )
}

/// Returns the interfaces that are to have the hairpin program, by index.
pub(super) fn links_to_pods(
    snapshot: &Snapshot,
    hairpin: &Patterns,
    uplinks: &[Uplink],
) -> BTreeMap<u32, String> {
    pod_links(snapshot, hairpin, |ifindex| {
        uplinks.iter().any(|uplink| uplink.ifindex == ifindex)
    })
}

fn policy_rule(rule: &Rule) -> PolicyRule {
    PolicyRule {
        prefix: rule.prefix,
        action: rule.action.into(),
    }
}

impl Agent {
    /// Computes the desired state, and logs new findings about it.
    pub(super) fn compute_desired(&mut self) -> State {
        let desired = desire(&Inputs {
            rules: &self.config.rules,
            snapshot: &self.snapshot,
            selection: &self.selection,
            hairpin: &self.options.hairpin,
            policies: self.node.policies(),
            pods: &self.options.cluster_cidrs.pod_cidrs,
            applied: &self.applied,
            room: self.engine.address_capacity(),
        });
        let Desired {
            state,
            found,
            with_guests,
            missed_ipsec,
        } = desired;
        for (level, line) in found.news(&self.found) {
            log::log!(level, "{line}");
            self.events.finding(&line, level <= log::Level::Warn);
        }
        let was_missed = self.node.set_missed_ipsec(missed_ipsec);
        if was_missed || found.leaks != self.found.leaks {
            self.retry_takeover_soon();
        }
        self.found = found;
        self.selection.with_guests = with_guests;
        state
    }
}

#[cfg(test)]
mod tests {
    use super::super::findings::Flag;
    use super::{Inputs, desire, no_room};
    use crate::config::{Origin, Rule, RuleAction};
    use crate::reconcile::State;
    use crate::uplinks::{Patterns, Selection, Snapshot};
    use netdp_common::layout;

    fn patterns(names: &[&str]) -> Patterns {
        Patterns::parse("--uplink", names).unwrap()
    }

    #[test]
    fn without_a_network_there_is_the_policy_and_what_is_waited_for() {
        let rules = [Rule {
            prefix: "10.0.0.0/8".parse().unwrap(),
            action: RuleAction::Bypass,
            origin: Origin::BuiltIn,
            also: Vec::new(),
        }];
        let selection = Selection {
            patterns: patterns(&["eth0"]),
            ..Selection::default()
        };
        let desired = desire(&Inputs {
            rules: &rules,
            snapshot: &Snapshot::default(),
            selection: &selection,
            hairpin: &patterns(&["cali*"]),
            policies: &[],
            pods: &[],
            applied: &State::default(),
            room: 10,
        });
        let policy = desired.state.policy.unwrap();
        assert_eq!(policy.len(), 1);
        assert_eq!(policy[0].action, layout::Action::Bypass);
        assert!(desired.state.uplinks.is_empty());
        assert_eq!(desired.found.waiting_for(Flag::Uplink), ["eth0"]);
        assert_eq!(desired.found.waiting_for(Flag::Hairpin), ["cali*"]);
        assert_eq!(desired.found.no_room, None);
    }

    #[test]
    fn a_small_map_can_be_made_anew() {
        assert!(no_room(9, 8).contains("netdp detach"));
        assert!(!no_room(200_000, 131_072).contains("netdp detach"));
    }
}
