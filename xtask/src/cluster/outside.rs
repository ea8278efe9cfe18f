//! Servers outside the node.

use anyhow::Result;
use std::net::{IpAddr, SocketAddr};
use testbed::{EchoServer, Host, HttpServer, UdpEchoServer};

/// Ports of the echo servers and of the HTTP server.
const ECHO: u16 = 7;
const HTTP: u16 = 80;

/// A host with an HTTP server and with echo servers for TCP and UDP.
#[derive(Debug)]
pub struct Outside {
    // Dropped before the network that they use.
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

    /// Returns the endpoint of the echo servers.
    #[must_use]
    pub fn echo(&self) -> SocketAddr {
        self.echo
    }

    /// Returns the URL of the page that contains the client's source address.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}/health", self.echo.ip())
    }

    /// Returns the source address of the last HTTP client.
    #[must_use]
    pub fn last_seen(&self) -> Option<IpAddr> {
        self.http.seen().last().copied()
    }
}
