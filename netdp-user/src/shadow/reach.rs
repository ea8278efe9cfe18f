//! Connections to bypassed networks and whether they were answered, as the programs would count them
//! ([`crate::reach`]): a node can be asked before netdp changes anything there.
//!
//! Connection tracking reports that a connection begins, and has it in its table for as long as it
//! waits for an answer (120 s by default). A connection that is gone sooner was answered by a reset,
//! after which the kernel forgets it at once.

use super::observe::Key;
use crate::nf_conntrack::Flow;
use crate::reach::{Counts, Observed, Window, network};
use crate::state_dir::StateDir;
use anyhow::Result;
use ipnet::IpNet;
use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Time for an answer; shorter than any timeout of connection tracking for the state `SYN_SENT`
/// that anybody uses.
const PATIENCE: Duration = Duration::from_secs(10);

/// Interval between looks at connection tracking.
const EVERY: Duration = Duration::from_secs(5);

/// Limit of connections that are waited for: a scan must not take the node's memory.
const WAITING: usize = 65_536;

/// A connection that has not been answered yet.
#[derive(Debug, Clone, Copy)]
struct Attempt {
    network: IpNet,
    /// Set if it is the node's own.
    own: bool,
    since: Instant,
}

/// The connections that are waited for, and the counts of the others.
pub(super) struct Attempts {
    waiting: HashMap<Key, Attempt>,
    window: Window,
    looked: Instant,
}

impl Attempts {
    /// Goes on with the counts of an earlier agent.
    pub(super) fn after(dir: &StateDir) -> Self {
        Self {
            waiting: HashMap::new(),
            window: Window::after(dir),
            looked: Instant::now(),
        }
    }

    /// Waits for the answer to a new TCP connection to a bypassed destination.
    pub(super) fn begin(&mut self, key: Key, destination: IpAddr, own: bool, now: Instant) {
        if self.waiting.len() < WAITING {
            self.waiting.insert(
                key,
                Attempt {
                    network: network(destination),
                    own,
                    since: now,
                },
            );
        }
    }

    /// Reports whether it is time to look at connection tracking.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        !self.waiting.is_empty() && now.duration_since(self.looked) >= EVERY
    }

    /// Counts the connections whose result is known by now. `flows`: the whole of connection
    /// tracking; `at`: the time in seconds since 1970.
    pub(super) fn settle<'a>(
        &mut self,
        flows: impl IntoIterator<Item = (Key, &'a Flow)>,
        now: Instant,
        at: u64,
    ) {
        self.looked = now;
        let tracked: HashMap<Key, bool> = flows
            .into_iter()
            .filter(|(key, _)| self.waiting.contains_key(key))
            .map(|(key, flow)| (key, flow.answered))
            .collect();
        let mut counted = Observed::new();
        self.waiting.retain(|key, attempt| {
            let answered = match tracked.get(key) {
                Some(false) if now.duration_since(attempt.since) < PATIENCE => return true,
                Some(answered) => *answered,
                None => true,
            };
            let counts = counted.entry(attempt.network).or_default();
            counts.add(&attempt.counts(answered));
            false
        });
        self.window.add(at, &counted);
    }

    /// Writes the counts for `netdp suggest`.
    ///
    /// # Errors
    /// Returns an error if the file cannot be written.
    pub(super) fn save(&self, dir: &StateDir) -> Result<()> {
        self.window.save(dir)
    }
}

impl Attempt {
    fn counts(&self, answered: bool) -> Counts {
        let (new, answered) = (1, u64::from(answered));
        if self.own {
            Counts {
                node_new: new,
                node_answered: answered,
                ..Counts::default()
            }
        } else {
            Counts {
                pod_new: new,
                pod_answered: answered,
                ..Counts::default()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nf_conntrack::NfTuple;

    fn flow(port: u16, answered: bool) -> Flow {
        let original = NfTuple {
            source: [172, 16, 0, 2].into(),
            destination: [10, 2, 0, 1].into(),
            source_id: port,
            destination_id: 80,
        };
        Flow {
            protocol: 6,
            original,
            reply: original.reversed(),
            answered,
            timeout: 100,
            tcp: None,
            picked_up: false,
        }
    }

    fn key(flow: &Flow) -> Key {
        (flow.protocol, flow.original)
    }

    #[test]
    fn a_connection_counts_once_its_result_is_known() {
        let dir = tempfile::tempdir().unwrap();
        let mut attempts = Attempts::after(&StateDir::at(dir.path()));
        let start = Instant::now();
        let (silent, answered, reset) = (flow(1, false), flow(2, true), flow(3, false));
        for (flow, own) in [(&silent, false), (&answered, false), (&reset, true)] {
            attempts.begin(key(flow), flow.original.destination, own, start);
        }
        let table = [silent, answered];
        let table = || table.iter().map(|flow| (key(flow), flow));
        assert!(!attempts.is_due(start) && attempts.is_due(start + EVERY));
        attempts.settle(table(), start + EVERY, 1_000);
        let expected = |pod_new, pod_answered| Counts {
            pod_new,
            pod_answered,
            pod_packets: 0,
            node_new: 1,
            node_answered: 1,
        };
        let network: IpNet = "10.2.0.0/24".parse().unwrap();
        assert_eq!(attempts.window.sums(1_000)[&network], expected(1, 1));
        attempts.settle(table(), start + PATIENCE, 1_001);
        assert_eq!(attempts.window.sums(1_001)[&network], expected(2, 1));
        assert!(!attempts.is_due(start + PATIENCE * 2), "nothing is left");
    }
}
