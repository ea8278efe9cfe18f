//! Destinations of the log.

use super::counters::Cause;
use super::file::LogFile;
use super::ipfix::{Ipfix, Session};
use super::socket::Socket;
use std::io;

/// A place for the log.
pub(super) enum Sink {
    File(LogFile),
    Socket(Socket),
    Ipfix(Ipfix),
}

impl Sink {
    /// Reports whether it takes sessions instead of lines.
    pub const fn takes_sessions(&self) -> bool {
        matches!(self, Self::Ipfix(_))
    }

    /// Returns the cause of its failures.
    pub const fn cause(&self) -> Cause {
        match self {
            Self::File(_) => Cause::Disk,
            Self::Socket(_) | Self::Ipfix(_) => Cause::Collector,
        }
    }

    /// Writes lines. Reports whether earlier ones may have been lost.
    ///
    /// # Errors
    /// Returns an error if they are to be written again.
    pub fn write_lines(&mut self, lines: &[u8]) -> io::Result<bool> {
        match self {
            Self::File(file) => file.write(lines).map(|()| false),
            Self::Socket(socket) => socket.write(lines),
            Self::Ipfix(_) => Ok(false),
        }
    }

    /// Reports whether all that was written is on the disk, or has been read by the collector; of one that
    /// does not tell, it is taken for granted.
    pub fn is_stored(&mut self) -> bool {
        match self {
            Self::File(file) => file.is_stored(),
            Self::Socket(socket) => socket.is_read(),
            Self::Ipfix(_) => true,
        }
    }

    /// Sends sessions. Returns how many of them were sent.
    ///
    /// # Errors
    /// Returns an error, and how many were sent, if the others are to be sent again.
    pub fn write_sessions(
        &mut self,
        sessions: &[Session<'_>],
    ) -> Result<usize, (usize, io::Error)> {
        match self {
            Self::Ipfix(ipfix) => ipfix.write(sessions),
            Self::File(_) | Self::Socket(_) => Ok(sessions.len()),
        }
    }

    /// Waits until what was sent has probably arrived.
    ///
    /// # Errors
    /// Returns an error if it has not: it will be sent again.
    pub fn settle(&mut self) -> io::Result<()> {
        match self {
            Self::Ipfix(ipfix) => ipfix.settle(),
            Self::File(_) | Self::Socket(_) => Ok(()),
        }
    }

    /// Has the disk store what was written, where there is one.
    ///
    /// # Errors
    /// Returns an error, and the number of lines that the disk may lack.
    pub fn sync(&mut self) -> Result<(), (u64, io::Error)> {
        match self {
            Self::File(file) => file.sync(),
            Self::Socket(_) | Self::Ipfix(_) => Ok(()),
        }
    }

    /// Reports whether another file is due.
    pub fn is_rotation_due(&self) -> bool {
        matches!(self, Self::File(file) if file.is_rotation_due())
    }

    /// Begins another file where that is due.
    pub fn rotate(&mut self) {
        if let Self::File(file) = self
            && let Err(err) = file.rotate_if_due()
        {
            log::warn!("rotating the NAT log: {err}");
        }
    }
}
