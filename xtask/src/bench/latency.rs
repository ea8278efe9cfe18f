//! Latency under load, measured with sockperf.

use super::bed::Bed;
use anyhow::{Context as _, Result};
use std::time::Duration;
use testbed::{Running, wait_for};

const TARGET: &str = "198.18.0.1";
const PORT: &str = "11111";
/// Messages per second, each of which is answered.
const LOAD: &str = "10000";

/// Percentile of the first row, and those of the others.
pub const FIRST: &str = "50";
pub const PERCENTILES: [&str; 2] = ["99", "99.9"];

pub struct Found {
    pub first: f64,
    pub others: Vec<f64>,
}

pub fn serve(bed: &Bed) -> Result<Running> {
    let server = bed
        .server
        .spawn(&["sockperf", "server", "-i", TARGET, "-p", PORT])?;
    wait_for(Duration::from_secs(10), "sockperf's server", || {
        bed.server
            .run(&["ss", "-Hlun", "sport = :11111"])
            .is_ok_and(|out| !out.is_empty())
    })?;
    Ok(server)
}

pub fn run(bed: &Bed, slice: Duration) -> Result<Found> {
    let seconds = slice.as_secs().max(1).to_string();
    let text = bed.client.run(&[
        "sockperf",
        "under-load",
        "-i",
        TARGET,
        "-p",
        PORT,
        "-t",
        &seconds,
        "--mps",
        LOAD,
        "--reply-every",
        "1",
    ])?;
    let find = |wanted: &str| {
        percentile(&text, wanted).with_context(|| format!("no percentile {wanted} in:\n{text}"))
    };
    Ok(Found {
        first: find(FIRST)?,
        others: PERCENTILES.map(find).into_iter().collect::<Result<_>>()?,
    })
}

/// Parses a percentile from lines such as `sockperf: ---> percentile 99.900 =   36.120`.
fn percentile(text: &str, wanted: &str) -> Option<f64> {
    let wanted: f64 = wanted.parse().ok()?;
    text.lines().find_map(|line| {
        let (at, value) = line.split_once("percentile ")?.1.split_once('=')?;
        let at: f64 = at.trim().parse().ok()?;
        ((at - wanted).abs() < 1e-6).then(|| value.trim().parse().ok())?
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn percentiles_are_found() {
        let text = "sockperf: ---> percentile 99.900 =   36.120\nsockperf: ---> percentile 50.000 =    7.5\n";
        assert_eq!(super::percentile(text, "50"), Some(7.5));
        assert_eq!(super::percentile(text, "99.9"), Some(36.12));
        assert_eq!(super::percentile(text, "99"), None);
    }
}
