//! The cost of seeing: netdp with NAT log, metrics and a monitor beside netdp without.

use super::bed::{Bed, FAR, NODE};
use super::load::{Direction, Load};
use super::measure::{About, Lab};
use super::reload::resident;
use crate::shell;
use anyhow::{Context as _, Result, ensure};
use netdp_common::layout::{
    Addr, MAPPING_COUNTED_ORIGINAL, MAPPING_COUNTED_REPLY, Mapping, Tuple, proto,
};
use nix::time::{ClockId, clock_gettime};
use std::fs;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, TcpStream};
use std::path::Path;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;
use testbed::{AgentOptions, Netns, Running};

/// Number of CIDRs of the policy.
pub const CIDRS: u32 = 64;

/// Address of the metrics in the node's namespace.
const METRICS: &str = "127.0.0.1:10269";
/// Number of pods with names.
const PODS: u8 = 250;
/// Number of scrapes of a sample: the kernel counts CPU time in hundredths of a second.
const SCRAPES: u32 = 50;
/// Interval of the scrapes beside a measurement.
const SCRAPE_INTERVAL: Duration = Duration::from_secs(3);
/// Number of mappings of all pods.
const MAPPINGS: u32 = 65_536;
/// Time after which a full pass of the sweep has found new mappings.
const FOUND: Duration = Duration::from_secs(7);
/// Duration of a sample of the agent's CPU time: two full passes of the sweep.
const PASSES: Duration = Duration::from_secs(10);
/// Packets of a flood of drops. The generator's start and end, about a tick of the kernel's timer (4 ms),
/// count here, because nothing arrives that could be timed: so there are many.
const FLOOD: u32 = 2_000_000;
/// Timeout of a scrape.
const PATIENCE: Duration = Duration::from_secs(10);

/// Adds everything that shows what netdp does, and writes names of pods to `dir`, from which the
/// agent reads them and which takes its NAT log.
pub fn everything_on(options: AgentOptions, dir: &Path) -> Result<AgentOptions> {
    let cni = dir.join("cni");
    fs::create_dir(&cni).with_context(|| format!("creating {}", cni.display()))?;
    for pod in 0..PODS {
        let path = cni.join(format!("pods-{pod}-eth0"));
        fs::write(&path, cached(pod)).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(options
        .arg("--nat-log")
        .arg(dir.join("nat.log"))
        .arg("--nat-log-destinations")
        .arg(format!("--metrics-listen={METRICS}"))
        .arg("--metrics-pods=pod")
        .arg("--cni-dir")
        .arg(cni))
}

/// Returns what libcni caches for a pod; the first one is the bed's client.
fn cached(pod: u8) -> String {
    let namespace = pod % 10;
    let host = pod + 2;
    format!(
        r#"{{"kind": "cniCacheV1", "ifName": "eth0", "cniArgs": [["K8S_POD_NAMESPACE", "ns-{namespace}"],
            ["K8S_POD_NAME", "pod-{pod}"], ["K8S_POD_UID", "uid-{pod}"]],
            "result": {{"cniVersion": "1.0.0", "ips": [{{"address": "172.16.0.{host}/24"}}]}}}}"#
    )
}

/// A node's onlookers while it is measured: a monitor of all kinds, and, where metrics are on, a scrape
/// every few seconds. Both end when it is dropped.
struct Onlookers {
    _monitor: Running,
    end: Option<Sender<()>>,
    scraper: Option<JoinHandle<()>>,
}

impl Onlookers {
    fn start(bed: &Bed) -> Result<Self> {
        let monitor = Running::start(bed.netdp(&["monitor", "-o", "jsonl"])?)?;
        let (end, ended) = channel();
        let node = bed.node.clone();
        let scrapes = move || {
            while ended.recv_timeout(SCRAPE_INTERVAL) == Err(RecvTimeoutError::Timeout) {
                // Measured by a row of its own, which reports failures.
                let _ = scrape(&node);
            }
        };
        let scraper = bed.is_seen().then(|| std::thread::spawn(scrapes));
        Ok(Self {
            _monitor: monitor,
            end: Some(end),
            scraper,
        })
    }
}

impl Drop for Onlookers {
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(scraper) = self.scraper.take() {
            let _ = scraper.join();
        }
    }
}

impl Lab {
    /// Measures what seeing costs. The rows of packets take these loads: one flow, many, bypassed, new.
    pub fn see(&mut self, loads: &[Load], max_flows: u32) -> Result<()> {
        shell::progress(&format!("putting {CIDRS} CIDRs in force"));
        for bed in &mut self.beds {
            bed.set_cidrs(CIDRS)?;
        }
        self.resize(max_flows)?;
        let onlookers = self.onlookers()?;
        self.resident("the agent's memory, no flow yet")?;
        {
            let _sinks = self.sinks()?;
            for load in loads {
                self.cost(*load, "")?;
                self.packets(*load, None, &[0])?;
            }
            self.drops()?;
            self.beds.iter().try_for_each(Bed::forget_flows)?;
        }
        self.agent_cpu("the agent's CPU at rest", 0)?;
        let what = format!("the agent's CPU, {MAPPINGS} mappings of {PODS} pods");
        self.agent_cpu(&what, MAPPINGS)?;
        self.connections(None)?;
        self.scrapes()?;
        self.resident("the agent's memory, after these loads")?;
        drop(onlookers);
        Ok(())
    }

    fn resident(&mut self, what: &str) -> Result<()> {
        self.interleave(about(what, "MiB", false), |bed, _| {
            let pid = bed.agent_pid();
            pid.map(|pid| resident(pid, "VmRSS:")).transpose()
        })
    }

    fn onlookers(&self) -> Result<Vec<Onlookers>> {
        let monitored = self.beds.iter().filter(|bed| bed.is_monitored());
        monitored.map(Onlookers::start).collect()
    }

    /// Measures a flood of TCP resets that belong to no mapping, which netdp drops.
    fn drops(&mut self) -> Result<()> {
        let about = about("resets of no mapping, dropped", "packets/s", true);
        self.interleave(about, |bed, generator| {
            if bed.program(Direction::Original).is_none() {
                return Ok(None);
            }
            let before = resets_dropped(bed)?;
            let time = generator.send_resets(bed, FLOOD)?;
            let dropped = resets_dropped(bed)? - before;
            ensure!(
                dropped > u64::from(FLOOD) / 100 * 99,
                "netdp dropped {dropped} of {FLOOD} resets"
            );
            Ok(Some(f64::from(FLOOD) / time.as_secs_f64()))
        })
    }

    /// Measures the agent's use of a CPU in per cent, with this many mappings, which it knows already.
    fn agent_cpu(&mut self, what: &str, mappings: u32) -> Result<()> {
        self.interleave(about(what, "% of a core", false), |bed, _| {
            let Some(pid) = bed.agent_pid() else {
                return Ok(None);
            };
            populate(bed, mappings)?;
            let before = cpu_seconds(pid)?;
            std::thread::sleep(PASSES);
            let used = cpu_seconds(pid)? - before;
            bed.forget_flows()?;
            Ok(Some(used / PASSES.as_secs_f64() * 100.0))
        })
    }

    /// Measures scrapes with mappings of all pods: the agent's CPU time for one, its samples and its
    /// bytes.
    fn scrapes(&mut self) -> Result<()> {
        for bed in self.beds.iter().filter(|bed| bed.is_seen()) {
            populate(bed, PODS.into())?;
        }
        let cpu = about("a scrape, the agent's CPU", "ms", false);
        self.interleave(cpu, |bed, _| {
            let Some(pid) = bed.agent_pid().filter(|_| bed.is_seen()) else {
                return Ok(None);
            };
            let before = cpu_seconds(pid)?;
            for _ in 0..SCRAPES {
                scrape(&bed.node)?;
            }
            let used = cpu_seconds(pid)? - before;
            Ok(Some(used * 1e3 / f64::from(SCRAPES)))
        })?;
        self.scrape_size("a scrape, its series", "series", series)?;
        self.scrape_size("a scrape, its size", "bytes", str::len)
    }

    fn scrape_size(
        &mut self,
        what: &str,
        unit: &'static str,
        size: fn(&str) -> usize,
    ) -> Result<()> {
        self.interleave(about(what, unit, false), |bed, _| {
            if !bed.is_seen() {
                return Ok(None);
            }
            Ok(Some(size(&scrape(&bed.node)?) as f64))
        })
    }
}

/// Makes the mappings that the programs would have made for datagrams of all pods, and waits until the
/// sweep has found them.
fn populate(bed: &Bed, mappings: u32) -> Result<()> {
    const PER_DESTINATION: u32 = 16_384;
    let address = |address: Ipv4Addr| Addr::from(IpAddr::from(address));
    let (mut snat, mut rev_snat) = bed.mappings()?;
    let (now, node) = (now()?, address(NODE));
    for n in 0..mappings {
        let host = u8::try_from(n % u32::from(PODS))? + 2;
        let pod = address(Ipv4Addr::new(172, 16, 0, host));
        let to = address(Ipv4Addr::from(u32::from(FAR) + n / PER_DESTINATION));
        let port = 1024 + u16::try_from(n % PER_DESTINATION)?;
        let tuple = Tuple::new(pod, to, port, 443, proto::UDP);
        let reply = Mapping::new(&pod, port, MAPPING_COUNTED_REPLY, now);
        let half = Mapping::new(&node, port, MAPPING_COUNTED_ORIGINAL, now);
        rev_snat.insert(tuple.reply_to(node, port), reply, 0)?;
        snat.insert(tuple, half, 0)?;
    }
    std::thread::sleep(FOUND);
    Ok(())
}

/// Returns the time in the datapath's ticks (`netdp_common::flow`).
fn now() -> Result<u32> {
    let time = clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE)?;
    let nanoseconds =
        u64::try_from(time.tv_sec())? * 1_000_000_000 + u64::try_from(time.tv_nsec())?;
    let ticks = nanoseconds >> netdp_common::flow::TICK_SHIFT;
    Ok(u32::try_from(ticks & u64::from(u32::MAX))?)
}

fn about(what: &str, unit: &'static str, higher_is_better: bool) -> About {
    About {
        what: what.into(),
        unit,
        curve: None,
        higher_is_better,
    }
}

/// Returns the body of one scrape.
fn scrape(node: &Netns) -> Result<String> {
    let mut stream = node.open(|| TcpStream::connect(METRICS))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: node\r\nConnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let (head, body) = text.split_once("\r\n\r\n").context("no end of the head")?;
    ensure!(head.starts_with("HTTP/1.1 200"), "{METRICS}: {head}");
    Ok(body.to_owned())
}

/// Counts the samples in a scrape: the lines that are not comments.
fn series(scrape: &str) -> usize {
    scrape.lines().filter(|line| !line.starts_with('#')).count()
}

/// Returns the CPU time that a process has used, in seconds.
fn cpu_seconds(pid: u32) -> Result<f64> {
    let path = format!("/proc/{pid}/stat");
    let stat = fs::read_to_string(&path).with_context(|| path.clone())?;
    let ticks = ticks(&stat).with_context(|| format!("{path}: no CPU time"))?;
    let hertz = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK)?;
    Ok(ticks as f64 / hertz.context("no clock tick")? as f64)
}

/// Returns utime and stime (proc_pid_stat(5)) together. The name before them may have spaces.
fn ticks(stat: &str) -> Option<u64> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    let mut next = || fields.next()?.parse::<u64>().ok();
    Some(next()? + next()?)
}

/// Returns how many TCP segments of no mapping netdp has dropped.
fn resets_dropped(bed: &Bed) -> Result<u64> {
    let out = bed.netdp(&["status", "-o", "json"])?.output()?;
    let status: serde_json::Value =
        serde_json::from_slice(&out.stdout).context("reading the output of `netdp status`")?;
    let dropped = status["drops"]["tcp_no_flow"].as_u64();
    dropped.context("`netdp status` has no drops.tcp_no_flow")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_time_stands_after_any_name() {
        let stat = "7 (a ) b) S 1 2 3 4 5 6 7 8 9 10 31 11 0 0";
        assert_eq!(ticks(stat), Some(42));
        assert_eq!(ticks("7 (a) S 1"), None);
    }

    #[test]
    fn comments_are_no_series() {
        assert_eq!(series("# TYPE a gauge\na 1\na{b=\"c\"} 2\n# EOF\n"), 2);
    }
}
