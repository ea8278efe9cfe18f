//! The log under faults: the agent is killed again and again. In the first half of that it writes a file, and
//! the disk is full for a while; in the second half it writes to a collector, which goes and comes. Every mapping
//! has to be in the log or in a gap, and `netdp who` has to be right or say that it can't tell.
//!
//! `NETDP_NAT_LOG_KILLS=50 NETDP_NAT_LOG_ASKS=1000` is the long run, of 100,000 mappings.

use super::collector::Collector;
use super::{cache, records, who};
use crate::common::{POLICY, SOON, World};
use anyhow::{Context as _, Result, ensure};
use aya::maps::{HashMap as BpfMap, Map, MapData};
use netdp_common::layout::{
    Addr, MAPPING_COUNTED_ORIGINAL, MAPPING_COUNTED_REPLY, Mapping, Tuple, pins, proto,
};
use nix::mount::{MsFlags, mount};
use nix::time::{ClockId, clock_gettime};
use serde_json::Value;
use std::collections::HashMap;
use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use testbed::{WorkDir, wait_for, wait_some};

/// Mappings that are to begin between two kills; the port of one in fourteen is taken.
const MAPPINGS: u32 = 2_200;

/// Pods at a time.
const PODS: u32 = 50;

/// Milliseconds by which the test's own times and those of mappings may differ.
const SLACK: u64 = 150;

fn number(name: &str, default: u32) -> u32 {
    let given = std::env::var(name).ok();
    given
        .and_then(|given| given.parse().ok())
        .unwrap_or(default)
}

fn now() -> Result<u64> {
    let since = SystemTime::now().duration_since(UNIX_EPOCH)?;
    Ok(u64::try_from(since.as_millis())?)
}

fn ticks() -> Result<u32> {
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE)?;
    let nanos = u64::try_from(time.tv_sec())? * 1_000_000_000 + u64::try_from(time.tv_nsec())?;
    Ok(u32::try_from((nanos >> 26) & u64::from(u32::MAX))?)
}

/// A small generator of numbers (xorshift), so that a run can be repeated.
struct Random(u64);

impl Random {
    fn below(&mut self, most: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % most
    }
}

/// A mapping as the test knows it. Times are in milliseconds since 1970.
struct Truth {
    tuple: Tuple,
    seen_as: SocketAddr,
    to: SocketAddr,
    pod: SocketAddr,
    name: String,
    begin: u64,
    /// The last time at which it was seen.
    present: u64,
    /// The first time at which it was not.
    absent: Option<u64>,
}

struct Tables {
    snat: BpfMap<MapData, Tuple, Mapping>,
    rev_snat: BpfMap<MapData, Tuple, Mapping>,
}

impl Tables {
    fn open(bpffs: &Path) -> Result<Self> {
        let open = |name| -> Result<_> { Ok(Map::HashMap(MapData::from_pin(bpffs.join(name))?)) };
        Ok(Self {
            snat: open(pins::SNAT)?.try_into()?,
            rev_snat: open(pins::REV_SNAT)?.try_into()?,
        })
    }

    /// Begins a mapping as the programs do; `false` if the port is taken.
    fn begin(&mut self, tuple: &Tuple, addr: Addr, id: u16) -> Result<bool> {
        let now = ticks()?;
        let wire = tuple.reply_to(addr, id);
        let reply = Mapping::new(&tuple.src, tuple.src_id, MAPPING_COUNTED_REPLY, now);
        if self.rev_snat.insert(wire, reply, 1).is_err() {
            return Ok(false);
        }
        let half = Mapping::new(&addr, id, MAPPING_COUNTED_ORIGINAL, now);
        self.snat.insert(tuple, half, 1)?;
        Ok(true)
    }
}

struct Story {
    tables: Tables,
    random: Random,
    all: Vec<Truth>,
    names: Vec<String>,
}

impl Story {
    /// Has some pods give their address to others.
    fn replace_pods(&mut self, cni: &Path, some: u64) -> Result<()> {
        for _ in 0..some {
            let pod = usize::try_from(self.random.below(PODS.into()))?;
            let name = format!("pod-{pod}-{}", self.all.len());
            let old = std::mem::replace(&mut self.names[pod], name.clone());
            fs::remove_file(cni.join(old))?;
            cache(cni, &name, address(pod))?;
        }
        Ok(())
    }

    fn begin(&mut self, count: u32) -> Result<()> {
        for _ in 0..count {
            let pod = usize::try_from(self.random.below(PODS.into()))?;
            let source = address(pod);
            let port = 1024 + u16::try_from(self.all.len() % 60_000)?;
            let to = Ipv4Addr::new(203, 0, 113, u8::try_from(self.random.below(6))?);
            let node = Ipv4Addr::new(10, 1, 0, 10);
            let id = 20_000 + u16::try_from(self.random.below(3_000))?;
            let tuple = Tuple::new(
                Addr::from(source),
                Addr::from(IpAddr::from(to)),
                port,
                443,
                proto::UDP,
            );
            let begin = now()?;
            if self
                .tables
                .begin(&tuple, Addr::from(IpAddr::from(node)), id)?
            {
                self.all.push(Truth {
                    tuple,
                    seen_as: (node, id).into(),
                    to: (to, 443).into(),
                    pod: (source, port).into(),
                    name: self.names[pod].clone(),
                    begin,
                    present: begin,
                    absent: None,
                });
            }
        }
        Ok(())
    }

    /// Looks which mappings are there.
    fn look(&mut self) -> Result<()> {
        for truth in self.all.iter_mut().filter(|it| it.absent.is_none()) {
            let before = now()?;
            if self.tables.snat.get(&truth.tuple, 0).is_ok() {
                truth.present = before;
            } else {
                truth.absent = Some(now()?);
            }
        }
        Ok(())
    }

    fn live(&self) -> usize {
        self.all.iter().filter(|it| it.absent.is_none()).count()
    }
}

fn address(pod: usize) -> IpAddr {
    let last = u8::try_from(10 + pod).unwrap_or(u8::MAX);
    Ipv4Addr::new(172, 16, 1, last).into()
}

fn time(record: &Value, field: &str) -> Option<u64> {
    let time: jiff::Timestamp = record[field].as_str()?.parse().ok()?;
    u64::try_from(time.as_millisecond()).ok()
}

/// Checks that each mapping is in the log, with an end or within a gap.
fn check_log(log: &Path, all: &[Truth]) -> Result<()> {
    let mut begins = HashMap::new();
    let mut ends = HashMap::new();
    let mut gaps = Vec::new();
    for record in records(log)? {
        let key = (
            record["pod"].to_string(),
            record["seen_as"].to_string(),
            record["to"].to_string(),
        );
        match record["event"].as_str() {
            Some("begin") => {
                let id = record["id"].clone();
                let before = begins.insert(key, record);
                ensure!(
                    before.is_none_or(|before| before["id"] == id),
                    "two have one number"
                );
            }
            Some("end") => {
                if let Some(before) = ends.insert(key, record.clone()) {
                    // A collector that went had read part of what it is sent again.
                    ensure!(
                        before["id"] != record["id"] || before == record,
                        "{before} and {record}"
                    );
                }
            }
            Some("gap") => {
                let times = time(&record, "from").zip(time(&record, "until"));
                gaps.push(times.with_context(|| format!("a gap without times: {record}"))?);
            }
            _ => {}
        }
    }
    let mut excused = [0, 0];
    for truth in all {
        let text = |it: SocketAddr| format!("\"{it}\"");
        let key = (text(truth.pod), text(truth.seen_as), text(truth.to));
        let absent = truth.absent.context("a mapping never ended")?;
        let is_in_gap = |first, last| {
            gaps.iter()
                .any(|(from, until)| *from <= last + SLACK && *until + SLACK >= first)
        };
        let when = [(truth.begin, truth.begin), (truth.present, absent)];
        let found = [begins.get(&key), ends.get(&key)];
        for (kind, (found, (first, last))) in found.into_iter().zip(when).enumerate() {
            let Some(record) = found else {
                let what = if kind == 0 { "begin" } else { "end" };
                ensure!(
                    is_in_gap(first, last),
                    "the {what} of {} at {first} is in no gap: {gaps:?}",
                    truth.pod
                );
                excused[kind] += 1;
                continue;
            };
            let begin = time(record, "begin").context("no begin")?;
            ensure!(
                begin.abs_diff(truth.begin) < SLACK,
                "{} {record}",
                truth.begin
            );
            if let Some(name) = record["name"].as_str() {
                assert_eq!(name, truth.name, "{record}");
            }
        }
        if let Some(end) = ends.get(&key).and_then(|it| time(it, "end")) {
            ensure!(
                end + SLACK >= truth.present,
                "{} ended before it was seen: {end}",
                truth.pod
            );
        }
    }
    eprintln!(
        "{} mappings, {} gaps; {} begins and {} ends are only in gaps",
        all.len(),
        gaps.len(),
        excused[0],
        excused[1]
    );
    ensure!(excused[1] * 2 < all.len(), "most ends have a record");
    Ok(())
}

/// Asks for random mappings at random times of their lives.
fn check_who(world: &World, log: &Path, story: &mut Story, asks: u32) -> Result<()> {
    let log = log.display().to_string();
    let mut answers = [0; 3];
    for n in 0..asks {
        let index = usize::try_from(story.random.below(story.all.len() as u64))?;
        let truth = &story.all[index];
        let (first, last) = (truth.begin + SLACK, truth.present.saturating_sub(SLACK));
        let at = if first < last {
            first + story.random.0 % (last - first)
        } else {
            truth.begin
        };
        let at = jiff::Timestamp::from_millisecond(i64::try_from(at)?)?.to_string();
        let (seen_as, to) = (truth.seen_as.to_string(), truth.to.to_string());
        let mut arguments = vec![&*seen_as, "--at", &at, "-o", "json", "--nat-log", &log];
        if n % 2 == 0 {
            arguments.extend(["--to", &to, "--proto", "udp"]);
        }
        let (code, told) = who(&world.agent, &arguments)?;
        let answer: Value = serde_json::from_str(&told).with_context(|| told.clone())?;
        match code {
            Some(0) => {
                let candidates = answer["candidates"].as_array().context("no candidates")?;
                ensure!(
                    candidates
                        .iter()
                        .any(|it| it["pod"] == truth.pod.to_string()),
                    "wrong: {} at {at}: {answer:#}",
                    truth.pod
                );
                let name = format!("shop/{}", truth.name);
                let is_named = |it: &Value| it["name"].is_null() || it["name"] == name;
                ensure!(candidates.iter().all(is_named), "not {name}: {answer:#}");
                answers[0] += 1;
            }
            Some(2) => answers[2] += 1,
            _ => {
                anyhow::bail!("nobody: {} at {at}: {answer:#}", truth.pod);
            }
        }
    }
    eprintln!(
        "{asks} asked: {} told, {} can't be told, 0 wrong",
        answers[0], answers[2]
    );
    ensure!(answers[0] * 10 > asks, "{answers:?}");
    Ok(())
}

/// Fills a disk of this size, in MiB, up to less than one line.
fn fill(filler: &Path, size: u64) -> Result<()> {
    let file = fs::File::create(filler)?;
    let mut left = size << 20;
    while left > 16 {
        let written = std::io::Write::write(&mut &file, &vec![0; 4096]);
        match written {
            Ok(written) => left = left.saturating_sub(written as u64),
            Err(_) => break,
        }
    }
    Ok(())
}

#[test]
fn each_mapping_is_in_the_log_or_in_a_gap_and_who_is_never_wrong() -> Result<()> {
    let kills = number("NETDP_NAT_LOG_KILLS", 6);
    let dir = WorkDir::new("nat-log-faults")?;
    let (disk, cni) = (dir.path().join("disk"), dir.path().join("cni"));
    fs::create_dir(&disk)?;
    fs::create_dir(&cni)?;
    let size = u64::from(kills) * 3 + 4;
    let options = format!("size={size}m,mode=700");
    mount(
        Some("tmpfs"),
        &disk,
        Some("tmpfs"),
        MsFlags::empty(),
        Some(options.as_str()),
    )?;
    let log = disk.join("nat.log");
    let names: Vec<_> = (0..PODS).map(|pod| format!("pod-{pod}")).collect();
    for (pod, name) in names.iter().enumerate() {
        cache(&cni, name, address(pod))?;
    }
    let mut world = World::with(
        POLICY,
        &[
            "--enable-ipv6",
            "--nat-log",
            &log.display().to_string(),
            "--nat-log-destinations",
            "--nat-log-size=100000",
            "--cni-dir",
            &cni.display().to_string(),
            "--timeout=udp-unreplied=1s",
        ],
    )?;
    let mut story = Story {
        tables: Tables::open(&world.agent.bpffs())?,
        random: Random(u64::from(std::process::id()) << 20 | 1),
        all: Vec::new(),
        names,
    };
    let filler = disk.join("filler");
    let socket = dir.path().join("collector");
    let mut collector = Collector::new(&socket, &log);
    for kill in 0..kills {
        story.replace_pods(&cni, 3)?;
        if kill == kills / 6 {
            fill(&filler, size)?;
        }
        if kill == kills / 3 {
            fs::remove_file(&filler)?;
        }
        if kill == kills / 2 {
            world.agent.stop()?;
            let target = format!("unix:{}", socket.display());
            world
                .agent
                .options()
                .replace(&log.display().to_string(), &target);
            collector.come()?;
            world.agent.restart()?;
        }
        for step in 0..8 {
            story.begin(MAPPINGS / 8)?;
            story.look()?;
            let pause = story.random.below(150);
            std::thread::sleep(Duration::from_millis(pause));
            // It comes back to the same agent, to the next one, or stays.
            match (kill % 3, step) {
                (0 | 1, 2) => collector.go()?,
                (0, 5) if kill >= kills / 2 => collector.come()?,
                _ => {}
            }
        }
        world.agent.kill9()?;
        story.look()?;
        if kill >= kills / 2 {
            collector.come()?;
        }
        world.agent.restart()?;
        story.look()?;
    }
    wait_for(SOON, "all mappings to end", || {
        story.look().is_ok() && story.live() == 0
    })?;
    world.agent.stop()?;
    let text = wait_some(SOON, "the collector to have read all", || {
        let text = fs::read_to_string(&log).ok()?;
        let last = text.lines().last()?;
        let is_last = last.contains("\"event\":\"stop\"");
        (is_last && text.ends_with('\n')).then_some(text)
    })?;
    collector.go()?;
    eprintln!("{} bytes per mapping", text.len() / story.all.len());
    check_log(&log, &story.all)?;
    check_who(&world, &log, &mut story, number("NETDP_NAT_LOG_ASKS", 60))
}
