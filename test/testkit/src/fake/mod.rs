//! The datapath's world as ordinary maps with the kernel's semantics: NOEXIST,
//! capacity, values that stay where they are while a program may look at them.

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

/// Mappings that are remembered: few, so that tests get around.
const RECENT: usize = 64;

type Hook = Box<dyn FnOnce(&Fake)>;

/// Values of a map that stay where they are, by key.
type Cells<K, V> = RefCell<HashMap<K, Box<UnsafeCell<V>>>>;

/// A node with one uplink: 192.0.2.10 and fd00::10. Everything is masqueraded
/// until a test adds a rule.
pub struct Fake {
    pub settings: Settings,
    pub uplink: Uplink,
    /// The uplink's index.
    pub ifindex: u32,
    pub local: HashSet<Addr>,
    /// What the node receives besides.
    pub any_ip: HashSet<Addr>,
    pub snat: HalfMap,
    pub rev_snat: HalfMap,
    /// Flows that the pods have not answered.
    asked: Cells<Tuple, Inbound>,
    /// Their tuples, the least recently used first.
    asked_order: RefCell<Vec<Tuple>>,
    pub asked_capacity: usize,
    live: Cells<Tuple, Live>,
    pub limits: Limits,
    shares: Cells<u32, (Share, Ended)>,
    port_maps: Cells<u32, (Owner, Bits)>,
    /// Mappings that began last, the oldest first.
    recent: RefCell<VecDeque<Tuple>>,
    pub node_flows: RefCell<HashMap<Tuple, NodeFlow>>,
    /// By which interface packets come to the node, where it does not send them itself.
    pub ingress_ifindex: Cell<u32>,
    /// What has the node's address was sent by the node.
    pub own: Cell<bool>,
    /// Where sources are; [`Origin::Link`] where nothing is said.
    pub origins: RefCell<HashMap<Addr, Origin>>,
    /// What becomes of fragments that come in, and that leave, the oldest first.
    fragments: [RefCell<Vec<(Tuple, Fragment)>>; 2],
    pub fragments_capacity: usize,
    /// The IPv4 identifications that were given last.
    pub ip_ids: RefCell<HashMap<u32, u32>>,
    /// The one that the last packet was to get.
    pub written_ip_id: Cell<u32>,
    /// Destinations without a free port, and since when.
    pub exhausted: RefCell<HashMap<Tuple, u32>>,
    pub endpoints: RefCell<HashMap<Tuple, u16>>,
    pub wire_endpoints: RefCell<HashMap<Tuple, Endpoint>>,
    /// What leaves was not sent by the node.
    pub bridged: Cell<bool>,
    /// The route that packets take.
    pub way: Option<Way>,
    /// What the agent has put down about sources, by bits of the key that count.
    pub sources: Vec<(SourceKey, u32, Addr)>,
    pub reserved: BTreeSet<u16>,
    /// Protocols and ports on which the node answers without a socket.
    pub node_ports: HashSet<(u32, u16)>,
    /// What the node speaks that has no ports, and with whom.
    pub node_protocols: HashSet<NodeProtocol>,
    /// Wire tuples that a connected or bound socket of the node receives.
    pub sockets: HashSet<Tuple>,
    /// Ports that a socket of the node listens on.
    pub listeners: HashSet<u16>,
    pub sent_by_socket: bool,
    pub clock: Cell<u32>,
    /// Prefix, its length as of 128 bits, action; in any order.
    pub policy: Vec<(Addr, u32, Action)>,
    /// Destinations that a policy before this one bypassed.
    pub bypassed_before: HashSet<Addr>,
    /// Pods, peers, and the epoch in which they were found to be bypassed.
    pub known_bypass: RefCell<HashSet<(Addr, Addr, u32)>>,
    /// Every port that was asked for, in order.
    pub candidates: RefCell<Vec<u16>>,
    /// Runs once, just before a reply half is inserted: another CPU.
    pub before_claim: RefCell<Option<Hook>>,
    /// Runs once, just before an original half is inserted: another CPU.
    pub before_original: RefCell<Option<Hook>>,
    /// Runs once, just before an original half is removed: another CPU.
    pub before_end: RefCell<Option<Hook>>,
    /// Runs once, just before sockets are looked up: another CPU.
    pub before_sockets: RefCell<Option<Hook>>,
    /// Runs once, just before a route is looked up: another CPU.
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

    /// A rule as "10.0.0.0/8".
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

    /// What becomes of a packet that leaves: see [`Fake::run`].
    pub fn out(&self, packet: &Build) -> Seen {
        self.run(packet, true)
    }

    /// What becomes of a packet that comes in.
    pub fn back(&self, packet: &Build) -> Seen {
        self.run(packet, false)
    }

    /// What becomes of a pod's packet to the node's address, as netdp-ebpf's
    /// `turn_back`: both ends.
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

    /// Parses and decides, as `netdp-ebpf`'s `main` does.
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
        // Only behind an Ethernet header.
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
                    // A mapping that has ended may have left an address there.
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

    /// What is written into the packet.
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

/// What becomes of a packet that a pod sends to the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turned {
    /// It is the node's.
    Pass,
    /// From there, to there.
    To(SocketAddr, SocketAddr),
    Drop(DropReason),
}

/// A verdict, with what the packet's source (leaving) or destination (coming
/// in) becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    Pass,
    As(SocketAddr),
    /// An ICMP error, outside and inside.
    Error(SocketAddr),
    /// An ICMP error, inside only.
    Inner(SocketAddr),
    Hold,
    Drop(DropReason),
}

/// Rewritten to `text`.
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

/// The tuple of a packet as [`packet::parse`] gives it.
pub fn tuple_of(packet: &Build) -> Tuple {
    let mut work = Work::EMPTY;
    packet::parse(&packet.bytes()[..], packet.ethertype(), 0, &mut work.pkt);
    work.pkt.tuple
}
