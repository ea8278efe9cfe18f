//! The node under test, and what the model knows of it.

use super::{Carries, NODE, PODS, PORTS, RANGE, SERVERS, Step, begins, opens, packet};
use crate::abi::{Action, MAPPING_HOST, PortRange, SETTING_PORTS};
use crate::fake::build::{Build, Kind, SYN};
use crate::fake::{Fake, Seen, addr, tuple_of};
use crate::nat_tests::assert_paired;
use crate::tables::Tables as _;
use crate::tuple::Tuple;
use crate::verdict::DropReason;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::SocketAddr;

pub struct World {
    fake: Fake,
    actions: [Action; 2],
    capacity: usize,
    /// What a flow's original tuple is translated to, its packet, and the
    /// tuple of its replies.
    live: HashMap<Tuple, (SocketAddr, Build, Tuple)>,
    /// Tuples of answers to packets that came from outside.
    asked: HashSet<Tuple>,
}

impl World {
    pub fn new(capacity: usize, reserved: bool) -> Self {
        let mut fake = Fake::new();
        fake.settings.flags |= SETTING_PORTS;
        fake.settings.ports[0] = PortRange::new(RANGE[0], RANGE[2]);
        if reserved {
            fake.reserved.insert(4001);
        }
        fake.snat.set_capacity(capacity);
        fake.rev_snat.set_capacity(capacity);
        Self {
            fake,
            actions: [Action::Masquerade; 2],
            capacity,
            live: HashMap::new(),
            asked: HashSet::new(),
        }
    }

    fn marked(&self, wire: &Tuple) -> bool {
        let half = self.fake.rev_snat.get(wire);
        half.is_some_and(|half| half.flags & MAPPING_HOST != 0)
    }

    pub fn take(&mut self, step: Step) {
        match step {
            Step::Out {
                pod,
                server,
                port,
                carries,
                from_socket,
            } => {
                self.fake.sent_by_socket = from_socket;
                let near = PODS.get(pod).copied().unwrap_or(NODE);
                let packet = packet(near, server, PORTS[port], carries, false);
                if near == NODE {
                    self.host_sends(&packet);
                } else {
                    self.pod_sends(&packet, self.actions[server], carries);
                }
            }
            Step::Reply { flow, flags } => self.reply(flow, flags),
            Step::Direct {
                server,
                pod,
                port,
                carries,
            } => {
                let packet = packet(PODS[pod], server, PORTS[port], carries, true);
                assert_eq!(self.fake.back(&packet), Seen::Pass, "{packet:?}");
                if begins(carries) && self.actions[server] == Action::Masquerade {
                    self.asked.insert(tuple_of(&packet).reversed());
                }
            }
            Step::Stray {
                server,
                port,
                carries,
            } => {
                let packet = packet(NODE, server, port, carries, true);
                let wire = tuple_of(&packet);
                let mut flows = self.live.iter();
                let asks = matches!(carries, Carries::Echo);
                let owner = flows.find(|(_, flow)| flow.2 == wire && !asks);
                let wanted = owner.map_or(Seen::Pass, |(_, flow)| Seen::As(flow.1.src));
                assert_eq!(self.fake.back(&packet), wanted, "{packet:?}");
            }
            Step::Policy { server, action } => {
                self.actions[server] = action;
                self.fake.policy.clear();
                for (server, action) in SERVERS.iter().zip(self.actions) {
                    self.fake.policy.push((addr(server), 128, action));
                }
            }
            Step::Wait { seconds } => {
                self.fake.advance(seconds);
                self.sweep();
            }
        }
        self.check();
    }

    fn pod_sends(&mut self, packet: &Build, action: Action, carries: Carries) {
        let tuple = tuple_of(packet);
        let seen = self.fake.out(packet);
        let answers = matches!(carries, Carries::EchoReply);
        if let Some((wire, ..)) = self.live.get(&tuple)
            && !answers
        {
            assert_eq!(seen, Seen::As(*wire), "a live flow: {packet:?}");
            return;
        }
        if action == Action::Bypass {
            assert_eq!(seen, Seen::Pass, "bypassed: {packet:?}");
            return;
        }
        let new = matches!(carries, Carries::Tcp(SYN));
        if new {
            self.asked.remove(&tuple);
        }
        let asked = self.asked.contains(&tuple) && !matches!(carries, Carries::Echo);
        match seen {
            Seen::Pass => assert!(asked, "a leak: {packet:?}"),
            Seen::As(wire) => {
                assert!(!asked && opens(carries), "{packet:?}");
                self.opened(packet, wire);
            }
            Seen::Drop(DropReason::TcpNoFlow) => {
                assert!(matches!(carries, Carries::Tcp(_)) && !opens(carries) && !asked);
            }
            Seen::Drop(DropReason::IcmpNoFlow) => {
                assert!(answers && !asked);
            }
            Seen::Drop(DropReason::NoFreePort) => self.assert_exhausted(&tuple),
            Seen::Drop(DropReason::TableFull) => {
                assert!(opens(carries));
                assert_eq!(self.fake.rev_snat.len(), self.capacity);
            }
            other => panic!("{other:?} for {packet:?}"),
        }
    }

    fn host_sends(&mut self, packet: &Build) {
        let tuple = tuple_of(packet);
        let seen = self.fake.out(packet);
        let answers = packet.kind == Kind::EchoReply;
        if let Some((wire, ..)) = self.live.get(&tuple)
            && !answers
        {
            assert_eq!(seen, Seen::As(*wire), "a remapped host flow: {packet:?}");
            return;
        }
        let taken = self.live.values().any(|flow| flow.2 == tuple.reversed());
        match seen {
            Seen::Pass => assert!(!taken || answers, "two owners: {packet:?}"),
            Seen::As(wire) => {
                assert!(taken && !answers, "for nothing: {packet:?}");
                self.opened(packet, wire);
            }
            Seen::Drop(DropReason::NoFreePort) => self.assert_exhausted(&tuple),
            Seen::Drop(DropReason::TableFull) => {
                assert_eq!(self.fake.rev_snat.len(), self.capacity);
            }
            other => panic!("{other:?} for {packet:?}"),
        }
    }

    fn opened(&mut self, packet: &Build, wire: SocketAddr) {
        let tuple = tuple_of(packet);
        let reply = tuple.reply_to(self.fake.uplink.v4, wire.port());
        assert_eq!(wire.ip().to_string(), NODE);
        if !tuple.is_icmp() {
            assert!(RANGE.contains(&wire.port()), "{wire}");
            assert!(!self.fake.reserved.contains(&wire.port()), "{wire}");
        }
        let clash = self.live.values().any(|flow| flow.2 == reply);
        assert!(
            !clash && !self.marked(&reply),
            "{wire} is taken: {packet:?}"
        );
        self.live.insert(tuple, (wire, packet.clone(), reply));
    }

    fn assert_exhausted(&self, tuple: &Tuple) {
        assert!(!tuple.is_icmp());
        for port in RANGE {
            let wire = tuple.reply_to(self.fake.uplink.v4, port);
            let live = self.live.values().any(|flow| flow.2 == wire);
            let reserved = self.fake.reserved.contains(&port);
            assert!(live || reserved || self.marked(&wire), "{port} was free");
        }
    }

    fn reply(&mut self, flow: usize, flags: u8) {
        let mut flows: Vec<_> = self.live.values().collect();
        if flows.is_empty() {
            return;
        }
        flows.sort_by_key(|(wire, first, _)| (*wire, first.src, first.dst));
        let (wire, first, _) = flows[flow % flows.len()];
        let mut answer = first.from(&wire.to_string()).answer();
        if let Kind::Tcp { flags: old, .. } = &mut answer.kind {
            *old = flags;
        }
        assert_eq!(self.fake.back(&answer), Seen::As(first.src), "{answer:?}");
    }

    /// As the agent does, in one go: what both halves saw nothing for.
    fn sweep(&mut self) {
        let limit = u32::try_from(crate::conntrack::ticks(300)).unwrap();
        let old = |seen: u32| crate::conntrack::age(self.fake.now(), seen) >= limit;
        for (tuple, half) in self.fake.snat.all() {
            let wire = tuple.reply_to(half.addr, half.id);
            let reply = self.fake.rev_snat.get(&wire).unwrap();
            if old(half.last_seen) && old(reply.last_seen) {
                self.fake.snat.remove(&tuple);
                self.fake.rev_snat.remove(&wire);
                self.live.remove(&tuple);
            }
        }
        for (wire, half) in self.fake.rev_snat.all() {
            if half.flags & MAPPING_HOST != 0 && old(half.last_seen) {
                self.fake.rev_snat.remove(&wire);
            }
        }
    }

    fn check(&self) {
        assert_paired(&self.fake);
        assert_eq!(self.fake.snat.len(), self.live.len());
        for (tuple, (wire, ..)) in &self.live {
            let half = self.fake.snat.get(tuple).expect("a live flow");
            assert_eq!(half.id, wire.port(), "a flow keeps its mapping");
        }
        let wires: BTreeSet<String> = self
            .live
            .values()
            .map(|flow| format!("{:?}", flow.2))
            .collect();
        assert_eq!(wires.len(), self.live.len(), "a wire tuple has one owner");
    }
}
