//! Facts without change notifications: polled beside the agent's loop.

use super::xfrm::{self, Ipsec, Policy};
use super::{ProtocolPeer, Service, proc};
use crate::iptables::LegacyState;
use std::collections::BTreeSet;
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

/// Time between two polls.
const INTERVAL: Duration = Duration::from_secs(1);

/// Minimum time between two polls, as a multiple of the duration of a poll.
const BACKOFF_FACTOR: u32 = 20;

/// Result of a poll.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Probe {
    /// Protocols (`NODE_PORT_*` bits) and ports of sockets that the programs' socket lookups do not
    /// find.
    pub sockets: BTreeSet<(u32, u16)>,
    /// Virtual services of IPVS.
    pub services: BTreeSet<Service>,
    /// Protocols of raw sockets.
    pub raw: BTreeSet<ProtocolPeer>,
    /// Protocols and endpoints of IPsec.
    pub ipsec: BTreeSet<Ipsec>,
    /// Egress policies of IPsec, in the kernel's order.
    pub policies: Vec<Policy>,
    /// State by which a change of iptables-legacy's rules is detected.
    pub legacy: LegacyState,
}

impl Probe {
    /// Polls once. Facts that are absent, or cannot be read, are empty.
    #[must_use]
    pub(crate) fn read() -> Self {
        let text = |file: &str| {
            std::fs::read_to_string(format!("/proc/thread-self/net/{file}")).unwrap_or_default()
        };
        let raw = [text("raw"), text("raw6")];
        let raw = raw.iter().flat_map(|text| proc::raw(text));
        let lite = [text("udplite"), text("udplite6")];
        let lite = lite.iter().flat_map(|text| proc::udplite(text));
        let (ipsec, policies) = xfrm::read().unwrap_or_else(|err| {
            log::debug!("{err:#}");
            (BTreeSet::new(), Vec::new())
        });
        Self {
            sockets: proc::sctp(&text("sctp/eps")).chain(lite).collect(),
            services: proc::ipvs(&text("ip_vs")),
            raw: raw.chain(proc::l2tp(&text("protocols"))).collect(),
            ipsec,
            policies,
            legacy: LegacyState::read(),
        }
    }
}

/// A poller with a period of a second, on a thread of its own.
#[derive(Debug)]
pub(crate) struct Prober {
    last: Option<Probe>,
    running: Option<JoinHandle<(Probe, Duration)>>,
    due: Instant,
}

impl Default for Prober {
    fn default() -> Self {
        Self {
            last: None,
            running: None,
            due: Instant::now(),
        }
    }
}

impl Prober {
    /// Waits for a result other than the last one returned; the first time for the first result.
    /// Dropping the future loses nothing.
    pub(crate) async fn changed(&mut self) -> Probe {
        loop {
            sleep_until(self.due).await;
            let running = self.running.get_or_insert_with(|| {
                tokio::task::spawn_blocking(|| {
                    let start = std::time::Instant::now();
                    (Probe::read(), start.elapsed())
                })
            });
            let result = running.await;
            self.running = None;
            self.due = Instant::now() + INTERVAL;
            match result {
                Ok((probe, took)) => {
                    self.due = Instant::now() + INTERVAL.max(took * BACKOFF_FACTOR);
                    if self.last.as_ref() != Some(&probe) {
                        return self.last.insert(probe).clone();
                    }
                }
                Err(err) => log::warn!("reading the node's sockets and services: {err}"),
            }
        }
    }
}
