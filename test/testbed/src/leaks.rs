//! Packets that leave the node untranslated.

use super::bed::Bed;
use super::netns::Netns;
use super::process::wait_for;
use anyhow::{Context as _, Result};
use std::net::SocketAddr;
use std::time::Duration;

/// Timeout for the counter to count.
const PATIENCE: Duration = Duration::from_secs(60);

/// A counter of packets with a pod's source that reach the router of the first uplink from the node.
#[derive(Debug)]
pub struct Leaks {
    router: Netns,
}

impl Leaks {
    /// Starts counting, and proves that the counter works by a datagram to each target, which
    /// nothing translates yet. Answers of a pod's TCP server at `served`, to flows that began
    /// outside, do not count: they keep the pod's address.
    pub fn watch(bed: &Bed, targets: &[SocketAddr], served: Option<u16>) -> Result<Self> {
        let leaks = Self {
            router: bed.uplinks[0].router.clone(),
        };
        let mut rules = String::from(
            "add table inet watch; add counter inet watch leaks; \
             add chain inet watch from_node { type filter hook prerouting priority -300; };",
        );
        if let Some(port) = served {
            rules.push_str(&format!(
                " add rule inet watch from_node tcp sport {port} accept;"
            ));
        }
        for net in bed.pods.iter().flat_map(|pod| &pod.addresses) {
            let family = if net.addr().is_ipv4() { "ip" } else { "ip6" };
            let net = net.trunc();
            rules.push_str(&format!(
                " add rule inet watch from_node iifname lan {family} saddr {net} {family} daddr != {net} counter name leaks;"
            ));
        }
        leaks.router.run(&["nft", &rules])?;
        for to in targets {
            leaks.prove(bed, *to)?;
        }
        (leaks.router).run(&["nft", "reset counter inet watch leaks"])?;
        Ok(leaks)
    }

    /// Waits until a datagram of a pod is counted. No answer comes.
    fn prove(&self, bed: &Bed, to: SocketAddr) -> Result<()> {
        let before = self.count()?;
        let _ = bed.pods[0].enter(|| -> std::io::Result<()> {
            let any: SocketAddr = match to {
                SocketAddr::V4(_) => ([0, 0, 0, 0], 0).into(),
                SocketAddr::V6(_) => ([0u16; 8], 0).into(),
            };
            std::net::UdpSocket::bind(any)?.send_to(b"leak", to)?;
            Ok(())
        })?;
        wait_for(PATIENCE, "a leak to be counted", || {
            self.count().is_ok_and(|now| now > before)
        })
    }

    /// Returns the number of packets so far.
    pub fn count(&self) -> Result<u64> {
        let listing = self.router.run(&["nft", "list counter inet watch leaks"])?;
        let mut words = listing.split_whitespace();
        words.find(|word| *word == "packets");
        let count = words.next().context("no count")?;
        Ok(count.parse()?)
    }
}
