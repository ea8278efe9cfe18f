//! What nobody tells of when it changes: looked at again and again, beside the agent's loop.

use super::xfrm::{self, Ipsec, Policy};
use super::{Service, Spoken, proc};
use crate::iptables::LegacyState;
use std::collections::BTreeSet;
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until};

/// The time between two looks.
const INTERVAL: Duration = Duration::from_secs(1);

/// How much longer than a look itself the time between two looks is, at least.
const REST: u32 = 20;

/// What is there at a time.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Probe {
    /// Protocols (`NODE_PORT_*` bits) and ports of sockets that the programs' own lookups do not find.
    pub sockets: BTreeSet<(u32, u16)>,
    /// IPVS's services.
    pub services: BTreeSet<Service>,
    /// What raw sockets receive.
    pub raw: BTreeSet<Spoken>,
    /// What IPsec speaks.
    pub ipsec: BTreeSet<Ipsec>,
    /// Its policies about what leaves, as the kernel lists them.
    pub policies: Vec<Policy>,
    /// By which a change of iptables-legacy's rules shows.
    pub legacy: LegacyState,
}

impl Probe {
    /// Looks. What is not there, or cannot be read, is empty.
    #[must_use]
    pub fn read() -> Self {
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

/// Looks every second, on a thread of its own.
#[derive(Debug)]
pub struct Prober {
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
    /// Waits for something else than at the last return; the first time for the first look. Dropping
    /// the future loses nothing.
    pub async fn changed(&mut self) -> Probe {
        loop {
            sleep_until(self.due).await;
            let running = self.running.get_or_insert_with(|| {
                tokio::task::spawn_blocking(|| {
                    let start = std::time::Instant::now();
                    (Probe::read(), start.elapsed())
                })
            });
            let seen = running.await;
            self.running = None;
            self.due = Instant::now() + INTERVAL;
            match seen {
                Ok((probe, took)) => {
                    self.due = Instant::now() + INTERVAL.max(took * REST);
                    if self.last.as_ref() != Some(&probe) {
                        return self.last.insert(probe).clone();
                    }
                }
                Err(err) => log::warn!("looking for the node's sockets and services: {err}"),
            }
        }
    }
}
