//! 2.10, 2.11: ports that the node itself uses.

use crate::bed::{At, BOTH, node, server};
use crate::build::{ACK, SYN, tcp, udp};
use crate::driver::Wire;
use anyhow::{Context as _, Result, ensure};
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::time::Duration;
use testbed::wait_some;

const SOON: Duration = Duration::from_secs(15);

fn receives(socket: &UdpSocket, payload: &[u8]) -> Result<()> {
    let mut buffer = [0; 64];
    let len = socket
        .recv(&mut buffer)
        .context("the node's socket got nothing")?;
    ensure!(&buffer[..len] == payload);
    Ok(())
}

pub fn r2_10_the_nodes_socket_first(w: &mut Wire) -> Result<()> {
    for f in BOTH {
        let outside = (server(f, 0), 53);
        let socket = w
            .bed
            .node
            .enter(|| UdpSocket::bind(SocketAddr::new(node(f, 0), 4000)))??;
        socket.set_read_timeout(Some(SOON))?;
        socket.connect(SocketAddr::from(outside))?;
        socket.send(b"the node asks")?;
        w.expect(At::Uplink(0), "the node's question", |p| {
            (p.src, p.sport(), p.dst) == (node(f, 0), 4000, outside.0)
        })?;
        let flow = w.udp(0, 4000, outside)?;
        ensure!(flow.wire.1 != 4000, "one tuple for two");
        w.send(
            At::Uplink(0),
            &udp(outside, (node(f, 0), 4000), b"for the node"),
        )?;
        receives(&socket, b"for the node")?;
        w.back(&flow, &flow.answers(b"for the pod"))?;
    }
    Ok(())
}

pub fn r2_10_the_pod_first(w: &mut Wire) -> Result<()> {
    for f in BOTH {
        let outside = (server(f, 0), 53);
        let flow = w.udp(0, 4000, outside)?;
        let socket = w
            .bed
            .node
            .enter(|| UdpSocket::bind(SocketAddr::new(node(f, 0), flow.wire.1)))??;
        socket.set_read_timeout(Some(SOON))?;
        socket.connect(SocketAddr::from(outside))?;
        socket.send(b"the node asks")?;
        let asked = w.expect(At::Uplink(0), "the node's question", |p| {
            p.body.ends_with(b"the node asks")
        })?;
        ensure!(asked.sport() != flow.wire.1, "one tuple for two");
        w.back(&flow, &flow.answers(b"for the pod"))?;
        let to = (node(f, 0), asked.sport());
        w.send(At::Uplink(0), &udp(outside, to, b"for the node"))?;
        receives(&socket, b"for the node")?;
        w.expect_nothing(At::Pod(0))?;
    }
    Ok(())
}

pub fn r2_11_a_listener_still_gets_new_connections(w: &mut Wire) -> Result<()> {
    for f in BOTH {
        let (local, client) = ((node(f, 0), 4000), (server(f, 1), 7000));
        let listener = w
            .bed
            .node
            .enter(|| TcpListener::bind(SocketAddr::from(local)))??;
        let flow = w.tcp(0, 4000, (server(f, 0), 80))?;
        w.send(At::Uplink(0), &tcp(client, local, SYN, (100, 0), b""))?;
        let answer = w.expect(At::Uplink(0), "SYN-ACK", |p| {
            p.dst == client.0 && p.tcp_flags() == SYN | ACK
        })?;
        let theirs = u32::from_be_bytes(answer.body[4..8].try_into()?).wrapping_add(1);
        w.send(
            At::Uplink(0),
            &tcp(client, local, ACK, (101, theirs), b"hello"),
        )?;
        // The handshake is complete, or never will be.
        listener.set_nonblocking(true)?;
        let (mut connection, from) = wait_some(SOON, "the connection", || listener.accept().ok())?;
        connection.set_nonblocking(false)?;
        ensure!(from == SocketAddr::from(client));
        connection.set_read_timeout(Some(SOON))?;
        let mut hello = [0; 5];
        connection.read_exact(&mut hello)?;
        connection.write_all(b"world")?;
        w.expect(At::Uplink(0), "the listener's answer", |p| {
            p.body.ends_with(b"world")
        })?;
        w.back(&flow, &flow.gets(ACK, (5001, 1001), b"for the pod"))?;
        drop(connection);
    }
    Ok(())
}
