//! The log as lines to a Unix stream socket.

use crate::time::now_milliseconds as now;
use std::io::{self, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

/// Time for which the collector may take no bytes.
const PATIENCE: Duration = Duration::from_secs(1);

/// The log as lines to a collector.
pub(super) struct Socket {
    path: PathBuf,
    stream: Option<UnixStream>,
    /// Time at which the collector had read all, in milliseconds since 1970.
    read_at: u64,
    /// Time since which it may lack lines that were sent, if it may.
    lacks_since: Option<u64>,
}

impl Socket {
    /// Returns the log at a path; nothing is connected yet.
    pub fn new(path: PathBuf) -> Self {
        Self {
            path,
            stream: None,
            read_at: now(),
            lacks_since: None,
        }
    }

    /// Sends lines. Returns the time since which an earlier connection's may not have been read, if this
    /// is another connection.
    ///
    /// # Errors
    /// Returns an error if nobody listens or reads; the lines are to be sent again then.
    pub fn write(&mut self, lines: &[u8]) -> io::Result<Option<u64>> {
        if self.stream.is_none() {
            let stream = UnixStream::connect(&self.path)?;
            stream.set_write_timeout(Some(PATIENCE))?;
            self.stream = Some(stream);
        }
        let Some(stream) = &mut self.stream else {
            return Err(io::ErrorKind::NotConnected.into());
        };
        if let Err(err) = stream.write_all(lines) {
            self.stream = None;
            self.lacks_since.get_or_insert(self.read_at);
            return Err(err);
        }
        if unread(stream)? == 0 {
            self.read_at = now();
        }
        Ok(self.lacks_since.take())
    }
}

/// Returns the bytes that were sent and that the peer has not read.
fn unread(stream: &UnixStream) -> io::Result<libc::c_int> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the descriptor is open, and the kernel writes one int (`unix_ioctl`, net/unix/af_unix.c).
    let done = unsafe { libc::ioctl(stream.as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    if done == 0 {
        Ok(bytes)
    } else {
        Err(io::Error::last_os_error())
    }
}
