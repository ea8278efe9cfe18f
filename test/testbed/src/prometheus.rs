//! A real Prometheus with a real Alertmanager, and a receiver of the alerts.

use super::netns::Netns;
use super::process::Running;
use super::service::Service;
use super::unpacked;
use super::workdir::WorkDir;
use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use std::fs;
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// Ports that the programs listen on by default.
const PROMETHEUS: u16 = 9090;
const ALERTMANAGER: u16 = 9093;

/// Port of the receiver.
const RECEIVER: u16 = 9099;

/// Targets and rules of a Prometheus that scrapes and evaluates each second.
#[derive(Debug, Default)]
pub struct Scraped {
    /// Endpoints of the job `netdp`, with the label `instance` of each.
    pub agents: Vec<(SocketAddr, String)>,
    /// Files with rules.
    pub rules: Vec<PathBuf>,
}

/// A Prometheus in a namespace, which sends alerts to an Alertmanager beside it, which sends them on
/// to a receiver.
#[derive(Debug)]
pub struct Prometheus {
    ns: Netns,
    at: SocketAddr,
    received: Arc<Mutex<Vec<Value>>>,
    prometheus: Running,
    alertmanager: Running,
    _receiver: Service,
    _dir: WorkDir,
}

impl Prometheus {
    /// Starts all three on an address of the namespace, and waits until they listen.
    pub fn start(ns: &Netns, address: IpAddr, scraped: &Scraped) -> Result<Self> {
        let dir = WorkDir::new("prometheus")?;
        let at = |port| SocketAddr::new(address, port);
        let received = Arc::default();
        let receiver = receive(ns, at(RECEIVER), &received)?;
        let alertmanager = alertmanager(ns, at(ALERTMANAGER), at(RECEIVER), &dir)?;
        let file = dir.path().join("prometheus.yml");
        fs::write(&file, configuration(scraped, at(ALERTMANAGER)))?;
        let mut command = ns.command(unpacked::find("prometheus")?);
        command
            .arg(format!("--config.file={}", file.display()))
            .arg(format!("--storage.tsdb.path={}", data(&dir, "tsdb")))
            .arg(format!("--web.listen-address={}", at(PROMETHEUS)));
        let started = Self {
            ns: ns.clone(),
            at: at(PROMETHEUS),
            received,
            prometheus: Running::start(command)?,
            alertmanager,
            _receiver: receiver,
            _dir: dir,
        };
        for port in [ALERTMANAGER, PROMETHEUS] {
            ns.wait_listening(port).with_context(|| started.written())?;
        }
        Ok(started)
    }

    /// Returns the `data` of an answer of its API, for example `query` with `[("query", "up")]`.
    pub fn get(&self, path: &str, parameters: &[(&str, &str)]) -> Result<Value> {
        let mut command = vec!["curl".to_owned(), "-sSG".to_owned()];
        for (name, value) in parameters {
            command.extend(["--data-urlencode".to_owned(), format!("{name}={value}")]);
        }
        command.push(format!("http://{}/api/v1/{path}", self.at));
        let answer = self.ns.run(&command)?;
        let mut answer: Value = serde_json::from_str(&answer)
            .with_context(|| format!("{path} of Prometheus: {answer}"))?;
        ensure!(answer["status"] == "success", "{parameters:?}: {answer}");
        Ok(answer["data"].take())
    }

    /// Returns the series of a query's answer.
    pub fn query(&self, query: &str) -> Result<Vec<Value>> {
        let mut data = self.get("query", &[("query", query)])?;
        match data["result"].take() {
            Value::Array(series) => Ok(series),
            other => anyhow::bail!("{query}: no series: {other}"),
        }
    }

    /// Returns the alerts that the receiver has got, as Alertmanager sends them.
    #[must_use]
    pub fn received(&self) -> Vec<Value> {
        lock(&self.received).clone()
    }

    /// Returns what both programs have written, for a failure message.
    #[must_use]
    pub fn written(&self) -> String {
        format!(
            "Alertmanager wrote:{}\nPrometheus wrote:{}",
            self.alertmanager.written(),
            self.prometheus.written()
        )
    }
}

fn lock(received: &Mutex<Vec<Value>>) -> std::sync::MutexGuard<'_, Vec<Value>> {
    received.lock().unwrap_or_else(PoisonError::into_inner)
}

fn data(dir: &WorkDir, name: &str) -> String {
    dir.path().join(name).display().to_string()
}

fn configuration(scraped: &Scraped, alertmanager: SocketAddr) -> String {
    let mut text = String::from(
        "global: {scrape_interval: 1s, scrape_timeout: 1s, evaluation_interval: 1s}\nrule_files:\n",
    );
    for file in &scraped.rules {
        text += &format!("- {}\n", file.display());
    }
    text += &format!(
        "alerting:\n  alertmanagers:\n  - static_configs: [targets: ['{alertmanager}']]\n\
         scrape_configs:\n- job_name: netdp\n  honor_labels: true\n  static_configs:\n"
    );
    for (at, instance) in &scraped.agents {
        text += &format!("  - targets: ['{at}']\n    labels: {{instance: {instance}}}\n");
    }
    text
}

/// Starts an Alertmanager that sends each alert at once, and does not look for others of its kind.
fn alertmanager(ns: &Netns, at: SocketAddr, to: SocketAddr, dir: &WorkDir) -> Result<Running> {
    let file = dir.path().join("alertmanager.yml");
    let text = format!(
        "route: {{receiver: test, group_by: [...], group_wait: 0s, group_interval: 1s}}\n\
         receivers:\n- name: test\n  webhook_configs: [{{url: 'http://{to}/'}}]\n"
    );
    fs::write(&file, text)?;
    let program = unpacked::find("prometheus-alertmanager")?;
    // It reads templates at a path that it was built with.
    let share = "/usr/share";
    let mut command = if Path::new(share).join("prometheus/alertmanager").exists() {
        ns.command(program)
    } else {
        let mut command = ns.command("unshare");
        let script = format!("mount --bind \"$0\" {share} && exec \"$@\"");
        command.args(["--mount", "sh", "-c", &script]);
        command.arg(unpacked::usr()?.join("share")).arg(program);
        command
    };
    command
        .arg(format!("--config.file={}", file.display()))
        .arg(format!("--storage.path={}", data(dir, "alertmanager")))
        .arg(format!("--web.listen-address={at}"))
        .arg("--cluster.listen-address=");
    Running::start(command)
}

/// Accepts what Alertmanager posts, and keeps the alerts in it.
fn receive(ns: &Netns, at: SocketAddr, received: &Arc<Mutex<Vec<Value>>>) -> Result<Service> {
    let received = Arc::clone(received);
    Service::tcp(ns, at, move |stream, _| {
        let posted = body(&stream)?;
        if let Some(alerts) = posted["alerts"].as_array() {
            lock(&received).extend(alerts.iter().cloned());
        }
        (&stream).write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
    })
}

/// Reads a request and returns its body, which is JSON.
fn body(stream: &TcpStream) -> io::Result<Value> {
    let mut reader = BufReader::new(stream);
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(':') else {
            if line.trim_end().is_empty() {
                break;
            }
            continue;
        };
        if name.eq_ignore_ascii_case("content-length") {
            length = value.trim().parse().map_err(io::Error::other)?;
        }
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    serde_json::from_slice(&body).map_err(io::Error::other)
}
