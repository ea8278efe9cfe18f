//! TCP and UDP servers that echo what they receive, followed by the sender's address.

use super::netns::Netns;
use super::service::Service;
use anyhow::{Context as _, Result, ensure};
use std::io::{BufRead, BufReader, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

/// Client timeout for an answer.
const PATIENCE: Duration = Duration::from_secs(15);

/// A TCP server that answers each line with `<line> <client's address:port>`.
#[derive(Debug)]
pub struct EchoServer(#[expect(dead_code, reason = "dropping it ends the server")] Service);

impl EchoServer {
    /// Starts listening in the namespace.
    pub fn start(ns: &Netns, at: impl Into<SocketAddr>) -> Result<Self> {
        let service = Service::tcp(ns, at.into(), |mut stream, peer| {
            stream.set_nodelay(true)?;
            for line in BufReader::new(stream.try_clone()?).lines() {
                writeln!(stream, "{} {peer}", line?)?;
            }
            Ok(())
        })?;
        Ok(Self(service))
    }
}

/// A connection to an [`EchoServer`] that stays open.
#[derive(Debug)]
pub struct EchoClient {
    stream: BufReader<TcpStream>,
    asked: u32,
}

impl EchoClient {
    /// Connects from the namespace, from any port.
    pub fn connect(ns: &Netns, to: impl Into<SocketAddr>, deadline: Duration) -> Result<Self> {
        let to = to.into();
        let stream = ns
            .enter(|| TcpStream::connect_timeout(&to, deadline))?
            .with_context(|| format!("connecting to {to} from {}", ns.name()))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Self {
            stream: BufReader::new(stream),
            asked: 0,
        })
    }

    /// Sends a line, checks the echo, and returns the source address that the server saw.
    pub fn ask(&mut self) -> Result<SocketAddr> {
        self.asked += 1;
        let word = self.asked.to_string();
        writeln!(self.stream.get_mut(), "{word}").context("sending to the echo server")?;
        let mut line = String::new();
        self.stream
            .read_line(&mut line)
            .context("waiting for the echo")?;
        seen(&line, &word)
    }
}

/// A UDP server that answers each datagram with `<datagram> <client's address:port>`.
#[derive(Debug)]
pub struct UdpEchoServer(#[expect(dead_code, reason = "dropping it ends the server")] Service);

impl UdpEchoServer {
    /// Binds in the namespace.
    pub fn start(ns: &Netns, at: impl Into<SocketAddr>) -> Result<Self> {
        let at = at.into();
        let socket = ns
            .open(|| UdpSocket::bind(at))
            .with_context(|| format!("binding UDP {at} in {}", ns.name()))?;
        Ok(Self(Service::start(socket, |socket| {
            let mut buffer = [0; 2048];
            if let Ok((count, peer)) = socket.recv_from(&mut buffer) {
                let answer = [&buffer[..count], format!(" {peer}").as_bytes()].concat();
                // The client detects a lost answer.
                let _ = socket.send_to(&answer, peer);
            }
        })))
    }
}

/// Sends one datagram from the namespace to a [`UdpEchoServer`] and returns the source that the
/// server saw. `from` is the source port; 0 selects any.
pub fn udp_ask(
    ns: &Netns,
    from: u16,
    to: impl Into<SocketAddr>,
    deadline: Duration,
) -> Result<SocketAddr> {
    let to = to.into();
    let any: IpAddr = match to {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = ns
        .open(|| UdpSocket::bind((any, from)))
        .with_context(|| format!("binding UDP port {from} in {}", ns.name()))?;
    socket.set_read_timeout(Some(deadline))?;
    socket.connect(to)?;
    socket.send(b"ask")?;
    let mut buffer = [0; 256];
    let count = socket
        .recv(&mut buffer)
        .with_context(|| format!("waiting for {to} to answer {}", ns.name()))?;
    seen(&String::from_utf8_lossy(&buffer[..count]), "ask")
}

/// Returns the address in an echo server's answer; the text before it must be `word`.
pub fn seen(answer: &str, word: &str) -> Result<SocketAddr> {
    let (echoed, peer) = answer
        .trim_end()
        .split_once(' ')
        .with_context(|| format!("the echo server closed or sent nonsense: {answer:?}"))?;
    ensure!(echoed == word, "sent {word:?} and got {echoed:?} back");
    peer.parse()
        .with_context(|| format!("not an address: {peer:?}"))
}
