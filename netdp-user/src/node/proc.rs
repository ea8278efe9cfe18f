//! The node's sockets and services as listed in /proc.

use super::{ProtocolPeer, Service};
use netdp_common::layout::{NODE_PORT_SCTP, NODE_PORT_UDP_LITE};
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Protocols of raw sockets that are ignored: ICMP of both families, "any", hop-by-hop options, and
/// those with ports, on which a raw socket only listens in.
const NOT_SPOKEN: [u8; 9] = [0, 1, 6, 17, 33, 58, 132, 136, 255];

/// L2TP over IP (RFC 3931 4.1.1).
const L2TP: u8 = 115;

/// Returns the local port of each SCTP endpoint, from /proc/net/sctp/eps (net/sctp/proc.c).
pub(crate) fn sctp(eps: &str) -> impl Iterator<Item = (u32, u16)> {
    let port = |line: &str| line.split_ascii_whitespace().nth(5)?.parse().ok();
    let ports = eps.lines().skip(1).filter_map(port);
    ports.map(|port| (NODE_PORT_SCTP, port))
}

/// Returns the local port of each UDP-Lite socket, from /proc/net/udplite and udplite6.
pub(crate) fn udplite(sockets: &str) -> impl Iterator<Item = (u32, u16)> {
    let all = sockets.lines().filter_map(ends);
    all.map(|(local, _)| (NODE_PORT_UDP_LITE, local.1))
}

/// Returns the protocols of raw sockets, from /proc/net/raw and raw6: the local port is the
/// protocol.
pub(crate) fn raw(sockets: &str) -> impl Iterator<Item = ProtocolPeer> {
    let all = sockets.lines().filter_map(ends);
    all.filter_map(|(local, remote)| {
        let protocol = u8::try_from(local.1).ok()?;
        let peer = remote.0;
        (!NOT_SPOKEN.contains(&protocol)).then_some(ProtocolPeer { protocol, peer })
    })
}

/// Returns L2TP over IP, whose sockets are listed nowhere: if /proc/net/protocols has it, it is
/// loaded, and counts as used with any peer.
pub(crate) fn l2tp(protocols: &str) -> impl Iterator<Item = ProtocolPeer> {
    let name = |line: &'_ str| line.split_ascii_whitespace().next().map(str::to_owned);
    protocols.lines().filter_map(name).filter_map(|name| {
        let peer = match name.as_str() {
            "L2TP/IP" => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            "L2TP/IPv6" => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
            _ => return None,
        };
        let protocol = L2TP;
        Some(ProtocolPeer { protocol, peer })
    })
}

/// Returns the IPVS services, from /proc/net/ip_vs (net/netfilter/ipvs/ip_vs_ctl.c).
pub(crate) fn ipvs(services: &str) -> BTreeSet<Service> {
    services.lines().filter_map(service).collect()
}

fn service(line: &str) -> Option<Service> {
    let mut words = line.split_ascii_whitespace();
    let protocol = words.next()?.to_ascii_lowercase();
    let at = words.next()?;
    if protocol == "fwm" {
        return Some(Service {
            protocol,
            address: None,
            port: 0,
        });
    }
    if super::protocol_bit(&protocol) == 0 {
        return None;
    }
    let (address, port) = at.rsplit_once(':')?;
    let address = match address.strip_prefix('[') {
        Some(v6) => v6.strip_suffix(']')?.parse::<Ipv6Addr>().ok()?.into(),
        None => Ipv4Addr::from(u32::from_str_radix(address, 16).ok()?).into(),
    };
    Some(Service {
        protocol,
        address: Some(address),
        port: u16::from_str_radix(port, 16).ok()?,
    })
}

type End = (IpAddr, u16);

/// Parses both endpoints of a socket, `N: ADDRESS:PORT ADDRESS:PORT …`, all in hexadecimal.
fn ends(line: &str) -> Option<(End, End)> {
    let mut words = line.split_ascii_whitespace();
    words.next()?.strip_suffix(':')?;
    Some((end(words.next()?)?, end(words.next()?)?))
}

/// Parses an endpoint. The address is printed in 32-bit words of the host's byte order.
fn end(text: &str) -> Option<End> {
    let (address, port) = text.split_once(':')?;
    let word = |at: usize| {
        let text = address.get(at * 8..at * 8 + 8)?;
        Some(u32::from_str_radix(text, 16).ok()?.to_ne_bytes())
    };
    let address = match address.len() {
        8 => Ipv4Addr::from(word(0)?).into(),
        32 => {
            let mut octets = [0; 16];
            for (n, part) in octets.chunks_exact_mut(4).enumerate() {
                part.copy_from_slice(&word(n)?);
            }
            Ipv6Addr::from(octets).into()
        }
        _ => return None,
    };
    Some((address, u16::from_str_radix(port, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use super::{ipvs, l2tp, raw, sctp, udplite};
    use crate::node::{ProtocolPeer, Service};
    use netdp_common::layout::{NODE_PORT_SCTP, NODE_PORT_UDP_LITE};
    use proptest::prelude::*;

    const RAW: &str = "\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode ref pointer drops
   1: 00000000:0001 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 20384 2 0000000000000000 0
  47: 00000000:002F 070200C0:0000 07 00000000:00000000 00:00000000 00000000     0        0 20385 2 0000000000000000 0
  89: 0A00010A:0059 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 20386 2 0000000000000000 0
 255: 00000000:00FF 00000000:0000 07 00000000:00000000 00:00000000 00000000     0        0 20387 2 0000000000000000 0
";

    #[test]
    fn raw_sockets_receive_their_protocol() {
        let used = |protocol, peer: &str| ProtocolPeer {
            protocol,
            peer: peer.parse().unwrap(),
        };
        let found: Vec<_> = raw(RAW).collect();
        assert_eq!(found, [used(47, "192.0.2.7"), used(89, "0.0.0.0")]);
        let v6 =
            "  103: 00000000000000000000000000000000:0067 B80D0120000000000000000007000000:0000 07";
        assert_eq!(raw(v6).collect::<Vec<_>>(), [used(103, "2001:db8::7")]);
    }

    #[test]
    fn sockets_have_ports() {
        let lite = "  sl  local_address rem_address   st\n  112: 00000000:1F90 00000000:0000 07 00000000:00000000\n";
        assert_eq!(
            udplite(lite).collect::<Vec<_>>(),
            [(NODE_PORT_UDP_LITE, 8080)]
        );
        let eps = " ENDPT     SOCK   STY SST HBKT LPORT   UID INODE LADDRS\n\
            ffff8b1 ffff8b2 2   10  29   2905      0 31411 10.1.0.10 fd00:1::10 \n";
        assert_eq!(sctp(eps).collect::<Vec<_>>(), [(NODE_PORT_SCTP, 2905)]);
    }

    #[test]
    fn l2tp_counts_where_it_is_loaded() {
        let text = "protocol  size sockets  memory\nL2TP/IP   1152      0      -1\nRAW       1152      0      -1\n";
        let found: Vec<_> = l2tp(text)
            .map(|s| (s.protocol, s.peer.to_string()))
            .collect();
        assert_eq!(found, [(115, "0.0.0.0".into())]);
    }

    #[test]
    fn ipvs_services_are_read() {
        let text = "\
IP Virtual Server version 1.2.1 (size=4096)
Prot LocalAddress:Port Scheduler Flags
  -> RemoteAddress:Port Forward Weight ActiveConn InActConn
TCP  0A01000A:7530 rr
  -> AC100002:0050      Masq    1      0          0
UDP  [fd00:0001:0000:0000:0000:0000:0000:0010]:0035 rr
FWM  00000001 rr
";
        let service = |protocol: &str, address: Option<&str>, port| Service {
            protocol: protocol.into(),
            address: address.map(|ip| ip.parse().unwrap()),
            port,
        };
        let found: Vec<_> = ipvs(text).into_iter().collect();
        assert_eq!(
            found,
            [
                service("fwm", None, 0),
                service("tcp", Some("10.1.0.10"), 30_000),
                service("udp", Some("fd00:1::10"), 53),
            ]
        );
    }

    proptest! {
        #[test]
        fn any_text_is_read_without_a_panic(text in "([0-9A-F: \\[\\]a-z\u{e9}]{0,60}\n){0,6}") {
            let _ = (sctp(&text).count(), udplite(&text).count(), raw(&text).count());
            let _ = (l2tp(&text).count(), ipvs(&text).len());
        }
    }
}
