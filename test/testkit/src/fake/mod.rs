//! The datapath's environment as ordinary maps with the kernel's semantics: `BPF_NOEXIST`, a
//! maximum number of entries, and values that stay at their address while a program may hold a
//! pointer to them.

mod half_map;
mod tables;

use crate::abi::{
    Action, Counters, Fragment, Inbound, LAYOUT, Limits, Live, NO_LEAK_DROP, NodeFlow,
    NodeProtocol, PORT_RANGES, PortRange, SETTING_IPV6, Settings, SourceKey, UPLINK_V4, UPLINK_V6,
    Uplink,
};
use crate::addr::Addr;
use crate::build::Build;
use crate::conntrack::ticks;
use crate::nat::{self, Known, Way, Work, hairpin};
use crate::packet::{self, Endpoint, L4, Packet, Parsed};
use crate::port_map::{Bits, Owner};
use crate::share::{Ended, Share};
use crate::tables::Origin;
use crate::tuple::Tuple;
use crate::verdict::{DropReason, Verdict};
use half_map::HalfMap;
use std::cell::{Cell, RefCell, UnsafeCell};
use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::net::{IpAddr, SocketAddr};

/// Capacity of the history of recent mappings: small, so that tests wrap around it.
const RECENT: usize = 64;

type Hook = Box<dyn FnOnce(&Fake)>;

/// Map values with a stable address, by key.
type Cells<K, V> = RefCell<HashMap<K, Box<UnsafeCell<V>>>>;

/// A node with one uplink, 192.0.2.10 and fd00::10. Everything is masqueraded until a test adds a
/// rule.
pub struct Fake {
    pub settings: Settings,
    pub uplink: Uplink,
    /// Interface index of the uplink.
    pub ifindex: u32,
    pub local: HashSet<Addr>,
    /// Further addresses for which the node accepts packets.
    pub any_ip: HashSet<Addr>,
    pub snat: HalfMap,
    pub rev_snat: HalfMap,
    /// Inbound flows that the pods have not answered.
    asked: Cells<Tuple, Inbound>,
    /// Tuples of the unanswered inbound flows, the least recently used first.
    asked_order: RefCell<Vec<Tuple>>,
    pub asked_capacity: usize,
    live: Cells<Tuple, Live>,
    pub limits: Limits,
    shares: Cells<u32, (Share, Ended)>,
    port_maps: Cells<u32, (Owner, Bits)>,
    /// The most recent mappings, the oldest first.
    recent: RefCell<VecDeque<Tuple>>,
    pub node_flows: RefCell<HashMap<Tuple, NodeFlow>>,
    /// Ingress interface of packets that the node forwards.
    pub ingress_ifindex: Cell<u32>,
    /// Packets with the node's source address are the node's own.
    pub own: Cell<bool>,
    /// Origin of each source address; [`Origin::Link`] if absent.
    pub origins: RefCell<HashMap<Addr, Origin>>,
    /// Decisions for fragments on ingress and on egress, the oldest first.
    fragments: [RefCell<Vec<(Tuple, Fragment)>>; 2],
    pub fragments_capacity: usize,
    /// The IPv4 identifications assigned last.
    pub ip_ids: RefCell<HashMap<u32, u32>>,
    /// The IPv4 identification assigned to the last packet.
    pub written_ip_id: Cell<u32>,
    /// Destinations without a free port, and the tick at which they ran out.
    pub exhausted: RefCell<HashMap<Tuple, u32>>,
    pub endpoints: RefCell<HashMap<Tuple, u16>>,
    pub wire_endpoints: RefCell<HashMap<Tuple, Endpoint>>,
    /// Egress packets were bridged: the node did not send them.
    pub bridged: Cell<bool>,
    /// Result of a route lookup.
    pub way: Option<Way>,
    /// The agent's entries about sources, with the number of key bits that are compared.
    pub sources: Vec<(SourceKey, u32, Addr)>,
    pub reserved: BTreeSet<u16>,
    /// Protocols and ports on which the node answers without a socket.
    pub node_ports: HashSet<(u32, u16)>,
    /// Protocols without ports that the node itself uses, and their peers.
    pub node_protocols: HashSet<NodeProtocol>,
    /// Wire tuples that a connected or bound socket of the node receives.
    pub sockets: HashSet<Tuple>,
    /// Ports that a socket of the node listens on.
    pub listeners: HashSet<u16>,
    pub sent_by_socket: bool,
    pub clock: Cell<u32>,
    /// Prefix, prefix length on the 128-bit scale, action; in any order.
    pub policy: Vec<(Addr, u32, Action)>,
    /// Destinations that an earlier policy bypassed.
    pub bypassed_before: HashSet<Addr>,
    /// Cached bypasses: pod, peer, and the epoch of the decision.
    pub known_bypass: RefCell<HashSet<(Addr, Addr, u32)>>,
    /// Every candidate port, in the order of the attempts.
    pub candidates: RefCell<Vec<u16>>,
    /// Runs once, just before a rev-SNAT half is inserted: simulates another CPU.
    pub before_claim: RefCell<Option<Hook>>,
    /// Runs once, just before a SNAT half is inserted: simulates another CPU.
    pub before_original: RefCell<Option<Hook>>,
    /// Runs once, just before a SNAT half is removed: simulates another CPU.
    pub before_end: RefCell<Option<Hook>>,
    /// Runs once, just before a socket lookup: simulates another CPU.
    pub before_sockets: RefCell<Option<Hook>>,
    /// Runs once, just before a route lookup: simulates another CPU.
    pub before_way: RefCell<Option<Hook>>,
    counters: RefCell<Counters>,
    random: Cell<u32>,
}

pub fn addr(text: &str) -> Addr {
    to_addr(text.parse().expect("an address"))
}

fn to_addr(ip: IpAddr) -> Addr {
    match ip {
        IpAddr::V4(v4) => Addr::from_v4(v4.octets()),
        IpAddr::V6(v6) => Addr::from_v6(v6.octets()),
    }
}

impl Default for Fake {
    fn default() -> Self {
        Self::new()
    }
}

impl Fake {
    pub fn new() -> Self {
        let settings = Settings {
            layout: LAYOUT,
            active_policy: 0,
            flags: SETTING_IPV6,
            no_leak: NO_LEAK_DROP,
            ports: [PortRange::EMPTY; PORT_RANGES],
            clock_offset: 0,
            generation: 1,
            epoch: 1,
            pad: 0,
        };
        let uplink = Uplink {
            v4: addr("192.0.2.10"),
            v6: addr("fd00::10"),
            l2_len: 14,
            flags: UPLINK_V4 | UPLINK_V6,
        };
        Self {
            settings,
            uplink,
            ifindex: 2,
            local: [uplink.v4, uplink.v6].into(),
            any_ip: HashSet::new(),
            snat: HalfMap::new(1_000_000),
            rev_snat: HalfMap::new(1_000_000),
            asked: RefCell::default(),
            asked_order: RefCell::default(),
            asked_capacity: 1_000,
            live: RefCell::default(),
            limits: Limits {
                secret: [0x0706_0504_0302_0100, 0x0f0e_0d0c_0b0a_0908],
                capacity: 1_000_000,
                inbound_capacity: 1_000,
                flows: 0,
                rate: 0,
                burst: 0,
                pad: 0,
            },
            shares: RefCell::default(),
            port_maps: RefCell::default(),
            recent: RefCell::default(),
            node_flows: RefCell::default(),
            ingress_ifindex: Cell::new(7),
            own: Cell::new(true),
            origins: RefCell::default(),
            fragments: Default::default(),
            fragments_capacity: 1_000,
            ip_ids: RefCell::default(),
            written_ip_id: Cell::new(packet::KEEP_IP_ID),
            exhausted: RefCell::default(),
            endpoints: RefCell::default(),
            wire_endpoints: RefCell::default(),
            bridged: Cell::new(false),
            way: None,
            sources: Vec::new(),
            reserved: BTreeSet::new(),
            node_ports: HashSet::new(),
            node_protocols: HashSet::new(),
            sockets: HashSet::new(),
            listeners: HashSet::new(),
            sent_by_socket: true,
            clock: Cell::new(u32::MAX - 50),
            policy: Vec::new(),
            bypassed_before: HashSet::new(),
            known_bypass: RefCell::default(),
            candidates: RefCell::default(),
            before_claim: RefCell::default(),
            before_original: RefCell::default(),
            before_end: RefCell::default(),
            before_sockets: RefCell::default(),
            before_way: RefCell::default(),
            counters: RefCell::default(),
            random: Cell::new(0x9e37_79b9),
        }
    }

    /// Adds a rule; the prefix is text such as "10.0.0.0/8".
    pub fn rule(&mut self, prefix: &str, action: Action) {
        let (net, len) = prefix.split_once('/').expect("a prefix");
        let net = addr(net);
        let len: u32 = len.parse().expect("a prefix length");
        let len = if net.is_v4() { len + 96 } else { len };
        self.policy.push((net, len, action));
    }

    pub fn asked_len(&self) -> usize {
        self.asked.borrow().len()
    }

    pub fn live_len(&self) -> usize {
        self.live.borrow().len()
    }

    pub fn fragments_len(&self) -> usize {
        self.fragments.iter().map(|side| side.borrow().len()).sum()
    }

    pub fn counters(&self) -> Counters {
        *self.counters.borrow()
    }

    pub fn advance(&self, seconds: u64) {
        let step = u32::try_from(ticks(seconds)).expect("a time within the clock");
        self.clock.set(self.clock.get().wrapping_add(step));
    }

    /// Returns the verdict on an egress packet; see `Fake::run`.
    pub fn out(&self, packet: &Build) -> Seen {
        self.run(packet, true)
    }

    /// Returns the verdict on an ingress packet.
    pub fn back(&self, packet: &Build) -> Seen {
        self.run(packet, false)
    }

    /// Returns the verdict on a pod's packet to the node's address, with both endpoints, as
    /// netdp-ebpf's `turn_back` does.
    pub fn hairpin(&self, packet: &Build) -> Turned {
        let mut work = parsed(packet);
        match hairpin::leave(self, &mut work) {
            Verdict::Pass => return Turned::Pass,
            Verdict::Drop(reason) => return Turned::Drop(reason),
            _ => {}
        }
        let source = self.written(&work.pkt);
        match hairpin::enter(self, &mut work) {
            Verdict::Drop(reason) => Turned::Drop(reason),
            _ => Turned::To(source, self.written(&work.pkt)),
        }
    }

    /// Parses the packet and decides about it, as `netdp-ebpf`'s `main` does.
    fn run(&self, packet: &Build, leaving: bool) -> Seen {
        let before = self.ingress_ifindex.get();
        if leaving && self.own.get() && self.local.contains(&tuple_of(packet).src) {
            self.ingress_ifindex.set(0);
        }
        let seen = self.judge(packet, leaving);
        self.ingress_ifindex.set(before);
        seen
    }

    fn judge(&self, packet: &Build, leaving: bool) -> Seen {
        let bytes = packet.bytes();
        // The fast path requires an Ethernet header.
        let plain = match self.uplink.l2_len {
            0 => None,
            _ => packet::plain(&bytes[..], packet.ethertype(), 0),
        };
        let mut work = Work::EMPTY;
        if let Some(plain) = plain {
            match nat::plain(self, &mut work, &plain, 0, leaving) {
                Some(Known::Rewrite(slot)) => {
                    nat::fill_new(&mut work.pkt, slot);
                    return Seen::As(self.written(&work.pkt));
                }
                Some(Known::Bypassed | Known::Pass | Known::Unmapped) => return Seen::Pass,
                Some(Known::Forged) => return Seen::Drop(DropReason::ForgedSource),
                Some(Known::Resting) => return Seen::Drop(DropReason::NoSourceAddress),
                None => {
                    // A mapping that has ended may have left an address in this field.
                    let new = Packet::EMPTY.new;
                    let filled = Packet { new, ..work.pkt };
                    assert_eq!(filled, parsed(packet).pkt, "{packet:?}");
                }
            }
        } else {
            if let Some((src, dst)) = packet::peek(&bytes[..], packet.ethertype(), 0)
                && nat::passes(self, &src, &dst, leaving)
            {
                return Seen::Pass;
            }
            work = parsed(packet);
        }
        let verdict = if leaving {
            nat::egress(self, &mut work, plain.is_some())
        } else {
            nat::ingress(self, &mut work, plain.is_some())
        };
        match verdict {
            Verdict::Pass => Seen::Pass,
            Verdict::Drop(reason) => Seen::Drop(reason),
            Verdict::Hold => Seen::Hold,
            Verdict::Rewrite => Seen::As(self.written(&work.pkt)),
            Verdict::RewriteError => Seen::Error(self.written(&work.pkt)),
            Verdict::RewriteInner => Seen::Inner(self.written(&work.pkt)),
        }
    }

    /// Returns the endpoint that is written into the packet.
    fn written(&self, pkt: &Packet) -> SocketAddr {
        self.written_ip_id.set(pkt.new_ip_id);
        let id = u16::try_from(pkt.new.id).expect("16 bits");
        to_socket(&pkt.new.addr, id)
    }
}

fn parsed(packet: &Build) -> Work {
    let mut work = Work::EMPTY;
    let bytes = packet.bytes();
    let parsed = packet::parse(&bytes[..], packet.ethertype(), 0, &mut work.pkt);
    assert_eq!(parsed, Parsed::Ip, "{packet:?}");
    if let Some(plain) = packet::plain(&bytes[..], packet.ethertype(), 0) {
        let mut filled = work.pkt;
        plain.fill(0, &mut filled);
        assert_eq!(filled, work.pkt, "{packet:?}");
    }
    if work.pkt.l4 == L4::Error
        && packet::parse_inner(&bytes[..], &work.pkt, &mut work.inner).is_none()
    {
        work.pkt.l4 = L4::Untranslatable(DropReason::Malformed);
    }
    work
}

/// Verdict on a packet that a pod sends to the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turned {
    /// The node receives it.
    Pass,
    /// Hairpinned: the new source and the new destination.
    To(SocketAddr, SocketAddr),
    Drop(DropReason),
}

/// Verdict on a packet, with its new source (egress) or destination (ingress).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    Pass,
    As(SocketAddr),
    /// An ICMP error, rewritten in the outer header and in the quoted packet.
    Error(SocketAddr),
    /// An ICMP error, rewritten only in the quoted packet.
    Inner(SocketAddr),
    Hold,
    Drop(DropReason),
}

/// Returns the verdict "rewritten to `text`".
pub fn becomes(text: &str) -> Seen {
    Seen::As(text.parse().expect("ADDRESS:PORT"))
}

fn to_socket(addr: &Addr, id: u16) -> SocketAddr {
    if addr.is_v4() {
        (addr.v4_octets(), id).into()
    } else {
        (*addr.octets(), id).into()
    }
}

/// Returns the tuple of a packet as [`packet::parse`] yields it.
pub fn tuple_of(packet: &Build) -> Tuple {
    let mut work = Work::EMPTY;
    packet::parse(&packet.bytes()[..], packet.ethertype(), 0, &mut work.pkt);
    work.pkt.tuple
}
