//! Monitoring of the packets on the wire at an uplink where third-party programs precede ours:
//! packets that leave with a pod's address although they are to be masqueraded, and replies to pods
//! that our program did not see.
//!
//! A packet socket receives egress packets after all TC programs, and ingress packets before them
//! (`dev_queue_xmit_nit` and `__netif_receive_skb_core`, net/core/dev.c, Linux 6.18).

use super::bpffs;
use super::maps::Maps;
use crate::uplinks::Mac;
use anyhow::{Context as _, Result};
use aya::maps::{HashMap as BpfHashMap, Map, MapData};
use ipnet::IpNet;
use netdp_common::layout::{
    Action, Half, Inbound, Live, MAPPING_HANDED_OVER, MAPPING_HANDOVER_PENDING, MAPPING_HOST,
    Mapping, Tuple, pins,
};
use netdp_common::packet::{ACK, L4, Packet, Parsed, SYN, parse};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, LinkAddr, SockFlag, SockType, SockaddrLike as _, bind, recvfrom, setsockopt,
    socket, sockopt,
};
use std::collections::{BTreeSet, HashMap, HashSet};
use std::io::ErrorKind;
use std::net::IpAddr;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::Path;
use std::time::Duration;

/// Packets judged at a time. Packets that do not fit the socket's buffer are lost.
const MAX_PACKETS: usize = 256;

/// Size of the socket's buffer, in bytes; the kernel doubles it.
const BUFFER: usize = 128 << 10;

/// Number of bytes of a packet that are parsed.
const LENGTH: usize = 2048;

/// Flows whose replies are tracked.
const FLOWS: usize = 4096;

/// Time that a program may take between a packet's arrival and its record.
const SETTLING: Duration = Duration::from_millis(2);

/// Facts by which packets are judged.
#[derive(Debug)]
pub struct Rules<'a> {
    /// Addresses of the node.
    pub local: &'a BTreeSet<IpAddr>,
    /// Networks that the node receives without having the addresses.
    pub any_ip: &'a [IpNet],
    /// Hardware addresses that the node sends from.
    pub macs: &'a BTreeSet<Mac>,
    /// True if IPv6 is translated.
    pub enable_ipv6: bool,
    /// True if no packet that is to be masqueraded may leave with a pod's address.
    pub no_leak: bool,
}

/// Observed effect on packets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Effect {
    /// Source and destination of a packet that left with a pod's address.
    pub leaked: Option<(IpAddr, IpAddr)>,
    /// Source of a packet that came in for a pod and was not delivered to it.
    pub lost: Option<IpAddr>,
}

/// A packet socket on an interface, with the state of the monitoring.
pub struct Tap {
    socket: OwnedFd,
    ifindex: u32,
    snat: BpfHashMap<MapData, Tuple, Mapping>,
    inbound: BpfHashMap<MapData, Tuple, Inbound>,
    inbound_live: BpfHashMap<MapData, Tuple, Live>,
    rev_snat: BpfHashMap<MapData, Tuple, Mapping>,
    /// Number of replies of a flow that the program had counted after the last one that came in.
    counted: HashMap<Tuple, u64>,
}

impl std::fmt::Debug for Tap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tap")
            .field("socket", &self.socket)
            .finish_non_exhaustive()
    }
}

impl Tap {
    /// Starts monitoring an interface.
    ///
    /// # Errors
    /// Returns an error if the kernel refuses (this needs `CAP_NET_RAW`), or the maps are not
    /// pinned below `bpffs`.
    pub fn open(bpffs: &Path, ifindex: u32) -> Result<Self> {
        let pinned = |file: &str| bpffs::open_map(bpffs, file);
        Ok(Self {
            socket: open(ifindex).context("opening a packet socket (this needs CAP_NET_RAW)")?,
            ifindex,
            snat: Map::HashMap(pinned(pins::SNAT)?).try_into()?,
            inbound: Map::LruHashMap(pinned(pins::INBOUND)?).try_into()?,
            inbound_live: Map::HashMap(pinned(pins::INBOUND_LIVE)?).try_into()?,
            rev_snat: Map::HashMap(pinned(pins::REV_SNAT)?).try_into()?,
            counted: HashMap::new(),
        })
    }

    /// Judges the packets since the last call.
    ///
    /// # Errors
    /// Returns an error if the socket has failed: the interface is gone, or down.
    pub fn inspect(&mut self, maps: &Maps, rules: &Rules<'_>) -> Result<Effect> {
        let mut effect = Effect::default();
        let mut replies = HashSet::new();
        let mut bytes = [0; LENGTH];
        for _ in 0..MAX_PACKETS {
            let Some(captured) = receive(&self.socket, &mut bytes)? else {
                break;
            };
            let mut packet = Packet::EMPTY;
            let frame = bytes.get(..captured.length).unwrap_or(&bytes);
            let parsed = parse(frame, captured.ethertype, 0, &mut packet);
            if !matches!(parsed, Parsed::Ip) || matches!(packet.l4, L4::LaterFragment) {
                continue;
            }
            if captured.direction == Direction::Egress {
                let own = self.ifindex;
                let may_be = rules.no_leak && may_leak(&packet, captured.mac, own, rules);
                if may_be && self.is_leak(&packet, maps) {
                    let Tuple { src, dst, .. } = packet.tuple;
                    effect.leaked = Some((src.into(), dst.into()));
                }
            } else if is_reply(&packet.l4) {
                replies.insert(packet.tuple);
            }
        }
        if !replies.is_empty() {
            std::thread::sleep(SETTLING);
        }
        for tuple in replies {
            if self.is_lost(maps, tuple) {
                effect.lost = Some(tuple.src.into());
            }
        }
        Ok(effect)
    }

    /// Reports whether the egress program would not have let the packet leave in this way, as far
    /// as the maps show. A reply to a pod that arrived by another uplink was given the pod's
    /// address there.
    fn is_leak(&self, packet: &Packet, maps: &Maps) -> bool {
        matches!(maps.action(&packet.tuple.dst), Ok(Action::Masquerade))
            && self.inbound.get(&packet.tuple, 0).is_err()
            && self.inbound_live.get(&packet.tuple, 0).is_err()
            && self.snat.get(&packet.tuple.reversed(), 0).is_err()
    }

    /// Reports whether an ingress packet for a pod was not counted.
    fn is_lost(&mut self, maps: &Maps, tuple: Tuple) -> bool {
        let Ok(half) = self.rev_snat.get(&tuple, 0) else {
            return false;
        };
        if half.flags & (MAPPING_HOST | MAPPING_HANDOVER_PENDING | MAPPING_HANDED_OVER) != 0 {
            return false;
        }
        if self.counted.len() >= FLOWS {
            self.counted.clear();
        }
        // Not the word alone, which has the same value again and again.
        let (packets, _) = maps.traffic(Half::Reply, &tuple, &half);
        let before = self.counted.insert(tuple, packets);
        packets == 0 || before == Some(packets)
    }
}

/// Reports whether an egress packet may be a pod's, as far as the packet itself shows: not one of
/// the node's own, nor of the link's (neighbour discovery), nor of a guest that is bridged to the
/// link and has a hardware address that the node does not send from.
fn may_leak(packet: &Packet, mac: Option<[u8; 6]>, ifindex: u32, rules: &Rules<'_>) -> bool {
    let Tuple { src, dst, .. } = &packet.tuple;
    let from = IpAddr::from(*src);
    let is_known = |mac: [u8; 6]| {
        let known = Mac { link: ifindex, mac };
        rules.macs.contains(&known)
    };
    // The all-zero entry marks the addresses of this interface as known.
    let is_bridged = mac.is_some_and(|mac| is_known([0; 6]) && !is_known(mac));
    !(is_bridged
        || (from.is_ipv6() && (!rules.enable_ipv6 || src.is_v6_link_local()))
        || src.is_special(packet.family)
        || dst.is_special(packet.family)
        || rules.local.contains(&from)
        || rules.any_ip.iter().any(|net| net.contains(&from))
        || matches!(packet.l4, L4::Error | L4::Discovery))
}

/// Reports whether an ingress packet that matches a mapping is the pod's: a new SYN is the node's.
const fn is_reply(l4: &L4) -> bool {
    match l4 {
        L4::Tcp(segment) => segment.flags & (SYN | ACK) != SYN,
        L4::Udp | L4::QueryReply => true,
        _ => false,
    }
}

/// Direction of a captured packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Direction {
    Egress,
    Ingress,
}

/// A packet captured on the interface.
struct Captured {
    length: usize,
    ethertype: u16,
    direction: Direction,
    /// Source hardware address, on Ethernet.
    mac: Option<[u8; 6]>,
}

fn open(ifindex: u32) -> std::io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    // Without a protocol it receives nothing until it is bound to the interface.
    let socket = socket(AddressFamily::Packet, SockType::Datagram, flags, None)?;
    // On failure the buffer keeps its default size.
    let _ = setsockopt(&socket, sockopt::RcvBuf, &BUFFER);
    let address = libc::sockaddr_ll {
        sll_family: libc::sa_family_t::try_from(libc::AF_PACKET).unwrap_or_default(),
        sll_protocol: u16::try_from(libc::ETH_P_ALL).unwrap_or_default().to_be(),
        sll_ifindex: i32::try_from(ifindex).unwrap_or_default(),
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    // SAFETY: the address is a whole `sockaddr_ll`, which is copied.
    let address = unsafe { LinkAddr::from_raw((&raw const address).cast(), None) };
    let address = address.ok_or(ErrorKind::InvalidInput)?;
    bind(socket.as_raw_fd(), &address)?;
    Ok(socket)
}

/// Returns the next packet that left, or that came in for the node; `None` if none is queued.
fn receive(socket: &OwnedFd, bytes: &mut [u8]) -> Result<Option<Captured>> {
    loop {
        let (length, from) = match recvfrom::<LinkAddr>(socket.as_raw_fd(), bytes) {
            Ok(received) => received,
            Err(Errno::EAGAIN) => return Ok(None),
            Err(Errno::EINTR) => continue,
            Err(err) => return Err(err).context("capturing packets of an uplink"),
        };
        let Some(from) = from else {
            continue;
        };
        let direction = match from.pkttype() {
            libc::PACKET_OUTGOING => Direction::Egress,
            libc::PACKET_HOST => Direction::Ingress,
            _ => continue,
        };
        return Ok(Some(Captured {
            length,
            ethertype: u16::from_be(from.protocol()),
            direction,
            // The sender's address, for egress packets too (`eth_header_parse`,
            // net/ethernet/eth.c).
            mac: (from.halen() == 6).then(|| from.addr()).flatten(),
        }));
    }
}

#[cfg(test)]
mod tests {
    use super::{Rules, may_leak};
    use crate::uplinks::Mac;
    use ipnet::IpNet;
    use netdp_common::layout::{Addr, Family};
    use netdp_common::packet::{L4, Packet};
    use std::net::IpAddr;

    const UPLINK: u32 = 2;
    const OWN: [u8; 6] = [2, 0, 0, 0, 0, 1];
    const GUESTS: [u8; 6] = [2, 0, 0, 0, 0, 9];

    fn may(from: &str, to: &str, l4: L4, mac: Option<[u8; 6]>, known: bool) -> bool {
        let ip = |text: &str| text.parse::<IpAddr>().unwrap();
        let mut packet = Packet::EMPTY;
        packet.tuple.src = Addr::from(ip(from));
        packet.tuple.dst = Addr::from(ip(to));
        packet.family = if ip(to).is_ipv6() {
            Family::V6
        } else {
            Family::V4
        };
        packet.l4 = l4;
        let any_ip: [IpNet; 2] =
            ["198.18.0.0/24", "2001:db8:18::/64"].map(|net| net.parse().unwrap());
        let macs = [[0; 6], OWN].map(|mac| Mac { link: UPLINK, mac });
        let rules = Rules {
            local: &["192.0.2.10", "2001:db8::10"].map(ip).into(),
            any_ip: &any_ip,
            macs: &macs.into_iter().filter(|_| known).collect(),
            enable_ipv6: true,
            no_leak: true,
        };
        may_leak(&packet, mac, UPLINK, &rules)
    }

    #[test]
    fn what_is_no_pods_is_no_leak() {
        for (pod, node, any_ip, to) in [
            ("172.16.0.7", "192.0.2.10", "198.18.0.7", "203.0.113.1"),
            ("fd00:172::7", "2001:db8::10", "2001:db8:18::7", "2600::1"),
        ] {
            assert!(may(pod, to, L4::Udp, Some(OWN), true));
            assert!(may(pod, to, L4::Udp, None, true), "no Ethernet");
            assert!(may(pod, to, L4::Udp, Some(GUESTS), false), "none are known");
            assert!(!may(node, to, L4::Udp, Some(OWN), true));
            assert!(!may(any_ip, to, L4::Udp, Some(OWN), true), "AnyIP");
            assert!(!may(pod, to, L4::Udp, Some(GUESTS), true), "bridged");
            assert!(!may(pod, to, L4::Error, Some(OWN), true));
        }
        assert!(!may(
            "fd00:172::7",
            "2600::1",
            L4::Discovery,
            Some(OWN),
            true
        ));
        assert!(!may("fe80::7", "2600::1", L4::Udp, Some(OWN), true));
    }
}
