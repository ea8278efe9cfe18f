//! The report for `netdp status`, made from the agent's state. netdp itself never reads it back.

use super::facts::Facts;
use super::findings::Flag;
use super::memory::{Memory, to_be_missed};
use crate::config::Rule;
use crate::reach::Verdict;
use crate::report::{ConfigReport, Report, RuleReport};

impl Facts<'_> {
    /// Makes the report for `netdp status`.
    pub(super) fn report(&self) -> Report {
        let (identity, network) = (self.identity, self.network);
        Report {
            version: env!("CARGO_PKG_VERSION").into(),
            mode: identity.mode.into(),
            no_ebpf: identity.no_ebpf.clone(),
            kernel: identity.kernel,
            on_reload: identity.on_reload,
            config: self.config_report(),
            uplinks: self.uplinks.to_vec(),
            waiting_for: network.waiting_for(Flag::Uplink),
            waiting_for_pods: network.waiting_for(Flag::Hairpin),
            hints: network.hints(),
            no_uplink: network.no_uplink.clone(),
            no_room: network.no_room.clone(),
            left_out: network.left_out.clone(),
            no_address: self.no_address.to_vec(),
            stacked: network.stacked.clone(),
            leaks: network.leaks.clone(),
            guests: network.guests.clone(),
            ipsec: network.ipsec.clone(),
            detours: network.detours.clone(),
            chains_back: self.recreated_chains.to_vec(),
            not_taken_over: self.not_taken_over.to_vec(),
            chains: self.chains.unwrap_or_default().to_vec(),
            foreign: self.foreign.clone(),
            node: self.node.cloned(),
            api: self.api.clone(),
            unready: self.unready.to_vec(),
            placed: self.placed.clone(),
            off: self.off.clone(),
            ready_file: identity.ready_file.clone(),
            behind: self.behind.clone(),
            unpinned: self.unpinned.cloned(),
            fleeting: self.ephemeral.cloned(),
            repairs: self.repairs,
            reach: self.reach.to_vec(),
            ended_for_room: self.for_room,
        }
    }

    fn config_report(&self) -> ConfigReport {
        let config = self.config;
        ConfigReport {
            source: config.source_name.clone(),
            files: config.files.clone(),
            hash: config.policy.hash.clone(),
            generation: config.policy.generation,
            applied_at: config.policy.applied_at,
            rules: self.rules.iter().map(rule_report).collect(),
            warnings: config.warnings.clone(),
            rejected: config.rejected.clone(),
        }
    }

    /// Makes the memory file's content for the next agent.
    pub(super) fn memory(&self) -> Memory {
        Memory {
            policy: self.config.policy.clone(),
            had: to_be_missed(self.had.clone(), self.uplinks, self.reported),
            no_address: self.reported.to_vec(),
            chains: match self.chains {
                Some(written) if !written.is_empty() => written.to_vec(),
                _ => self.recalled_chains.to_vec(),
            },
            placed: self.placed.clone(),
            ready_file: self.identity.ready_file.clone(),
        }
    }

    /// Returns the bypassed networks that have no way back to pods.
    pub(super) fn no_way_back(&self) -> Vec<String> {
        let found = self.reach.iter();
        let found = found.filter(|finding| finding.verdict == Verdict::NoWayBack);
        found.map(|finding| finding.network.to_string()).collect()
    }

    /// Returns the uplinks or chains on which the policy is in force.
    pub(super) fn places(&self) -> Vec<String> {
        let uplinks = self.uplinks.iter().map(|uplink| uplink.name.clone());
        let chains = self.chains.unwrap_or_default().iter();
        let chains = chains.map(|it| format!("{} chain {}", it.family, it.chain));
        uplinks.chain(chains).collect()
    }
}

fn rule_report(rule: &Rule) -> RuleReport {
    RuleReport {
        prefix: rule.prefix.to_string(),
        action: rule.action.to_string(),
        origin: rule.origin.to_string(),
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::facts::{Facts, Identity};
    use super::super::findings::Findings;
    use super::super::in_force::{InForce, Source};
    use super::super::memory::PolicyCount;
    use crate::config::{Origin, Rule, RuleAction};
    use crate::foreign::NatFindings;
    use crate::iptables::ChainReport;
    use crate::report::UplinkReport;
    use crate::uplinks::{FormerFamilies, MissingAddress};
    use netdp_common::layout::Family;

    /// Owner of the values that facts borrow.
    pub(in crate::agent) struct State {
        pub identity: Identity,
        pub config: InForce,
        pub rules: Vec<Rule>,
        pub starting: bool,
        pub has_policy: bool,
        pub chains: Option<Vec<ChainReport>>,
        pub recalled_chains: Vec<ChainReport>,
        pub uplinks: Vec<UplinkReport>,
        pub network: Findings,
        pub no_address: Vec<MissingAddress>,
        pub recalled: Option<Vec<MissingAddress>>,
        pub had: FormerFamilies,
        pub foreign: NatFindings,
        pub recreated_chains: Vec<String>,
        pub api_unready: Option<String>,
        pub off: Vec<String>,
        pub fault: Option<String>,
    }

    impl State {
        /// Returns the state of a ready node.
        pub(in crate::agent) fn well() -> Self {
            let mut config = InForce::after(PolicyCount {
                hash: "00112233".into(),
                generation: 4,
                applied_at: 1_700_000_000,
            });
            config.source = Source::Sources;
            config.source_name = "files".into();
            Self {
                identity: Identity {
                    mode: "ebpf",
                    ..Identity::default()
                },
                config,
                rules: Vec::new(),
                starting: false,
                has_policy: true,
                chains: None,
                recalled_chains: Vec::new(),
                uplinks: vec![uplink("eth0")],
                network: Findings::default(),
                no_address: Vec::new(),
                recalled: None,
                had: FormerFamilies::new(),
                foreign: NatFindings::default(),
                recreated_chains: Vec::new(),
                api_unready: None,
                off: Vec::new(),
                fault: None,
            }
        }

        pub(in crate::agent) fn facts(&self) -> Facts<'_> {
            Facts {
                identity: &self.identity,
                config: &self.config,
                rules: &self.rules,
                starting: self.starting,
                has_policy: self.has_policy,
                chains: self.chains.as_deref(),
                recalled_chains: &self.recalled_chains,
                uplinks: &self.uplinks,
                network: &self.network,
                no_address: &self.no_address,
                reported: self.recalled.as_ref().unwrap_or(&self.no_address),
                had: &self.had,
                foreign: &self.foreign,
                node: None,
                not_taken_over: &[],
                recreated_chains: &self.recreated_chains,
                api: None,
                api_unready: self.api_unready.clone(),
                maps: Vec::new(),
                placed: Vec::new(),
                off: self.off.clone(),
                behind: Vec::new(),
                unpinned: None,
                ephemeral: None,
                repairs: 0,
                fault: self.fault.as_ref(),
                for_room: None,
                reach: &[],
                unready: &[],
            }
        }
    }

    pub(in crate::agent) fn uplink(name: &str) -> UplinkReport {
        UplinkReport {
            name: name.into(),
            ifindex: 2,
            attached: "tcx".into(),
            v4: Some([192, 0, 2, 1].into()),
            v6: None,
            up: true,
        }
    }

    pub(in crate::agent) fn chain(error: Option<&str>) -> ChainReport {
        ChainReport {
            family: "IPv4".into(),
            backend: "nft".into(),
            chain: "IP-MASQ-AGENT".into(),
            rules: 3,
            error: error.map(str::to_owned),
        }
    }

    pub(in crate::agent) fn lost(severe: bool) -> MissingAddress {
        MissingAddress {
            uplink: "eth0".into(),
            family: Family::V4,
            lost: true,
            routed: severe,
            severe,
        }
    }

    #[test]
    fn the_report_has_the_policy_with_its_origins() {
        let mut state = State::well();
        state.rules = vec![Rule {
            prefix: "10.0.0.0/8".parse().unwrap(),
            action: RuleAction::Bypass,
            origin: Origin::File {
                file: "/etc/config/a".into(),
                line: 2,
            },
            also: Vec::new(),
        }];
        state.network.leaks = vec!["by eth9".into()];
        let report = state.facts().report();
        assert_eq!(report.mode, "ebpf");
        assert_eq!(report.leaks, ["by eth9"]);
        let config = report.config;
        assert_eq!((config.generation, config.applied_at), (4, 1_700_000_000));
        assert_eq!(
            (config.hash.as_str(), config.source.as_str()),
            ("00112233", "files")
        );
        let [rule] = config.rules.as_slice() else {
            panic!("{:?}", config.rules);
        };
        assert_eq!(
            [&rule.prefix, &rule.action, &rule.origin],
            ["10.0.0.0/8", "bypass", "/etc/config/a:2"]
        );
    }

    #[test]
    fn the_next_agent_knows_what_was_lost_and_what_can_be() {
        let mut state = State::well();
        state.uplinks.push(uplink("eth1"));
        state.uplinks[0].v4 = None;
        state.no_address = vec![lost(true)];
        let memory = state.facts().memory();
        assert_eq!(memory.policy.generation, 4);
        assert_eq!(memory.no_address, [lost(true)]);
        assert_eq!(memory.had["eth0"], [Family::V4].into());
        assert_eq!(memory.had["eth1"], [Family::V4].into());
    }

    #[test]
    fn an_agent_that_has_not_looked_yet_forgets_nothing() {
        let mut state = State::well();
        state.uplinks.clear();
        state.had = [("eth1".into(), [Family::V6].into())].into();
        state.recalled = Some(vec![lost(true)]);
        let memory = state.facts().memory();
        assert_eq!(memory.no_address, [lost(true)]);
        assert_eq!(memory.had["eth0"], [Family::V4].into());
        assert_eq!(memory.had["eth1"], [Family::V6].into());
        assert_eq!(state.facts().report().no_address, []);
    }

    #[test]
    fn chains_of_an_earlier_agent_are_remembered_until_this_one_has_written_its_own() {
        let mut state = State::well();
        let mut earlier = chain(None);
        earlier.chain = "EARLIER".into();
        state.recalled_chains = vec![earlier.clone()];
        assert_eq!(state.facts().memory().chains, [earlier.clone()]);
        state.chains = Some(Vec::new());
        assert_eq!(state.facts().memory().chains, [earlier]);
        assert_eq!(state.facts().report().chains, []);
        state.chains = Some(vec![chain(Some("locked"))]);
        assert_eq!(state.facts().memory().chains, [chain(Some("locked"))]);
    }
}
