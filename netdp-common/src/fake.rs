//! The datapath's world as ordinary maps with the kernel's semantics: NOEXIST,
//! capacity, values that stay where they are while a program may look at them.

pub mod build;
mod half_map;

use crate::abi::{
    Action, Counters, LAYOUT, Mapping, PORT_RANGES, PortRange, SETTING_IPV6, Settings, UPLINK_V4,
    UPLINK_V6, Uplink,
};
use crate::addr::Addr;
use crate::conntrack::{age, ticks};
use crate::nat::{self, Work};
use crate::packet::{self, Parsed};
use crate::slot::Slot;
use crate::tables::{InsertError, Tables};
use crate::tuple::Tuple;
use crate::verdict::{DropReason, Verdict};
use build::Build;
use half_map::HalfMap;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, HashSet};
use std::net::{IpAddr, SocketAddr};

type Hook = Box<dyn FnOnce(&Fake)>;

/// A node with one uplink: 192.0.2.10 and fd00::10. Everything is masqueraded
/// until a test adds a rule.
pub struct Fake {
    pub settings: Settings,
    pub uplink: Uplink,
    pub local: HashSet<Addr>,
    pub snat: HalfMap,
    pub rev_snat: HalfMap,
    /// Reply tuple and the tick it was last seen, least recently used first.
    pub inbound: RefCell<Vec<(Tuple, u32)>>,
    pub inbound_capacity: usize,
    pub reserved: BTreeSet<u16>,
    /// Wire tuples that a connected or bound socket of the node receives.
    pub sockets: HashSet<Tuple>,
    pub sent_by_socket: bool,
    pub clock: Cell<u32>,
    /// Prefix, its length as of 128 bits, action; in any order.
    pub policy: Vec<(Addr, u32, Action)>,
    /// Every port that was asked for, in order.
    pub candidates: RefCell<Vec<u16>>,
    /// Runs once, just before a reply half is inserted: another CPU.
    pub before_claim: RefCell<Option<Hook>>,
    /// Runs once, just before an original half is inserted: another CPU.
    pub before_original: RefCell<Option<Hook>>,
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

impl Fake {
    pub fn new() -> Self {
        let settings = Settings {
            layout: LAYOUT,
            active_policy: 0,
            flags: SETTING_IPV6,
            pad: 0,
            ports: [PortRange::EMPTY; PORT_RANGES],
            clock_offset: 0,
            generation: 1,
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
            local: [uplink.v4, uplink.v6].into(),
            snat: HalfMap::new(1_000_000),
            rev_snat: HalfMap::new(1_000_000),
            inbound: RefCell::default(),
            inbound_capacity: 1_000,
            reserved: BTreeSet::new(),
            sockets: HashSet::new(),
            sent_by_socket: true,
            clock: Cell::new(u32::MAX - 50),
            policy: Vec::new(),
            candidates: RefCell::default(),
            before_claim: RefCell::default(),
            before_original: RefCell::default(),
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

    /// Parses and decides, as `netdp-ebpf`'s `main` does.
    fn run(&self, packet: &Build, leaving: bool) -> Seen {
        let mut work = Work::EMPTY;
        let bytes = packet.bytes();
        let parsed = packet::parse(&bytes[..], packet.ethertype(), 0, &mut work.pkt);
        assert_eq!(parsed, Parsed::Ip, "{packet:?}");
        let verdict = if leaving {
            nat::egress(self, &mut work)
        } else {
            nat::ingress(self, &mut work)
        };
        match verdict {
            Verdict::Pass => Seen::Pass,
            Verdict::Drop(reason) => Seen::Drop(reason),
            Verdict::Rewrite => {
                let id = u16::try_from(work.pkt.new.id).expect("16 bits");
                Seen::As(to_socket(&work.pkt.new.addr, id))
            }
        }
    }
}

/// A verdict, with what the packet's source (leaving) or destination (coming
/// in) becomes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    Pass,
    As(SocketAddr),
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

/// As netdp-ebpf's: a record older than this no longer counts.
const INBOUND_SECONDS: u64 = 432_000;

impl Tables for Fake {
    fn now(&self) -> u32 {
        self.clock.get()
    }

    /// A linear congruential generator: the same in every run.
    fn random(&self) -> u32 {
        let next = self.random.get().wrapping_mul(1_664_525);
        self.random.set(next.wrapping_add(1_013_904_223));
        self.random.get()
    }

    fn settings(&self) -> &Settings {
        &self.settings
    }

    fn uplink(&self) -> &Uplink {
        &self.uplink
    }

    fn count(&self, counter: impl FnOnce(&mut Counters) -> &mut u64) {
        *counter(&mut self.counters.borrow_mut()) += 1;
    }

    fn is_local(&self, addr: &Addr) -> bool {
        self.local.contains(addr)
    }

    fn action(&self, dst: &Addr) -> Action {
        let value = |addr: &Addr| u128::from_be_bytes(*addr.octets());
        let covers = |&&(net, len, _): &&(Addr, u32, Action)| {
            len == 0 || (value(&net) ^ value(dst)) >> (128 - len) == 0
        };
        let longest = self.policy.iter().filter(covers).max_by_key(|rule| rule.1);
        longest.map_or(Action::Masquerade, |rule| rule.2)
    }

    fn snat(&self, tuple: &Tuple) -> Option<Slot> {
        self.snat.slot(tuple)
    }

    fn rev_snat(&self, tuple: &Tuple) -> Option<Slot> {
        self.rev_snat.slot(tuple)
    }

    fn insert_snat(&self, tuple: &Tuple, mapping: &Mapping) -> Result<(), InsertError> {
        let hook = self.before_original.take();
        if let Some(hook) = hook {
            hook(self);
        }
        self.snat.insert(tuple, mapping)
    }

    fn insert_rev_snat(&self, tuple: &Tuple, mapping: &Mapping) -> Result<(), InsertError> {
        let hook = self.before_claim.take();
        if let Some(hook) = hook {
            hook(self);
        }
        self.rev_snat.insert(tuple, mapping)
    }

    fn remove_rev_snat(&self, tuple: &Tuple) {
        self.rev_snat.remove(tuple);
    }

    fn refresh_inbound(&self, tuple: &Tuple) -> bool {
        let mut inbound = self.inbound.borrow_mut();
        let Some(at) = inbound.iter().position(|(known, _)| known == tuple) else {
            return false;
        };
        let (known, seen) = inbound.remove(at);
        inbound.push((known, self.now()));
        u64::from(age(self.now(), seen)) < ticks(INBOUND_SECONDS)
    }

    fn insert_inbound(&self, tuple: &Tuple) {
        let mut inbound = self.inbound.borrow_mut();
        inbound.retain(|(known, _)| known != tuple);
        if inbound.len() == self.inbound_capacity {
            inbound.remove(0);
        }
        inbound.push((*tuple, self.now()));
    }

    fn remove_inbound(&self, tuple: &Tuple) {
        self.inbound
            .borrow_mut()
            .retain(|(known, _)| known != tuple);
    }

    fn port_reserved(&self, port: u16) -> bool {
        self.candidates.borrow_mut().push(port);
        self.reserved.contains(&port)
    }

    fn sent_by_socket(&self) -> bool {
        self.sent_by_socket
    }

    fn socket_receives(&self, wire: &Tuple) -> bool {
        self.sockets.contains(wire)
    }

    fn repeat<S, F>(&self, n: u32, state: &mut S, step: F)
    where
        F: Fn(&Self, u32, &mut S) -> bool,
    {
        for i in 0..n {
            if !step(self, i, state) {
                return;
            }
        }
    }
}
