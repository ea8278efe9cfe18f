//! Common network programs and their output, without details that differ between runs.

use super::Outside;
use crate::common::SOON;
use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use testbed::{Host, HttpServer, Running, WorkDir};

/// Command lines and their results.
pub type Outcomes = BTreeMap<String, String>;

/// Size of each transfer in bytes.
const BYTES: usize = 8_000_000;

const HTTP: u16 = 80;
const HTTP2: u16 = 8080;
const IPERF: u16 = 5201;

/// Servers for the programs.
#[derive(Debug)]
pub struct Servers {
    http: Vec<HttpServer>,
    _http2: Running,
    dir: WorkDir,
}

impl Servers {
    pub fn start(outside: &Outside) -> Result<Self> {
        let dir = WorkDir::new("www")?;
        fs::write(dir.path().join("big"), vec![b'x'; BYTES])?;
        let root = dir.path().display().to_string();
        let port = HTTP2.to_string();
        let http2 = ["nghttpd", "--no-tls", "--echo-upload", "-d", &root, &port];
        let http2 = outside.server.spawn(&http2)?;
        outside.server.wait_listening(HTTP2)?;
        let http = outside.targets().into_iter();
        Ok(Self {
            http: http
                .map(|at| HttpServer::start(&outside.server, (at, HTTP)))
                .collect::<Result<_>>()?,
            _http2: http2,
            dir,
        })
    }

    /// Returns every source that the HTTP servers saw.
    pub fn sources(&self) -> Vec<IpAddr> {
        let mut all: Vec<_> = self.http.iter().flat_map(HttpServer::seen).collect();
        all.sort_unstable();
        all.dedup();
        all
    }
}

/// Runs HTTP/1.1 and HTTP/2 transfers, up and down.
pub fn curl(outside: &Outside, servers: &Servers, target: IpAddr, all: &mut Outcomes) {
    let big = servers.dir.path().join("big").display().to_string();
    let one = format!("http://{}/bytes/{BYTES}", SocketAddr::new(target, HTTP));
    let two = format!("http://{}", SocketAddr::new(target, HTTP2));
    let (down, up) = (format!("{two}/big"), format!("{two}/up"));
    for arguments in [
        vec![one.as_str()],
        vec!["--http2-prior-knowledge", &down],
        vec!["--http2-prior-knowledge", "-T", &big, &up],
    ] {
        let what = "%{http_code} HTTP/%{http_version} %{size_download} %{size_upload}";
        let mut argv = vec![
            "curl",
            "-s",
            "--max-time",
            "30",
            "-o",
            "/dev/null",
            "-w",
            what,
        ];
        argv.extend(&arguments);
        let name = argv.join(" ").replace(&big, "FILE");
        all.insert(name, told(outside.pod(), &argv));
    }
}

/// Runs pings of all sizes.
pub fn ping(outside: &Outside, target: IpAddr, sizes: &[&str], all: &mut Outcomes) {
    let target = target.to_string();
    for size in sizes {
        let argv = [
            "ping", "-n", "-c2", "-i0.05", "-W15", "-s", size, "-p", "5a", &target,
        ];
        let counts = lines_with(&told(outside.pod(), &argv), "transmitted");
        let counts = counts.split(", time").next().unwrap_or_default().to_owned();
        all.insert(argv.join(" "), counts);
    }
}

/// Returns the MTU that a ping with DF reports.
pub fn ping_whole(outside: &Outside, target: IpAddr, size: &str) -> String {
    let target = target.to_string();
    let argv = ["ping", "-n", "-c1", "-W15", "-M", "do", "-s", size, &target];
    lines_with(&told(outside.pod(), &argv), "mtu")
}

/// Runs tracepath, traceroute and mtr in their variants.
pub fn traces(outside: &Outside, target: IpAddr, all: &mut Outcomes) {
    let target = target.to_string();
    let http = HTTP.to_string();
    // Without the zeros it waits for a later answer only a few times as long as for the first: too
    // short on a busy machine.
    let traceroute = ["traceroute", "-n", "-q2", "-w15,0,0"];
    let mtr = ["mtr", "-n", "-r", "-c2", "-i0.1", "-G2", "-Z2"];
    let variants: [(&[&str], &[&str]); 9] = [
        (&["tracepath", "-n"], &[]),
        (&traceroute, &[]),
        (&traceroute, &["-U"]),
        (&traceroute, &["-I"]),
        (&traceroute, &["-T", "-p", &http]),
        (&traceroute, &["-F", "--mtu"]),
        (&mtr, &[]),
        (&mtr, &["-u"]),
        (&mtr, &["-T", "-P", &http]),
    ];
    for (program, options) in variants {
        let argv = [program, options, &[target.as_str()]].concat();
        let told = told(outside.pod(), &argv);
        all.insert(argv.join(" "), hops(&told));
    }
}

/// Runs iperf3: TCP in both directions, and UDP in both directions with datagrams of several
/// fragments.
pub fn iperf(outside: &Outside, target: IpAddr, all: &mut Outcomes) -> Result<()> {
    let target = target.to_string();
    let tcp = ["-n", "10M"];
    let udp = ["-u", "-l", "8000", "-b", "40M", "-n", "1M"];
    let port = IPERF.to_string();
    for (options, back) in [(&tcp[..], false), (&tcp, true), (&udp, false), (&udp, true)] {
        let server = outside.server.spawn(&["iperf3", "-s", "-1", "-p", &port])?;
        outside.server.wait_listening(IPERF)?;
        let receiver = if back { outside.pod() } else { &outside.server };
        let before = overflows(receiver)?;
        let mut argv = vec!["iperf3", "--json", "-c", &target, "-p", &port];
        argv.extend(options);
        argv.extend(back.then_some("-R"));
        let report: Value =
            serde_json::from_str(&told(outside.pod(), &argv)).with_context(|| argv.join(" "))?;
        ensure!(report["error"].is_null(), "{}: {report}", argv.join(" "));
        let sum = &report["end"]["sum"];
        let outcome = if sum["lost_packets"].is_null() {
            let bytes = report["end"]["sum_received"]["bytes"].as_u64().unwrap_or(0);
            // The control connection ends the test before all data has arrived.
            format!("data arrived: {}", bytes > 1 << 20)
        } else {
            // On a busy machine the receiver may not read in time.
            let unread = overflows(receiver)? - before;
            let lost = sum["lost_packets"].as_u64().unwrap_or(u64::MAX);
            let lost = lost.saturating_sub(unread);
            format!("{lost} lost on the way")
        };
        all.insert(argv.join(" "), outcome);
        server.finish(SOON)?;
    }
    Ok(())
}

/// Returns the number of datagrams that found their socket's buffer full.
fn overflows(host: &Host) -> Result<u64> {
    let counters = ["UdpRcvbufErrors", "Udp6RcvbufErrors"];
    let told = host.run(&[&["nstat", "-asz"], &counters[..]].concat())?;
    let counts = told.lines().filter(|line| line.contains("RcvbufErrors"));
    counts
        .map(|line| {
            let count = line.split_whitespace().nth(1).unwrap_or_default();
            count.parse::<u64>().with_context(|| told.clone())
        })
        .sum()
}

/// Returns the output of a program, whether it succeeds or not.
fn told(host: &Host, argv: &[&str]) -> String {
    host.run(argv).unwrap_or_else(|error| format!("{error:#}"))
}

fn lines_with(text: &str, word: &str) -> String {
    let lines = text.lines().filter(|line| line.contains(word));
    lines.map(str::trim).collect::<Vec<_>>().join("\n")
}

/// Returns hop numbers, addresses and remarks, without times and counts.
fn hops(text: &str) -> String {
    let mut hops: Vec<String> = Vec::new();
    for line in text.lines() {
        let mut words: Vec<&str> = line.split_whitespace().collect();
        let is_hop = words
            .first()
            .is_some_and(|word| word.starts_with(|c: char| c.is_ascii_digit()));
        if !is_hop && words.first() != Some(&"Resume:") && !line.contains("`") {
            continue;
        }
        if line.contains("|--") {
            // mtr: number, address, loss; times follow.
            words.truncate(3);
        }
        words.retain(|word| {
            !word.ends_with("ms") && (word.parse::<f64>().is_err() || !word.contains('.'))
        });
        let hop = words.join(" ");
        if hops.last() != Some(&hop) {
            hops.push(hop);
        }
    }
    hops.join("\n")
}
