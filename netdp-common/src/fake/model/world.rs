//! The node under test, and what the model knows of it.

use super::super::build::{Build, Kind, SYN};
use super::flow::{Flow, Moment};
use super::{Carries, Net, Outcome, PORTS, RANGE, Step, Subject, packet};
use netdp_common::abi::{MAPPING_HOST, Mapping};
use netdp_common::tuple::{Tuple, proto};
use netdp_common::verdict::DropReason;
use std::collections::{HashMap, HashSet};
use std::net::SocketAddr;
use std::time::Instant;

/// Seconds for which the answers to packets from outside keep their source.
const ASKED: u64 = 432_000;

pub struct World<S> {
    subject: S,
    net: &'static Net,
    bypass: [bool; 2],
    /// Servers that an earlier policy bypassed.
    bypassed_before: [bool; 2],
    waited: u64,
    live: HashMap<Tuple, Flow>,
    /// Tuples that keep the pod's address: answers to packets that came from
    /// outside, connections that were bypassed. With their last packet.
    asked: HashMap<Tuple, Moment>,
}

impl<S: Subject> World<S> {
    pub fn new(subject: S, net: &'static Net) -> Self {
        Self {
            subject,
            net,
            bypass: [false; 2],
            bypassed_before: [false; 2],
            waited: 0,
            live: HashMap::new(),
            asked: HashMap::new(),
        }
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
                self.subject.node_has_socket(from_socket);
                let near = self.net.pods.get(pod).copied().unwrap_or(self.net.node);
                let to = self.net.servers[server];
                let packet = packet(near, to, PORTS[port], carries, false);
                if near == self.net.node {
                    self.host_sends(&packet, carries);
                } else {
                    self.pod_sends(&packet, server, carries);
                }
            }
            Step::Reply {
                flow,
                flags,
                in_sequence,
            } => self.reply(flow, flags, in_sequence),
            Step::Direct {
                server,
                pod,
                port,
                carries,
            } => self.direct(server, pod, port, carries),
            Step::Stray {
                server,
                port,
                carries,
            } => self.stray(server, port, carries),
            Step::Policy { server, bypass } => {
                for (before, now) in self.bypassed_before.iter_mut().zip(self.bypass) {
                    *before |= now;
                }
                self.bypass[server] = bypass;
                let prefixes = self.net.prefixes.into_iter().zip(self.bypass);
                let bypassed: Vec<_> = prefixes.filter(|p| p.1).map(|p| p.0).collect();
                self.subject.policy(&bypassed);
            }
            Step::ForgetPolicies => {
                self.bypassed_before = [false; 2];
                self.subject.forget_policies();
            }
            Step::Wait { seconds } => {
                self.waited += seconds;
                self.subject.advance(seconds);
                self.sweep();
            }
            Step::Restart => self.subject.restart(),
        }
        self.check();
    }

    fn now(&self) -> Moment {
        Moment {
            waited: self.waited,
            real: Instant::now(),
        }
    }

    fn pod_sends(&mut self, packet: &Build, server: usize, carries: Carries) {
        let (tuple, now) = (tuple_of(packet), self.now());
        let seen = self.subject.out(packet);
        if self.goes_on(&tuple, carries, seen) {
            return;
        }
        if self.bypass[server] {
            assert_eq!(seen, Outcome::Pass, "bypassed: {packet:?}");
            return;
        }
        if matches!(carries, Carries::Tcp(SYN)) {
            self.asked.remove(&tuple);
        }
        if !matches!(carries, Carries::Echo)
            && let Some(asked) = self.asked.get_mut(&tuple)
        {
            match asked.is_past(now, ASKED) {
                Some(true) => {}
                Some(false) => {
                    assert_eq!(seen, Outcome::Pass, "asked: {packet:?}");
                    *asked = now;
                    return;
                }
                None if seen == Outcome::Pass => {
                    *asked = now;
                    return;
                }
                None => {}
            }
        }
        if carries.goes_on() && self.bypassed_before[server] {
            assert_eq!(seen, Outcome::Pass, "was bypassed: {packet:?}");
            self.asked.insert(tuple, now);
            return;
        }
        match seen {
            Outcome::Pass => panic!("a leak: {packet:?}"),
            Outcome::As(wire) => {
                assert!(carries.opens(), "{packet:?}");
                self.opened(packet, wire, carries);
            }
            Outcome::Drop(DropReason::TcpNoFlow) => {
                assert!(matches!(carries, Carries::Tcp(_)) && !carries.opens());
            }
            Outcome::Drop(DropReason::IcmpNoFlow) => {
                assert!(matches!(carries, Carries::EchoReply));
            }
            Outcome::Drop(reason) => {
                assert!(carries.opens(), "{packet:?} opens nothing: {reason:?}");
                self.assert_refused(&tuple, reason);
            }
        }
    }

    /// A packet of a live flow leaves by its mapping.
    fn goes_on(&mut self, tuple: &Tuple, carries: Carries, seen: Outcome) -> bool {
        let now = self.now();
        match self.live.get_mut(tuple) {
            Some(flow) if !matches!(carries, Carries::EchoReply) => {
                assert_eq!(seen, Outcome::As(flow.wire), "a live flow: {tuple:?}");
                flow.sends(carries, now);
                true
            }
            _ => false,
        }
    }

    fn host_sends(&mut self, packet: &Build, carries: Carries) {
        let tuple = tuple_of(packet);
        let seen = self.subject.out(packet);
        if self.goes_on(&tuple, carries, seen) {
            return;
        }
        let answers = matches!(carries, Carries::EchoReply);
        let taken = self.live.values().any(|f| f.reply == tuple.reversed());
        match seen {
            Outcome::Pass => assert!(!taken || answers, "two owners: {packet:?}"),
            Outcome::As(wire) => {
                assert!(taken && !answers, "for nothing: {packet:?}");
                self.opened(packet, wire, carries);
            }
            Outcome::Drop(reason) => {
                assert!(taken && !answers, "for nothing: {packet:?}");
                self.assert_refused(&tuple, reason);
            }
        }
    }

    fn opened(&mut self, packet: &Build, wire: SocketAddr, carries: Carries) {
        let tuple = tuple_of(packet);
        let reply = tuple.reply_to(wire.ip().into(), wire.port());
        let node = format!("{}:0", self.net.node).parse::<SocketAddr>();
        assert_eq!(Ok(wire.ip()), node.map(|node| node.ip()));
        if has_ports(&tuple) {
            assert!(RANGE.contains(&wire.port()), "{wire}");
            assert!(!self.subject.is_reserved(wire.port()), "{wire}");
        }
        let clash = self.live.values().any(|flow| flow.reply == reply);
        assert!(!clash, "{wire} is taken: {packet:?}");
        assert!(!self.marked().contains(&reply), "{wire} is the node's");
        let mut flow = Flow::new(wire, packet.clone(), reply, self.now());
        flow.sends(carries, self.now());
        self.live.insert(tuple, flow);
    }

    fn marked(&self) -> HashSet<Tuple> {
        let [_, reply] = self.subject.halves();
        let marks = reply.into_iter().filter(|(_, half)| is_mark(half));
        marks.map(|(wire, _)| wire).collect()
    }

    /// A flow may be refused where no port, or no room, is left.
    fn assert_refused(&self, tuple: &Tuple, reason: DropReason) {
        let [_, replies] = self.subject.halves();
        if reason == DropReason::TableFull {
            assert_eq!(replies.len(), self.subject.capacity());
            return;
        }
        assert_eq!(reason, DropReason::NoFreePort, "{tuple:?}");
        assert!(has_ports(tuple));
        let node = format!("{}:0", self.net.node).parse::<SocketAddr>();
        let node = node.expect("an address").ip().into();
        for port in RANGE {
            let wire = tuple.reply_to(node, port);
            let taken = replies.iter().any(|(known, _)| *known == wire);
            assert!(taken || self.subject.is_reserved(port), "{port} was free");
        }
    }

    fn reply(&mut self, flow: usize, flags: u8, in_sequence: bool) {
        let now = self.now();
        let mut flows: Vec<_> = self.live.values_mut().collect();
        if flows.is_empty() {
            return;
        }
        flows.sort_by_key(|flow| (flow.wire, flow.first.src, flow.first.dst));
        let chosen = flow % flows.len();
        let flow = &mut *flows[chosen];
        let mut answer = flow.first.from(&flow.wire.to_string()).answer();
        let mut sent = None;
        if let Kind::Tcp {
            flags: old, seq, ..
        } = &mut answer.kind
        {
            *old = flags;
            // What pods acknowledge, see `Build::tcp`.
            *seq = if in_sequence { 2_000 } else { 7 };
            sent = Some(flags);
        }
        let seen = self.subject.back(&answer);
        assert_eq!(seen, Outcome::As(flow.first.src), "{answer:?}");
        flow.gets(sent, in_sequence, now);
    }

    fn direct(&mut self, server: usize, pod: usize, port: usize, carries: Carries) {
        let (near, from) = (self.net.pods[pod], self.net.servers[server]);
        let packet = packet(near, from, PORTS[port], carries, true);
        assert_eq!(self.subject.back(&packet), Outcome::Pass, "{packet:?}");
        if carries.begins() && !self.bypass[server] {
            let now = self.now();
            self.asked.insert(tuple_of(&packet).reversed(), now);
        }
    }

    fn stray(&mut self, server: usize, port: u16, carries: Carries) {
        let (from, now) = (self.net.servers[server], self.now());
        let packet = packet(self.net.node, from, port, carries, true);
        let wire = tuple_of(&packet);
        let seen = self.subject.back(&packet);
        let asks = matches!(carries, Carries::Echo);
        let owner = self.live.values_mut().find(|f| f.reply == wire && !asks);
        let Some(flow) = owner else {
            assert_eq!(seen, Outcome::Pass, "{packet:?}");
            return;
        };
        assert_eq!(seen, Outcome::As(flow.first.src), "{packet:?}");
        // Its sequence number is that of `Build::tcp`: not what pods expect.
        let flags = match carries {
            Carries::Tcp(flags) => Some(flags),
            _ => None,
        };
        flow.gets(flags, false, now);
    }

    /// What is over ends, and nothing else.
    fn sweep(&mut self) {
        let now = self.now();
        self.subject.sweep();
        let [originals, _] = self.subject.halves();
        let there: HashSet<Tuple> = originals.into_iter().map(|(tuple, _)| tuple).collect();
        self.live.retain(|tuple, flow| match flow.is_over(now) {
            Some(over) => {
                assert_ne!(over, there.contains(tuple), "over: {over}, {flow:?}");
                !over
            }
            None => there.contains(tuple),
        });
    }

    /// Mappings come in pairs, and are those of the live flows.
    fn check(&self) {
        let [originals, replies] = self.subject.halves();
        assert_eq!(originals.len(), self.live.len());
        let replies: HashMap<Tuple, Mapping> = replies.into_iter().collect();
        for (tuple, half) in &originals {
            let flow = self.live.get(tuple).expect("a live flow");
            assert_eq!(half.id, flow.wire.port(), "a flow keeps its mapping");
            let reply = replies.get(&flow.reply).expect("a reply half");
            assert_eq!((reply.addr, reply.id), (tuple.src, tuple.src_id));
        }
        let owned = replies.values().filter(|half| !is_mark(half)).count();
        assert_eq!(owned, self.live.len(), "a wire tuple has one owner");
    }
}

const fn is_mark(half: &Mapping) -> bool {
    half.flags & MAPPING_HOST != 0
}

const fn has_ports(tuple: &Tuple) -> bool {
    matches!(tuple.proto, proto::TCP | proto::UDP)
}

/// The tuple of a packet, see [`Tuple`] for identifiers.
fn tuple_of(packet: &Build) -> Tuple {
    let (src, dst) = (packet.src, packet.dst);
    let protocol = match packet.kind {
        Kind::Tcp { .. } => proto::TCP,
        Kind::Udp => proto::UDP,
        _ if src.is_ipv4() => proto::ICMP,
        _ => proto::ICMPV6,
    };
    Tuple::new(
        src.ip().into(),
        dst.ip().into(),
        src.port(),
        dst.port(),
        protocol,
    )
}
