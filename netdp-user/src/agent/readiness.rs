//! Readiness of the node, and the reasons if it is not ready.

use super::facts::Facts;
use super::in_force::Source;

/// Limit of published lines of one kind.
pub(super) const LINES: usize = 20;

impl Facts<'_> {
    /// Reports whether packets are translated according to some configuration, and the one-time
    /// work of the start is done. Decides about the ready file.
    pub(super) fn is_ready(&self) -> bool {
        !self.starting && self.is_in_force()
    }

    fn is_in_force(&self) -> bool {
        match self.chains {
            None => self.has_policy && !self.uplinks.is_empty() && self.off.is_empty(),
            Some(chains) => !chains.is_empty() && chains.iter().all(|chain| chain.error.is_none()),
        }
    }

    /// Returns why nothing is in force.
    pub(super) fn not_in_force(&self) -> Vec<String> {
        if let Some(chains) = self.chains {
            if chains.is_empty() {
                return vec!["the chains have not been written yet".into()];
            }
            return chains.iter().filter_map(|it| it.error.clone()).collect();
        }
        let mut reasons = Vec::new();
        if !self.has_policy {
            reasons.push("no policy is in force".to_owned());
        }
        if self.uplinks.is_empty() {
            let why = self.network.no_uplink.as_deref();
            reasons.push(format!(
                "no program is attached: {}",
                why.unwrap_or("see the log")
            ));
        }
        reasons.extend(self.off.iter().cloned());
        reasons
    }

    /// Returns why the node is not ready, for probes and the API: nothing is in force, or something
    /// other than the operator configured, or packets are lost.
    pub(super) fn reasons(&self) -> Vec<String> {
        let mut reasons = self.not_in_force();
        reasons.extend(self.network.no_room.clone());
        let severe = self.no_address.iter().filter(|it| it.severe);
        reasons.extend(severe.map(|it| it.describe(self.by_netfilter())));
        reasons.extend(self.network.leaks.iter().take(LINES).cloned());
        let which = match self.config.source {
            Source::Sources => None,
            Source::LastGood => Some("the last good one is"),
            Source::Defaults => Some("the defaults are"),
        };
        if let Some(which) = which {
            let rejected: Vec<_> = self.config.rejected.iter().take(LINES).cloned().collect();
            reasons.push(format!(
                "the configuration has been invalid since the start, {which} in force: {}",
                rejected.join("; ")
            ));
        }
        reasons.extend(self.api_unready.clone());
        reasons.extend(self.fault.cloned());
        reasons
    }

    /// Reports whether netfilter translates instead of the programs.
    pub(super) const fn by_netfilter(&self) -> bool {
        self.chains.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::{State, chain, lost, uplink};
    use super::Source;

    fn reasons(change: impl FnOnce(&mut State)) -> Vec<String> {
        let mut state = State::well();
        change(&mut state);
        state.facts().reasons()
    }

    fn is_ready(change: impl FnOnce(&mut State)) -> bool {
        let mut state = State::well();
        change(&mut state);
        state.facts().is_ready()
    }

    #[test]
    fn a_node_that_is_well_is_ready() {
        assert_eq!(reasons(|_| {}), [""; 0]);
        assert!(is_ready(|_| {}));
        assert!(is_ready(|state| {
            state.uplinks.clear();
            state.has_policy = false;
            state.chains = Some(vec![chain(None)]);
        }));
    }

    #[test]
    fn what_is_not_in_force_is_named() {
        assert!(!is_ready(|state| state.starting = true));
        assert!(!is_ready(|state| state.has_policy = false));
        assert_eq!(
            reasons(|state| state.has_policy = false),
            ["no policy is in force"]
        );
        assert!(!is_ready(|state| state.uplinks.clear()));
        assert_eq!(
            reasons(|state| state.uplinks.clear()),
            ["no program is attached: see the log"]
        );
        let nowhere = reasons(|state| {
            state.uplinks.clear();
            state.network.no_uplink = Some("no route leads out".into());
        });
        assert_eq!(nowhere, ["no program is attached: no route leads out"]);
        let off = |state: &mut State| state.off = vec!["eth0 has no egress program".into()];
        assert!(!is_ready(off));
        assert_eq!(reasons(off), ["eth0 has no egress program"]);
    }

    #[test]
    fn in_iptables_mode_every_chain_counts_and_nothing_else() {
        let one_fails = |state: &mut State| {
            state.uplinks.clear();
            state.off = vec!["not of this mode".into()];
            state.chains = Some(vec![chain(None), chain(Some("locked"))]);
        };
        assert!(!is_ready(one_fails));
        assert_eq!(reasons(one_fails), ["locked"]);
        let none = |state: &mut State| state.chains = Some(Vec::new());
        assert!(!is_ready(none));
        assert_eq!(reasons(none), ["the chains have not been written yet"]);
    }

    #[test]
    fn what_loses_packets_is_a_reason_though_the_policy_is_in_force() {
        let with = |change: fn(&mut State)| {
            assert!(is_ready(change));
            reasons(change).join("|")
        };
        assert!(with(|it| it.network.no_room = Some("too many".into())).contains("too many"));
        assert!(with(|it| it.network.leaks = vec!["by eth9".into()]).contains("by eth9"));
        assert!(with(|it| it.fault = Some("checked".into())).contains("checked"));
        assert!(with(|it| it.api_unready = Some("not heard".into())).contains("not heard"));
        assert!(with(|it| it.no_address = vec![lost(true)]).contains("eth0 has no IPv4 address"));
        assert_eq!(with(|it| it.no_address = vec![lost(false)]), "");
    }

    #[test]
    fn a_configuration_that_was_bad_from_the_start_is_a_reason() {
        for (source, words) in [
            (Source::LastGood, "the last good one is in force: x:1"),
            (Source::Defaults, "the defaults are in force: x:1"),
        ] {
            let told = reasons(|state| {
                state.config.source = source;
                state.config.rejected = vec!["x:1".into()];
            });
            assert!(told.len() == 1 && told[0].contains(words), "{told:?}");
        }
        // The previous configuration stays in force.
        let told = reasons(|state| state.config.rejected = vec!["x:1".into()]);
        assert_eq!(told, [""; 0]);
    }

    #[test]
    fn uplinks_and_chains_are_the_places() {
        let mut state = State::well();
        state.uplinks = vec![uplink("eth0"), uplink("eth1")];
        assert_eq!(state.facts().places(), ["eth0", "eth1"]);
        state.uplinks.clear();
        state.chains = Some(vec![chain(None)]);
        assert_eq!(state.facts().places(), ["IPv4 chain IP-MASQ-AGENT"]);
    }
}
