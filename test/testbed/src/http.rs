//! A small HTTP server that answers with the client's address.

use super::netns::Netns;
use super::service::Service;
use anyhow::Result;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

const CHUNK: [u8; 16384] = [0; 16384];
/// Pace of `/seconds/N`: one chunk per interval.
const INTERVAL: Duration = Duration::from_millis(20);
const CHUNKS_A_SECOND: usize = 50;

/// A server with one request per connection: `GET /health` (200, the client's address and a
/// newline), `GET /bytes/N` (N zero bytes), and `GET /seconds/N` (zero bytes, paced to take N
/// seconds, see [`HttpServer::paced_bytes`]).
#[derive(Debug)]
pub struct HttpServer {
    seen: Arc<Mutex<Vec<SocketAddr>>>,
    _service: Service,
}

impl HttpServer {
    /// Starts listening in the namespace.
    pub fn start(ns: &Netns, at: impl Into<SocketAddr>) -> Result<Self> {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&seen);
        let service = Service::tcp(ns, at.into(), move |stream, peer| {
            lock(&log).push(peer);
            answer(stream, peer.ip())
        })?;
        Ok(Self {
            seen,
            _service: service,
        })
    }

    /// Returns the number of bytes of `/seconds/N`.
    #[must_use]
    pub fn paced_bytes(seconds: usize) -> usize {
        seconds * CHUNKS_A_SECOND * CHUNK.len()
    }

    /// Returns the source address of each connection, in order.
    #[must_use]
    pub fn seen(&self) -> Vec<IpAddr> {
        self.seen_endpoints().iter().map(SocketAddr::ip).collect()
    }

    /// Returns the source address and port of each connection, in order.
    #[must_use]
    pub fn seen_endpoints(&self) -> Vec<SocketAddr> {
        lock(&self.seen).clone()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn answer(mut stream: TcpStream, peer: IpAddr) -> io::Result<()> {
    let mut lines = BufReader::new(&stream).lines();
    let request = lines.next().transpose()?.unwrap_or_default();
    // The rest of the header must be read, or closing the socket resets the connection.
    for line in lines {
        if line?.is_empty() {
            break;
        }
    }
    let path = request.split(' ').nth(1).unwrap_or_default();
    if path == "/health" {
        let body = format!("{peer}\n");
        head(&mut stream, "200 OK", body.len())?;
        return stream.write_all(body.as_bytes());
    }
    let number = |prefix| path.strip_prefix(prefix)?.parse::<usize>().ok();
    if let Some(count) = number("/bytes/") {
        head(&mut stream, "200 OK", count)?;
        return zeros(&mut stream, count);
    }
    if let Some(seconds) = number("/seconds/") {
        head(&mut stream, "200 OK", HttpServer::paced_bytes(seconds))?;
        for _ in 0..seconds * CHUNKS_A_SECOND {
            stream.write_all(&CHUNK)?;
            std::thread::sleep(INTERVAL);
        }
        return Ok(());
    }
    head(&mut stream, "404 Not Found", 0)
}

fn head(stream: &mut TcpStream, status: &str, length: usize) -> io::Result<()> {
    write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
    )
}

fn zeros(stream: &mut TcpStream, mut count: usize) -> io::Result<()> {
    while count > 0 {
        let part = count.min(CHUNK.len());
        stream.write_all(&CHUNK[..part])?;
        count -= part;
    }
    Ok(())
}
