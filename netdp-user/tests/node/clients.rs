//! Real clients get the same results through netdp as through a plain router.

use crate::outside::programs::{self, Outcomes, Servers};
use crate::outside::tcpdump::Tcpdump;
use crate::outside::{Outside, POD_NETWORKS, Shape};
use anyhow::{Result, ensure};
use std::net::{IpAddr, SocketAddr, UdpSocket};
use testbed::wait_for;

const SIZES: [&str; 6] = ["0", "1452", "1472", "1473", "8000", "20000"];

/// Runs all programs on a bed of this shape.
fn run(shape: Shape) -> Result<Outcomes> {
    let outside = Outside::new(shape)?;
    let servers = Servers::start(&outside)?;
    let mut all = Outcomes::new();
    for target in outside.targets() {
        programs::ping(&outside, target, &SIZES, &mut all);
        programs::curl(&outside, &servers, target, &mut all);
        programs::traces(&outside, target, &mut all);
        programs::iperf(&outside, target, &mut all)?;
    }
    let mut expected: Vec<IpAddr> = if shape.translated {
        let uplink = &outside.bed.uplinks[0];
        vec![uplink.v4()?.into(), uplink.v6()?.into()]
    } else {
        vec![outside.pod().v4()?.into(), outside.pod().v6()?.into()]
    };
    expected.sort_unstable();
    ensure!(
        servers.sources() == expected,
        "seen: {:?}, not {expected:?}",
        servers.sources()
    );
    outside.check_leaks()?;
    Ok(all)
}

/// Checks that both beds gave the same results.
fn same(translated: &Outcomes, plain: &Outcomes) -> Result<()> {
    for (command, outcome) in plain {
        ensure!(
            translated.get(command) == Some(outcome),
            "{command}\n-- with a plain router:\n{outcome}\n-- with netdp:\n{}",
            translated.get(command).map_or("not run", String::as_str)
        );
    }
    Ok(())
}

/// Checks the output of each program on a bed whose server is four hops away.
fn check_normal(all: &Outcomes) -> Result<()> {
    for (command, outcome) in all {
        let good = match command.split(' ').next().unwrap_or_default() {
            "ping" => outcome.contains("2 received, 0% packet loss"),
            "curl" => outcome.starts_with("200 HTTP/") && outcome.contains("8000000"),
            "tracepath" => outcome.ends_with("hops 4 back 4"),
            "traceroute" | "mtr" => {
                outcome.lines().filter(|l| !l.starts_with('`')).count() == 4
                    && !outcome.contains('*')
                    && !outcome.contains("???")
            }
            "iperf3" => outcome.contains("true") || outcome.starts_with("0 lost on the way"),
            _ => false,
        };
        ensure!(good, "{command}\n{outcome}");
    }
    ensure!(all.len() == 2 * (6 + 3 + 9 + 4), "{} outcomes", all.len());
    Ok(())
}

#[test]
fn clients_see_a_plain_router() -> Result<()> {
    let translated = run(Shape::NORMAL)?;
    check_normal(&translated)?;
    same(&translated, &run(Shape::NORMAL.plain())?)
}

/// Nor do clients see a difference in iptables mode.
#[test]
fn clients_see_a_plain_router_in_iptables_mode() -> Result<()> {
    let translated = run(Shape {
        mode: "iptables",
        ..Shape::NORMAL
    })?;
    check_normal(&translated)?;
    same(&translated, &run(Shape::NORMAL.plain())?)
}

#[test]
fn clients_without_offloads_see_the_same() -> Result<()> {
    check_normal(&run(Shape {
        offloads: false,
        ..Shape::NORMAL
    })?)
}

/// A hop of 1400 bytes between the routers: path MTU discovery by errors that arrive from outside
/// (for the pod), and by errors that a router sends to the server about packets for the node.
#[test]
fn a_narrow_hop_beyond_the_node_is_found() -> Result<()> {
    let shape = Shape {
        beyond: 1400,
        ..Shape::NORMAL
    };
    let translated = narrow(shape)?;
    same(&translated, &narrow(shape.plain())?)?;
    for (command, outcome) in &translated {
        let good = match command.split(' ').next().unwrap_or_default() {
            "whole" => outcome.contains("1400"),
            "tracepath" => outcome.contains("Resume: pmtu 1400 hops 4 back 4"),
            "traceroute" if command.contains("--mtu") => outcome.contains("F=1400"),
            "traceroute" | "mtr" => !outcome.contains('*') && !outcome.contains("???"),
            "curl" => outcome.starts_with("200 HTTP/") && outcome.contains("8000000"),
            "iperf3" => outcome.contains("true") || outcome.contains(" lost on the way"),
            // An answer that is too large updates the server's path MTU; the next one arrives.
            _ => outcome.contains("1 received") || outcome.contains("2 received"),
        };
        ensure!(good, "{command}\n{outcome}");
    }
    Ok(())
}

fn narrow(shape: Shape) -> Result<Outcomes> {
    let outside = Outside::new(shape)?;
    let servers = Servers::start(&outside)?;
    let mut all = Outcomes::new();
    for target in outside.targets() {
        let size = if target.is_ipv4() { "1472" } else { "1452" };
        // Before any other program has discovered the path MTU.
        let told = programs::ping_whole(&outside, target, size);
        all.insert(format!("whole {target}"), told);
        programs::traces(&outside, target, &mut all);
        programs::curl(&outside, &servers, target, &mut all);
        programs::ping(&outside, target, &SIZES, &mut all);
        programs::iperf(&outside, target, &mut all)?;
    }
    outside.check_leaks()?;
    Ok(all)
}

/// 1300 bytes between node and pod: the node itself sends errors to the server, about packets that
/// already have the pod's address again. The server must not see that address, neither in the outer
/// header nor in the quoted packet.
#[test]
fn a_narrow_hop_before_the_pod_is_found_and_hides_it() -> Result<()> {
    let shape = Shape {
        before: 1300,
        ..Shape::NORMAL
    };
    let outside = Outside::new(shape)?;
    let servers = Servers::start(&outside)?;
    let errors = Tcpdump::start(&outside.server, "eth0", "icmp or icmp6")?;
    let mut all = Outcomes::new();
    for target in outside.targets() {
        programs::curl(&outside, &servers, target, &mut all);
        late_reply(&outside, target)?;
        programs::ping(&outside, target, &SIZES, &mut all);
    }
    for (command, outcome) in &all {
        let good = outcome.starts_with("200 HTTP/") || outcome.contains("2 received");
        ensure!(good, "{command}\n{outcome}");
    }
    let expected = [
        // The server received the MTU of the hop behind the node, and the errors about expired
        // replies.
        "10.3.0.1: ICMP 10.1.0.10 unreachable - need to frag (mtu 1300)",
        "10.3.0.1: ICMP time exceeded in-transit",
        "ICMP6, packet too big, mtu 1300",
        "ICMP6, time exceeded in-transit",
    ];
    for words in expected {
        wait_for(crate::common::SOON, words, || errors.seen().contains(words))
            .map_err(|error| error.context(errors.seen()))?;
    }
    let seen = errors.finish()?;
    for network in POD_NETWORKS {
        let beginning = network.split("0/").next().unwrap_or(network);
        let beginning = beginning.split("/64").next().unwrap_or(beginning);
        ensure!(!seen.contains(beginning), "{network} was seen:\n{seen}");
    }
    outside.check_leaks()
}

/// The hop limit of the answer to the pod's request expires at the node.
fn late_reply(outside: &Outside, target: IpAddr) -> Result<()> {
    let at = SocketAddr::new(target, 9);
    let server = outside.server.enter(|| UdpSocket::bind(at))??;
    server.set_read_timeout(Some(crate::common::ANSWER))?;
    let pod =
        crate::common::clients::Udp::connect(outside.pod(), crate::common::clients::any(at), at)?;
    pod.socket.send(b"ask")?;
    let (_, peer) = server.recv_from(&mut [0; 8])?;
    let options = socket2::SockRef::from(&server);
    if target.is_ipv4() {
        options.set_ttl_v4(3)?;
    } else {
        options.set_unicast_hops_v6(3)?;
    }
    server.send_to(b"late", peer)?;
    Ok(())
}
