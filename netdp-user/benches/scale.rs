//! A million live mappings: their kernel memory, the cost of sweeping them, and of questions about
//! them. To be run manually, as root: `cargo xtask scale [MAPPINGS]`.
#![allow(
    clippy::print_stdout,
    reason = "figures go to standard output, for whoever asked"
)]

use anyhow::{Context as _, Result, ensure};
use aya::maps::{Array, HashMap, Map, MapData};
use netdp_common::flow::{SEEN_DATA, SEEN_SYN, TICK_SHIFT, Timeouts, ticks};
use netdp_common::layout::{
    Action, Addr, MAPPING_COUNTED_ORIGINAL, MAPPING_COUNTED_REPLY, Mapping, Settings, Tuple,
    packed, pins, proto,
};
use netdp_user::datapath::{
    Datapath, Mechanism, NoLeak, OnReload, PortMode, Setup, SweepRules, SweepStats, Sweeper,
};
use netdp_user::reconcile::{Change, PolicyRule};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike as _;
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use testbed::{Agent, AgentOptions, Bed, ConfigVolume, WorkDir, require_root};

const NODE: [u8; 4] = [10, 1, 0, 10];

const NETDP: &str = env!("CARGO_BIN_EXE_netdp");

/// Rules of the policy that questions are asked about.
const RULES: u32 = 100_000;

/// Times that a question is asked.
const ROUNDS: usize = 9;

fn main() -> Result<()> {
    require_root("cargo xtask scale")?;
    // cargo bench adds arguments of its own.
    let mappings = std::env::args()
        .find_map(|argument| argument.parse().ok())
        .unwrap_or(1_000_000);
    println!("live mappings: {mappings}");
    questions(mappings)?;
    let dir = WorkDir::new("scale")?;
    let bpffs = dir.path().join("bpffs");
    let mut datapath = Datapath::load(&bpffs, &setup(mappings))?;
    fill(&bpffs, mappings)?;
    memory(&bpffs, mappings)?;
    let mut sweeper = Sweeper::open(&bpffs)?;
    let rules = rules(Some(NODE));
    // The first sweep records its own cost and the fill level of the tables.
    sweep(&mut sweeper, &rules)?;
    share(&mut sweeper, &rules, "all active a moment ago")?;
    advance(&bpffs, Duration::from_secs(1800))?;
    share(&mut sweeper, &rules, "all silent for half an hour")?;
    let ending = |what: &str, sweep: &mut dyn FnMut() -> Result<SweepStats>| {
        let (swept, wall, cpu) = timed(sweep)?;
        let ended = swept.expired + swept.address_gone + swept.retired;
        println!("{what}: {ended} ended; {wall:.3?} of time, {cpu:.3?} of CPU");
        anyhow::Ok(())
    };
    ending("address gone", &mut || {
        sweeper.run_after_change(&self::rules(None))
    })?;
    datapath.apply(&Change::SetPolicy(bypass_all()?))?;
    fill(&bpffs, mappings)?;
    let mut cutover = rules.clone();
    cutover.retire_after = Some(Duration::ZERO);
    ending("cutover", &mut || sweeper.run_after_change(&cutover))?;
    fill(&bpffs, mappings)?;
    advance(&bpffs, Duration::from_secs(6 * 86_400))?;
    ending("all over at once", &mut || sweeper.run_full(&rules))?;
    Ok(())
}

fn bypass_all() -> Result<Vec<PolicyRule>> {
    Ok(vec![PolicyRule {
        prefix: "0.0.0.0/0".parse()?,
        action: Action::Bypass,
    }])
}

fn setup(mappings: u32) -> Setup {
    Setup {
        enable_ipv6: true,
        max_flows: mappings,
        to_ports: Vec::new(),
        port_mode: PortMode::Keep,
        udp_endpoints: false,
        no_leak: NoLeak::Drop,
        on_reload: OnReload::Sticky,
        hairpin: false,
        log_ends: false,
        pod_flows: u32::MAX,
        pod_new_flows: 0,
        secret: [1, 2],
        reserved_ports: BTreeSet::new(),
        mechanism: Mechanism::Auto,
    }
}

fn pinned(bpffs: &Path, name: &str) -> Result<MapData> {
    let path = bpffs.join(name);
    MapData::from_pin(&path).with_context(|| path.display().to_string())
}

/// Inserts established TCP connections from sixteen pods to as many servers as needed.
fn fill(bpffs: &Path, mappings: u32) -> Result<()> {
    let mut snat: HashMap<_, Tuple, Mapping> =
        Map::HashMap(pinned(bpffs, pins::SNAT)?).try_into()?;
    let mut rev_snat: HashMap<_, Tuple, Mapping> =
        Map::HashMap(pinned(bpffs, pins::REV_SNAT)?).try_into()?;
    let now = now()?;
    let node = Addr::from(IpAddr::from(NODE));
    for n in 0..mappings {
        let [.., low] = n.to_be_bytes();
        let port = 1024 + u16::try_from(n % 60_000)?;
        let [_, _, server_high, server_low] = (n / 60_000).to_be_bytes();
        let pod = IpAddr::from([172, 16, 0, 2 + low % 16]);
        let server = IpAddr::from(Ipv4Addr::new(198, 18, server_high, server_low));
        let tuple = Tuple::new(pod.into(), server.into(), port, 443, proto::TCP);
        let half = Mapping {
            addr: node,
            id: port,
            flags: MAPPING_COUNTED_ORIGINAL,
            last_seen: now,
            created: now,
            tcp_ack: n,
            tcp_seen: u8::try_from(SEEN_SYN | SEEN_DATA)?,
            epoch: 0,
            uplink: 0,
            traffic: 10 * packed(100),
        };
        let reply = Mapping {
            addr: tuple.src,
            flags: MAPPING_COUNTED_REPLY,
            ..half
        };
        snat.insert(tuple, half, 0)?;
        rev_snat.insert(tuple.reply_to(node, port), reply, 0)?;
    }
    Ok(())
}

/// Returns the monotonic clock in ticks.
fn now() -> Result<u32> {
    let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC)?;
    Ok(u32::try_from(time.num_nanoseconds() >> TICK_SHIFT)?)
}

fn advance(bpffs: &Path, by: Duration) -> Result<()> {
    let mut settings: Array<_, Settings> = Map::Array(pinned(bpffs, pins::SETTINGS)?).try_into()?;
    let mut now = settings.get(&0, 0)?;
    let by = u32::try_from(ticks(by.as_secs()))?;
    now.clock_offset = now.clock_offset.wrapping_add(by);
    Ok(settings.set(0, now, 0)?)
}

/// Prints the memory that the kernel accounts for the two tables.
fn memory(bpffs: &Path, mappings: u32) -> Result<()> {
    let (mut sum, mut room) = (0, 1);
    for name in [pins::SNAT, pins::REV_SNAT] {
        let map = pinned(bpffs, name)?;
        let fd = map.fd().as_fd().as_raw_fd();
        let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{fd}"))?;
        let bytes: u64 = info
            .lines()
            .find_map(|line| line.strip_prefix("memlock:"))
            .context("fdinfo has no memlock")?
            .trim()
            .parse()?;
        let entries = map.info()?.max_entries();
        println!("{name:9} {bytes} bytes for room for {entries}");
        sum += bytes;
        room = u64::from(entries);
    }
    println!(
        "kernel memory: {} bytes for each mapping that there is room for, {} for each that lives",
        sum / room,
        sum / u64::from(mappings)
    );
    Ok(())
}

/// Prints what questions cost on a node with an agent and 100,000 rules: the time of one answer of
/// `netdp explain`, the time and the memory of `netdp flows --summary`, and the packets that a pod sends
/// meanwhile.
fn questions(mappings: u32) -> Result<()> {
    let bed = Bed::dual_stack()?;
    let server = bed.server(0, &["198.18.0.1/15"])?;
    let mut policy = String::from("nonMasqueradeCIDRs:\n");
    for n in 0..RULES {
        let network = Ipv4Addr::from(u32::from(Ipv4Addr::new(20, 0, 0, 0)) + n * 512);
        writeln!(policy, "- {network}/24")?;
    }
    let config = ConfigVolume::new(&policy)?;
    let options = AgentOptions::new(NETDP)
        .config(config.path())
        .arg(format!("--max-flows={}", mappings + 1024));
    let agent = Agent::start(&bed.node, options)?;
    fill(&agent.bpffs(), mappings)?;
    let summary = ["flows", "--summary=destination", "-n", "3"];
    let (wall, text) = asked(&agent, &summary)?;
    // That of all children that have ended; the others are small.
    let kibibytes = getrusage(UsageWho::RUSAGE_CHILDREN)?.max_rss();
    println!("flows --summary: {wall:.3?} of time, at most {kibibytes} KiB of memory: {text}");
    let explain = ["explain", "--from", "172.16.0.2:1024", "198.18.0.1:8443"];
    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        let (wall, text) = asked(&agent, &explain)?;
        ensure!(text.contains("masqueraded"), "{text}");
        times.push(wall);
    }
    times.sort_unstable();
    let median = times.get(times.len() / 2).context("a median")?;
    println!(
        "explain with {RULES} rules: {median:.3?} of time, the median of {ROUNDS}: {times:.3?}"
    );
    let to = (server.v4()?, 9).into();
    let ratio = rate_beside(&bed, to, &mut || asked(&agent, &summary).map(drop))?;
    println!("packets of a pod while flows --summary runs: {ratio:.3} of those without");
    // What the machine's other CPU takes from the pod's, whatever it does.
    let ratio = rate_beside(&bed, to, &mut || {
        let start = Instant::now();
        while start.elapsed() < wall {
            std::hint::spin_loop();
        }
        Ok(())
    })?;
    println!("packets of a pod while another CPU only counts: {ratio:.3} of those without");
    Ok(())
}

/// Runs a command; returns its time and the first line that it prints.
fn asked(agent: &Agent, arguments: &[&str]) -> Result<(Duration, String)> {
    let start = Instant::now();
    let text = agent.netdp(arguments)?;
    let wall = start.elapsed();
    Ok((wall, text.lines().next().unwrap_or_default().to_owned()))
}

/// Returns the ratio of a pod's packets per time while `work` runs to those while it does not: the
/// median of as many pairs as [`ROUNDS`].
fn rate_beside(bed: &Bed, to: SocketAddr, work: &mut dyn FnMut() -> Result<()>) -> Result<f64> {
    let socket = bed.pods[0].ns.open(|| UdpSocket::bind("0.0.0.0:0"))?;
    socket.connect(to)?;
    let (sent, ends) = (AtomicU64::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !ends.load(Ordering::Relaxed) {
                // An ICMP error of before fails it once.
                if socket.send(&[0; 64]).is_ok() {
                    sent.fetch_add(1, Ordering::Relaxed);
                }
            }
        });
        let mut ratios = Vec::new();
        let rate = |work: &mut dyn FnMut() -> Result<()>| {
            let (start, before) = (Instant::now(), sent.load(Ordering::Relaxed));
            work()?;
            let packets = u32::try_from(sent.load(Ordering::Relaxed) - before)?;
            anyhow::Ok(f64::from(packets) / start.elapsed().as_secs_f64())
        };
        let all = (0..ROUNDS).try_for_each(|_| {
            let alone = rate(&mut || {
                std::thread::sleep(Duration::from_secs(1));
                Ok(())
            })?;
            ratios.push(rate(work)? / alone);
            anyhow::Ok(())
        });
        ends.store(true, Ordering::Relaxed);
        all?;
        ratios.sort_by(f64::total_cmp);
        ratios.get(ratios.len() / 2).copied().context("a median")
    })
}

fn rules(node: Option<[u8; 4]>) -> SweepRules {
    SweepRules {
        timeouts: Timeouts::default(),
        local: node.into_iter().map(IpAddr::from).collect(),
        retire_after: None,
        stop: Arc::default(),
        local_addrs_stale: Arc::default(),
    }
}

fn sweep(sweeper: &mut Sweeper, rules: &SweepRules) -> Result<(Duration, Duration)> {
    let (_, wall, cpu) = timed(|| sweeper.run_full(rules))?;
    Ok((wall, cpu))
}

/// Prints the share of a core that sweeping takes: full sweeps at their scheduled interval, and
/// scans of the SNAT halves in between.
fn share(sweeper: &mut Sweeper, rules: &SweepRules, what: &str) -> Result<()> {
    let (wall, full) = sweep(sweeper, rules)?;
    let interval = sweeper.interval(rules);
    let (_, _, look) = timed(|| sweeper.scan_new(rules))?;
    let shortest = rules.timeouts.shortest();
    let looks = interval.saturating_sub(1) / shortest;
    let cpu = full + look * u32::try_from(looks)?;
    println!(
        "{what}: {} live; full sweep {wall:.3?} of time, {full:.3?} of CPU, every {interval} s; look {look:.3?} of CPU, every {shortest} s: {:.2} % of a core",
        sweeper.live(),
        cpu.as_secs_f64() / f64::from(u32::try_from(interval)?) * 100.0
    );
    Ok(())
}

/// Returns the result, elapsed time, and CPU time.
fn timed(mut work: impl FnMut() -> Result<SweepStats>) -> Result<(SweepStats, Duration, Duration)> {
    let (start, before) = (Instant::now(), cpu()?);
    let swept = work()?;
    Ok((swept, start.elapsed(), cpu()? - before))
}

/// Returns the CPU time of this thread so far, user and system.
fn cpu() -> Result<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_THREAD)?;
    let micros = usage.user_time().num_microseconds() + usage.system_time().num_microseconds();
    Ok(Duration::from_micros(u64::try_from(micros)?))
}
