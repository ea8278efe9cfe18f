//! 2.1: first packets that two CPUs process at the same time.

use crate::bed::{At, V4, node, pod, server};
use crate::build::udp;
use crate::driver::Wire;
use crate::packet::{End, Packet};
use crate::socket::{cpus, stay_on};
use anyhow::{Result, ensure};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Barrier;
use testbed::wait_for;

const PORTS: std::ops::Range<u16> = 4000..4300;

fn question(n: usize, port: u16) -> Packet {
    udp((pod(V4, n), port), (server(V4, 0), 53), &port.to_be_bytes())
}

/// Sends a first packet from each port on two CPUs at once, for the two pods; returns the sources
/// that the outside sees, by port.
fn race(w: &mut Wire, pods: [usize; 2]) -> Result<BTreeMap<u16, Vec<End>>> {
    let (barrier, cpus) = (Barrier::new(2), cpus()?);
    let wire = &*w;
    let send = &|racer: usize| -> Result<()> {
        stay_on(cpus[racer % cpus.len()])?;
        for port in PORTS {
            barrier.wait();
            wire.send(At::Pod(pods[racer]), &question(pods[racer], port))?;
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let racers = [0, 1].map(|racer| scope.spawn(move || send(racer)));
        racers.into_iter().try_for_each(|racer| match racer.join() {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    })?;
    let mut seen: BTreeMap<u16, Vec<End>> = BTreeMap::new();
    let mut count = 0;
    let what = "all datagrams of the race";
    wait_for(std::time::Duration::from_secs(30), what, || {
        let new = w.take_all(At::Uplink(0), |p| p.dst == server(V4, 0));
        for packet in new.unwrap_or_default() {
            count += 1;
            let port = crate::packet::word(&packet.body, 8);
            seen.entry(port)
                .or_default()
                .push((packet.src, packet.sport()));
        }
        count == 2 * PORTS.len()
    })?;
    Ok(seen)
}

pub fn r2_1b_two_first_packets_of_one_flow(w: &mut Wire) -> Result<()> {
    for (port, ends) in race(w, [0, 0])? {
        ensure!(
            ends[0].0 == node(V4, 0) && ends[0] == ends[1],
            "{port}: {ends:?}"
        );
        let back = udp((server(V4, 0), 53), ends[0], b"back");
        w.send(At::Uplink(0), &back)?;
        w.expect_exactly(At::Pod(0), &back.forwarded().to((pod(V4, 0), port)))?;
    }
    Ok(())
}

pub fn r2_1_two_pods_at_the_same_moment(w: &mut Wire) -> Result<()> {
    let mut all = BTreeSet::new();
    for (port, ends) in race(w, [0, 1])? {
        for end in ends {
            ensure!(
                end.0 == node(V4, 0) && all.insert(end),
                "{port}: {end:?} twice"
            );
        }
    }
    ensure!(all.len() == 2 * PORTS.len());
    Ok(())
}
