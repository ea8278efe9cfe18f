//! tcpdump, for filtered captures beside heavy traffic.

use anyhow::Result;
use std::time::Duration;
use testbed::{Netns, Running, wait_for};

const PATIENCE: Duration = Duration::from_secs(30);

/// A running tcpdump. It prints all headers of each packet, including those of a packet quoted by
/// an ICMP error.
#[derive(Debug)]
pub struct Tcpdump(Running);

impl Tcpdump {
    /// Starts a capture; packets are captured once this returns.
    pub fn start(ns: &Netns, device: &str, filter: &str) -> Result<Self> {
        let running = ns.spawn(&[
            "tcpdump",
            "-nnvvl",
            "--immediate-mode",
            "-i",
            device,
            filter,
        ])?;
        wait_for(PATIENCE, "tcpdump to listen", || {
            running.stderr().contains("listening on")
        })?;
        Ok(Self(running))
    }

    /// Returns the output so far.
    pub fn seen(&self) -> String {
        self.0.stdout()
    }

    /// Stops tcpdump and returns its whole output.
    pub fn finish(mut self) -> Result<String> {
        self.0.terminate(PATIENCE)?;
        Ok(self.0.stdout())
    }
}
