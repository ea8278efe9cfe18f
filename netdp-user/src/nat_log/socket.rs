//! The log as lines to a Unix stream socket.

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
    /// True if an earlier connection has ended with lines that may not have been read.
    lacks_lines: bool,
}

impl Socket {
    /// Returns the log at a path; nothing is connected yet.
    pub fn new(path: PathBuf) -> Self {
        Self {
            path,
            stream: None,
            lacks_lines: false,
        }
    }

    /// Sends lines. Reports whether this is another connection, so that the collector may lack what was
    /// sent before.
    ///
    /// # Errors
    /// Returns an error if nobody listens or reads; the lines are to be sent again then.
    pub fn write(&mut self, lines: &[u8]) -> io::Result<bool> {
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
            self.lacks_lines = true;
            return Err(err);
        }
        Ok(std::mem::take(&mut self.lacks_lines))
    }

    /// Reports whether the collector has read all that was sent.
    pub fn is_read(&self) -> bool {
        let is_read = |stream: &UnixStream| unread(stream).is_ok_and(|bytes| bytes == 0);
        !self.lacks_lines && self.stream.as_ref().is_none_or(is_read)
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
