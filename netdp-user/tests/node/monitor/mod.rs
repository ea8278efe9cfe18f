//! `netdp monitor`: what it shows, and that nothing is missing from its sums.

mod ends;
mod lines;
mod listeners;

use crate::common::{SOON, World, echoes};
use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;
use socket2::{Domain, Protocol, Socket, Type};
use std::net::{IpAddr, SocketAddr};
use testbed::{Agent, Host, Running, wait_for};

/// A running `netdp monitor`.
struct Monitor(Running);

impl Monitor {
    /// Starts the command, and waits until it listens.
    fn start(agent: &Agent, arguments: &[&str]) -> Result<Self> {
        let mut all = vec!["monitor"];
        all.extend(arguments);
        let running = Running::start(agent.command(&all))?;
        wait_for(SOON, "the monitor to listen", || {
            running.stderr().contains("netdp: listening")
        })
        .with_context(|| running.written())?;
        Ok(Self(running))
    }

    /// Returns the lines of JSON so far.
    fn lines(&self) -> Vec<Value> {
        let text = self.0.stdout();
        let lines = text.lines().map(serde_json::from_str);
        lines.filter_map(Result::ok).collect()
    }

    /// Waits for an event.
    fn wait(&self, what: &str, is_it: impl Fn(&Value) -> bool) -> Result<Value> {
        let mut found = None;
        wait_for(SOON, what, || {
            found = self.lines().into_iter().find(|line| is_it(line));
            found.is_some()
        })
        .with_context(|| self.0.written())?;
        found.context("just found")
    }

    /// Ends it, and returns all its lines.
    fn end(mut self) -> Result<Vec<Value>> {
        self.0.signal(Signal::SIGINT)?;
        let status = self.0.wait(SOON)?;
        ensure!(status.success(), "{status}: {}", self.0.written());
        Ok(self.lines())
    }
}

/// Returns a field of the sums of a kind in the summary; 0 if there was none.
fn total(lines: &[Value], kind: &str, field: &str) -> Result<u64> {
    let summary = lines.last().context("no summary")?;
    ensure!(summary["event"] == "summary", "{summary}");
    let totals = summary["totals"].as_array().context("no totals")?;
    let of_kind = totals.iter().find(|it| it["kind"] == kind);
    Ok(of_kind.and_then(|it| it[field].as_u64()).unwrap_or(0))
}

/// Sends TCP segments with a flag from a pod, past its own stack: they belong to no mapping.
struct Stray {
    socket: Socket,
    to: SocketAddr,
}

impl Stray {
    fn new(pod: &Host, to: IpAddr) -> Result<Self> {
        let kind = Type::RAW;
        let socket = pod.open(|| {
            Socket::new(
                Domain::for_address((to, 0).into()),
                kind,
                Some(Protocol::TCP),
            )
        })?;
        let to = SocketAddr::new(to, 0);
        Ok(Self { socket, to })
    }

    /// Sends a segment from a port; `RST` is 4.
    fn send(&self, port: u16, flags: u8) -> Result<()> {
        let mut segment = port.to_be_bytes().to_vec();
        segment.extend([
            1, 0xbb, 0, 0, 0, 9, 0, 0, 0, 0, 0x50, flags, 1, 0, 0, 0, 0, 0,
        ]);
        self.socket.send_to(&segment, &self.to.into())?;
        Ok(())
    }
}

const RST: u8 = 4;

/// Returns the IPv4 endpoint of the far echo server.
fn far(world: &World) -> Result<SocketAddr> {
    let all = echoes(&world.far);
    all.into_iter().find(SocketAddr::is_ipv4).context("no IPv4")
}
