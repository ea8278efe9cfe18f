//! Where every port towards a server is in use, flows that are over give theirs to new ones,
//! and flows that live keep theirs.

use crate::common::clients::{Tcp, Udp, any};
use crate::common::{ECHO, Echo, clock};
use crate::site::{Control, Site, Subject, both, ends, restore};
use anyhow::{Context as _, Result, ensure};
use socket2::{Domain, Protocol, Socket, Type};
use std::io::{ErrorKind, Read as _};
use std::net::{Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;
use xtask::testbed::{Host, Netns, WorkDir};

const RANGE: &str = "40000-40199";
const PORTS: usize = 200;
/// Flows that begin when all ports have been used.
const MORE: usize = 20;

/// Who closes a connection, and how.
#[derive(Debug, Clone, Copy)]
enum Closed {
    Pod,
    Server,
    PodsRst,
    ServersRst,
}

/// A node that uses [`RANGE`] for every flow.
fn site(subject: Subject) -> Result<Site> {
    Site::prepared(subject, &["--to-ports", RANGE], |bed| match subject {
        Subject::Netdp => Ok(()),
        Subject::IpMasqAgent => narrow(&bed.node),
    })
}

/// netfilter with the same range, before any other rule.
fn narrow(node: &Netns) -> Result<()> {
    let dir = WorkDir::new("narrow")?;
    for (tool, pods) in [
        ("iptables-restore", "172.16.0.0/16"),
        ("ip6tables-restore", "fd00:172::/64"),
    ] {
        let masquerade = |protocol| {
            format!("-A POSTROUTING -p {protocol} ! -d {pods} -j MASQUERADE --to-ports {RANGE}\n")
        };
        let rules = format!("*nat\n{}{}COMMIT\n", masquerade("tcp"), masquerade("udp"));
        restore(node, &dir, tool, &rules)?;
    }
    Ok(())
}

/// Opens a connection and closes it, and waits until it is closed.
fn closed(pod: &Host, server: &Netns, port: u16, to: SocketAddr, how: Closed) -> Result<()> {
    let listener = server.open(|| {
        let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        socket.bind(&SocketAddr::new(to.ip(), port).into())?;
        socket.listen(1)?;
        Ok(std::net::TcpListener::from(socket))
    })?;
    let to = SocketAddr::new(to.ip(), port);
    let client = pod.open(|| TcpStream::connect_timeout(&to, Duration::from_secs(5)))?;
    let (peer, _) = listener.accept()?;
    for stream in [&client, &peer] {
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    }
    let (first, last) = match how {
        Closed::Pod | Closed::PodsRst => (client, peer),
        Closed::Server | Closed::ServersRst => (peer, client),
    };
    if matches!(how, Closed::PodsRst | Closed::ServersRst) {
        socket2::SockRef::from(&first).set_linger(Some(Duration::ZERO))?;
        drop(first);
        return match end(last) {
            Err(error) if error.kind() == ErrorKind::ConnectionReset => Ok(()),
            other => other.context("the RST"),
        };
    }
    first.shutdown(Shutdown::Write)?;
    end(last).context("the first FIN")?;
    end(first).context("the second FIN")
}

/// Reads to the end, and closes.
fn end(mut stream: TcpStream) -> std::io::Result<()> {
    stream.read_to_end(&mut Vec::new())?;
    Ok(())
}

fn connections_come_back(subject: Subject, how: Closed) -> Result<()> {
    let site = site(subject)?;
    for to in ends(&site.far, 80) {
        for n in 0..PORTS {
            closed(site.good(), &site.far, 80, to, how)
                .with_context(|| format!("connection {n} to {to}"))?;
        }
        for pod in [site.good(), &site.bed.pods[1]] {
            for n in 0..MORE {
                closed(pod, &site.far, 80, to, how)
                    .with_context(|| format!("one more of {} to {to}: {n}", pod.name()))?;
            }
        }
    }
    Ok(())
}

#[test]
fn connections_that_pods_have_closed_give_their_ports_to_new_ones() -> Result<()> {
    both(Control::Holds, |subject| {
        connections_come_back(subject, Closed::Pod)
    })
}

#[test]
fn connections_that_servers_have_closed_give_their_ports_to_new_ones() -> Result<()> {
    both(Control::Holds, |subject| {
        connections_come_back(subject, Closed::Server)
    })
}

#[test]
fn connections_that_a_rst_has_ended_give_their_ports_to_new_ones() -> Result<()> {
    both(Control::Holds, |subject| {
        connections_come_back(subject, Closed::PodsRst)?;
        connections_come_back(subject, Closed::ServersRst)
    })
}

/// Sockets that have asked once each.
fn ask(pod: &Host, to: SocketAddr, count: usize) -> Result<Vec<(Udp, SocketAddr)>> {
    (0..count)
        .map(|n| {
            let mut flow = Udp::connect(pod, any(to), to)?;
            let seen = flow
                .ask()
                .with_context(|| format!("question {n} to {to}"))?;
            Ok((flow, seen))
        })
        .collect()
}

#[test]
fn answered_questions_give_their_ports_to_new_ones() -> Result<()> {
    let mut site = site(Subject::Netdp)?;
    let _echo = Echo::start(&site.far)?;
    for to in ends(&site.far, ECHO) {
        // Not all have been asked only once: these are streams.
        let mut streams = ask(site.good(), to, MORE)?;
        let agent = site.agent().context("no agent")?;
        clock::advance(agent, Duration::from_secs(10))?;
        for (stream, seen) in &mut streams {
            ensure!(stream.ask()? == *seen, "another port");
        }
        ask(site.good(), to, PORTS - MORE)?;
        let agent = site.agent().context("no agent")?;
        clock::advance(agent, Duration::from_secs(31))?;
        for pod in [site.good(), &site.bed.pods[1]] {
            ask(pod, to, MORE).context("31 s later")?;
        }
        for (stream, seen) in &mut streams {
            ensure!(stream.ask()? == *seen, "a stream has got another port");
        }
    }
    Ok(())
}

#[test]
fn live_flows_keep_their_ports_where_none_is_left() -> Result<()> {
    let mut site = site(Subject::Netdp)?;
    let _echo = Echo::start(&site.far)?;
    for to in ends(&site.far, ECHO) {
        let mut open = (0..PORTS)
            .map(|_| {
                let mut connection = Tcp::connect(site.good(), any(to), to)?;
                let seen = connection.ask()?;
                Ok((connection, seen))
            })
            .collect::<Result<Vec<_>>>()?;
        let agent = site.agent().context("no agent")?;
        clock::advance(agent, Duration::from_secs(7200))?;
        let tried = site.bed.pods[1]
            .enter(|| TcpStream::connect_timeout(&to, Duration::from_millis(300)))?;
        ensure!(tried.is_err(), "one more connection than ports");
        for (connection, seen) in &mut open {
            ensure!(connection.ask()? == *seen, "another port");
        }
    }
    Ok(())
}

/// What nobody answers, as some measuring tools send it.
#[test]
fn flows_that_only_send_keep_their_ports() -> Result<()> {
    let mut site = site(Subject::Netdp)?;
    for to in ends(&site.far, 9_009) {
        let silent = site.far.open(|| UdpSocket::bind(to))?;
        silent.set_read_timeout(Some(Duration::from_millis(500)))?;
        let send = |socket: &UdpSocket| -> Result<SocketAddr> {
            socket.send(b"one way")?;
            let (_, seen) = silent.recv_from(&mut [0; 16])?;
            Ok(seen)
        };
        let flows = (0..PORTS)
            .map(|_| {
                let flow = Udp::connect(site.good(), any(to), to)?;
                let seen = send(&flow.socket)?;
                Ok((flow, seen))
            })
            .collect::<Result<Vec<_>>>()?;
        for _ in 0..3 {
            let agent = site.agent().context("no agent")?;
            clock::advance(agent, Duration::from_secs(4))?;
            for (flow, seen) in &flows {
                ensure!(send(&flow.socket)? == *seen, "another port");
            }
            // Of the same pod: to one with fewer they give way. It is told.
            let more = Udp::connect(site.good(), any(to), to)?;
            let sent = more.socket.send(b"one more");
            let came = silent.recv_from(&mut [0; 16]);
            ensure!(
                came.is_err(),
                "one more flow than ports: {came:?}, {sent:?}"
            );
        }
    }
    Ok(())
}
