//! The model of the node under test.

use super::super::build::{ACK, Build, FIN, Kind, RST, SYN};
use super::flow::{Flow, Moment};
use super::kept::Kept;
use super::{Carries, Net, Outcome, PORTS, RANGE, Step, Subject, packet};
use netdp_common::layout::{DropReason, Mapping, Tuple, proto};
use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

pub struct World<S> {
    pub(super) subject: S,
    pub(super) net: &'static Net,
    pub(super) bypass: [bool; 2],
    /// Servers that an earlier policy bypassed.
    bypassed_before: [bool; 2],
    waited: u64,
    /// The uplink of egress packets.
    uplink: usize,
    pub(super) live: HashMap<Tuple, Flow>,
    /// Tuples that keep the pod's address (answers to inbound flows, bypassed connections), with
    /// their last packet.
    pub(super) kept: HashMap<Tuple, Kept>,
    /// Wire tuples of the node's own flows without a socket, with their last packet.
    nodes: HashMap<Tuple, Moment>,
}

impl<S: Subject> World<S> {
    pub fn new(subject: S, net: &'static Net) -> Self {
        Self {
            subject,
            net,
            bypass: [false; 2],
            bypassed_before: [false; 2],
            waited: 0,
            uplink: 0,
            live: HashMap::new(),
            kept: HashMap::new(),
            nodes: HashMap::new(),
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
                let from_socket = self.subject.node_has_socket(from_socket);
                let node = self.net.nodes[0];
                let near = self.net.pods.get(pod).copied().unwrap_or(node);
                let to = self.net.servers[server];
                let packet = packet(near, to, PORTS[port], carries, false);
                if near == node {
                    self.host_sends(&packet, server, carries, from_socket);
                } else {
                    self.pod_sends(&packet, server, carries);
                }
            }
            Step::Reply {
                flow,
                flags,
                in_sequence,
            } => self.reply(flow, flags, in_sequence),
            Step::Close { flow, in_sequence } => self.close(flow, in_sequence),
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
            Step::Lead { uplink } => {
                self.uplink = uplink;
                self.subject.lead(uplink);
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

    pub(super) fn now(&self) -> Moment {
        Moment {
            waited: self.waited,
            real: Instant::now(),
        }
    }

    fn pod_sends(&mut self, packet: &Build, server: usize, carries: Carries) {
        let (tuple, now) = (tuple_of(packet), self.now());
        let seen = self.subject.out(packet);
        self.moves(&tuple, carries);
        self.begins_untranslated(&tuple, server, carries, seen);
        if self.goes_on(packet, carries, seen) {
            return;
        }
        if self.bypass[server] {
            assert_eq!(seen, Outcome::Pass, "bypassed: {packet:?}");
            return;
        }
        if matches!(carries, Carries::Tcp(SYN)) {
            self.kept.remove(&tuple);
        }
        if !matches!(carries, Carries::Echo)
            && let Some(kept) = self.kept.get_mut(&tuple)
        {
            match kept.counts(carries, now) {
                Some(false) => {
                    self.kept.remove(&tuple);
                }
                Some(true) => {
                    assert_eq!(seen, Outcome::Pass, "kept: {packet:?}");
                    kept.sent(carries, now);
                    return;
                }
                None if seen == Outcome::Pass => {
                    kept.sent(carries, now);
                    return;
                }
                None => {}
            }
        }
        if carries.goes_on() && self.bypassed_before[server] {
            assert_eq!(seen, Outcome::Pass, "was bypassed: {packet:?}");
            self.kept.insert(tuple, Kept::live(now));
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

    /// Returns the node's address on an uplink, without a port.
    fn node(&self, uplink: usize) -> IpAddr {
        let node = format!("{}:0", self.net.nodes[uplink]).parse::<SocketAddr>();
        node.expect("an address").ip()
    }

    /// Ends a flow whose packet leaves by another uplink with another address. A connection ends
    /// only when a SYN reopens it.
    fn moves(&mut self, tuple: &Tuple, carries: Carries) {
        let (uplink, node) = (self.uplink, self.node(self.uplink));
        let Some(flow) = self.live.get_mut(tuple) else {
            return;
        };
        if matches!(carries, Carries::EchoReply) {
            return;
        }
        let ends = flow.wire.ip() != node
            && match carries {
                Carries::Tcp(SYN) => flow.may_begin_anew(),
                Carries::Tcp(_) => false,
                _ => flow.uplink != uplink,
            };
        flow.uplink = uplink;
        if ends {
            self.live.remove(tuple);
        }
    }

    /// Ends an expired flow when its pod opens a connection that is not translated, or answers an
    /// inbound flow.
    fn begins_untranslated(
        &mut self,
        tuple: &Tuple,
        server: usize,
        carries: Carries,
        seen: Outcome,
    ) {
        let (now, bypassed) = (self.now(), self.bypass[server]);
        let Some(flow) = self.live.get(tuple) else {
            return;
        };
        let ends = match carries {
            Carries::Tcp(SYN) => bypassed && flow.may_begin_anew() && !flow.is_asking(),
            Carries::Tcp(flags) if flags == SYN | ACK && flow.is_closed() => {
                let kept = self.kept.get(tuple);
                // If the model cannot determine it, the observed verdict decides.
                let known = kept
                    .is_some_and(|kept| kept.counts(carries, now).unwrap_or(seen == Outcome::Pass));
                bypassed || known
            }
            _ => false,
        };
        if ends {
            self.live.remove(tuple);
        }
    }

    /// Checks that a packet of a live flow is translated by its mapping.
    fn goes_on(&mut self, packet: &Build, carries: Carries, seen: Outcome) -> bool {
        let (tuple, now) = (&tuple_of(packet), self.now());
        match self.live.get_mut(tuple) {
            Some(flow) if !matches!(carries, Carries::EchoReply) => {
                // A flow of the node may have kept the port.
                let same =
                    tuple.reply_to(flow.wire.ip().into(), flow.wire.port()) == tuple.reversed();
                if !(same && seen == Outcome::Pass) {
                    assert_eq!(seen, Outcome::As(flow.wire), "a live flow: {tuple:?}");
                }
                flow.sends(packet, carries, now);
                true
            }
            _ => false,
        }
    }

    fn host_sends(&mut self, packet: &Build, server: usize, carries: Carries, socket: bool) {
        let (tuple, now) = (tuple_of(packet), self.now());
        let seen = self.subject.out(packet);
        if self.goes_on(packet, carries, seen) {
            return;
        }
        let answers = matches!(carries, Carries::EchoReply);
        let refuses = matches!(carries, Carries::Tcp(flags) if flags & RST != 0);
        let wire = tuple.reversed();
        let owner = self.live.iter().find(|(_, flow)| flow.reply == wire);
        let owner = owner.map(|(pod, flow)| (*pod, flow.is_answered()));
        let changes_port = matches!(carries, Carries::Udp | Carries::Echo | Carries::Tcp(SYN));
        // An idle mapping of a pod is evicted: the node's flow keeps its port.
        let gives_way = (self.live.values())
            .any(|flow| flow.reply == wire && flow.gives_way(now) != Some(false));
        let seen = match seen {
            Outcome::Pass if changes_port && gives_way => Outcome::As(packet.src),
            seen => seen,
        };
        match seen {
            Outcome::Pass => {
                assert!(owner.is_none() || !changes_port, "two owners: {packet:?}");
                // A packet of the node that answers something takes the wire tuple over, unless the
                // mapping there has been answered.
                if let Some((pod, false)) = owner
                    && !answers
                {
                    self.live.remove(&pod);
                    if !refuses {
                        self.nodes.insert(wire, now);
                    }
                }
                let found = socket && has_ports(&tuple);
                if owner.is_none() && !answers && !refuses && !self.bypass[server] && !found {
                    self.nodes.insert(wire, now);
                }
            }
            Outcome::As(wire) => {
                assert!(owner.is_some() && changes_port, "for nothing: {packet:?}");
                self.opened(packet, wire, carries);
            }
            Outcome::Drop(reason) => {
                assert!(owner.is_some() && changes_port, "for nothing: {packet:?}");
                self.assert_refused(&tuple, reason);
            }
        }
    }

    /// Reports whether the wire tuple is known to be the node's; `None` if that is too close to
    /// call.
    fn is_nodes(&self, wire: &Tuple) -> Option<bool> {
        let Some(last) = self.nodes.get(wire) else {
            return Some(false);
        };
        let limit = match wire.proto {
            proto::TCP => 432_000,
            proto::UDP => 300,
            _ => 60,
        };
        last.is_past(self.now(), limit).map(|past| !past)
    }

    fn opened(&mut self, packet: &Build, wire: SocketAddr, carries: Carries) {
        let tuple = tuple_of(packet);
        let reply = tuple.reply_to(wire.ip().into(), wire.port());
        let own = self.node(0);
        let node = if packet.src.ip() == own {
            own
        } else {
            self.node(self.uplink)
        };
        assert_eq!(wire.ip(), node);
        if has_ports(&tuple) {
            assert!(RANGE.contains(&wire.port()), "{wire}");
            assert!(!self.subject.is_reserved(wire.port()), "{wire}");
        }
        if let Some((pod, flow)) = self.live.iter().find(|(_, flow)| flow.reply == reply) {
            let gives_way = flow.gives_way(self.now());
            assert_ne!(gives_way, Some(false), "{wire} is taken: {packet:?}");
            let pod = *pod;
            self.live.remove(&pod);
        }
        assert_ne!(self.is_nodes(&reply), Some(true), "{wire} is the node's");
        let mut flow = Flow::new(wire, packet.clone(), reply, self.uplink, self.now());
        flow.sends(packet, carries, self.now());
        self.live.insert(tuple, flow);
    }

    /// Asserts that the refusal of a flow is justified: no port or no table entry is left.
    fn assert_refused(&self, tuple: &Tuple, reason: DropReason) {
        let [_, replies] = self.subject.halves();
        assert_eq!(reason, DropReason::NoFreePort, "{tuple:?}");
        assert!(has_ports(tuple));
        let own = self.node(0).into();
        let node = if tuple.src == own {
            own
        } else {
            self.node(self.uplink).into()
        };
        for port in RANGE {
            let wire = tuple.reply_to(node, port);
            let taken = replies.iter().any(|(known, _)| *known == wire);
            let nodes = self.is_nodes(&wire) != Some(false);
            let free = !taken && !nodes && !self.subject.is_reserved(port);
            assert!(!free, "{port} was free");
        }
    }

    fn close(&mut self, flow: usize, in_sequence: bool) {
        let node = self.node(0);
        let closes = |flow: &&Flow| {
            matches!(flow.first.kind, Kind::Tcp { .. }) && flow.first.src.ip() != node
        };
        let mut flows: Vec<_> = self.live.values().filter(closes).map(order).collect();
        flows.sort_unstable();
        let Some(&chosen) = flows.get(flow % flows.len().max(1)) else {
            return;
        };
        let (_, src, dst) = chosen;
        let is_it = |server: &str| format!("{server}:443") == dst.to_string();
        let server = self.net.servers.iter().position(|server| is_it(server));
        let fin = Build::tcp(&src.to_string(), &dst.to_string(), FIN | ACK);
        let server = server.expect("a server's address");
        self.pod_sends(&fin, server, Carries::Tcp(FIN | ACK));
        let mut flows: Vec<_> = self.live.values().map(order).collect();
        flows.sort_unstable();
        let index = flows.iter().position(|other| *other == chosen);
        self.reply(index.expect("it lives"), FIN | ACK, in_sequence);
    }

    /// Runs a sweep and checks that it ends the expired flows and no others.
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

    /// Checks that mappings come in pairs and match the live flows.
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
        assert_eq!(replies.len(), self.live.len(), "a wire tuple has one owner");
    }
}

/// Sort key of flows: the same order in every run.
pub(super) const fn order(flow: &Flow) -> (SocketAddr, SocketAddr, SocketAddr) {
    (flow.wire, flow.first.src, flow.first.dst)
}

const fn has_ports(tuple: &Tuple) -> bool {
    matches!(tuple.proto, proto::TCP | proto::UDP)
}

/// Returns the tuple of a packet; see [`Tuple`] for identifiers.
pub(super) fn tuple_of(packet: &Build) -> Tuple {
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
