//! `/metrics` of a real agent: it agrees with what was sent, goes on over a restart, has what never
//! happened with 0, and stays bounded.

use crate::common::clients::{Tcp, Udp, any, from_port, send_raw};
use crate::common::{ECHO, Echo, SOON, World, options, refused};
use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::path::Path;
use testbed::{Agent, Bed, ConfigVolume, Host, Netns, WorkDir, wait_for, wait_some};

/// Pods and the node's own network are bypassed. The agent compares nothing while a test runs, so
/// that it sends no test packets, which are counted, too.
const QUIET: &str = "\
nonMasqueradeCIDRs:
- 172.16.0.0/16
- 10.1.0.0/16
resyncInterval: 1h
";

const HTTP: &str = "127.0.0.1:10268";
const METRICS: &str = "127.0.0.1:10269";

/// Number of scrapes that are measured.
const SCRAPES: u32 = 50;

/// Number of an IPsec AH packet, which can't be translated.
const AH: i32 = 51;

/// The samples of a scrape by series.
struct Scrape(BTreeMap<String, f64>);

impl Scrape {
    fn of(node: &Netns) -> Result<Self> {
        let url = format!("http://{METRICS}/metrics");
        let text = node.run(&["curl", "-sS", "-m", "10", "--fail", &url])?;
        ensure!(text.ends_with("# EOF\n"), "not ended: {text}");
        let mut samples = BTreeMap::new();
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let (series, value) = line.rsplit_once(' ').with_context(|| line.to_owned())?;
            let before = samples.insert(series.to_owned(), value.parse()?);
            ensure!(before.is_none(), "{series} is there twice");
        }
        Ok(Self(samples))
    }

    fn value(&self, series: &str) -> Result<f64> {
        let value = self.0.get(series);
        value.copied().with_context(|| format!("no {series}"))
    }

    /// Returns the values of all series of a metric.
    fn all(&self, metric: &str) -> Vec<f64> {
        let is_of = |series: &str| series.split('{').next() == Some(metric);
        let series = self.0.iter().filter(|(series, _)| is_of(series));
        series.map(|(_, value)| *value).collect()
    }

    fn sum(&self, metric: &str) -> f64 {
        self.all(metric).iter().sum()
    }

    /// Returns the packets or bytes of an outcome at `eth0`.
    fn outcome(&self, metric: &str, direction: &str, outcome: &str) -> Result<f64> {
        let labels = format!("uplink=\"eth0\",direction=\"{direction}\",outcome=\"{outcome}\"");
        self.value(&format!("{metric}{{{labels}}}"))
    }

    fn dropped(&self, reason: &str) -> Result<f64> {
        let labels = format!("uplink=\"eth0\",direction=\"egress\",reason=\"{reason}\"");
        self.value(&format!("netdp_dropped_packets_total{{{labels}}}"))
    }

    /// Returns all packets that were seen, each by its one outcome.
    fn seen(&self) -> f64 {
        let metrics = [
            "netdp_packets_total",
            "netdp_dropped_packets_total",
            "netdp_icmp_errors_translated_total",
            "netdp_fragments_held_total",
        ];
        metrics.map(|metric| self.sum(metric)).iter().sum()
    }
}

/// Writes what libcni caches for a pod with this address.
fn name(dir: &Path, namespace: &str, name: &str, address: Ipv4Addr) -> Result<()> {
    let cached = json!({
        "kind": "cniCacheV1",
        "cniArgs": [["K8S_POD_NAMESPACE", namespace], ["K8S_POD_NAME", name]],
        "result": { "ips": [{ "address": format!("{address}/16") }] },
    });
    fs::write(dir.join(format!("pods-{name}-eth0")), cached.to_string())?;
    Ok(())
}

/// Sends datagrams, and waits for the answer to each.
fn ask(pod: &Host, to: SocketAddr, datagrams: usize) -> Result<Udp> {
    let mut flow = Udp::connect(pod, any(to), to)?;
    for _ in 0..datagrams {
        flow.ask()?;
    }
    Ok(flow)
}

/// Returns the series of mappings created of a protocol.
fn created(protocol: &str) -> String {
    format!("netdp_mappings_created_total{{protocol=\"{protocol}\"}}")
}

/// Keeps a namespace from sending packets that no test asked for.
fn without_ipv6(ns: &Netns) -> Result<()> {
    ns.sysctl("net.ipv6.conf.all.disable_ipv6", "1")
}

#[test]
fn every_packet_has_one_outcome_and_counts_go_on_over_a_restart() -> Result<()> {
    let bed = Bed::builder()
        .uplink("eth0", &["10.1.0.10/16"])
        .pods(2, &["172.16.0.0/24"])
        .build()?;
    let near = bed.neighbour(0, &["10.1.0.20/16"])?;
    let far = bed.server(0, &["10.2.0.1/24"])?;
    for ns in [&bed.node, &bed.uplinks[0].router, &near, &far] {
        without_ipv6(ns)?;
    }
    let (_near, _far) = (Echo::start(&near)?, Echo::start(&far)?);
    let [near, far] = [near.v4()?, far.v4()?].map(|to| SocketAddr::from((to, ECHO)));
    let config = ConfigVolume::new(QUIET)?;
    let metrics = format!("--metrics-listen={METRICS}");
    let mut agent = Agent::start(&bed.node, options(&config, &[&metrics]))?;
    // The addresses of the link layer are known from here on, and nothing waits for them.
    let _warm = [ask(&bed.pods[0], near, 1)?, ask(&bed.pods[0], far, 1)?];

    let before = Scrape::of(&bed.node)?;
    let _flows = [ask(&bed.pods[0], far, 70)?, ask(&bed.pods[1], far, 30)?];
    let _bypassed = ask(&bed.pods[1], near, 40)?;
    for _ in 0..7 {
        send_raw(&bed.pods[0], AH, far.ip(), &[0; 32])?;
    }
    let after = Scrape::of(&bed.node)?;

    let packets = |direction: &str, outcome: &str| -> Result<f64> {
        let of = |it: &Scrape| it.outcome("netdp_packets_total", direction, outcome);
        Ok(of(&after)? - of(&before)?)
    };
    assert_eq!(packets("egress", "masqueraded")?, 100.0);
    assert_eq!(packets("ingress", "translated")?, 100.0);
    assert_eq!(packets("egress", "bypassed")?, 40.0);
    assert_eq!(packets("ingress", "passed")?, 40.0);
    let ah = after.dropped("unsupported_protocol")? - before.dropped("unsupported_protocol")?;
    assert_eq!(ah, 7.0);
    assert_eq!(after.seen() - before.seen(), 287.0);
    let [tcp, udp] = ["tcp", "udp"].map(created);
    assert_eq!(after.value(&udp)? - before.value(&udp)?, 2.0);

    // Two packets of the self-check are counted with each start of an agent.
    agent.restart()?;
    let again = Scrape::of(&bed.node)?;
    let more = again.seen() - after.seen();
    ensure!((0.0..=2.0).contains(&more), "{more} more packets");
    assert_eq!(again.dropped("unsupported_protocol")?, 7.0);
    for created in [&tcp, &udp] {
        assert_eq!(again.value(created)?, after.value(created)?, "{created}");
    }
    ask(&bed.pods[0], far, 5)?;
    let last = Scrape::of(&bed.node)?;
    assert_eq!(last.seen() - again.seen(), 10.0);

    // The programs count connections with all mappings only.
    let mut connection = Tcp::connect(&bed.pods[0], any(far), far)?;
    connection.ask()?;
    let then = Scrape::of(&bed.node)?;
    assert_eq!(then.value(&tcp)? - last.value(&tcp)?, 1.0);
    assert_eq!(then.value(&udp)?, last.value(&udp)?);
    Ok(())
}

#[test]
fn the_first_refusal_moves_a_series_that_was_0() -> Result<()> {
    let names = WorkDir::new("cni")?;
    name(names.path(), "shop", "cart", [172, 16, 0, 2].into())?;
    name(names.path(), "ads", "late", [172, 16, 0, 3].into())?;
    let cni = names.path().display().to_string();
    let arguments = [
        "--to-ports=40000-40003",
        &format!("--http-listen={HTTP}"),
        &format!("--metrics-listen={METRICS}"),
        "--cni-dir",
        &cni,
    ];
    let world = World::with(QUIET, &arguments)?;
    let node = &world.bed.node;
    let _echo = Echo::start(&world.far)?;
    let first = Scrape::of(node)?;
    assert_eq!(first.dropped("no_free_port")?, 0.0);
    let refused = "netdp_port_allocations_total{result=\"refused\"}";
    let worst = "netdp_destination_ports_used_ratio_max{family=\"ipv4\",protocol=\"udp\"}";
    for series in [
        refused,
        worst,
        "netdp_mappings_ended_total{why=\"timeout\"}",
    ] {
        assert_eq!(first.value(series)?, 0.0, "{series}");
    }
    assert_eq!(first.value("netdp_ready")?, 1.0);
    assert_eq!(
        first.value("netdp_self_check_successful{uplink=\"eth0\"}")?,
        1.0
    );

    // Traffic of mappings counts from the first pass on.
    wait_for(SOON, "the first full pass", || {
        let full = "netdp_sweep_duration_seconds_count{kind=\"full\"}";
        Scrape::of(node).is_ok_and(|it| it.value(full).is_ok_and(|count| count >= 1.0))
    })?;
    let to = SocketAddr::from((world.far.v4()?, ECHO));
    let mut open = Vec::new();
    for _ in 0..4 {
        open.push(ask(world.pod(0), to, 10)?);
    }
    let late = world.pod(1).open(|| UdpSocket::bind("0.0.0.0:5000"))?;
    late.send_to(b"refused", to)?;
    let then = wait_some(SOON, "the refusal to be counted", || {
        let scrape = Scrape::of(node).ok()?;
        (scrape.dropped("no_free_port").ok()? == 1.0).then_some(scrape)
    })?;
    assert_eq!(then.value(refused)?, 1.0);
    // Each mapping had a search; the last of the four most likely met ports that are taken.
    let searches = |suffix: &str| then.value(&format!("netdp_port_search_candidates_{suffix}"));
    let created = then.sum("netdp_mappings_created_total");
    assert_eq!(searches("count")?, created);
    assert_eq!(searches("bucket{le=\"256.0\"}")?, created);
    assert_eq!(searches("bucket{le=\"65536.0\"}")?, created);
    ensure!(searches("sum")? >= created);

    // What the next pass of the sweep sees.
    let seen_as = "protocol=\"udp\",address=\"10.1.0.10\",destination=\"10.2.0.1\",port=\"7\"";
    let used = format!("netdp_destination_ports_used{{{seen_as}}}");
    let then = wait_some(SOON, "the sweep to count the ports", || {
        let scrape = Scrape::of(node).ok()?;
        (scrape.value(&used).ok()? == 4.0).then_some(scrape)
    })?;
    let ports = format!("netdp_destination_ports{{{seen_as}}}");
    assert_eq!(then.value(&ports)?, 4.0);
    assert_eq!(then.value(worst)?, 1.0);
    let udp = "netdp_mappings{protocol=\"udp\",state=\"replied\"}";
    assert_eq!(then.value(udp)?, 4.0);
    // 28 bytes of headers and a word, `udp-1` to `udp-9`, and `udp-10`. Mappings that began while a
    // pass ran are new to the next.
    let sent = 4.0 * (10.0 * 28.0 + 9.0 * 5.0 + 6.0);
    for (what, namespace, expected) in [
        ("mappings", "shop", 4.0),
        ("mappings_created_total", "shop", 4.0),
        ("transmit_bytes_total", "shop", sent),
        ("refused_total", "shop", 0.0),
        ("refused_total", "ads", 1.0),
    ] {
        let series = format!("netdp_namespace_{what}{{namespace=\"{namespace}\"}}");
        wait_for(SOON, &format!("{series} to be {expected}"), || {
            let now = Scrape::of(node).and_then(|it| it.value(&series));
            now.is_ok_and(|now| now == expected)
        })?;
    }
    Ok(())
}

/// The mappings live for two seconds, and passes are five apart: mostly no pass leaves any.
#[test]
fn ports_that_were_in_use_between_two_passes_are_remembered() -> Result<()> {
    let world = World::with(
        QUIET,
        &[
            "--to-ports=40000-40003",
            "--timeout=udp-unreplied=2s",
            "--timeout=udp-replied=2s",
            "--timeout=udp-lookup=2s",
            &format!("--metrics-listen={METRICS}"),
        ],
    )?;
    let node = &world.bed.node;
    let _echo = Echo::start(&world.far)?;
    let passes = |it: &Scrape| it.value("netdp_sweep_duration_seconds_count{kind=\"full\"}");
    let before = wait_some(SOON, "a full pass", || {
        let scrape = Scrape::of(node).ok()?;
        (passes(&scrape).ok()? >= 1.0).then_some(scrape)
    })?;
    let ended = "netdp_mappings_ended_total{why=\"timeout\"}";
    let before = before.value(ended)?;
    let to = SocketAddr::from((world.far.v4()?, ECHO));
    let open: Vec<_> = (0..4)
        .map(|_| ask(world.pod(0), to, 1))
        .collect::<Result<_>>()?;
    drop(open);
    let then = wait_some(SOON, "the mappings to end", || {
        let scrape = Scrape::of(node).ok()?;
        (scrape.value(ended).ok()? == before + 4.0).then_some(scrape)
    })?;
    let labels = "protocol=\"udp\",address=\"10.1.0.10\",destination=\"10.2.0.1\",port=\"7\"";
    ensure!(then.all("netdp_destination_ports_used").is_empty());
    let most = format!("netdp_destination_ports_used_max{{{labels}}}");
    assert_eq!(then.value(&most)?, 4.0);
    let ports = format!("netdp_destination_ports{{{labels}}}");
    assert_eq!(then.value(&ports)?, 4.0);
    let of = "family=\"ipv4\",protocol=\"udp\"";
    let now = format!("netdp_destination_ports_used_ratio{{{of}}}");
    let worst = format!("netdp_destination_ports_used_ratio_max{{{of}}}");
    assert_eq!((then.value(&now)?, then.value(&worst)?), (0.0, 1.0));
    Ok(())
}

#[test]
fn each_listener_serves_its_own_paths() -> Result<()> {
    let arguments = [
        &*format!("--http-listen={HTTP}"),
        &format!("--metrics-listen={METRICS}"),
    ];
    let world = World::with(QUIET, &arguments)?;
    let ask = |at: &str, arguments: &[&str], path: &str| -> Result<String> {
        let url = format!("http://{at}{path}");
        let format = " %{http_code} %{content_type}";
        let curl = [
            &["curl", "-sS", "-m", "10", "-w", format],
            arguments,
            &[&url],
        ];
        world.bed.node.run(&curl.concat())
    };
    for at in [HTTP, METRICS] {
        let told = ask(at, &[], "/metrics")?;
        let end = "# EOF\n 200 application/openmetrics-text; version=1.0.0; charset=utf-8";
        ensure!(told.ends_with(end), "{told}");
        let lines = told.lines().count();
        ensure!(lines <= 1500, "{lines} lines");
        ensure!(ask(at, &["-X", "POST"], "/metrics")?.contains(" 405 "));
        let head = ask(at, &["--head"], "/metrics")?;
        ensure!(head.contains("200 OK"), "{head}");
    }
    ensure!(ask(HTTP, &[], "/livez")?.contains(" 200 "));
    let told = ask(METRICS, &[], "/livez")?;
    ensure!(told.starts_with("not found: use /metrics"), "{told}");
    Ok(())
}

#[test]
fn a_wrong_number_of_destinations_is_refused() -> Result<()> {
    let mut command = std::process::Command::new(crate::common::NETDP);
    command.args(["run", "--metrics-top", "101"]);
    let told = refused(command)?;
    ensure!(told.contains("expected a number from 0 to 100"), "{told}");
    Ok(())
}

/// 500 pods with names, and 300 destinations of which each has a notable share of its ports in use.
#[test]
fn series_are_bounded() -> Result<()> {
    let names = WorkDir::new("cni")?;
    let bed = Bed::builder()
        .uplink("eth0", &["10.1.0.10/16"])
        .pods(1, &["172.16.0.0/16"])
        .build()?;
    let far = bed.server(0, &["10.2.0.1/16"])?;
    let pod = &bed.pods[0];
    let addresses: Vec<Ipv4Addr> = (0..500_u16)
        .map(|n| {
            let [high, low] = (n + 256).to_be_bytes();
            [172, 16, high, low].into()
        })
        .collect();
    let mut batch = String::new();
    for (n, address) in addresses.iter().enumerate() {
        writeln!(batch, "addr add {address}/16 dev eth0")?;
        let name_of = |what: &str| format!("{what}-{n}");
        name(names.path(), &name_of("ns"), &name_of("pod"), *address)?;
    }
    let file = names.path().join("batch");
    fs::write(&file, batch)?;
    pod.ip(&format!("-batch {}", file.display()))?;
    let config = ConfigVolume::new(QUIET)?;
    let arguments = [
        "--to-ports=40000-40007",
        "--metrics-pods=pod",
        &format!("--metrics-listen={METRICS}"),
        "--cni-dir",
        &names.path().display().to_string(),
    ];
    let _agent = Agent::start(&bed.node, options(&config, &arguments))?;
    let [a, b, ..] = far.v4()?.octets();
    let destination = |n: usize| -> Result<SocketAddr> {
        let [high, low] = u16::try_from(n % 300 + 256)?.to_be_bytes();
        Ok(SocketAddr::from(([a, b, high, low], 9)))
    };
    let sent = pod.enter(|| -> Result<()> {
        for (n, address) in addresses.iter().enumerate() {
            let to = destination(n)?;
            let from = SocketAddr::new((*address).into(), from_port(5000, to).port());
            UdpSocket::bind(from)?.send_to(b"once", to)?;
        }
        Ok(())
    })?;
    sent?;
    let scrape = wait_some(SOON, "the sweep to count all mappings", || {
        let scrape = Scrape::of(&bed.node).ok()?;
        let is_all = |metric| scrape.sum(metric) == 500.0;
        (is_all("netdp_namespace_mappings") && is_all("netdp_mappings")).then_some(scrape)
    })?;
    for (metric, most) in [
        ("netdp_namespace_mappings", 65),
        ("netdp_namespace_transmit_bytes_total", 65),
        ("netdp_pod_mappings", 301),
        ("netdp_destination_ports_used", 10),
        ("netdp_destination_ports_used_max", 10),
    ] {
        assert_eq!(scrape.all(metric).len(), most, "{metric}");
    }
    let destinations = scrape.all("netdp_destination_ports").len();
    ensure!((10..=20).contains(&destinations), "{destinations}");
    assert_eq!(scrape.sum("netdp_pod_mappings"), 500.0);
    let others = "netdp_namespace_mappings{namespace=\"(other)\"}";
    assert_eq!(scrape.value(others)?, 436.0);

    let cpu = |scrape: &Scrape| scrape.value("process_cpu_seconds_total");
    let before = cpu(&scrape)?;
    for _ in 1..SCRAPES {
        Scrape::of(&bed.node)?;
    }
    let took = (cpu(&Scrape::of(&bed.node)?)? - before) * 1000.0 / f64::from(SCRAPES);
    let series = scrape.0.len();
    eprintln!("a scrape of {series} series takes {took:.1} ms of the agent's CPU time");
    Ok(())
}
