//! Well-behaved clients, and their success beside an attack.

use crate::common::clients::any;
use crate::talk::{PATIENCE, Pair};
use anyhow::{Context as _, Result, ensure};
use std::io::{self, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use testbed::{Host, Netns};

/// Interval between two attempts of a client.
const PAUSE: Duration = Duration::from_millis(10);

/// Retransmission timeout of a client's datagram.
const AGAIN: Duration = Duration::from_secs(1);

/// Duration of each attempt; `None` if it failed.
pub type Attempts = Vec<Option<Duration>>;

/// Clients of TCP and UDP echo servers that open a new flow for each request.
#[derive(Debug)]
pub struct Clients {
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Result<Attempts>>>,
}

impl Clients {
    pub fn start(pod: &Netns, servers: &[SocketAddr]) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let mut threads = Vec::new();
        for &to in servers {
            for ask in [ask_tcp, ask_udp, ask_in_fragments] {
                let (pod, stop) = (pod.clone(), Arc::clone(&stop));
                threads.push(std::thread::spawn(move || {
                    pod.enter(|| {
                        let mut attempts = Attempts::new();
                        while !stop.load(Ordering::Relaxed) {
                            let start = Instant::now();
                            let done = ask(to).is_ok();
                            attempts.push(done.then(|| start.elapsed()));
                            std::thread::sleep(PAUSE);
                        }
                        attempts
                    })
                }));
            }
        }
        Self { stop, threads }
    }

    /// Ends the clients, each after its current attempt.
    pub fn end(mut self) -> Result<Attempts> {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Attempts::new();
        for thread in self.threads.drain(..) {
            match thread.join() {
                Ok(attempts) => all.extend(attempts?),
                Err(_) => anyhow::bail!("a client panicked"),
            }
        }
        Ok(all)
    }
}

impl Drop for Clients {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn ask_tcp(to: SocketAddr) -> io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"?\n")?;
    stream.read_exact(&mut [0; 2])
}

fn ask_udp(to: SocketAddr) -> io::Result<()> {
    ask_datagram(to, b"?")
}

fn ask_in_fragments(to: SocketAddr) -> io::Result<()> {
    ask_datagram(to, &[b'?'; 1900])
}

fn ask_datagram(to: SocketAddr, question: &[u8]) -> io::Result<()> {
    let socket = UdpSocket::bind(any(to))?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(AGAIN))?;
    let start = Instant::now();
    loop {
        let answer = socket
            .send(question)
            .and_then(|_| socket.recv(&mut [0; 2048]));
        match answer {
            Ok(_) => return Ok(()),
            Err(error) if start.elapsed() >= PATIENCE => return Err(error),
            Err(_) => {}
        }
    }
}

/// Percentage of successful attempts, and a percentile of their duration.
#[derive(Debug)]
pub struct Figures {
    pub attempts: usize,
    pub percent: f64,
    pub p50: Duration,
    pub p99: Duration,
}

impl Figures {
    pub fn of(attempts: &Attempts) -> Self {
        let mut times: Vec<_> = attempts.iter().flatten().copied().collect();
        times.sort_unstable();
        let at = |percent: usize| {
            let last = times.len().saturating_sub(1);
            times.get(last * percent / 100).copied().unwrap_or_default()
        };
        let count = |n: usize| f64::from(u32::try_from(n).unwrap_or(u32::MAX));
        Self {
            attempts: attempts.len(),
            percent: 100.0 * count(times.len()) / count(attempts.len().max(1)),
            p50: at(50),
            p99: at(99),
        }
    }

    pub fn good(&self) -> Result<()> {
        ensure!(self.percent >= 99.0 && self.attempts >= 40, "{self:?}");
        Ok(())
    }
}

/// Connections from before the attack.
#[derive(Debug)]
pub struct Old(Vec<Pair>);

impl Old {
    pub fn open(pod: &Host, server: &Host, ports: &[SocketAddr]) -> Result<Self> {
        let pairs = ports
            .iter()
            .flat_map(|to| [to; 5])
            .map(|to| Pair::between(pod, server, *to))
            .collect::<Result<_>>()?;
        Ok(Self(pairs))
    }

    pub fn go_on(&mut self) -> Result<()> {
        for pair in &mut self.0 {
            let seen = pair.seen;
            pair.goes_on()
                .with_context(|| format!("the old connection seen as {seen}"))?;
        }
        Ok(())
    }
}
