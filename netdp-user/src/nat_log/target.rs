//! The destination of the log, from `--nat-log`.

use crate::private;
use anyhow::{Context as _, Result, ensure};
use std::fmt;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// The destination of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Target {
    /// JSON lines to a file.
    File(PathBuf),
    /// JSON lines to a Unix stream socket.
    Socket(PathBuf),
    /// IPFIX over UDP.
    Ipfix(SocketAddr),
}

impl FromStr for Target {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        if let Some(to) = text.strip_prefix("ipfix://") {
            let to: SocketAddr = to.parse().with_context(|| {
                format!("{to:?} is not an address and a port, such as 192.0.2.7:4739")
            })?;
            ensure!(to.port() != 0, "{text:?}: port 0 can't be sent to");
            return Ok(Self::Ipfix(to));
        }
        let (path, is_socket) = match text.strip_prefix("unix:") {
            Some(path) => (path, true),
            None => (text, false),
        };
        ensure!(
            path.starts_with('/') && !path.ends_with('/'),
            "{text:?} is none of: an absolute path, unix: and an absolute path, \
             ipfix://ADDRESS:PORT"
        );
        let path = PathBuf::from(path);
        Ok(if is_socket {
            Self::Socket(path)
        } else {
            Self::File(path)
        })
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Socket(path) => write!(f, "unix:{}", path.display()),
            Self::Ipfix(to) => write!(f, "ipfix://{to}"),
        }
    }
}

impl Target {
    /// Returns the file, if it is one.
    pub(crate) fn file(&self) -> Option<&Path> {
        match self {
            Self::File(path) => Some(path),
            Self::Socket(_) | Self::Ipfix(_) => None,
        }
    }

    /// Checks that the file's directory exists, and that no other user could replace the file.
    ///
    /// # Errors
    /// Returns an error that says what to change.
    pub(crate) fn check(&self) -> Result<()> {
        let Some(dir) = self.file().and_then(Path::parent) else {
            return Ok(());
        };
        ensure!(
            dir.is_dir(),
            "--nat-log {self}: there is no directory {}; create it, or mount it into the pod",
            dir.display()
        );
        private::check(dir, "--nat-log")
    }
}

#[cfg(test)]
mod tests {
    use super::Target;

    #[test]
    fn targets_are_paths_sockets_and_collectors() {
        for text in [
            "/var/log/netdp/nat.log",
            "unix:/run/collector.sock",
            "ipfix://192.0.2.7:4739",
            "ipfix://[2001:db8::7]:4739",
        ] {
            let target: Target = text.parse().unwrap();
            assert_eq!(target.to_string(), text);
        }
        for text in [
            "nat.log",
            "",
            "unix:x",
            "ipfix://collector:4739",
            "ipfix://192.0.2.7",
            "ipfix://192.0.2.7:0",
            "/var/log/",
            "file:/x",
        ] {
            assert!(text.parse::<Target>().is_err(), "{text}");
        }
    }
}
