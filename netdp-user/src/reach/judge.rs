//! Verdicts that follow from the counts of a network.

use super::counts::{Counts, Observed};
use crate::codes::Code;
use crate::config::{RuleAction, Rules};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};

/// Attempts of pods from which on a network is judged.
pub(crate) const ATTEMPTS: u64 = 20;

/// Attempts of the node from which on its answers are evidence.
pub(crate) const NODE_ATTEMPTS: u64 = 3;

/// Limit of findings in the report.
const FINDINGS: usize = 20;

/// Verdict about a network's way back to pods, by its answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Verdict {
    /// It answers the node and not the pods: it has no way back to them, or rejects them.
    NoWayBack,
    /// It does not answer pods, and the node has not tried often enough.
    Silent,
    /// It answers neither: not a matter of the address.
    NobodyAnswers,
    /// It answers pods, or the counts say nothing else.
    Well,
}

impl Verdict {
    /// Judges a network by its counts; `None` if there are too few.
    pub(crate) fn of(counts: &Counts) -> Option<Self> {
        if counts.pod_new < ATTEMPTS {
            return None;
        }
        // Less than 5 per cent.
        if counts.pods_heard() * 20 >= counts.pod_new {
            return Some(Self::Well);
        }
        let (tried, answered) = (counts.node_new, counts.node_answered);
        Some(match tried {
            0 => Self::Silent,
            _ if answered * 20 < tried => Self::NobodyAnswers,
            // More than 80 per cent.
            _ if answered * 5 <= tried * 4 => Self::Well,
            NODE_ATTEMPTS.. => Self::NoWayBack,
            _ => Self::Silent,
        })
    }

    /// Returns the code, for those that have one.
    pub(crate) const fn code(self) -> Option<Code> {
        match self {
            Self::NoWayBack => Some(Code::NoWayBack),
            Self::Silent => Some(Code::SilentNetwork),
            Self::NobodyAnswers | Self::Well => None,
        }
    }

    /// Returns the verdict in words.
    pub(crate) const fn words(self) -> &'static str {
        match self {
            Self::NoWayBack => "no way back to pods",
            Self::Silent => "silent",
            Self::NobodyAnswers => "nobody answers",
            Self::Well => "well",
        }
    }
}

/// A network that was judged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// The network.
    pub(crate) network: IpNet,
    /// The verdict.
    pub(crate) verdict: Verdict,
    /// The counts that it follows from.
    #[serde(flatten)]
    pub(crate) counts: Counts,
}

impl Finding {
    /// Describes it in one line, without its code.
    pub(crate) fn describe(&self) -> String {
        let (counts, network) = (&self.counts, self.network);
        let pods = format!(
            "{} of {} attempts of pods were answered",
            counts.pods_heard(),
            counts.pod_new
        );
        let node = format!(
            "{} of {} of the node",
            counts.node_answered, counts.node_new
        );
        let words = self.verdict.words();
        match self.verdict {
            Verdict::NoWayBack => format!("{network} {words}: {pods}, {node}; see netdp suggest"),
            Verdict::Silent => {
                format!("{network} {words}: {pods}, {node}; try netdp probe -n 3 ADDRESS:PORT")
            }
            Verdict::NobodyAnswers | Verdict::Well => format!("{network} {words}: {pods}, {node}"),
        }
    }
}

/// Judges the networks that the policy still bypasses, those without a way back first.
pub(crate) fn findings(sums: &Observed, rules: &Rules) -> Vec<Finding> {
    let mut findings: Vec<_> = sums
        .iter()
        .filter(|(network, _)| bypasses(rules, **network))
        .filter_map(|(network, counts)| {
            let verdict = Verdict::of(counts)?;
            Some(Finding {
                network: *network,
                verdict,
                counts: *counts,
            })
        })
        .collect();
    findings.sort_by_key(|finding| (finding.verdict, finding.network));
    findings
}

/// Reports whether the policy bypasses any destination in `network`.
pub(super) fn bypasses(rules: &Rules, network: IpNet) -> bool {
    let around = rules.covering(network).next();
    around.is_some_and(|rule| rule.action == RuleAction::Bypass)
        || (rules.inside(network)).any(|rule| rule.action == RuleAction::Bypass)
}

/// Returns those of the findings that an operator has to know of.
pub(crate) fn reported(findings: &[Finding]) -> Vec<Finding> {
    let told = findings
        .iter()
        .filter(|finding| finding.verdict.code().is_some());
    told.take(FINDINGS).cloned().collect()
}
