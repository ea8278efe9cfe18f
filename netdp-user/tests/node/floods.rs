//! An API server, or a substitute, that sends without end: the agent's memory stays bounded, and
//! the policy in force stays.

use crate::common::{NETDP, SOON, status};
use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use testbed::{Agent, AgentOptions, Bed, Netns, WorkDir, wait_for};

const NODE: &str = "node-a";

/// Limit of the agent's memory in KiB: 200 MB. An idle agent uses some 30 MB.
const MOST: u64 = 195_312;

/// Bytes sent of one response, unless the agent closes the connection: enough for the proof, and
/// not enough to harm the test machine.
const SENT: usize = 400 << 20;

/// Response of the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// Valid, as from an API server.
    Well,
    /// A list with an object whose text is endless.
    Object,
    /// A list with endless pages.
    Pages,
    /// A list of many objects with many keys each.
    Keys,
    /// A watch with an endless line.
    Line,
    /// A watch with an endless sequence of objects.
    Objects,
    /// An error whose text is endless.
    Error,
    /// Many ConfigMaps, one of which changes continuously.
    Changes,
}

#[derive(Debug)]
struct State {
    mode: Mutex<Mode>,
    changed: Condvar,
    events: AtomicUsize,
}

impl State {
    fn mode(&self) -> MutexGuard<'_, Mode> {
        self.mode.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A server with as much HTTP as the agent uses.
struct Api {
    state: Arc<State>,
    port: u16,
}

impl Api {
    fn start(ns: &Netns) -> Result<Self> {
        let listener = ns.enter(|| TcpListener::bind("127.0.0.1:0"))??;
        let port = listener.local_addr()?.port();
        let state = Arc::new(State {
            mode: Mutex::new(Mode::Well),
            changed: Condvar::new(),
            events: AtomicUsize::new(0),
        });
        let of_server = Arc::clone(&state);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let state = Arc::clone(&of_server);
                // The client may close the connection at any time.
                std::thread::spawn(move || serve(&state, stream).ok());
            }
        });
        Ok(Self { state, port })
    }

    fn set(&self, mode: Mode) {
        *self.state.mode() = mode;
        self.state.changed.notify_all();
    }

    fn events(&self) -> usize {
        self.state.events.load(Ordering::Relaxed)
    }
}

fn serve(state: &State, stream: TcpStream) -> Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        let mut length = 0;
        loop {
            let mut header = String::new();
            reader.read_line(&mut header)?;
            let header = header.trim_end().to_ascii_lowercase();
            if let Some(value) = header.strip_prefix("content-length: ") {
                length = value.parse()?;
            }
            if header.is_empty() {
                break;
            }
        }
        std::io::copy(&mut reader.by_ref().take(length), &mut std::io::sink())?;
        answer(state, &line, &stream)?;
    }
}

fn answer(state: &State, request: &str, mut stream: &TcpStream) -> Result<()> {
    let mode = *state.mode();
    if request.starts_with("POST") {
        state.events.fetch_add(1, Ordering::Relaxed);
        return whole(stream, r#"{"metadata":{},"involvedObject":{}}"#);
    }
    if !request.starts_with("GET") {
        return whole(stream, r#"{"metadata":{}}"#);
    }
    let of_nodes = request.contains("/nodes?");
    let labelled = request.contains("labelSelector");
    let main = request.contains("ip-masq-agent");
    if request.contains("watch=true") {
        stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")?;
        match mode {
            Mode::Line if main => endless(stream, "{\"type\":\"ADDED\",\"object\":{\"a\":\"")?,
            Mode::Objects if labelled => {
                for number in 0..SENT / (100 << 10) {
                    let object = map(&format!("m{number}"), "config", &"#".repeat(100 << 10));
                    let event = json!({"type": "ADDED", "object": object});
                    chunk(stream, &format!("{event}\n"))?;
                }
            }
            Mode::Changes if labelled => return changes(state, stream),
            _ => {}
        }
        let now = state.changed.wait_while(state.mode(), |now| *now == mode);
        drop(now.unwrap_or_else(PoisonError::into_inner));
        let gone = json!({"type": "ERROR", "object":
            {"kind": "Status", "status": "Failure", "code": 410, "reason": "Expired", "message": "x"}});
        chunk(stream, &format!("{gone}\n"))?;
        stream.write_all(b"0\r\n\r\n")?;
        return Ok(());
    }
    if of_nodes {
        let node = json!({"metadata": {"name": NODE, "uid": "u", "resourceVersion": "1"}});
        return whole(stream, &list(&[node], ""));
    }
    match mode {
        Mode::Object if main => {
            stream.write_all(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")?;
            endless(
                stream,
                r#"{"metadata":{"resourceVersion":"1"},"items":[{"data":{"config":""#,
            )
        }
        Mode::Error if main => {
            stream.write_all(b"HTTP/1.1 500 No\r\nTransfer-Encoding: chunked\r\n\r\n")?;
            endless(stream, "no ")
        }
        Mode::Pages if labelled => {
            static NEXT: AtomicUsize = AtomicUsize::new(0);
            let next = NEXT.fetch_add(1, Ordering::Relaxed);
            whole(
                stream,
                &list(&[map(&format!("p{next}"), "config", "")], "more"),
            )
        }
        Mode::Keys if labelled => {
            static NEXT: AtomicUsize = AtomicUsize::new(0);
            let next = NEXT.fetch_add(1, Ordering::Relaxed);
            let keys: String = (0..300_000).map(|key| format!("\"{key}\":\"\",")).collect();
            let object = format!(
                "{{\"metadata\":{{\"name\":\"k{next}\",\"resourceVersion\":\"1\"}},\"data\":{{{keys}\"x\":\"\"}}}}"
            );
            whole(
                stream,
                &format!(
                    "{{\"metadata\":{{\"resourceVersion\":\"1\",\"continue\":\"c\"}},\"items\":[{object}]}}"
                ),
            )
        }
        Mode::Changes if labelled => {
            let all: Vec<_> = (0..30)
                .map(|n| map(&format!("m{n}"), "config", ""))
                .collect();
            whole(stream, &list(&all, ""))
        }
        _ if main => {
            let text = "nonMasqueradeCIDRs: [172.16.0.0/16]\n";
            whole(stream, &list(&[map("ip-masq-agent", "config", text)], ""))
        }
        _ => whole(stream, &list(&[], "")),
    }
}

/// Serves many ConfigMaps, one of which changes, and the policy with it.
fn changes(state: &State, stream: &TcpStream) -> Result<()> {
    for number in 2..100_000 {
        let pause = Duration::from_millis(300);
        let (now, _) = state
            .changed
            .wait_timeout_while(state.mode(), pause, |now| *now == Mode::Changes)
            .unwrap_or_else(PoisonError::into_inner);
        if *now != Mode::Changes {
            break;
        }
        drop(now);
        let text = format!("masqueradeCIDRs: [10.1.{}.0/24]\n", number % 250);
        let mut object = map("m7", "config", &text);
        object["metadata"]["resourceVersion"] = json!(number.to_string());
        chunk(
            stream,
            &format!("{}\n", json!({"type": "MODIFIED", "object": object})),
        )?;
    }
    Ok(())
}

fn map(name: &str, key: &str, text: &str) -> Value {
    json!({
        "metadata": {"name": name, "namespace": "kube-system", "uid": name, "resourceVersion": "1"},
        "data": {key: text},
    })
}

fn list(items: &[Value], next: &str) -> String {
    json!({"metadata": {"resourceVersion": "1", "continue": next}, "items": items}).to_string()
}

fn whole(mut stream: &TcpStream, text: &str) -> Result<()> {
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", text.len());
    stream.write_all(head.as_bytes())?;
    Ok(stream.write_all(text.as_bytes())?)
}

fn chunk(mut stream: &TcpStream, text: &str) -> Result<()> {
    let framed = format!("{:x}\r\n{text}\r\n", text.len());
    Ok(stream.write_all(framed.as_bytes())?)
}

/// Sends `begin`, then the same letter until the connection is closed.
fn endless(stream: &TcpStream, begin: &str) -> Result<()> {
    chunk(stream, begin)?;
    let piece = "a".repeat(1 << 20);
    for _ in 0..SENT / piece.len() {
        chunk(stream, &piece)?;
    }
    Ok(())
}

struct World {
    api: Api,
    agent: Agent,
    _bed: Bed,
    _dir: WorkDir,
}

impl World {
    fn start() -> Result<Self> {
        let bed = Bed::builder()
            .uplink("eth0", &["10.1.0.10/16"])
            .pods(1, &["172.16.0.0/24"])
            .build()?;
        let api = Api::start(&bed.node)?;
        let dir = WorkDir::new("floods")?;
        let kubeconfig = dir.path().join("kubeconfig");
        let server = format!("http://127.0.0.1:{}", api.port);
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": "c", "cluster": {"server": server}}],
            "users": [{"name": "u", "user": {}}],
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
            "current-context": "x",
        });
        std::fs::write(&kubeconfig, config.to_string())?;
        let options = AgentOptions::new(NETDP)
            .config(&dir.path().join("none"))
            .arg("--kube=on")
            .arg("--kubeconfig")
            .arg(&kubeconfig)
            .arg(format!("--node-name={NODE}"));
        let agent = Agent::start(&bed.node, options)?;
        Ok(Self {
            api,
            agent,
            _bed: bed,
            _dir: dir,
        })
    }

    fn report(&self) -> Result<Value> {
        Ok(status(&self.agent)?["report"].clone())
    }

    /// Waits until the API's status contains `words`.
    fn wait_api(&self, words: &str) -> Result<()> {
        let mut seen = String::new();
        wait_for(SOON, &format!("{words:?} of the API"), || {
            let report = self.report().unwrap_or_default();
            seen = report["api"].as_str().unwrap_or_default().to_owned();
            seen.contains(words)
        })
        .with_context(|| {
            let peak = self.peak().unwrap_or_default();
            format!("it is {seen:?}; {peak} KiB\n{}", self.agent.log())
        })
    }

    /// Returns the maximum resident memory in KiB.
    fn peak(&self) -> Result<u64> {
        let path = format!("/proc/{}/status", self.agent.pid());
        let text = std::fs::read_to_string(path)?;
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let number = line.and_then(|line| line.split_whitespace().next());
        Ok(number.context("no VmHWM")?.parse()?)
    }
}

#[test]
fn answers_without_end_are_not_read_to_their_end() -> Result<()> {
    let world = World::start()?;
    world.wait_api("followed")?;
    let hash = world.report()?["config"]["hash"].clone();
    for (mode, words) in [
        (Mode::Object, "more than 4 MiB at once"),
        (Mode::Error, "more than 4 MiB at once"),
        (Mode::Line, "more than 4 MiB at once"),
        (Mode::Pages, "more than 64 ConfigMaps have the label"),
        (Mode::Keys, "hold more than 4 MiB"),
        (Mode::Objects, "hold more than 4 MiB"),
    ] {
        world.api.set(mode);
        world.wait_api(words)?;
        let report = world.report()?;
        ensure!(
            report["config"]["hash"] == hash,
            "{mode:?}: another policy is in force: {report:#}"
        );
        let api = report["api"].as_str().unwrap_or_default();
        ensure!(
            api.contains("the configuration received last stays in force"),
            "{api}"
        );
        let peak = world.peak()?;
        ensure!(peak < MOST, "{mode:?}: the agent held {peak} KiB");
        eprintln!("{mode:?}: {peak} KiB at most");
        world.api.set(Mode::Well);
        wait_for(SOON, "the API to be followed again", || {
            world
                .report()
                .is_ok_and(|report| report["api"] == "followed")
        })?;
    }
    Ok(())
}

#[test]
fn changes_without_end_are_not_told_without_end() -> Result<()> {
    let world = World::start()?;
    world.wait_api("followed")?;
    world.api.set(Mode::Changes);
    wait_for(SOON, "many policies", || {
        let report = world.report().unwrap_or_default();
        report["config"]["generation"].as_u64() >= Some(30)
    })
    .with_context(|| world.agent.log())?;
    let events = world.api.events();
    eprintln!("{events} Events");
    ensure!((1..=20).contains(&events), "{events} Events");
    Ok(())
}
