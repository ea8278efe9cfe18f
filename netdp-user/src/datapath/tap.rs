//! What really leaves and comes in by an uplink on which others' programs come before ours: packets
//! that leave with a pod's address though they are to be masqueraded, and answers to pods that our
//! program did not see.
//!
//! A packet socket sees what leaves after all TC programs, and what comes in before them
//! (`dev_queue_xmit_nit` and `__netif_receive_skb_core`, net/core/dev.c, Linux 6.18).

use super::maps::Maps;
use anyhow::{Context as _, Result};
use aya::maps::{HashMap as BpfHashMap, Map, MapData};
use netdp_common::abi::{
    Action, Inbound, Live, MAPPING_HANDED, MAPPING_HOST, MAPPING_YIELDED, Mapping, pins,
};
use netdp_common::conntrack::{ACK, SYN};
use netdp_common::packet::{L4, Packet, Parsed, parse};
use netdp_common::tuple::Tuple;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::io::{Error, ErrorKind};
use std::net::IpAddr;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::path::Path;
use std::time::Duration;

/// Packets that are judged at a time. What does not fit the socket's buffer is lost.
const MOST: usize = 256;

/// The socket's buffer, in bytes; the kernel doubles it.
static BUFFER: libc::c_int = 128 << 10;

/// Bytes of a packet that are looked at.
const LENGTH: usize = 2048;

/// Flows whose answers are followed.
const FLOWS: usize = 4096;

/// How long a program may take between a packet's arrival and its record.
const SETTLING: Duration = Duration::from_millis(2);

/// By what packets are judged.
#[derive(Debug)]
pub struct Rules<'a> {
    /// The node's addresses.
    pub local: &'a BTreeSet<IpAddr>,
    /// Whether IPv6 is translated.
    pub enable_ipv6: bool,
    /// Whether nothing may leave with a pod's address that is to be masqueraded.
    pub no_leak: bool,
}

/// What became of packets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Effect {
    /// One left with a pod's address: whose, and whither.
    pub leaked: Option<(IpAddr, IpAddr)>,
    /// One came in for a pod and was not given to it: from where.
    pub lost: Option<IpAddr>,
}

/// A look at what an interface carries.
pub struct Tap {
    socket: OwnedFd,
    inbound: BpfHashMap<MapData, Tuple, Inbound>,
    inbound_live: BpfHashMap<MapData, Tuple, Live>,
    rev_snat: BpfHashMap<MapData, Tuple, Mapping>,
    /// How many answers of a flow the program had counted, after the last that came in.
    counted: HashMap<Tuple, u32>,
}

impl std::fmt::Debug for Tap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tap")
            .field("socket", &self.socket)
            .finish_non_exhaustive()
    }
}

impl Tap {
    /// Begins to look.
    ///
    /// # Errors
    /// The kernel refused (this needs `CAP_NET_RAW`), or the maps are not pinned below `bpffs`.
    pub fn open(bpffs: &Path, ifindex: u32) -> Result<Self> {
        let pinned = |file: &str| -> Result<MapData> {
            let path = bpffs.join(file);
            MapData::from_pin(&path)
                .with_context(|| format!("opening the pinned map {}", path.display()))
        };
        Ok(Self {
            socket: open(ifindex).context("opening a packet socket (this needs CAP_NET_RAW)")?,
            inbound: Map::LruHashMap(pinned(pins::INBOUND)?).try_into()?,
            inbound_live: Map::HashMap(pinned(pins::INBOUND_LIVE)?).try_into()?,
            rev_snat: Map::HashMap(pinned(pins::REV_SNAT)?).try_into()?,
            counted: HashMap::new(),
        })
    }

    /// Judges what was carried since the last time.
    ///
    /// # Errors
    /// The socket has failed: the interface is gone, or down.
    pub fn look(&mut self, maps: &Maps, rules: &Rules<'_>) -> Result<Effect> {
        let mut effect = Effect::default();
        let mut answers = HashSet::new();
        let mut bytes = [0; LENGTH];
        for _ in 0..MOST {
            let Some(heard) = receive(&self.socket, &mut bytes)? else {
                break;
            };
            let mut packet = Packet::EMPTY;
            let frame = bytes.get(..heard.length).unwrap_or(&bytes);
            let parsed = parse(frame, heard.ethertype, 0, &mut packet);
            if !matches!(parsed, Parsed::Ip) || matches!(packet.l4, L4::LaterFragment) {
                continue;
            }
            if heard.leaves {
                if rules.no_leak && self.is_leak(&packet, maps, rules) {
                    let Tuple { src, dst, .. } = packet.tuple;
                    effect.leaked = Some((src.into(), dst.into()));
                }
            } else if is_answer(&packet.l4) {
                answers.insert(packet.tuple);
            }
        }
        if !answers.is_empty() {
            std::thread::sleep(SETTLING);
        }
        for tuple in answers {
            if self.is_lost(tuple) {
                effect.lost = Some(tuple.src.into());
            }
        }
        Ok(effect)
    }

    /// Whether the egress program would not have let the packet leave so.
    fn is_leak(&self, packet: &Packet, maps: &Maps, rules: &Rules<'_>) -> bool {
        let Tuple { src, dst, .. } = &packet.tuple;
        let from = IpAddr::from(*src);
        if (from.is_ipv6() && !rules.enable_ipv6)
            || (from.is_ipv6() && src.is_v6_link_local())
            || src.is_special(packet.family)
            || dst.is_special(packet.family)
            || rules.local.contains(&from)
            || matches!(packet.l4, L4::Error)
        {
            return false;
        }
        matches!(maps.action(dst), Ok(Action::Masquerade))
            && self.inbound.get(&packet.tuple, 0).is_err()
            && self.inbound_live.get(&packet.tuple, 0).is_err()
    }

    /// Whether a packet that has come in for a pod was not counted.
    fn is_lost(&mut self, tuple: Tuple) -> bool {
        let Ok(half) = self.rev_snat.get(&tuple, 0) else {
            return false;
        };
        if half.flags & (MAPPING_HOST | MAPPING_HANDED | MAPPING_YIELDED) != 0 {
            return false;
        }
        if self.counted.len() >= FLOWS {
            self.counted.clear();
        }
        let before = self.counted.insert(tuple, half.packets);
        half.packets == 0 || before == Some(half.packets)
    }
}

/// Whether a packet that comes in for a mapping is the pod's: a new SYN is the node's.
const fn is_answer(l4: &L4) -> bool {
    match l4 {
        L4::Tcp(segment) => segment.flags & (SYN | ACK) != SYN,
        L4::Udp | L4::QueryReply => true,
        _ => false,
    }
}

/// A packet that was carried.
struct Heard {
    length: usize,
    ethertype: u16,
    leaves: bool,
}

fn open(ifindex: u32) -> std::io::Result<OwnedFd> {
    let kind = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: socket(2) takes numbers only. Of no protocol, it hears nothing until it is bound to the
    // interface.
    let fd = unsafe { libc::socket(libc::AF_PACKET, kind, 0) };
    if fd < 0 {
        return Err(Error::last_os_error());
    }
    // SAFETY: the kernel has just given us this descriptor.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    // Where that fails the buffer is the usual one.
    // SAFETY: the value is an int that outlives the call, and its size is said.
    unsafe {
        libc::setsockopt(
            fd,
            libc::SOL_SOCKET,
            libc::SO_RCVBUF,
            (&raw const BUFFER).cast(),
            size::<libc::c_int>(),
        );
    }
    // SAFETY: zeroes are a valid `sockaddr_ll`.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::sa_family_t::try_from(libc::AF_PACKET).unwrap_or_default();
    address.sll_protocol = u16::try_from(libc::ETH_P_ALL).unwrap_or_default().to_be();
    address.sll_ifindex = i32::try_from(ifindex).unwrap_or_default();
    // SAFETY: the address outlives the call, and its size is said.
    let bound = unsafe { libc::bind(fd, (&raw const address).cast(), size::<libc::sockaddr_ll>()) };
    if bound < 0 {
        return Err(Error::last_os_error());
    }
    Ok(socket)
}

fn size<T>() -> libc::socklen_t {
    libc::socklen_t::try_from(size_of::<T>()).unwrap_or_default()
}

/// The next packet that left, or came in for the node; `None` if there is none by now.
fn receive(socket: &OwnedFd, bytes: &mut [u8]) -> Result<Option<Heard>> {
    loop {
        // SAFETY: zeroes are a valid `sockaddr_ll`.
        let mut from: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        let mut length = size::<libc::sockaddr_ll>();
        // SAFETY: buffer and address outlive the call, and their sizes are said.
        let length = unsafe {
            libc::recvfrom(
                socket.as_raw_fd(),
                bytes.as_mut_ptr().cast(),
                bytes.len(),
                0,
                (&raw mut from).cast(),
                &raw mut length,
            )
        };
        let Ok(length) = usize::try_from(length) else {
            let err = Error::last_os_error();
            match err.kind() {
                ErrorKind::WouldBlock => return Ok(None),
                ErrorKind::Interrupted => continue,
                _ => return Err(err).context("hearing what an uplink carries"),
            }
        };
        let leaves = from.sll_pkttype == libc::PACKET_OUTGOING;
        if leaves || from.sll_pkttype == libc::PACKET_HOST {
            return Ok(Some(Heard {
                length,
                ethertype: u16::from_be(from.sll_protocol),
                leaves,
            }));
        }
    }
}
