//! Once every port towards a server is used, ended flows release their ports to new ones, and live
//! flows keep theirs.

use crate::common::clients::{Tcp, Udp, any};
use crate::common::{ECHO, Echo, SOON, clock, nft};
use crate::site::{Control, Site, Subject, both, ends, restore};
use crate::talk::{Pair, listen};
use anyhow::{Context as _, Result, ensure};
use socket2::{Domain, Protocol, Socket, Type};
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;
use testbed::{Host, Netns, WorkDir, wait_for};

const RANGE: &str = "40000-40199";
const PORTS: usize = 200;
/// Flows opened after all ports have been used.
const MORE: usize = 20;

/// The side that closes a connection, and how.
#[derive(Debug, Clone, Copy)]
enum Closed {
    Pod,
    Server,
    PodsRst,
    ServersRst,
}

/// Starts a site that uses [`RANGE`] for every flow.
fn site(subject: Subject) -> Result<Site> {
    Site::prepared(subject, &["--to-ports", RANGE], |bed| match subject {
        Subject::Netdp => Ok(()),
        Subject::IpMasqAgent => narrow(&bed.node),
    })
}

/// Adds a netfilter rule with the same range before all others.
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

/// Opens a connection, closes it, and waits until it is closed.
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

/// Reads to the end of the stream and closes it.
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

/// Opens sockets with one request each.
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
        // With more than one request each: these are streams.
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

/// Connections that another pod opens, each with another initial sequence number: half of these are
/// beyond those of all earlier connections.
const ATTEMPTS: usize = 12;

/// A side that has closed still receives the other's data, and the side that closed last waits for
/// the acknowledgement.
#[test]
fn connections_that_are_closing_keep_their_ports() -> Result<()> {
    let site = site(Subject::Netdp)?;
    let (pod, other) = (site.good(), &site.bed.pods[1]);
    for to in ends(&site.far, 8080) {
        let mut others = (2..PORTS)
            .map(|_| Pair::between(pod, &site.far, to))
            .collect::<Result<Vec<_>>>()?;
        let mut half = Pair::between(pod, &site.far, to)?;
        half.client.shutdown(Shutdown::Write)?;
        half.server.read_to_end(&mut Vec::new())?;
        let mut last = Pair::between(pod, &site.far, to)?;
        last.client.shutdown(Shutdown::Write)?;
        last.server.read_to_end(&mut Vec::new())?;
        // Blocks the pod's last ACK.
        let port = last.client.local_addr()?.port();
        nft(
            pod,
            &format!(
                "add table inet held; \
                 add chain inet held out {{ type filter hook output priority 0; }}; \
                 add rule inet held out tcp sport {port} drop"
            ),
        )?;
        drop(last.server);
        last.client
            .read_to_end(&mut Vec::new())
            .context("the server's FIN")?;
        let _listener = listen(&site.far, to)?;
        let connects = || {
            other
                .enter(|| TcpStream::connect_timeout(&to, Duration::from_millis(200)))
                .is_ok_and(|tried| tried.is_ok())
        };
        for n in 0..ATTEMPTS {
            ensure!(!connects(), "connection {n} to {to} has got a port");
        }
        ensure!(in_last_ack(&site.far)? == 1, "the server still waits");
        for pair in &mut others {
            pair.goes_on()?;
        }
        half.server.write_all(b"more")?;
        let mut heard = [0; 4];
        half.client.read_exact(&mut heard)?;
        ensure!(&heard == b"more", "{heard:?}");
        nft(pod, "delete table inet held")?;
        wait_for(SOON, "the last ACK", || {
            in_last_ack(&site.far).is_ok_and(|count| count == 0)
        })?;
        wait_for(SOON, "the port to be another's", connects)?;
    }
    Ok(())
}

/// Returns the number of a host's sockets in LAST-ACK.
fn in_last_ack(host: &Netns) -> Result<usize> {
    let shown = host.run(&["ss", "-Htn", "state", "last-ack"])?;
    Ok(shown.lines().count())
}

/// Unidirectional flows, as some measuring tools send them.
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
            // Of the same pod: such flows are evicted for a pod with fewer. The refusal is
            // reported.
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
