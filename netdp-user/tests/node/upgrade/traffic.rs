//! Traffic of all kinds during an upgrade.

use crate::common::clients::{Tcp, any};
use crate::common::transfer::Transfer;
use crate::common::{ECHO, Echo, echoes};
use anyhow::{Context as _, Result, ensure};
use std::net::{IpAddr, SocketAddr};
use testbed::migration::Load;
use testbed::{Bed, Host, Leaks, Pings};

/// Payload of pings that leave and return in fragments, in bytes.
const FRAGMENTED: u16 = 4000;

/// Connections, pings, fragments and flows from outside, all IPv4 and IPv6.
pub struct Traffic {
    load: Load,
    /// Streams of which each byte is compared.
    streams: Vec<Transfer>,
    fragments: Pings,
    /// Connections from outside to a pod's server, and the source that it saw first.
    inbound: Vec<(Tcp, SocketAddr)>,
    leaks: Leaks,
    _servers: [Echo; 2],
}

/// Counts packets with a pod's address on the uplink. To be called while nothing translates.
pub fn watch(bed: &Bed, far: &Host) -> Result<Leaks> {
    Leaks::watch(bed, &echoes(far), Some(ECHO))
}

impl Traffic {
    /// Starts the traffic between the pods and `far`.
    pub fn start(bed: &Bed, far: &Host, leaks: Leaks) -> Result<Self> {
        let uplink = &bed.uplinks[0];
        let pod = &bed.pods[1];
        for (network, via) in pod.addresses.iter().zip(&uplink.addresses) {
            uplink.router.route(network.trunc(), via.addr())?;
        }
        let servers = [Echo::start(far)?, Echo::start(pod)?];
        let mut fragments = Pings::default();
        let mut streams = Vec::new();
        for to in &far.addresses {
            fragments.start_sized(&bed.pods[0], to.addr(), "0.05", FRAGMENTED)?;
            streams.push(Transfer::start(&bed.pods[0], far, to.addr())?);
        }
        let mut inbound = Vec::new();
        for to in echoes(pod) {
            let mut client = Tcp::connect(far, any(to), to)?;
            let source = client.ask()?;
            inbound.push((client, source));
        }
        let node: Vec<IpAddr> = uplink.addresses.iter().map(|net| net.addr()).collect();
        Ok(Self {
            load: Load::start(&bed.pods, &echoes(far), &node)?,
            streams,
            fragments,
            inbound,
            leaks,
            _servers: servers,
        })
    }

    /// Checks that all kinds of traffic go on, idle connections included, and that nothing leaked.
    pub fn goes_on(&mut self, after: &str) -> Result<()> {
        self.check().with_context(|| format!("after {after}"))
    }

    fn check(&mut self) -> Result<()> {
        self.load.step()?;
        self.streams.iter().try_for_each(Transfer::goes_on)?;
        for (client, source) in &mut self.inbound {
            let now = client.ask().context("a flow from outside")?;
            ensure!(
                now == *source,
                "a flow from outside, {source}, is now {now}"
            );
        }
        let (_, lost) = self.load.tally().connections();
        ensure!(lost == 0, "{}", self.load.tally());
        let leaks = self.leaks.count()?;
        ensure!(leaks == 0, "{leaks} packets left with a pod's address");
        Ok(())
    }

    /// Ends the traffic. Every exchange must have been answered.
    pub fn finish(mut self) -> Result<()> {
        self.check().context("at the end")?;
        self.streams.into_iter().try_for_each(Transfer::finish)?;
        for ping in self.fragments.end()? {
            ensure!(ping.alive && ping.lost == 0, "in fragments: {ping:?}");
        }
        let tally = self.load.end()?;
        let (opened, lost) = tally.connections();
        ensure!(opened > 0 && lost == 0, "{tally}");
        let unanswered = tally.unanswered();
        ensure!(
            unanswered == 0,
            "{unanswered} pings and datagrams were not answered\n{tally}"
        );
        let leaks = self.leaks.count()?;
        ensure!(leaks == 0, "{leaks} packets left with a pod's address");
        Ok(())
    }
}
