//! TCP and UDP throughput, measured with iperf3.

use super::bed::Bed;
use anyhow::{Context as _, Result};
use std::fs;
use std::time::Duration;
use testbed::Running;

const PORT: u16 = 5201;
/// The server's primary address: with another one, iperf3 would answer UDP from this. No CIDR of
/// any policy covers it.
const TARGET: &str = "10.1.0.20";

/// Transport protocol of a transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    Tcp,
    Udp,
}

impl Protocol {
    pub const fn name(self) -> &'static str {
        match self {
            Self::Tcp => "TCP",
            Self::Udp => "UDP",
        }
    }
}

/// Result of one transfer.
pub struct Run {
    pub gigabits: f64,
    /// CPU seconds of the whole machine per received gigabyte.
    pub cpu_per_gigabyte: f64,
}

pub fn serve(bed: &Bed) -> Result<Running> {
    let port = PORT.to_string();
    let server = bed.server.spawn(&["iperf3", "-s", "-p", &port])?;
    bed.server.wait_listening(PORT)?;
    Ok(server)
}

pub fn run(bed: &Bed, protocol: Protocol, slice: Duration) -> Result<Run> {
    let seconds = slice.as_secs().max(1).to_string();
    let port = PORT.to_string();
    let mut argv = vec!["iperf3", "-c", TARGET, "-p", &port, "-t", &seconds, "-J"];
    if protocol == Protocol::Udp {
        argv.extend(["-u", "-b", "0", "-l", "1400"]);
    }
    let before = busy()?;
    let text = bed.client.run(&argv)?;
    let cpu = busy()? - before;
    let report: serde_json::Value = serde_json::from_str(&text).context("iperf3's report")?;
    let end = &report["end"];
    // For UDP, the received amount is in a sum of its own.
    let sum = match protocol {
        Protocol::Tcp => &end["sum_received"],
        Protocol::Udp => &end["sum"],
    };
    let rate = sum["bits_per_second"].as_f64().context("no rate")?;
    let lost = sum["lost_percent"].as_f64().unwrap_or(0.0) / 100.0;
    let bytes = sum["bytes"].as_f64().context("no byte count")? * (1.0 - lost);
    Ok(Run {
        gigabits: rate * (1.0 - lost) / 1e9,
        cpu_per_gigabyte: cpu / (bytes / 1e9),
    })
}

/// Returns the total busy time of the machine's CPUs so far, in seconds.
fn busy() -> Result<f64> {
    /// `USER_HZ`, the unit of `/proc/stat` on every current architecture.
    const TICKS: f64 = 100.0;
    let stat = fs::read_to_string("/proc/stat")?;
    let first = stat.lines().next().context("/proc/stat is empty")?;
    let fields: Vec<f64> = first
        .split_whitespace()
        .skip(1)
        .filter_map(|field| field.parse().ok())
        .collect();
    // user nice system idle iowait irq softirq
    let busy = [0, 1, 2, 5, 6]
        .iter()
        .filter_map(|n| fields.get(*n))
        .sum::<f64>();
    Ok(busy / TICKS)
}
