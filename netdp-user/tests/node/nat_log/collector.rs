//! Collectors of the log's lines, which can be taken away.

use crate::common::clients::{Tcp, from_port};
use crate::common::{Echo, POLICY, SOON, World, echoes};
use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, ErrorKind, Read as _, Write as _};
use std::net::SocketAddr;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;
use testbed::{WorkDir, wait_for};

/// Bytes that it reads at once, before it pauses: it may be behind when it goes.
const AT_ONCE: usize = 32 << 10;

/// Its pause.
const PAUSE: Duration = Duration::from_millis(5);

/// A collector that appends complete lines to a file.
pub struct Collector {
    socket: PathBuf,
    file: PathBuf,
    is_to_end: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl Collector {
    /// Returns a collector that is away.
    pub fn new(socket: &Path, file: &Path) -> Self {
        Self {
            socket: socket.to_owned(),
            file: file.to_owned(),
            is_to_end: Arc::default(),
            thread: None,
        }
    }

    /// Has it listen, unless it does.
    pub fn come(&mut self) -> Result<()> {
        if self.thread.is_some() {
            return Ok(());
        }
        let listener = UnixListener::bind(&self.socket)?;
        listener.set_nonblocking(true)?;
        let file = File::options().create(true).append(true).open(&self.file)?;
        self.is_to_end = Arc::default();
        let is_to_end = Arc::clone(&self.is_to_end);
        self.thread = Some(std::thread::spawn(move || {
            collect(&listener, &file, &is_to_end)
        }));
        Ok(())
    }

    /// Takes it away at once: what it has not read is lost.
    pub fn go(&mut self) -> Result<()> {
        self.is_to_end.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            fs::remove_file(&self.socket)?;
            thread
                .join()
                .map_err(|_| anyhow::anyhow!("the collector panicked"))??;
        }
        Ok(())
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.is_to_end.store(true, Ordering::Relaxed);
    }
}

/// Takes one connection after the other until it is to end.
fn collect(listener: &UnixListener, file: &File, is_to_end: &AtomicBool) -> Result<()> {
    while !is_to_end.load(Ordering::Relaxed) {
        match listener.accept() {
            Ok((stream, _)) => append(stream, file, is_to_end)?,
            Err(err) if err.kind() == ErrorKind::WouldBlock => std::thread::sleep(PAUSE),
            Err(err) => return Err(err.into()),
        }
    }
    Ok(())
}

/// Appends the complete lines of a connection.
fn append(mut stream: UnixStream, mut file: &File, is_to_end: &AtomicBool) -> Result<()> {
    stream.set_read_timeout(Some(PAUSE))?;
    let mut unfinished = Vec::new();
    let mut bytes = vec![0; AT_ONCE];
    while !is_to_end.load(Ordering::Relaxed) {
        let read = match stream.read(&mut bytes) {
            Ok(0) => break,
            Ok(read) => read,
            Err(err) if matches!(err.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                continue;
            }
            Err(err) => return Err(err.into()),
        };
        unfinished.extend_from_slice(&bytes[..read]);
        let complete = unfinished.iter().rposition(|byte| *byte == b'\n');
        let complete = complete.map_or(0, |last| last + 1);
        file.write_all(&unfinished[..complete])?;
        unfinished.drain(..complete);
        std::thread::sleep(PAUSE);
    }
    Ok(())
}

/// Reads the records of one connection up to one of which `is_last` is true.
fn read_until(listener: &UnixListener, is_last: impl Fn(&Value) -> bool) -> Result<Vec<Value>> {
    let (stream, _) = listener.accept()?;
    stream.set_read_timeout(Some(SOON))?;
    let mut seen = Vec::<Value>::new();
    for line in BufReader::new(stream).lines() {
        seen.push(serde_json::from_str(&line?)?);
        if seen.last().is_some_and(&is_last) {
            break;
        }
    }
    Ok(seen)
}

#[test]
fn a_collector_gets_lines_and_what_it_missed() -> Result<()> {
    let dir = WorkDir::new("collector")?;
    let path = dir.path().join("socket");
    let target = format!("unix:{}", path.display());
    let world = World::with(POLICY, &["--enable-ipv6", "--nat-log", &target])?;
    let _echo = Echo::start(&world.far)?;
    let to = echoes(&world.far).into_iter().find(SocketAddr::is_ipv4);
    let to = to.context("no echo by IPv4")?;
    let mut first = Tcp::connect(world.pod(0), from_port(43_001, to), to)?;
    first.ask()?;
    // Nobody listened so far: all waits.
    wait_for(SOON, "the agent to say that nobody listens", || {
        world.agent.log().contains("the NAT log can't be written")
    })?;
    let is_of = |record: &Value, port: u16| {
        let pod = record["pod"].as_str().unwrap_or_default();
        pod.ends_with(&format!(":{port}"))
    };
    let listener = UnixListener::bind(&path)?;
    let seen = read_until(&listener, |it| is_of(it, 43_001))?;
    assert_eq!(seen[0]["event"], "start");
    // One that had read all, and comes back, lacks nothing. It then goes in the middle of what it is sent.
    let begun = jiff::Timestamp::now();
    let mut second = Tcp::connect(world.pod(0), from_port(43_002, to), to)?;
    second.ask()?;
    let (mut stream, _) = listener.accept()?;
    stream.set_read_timeout(Some(SOON))?;
    stream.read_exact(&mut [0])?;
    drop(stream);
    // Long enough for the agent to look at the connection several times.
    std::thread::sleep(Duration::from_secs(1));
    let mut third = Tcp::connect(world.pod(0), from_port(43_003, to), to)?;
    third.ask()?;
    let seen = read_until(&listener, |it| it["event"] == "gap")?;
    ensure!(seen.iter().any(|it| is_of(it, 43_003)), "{seen:?}");
    let gap = seen.last().context("no record")?;
    assert_eq!(gap["why"], "collector");
    let from: jiff::Timestamp = gap["from"].as_str().context("no begin")?.parse()?;
    ensure!(from <= begun, "{begun}: {gap}");
    Ok(())
}

#[test]
fn what_a_collector_has_not_read_is_a_gap_even_after_a_kill() -> Result<()> {
    let dir = WorkDir::new("deaf-collector")?;
    let path = dir.path().join("socket");
    let target = format!("unix:{}", path.display());
    // What is sent to it waits in the kernel.
    let deaf = UnixListener::bind(&path)?;
    let mut world = World::with(POLICY, &["--enable-ipv6", "--nat-log", &target])?;
    let _echo = Echo::start(&world.far)?;
    let to = echoes(&world.far).into_iter().find(SocketAddr::is_ipv4);
    let to = to.context("no echo by IPv4")?;
    let begun = jiff::Timestamp::now();
    let mut tcp = Tcp::connect(world.pod(0), from_port(43_011, to), to)?;
    tcp.ask()?;
    // Until the sweep has passed over the mapping, and the agent has saved that it has told it.
    let saved = world.agent.state_dir().join("nat-log.json");
    let mut passes = BTreeSet::new();
    wait_for(SOON, "three passes of the sweep", || {
        let text = fs::read_to_string(&saved).unwrap_or_default();
        let state: Value = serde_json::from_str(&text).unwrap_or_default();
        passes.extend(state["since"].as_u64());
        passes.len() == 3
    })?;
    world.agent.kill9()?;
    drop(deaf);
    fs::remove_file(&path)?;
    let listener = UnixListener::bind(&path)?;
    world.agent.restart()?;
    let seen = read_until(&listener, |it| it["event"] == "start")?;
    let gap = &seen[0];
    assert_eq!(
        (&gap["event"], &gap["why"]),
        (&json!("gap"), &json!("killed"))
    );
    let from: jiff::Timestamp = gap["from"].as_str().context("no begin")?.parse()?;
    ensure!(from <= begun, "{begun}: {gap}");
    Ok(())
}
