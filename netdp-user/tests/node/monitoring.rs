//! The content of deploy/monitoring in a real Prometheus, which scrapes a real agent: an exhaustion
//! reaches whoever is woken, a restart does not, and every query of the dashboard is answered.

use crate::common::clients::{Tcp, Udp, any, ping, tcp_source};
use crate::common::{ECHO, Echo, NETDP, POLICY, SOON, World, drops, echoes};
use crate::flows::cache;
use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use testbed::{Prometheus, Scraped, WorkDir, output, wait_for, wait_some};

/// Ports towards one destination.
const PORTS: usize = 20;

/// Series that these tests have no cause for, and why.
const WITHOUT_CAUSE: [(&str, &str); 3] = [
    ("netdp_events_lost_total", "nobody reads events"),
    ("netdp_nat_log_", "no log is written"),
    ("netdp_api_last_heard", "there is no API server"),
];

/// A world whose pods have names, with a Prometheus on the neighbour.
struct Watched {
    world: World,
    prometheus: Prometheus,
    _echo: Echo,
    _names: WorkDir,
}

impl Watched {
    fn start() -> Result<Self> {
        let names = WorkDir::new("cni")?;
        cache(names.path(), "cart", "172.16.0.2")?;
        cache(names.path(), "till", "172.16.0.3")?;
        let range = format!("40000-{}", 40_000 + PORTS - 1);
        let world = World::with(
            POLICY,
            &[
                "--enable-ipv6",
                "--to-ports",
                &range,
                "--metrics-listen=10.1.0.10:10269",
                "--cni-dir",
                &names.path().display().to_string(),
            ],
        )?;
        let echo = Echo::start(&world.far)?;
        let scraped = Scraped {
            agents: vec![("10.1.0.10:10269".parse()?, "node-a".to_owned())],
            rules: vec![file("alerts.yaml"), file("rules.yaml")],
        };
        let address = IpAddr::from(world.near.v4()?);
        let prometheus = Prometheus::start(&world.near, address, &scraped)?;
        Ok(Self {
            world,
            prometheus,
            _echo: echo,
            _names: names,
        })
    }

    /// Waits until a query has an answer, and returns its first value.
    fn value(&self, query: &str) -> Result<f64> {
        wait_some(SOON, &format!("an answer to {query}"), || {
            let series = self.prometheus.query(query).ok()?;
            series.first()?["value"][1].as_str()?.parse().ok()
        })
        .with_context(|| self.prometheus.written())
    }

    /// Waits until a query that compares has an answer.
    fn wait(&self, query: &str) -> Result<()> {
        self.value(query).map(drop)
    }

    /// Uses up the ports towards the echo server with connections, and waits until Prometheus knows.
    fn exhaust(&self) -> Result<Vec<Tcp>> {
        let to = self.echo()?;
        let open = (0..PORTS)
            .map(|_| {
                let mut connection = Tcp::connect(self.world.pod(0), any(to), to)?;
                connection.ask()?;
                Ok(connection)
            })
            .collect::<Result<_>>()?;
        self.wait("max(netdp_destination_ports_used / netdp_destination_ports) == 1")?;
        Ok(open)
    }

    fn echo(&self) -> Result<SocketAddr> {
        Ok(SocketAddr::from((self.world.far.v4()?, ECHO)))
    }

    /// Sends one SYN, which is refused: the second one would follow after a second.
    fn refused(&self) -> Result<()> {
        let to = self.echo()?;
        let before = drops(&self.world.agent, "no_free_port")?;
        let timeout = Duration::from_millis(300);
        let tried = self
            .world
            .pod(0)
            .enter(|| TcpStream::connect_timeout(&to, timeout))?;
        ensure!(tried.is_err(), "one more connection than ports");
        assert_eq!(drops(&self.world.agent, "no_free_port")?, before + 1);
        Ok(())
    }

    /// Returns the names of alerts that fire.
    fn firing(&self) -> Result<BTreeSet<String>> {
        let all = self.prometheus.query("ALERTS{alertstate=\"firing\"}")?;
        let name = |alert: &Value| alert["metric"]["alertname"].as_str().map(str::to_owned);
        Ok(all.iter().filter_map(name).collect())
    }
}

#[test]
fn the_first_refusal_ever_reaches_whoever_is_woken() -> Result<()> {
    let watched = Watched::start()?;
    // The series is there before anything was refused, or Prometheus would not see the first.
    let refusals = "sum(netdp_dropped_packets_total{reason=\"no_free_port\"})";
    assert_eq!(watched.value(refusals)?, 0.0);
    let _open = watched.exhaust()?;
    assert_eq!(watched.firing()?, BTreeSet::new());
    watched.refused()?;
    let alert = wait_some(SOON, "the alert to be received", || {
        watched.prometheus.received().into_iter().next()
    })
    .with_context(|| watched.prometheus.written())?;
    assert_eq!(alert["status"], "firing");
    assert_eq!(
        alert["labels"],
        serde_json::json!({
            "alertname": "NetdpPortsExhausted",
            "instance": "node-a",
            "severity": "critical",
        })
    );
    let annotations = &alert["annotations"];
    assert_eq!(
        annotations["summary"],
        "node-a refuses connections: every port towards a destination is taken"
    );
    assert_eq!(
        annotations["runbook_url"],
        "docs/alerts.md#netdpportsexhausted"
    );
    let description = annotations["description"].as_str().unwrap_or_default();
    ensure!(
        description.starts_with(
            "Packets of new connections dropped in the last 15 minutes: 1. Existing connections go \
             on, and other destinations work. Fullest: tcp 10.2.0.1 port 7 (100%)."
        ),
        "{description}"
    );
    // The namespace with most mappings.
    wait_for(SOON, "the namespace to be named", || {
        watched
            .prometheus
            .get("alerts", &[])
            .is_ok_and(|alerts| alerts.to_string().contains("by namespace: shop 20."))
    })?;
    assert_eq!(watched.firing()?, ["NetdpPortsExhausted".to_owned()].into());
    Ok(())
}

/// Nothing fires, and no counter in a pinned map begins anew.
#[test]
fn a_restart_of_the_agent_fires_nothing() -> Result<()> {
    let mut watched = Watched::start()?;
    let _open = watched.exhaust()?;
    watched.wait("sum(netdp_packets_total) > 0")?;
    let started = watched.value("netdp_ready and process_start_time_seconds")?;
    assert_eq!(started, 1.0);
    watched.world.agent.kill9()?;
    watched.wait("up == 0")?;
    watched.world.agent.restart()?;
    watched.wait("changes(process_start_time_seconds[5m]) == 1")?;
    watched.wait("netdp_ready == 1")?;
    assert_eq!(
        watched.value("sum(resets(netdp_dropped_packets_total[5m]))")?
            + watched.value("sum(resets(netdp_packets_total[5m]))")?,
        0.0
    );
    assert_eq!(watched.firing()?, BTreeSet::new());
    assert_eq!(watched.prometheus.received(), Vec::<Value>::new());
    Ok(())
}

#[test]
fn every_rule_and_every_panel_has_data() -> Result<()> {
    let watched = Watched::start()?;
    let world = &watched.world;
    let _open = watched.exhaust()?;
    watched.refused()?;
    for to in echoes(&world.far) {
        Udp::connect(world.pod(1), any(to), to)?.ask()?;
        ping(world.pod(1), to.ip())?;
    }
    let near = Echo::start(&world.near)?;
    for to in echoes(&world.near) {
        tcp_source(world.pod(1), to)?;
    }
    for query in queries()? {
        if WITHOUT_CAUSE.iter().any(|(name, _)| query.contains(name)) {
            continue;
        }
        watched.value(&query)?;
    }
    let rules = watched.prometheus.get("rules", &[])?;
    let groups = rules["groups"].as_array().context("no groups")?;
    let rules = groups
        .iter()
        .flat_map(|group| group["rules"].as_array().into_iter().flatten());
    for rule in rules {
        assert_eq!(rule["health"], "ok", "{rule}");
        if rule["type"] == "recording" {
            watched.value(rule["name"].as_str().context("no name")?)?;
        }
    }
    drop(near);
    Ok(())
}

/// The commands of docs/alerts.md, with their flags and values.
#[test]
fn the_commands_of_the_page_exist() -> Result<()> {
    let page = repository().join("docs/alerts.md");
    let page = std::fs::read_to_string(&page)?;
    let commands: BTreeSet<_> = page
        .lines()
        .filter_map(|line| line.strip_prefix("    netdp "))
        .collect();
    ensure!(commands.len() > 10, "{commands:?}");
    for command in commands {
        // `--help` comes last: what stands before it is parsed.
        let line = format!("exec \"$0\" {command} --help");
        output(Command::new("sh").args(["-c", &line, NETDP]))?;
    }
    Ok(())
}

/// Returns the queries of the dashboard, with its variables at "All".
fn queries() -> Result<Vec<String>> {
    let dashboard: Value = serde_json::from_str(&std::fs::read_to_string(file("dashboard.json"))?)?;
    let panels = dashboard["panels"].as_array().context("no panels")?;
    let targets = panels
        .iter()
        .flat_map(|panel| panel["targets"].as_array().into_iter().flatten());
    targets
        .map(|target| {
            let query = target["expr"].as_str().context("no expr")?;
            Ok(["$cluster", "$instance", "$namespace"]
                .iter()
                .fold(query.to_owned(), |query, name| query.replace(name, ".*")))
        })
        .collect()
}

fn repository() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn file(name: &str) -> PathBuf {
    repository().join("deploy/monitoring").join(name)
}
