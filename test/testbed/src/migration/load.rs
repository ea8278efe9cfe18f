//! Connections of pods to servers, without pause.

use super::tally::{Kind, Tally};
use crate::{EchoClient, Host, Netns, Pinged, Pings, wait_for};
use anyhow::{Context as _, Result, bail, ensure};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// How long a connection may take to be there.
const CONNECT: Duration = Duration::from_secs(20);

/// How long an answer to a datagram may take, and how often it is asked for.
const ANSWER: Duration = Duration::from_millis(500);
const TRIES: usize = 10;

/// How long a worker may take to go through all its connections.
const STEP: Duration = Duration::from_secs(60);

/// Pauses, so that the rest of the machine gets its turn.
const PACE: Duration = Duration::from_millis(5);

/// Connections of each kind that a worker begins with.
const AT_FIRST: usize = 3;

/// Workers, two for each pod and target: new TCP and UDP connections without
/// pause, and others that stay open, busy and idle; and pings.
#[derive(Debug)]
pub struct Load {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    steady: usize,
    pings: Pings,
}

#[derive(Debug, Default)]
struct Shared {
    tally: Tally,
    stop: AtomicBool,
    /// How many steps there were, and how many each of the workers has made, in all.
    steps: AtomicUsize,
    made: AtomicUsize,
}

/// Who asks whom, and as whom it is to be seen.
#[derive(Debug, Clone)]
struct Line {
    pod: Netns,
    to: SocketAddr,
    node: IpAddr,
}

impl Load {
    /// Each pod asks the echo servers at each target, by TCP and UDP. They have
    /// to see the node's address of their family, and the same port as long as a
    /// connection lasts: all else is lost.
    pub fn start(pods: &[Host], targets: &[SocketAddr], node: &[IpAddr]) -> Result<Self> {
        let shared = Arc::new(Shared::default());
        let mut load = Self {
            shared,
            workers: Vec::new(),
            steady: 0,
            pings: Pings::default(),
        };
        for pod in pods {
            for to in targets {
                let same = |ip: &&IpAddr| ip.is_ipv4() == to.is_ipv4();
                let line = Line {
                    pod: pod.ns.clone(),
                    to: *to,
                    node: *node.iter().find(same).context("a family is missing")?,
                };
                load.spawn(&line, brief);
                load.spawn(&line, steady);
                load.steady += 1;
                load.pings.start(pod, to.ip(), "0.05")?;
                load.shared.tally.opened(Kind::Icmp);
            }
        }
        load.step()?;
        Ok(load)
    }

    fn spawn(&mut self, line: &Line, work: fn(&Line, &Shared)) {
        let (line, shared) = (line.clone(), Arc::clone(&self.shared));
        self.workers
            .push(std::thread::spawn(move || work(&line, &shared)));
    }

    /// What there was so far.
    #[must_use]
    pub fn tally(&self) -> &Tally {
        &self.shared.tally
    }

    /// Each connection is asked once more, and there are more afterwards.
    pub fn step(&self) -> Result<()> {
        let steps = self.shared.steps.fetch_add(1, Ordering::Relaxed) + 1;
        wait_for(STEP, "an answer on each connection", || {
            self.shared.made.load(Ordering::Relaxed) >= steps * self.steady
        })
    }

    /// Ends it, and returns what there was.
    pub fn end(mut self) -> Result<Tally> {
        self.stop();
        for ping in std::mem::take(&mut self.pings).end()? {
            count_ping(&ping, &self.shared.tally);
        }
        let shared = std::mem::take(&mut self.shared);
        Ok(Arc::try_unwrap(shared).map_or_else(|_| Tally::default(), |shared| shared.tally))
    }

    fn stop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        for worker in self.workers.drain(..) {
            let _ = worker.join();
        }
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop();
    }
}

fn count_ping(ping: &Pinged, tally: &Tally) {
    tally.answered(Kind::Icmp, ping.answered);
    tally.packets_lost(ping.lost);
    if !ping.alive {
        let why = anyhow::anyhow!("no answer after {}", ping.answered + ping.lost);
        tally.lost(Kind::Icmp, &why);
    }
}

/// Connections for one question each, until the end.
fn brief(line: &Line, shared: &Shared) {
    while !shared.stop.load(Ordering::Relaxed) {
        for kind in [Kind::ShortTcp, Kind::ShortUdp] {
            shared.tally.opened(kind);
            let asked = Client::open(line, kind).and_then(|mut client| client.ask(line, shared));
            match asked {
                Ok(()) => shared.tally.answered(kind, 1),
                Err(err) => shared.tally.lost(kind, &err),
            }
        }
        std::thread::sleep(PACE);
    }
}

/// Connections that stay open, until the end.
fn steady(line: &Line, shared: &Shared) {
    let mut clients: Vec<(Kind, Client)> = Vec::new();
    let mut made = 0;
    let mut more = AT_FIRST;
    while !shared.stop.load(Ordering::Relaxed) {
        let step = shared.steps.load(Ordering::Relaxed) > made;
        clients.retain_mut(|(kind, client)| {
            let idle = *kind == Kind::IdleTcp && !step;
            if idle || shared.stop.load(Ordering::Relaxed) {
                return true;
            }
            match client.ask(line, shared) {
                Ok(()) => {
                    shared.tally.answered(*kind, 1);
                    true
                }
                Err(err) => {
                    shared.tally.lost(*kind, &err);
                    false
                }
            }
        });
        if step {
            for kind in [Kind::LongTcp, Kind::IdleTcp, Kind::LongUdp] {
                for _ in 0..more {
                    shared.tally.opened(kind);
                    let opened = Client::open(line, kind).and_then(|mut client| {
                        client.ask(line, shared)?;
                        Ok(client)
                    });
                    match opened {
                        Ok(client) => clients.push((kind, client)),
                        Err(err) => shared.tally.lost(kind, &err),
                    }
                }
            }
            more = 1;
            made += 1;
            shared.made.fetch_add(1, Ordering::Relaxed);
        }
        std::thread::sleep(PACE);
    }
}

/// A connection, and as whom the server has seen it first.
struct Client {
    inner: Inner,
    seen: Option<SocketAddr>,
}

enum Inner {
    Tcp(EchoClient),
    Udp(UdpSocket, usize),
}

impl Client {
    fn open(line: &Line, kind: Kind) -> Result<Self> {
        let inner = match kind {
            Kind::LongTcp | Kind::IdleTcp | Kind::ShortTcp | Kind::Icmp => {
                Inner::Tcp(EchoClient::connect(&line.pod, line.to, CONNECT)?)
            }
            Kind::LongUdp | Kind::ShortUdp => Inner::Udp(udp(line)?, 0),
        };
        Ok(Self { inner, seen: None })
    }

    /// An answer, from a server that sees the node, and the same port as ever.
    fn ask(&mut self, line: &Line, shared: &Shared) -> Result<()> {
        let seen = match &mut self.inner {
            Inner::Tcp(client) => client.ask(),
            Inner::Udp(socket, asked) => ask_udp(socket, asked, shared),
        };
        let seen = seen.with_context(|| format!("to {}", line.to))?;
        ensure!(seen.ip() == line.node, "{} saw {seen}", line.to);
        let first = *self.seen.get_or_insert(seen);
        ensure!(first == seen, "{} saw {first}, then {seen}", line.to);
        Ok(())
    }
}

fn udp(line: &Line) -> Result<UdpSocket> {
    let to = line.to;
    let socket = line.pod.enter(|| -> std::io::Result<UdpSocket> {
        let any: SocketAddr = match to {
            SocketAddr::V4(_) => ([0, 0, 0, 0], 0).into(),
            SocketAddr::V6(_) => ([0u16; 8], 0).into(),
        };
        let socket = UdpSocket::bind(any)?;
        socket.connect(to)?;
        Ok(socket)
    })??;
    socket.set_read_timeout(Some(ANSWER))?;
    Ok(socket)
}

/// Asks until an answer comes; those that did not are counted.
fn ask_udp(socket: &UdpSocket, asked: &mut usize, shared: &Shared) -> Result<SocketAddr> {
    for _ in 0..TRIES {
        *asked += 1;
        let word = asked.to_string();
        // A refusal may be an old one's.
        let _ = socket.send(word.as_bytes());
        let mut answer = [0; 256];
        while let Ok(count) = socket.recv(&mut answer) {
            let text = String::from_utf8_lossy(&answer[..count]);
            match text.split_once(' ') {
                // One that was given up.
                Some((old, _)) if old != word => {}
                Some((_, seen)) => return Ok(seen.trim().parse()?),
                None => bail!("the echo server sent nonsense: {text:?}"),
            }
        }
        shared.tally.packets_lost(1);
    }
    bail!("no answer to {TRIES} datagrams")
}
