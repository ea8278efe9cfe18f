//! Connections per second: connect, one request, its answer, close.

use super::bed::Bed;
use anyhow::Result;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use testbed::Netns;

const PORT: u16 = 8000;
/// Number of concurrent clients, and of server threads.
const CLIENTS: u32 = 4;
/// Number of destinations: enough that source ports are never exhausted.
const SERVERS: u32 = 16;
/// Timeout of a single operation.
const PATIENCE: Duration = Duration::from_secs(2);
const REQUEST: [u8; 64] = [b'?'; 64];

/// A server that runs until it is dropped.
pub struct Server {
    over: Arc<AtomicBool>,
    ns: Netns,
    threads: Vec<JoinHandle<()>>,
}

pub fn serve(bed: &Bed) -> Result<Server> {
    let listener = bed
        .server
        .enter(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT)))??;
    let over = Arc::new(AtomicBool::new(false));
    let threads = (0..CLIENTS)
        .map(|_| {
            let (listener, over) = (listener.try_clone()?, Arc::clone(&over));
            Ok(std::thread::spawn(move || answer_all(&listener, &over)))
        })
        .collect::<Result<_>>()?;
    Ok(Server {
        over,
        ns: bed.server.clone(),
        threads,
    })
}

impl Drop for Server {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        for _ in &self.threads {
            // Wakes a thread blocked in accept.
            let _ = self
                .ns
                .enter(|| TcpStream::connect((Ipv4Addr::LOCALHOST, PORT)));
        }
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn answer_all(listener: &TcpListener, over: &AtomicBool) {
    while !over.load(Ordering::Relaxed) {
        if let Ok((stream, _)) = listener.accept() {
            // The client counts its own failures.
            let _ = answer(stream);
        }
    }
}

fn answer(mut stream: TcpStream) -> std::io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut request = REQUEST;
    stream.read_exact(&mut request)?;
    stream.write_all(&request)?;
    // Waits for the client to close first.
    stream.read(&mut request).map(drop)
}

/// Measures connections per second.
pub fn run(bed: &Bed, slice: Duration) -> Result<f64> {
    let done = AtomicU64::new(0);
    let start = Instant::now();
    bed.client.enter(|| {
        std::thread::scope(|scope| {
            let clients: Vec<_> = (0..CLIENTS)
                .map(|client| {
                    let done = &done;
                    scope.spawn(move || ask_all(client, start, slice, done))
                })
                .collect();
            clients.into_iter().try_for_each(|client| {
                client
                    .join()
                    .unwrap_or_else(|_| Err(ErrorKind::Other.into()))
            })
        })
    })??;
    Ok(done.into_inner() as f64 / start.elapsed().as_secs_f64())
}

fn ask_all(client: u32, start: Instant, slice: Duration, done: &AtomicU64) -> std::io::Result<()> {
    let mut number = client;
    while start.elapsed() < slice {
        number = number.wrapping_add(1);
        let server = Ipv4Addr::from((198 << 24) + (18 << 16) + 1 + number % SERVERS);
        let mut stream = TcpStream::connect_timeout(&SocketAddr::from((server, PORT)), PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(&REQUEST)?;
        let mut answer = REQUEST;
        stream.read_exact(&mut answer)?;
        done.fetch_add(1, Ordering::Relaxed);
    }
    Ok(())
}
