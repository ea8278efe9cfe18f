//! Continuous load: connections from pods to servers.

use super::tally::{Kind, Tally};
use crate::{EchoClient, Host, Netns, Pinged, Pings, wait_for};
use anyhow::{Context as _, Result, bail, ensure};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// Timeout for establishing a connection.
const CONNECT: Duration = Duration::from_secs(20);

/// Timeout for the answer to a datagram, and the interval of retries.
const ANSWER: Duration = Duration::from_millis(500);
const TRIES: usize = 10;

/// Timeout for a worker to pass over all its connections.
const STEP: Duration = Duration::from_secs(60);

/// Pause between requests, which leaves CPU time to the rest of the machine.
const PACE: Duration = Duration::from_millis(5);

/// Connections of each kind with which a worker begins.
const AT_FIRST: usize = 3;

/// Two workers for each pod and target, which open short TCP and UDP connections continuously and
/// keep others open, busy and idle; and pings.
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
    /// Number of requested steps; `made` is the sum of the steps that the workers have completed.
    steps: AtomicUsize,
    made: AtomicUsize,
}

/// Source, target and expected wire source of a worker.
#[derive(Debug, Clone)]
struct Line {
    pod: Netns,
    to: SocketAddr,
    node: IpAddr,
}

impl Load {
    /// Starts the load: each pod sends requests to the echo servers at each target, by TCP and UDP.
    /// The servers must see the node's address of their family, and the same port for the lifetime
    /// of a connection; every other answer counts as a loss.
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

    /// Returns the counts so far.
    #[must_use]
    pub fn tally(&self) -> &Tally {
        &self.shared.tally
    }

    /// Sends one more request on each connection and opens further connections.
    pub fn step(&self) -> Result<()> {
        let steps = self.shared.steps.fetch_add(1, Ordering::Relaxed) + 1;
        wait_for(STEP, "an answer on each connection", || {
            self.shared.made.load(Ordering::Relaxed) >= steps * self.steady
        })
    }

    /// Ends the load and returns the counts.
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

/// Opens connections for one request each, until the load ends.
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

/// Keeps connections open until the load ends.
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

/// A connection, and the source that the server saw first.
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

    /// Sends a request; the server must see the node's address and the same port as before.
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

/// Retries a request until an answer comes; counts those without one.
fn ask_udp(socket: &UdpSocket, asked: &mut usize, shared: &Shared) -> Result<SocketAddr> {
    for _ in 0..TRIES {
        *asked += 1;
        let word = asked.to_string();
        // The error may come from an ICMP error about an earlier datagram.
        let _ = socket.send(word.as_bytes());
        let mut answer = [0; 256];
        while let Ok(count) = socket.recv(&mut answer) {
            let text = String::from_utf8_lossy(&answer[..count]);
            match text.split_once(' ') {
                // A late answer to a request that timed out.
                Some((old, _)) if old != word => {}
                Some((_, seen)) => return Ok(seen.trim().parse()?),
                None => bail!("the echo server sent nonsense: {text:?}"),
            }
        }
        shared.tally.packets_lost(1);
    }
    bail!("no answer to {TRIES} datagrams")
}
