//! What the datapath is to look like, made of configuration and network: pure.

use super::Agent;
use crate::config::{self, Rule};
use crate::node::{self, Policy};
use crate::reconcile::{PolicyRule, State};
use crate::uplinks::{
    Patterns, Selection, Snapshot, Uplink, detours, hint, local_addresses, pod_links, select,
};
use ipnet::IpNet;
use log::Level;
use netdp_common::abi::Action;
use std::collections::{BTreeMap, BTreeSet};

/// How many addresses a new map has room for (`LOCAL_ADDRS` of netdp-ebpf).
const ADDRESSES: usize = 131_072;

/// What the selection of uplinks has shown, for people.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Findings {
    /// Patterns that match no interface yet, those of `--uplink` first.
    pub waiting: Vec<Waiting>,
    /// Why there is no uplink at all, if so.
    pub no_uplink: Option<String>,
    /// Why not all addresses of the node count, if so.
    pub no_room: Option<String>,
    /// What `--uplink` names and can't be an uplink.
    pub left_out: Vec<String>,
    /// What was decided about uplinks that stand on each other.
    pub stacked: Vec<String>,
    /// Interfaces that masqueraded destinations leave by untranslated.
    pub leaks: Vec<String>,
    /// Interfaces towards guests of the node.
    pub guests: Vec<String>,
    /// Ways for packets past the uplinks' hooks.
    pub detours: Vec<String>,
    /// IPsec policies that cover what pods send once it has the node's address.
    pub ipsec: Vec<String>,
}

/// A flag whose interfaces pods' traffic leaves or enters by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flag {
    Uplink,
    Hairpin,
}

impl Flag {
    const fn name(self) -> &'static str {
        match self {
            Self::Uplink => "--uplink",
            Self::Hairpin => "--hairpin",
        }
    }
}

/// A pattern that matches no interface yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Waiting {
    pub flag: Flag,
    pub pattern: String,
    /// What may have been meant instead.
    pub hint: Option<String>,
}

impl Findings {
    /// Returns the patterns of a flag that match no interface yet.
    pub(super) fn waiting_for(&self, flag: Flag) -> Vec<String> {
        let waiting = self.waiting.iter().filter(|it| it.flag == flag);
        waiting.map(|it| it.pattern.clone()).collect()
    }

    /// Returns what may have been meant by patterns that match nothing.
    pub(super) fn hints(&self) -> Vec<String> {
        let hinted = self.waiting.iter().filter_map(|it| {
            let (flag, pattern, hint) = (it.flag.name(), &it.pattern, it.hint.as_ref()?);
            Some(format!("{flag} {pattern}: {hint}"))
        });
        hinted.collect()
    }

    /// Returns what the log has to say that these are, and `before` was not.
    fn news(&self, before: &Self) -> Vec<(Level, String)> {
        let mut news = Vec::new();
        let mut all = |level: Level, now: &[String], before: &[String]| {
            let new = now.iter().filter(|what| !before.contains(what));
            news.extend(new.map(|what| (level, what.clone())));
        };
        let waiting: Vec<_> = [Flag::Uplink, Flag::Hairpin]
            .into_iter()
            .filter(|flag| self.waiting_for(*flag) != before.waiting_for(*flag))
            .flat_map(|flag| self.waiting.iter().filter(move |it| it.flag == flag))
            .map(Waiting::line)
            .collect();
        for (level, line) in waiting {
            all(level, &[line], &[]);
        }
        if let Some(reason) = &self.no_uplink
            && self.no_uplink != before.no_uplink
            && self.waiting_for(Flag::Uplink).is_empty()
        {
            all(Level::Warn, &[format!("no uplink: {reason}")], &[]);
        }
        if self.stacked != before.stacked {
            all(Level::Info, &self.stacked, &[]);
        }
        all(Level::Warn, &self.left_out, &before.left_out);
        all(Level::Error, &self.leaks, &before.leaks);
        if before.leaks.iter().any(|what| !self.leaks.contains(what)) {
            let left = self.leaks.len();
            let line =
                format!("interfaces that masqueraded destinations leave by untranslated: {left}");
            all(Level::Info, &[line], &[]);
        }
        let guests = self.guests.iter();
        let guests: Vec<_> = guests.filter(|it| !before.guests.contains(it)).collect();
        if !guests.is_empty() {
            let line = format!(
                "{guests:?} lead to guests of this node: what goes there is not masqueraded"
            );
            all(Level::Info, &[line], &[]);
        }
        all(Level::Warn, &self.detours, &before.detours);
        all(Level::Warn, &self.ipsec, &before.ipsec);
        if self.no_room != before.no_room {
            match &self.no_room {
                Some(problem) => all(Level::Error, std::slice::from_ref(problem), &[]),
                None => {
                    let line = "all addresses of the node have room again".to_owned();
                    all(Level::Info, &[line], &[]);
                }
            }
        }
        news
    }
}

impl Waiting {
    fn line(&self) -> (Level, String) {
        let (flag, pattern) = (self.flag.name(), &self.pattern);
        let and = self.hint.as_ref();
        let and = and.map_or_else(String::new, |hint| format!("; {hint}"));
        // Pods come when they come.
        let level = match (self.flag, &self.hint) {
            (Flag::Hairpin, None) => Level::Info,
            _ => Level::Warn,
        };
        let line = format!("no interface matches {flag} {pattern} yet: waiting for it{and}");
        (level, line)
    }
}

/// What the desired state follows from.
struct Inputs<'a> {
    rules: &'a [Rule],
    snapshot: &'a Snapshot,
    selection: &'a Selection,
    hairpin: &'a Patterns,
    /// IPsec policies.
    policies: &'a [Policy],
    /// Networks that are known to be pods'.
    pods: &'a [IpNet],
    /// What the datapath looks like now.
    applied: &'a State,
    /// How many addresses of the node have room.
    room: usize,
}

/// The desired state, and what else follows.
pub(super) struct Desired {
    pub state: State,
    pub found: Findings,
    /// Uplinks that stay so although guests are on them.
    pub with_guests: BTreeSet<u32>,
    /// What falls under IPsec policies, and is not protected as netfilter would have it.
    pub missed_ipsec: Vec<String>,
}

fn desire(inputs: &Inputs<'_>) -> Desired {
    let Inputs {
        snapshot, hairpin, ..
    } = inputs;
    let mut selected = select(snapshot, inputs.selection);
    let pod_links = links_to_pods(snapshot, hairpin, &selected.uplinks);
    (selected.observed).retain(|link| !pod_links.contains_key(&link.ifindex));
    let withheld = node::withheld(
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
        detours: detours(snapshot, &selected.uplinks),
        ipsec: withheld.told.clone(),
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
        missed_ipsec: withheld.missed,
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
        format!("; after `netdp detach` a new map has room for {ADDRESSES}")
    } else {
        String::new()
    };
    format!(
        "the node has {count} addresses, and the datapath's map has room for {room}: what \
         was attached stays, nothing else is attached. Take addresses away{remedy}"
    )
}

/// Returns the interfaces that the hairpin program is to be attached to, by index.
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
        action: match rule.action {
            config::Action::Bypass => Action::Bypass,
            config::Action::Masquerade => Action::Masquerade,
        },
    }
}

impl Agent {
    /// Makes the desired state, and logs what is new about it.
    pub(super) fn desired(&mut self) -> State {
        let desired = desire(&Inputs {
            rules: &self.config.rules,
            snapshot: &self.snapshot,
            selection: &self.selection,
            hairpin: &self.options.hairpin,
            policies: self.node.policies(),
            pods: &self.options.surroundings.pod_cidrs,
            applied: &self.applied,
            room: self.engine.address_room(),
        });
        let Desired {
            state,
            found,
            with_guests,
            missed_ipsec,
        } = desired;
        for (level, line) in found.news(&self.found) {
            log::log!(level, "{line}");
        }
        let was_missed = self.node.set_missed_ipsec(missed_ipsec);
        if was_missed || found.leaks != self.found.leaks {
            self.takeover.try_soon();
        }
        self.found = found;
        self.selection.with_guests = with_guests;
        state
    }
}

#[cfg(test)]
mod tests {
    use super::{Findings, Flag, Inputs, Waiting, desire, no_room};
    use crate::config::{Action, Origin, Rule};
    use crate::reconcile::State;
    use crate::uplinks::{Patterns, Selection, Snapshot};
    use log::Level;
    use netdp_common::abi;

    fn patterns(names: &[&str]) -> Patterns {
        Patterns::parse("--uplink", names).unwrap()
    }

    #[test]
    fn without_a_network_there_is_the_policy_and_what_is_waited_for() {
        let rules = [Rule {
            prefix: "10.0.0.0/8".parse().unwrap(),
            action: Action::Bypass,
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
        assert_eq!(policy[0].action, abi::Action::Bypass);
        assert!(desired.state.uplinks.is_empty());
        assert_eq!(desired.found.waiting_for(Flag::Uplink), ["eth0"]);
        assert_eq!(desired.found.waiting_for(Flag::Hairpin), ["cali*"]);
        assert_eq!(desired.found.no_room, None);
    }

    fn waiting(flag: Flag, hint: Option<&str>) -> Waiting {
        Waiting {
            flag,
            pattern: "x0".into(),
            hint: hint.map(str::to_owned),
        }
    }

    #[test]
    fn only_what_is_new_is_logged() {
        let now = Findings {
            waiting: vec![
                waiting(Flag::Uplink, Some("there is y0")),
                waiting(Flag::Hairpin, None),
            ],
            leaks: vec!["leak".into()],
            guests: vec!["vm0".into()],
            no_room: Some(no_room(9, 8)),
            ..Findings::default()
        };
        let news = now.news(&Findings::default());
        let levels: Vec<_> = news.iter().map(|(level, _)| *level).collect();
        use Level::{Error, Info, Warn};
        assert_eq!(levels, [Warn, Info, Error, Info, Error], "{news:?}");
        assert!(
            news[0].1.ends_with("waiting for it; there is y0"),
            "{news:?}"
        );
        assert_eq!(now.news(&now), []);
        let gone = Findings::default().news(&now);
        let gone: Vec<_> = gone.iter().map(|(_, line)| line.as_str()).collect();
        assert_eq!(
            gone,
            [
                "interfaces that masqueraded destinations leave by untranslated: 0",
                "all addresses of the node have room again"
            ]
        );
    }

    #[test]
    fn a_reason_is_not_logged_where_something_is_waited_for() {
        let mut now = Findings {
            no_uplink: Some("no route".into()),
            ..Findings::default()
        };
        assert_eq!(now.news(&Findings::default()).len(), 1);
        now.waiting = vec![waiting(Flag::Uplink, None)];
        let news = now.news(&Findings::default());
        assert!(
            news.len() == 1 && news[0].1.contains("--uplink x0"),
            "{news:?}"
        );
    }

    #[test]
    fn a_small_map_can_be_made_anew() {
        assert!(no_room(9, 8).contains("netdp detach"));
        assert!(!no_room(200_000, 131_072).contains("netdp detach"));
    }
}
