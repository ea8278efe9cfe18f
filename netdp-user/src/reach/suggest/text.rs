//! Text output of `netdp suggest`.

use super::{ATTEMPTS, Suggestion, Verdict};
use crate::cli::output::table;
use crate::format::{grouped, local_time};
use crate::reach::Finding;

impl Suggestion {
    pub(super) fn text(&self) -> String {
        let mut text = self.headline();
        text.push('\n');
        if !self.networks.is_empty() {
            let mut rows = table(&[
                "NETWORK",
                "PODS ANSWERED",
                "NODE ANSWERED",
                "VERDICT",
                "CODE",
            ]);
            for finding in &self.networks {
                let counts = &finding.counts;
                rows.add_row([
                    finding.network.to_string(),
                    share(counts.pods_heard(), counts.pod_new),
                    share(counts.node_answered, counts.node_new),
                    finding.verdict.words().to_owned(),
                    finding
                        .verdict
                        .code()
                        .map_or_else(|| "-".to_owned(), |code| code.to_string()),
                ]);
            }
            text += &format!("\n{rows}\n");
        }
        if let Some(at) = self.at {
            let at = local_time(u64::try_from(at.as_second()).unwrap_or_default());
            let minutes = self.window_seconds / 60;
            text += &format!("\nIn the {minutes} minutes before {at}.");
            if !self.agent_running {
                text += " No agent is running: what was seen in earlier minutes is not known.";
            }
            text.push('\n');
        }
        text + &self.advice()
    }

    fn headline(&self) -> String {
        let of = |verdict| self.networks.iter().filter(move |it| it.verdict == verdict);
        let names = |verdict| {
            let names: Vec<_> = of(verdict).map(|it| it.network.to_string()).collect();
            (names.len(), names.join(", "))
        };
        match (names(Verdict::NoWayBack), names(Verdict::Silent)) {
            ((1, name), _) => format!("1 bypassed network has no way back to pods: {name}"),
            ((count @ 2.., names), _) => {
                format!("{count} bypassed networks have no way back to pods: {names}")
            }
            (_, (1.., names)) => {
                format!(
                    "unknown: no answers to pods from {names}, and too few attempts by the node"
                )
            }
            _ if self.networks.is_empty() => match self.most_attempted {
                Some(network) => format!(
                    "unknown: pods have made {} attempts to connect to {network}, and fewer to each other bypassed \
                     network; a verdict needs {ATTEMPTS}",
                    grouped(self.most_attempts)
                ),
                None => "unknown: no pod has tried to connect to a bypassed network".to_owned(),
            },
            _ => "no bypassed network lacks a way back to pods".to_owned(),
        }
    }

    fn advice(&self) -> String {
        let Some(change) = &self.change else {
            let silent = self.networks.iter().any(|it| it.verdict == Verdict::Silent);
            return if silent || self.networks.is_empty() && self.most_attempted.is_some() {
                "\nTry from the node, to an address and port that pods use: netdp probe -n 3 ADDRESS:PORT\n".to_owned()
            } else {
                String::new()
            };
        };
        let mut text = String::new();
        let place = if change.no_longer_bypass.is_empty() {
            "add this to the configuration, to a list of the same name"
        } else {
            for entry in &change.no_longer_bypass {
                text += &format!("\nRemove {} from {}.", entry.prefix, entry.origin);
            }
            text.push('\n');
            "put these in place of the lists of the same names"
        };
        text + &format!(
            "\nTo masquerade, {place} (netdp suggest -o yaml prints it alone):\n\n{}",
            change.document
        )
    }
}

impl Finding {
    /// Describes what the verdict follows from.
    pub(super) fn reasons(&self) -> String {
        format!(
            "{}: {}; {} attempts of pods were answered, {} of the node",
            self.network,
            self.verdict.words(),
            share(self.counts.pods_heard(), self.counts.pod_new),
            share(self.counts.node_answered, self.counts.node_new)
        )
    }
}

/// Formats a share; `-` of nothing.
fn share(part: u64, whole: u64) -> String {
    if whole == 0 {
        return "-".to_owned();
    }
    format!("{} of {}", grouped(part), grouped(whole))
}
