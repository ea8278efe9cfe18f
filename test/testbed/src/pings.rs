//! Continuous pings.

use super::netns::Netns;
use super::process::{Running, wait_for};
use anyhow::{Context as _, Result};
use nix::sys::signal::Signal;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::time::Duration;

/// Timeout for one more answer, and for the exit of a ping. Waited out only if answers have
/// stopped.
const PATIENCE: Duration = Duration::from_secs(15);

/// Payload of a ping by default, in bytes.
const PAYLOAD: u16 = 56;

/// A set of pings, each to one target.
#[derive(Debug, Default)]
pub struct Pings(Vec<Running>);

/// Result of a ping.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pinged {
    /// Number of answered requests.
    pub answered: usize,
    /// Requests without an answer that a later, answered request followed. Requests in flight at
    /// the end do not count.
    pub lost: usize,
    /// An answer came after the end was requested.
    pub alive: bool,
}

impl Pings {
    /// Starts another ping; `interval` is in seconds, for example `0.02`.
    pub fn start(&mut self, from: &Netns, to: IpAddr, interval: &str) -> Result<()> {
        self.start_sized(from, to, interval, PAYLOAD)
    }

    /// Starts another ping with so many bytes of payload; more than the path MTU makes fragments.
    pub fn start_sized(
        &mut self,
        from: &Netns,
        to: IpAddr,
        interval: &str,
        payload: u16,
    ) -> Result<()> {
        let (to, payload) = (to.to_string(), payload.to_string());
        let argv = ["ping", "-n", "-i", interval, "-s", &payload, &to];
        self.0.push(from.spawn(&argv)?);
        Ok(())
    }

    /// Waits for one more answer to each ping, then ends them.
    pub fn end(self) -> Result<Vec<Pinged>> {
        let last = |ping: &Running| answers(&ping.stdout()).last().copied();
        let before: Vec<_> = self.0.iter().map(last).collect();
        let go_on = || self.0.iter().zip(&before).all(|(ping, b)| last(ping) > *b);
        // The pings without a further answer are identified below.
        let _ = wait_for(PATIENCE, "one more answer to each ping", go_on);
        let alive: Vec<_> = self
            .0
            .iter()
            .zip(&before)
            .map(|(ping, b)| last(ping) > *b)
            .collect();
        let pings = self.0.into_iter().zip(alive);
        pings.map(|(ping, alive)| end(ping, alive)).collect()
    }
}

fn end(ping: Running, alive: bool) -> Result<Pinged> {
    ping.signal(Signal::SIGINT)?;
    let mut ping = ping;
    // ping exits with an error if nothing was answered.
    ping.wait(PATIENCE)?;
    let answers = answers(&ping.stdout());
    let sent_until = answers.last().copied().unwrap_or_default();
    let missing = sent_until.checked_sub(answers.len());
    Ok(Pinged {
        answered: answers.len(),
        lost: missing.with_context(|| format!("answers to nothing:{}", ping.written()))?,
        alive,
    })
}

/// Returns the sequence numbers of the answered requests; the first is 1.
fn answers(told: &str) -> BTreeSet<usize> {
    let lines = told.lines().filter(|line| line.contains(" bytes from "));
    let number = |line: &str| {
        line.split_once("icmp_seq=")?
            .1
            .split(' ')
            .next()?
            .parse()
            .ok()
    };
    lines.filter_map(number).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_answers_count_each_once() {
        let told = "PING 10.2.0.1 (10.2.0.1) 56(84) bytes of data.\n\
                    64 bytes from 10.2.0.1: icmp_seq=1 ttl=63 time=0.08 ms\n\
                    64 bytes from 10.2.0.1: icmp_seq=1 ttl=63 time=0.09 ms (DUP!)\n\
                    From 10.1.255.254 icmp_seq=2 Destination Host Unreachable\n\
                    64 bytes from 10.2.0.1: icmp_seq=4 ttl=63 time=0.08 ms\n";
        assert_eq!(answers(told), BTreeSet::from([1, 4]));
    }
}
