//! The node's own sockets keep their ports.

use crate::build::{Build, SYN};
use crate::node::{Node, addresses, becomes};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::time::Duration;
use testbed::wait_for;

const SERVER: &str = "198.51.100.7:443";
const WIRE: &str = "192.0.2.10:4000";

fn opening(udp: bool, v6: bool) -> Build {
    let (pod, server) = if v6 {
        ("[fd00:1::2]:4000", "[2001:db8::7]:443")
    } else {
        ("172.16.0.2:4000", SERVER)
    };
    if udp {
        Build::udp(pod, server)
    } else {
        Build::tcp(pod, server, SYN)
    }
}

#[test]
fn a_udp_socket_keeps_its_port() {
    for (bind, v6) in [
        ("0.0.0.0:4000", false),
        ("192.0.2.10:4000", false),
        ("[::]:4000", true),
        ("[fd00::10]:4000", true),
    ] {
        let mut node = Node::new();
        addresses(&["192.0.2.10/32", "fd00::10/128"]);
        let socket = UdpSocket::bind(bind).expect("a socket");
        let wire = if v6 { "[fd00::10]:4000" } else { WIRE };
        let udp = opening(true, v6);
        assert_ne!(node.out(&udp), becomes(&udp.from(wire)), "{bind}");
        assert_eq!(node.counters().ports_changed, 1);
        // Neither a TCP port, nor its own port once it is closed.
        let tcp = opening(false, v6);
        assert_eq!(node.out(&tcp), becomes(&tcp.from(wire)), "{bind}");
        drop(socket);
        wait_closed(if v6 { "udp6" } else { "udp" }, ":0FA0 ");
        let other = if v6 {
            "[fd00:1::3]:4000"
        } else {
            "172.16.0.3:4000"
        };
        let later = udp.from(other);
        assert_eq!(node.out(&later), becomes(&later.from(wire)), "{bind}");
    }
}

#[test]
fn a_connected_udp_socket_keeps_its_port_towards_its_peer_only() {
    let mut node = Node::new();
    addresses(&["192.0.2.10/32", "198.51.100.7/32"]);
    let socket = UdpSocket::bind(WIRE).expect("a socket");
    socket.connect(SERVER).expect("a connected socket");
    let udp = opening(true, false);
    assert_ne!(node.out(&udp), becomes(&udp.from(WIRE)));
    let elsewhere = udp.to("198.51.100.8:443");
    assert_eq!(node.out(&elsewhere), becomes(&elsewhere.from(WIRE)));
}

#[test]
fn a_tcp_connection_keeps_its_port_towards_its_peer_only() {
    let mut node = Node::new();
    addresses(&["192.0.2.10/32", "198.51.100.7/32"]);
    let listener = TcpListener::bind(WIRE).expect("a listener");
    let far = TcpListener::bind(SERVER).expect("a listener of the peer");
    let tcp = opening(false, false);
    // Packets from the peer to a listener's port are the listener's.
    let first = tcp.from("172.16.0.9:4000").to("198.51.100.8:443");
    assert_ne!(node.out(&first), becomes(&first.from(WIRE)));
    drop(listener);
    wait_closed("tcp", ":0FA0 00000000:0000 0A ");
    let stream = connect_from_wire();
    assert_ne!(node.out(&tcp), becomes(&tcp.from(WIRE)));
    assert_eq!(node.counters().ports_changed, 2);
    let elsewhere = tcp.to("198.51.100.9:443");
    assert_eq!(node.out(&elsewhere), becomes(&elsewhere.from(WIRE)));
    drop((stream, far));
}

/// Waits until none of the test's sockets has port 4000: a child that another test is starting also
/// holds them until exec.
fn wait_closed(protocol: &str, line: &str) {
    let file = format!("/proc/thread-self/net/{protocol}");
    let what = format!("no {line:?} in {file}");
    let gone = wait_for(Duration::from_secs(30), &what, || {
        std::fs::read_to_string(&file).is_ok_and(|sockets| !sockets.contains(line))
    });
    gone.expect("a closed socket");
}

/// Connects from the node's port 4000 to the server.
fn connect_from_wire() -> TcpStream {
    use nix::sys::socket::{
        AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, setsockopt, socket, sockopt,
    };
    use std::os::fd::AsRawFd as _;
    use std::str::FromStr as _;
    let fd = socket(
        AddressFamily::Inet,
        SockType::Stream,
        SockFlag::SOCK_CLOEXEC,
        None,
    )
    .expect("a socket");
    setsockopt(&fd, sockopt::ReuseAddr, &true).expect("SO_REUSEADDR");
    let addr = |text| SockaddrIn::from_str(text).expect("an address");
    bind(fd.as_raw_fd(), &addr(WIRE)).expect("binding");
    connect(fd.as_raw_fd(), &addr(SERVER)).expect("connecting");
    TcpStream::from(fd)
}
