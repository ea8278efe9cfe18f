//! `--port-mode hash`: a pod's external port cannot be predicted.

use crate::common::clients::{Udp, from_port};
use crate::common::{Echo, clock, mappings};
use crate::site::{Site, Subject, end, ends};
use anyhow::{Context as _, Result, anyhow, ensure};
use netdp_common::layout::{PORT_RANGES, PortRange, Tuple, proto};
use netdp_common::nat::ports::{Search, class_of, nth_port, total};
use netdp_common::packet::{keyed_hash, low32};
use std::net::SocketAddr;
use std::time::Duration;
use testbed::wait_for;

/// Number of flows per family.
const FLOWS: u16 = 20;

/// Maximum number of correct predictions by chance.
const CHANCE: usize = 1;

/// Ports that mappings never use by default.
const RESERVED: std::ops::RangeInclusive<u16> = 30_000..=32_767;

/// The absence of a secret.
const NONE: [u64; 2] = [0; 2];

/// Returns the port that netdp's public source code yields for a flow of a node with this secret.
fn predicted(secret: [u64; 2], pod: SocketAddr, to: SocketAddr) -> Option<u16> {
    let (src, dst) = (pod.ip().into(), to.ip().into());
    let tuple = Tuple::new(src, dst, pod.port(), to.port(), proto::UDP);
    let mut ranges = [PortRange::EMPTY; PORT_RANGES];
    ranges[0] = class_of(pod.port());
    let search = Search::new(total(&ranges), low32(keyed_hash(&tuple, secret)));
    let ports = (0..search.len()).filter_map(|n| nth_port(&ranges, search.offset(n)));
    ports.into_iter().find(|port| !RESERVED.contains(port))
}

/// Returns the external port of each flow, and the number of correct predictions with this secret.
fn ports(site: &Site, secret: [u64; 2]) -> Result<(Vec<u16>, usize)> {
    let (mut seen, mut known) = (Vec::new(), 0);
    for to in ends(&site.far, crate::common::ECHO) {
        for n in 0..FLOWS {
            let pod = end(site.good(), to.ip(), 20_000 + n * 701)?;
            let wire = Udp::connect(site.good(), from_port(pod.port(), to), to)?.ask()?;
            known += usize::from(predicted(secret, pod, to) == Some(wire.port()));
            seen.push(wire.port());
        }
    }
    Ok((seen, known))
}

fn hashing() -> Result<(Site, Echo)> {
    let site = Site::start(Subject::Netdp, &["--port-mode", "hash"])?;
    let echo = Echo::start(&site.far)?;
    Ok((site, echo))
}

#[test]
fn ports_that_follow_from_the_tuple_are_not_predictable() -> Result<()> {
    let (mut site, _echo) = hashing()?;
    let (seen, known) = ports(&site, NONE)?;
    ensure!(
        known <= CHANCE,
        "{known} of {} ports were predicted",
        seen.len()
    );
    // With the secret the prediction is correct: the secret is the only protection.
    let agent = site.agent().context("netdp is the subject")?;
    let secret = std::fs::read(agent.state_dir().join("secret"))?;
    let words = secret
        .chunks_exact(8)
        .map(|word| Ok(u64::from_le_bytes(word.try_into()?)));
    let words: Vec<u64> = words.collect::<Result<_>>()?;
    let secret = <[u64; 2]>::try_from(words).map_err(|words| anyhow!("a secret of {words:?}"))?;
    let (seen, known) = ports(&site, secret)?;
    ensure!(
        known + CHANCE >= seen.len(),
        "with the secret, {known} of {} ports were predicted",
        seen.len()
    );
    Ok(())
}

#[test]
fn two_nodes_give_one_tuple_different_ports() -> Result<()> {
    let (first, second) = (hashing()?, hashing()?);
    let (first, second) = (ports(&first.0, NONE)?.0, ports(&second.0, NONE)?.0);
    let same = first.iter().zip(&second).filter(|(a, b)| a == b).count();
    ensure!(
        same <= CHANCE,
        "{same} of {} ports are the same",
        first.len()
    );
    Ok(())
}

#[test]
fn a_tuple_keeps_its_port_over_restarts_of_the_agent() -> Result<()> {
    let (mut site, _echo) = hashing()?;
    let (before, _) = ports(&site, NONE)?;
    let agent = site.agent().context("netdp is the subject")?;
    // The mappings expire, so that ports are assigned again.
    clock::advance(agent, Duration::from_secs(400))?;
    wait_for(Duration::from_secs(60), "the mappings to end", || {
        mappings(agent).is_ok_and(|left| left == 0)
    })?;
    agent.restart()?;
    let (after, _) = ports(&site, NONE)?;
    assert_eq!(before, after);
    Ok(())
}
