//! Sockets that identify their peer.

use crate::common::clients::any;
use anyhow::{Context as _, Result, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;
use testbed::Netns;

/// Client timeout: without an answer by then, the connection does not work.
pub const PATIENCE: Duration = Duration::from_secs(3);

/// Maximum time in milliseconds after which a server notices that it has been stopped.
const STOP_WITHIN: u8 = 20;

/// A TCP or UDP server that sends its name to every client.
#[derive(Debug)]
pub struct Named {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Named {
    pub fn tcp(ns: &Netns, at: SocketAddr, name: &'static str) -> Result<Self> {
        let listener = listen(ns, at)?;
        listener.set_nonblocking(true)?;
        Ok(Self::serve(listener, move |listener| {
            while let Ok((mut stream, _)) = listener.accept() {
                // The client may have disconnected.
                let _ = stream.write_all(name.as_bytes());
                let _ = stream.shutdown(Shutdown::Write);
            }
        }))
    }

    pub fn udp(ns: &Netns, at: SocketAddr, name: &'static str) -> Result<Self> {
        let socket = ns
            .open(|| UdpSocket::bind(at))
            .with_context(|| format!("binding UDP {at} in {}", ns.name()))?;
        socket.set_nonblocking(true)?;
        Ok(Self::serve(socket, move |socket| {
            while let Ok((_, peer)) = socket.recv_from(&mut [0; 64]) {
                let _ = socket.send_to(name.as_bytes(), peer);
            }
        }))
    }

    fn serve<S>(socket: S, serve: impl Fn(&S) + Send + 'static) -> Self
    where
        S: std::os::fd::AsFd + Send + 'static,
    {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                let mut wanted = [PollFd::new(socket.as_fd(), PollFlags::POLLIN)];
                if poll(&mut wanted, PollTimeout::from(STOP_WITHIN)).is_ok_and(|ready| ready > 0) {
                    serve(&socket);
                }
            }
        });
        Self {
            stop,
            thread: Some(thread),
        }
    }
}

impl Drop for Named {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Result of a client's attempt.
#[derive(Debug, PartialEq, Eq)]
pub enum Found {
    Named(String),
    Refused,
    Nobody,
}

impl Found {
    /// Checks that the client reached the server `name`.
    pub fn is(&self, name: &str) -> Result<()> {
        ensure!(
            *self == Self::Named(name.to_owned()),
            "found {self:?}, not {name}"
        );
        Ok(())
    }

    /// Checks that the node refused the connection.
    pub fn is_refused(&self) -> Result<()> {
        ensure!(*self == Self::Refused, "found {self:?}, not a refusal");
        Ok(())
    }
}

/// Connects by TCP; returns the server that answers.
pub fn who(ns: &Netns, from: SocketAddr, to: SocketAddr) -> Result<Found> {
    let connected = ns.open(|| {
        let socket = bound(from, Type::STREAM)?;
        match socket.connect_timeout(&to.into(), PATIENCE) {
            Ok(()) => Ok(Ok(TcpStream::from(socket))),
            Err(error) => Ok(Err(error)),
        }
    })?;
    let mut stream = match connected {
        Ok(stream) => stream,
        Err(error) => return nobody(error, to),
    };
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut name = String::new();
    match stream.read_to_string(&mut name) {
        Ok(_) => Ok(Found::Named(name)),
        Err(error) => nobody(error, to),
    }
}

/// Sends a datagram; returns the server that answers.
pub fn who_udp(ns: &Netns, from: SocketAddr, to: SocketAddr) -> Result<Found> {
    let socket: UdpSocket = ns.open(|| bound(from, Type::DGRAM))?.into();
    socket.connect(to)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let mut name = [0; 64];
    // The socket may first report an error of an earlier flow.
    match socket.send(b"who?").and_then(|_| socket.recv(&mut name)) {
        Ok(count) => Ok(Found::Named(
            String::from_utf8_lossy(&name[..count]).into_owned(),
        )),
        Err(error) => nobody(error, to),
    }
}

fn nobody(error: io::Error, to: SocketAddr) -> Result<Found> {
    match error.kind() {
        ErrorKind::ConnectionRefused | ErrorKind::ConnectionReset => Ok(Found::Refused),
        ErrorKind::TimedOut | ErrorKind::WouldBlock => Ok(Found::Nobody),
        _ => Err(error).with_context(|| format!("asking who is at {to}")),
    }
}

/// Opens a socket with a source that another socket may have used just before.
pub fn bound(from: SocketAddr, kind: Type) -> io::Result<Socket> {
    let protocol = if kind == Type::STREAM {
        Protocol::TCP
    } else {
        Protocol::UDP
    };
    let socket = Socket::new(Domain::for_address(from), kind, Some(protocol))?;
    socket.set_reuse_address(true)?;
    if from.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    socket.bind(&from.into())?;
    Ok(socket)
}

/// Opens a listener of one family.
pub fn listen(ns: &Netns, at: SocketAddr) -> Result<TcpListener> {
    let socket = ns
        .open(|| {
            let socket = bound(at, Type::STREAM)?;
            socket.listen(128)?;
            Ok(socket)
        })
        .with_context(|| format!("listening on {at} in {}", ns.name()))?;
    Ok(socket.into())
}

/// Starts a connect that continues until this is dropped.
pub fn connecting(ns: &Netns, from: SocketAddr, to: SocketAddr) -> Result<Socket> {
    let begun = ns.open(|| {
        let socket = bound(from, Type::STREAM)?;
        socket.set_nonblocking(true)?;
        match socket.connect(&SockAddr::from(to)) {
            Err(error) if error.raw_os_error() != Some(libc::EINPROGRESS) => Err(error),
            _ => Ok(socket),
        }
    });
    begun.with_context(|| format!("connecting from {} ({from}) to {to}", ns.name()))
}

/// Both ends of one TCP connection.
#[derive(Debug)]
pub struct Pair {
    pub client: TcpStream,
    pub server: TcpStream,
    /// The client's endpoint as seen by the server.
    pub seen: SocketAddr,
    count: u32,
}

impl Pair {
    /// Returns the next sequence numbers of both directions, the client's first (`TCP_QUEUE_SEQ`,
    /// net/ipv4/tcp.c).
    pub fn numbers(&self) -> Result<[u32; 2]> {
        const OFF: i32 = -1;
        let set = |option, value: i32| -> Result<()> {
            // SAFETY: a socket that lives, and an option that is an integer.
            let done = unsafe {
                libc::setsockopt(
                    self.client.as_raw_fd(),
                    libc::IPPROTO_TCP,
                    option,
                    (&raw const value).cast(),
                    libc::socklen_t::try_from(size_of::<i32>())?,
                )
            };
            ensure!(done == 0, "{}", io::Error::last_os_error());
            Ok(())
        };
        set(libc::TCP_REPAIR, 1)?;
        let mut numbers = [0_u32; 2];
        // TCP_SEND_QUEUE and TCP_RECV_QUEUE (include/uapi/linux/tcp.h).
        for (queue, number) in [2, 1].into_iter().zip(&mut numbers) {
            set(libc::TCP_REPAIR_QUEUE, queue)?;
            let mut size = libc::socklen_t::try_from(size_of::<u32>())?;
            // SAFETY: as above; the option is read into an integer of its size.
            let done = unsafe {
                libc::getsockopt(
                    self.client.as_raw_fd(),
                    libc::IPPROTO_TCP,
                    libc::TCP_QUEUE_SEQ,
                    (&raw mut *number).cast(),
                    &raw mut size,
                )
            };
            ensure!(done == 0, "{}", io::Error::last_os_error());
        }
        // Without a window probe.
        set(libc::TCP_REPAIR, OFF)?;
        Ok(numbers)
    }

    /// Connects `client` from `from` to `to`, which is, or leads to, `at` in `server`.
    pub fn open(
        client: &Netns,
        from: SocketAddr,
        to: SocketAddr,
        (server, at): (&Netns, SocketAddr),
    ) -> Result<Self> {
        let listener = listen(server, at)?;
        let what = || format!("from {} ({from}) to {to}", client.name());
        let client = client
            .open(|| {
                let socket = bound(from, Type::STREAM)?;
                socket.connect_timeout(&to.into(), PATIENCE)?;
                Ok(TcpStream::from(socket))
            })
            .with_context(what)?;
        let mut ready = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
        let came = poll(&mut ready, PollTimeout::from(3000_u16))?;
        ensure!(came == 1, "{}: connected, but not to the listener", what());
        let (server, seen) = listener.accept()?;
        for end in [&client, &server] {
            end.set_nodelay(true)?;
            end.set_read_timeout(Some(PATIENCE))?;
        }
        Ok(Self {
            client,
            server,
            seen,
            count: 0,
        })
    }

    /// Connects from any port to a port of the server.
    pub fn between(client: &Netns, server: &Netns, to: SocketAddr) -> Result<Self> {
        Self::open(client, any(to), to, (server, to))
    }

    /// Checks that data from the server reaches the client.
    pub fn server_speaks(&mut self) -> Result<()> {
        self.count += 1;
        said(&mut self.server, &mut self.client, self.count).context("from the server")
    }

    /// Checks that data from the client reaches the server.
    pub fn client_speaks(&mut self) -> Result<()> {
        self.count += 1;
        said(&mut self.client, &mut self.server, self.count).context("from the client")
    }

    pub fn goes_on(&mut self) -> Result<()> {
        self.client_speaks()?;
        self.server_speaks()
    }
}

fn said(from: &mut TcpStream, to: &mut TcpStream, count: u32) -> Result<()> {
    let word = count.to_be_bytes();
    let mut heard = [0; 4];
    from.write_all(&word).context("sending")?;
    to.read_exact(&mut heard).context("receiving")?;
    ensure!(heard == word, "heard {heard:?}, not {word:?}");
    Ok(())
}

/// A connect that continues until this is dropped, and sends its name if it succeeds.
#[derive(Debug)]
pub struct Pending {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Pending {
    pub fn start(ns: &Netns, from: SocketAddr, to: SocketAddr, name: &'static str) -> Result<Self> {
        let mut socket = connecting(ns, from, to)?;
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                let mut wanted = [PollFd::new(socket.as_fd(), PollFlags::POLLOUT)];
                if poll(&mut wanted, PollTimeout::from(STOP_WITHIN)).is_ok_and(|ready| ready > 0) {
                    let _ = socket.write_all(name.as_bytes());
                    let _ = socket.shutdown(Shutdown::Write);
                    return;
                }
            }
        });
        Ok(Self {
            stop,
            thread: Some(thread),
        })
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
