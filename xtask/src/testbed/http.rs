//! A small HTTP server that tells each client which address it saw.

use super::netns::Netns;
use super::service::Service;
use anyhow::Result;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Serves `GET /health` (200, the client's address and a newline) and
/// `GET /bytes/N` (N zero bytes), one request a connection.
#[derive(Debug)]
pub struct HttpServer {
    seen: Arc<Mutex<Vec<SocketAddr>>>,
    _service: Service,
}

impl HttpServer {
    /// Listens in the namespace.
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

    /// The source address of each connection, in order.
    #[must_use]
    pub fn seen(&self) -> Vec<IpAddr> {
        self.seen_endpoints().iter().map(SocketAddr::ip).collect()
    }

    /// The source address and port of each connection, in order.
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
    // The rest of the header has to be read, or closing resets the connection.
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
    if let Some(count) = path.strip_prefix("/bytes/").and_then(|n| n.parse().ok()) {
        head(&mut stream, "200 OK", count)?;
        return zeros(&mut stream, count);
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
    let chunk = [0; 16384];
    while count > 0 {
        let part = count.min(chunk.len());
        stream.write_all(&chunk[..part])?;
        count -= part;
    }
    Ok(())
}
