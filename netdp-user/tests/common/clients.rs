//! Clients with a chosen source endpoint.

use super::ANSWER;
use anyhow::{Context as _, Result};
use socket2::{Domain, Protocol, SockAddr, Socket, Type};
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;
use testbed::{Netns, seen};

/// Returns the unspecified address and port 0, in the family of `like`.
pub fn any(like: SocketAddr) -> SocketAddr {
    from_port(0, like)
}

/// Returns the unspecified address with this port, in the family of `like`.
pub fn from_port(port: u16, like: SocketAddr) -> SocketAddr {
    match like {
        SocketAddr::V4(_) => ([0, 0, 0, 0], port).into(),
        SocketAddr::V6(_) => ([0u16; 8], port).into(),
    }
}

/// A TCP connection to an echo server from a chosen source.
#[derive(Debug)]
pub struct Tcp {
    stream: BufReader<TcpStream>,
    asked: u32,
}

impl Tcp {
    /// Connects; port 0 in `from` means any.
    pub fn connect(ns: &Netns, from: SocketAddr, to: SocketAddr) -> Result<Self> {
        let stream = tcp_stream(ns, from, to)?;
        stream.set_nodelay(true)?;
        Ok(Self {
            stream: BufReader::new(stream),
            asked: 0,
        })
    }

    /// Sends a line, checks the echo, and returns the source that the server sees.
    pub fn ask(&mut self) -> Result<SocketAddr> {
        self.asked += 1;
        let word = format!("tcp-{}", self.asked);
        writeln!(self.stream.get_mut(), "{word}").context("sending")?;
        let mut line = String::new();
        self.stream
            .read_line(&mut line)
            .context("waiting for the echo")?;
        seen(&line, &word)
    }

    /// Ends the connection by a RST, after which its port is free at once.
    pub fn reset(self) -> Result<()> {
        let stream = self.stream.into_inner();
        socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
        Ok(())
    }
}

/// Opens a plain TCP connection from a chosen source, with read and write timeouts.
pub fn tcp_stream(ns: &Netns, from: SocketAddr, to: SocketAddr) -> Result<TcpStream> {
    let stream = ns
        .open(|| {
            let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
            // An earlier connection may have left the port in TIME-WAIT.
            socket.set_reuse_address(true)?;
            socket.bind(&from.into())?;
            socket.connect_timeout(&to.into(), ANSWER)?;
            Ok(TcpStream::from(socket))
        })
        .with_context(|| format!("connecting from {} ({from}) to {to}", ns.name()))?;
    stream.set_read_timeout(Some(ANSWER))?;
    stream.set_write_timeout(Some(ANSWER))?;
    Ok(stream)
}

/// A UDP socket connected to an echo server.
#[derive(Debug)]
pub struct Udp {
    /// The underlying socket, for direct use.
    pub socket: UdpSocket,
    asked: u32,
}

impl Udp {
    /// Binds to `from` and connects to `to`.
    pub fn connect(ns: &Netns, from: SocketAddr, to: SocketAddr) -> Result<Self> {
        let socket = ns
            .open(|| {
                let socket = UdpSocket::bind(from)?;
                socket.connect(to)?;
                Ok(socket)
            })
            .with_context(|| format!("UDP from {} ({from}) to {to}", ns.name()))?;
        socket.set_read_timeout(Some(ANSWER))?;
        Ok(Self { socket, asked: 0 })
    }

    /// Sends a datagram, checks the echo, and returns the source that the server sees.
    pub fn ask(&mut self) -> Result<SocketAddr> {
        self.asked += 1;
        let word = format!("udp-{}", self.asked);
        self.socket.send(word.as_bytes()).context("sending")?;
        let mut buffer = [0; 256];
        let count = self
            .socket
            .recv(&mut buffer)
            .context("waiting for the echo")?;
        seen(&String::from_utf8_lossy(&buffer[..count]), &word)
    }
}

/// Returns the source of a TCP connection from any port, as the echo server sees it.
pub fn tcp_source(ns: &Netns, to: SocketAddr) -> Result<IpAddr> {
    Ok(Tcp::connect(ns, any(to), to)?.ask()?.ip())
}

/// Returns the source of a datagram from any port, as the echo server sees it.
pub fn udp_source(ns: &Netns, to: SocketAddr) -> Result<IpAddr> {
    Ok(Udp::connect(ns, any(to), to)?.ask()?.ip())
}

/// Sends three pings, all of which must be answered.
pub fn ping(ns: &Netns, target: IpAddr) -> Result<String> {
    let target = target.to_string();
    ns.run(&["ping", "-n", "-c3", "-i0.05", "-W15", &target])
}

/// Sends one IP packet with the given protocol, destination and payload through a raw socket; the
/// kernel writes the IP header.
pub fn send_raw(ns: &Netns, protocol: i32, to: IpAddr, payload: &[u8]) -> Result<()> {
    let to = SocketAddr::new(to, 0);
    ns.enter(|| -> std::io::Result<usize> {
        let protocol = Protocol::from(protocol);
        let socket = Socket::new(Domain::for_address(to), Type::RAW, Some(protocol))?;
        socket.send_to(payload, &SockAddr::from(to))
    })?
    .with_context(|| format!("sending protocol {protocol} from {} to {to}", ns.name()))?;
    Ok(())
}
