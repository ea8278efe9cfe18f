use super::{
    DesiredNodeMaps, Facts, Ipsec, MOST_PORTS, PortSet, Probe, ProtocolPeer, Ranges, Service,
    decide,
};
use crate::foreign::{Redirect, Redirects};
use crate::uplinks::Tunnel;
use netdp_common::layout::{NODE_PORT_SCTP, NODE_PORT_TCP, NODE_PORT_UDP, NODE_PORT_UDP_LITE};

fn peer(protocol: u8, peer: &str) -> ProtocolPeer {
    ProtocolPeer {
        protocol,
        peer: peer.parse().unwrap(),
    }
}

fn rule(mask: u32, ports: Ranges) -> Redirect {
    Redirect {
        owner: "a CNI plugin".into(),
        backend: "nft".into(),
        family: "IPv4".into(),
        chain: "CNI-DN-a".into(),
        rule: format!("-A CNI-DN-a --dports {ports} -j DNAT"),
        ports: PortSet::of(mask, &ports),
    }
}

fn decided(rules: Vec<Redirect>, probe: &Probe, tunnels: &[Tunnel]) -> DesiredNodeMaps {
    let nat = Redirects {
        rules,
        ..Redirects::default()
    };
    decide(&Facts {
        nat: &nat,
        probe,
        tunnels,
        local: &["10.1.0.10", "fd00:1::10"]
            .map(|ip| ip.parse().unwrap())
            .into(),
    })
}

fn ports(desired: &DesiredNodeMaps) -> Vec<(u16, u32)> {
    desired.ports.iter().map(|(p, b)| (*p, *b)).collect()
}

#[test]
fn ports_of_all_places_are_united() {
    let service = |protocol: &str, address: &str, port| Service {
        protocol: protocol.into(),
        address: Some(address.parse().unwrap()),
        port,
    };
    let probe = Probe {
        sockets: [(NODE_PORT_SCTP, 80), (NODE_PORT_UDP_LITE, 9)].into(),
        services: [
            service("tcp", "10.1.0.10", 443),
            service("udp", "fd00:1::10", 53),
            service("tcp", "10.96.0.1", 6443),
        ]
        .into(),
        ..Probe::default()
    };
    let rules = vec![
        rule(NODE_PORT_TCP, Ranges::one(80, 81)),
        rule(NODE_PORT_TCP, Ranges::one(81, 82)),
    ];
    let desired = decided(rules, &probe, &[]);
    assert_eq!(
        ports(&desired),
        [
            (9, NODE_PORT_UDP_LITE),
            (53, NODE_PORT_UDP),
            (80, NODE_PORT_TCP | NODE_PORT_SCTP),
            (81, NODE_PORT_TCP),
            (82, NODE_PORT_TCP),
            (443, NODE_PORT_TCP),
        ]
    );
    assert_eq!(
        desired.report.line(),
        "sctp 80; tcp 80-82,443; udp 53; udplite 9"
    );
    let from: Vec<_> = desired
        .report
        .ports
        .iter()
        .map(|p| p.from.as_str())
        .collect();
    assert_eq!(
        from,
        [
            "sockets",
            "IPVS",
            "a CNI plugin (nft, IPv4)",
            "IPVS",
            "sockets"
        ]
    );
    assert_eq!(
        decided(Vec::new(), &Probe::default(), &[]).report.line(),
        "none"
    );
}

#[test]
fn too_many_ports_are_reported_and_not_kept() {
    let most = u16::try_from(MOST_PORTS).unwrap();
    let fits = vec![rule(NODE_PORT_TCP, Ranges::one(0, most - 1))];
    let desired = decided(fits.clone(), &Probe::default(), &[]);
    assert_eq!(desired.ports.len(), usize::from(most));
    assert_eq!(desired.report.not_kept, [""; 0]);

    // The smaller ones come first, so that the largest is the one too many.
    let mut rules = fits;
    rules.push(rule(
        NODE_PORT_TCP | NODE_PORT_UDP,
        Ranges::one(50_000, 50_000),
    ));
    rules.push(rule(u32::MAX, Ranges::all()));
    let desired = decided(rules, &Probe::default(), &[]);
    assert_eq!(ports(&desired), [(50_000, NODE_PORT_TCP | NODE_PORT_UDP)]);
    assert_eq!(
        desired.report.not_kept,
        [
            "tcp of nft, IPv4, CNI-DN-a: -A CNI-DN-a --dports 0-16383 -j DNAT",
            "tcp, udp, sctp, udplite, dccp of nft, IPv4, CNI-DN-a: -A CNI-DN-a --dports 0-65535 -j DNAT",
        ]
    );
}

#[test]
fn services_without_a_port_are_reported() {
    let probe = Probe {
        services: [
            Service {
                protocol: "fwm".into(),
                address: None,
                port: 0,
            },
            Service {
                protocol: "tcp".into(),
                address: Some("10.1.0.10".parse().unwrap()),
                port: 0,
            },
        ]
        .into(),
        ..Probe::default()
    };
    let desired = decided(Vec::new(), &probe, &[]);
    assert_eq!(ports(&desired), []);
    assert_eq!(
        desired.report.not_kept,
        [
            "tcp, udp, sctp, udplite, dccp of IPVS: a service that a mark chooses",
            "tcp of IPVS: tcp 10.1.0.10, every port",
        ]
    );
}

#[test]
fn protocols_have_peers() {
    let ipsec = |ends: [&str; 2]| Ipsec {
        protocol: 50,
        ends: ends.map(|ip| ip.parse().unwrap()),
    };
    let probe = Probe {
        raw: [peer(89, "0.0.0.0"), peer(47, "192.0.2.7")].into(),
        ipsec: [
            ipsec(["192.0.2.8", "10.1.0.10"]),
            ipsec(["10.1.0.10", "192.0.2.9"]),
            // The peer is known; the node's own endpoint is not.
            ipsec(["192.0.2.8", "0.0.0.0"]),
            ipsec(["::", "::"]),
        ]
        .into(),
        ..Probe::default()
    };
    let tunnel = Tunnel {
        link: "gre1".into(),
        protocol: peer(47, "192.0.2.7"),
    };
    let desired = decided(Vec::new(), &probe, &[tunnel]);
    let expected = [
        peer(47, "192.0.2.7"),
        peer(50, "192.0.2.8"),
        peer(50, "192.0.2.9"),
        peer(50, "::"),
        peer(89, "0.0.0.0"),
    ];
    assert_eq!(desired.protocols, expected.into());
    assert_eq!(
        desired.report.line(),
        "protocols gre to 192.0.2.7, esp to 192.0.2.8, esp to 192.0.2.9, esp, ospf"
    );
    assert_eq!(desired.report.protocols[0].from, "interface gre1");
}

#[test]
fn very_many_peers_count_as_all() {
    let nth = |n: u32| ProtocolPeer {
        protocol: 47,
        peer: std::net::Ipv4Addr::from(0xc000_0200 + n).into(),
    };
    let mut probe = Probe {
        raw: (0..256).map(nth).collect(),
        ..Probe::default()
    };
    assert_eq!(decided(Vec::new(), &probe, &[]).protocols.len(), 256);
    probe.raw.insert(nth(256));
    let desired = decided(Vec::new(), &probe, &[]);
    assert_eq!(desired.protocols, [peer(47, "0.0.0.0")].into());
}

#[test]
fn a_line_stays_short() {
    let scattered: Ranges = (0..100).map(|n| (n * 10, n * 10)).collect();
    let desired = decided(vec![rule(NODE_PORT_TCP, scattered)], &Probe::default(), &[]);
    let line = desired.report.line();
    assert_eq!(line, "tcp 0,10,20,30,40,50,60,70,80,90,100,110 and 88 more");
}
