//! Ends of mappings, whoever ends them; and what the agent itself sends, which is not shown.

use super::listeners::counted;
use super::{Monitor, far, total};
use crate::common::clients::{Udp, any, from_port};
use crate::common::{Echo, SOON, World, clock, flows};
use anyhow::{Context as _, Result, ensure};
use aya::maps::{Map, MapData, PerCpuArray};
use netdp_common::layout::pins;
use netdp_user::datapath::Maps;
use nix::sys::signal::Signal;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::net::UdpSocket;
use std::ops::Range;
use std::time::Duration;
use testbed::{Agent, WorkDir, wait_for};

/// The only port of the node.
const ONE_PORT: [&str; 3] = ["--enable-ipv6", "--to-ports", "40000-40000"];

/// Lets pods take the only port from each other, which programs end, and the last mapping time out, which the
/// sweep ends. Returns the number of mappings.
fn end_by_programs_and_the_sweep(world: &World) -> Result<u64> {
    let to = far(world)?;
    let mappings = 10;
    for number in 0..mappings {
        let port = 41_000 + number;
        let pod = world.pod(usize::from(number % 2));
        let socket = pod.open(|| UdpSocket::bind(from_port(port, to)))?;
        // Nobody answers. What was not answered for a while gives way.
        clock::advance(&world.agent, Duration::from_secs(60))?;
        wait_for(SOON, &format!("mapping {number} to begin"), || {
            socket.send_to(b"x", (to.ip(), 9)).ok();
            let flows = flows(&world.agent).unwrap_or_default();
            flows.len() == 1 && flows[0]["source_id"] == port
        })?;
    }
    clock::advance(&world.agent, Duration::from_secs(1000))?;
    wait_for(SOON, "the last to end", || {
        flows(&world.agent).is_ok_and(|live| live.is_empty())
    })?;
    Ok(mappings.into())
}

/// Returns the ends by their reason; each has to be of another mapping.
fn ends(lines: &[Value]) -> Result<BTreeMap<String, u64>> {
    let mut by_reason = BTreeMap::new();
    let mut seen = BTreeSet::new();
    for end in lines.iter().filter(|it| it["event"] == "end") {
        let of = ["source", "source_id", "destination_id"].map(|it| end[it].to_string());
        ensure!(seen.insert(of), "twice: {end}");
        let why = end["why"].as_str().context("no reason")?;
        *by_reason.entry(why.to_owned()).or_default() += 1;
    }
    Ok(by_reason)
}

#[test]
fn each_mapping_ends_once_with_and_without_a_log() -> Result<()> {
    let dir = WorkDir::new("ends")?;
    let log = dir.path().join("nat.log").display().to_string();
    for more in [&[][..], &["--nat-log", &log]] {
        let world = World::with(crate::common::POLICY, &[&ONE_PORT[..], more].concat())?;
        let monitor = Monitor::start(&world.agent, &["-o", "jsonl", "--kind", "end"])?;
        let began = end_by_programs_and_the_sweep(&world)?;
        wait_for(SOON, "all ends", || {
            let ends = monitor.lines().len() as u64;
            ends >= began
        })?;
        let lines = monitor.end()?;
        let expected = [("room".to_owned(), began - 1), ("timeout".to_owned(), 1)];
        assert_eq!(ends(&lines)?, BTreeMap::from(expected), "{more:?}");
        assert_eq!(total(&lines, "end", "shown")?, began);
        assert_eq!(total(&lines, "end", "seen")?, began);
    }
    Ok(())
}

/// Returns the number of programs' ends for which there was no room to report them.
fn unreported(agent: &Agent) -> Result<u64> {
    let map = MapData::from_pin(agent.bpffs().join(pins::ENDED_LOST))?;
    let map: PerCpuArray<_, u64> = Map::PerCpuArray(map).try_into()?;
    Ok(map.get(&0, 0)?.iter().sum())
}

#[test]
fn every_end_of_a_flood_is_shown_or_counted_as_lost() -> Result<()> {
    let world = World::with(
        crate::common::POLICY,
        &["--enable-ipv6", "--max-flows", "1024"],
    )?;
    let monitor = Monitor::start(&world.agent, &["-o", "jsonl", "--kind", "end"])?;
    let to = far(&world)?;
    let socket = world.pod(0).open(|| UdpSocket::bind(any(to)))?;
    // Nobody answers: once the pod has its share of the tables, each new flow takes the place of another.
    let send =
        |ports: Range<u16>| ports.for_each(|port| drop(socket.send_to(b"x", (to.ip(), port))));
    send(1000..3000);
    wait_for(SOON, "the first ends", || !monitor.lines().is_empty())?;
    // The agent takes no reports, until there is no room for more.
    world.agent.signal(Signal::SIGSTOP)?;
    let mut first = 3000;
    let flooded = wait_for(SOON, "reports to be lost", || {
        send(first..first + 2000);
        first += 2000;
        unreported(&world.agent).is_ok_and(|lost| lost > 0)
    });
    world.agent.signal(Signal::SIGCONT)?;
    flooded?;
    send(60_000..61_000);
    let lines = monitor.end()?;
    let created = Maps::open(&world.agent.bpffs())?
        .counters()?
        .mappings_created;
    let ended = created - flows(&world.agent)?.len() as u64;
    let part = |field| total(&lines, "end", field);
    assert_eq!(part("seen")?, ended);
    assert_eq!(part("shown")? + part("full")?, ended);
    let lost = unreported(&world.agent)?;
    ensure!(
        part("full")? >= lost && lost > 0,
        "{lost}: {:?}",
        lines.last()
    );
    let by_reason = ends(&lines)?;
    // A sweep may end some meanwhile on a slow machine.
    let of = |reason| by_reason.get(reason).copied().unwrap_or(0);
    let (room, timeout) = (of("room"), of("timeout"));
    ensure!(room > 0, "{by_reason:?}");
    assert_eq!(room + timeout, part("shown")?, "{by_reason:?}");
    Ok(())
}

#[test]
fn what_the_agent_sends_to_check_itself_is_not_shown() -> Result<()> {
    let arguments = ["--enable-ipv6", "--http-listen", "127.0.0.1:10270"];
    let mut world = World::with(crate::common::POLICY, &arguments)?;
    let _echo = Echo::start(&world.far)?;
    let monitor = Monitor::start(&world.agent, &["-o", "jsonl"])?;
    // It checks itself after each new configuration.
    for network in 1..4 {
        let policy = format!("{}- 192.168.{network}.0/24\n", crate::common::POLICY);
        world.config.write(&policy)?;
        wait_for(SOON, "the configuration and a check", || {
            let lines = monitor.lines();
            let configs = lines.iter().filter(|it| it["event"] == "config").count();
            configs == network && counted(&world.agent).is_ok_and(|it| it.seen >= network as u64)
        })?;
    }
    let to = far(&world)?;
    Udp::connect(world.pod(0), any(to), to)?.ask()?;
    monitor.wait("a begin", |it| it["event"] == "begin")?;
    let url = "http://127.0.0.1:10270/metrics";
    let curl = ["curl", "-sS", "-m", "10", "--fail", url];
    let counted = "\nnetdp_events_total{kind=\"begin\"} 1\n";
    wait_for(SOON, "the metric to have that one", || {
        let metrics = world.bed.node.run(&curl);
        metrics.is_ok_and(|metrics| metrics.contains(counted))
    })?;
    let lines = monitor.end()?;
    assert_eq!(total(&lines, "begin", "seen")?, 1, "{lines:?}");
    for kind in ["end", "refused", "drop"] {
        assert_eq!(total(&lines, kind, "seen")?, 0, "{lines:?}");
    }
    Ok(())
}
