//! Protocols of tunnels, from netlink's own bytes (include/uapi/linux/if_tunnel.h).

use crate::uplinks::LinkLayer;
use crate::uplinks::snapshot::tunnels;
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::LinkMessage;

/// RTM_NEWLINK.
const NEW_LINK: u16 = 16;

const UP: u32 = 1;

/// Numbers of netlink attributes.
const IFLA_IFNAME: u16 = 3;
const IFLA_LINKINFO: u16 = 18;
const KIND: u16 = 1;
const DATA: u16 = 2;
const GRE_LOCAL: u16 = 6;
const GRE_REMOTE: u16 = 7;
const GRE_COLLECT_METADATA: u16 = 18;
const IPTUN_REMOTE: u16 = 3;
const IPTUN_PROTO: u16 = 9;
const VTI_REMOTE: u16 = 5;

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(4 + value.len()).unwrap();
    let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// Returns the kernel's message about a link with this data; `layer` is one of
/// include/uapi/linux/if_arp.h.
fn message(kind: &str, data: &[Vec<u8>], flags: u32, layer: u16) -> LinkMessage {
    let info = [
        attribute(KIND, format!("{kind}\0").as_bytes()),
        attribute(DATA, &data.concat()),
    ];
    // A nlmsghdr, then an ifinfomsg with an index and flags.
    let mut message = vec![0; 16];
    message[4..6].copy_from_slice(&NEW_LINK.to_ne_bytes());
    let [low, high] = layer.to_ne_bytes();
    message.extend([0, 0, low, high, 9, 0, 0, 0]);
    message.extend(flags.to_ne_bytes());
    message.extend([0; 4]);
    message.extend(attribute(IFLA_IFNAME, b"t0\0"));
    message.extend(attribute(IFLA_LINKINFO, &info.concat()));
    let length = u32::try_from(message.len()).unwrap();
    message[..4].copy_from_slice(&length.to_ne_bytes());
    let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&message).unwrap();
    let NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link)) = message.payload else {
        panic!("{message:?}");
    };
    link
}

/// Returns `protocol peer` for each protocol of a link.
fn protocols(kind: &str, data: &[Vec<u8>], flags: u32) -> Vec<String> {
    tunnels(&message(kind, data, flags, 0))
        .iter()
        .map(|tunnel| {
            assert_eq!(tunnel.link, "t0");
            format!("{} {}", tunnel.protocol.protocol, tunnel.protocol.peer)
        })
        .collect()
}

const V4: [u8; 4] = [192, 0, 2, 7];
const V6: [u8; 16] = [0x20, 1, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7];

#[test]
fn gre_has_a_peer_or_any() {
    let local = attribute(GRE_LOCAL, &[10, 1, 0, 10]);
    for kind in ["gre", "gretap", "erspan"] {
        let remote = attribute(GRE_REMOTE, &V4);
        assert_eq!(
            protocols(kind, &[local.clone(), remote], UP),
            ["47 192.0.2.7"]
        );
        let any = [local.clone(), attribute(GRE_REMOTE, &[0; 4])];
        assert_eq!(protocols(kind, &any, UP), ["47 0.0.0.0"]);
        let flow_based = [attribute(GRE_COLLECT_METADATA, &[])];
        assert_eq!(protocols(kind, &flow_based, UP), ["47 0.0.0.0"]);
    }
    for kind in ["ip6gre", "ip6gretap", "ip6erspan"] {
        let remote = attribute(GRE_REMOTE, &V6);
        assert_eq!(protocols(kind, &[remote], UP), ["47 2001:db8::7"]);
        assert_eq!(protocols(kind, &[], UP), ["47 ::"]);
    }
}

#[test]
fn ip_in_ip_has_the_protocols_that_it_carries() {
    let remote = attribute(IPTUN_REMOTE, &V4);
    let only = |protocol: u8| attribute(IPTUN_PROTO, &[protocol]);
    assert_eq!(
        protocols("ipip", &[remote.clone(), only(4)], UP),
        ["4 192.0.2.7"]
    );
    let any = protocols("ipip", &[remote.clone(), only(0)], UP);
    assert_eq!(any, ["4 192.0.2.7", "137 192.0.2.7"]);
    assert_eq!(protocols("sit", &[remote, only(41)], UP), ["41 192.0.2.7"]);
    let v6 = attribute(IPTUN_REMOTE, &V6);
    let any = protocols("ip6tnl", &[v6, only(0)], UP);
    assert_eq!(any, ["41 2001:db8::7", "4 2001:db8::7", "137 2001:db8::7"]);
}

#[test]
fn vti_speaks_ipsec() {
    let v4 = protocols("vti", &[attribute(VTI_REMOTE, &V4)], UP);
    assert_eq!(v4, ["50 192.0.2.7", "51 192.0.2.7", "108 192.0.2.7"]);
    assert_eq!(protocols("vti6", &[], UP), ["50 ::", "51 ::", "108 ::"]);
}

#[test]
fn what_is_down_or_no_tunnel_speaks_nothing() {
    assert_eq!(protocols("gre", &[attribute(GRE_REMOTE, &V4)], 0), [""; 0]);
    assert_eq!(protocols("dummy", &[], UP), [""; 0]);
}

/// Packets that already have an outer header at the hooks can't be parsed.
#[test]
fn gre_without_one_peer_can_not_be_parsed() {
    let layer = |kind: &str, kernels: u16, data: &[Vec<u8>]| {
        let link = crate::uplinks::snapshot::link(&message(kind, data, UP, kernels));
        link.unwrap().link_layer
    };
    const IPGRE: u16 = 778;
    const IP6GRE: u16 = 823;
    let flow_based = [attribute(GRE_COLLECT_METADATA, &[])];
    let group = [224, 0, 0, 9];
    let mut group6 = [0; 16];
    group6[0] = 0xff;
    for (kind, kernels, peer, any, group) in [
        ("gre", IPGRE, &V4[..], &[0; 4][..], &group[..]),
        ("ip6gre", IP6GRE, &V6[..], &[0; 16][..], &group6[..]),
    ] {
        let to = |remote: &[u8]| layer(kind, kernels, &[attribute(GRE_REMOTE, remote)]);
        assert_eq!(to(peer), LinkLayer::None, "{kind}");
        assert_eq!(to(any), LinkLayer::Other, "{kind}");
        assert_eq!(to(group), LinkLayer::Other, "{kind}");
        assert_eq!(layer(kind, kernels, &[]), LinkLayer::Other, "{kind}");
        assert_eq!(layer(kind, kernels, &flow_based), LinkLayer::None, "{kind}");
    }
    const ETHERNET: u16 = 1;
    assert_eq!(layer("gretap", ETHERNET, &[]), LinkLayer::Ethernet);
}
