//! tcpdump, for captures with a filter beside heavy traffic.

use anyhow::Result;
use std::time::Duration;
use testbed::{Netns, Running, wait_for};

const PATIENCE: Duration = Duration::from_secs(30);

/// A running tcpdump. Each packet's headers are told in full, with those of the
/// packet in an ICMP error.
#[derive(Debug)]
pub struct Tcpdump(Running);

impl Tcpdump {
    /// Begins; what passes from now on is seen.
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

    /// What was seen so far.
    pub fn seen(&self) -> String {
        self.0.stdout()
    }

    /// Ends it and returns all that was seen.
    pub fn finish(mut self) -> Result<String> {
        self.0.terminate(PATIENCE)?;
        Ok(self.0.stdout())
    }
}
