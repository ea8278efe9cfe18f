//! Server threads that accept until they are stopped.

use super::netns::Netns;
use anyhow::{Context as _, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

/// Maximum time in milliseconds after which a server notices that it has been stopped.
const STOP_WITHIN: u8 = 20;

/// A thread that serves until this is dropped.
#[derive(Debug)]
pub(super) struct Service {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Service {
    /// Calls `serve` whenever the socket is readable, until dropped.
    pub(super) fn start<S>(socket: S, mut serve: impl FnMut(&S) + Send + 'static) -> Self
    where
        S: AsFd + Send + 'static,
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

    /// Listens on a TCP address in the namespace and passes each connection to `serve` on a thread
    /// of its own.
    pub(super) fn tcp<F>(ns: &Netns, at: SocketAddr, serve: F) -> Result<Self>
    where
        F: Fn(TcpStream, SocketAddr) -> std::io::Result<()> + Send + Sync + 'static,
    {
        let listener = ns
            .open(|| {
                let listener = TcpListener::bind(at)?;
                listener.set_nonblocking(true)?;
                Ok(listener)
            })
            .with_context(|| format!("listening on {at} in {}", ns.name()))?;
        let serve = Arc::new(serve);
        Ok(Self::start(listener, move |listener| {
            while let Ok((stream, peer)) = listener.accept() {
                let serve = Arc::clone(&serve);
                // An error means that the client has disconnected.
                std::thread::spawn(move || {
                    stream.set_nonblocking(false)?;
                    serve(stream, peer)
                });
            }
        }))
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
