//! Listeners: slow ones, killed ones, those without an agent, and strangers at the socket.

use super::{Monitor, RST, Stray, far, total};
use crate::common::{SOON, World, drops, refused, status};
use anyhow::{Result, ensure};
use netdp_common::layout::{EventCount, Settings, pins};
use nix::sys::signal::Signal;
use serde_json::Value;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use testbed::{Agent, Running, wait_for};

fn settings(agent: &Agent) -> Result<Settings> {
    let map = aya::maps::MapData::from_pin(agent.bpffs().join(pins::SETTINGS))?;
    let map: aya::maps::Array<_, Settings> = aya::maps::Map::Array(map).try_into()?;
    Ok(map.get(&0, 0)?)
}

/// Returns what the programs have counted of all kinds.
pub(super) fn counted(agent: &Agent) -> Result<EventCount> {
    let map = aya::maps::MapData::from_pin(agent.bpffs().join(pins::EVENT_COUNTS))?;
    let map: aya::maps::PerCpuArray<_, EventCount> = aya::maps::Map::PerCpuArray(map).try_into()?;
    let mut sum = EventCount::default();
    for kind in 0..netdp_common::layout::EVENT_KINDS {
        for cpu in map.get(&kind, 0)?.iter() {
            sum.seen += cpu.seen;
            sum.limited += cpu.limited;
            sum.full += cpu.full;
        }
    }
    Ok(sum)
}

/// Packets of the flood.
const FLOOD: u64 = 100_000;

#[test]
fn every_event_of_a_flood_is_shown_or_counted_as_lost() -> Result<()> {
    let world = World::start()?;
    let to = far(&world)?;
    let arguments = ["-o", "jsonl", "--kind", "drop,refused", "--rate", "2000"];
    let quick = Monitor::start(&world.agent, &arguments)?;
    let slow = Monitor::start(&world.agent, &arguments)?;
    let stray = Stray::new(world.pod(0), to.ip())?;
    let before = (
        drops(&world.agent, "tcp_no_flow")?,
        counted(&world.agent)?.seen,
    );
    let flood = |what: &str, is_enough: &dyn Fn(&EventCount) -> bool| -> Result<()> {
        wait_for(SOON, what, || {
            for port in 2000..4000 {
                stray.send(port, RST).ok();
            }
            counted(&world.agent).is_ok_and(|now| is_enough(&now))
        })
    };
    // One does not read, until the agent's queue for it and the socket are full; then the agent does
    // not, until the ring buffer is.
    slow.0.signal(Signal::SIGSTOP)?;
    let begin = before.1;
    flood("a flood", &|now| {
        let reported = now.seen - now.limited - now.full;
        now.seen - begin >= FLOOD && reported >= 12_000 && now.limited > 0
    })?;
    world.agent.signal(Signal::SIGSTOP)?;
    let stopped = flood("a full buffer", &|now| now.full > 0);
    world.agent.signal(Signal::SIGCONT)?;
    stopped?;
    slow.0.signal(Signal::SIGCONT)?;
    let dropped = drops(&world.agent, "tcp_no_flow")? - before.0;
    ensure!(dropped >= FLOOD, "{dropped}");
    let after = counted(&world.agent)?;
    assert_eq!(
        after.seen - before.1,
        dropped,
        "the programs have seen what they dropped"
    );
    let (quick, slow) = (quick.end()?, slow.end()?);
    for (lines, who) in [(&quick, "quick"), (&slow, "slow")] {
        let part = |field| total(lines, "drop", field);
        let parts = [
            part("shown")?,
            part("limited")?,
            part("full")?,
            part("reader")?,
        ];
        assert_eq!(parts.iter().sum::<u64>(), dropped, "{who}: {parts:?}");
        assert_eq!(part("seen")?, dropped, "{who}");
        ensure!(
            parts[0] > 0 && parts[1] > 0 && parts[2] > 0,
            "{who}: {parts:?}"
        );
        // The lines tell of the same numbers as the sums.
        let drops = lines.iter().filter(|it| it["event"] == "drop");
        let shown = drops.filter_map(|it| it["count"].as_u64()).sum::<u64>();
        let lost = lines.iter().filter(|it| it["event"] == "lost");
        let lost = lost.filter_map(|it| it["lost"].as_array()).flatten();
        let lost: u64 = lost
            .flat_map(|it| ["limited", "full", "reader"].map(|cause| it[cause].as_u64()))
            .flatten()
            .sum();
        assert_eq!((shown, lost), (parts[0], parts[1..].iter().sum()), "{who}");
    }
    ensure!(
        total(&slow, "drop", "reader")? > 0,
        "the slow one took everything"
    );
    assert_eq!(after.limited, total(&quick, "drop", "limited")?);
    assert_eq!(after.full, total(&quick, "drop", "full")?);
    wait_for(SOON, "the programs to report nothing", || {
        settings(&world.agent).is_ok_and(|settings| settings.events == 0)
    })?;
    stray.send(5000, RST)?;
    assert_eq!(counted(&world.agent)?.seen, after.seen, "nobody listens");
    Ok(())
}

#[test]
fn without_an_agent_the_ring_buffer_is_read_until_one_starts() -> Result<()> {
    let mut world = World::start()?;
    let to = far(&world)?;
    let before = Monitor::start(&world.agent, &["-o", "jsonl", "--kind", "drop"])?;
    world.agent.kill9()?;
    // The one that has lost its agent goes on by itself.
    let wait_direct = |running: &Running| {
        wait_for(SOON, "the monitor to read by itself", || {
            running.stderr().contains("no agent runs")
        })
    };
    wait_direct(&before.0)?;
    let stray = Stray::new(world.pod(0), to.ip())?;
    stray.send(5000, RST)?;
    let drop = before.wait("a drop", |it| it["event"] == "drop")?;
    assert_eq!(drop["id"], Value::Null, "nobody remembers it");
    let second = refused(world.agent.command(&["monitor"]))?;
    let named = format!("process {} reads the programs' events", before.0.pid());
    ensure!(second.contains(&named), "{second}");
    world.agent.restart()?;
    wait_for(SOON, "the monitor to listen to the agent", || {
        before.0.stderr().contains("an agent has started")
            && settings(&world.agent).is_ok_and(|settings| settings.events != 0)
    })?;
    stray.send(5000, RST)?;
    before.wait("a drop with a number", |it| it["id"].is_string())?;
    before.end()?;
    Ok(())
}

#[test]
fn the_bits_of_a_killed_monitor_are_cleared_by_the_next_agent() -> Result<()> {
    let mut world = World::start()?;
    world.agent.kill9()?;
    let mut monitor = Monitor::start(&world.agent, &["--kind", "begin"])?;
    ensure!(settings(&world.agent)?.events != 0, "nothing is reported");
    monitor.0.kill9()?;
    ensure!(settings(&world.agent)?.events != 0, "who cleared them?");
    world.agent.restart()?;
    assert_eq!(settings(&world.agent)?.events, 0);
    Ok(())
}

#[test]
fn the_socket_is_private_and_takes_no_nonsense() -> Result<()> {
    let world = World::start()?;
    let path = world.agent.state_dir().join("events.sock");
    let mode = std::fs::symlink_metadata(&path)?.permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let ask = |request: &[u8]| -> Result<String> {
        let mut stream = UnixStream::connect(&path)?;
        stream.set_read_timeout(Some(SOON))?;
        stream.write_all(request)?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line)?;
        Ok(line)
    };
    for nonsense in [
        &b"GET / HTTP/1.1\n"[..],
        b"{\"listen\":{}}\n",
        b"\xff\xff\n",
        &[b'x'; 8192],
    ] {
        let told = ask(nonsense)?;
        ensure!(told.starts_with("{\"error\":") || told.is_empty(), "{told}");
    }
    // The most listeners, which do not even read; one more is refused.
    let request = b"{\"listen\":{\"kinds\":[\"config\"],\"rate\":0}}\n";
    let mut silent = Vec::new();
    for _ in 0..32 {
        let mut stream = UnixStream::connect(&path)?;
        stream.write_all(request)?;
        let mut first = [0; 12];
        stream.read_exact(&mut first)?;
        ensure!(&first == b"{\"listening\"", "{first:?}");
        silent.push(stream);
    }
    let told = ask(request)?;
    ensure!(told.contains("32 listen already"), "{told}");
    drop(silent);
    wait_for(SOON, "a listener to be let in", || {
        ask(request).is_ok_and(|told| told.starts_with("{\"listening\""))
    })?;
    status(&world.agent)?;
    Ok(())
}
