//! A hostile API server: random faults while the configuration changes.
//!
//! `cargo xtask soak MINUTES` runs it for longer.

use crate::cluster::{Cluster, EVERYTHING, wait_status};
use crate::common::clients::{Tcp, any};
use crate::common::{ECHO, mappings, status};
use crate::proxy::{Fault, Proxy};
use anyhow::{Context as _, Result, ensure};
use std::net::SocketAddr;
use std::time::{Duration, Instant};
use testbed::Agent;

const FAULTS: [Fault; 10] = [
    Fault::Slow,
    Fault::Cut,
    Fault::Silent,
    Fault::Status(403),
    Fault::Status(410),
    Fault::Status(500),
    Fault::Garbage,
    Fault::Gone,
    Fault::ShortWatches,
    Fault::EmptyLists,
];

/// Duration unless [`SECONDS`] is set.
const SHORT: Duration = Duration::from_secs(20);

/// Environment variable with another duration in seconds.
const SECONDS: &str = "NETDP_SOAK_SECONDS";

/// Returns a policy that is identified by its number and masquerades the neighbour, as all of them
/// do.
fn numbered(number: u64) -> String {
    format!("{EVERYTHING}- 192.0.2.{}/32\n", number % 250)
}

fn number_in_force(agent: &Agent) -> Result<Option<u64>> {
    let report = status(agent)?["report"].clone();
    let rules = report["config"]["rules"]
        .as_array()
        .context("no rules")?
        .clone();
    let mut numbers = rules.iter().filter_map(|rule| {
        let prefix = rule["prefix"].as_str()?;
        prefix
            .strip_prefix("192.0.2.")?
            .strip_suffix("/32")?
            .parse()
            .ok()
    });
    Ok(numbers.next())
}

#[test]
fn no_policy_is_wrong_and_no_flow_is_lost() -> Result<()> {
    let seconds = std::env::var(SECONDS)
        .ok()
        .map(|text| text.parse())
        .transpose()?;
    let lasts = seconds.map_or(SHORT, Duration::from_secs);
    let cluster = Cluster::start()?;
    cluster.configure(&numbered(0))?;
    let proxy = Proxy::start(&cluster.bed.node, &cluster.kubeconfig()?)?;
    let agent = Agent::start(
        &cluster.bed.node,
        cluster.options(&cluster.kubeconfig_of(&proxy)?),
    )?;
    let to: SocketAddr = (cluster.near.v4()?, ECHO).into();
    let mut flow = Tcp::connect(&cluster.bed.pods[0], any(to), to)?;
    let source = flow.ask()?;
    let (start, mut written, mut held, mut seed) = (Instant::now(), 0u64, 0u64, 1u64);
    let (mut rounds, mut told) = (0u32, Instant::now());
    while start.elapsed() < lasts {
        // An xorshift generator: the same sequence of faults in every run.
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        let fault = FAULTS[usize::try_from(seed % 10)?];
        // Every third round has no fault.
        proxy.set(if rounds % 3 == 2 { Fault::None } else { fault });
        if seed % 2 == 0 {
            written += 1;
            cluster.configure(&numbered(written))?;
        }
        let until = Instant::now() + Duration::from_millis(200 + seed % 1500);
        while Instant::now() < until {
            let now =
                number_in_force(&agent)?.context("none of the written policies is in force")?;
            // The policy in force must be one that was written, and must never go backwards.
            ensure!(
                now >= held && now <= written,
                "{now} after {held}, {written} written: {fault:?}"
            );
            held = now;
            ensure!(
                cluster.is_masqueraded()?,
                "{fault:?}: another policy is in force"
            );
            ensure!(flow.ask()? == source, "{fault:?}: the flow has moved");
        }
        rounds += 1;
        if told.elapsed() > Duration::from_secs(30) {
            told = Instant::now();
            eprintln!(
                "{rounds} faults, {written} edits in {} s",
                start.elapsed().as_secs()
            );
        }
        // The numbers wrap around long before they would be ambiguous.
        ensure!(written < 250 || held > 0, "nothing was ever heard");
        if written >= 249 {
            proxy.set(Fault::None);
            wait_status(&agent, "the last edit", |report| {
                report.to_string().contains("192.0.2.249/32")
            })?;
            (written, held) = (0, 0);
            cluster.configure(&numbered(0))?;
            wait_status(&agent, "the first number", |report| {
                report.to_string().contains("192.0.2.0/32")
            })?;
        }
    }
    proxy.set(Fault::None);
    let last = format!("\"192.0.2.{written}/32\"");
    wait_status(&agent, "the last edit", |report| {
        report["api"] == "followed" && report.to_string().contains(&last)
    })?;
    cluster.wait_probe(&agent, "200", "ok")?;
    ensure!(flow.ask()? == source, "the flow has moved");
    ensure!(mappings(&agent)? >= 1, "the flow has no mapping");
    eprintln!(
        "{rounds} faults, {written} edits, {:?}: no wrong policy, the flow lives",
        start.elapsed()
    );
    Ok(())
}
