//! The log as lines to a Unix stream socket.

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

/// Time for which the collector may take no bytes.
const PATIENCE: Duration = Duration::from_secs(1);

/// The log as lines to a collector.
pub(super) struct Socket {
    path: PathBuf,
    stream: Option<UnixStream>,
    /// True if all that was sent on this connection has been read.
    is_read: bool,
    /// True if an earlier connection has ended with lines that were not read.
    lacks_lines: bool,
}

impl Socket {
    /// Returns the log at a path; nothing is connected yet.
    pub fn new(path: PathBuf) -> Self {
        Self {
            path,
            stream: None,
            is_read: true,
            lacks_lines: false,
        }
    }

    /// Sends lines. Reports whether this is another connection, so that the collector may lack what was
    /// sent before.
    ///
    /// # Errors
    /// Returns an error if nobody listens or reads; the lines are to be sent again then.
    pub fn write(&mut self, lines: &[u8]) -> io::Result<bool> {
        self.is_read();
        if self.stream.is_none() {
            let stream = UnixStream::connect(&self.path)?;
            stream.set_write_timeout(Some(PATIENCE))?;
            self.stream = Some(stream);
            self.is_read = true;
        }
        let Some(stream) = &mut self.stream else {
            return Err(io::ErrorKind::NotConnected.into());
        };
        if let Err(err) = stream.write_all(lines) {
            self.lose();
            return Err(err);
        }
        self.is_read = false;
        Ok(std::mem::take(&mut self.lacks_lines))
    }

    /// Reports whether the collector has read all that was sent. To be called often: of a connection that
    /// has ended it is not known any more how much was unread.
    pub fn is_read(&mut self) -> bool {
        if let Some(stream) = self.stream.as_ref().filter(|_| !self.is_read) {
            let is_empty = unread(stream).is_ok_and(|bytes| bytes == 0);
            // What the peer leaves unread the kernel throws away, and then counts nothing as unread; but it has
            // set an error before that (`unix_release_sock`, net/unix/af_unix.c).
            match ending(stream) {
                Ending::No => self.is_read = is_empty,
                Ending::WithAllRead => self.is_read = true,
                Ending::WithLinesUnread => self.lose(),
            }
        }
        self.is_read && !self.lacks_lines
    }

    /// Gives the connection up.
    fn lose(&mut self) {
        self.stream = None;
        self.lacks_lines |= !self.is_read;
        // Of no connection there is nothing to read.
        self.is_read = true;
    }
}

/// Whether the peer has ended a connection.
enum Ending {
    No,
    WithAllRead,
    WithLinesUnread,
}

fn ending(stream: &UnixStream) -> Ending {
    let mut polled = [PollFd::new(stream.as_fd(), PollFlags::empty())];
    let seen = match poll(&mut polled, PollTimeout::ZERO) {
        Ok(_) => polled[0].revents().unwrap_or(PollFlags::POLLERR),
        Err(_) => PollFlags::POLLERR,
    };
    if seen.contains(PollFlags::POLLERR) {
        Ending::WithLinesUnread
    } else if seen.contains(PollFlags::POLLHUP) {
        Ending::WithAllRead
    } else {
        Ending::No
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
