//! Findings in the agent's report, each with its code where it has one.

use super::{Report, Status};
use crate::codes::{Code, Severity};

/// Percentage of the places for mappings above which they are running out.
pub(super) const FILLING: usize = 85;

/// Something about the node that an operator should know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Finding {
    pub severity: Severity,
    pub code: Option<Code>,
    /// The finding, in one line.
    pub text: String,
}

impl Finding {
    fn coded(code: Code, text: impl Into<String>) -> Self {
        Self {
            severity: code.severity(),
            code: Some(code),
            text: text.into(),
        }
    }

    fn plain(severity: Severity, text: impl Into<String>) -> Self {
        Self {
            severity,
            code: None,
            text: text.into(),
        }
    }
}

impl Status {
    /// Returns the findings, errors first.
    pub(crate) fn findings(&self) -> Vec<Finding> {
        let mut found = Vec::new();
        let error = |text: &String| Finding::plain(Severity::Error, text);
        found.extend(self.off.iter().map(error));
        found.extend(self.behind.iter().map(error));
        if let Some(why) = &self.unread {
            let text = format!("the maps can't be read: {why}");
            found.push(Finding::plain(Severity::Warning, text));
        }
        let (used, max) = (self.mappings, self.max_mappings);
        if (used * 100).checked_div(max).unwrap_or(0) > FILLING {
            let text = format!("{used} of {max} places for mappings are used");
            found.push(Finding::coded(Code::TableFilling, text));
        }
        if let Some(report) = &self.report {
            found.extend(report.findings());
        }
        // A reason of the node's not being ready may be a finding of its own.
        let mut seen = Vec::new();
        found.retain(|finding| {
            let is_new = !seen.contains(&finding.text);
            seen.push(finding.text.clone());
            is_new
        });
        found.sort_by_key(|finding| match finding.severity {
            Severity::Error => 0,
            Severity::Warning => 1,
            Severity::Info => 2,
        });
        found
    }
}

impl Report {
    /// Returns the findings that are in the report.
    pub(crate) fn findings(&self) -> Vec<Finding> {
        let mut found = Vec::new();
        let mut coded = |code: Code, lines: &mut dyn Iterator<Item = String>| {
            found.extend(lines.map(|line| Finding::coded(code, line)));
        };
        let config = &self.config;
        coded(Code::Rejected, &mut config.rejected.iter().cloned());
        let by_netfilter = self.mode == "iptables";
        let no_address = self.no_address.iter();
        coded(
            Code::NoAddress,
            &mut no_address.map(|it| it.describe(by_netfilter)),
        );
        coded(Code::NoUplink, &mut self.leaks.iter().cloned());
        coded(Code::Detour, &mut self.detours.iter().cloned());
        let chains = self.chains_back.iter();
        coded(
            Code::ChainBack,
            &mut chains
                .map(|it| format!("{it} was created again: another program still writes it")),
        );
        let (translate, drop): (Vec<_>, Vec<_>) =
            (self.foreign.rules.iter().filter(|it| it.conflict)).partition(|it| !it.drops);
        coded(
            Code::OtherNat,
            &mut translate.into_iter().map(ToString::to_string),
        );
        for finding in &self.reach {
            if let Some(code) = finding.verdict.code() {
                coded(code, &mut std::iter::once(finding.describe()));
            }
        }
        let mut plain = |severity: Severity, lines: &mut dyn Iterator<Item = String>| {
            found.extend(lines.map(|line| Finding::plain(severity, line)));
        };
        plain(
            Severity::Error,
            &mut drop.into_iter().map(ToString::to_string),
        );
        plain(Severity::Error, &mut self.unready.iter().cloned());
        plain(Severity::Error, &mut self.no_room.iter().cloned());
        plain(Severity::Warning, &mut config.warnings.iter().cloned());
        plain(Severity::Warning, &mut self.ipsec.iter().cloned());
        plain(Severity::Warning, &mut self.left_out.iter().cloned());
        plain(
            Severity::Warning,
            &mut (self.waiting_for.iter().chain(&self.waiting_for_pods))
                .map(|it| format!("no interface matches {it} yet")),
        );
        let takeover = self.not_taken_over.iter();
        plain(
            Severity::Warning,
            &mut takeover.map(|it| format!("the takeover will be retried: {it}")),
        );
        plain(
            Severity::Warning,
            &mut (self.unpinned.iter())
                .map(|why| format!("the datapath will not outlive the agent: {why}")),
        );
        plain(Severity::Warning, &mut self.fleeting.iter().cloned());
        let node = self.node.iter().flat_map(|node| &node.not_kept);
        plain(Severity::Warning, &mut node.cloned());
        let no_ebpf = self.no_ebpf.iter();
        plain(
            Severity::Warning,
            &mut no_ebpf.map(|it| format!("iptables mode, because eBPF does not work: {}", it.why)),
        );
        plain(Severity::Info, &mut self.hints.iter().cloned());
        plain(Severity::Info, &mut self.stacked.iter().cloned());
        found
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Report, Status};
    use super::{Code, Severity};

    #[test]
    fn errors_come_first_and_nothing_twice() {
        let leak = "destinations leave by eth9".to_owned();
        let report = Report {
            stacked: vec!["bond0 is the uplink, its ports are not".into()],
            leaks: vec![leak.clone()],
            unready: vec![leak.clone(), "the agent is starting".into()],
            config: crate::report::ConfigReport {
                warnings: vec!["a:1: unknown key".into()],
                ..Default::default()
            },
            ..Report::default()
        };
        let status = Status {
            mappings: 86,
            max_mappings: 100,
            ..Status::with(report)
        };
        let found = status.findings();
        let seen: Vec<_> = found.iter().map(|it| (it.severity, it.code)).collect();
        assert_eq!(
            seen,
            [
                (Severity::Error, Some(Code::NoUplink)),
                (Severity::Error, None),
                (Severity::Warning, Some(Code::TableFilling)),
                (Severity::Warning, None),
                (Severity::Info, None),
            ]
        );
        assert_eq!(found[0].text, leak);
    }
}
