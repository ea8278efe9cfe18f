//! `--port-mode hash`: nobody can compute a pod's port on the wire.

use crate::common::clients::{Udp, from_port};
use crate::common::{Echo, clock, mappings};
use crate::site::{Site, Subject, end, ends};
use anyhow::{Context as _, Result, anyhow, ensure};
use netdp_common::abi::{PORT_RANGES, PortRange};
use netdp_common::port::{Search, class_of, nth_port, total};
use netdp_common::port_map::fold;
use netdp_common::tuple::{Tuple, proto};
use std::net::SocketAddr;
use std::time::Duration;
use testbed::wait_for;

/// Flows that are looked at in each family.
const FLOWS: u16 = 20;

/// How many may be as predicted by chance.
const CHANCE: usize = 1;

/// The ports that mappings never use, if nothing else is said.
const RESERVED: std::ops::RangeInclusive<u16> = 30_000..=32_767;

/// No secret.
const NONE: [u64; 2] = [0; 2];

/// What netdp's source, which everybody may read, says of a flow whose node has this secret.
fn predicted(secret: [u64; 2], pod: SocketAddr, to: SocketAddr) -> Option<u16> {
    let (src, dst) = (pod.ip().into(), to.ip().into());
    let tuple = Tuple::new(src, dst, pod.port(), to.port(), proto::UDP);
    let mut ranges = [PortRange::EMPTY; PORT_RANGES];
    ranges[0] = class_of(pod.port());
    let search = Search::new(total(&ranges), fold(tuple.keyed_hash(secret)));
    let ports = (0..search.len()).filter_map(|n| nth_port(&ranges, search.offset(n)));
    ports.into_iter().find(|port| !RESERVED.contains(port))
}

/// The port on the wire of each flow, and of how many it was predicted with this secret.
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
    // Who knows the secret does predict them: it is all that keeps others from it.
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
    // The mappings end, so that the ports are given anew.
    clock::advance(agent, Duration::from_secs(400))?;
    wait_for(Duration::from_secs(60), "the mappings to end", || {
        mappings(agent).is_ok_and(|left| left == 0)
    })?;
    agent.restart()?;
    let (after, _) = ports(&site, NONE)?;
    assert_eq!(before, after);
    Ok(())
}
