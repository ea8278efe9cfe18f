//! Servers beyond the node.

use anyhow::Result;
use std::net::{IpAddr, SocketAddr};
use testbed::{EchoServer, Host, HttpServer, UdpEchoServer};

/// The ports of the echo servers and of the HTTP server.
const ECHO: u16 = 7;
const HTTP: u16 = 80;

/// A host with an HTTP server, and echo servers for TCP and UDP.
#[derive(Debug)]
pub struct Outside {
    // Dropped before the network that it is in.
    http: HttpServer,
    _echo: (EchoServer, UdpEchoServer),
    echo: SocketAddr,
    _host: Host,
}

impl Outside {
    pub(super) fn serve(host: Host) -> Result<Self> {
        let echo = (host.v4()?, ECHO).into();
        Ok(Self {
            http: HttpServer::start(&host, (host.v4()?, HTTP))?,
            _echo: (
                EchoServer::start(&host, echo)?,
                UdpEchoServer::start(&host, echo)?,
            ),
            echo,
            _host: host,
        })
    }

    /// Where the echo servers are.
    #[must_use]
    pub fn echo(&self) -> SocketAddr {
        self.echo
    }

    /// The page that says as whom its reader is seen.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}/health", self.echo.ip())
    }

    /// As whom the last reader was seen.
    #[must_use]
    pub fn last_seen(&self) -> Option<IpAddr> {
        self.http.seen().last().copied()
    }
}
