//! Packets that come from outside: replies to mappings, packets straight to a pod, and strays.

use super::super::build::{FIN, Kind};
use super::flow::{PAYLOAD, Sent};
use super::kept::Kept;
use super::world::{World, order, tuple_of};
use super::{Carries, Outcome, PORTS, Subject, packet};
use netdp_common::layout::Tuple;
use std::net::SocketAddr;

impl<S: Subject> World<S> {
    pub(super) fn reply(&mut self, flow: usize, flags: u8, in_sequence: bool) {
        let now = self.now();
        let mut flows: Vec<_> = self.live.values_mut().collect();
        if flows.is_empty() {
            return;
        }
        flows.sort_by_key(|flow| order(flow));
        let chosen = flow % flows.len();
        let flow = &mut *flows[chosen];
        let mut answer = flow.first.from(&flow.wire.to_string()).answer();
        let mut sent = None;
        if let Kind::Tcp {
            flags: old,
            seq,
            ack,
        } = &mut answer.kind
        {
            *old = flags;
            // The numbers that pods acknowledge, and that acknowledge their SYN and FIN: see
            // `Build::tcp`.
            (*seq, *ack) = if in_sequence {
                (2_000, 1_000 + PAYLOAD + 1)
            } else {
                (7, 7)
            };
            let fin = flags & FIN != 0;
            if in_sequence && fin {
                // The acknowledgement number of the pods covers the FIN.
                *seq -= PAYLOAD + 1;
            }
            sent = Some(Sent {
                flags,
                in_sequence: in_sequence && !fin,
                acknowledges: in_sequence,
                seq: *seq,
                ack: *ack,
            });
        }
        let (wire, pod) = (flow.reply, flow.first.src);
        let seen = self.subject.back(&answer);
        let ends = flow.gets(sent, now);
        self.came_in(&wire, pod, seen, ends);
    }

    /// Checks the verdict on a packet for a mapping: it was translated, or the mapping has ended.
    fn came_in(&mut self, wire: &Tuple, pod: SocketAddr, seen: Outcome, ends: bool) {
        if ends {
            assert_eq!(seen, Outcome::Pass, "the node's: {wire:?}");
            self.live.retain(|_, flow| flow.reply != *wire);
        } else {
            let same = wire.dst == pod.ip().into() && wire.dst_id == pod.port();
            if !(same && seen == Outcome::Pass) {
                assert_eq!(seen, Outcome::As(pod), "{wire:?}");
            }
        }
    }

    pub(super) fn direct(&mut self, server: usize, pod: usize, port: usize, carries: Carries) {
        let (near, from) = (self.net.pods[pod], self.net.servers[server]);
        let packet = packet(near, from, PORTS[port], carries, true);
        assert_eq!(self.subject.back(&packet), Outcome::Pass, "{packet:?}");
        let tcp = matches!(carries, Carries::Tcp(_));
        if (carries.begins() || tcp) && !self.bypass[server] {
            let (tuple, now) = (tuple_of(&packet).reversed(), self.now());
            if let Some(kept) = Kept::came(self.kept.remove(&tuple), carries, now) {
                self.kept.insert(tuple, kept);
            }
        }
    }

    pub(super) fn stray(&mut self, server: usize, port: u16, carries: Carries) {
        let (from, now) = (self.net.servers[server], self.now());
        let packet = packet(self.net.nodes[0], from, port, carries, true);
        let wire = tuple_of(&packet);
        let seen = self.subject.back(&packet);
        let asks = matches!(carries, Carries::Echo);
        let owner = self.live.values_mut().find(|f| f.reply == wire && !asks);
        let Some(flow) = owner else {
            assert_eq!(seen, Outcome::Pass, "{packet:?}");
            return;
        };
        // The sequence number comes from `Build::tcp`, so it is not the one that pods expect. Its
        // acknowledgement number is close enough.
        let sent = match carries {
            Carries::Tcp(flags) => Some(Sent {
                flags,
                in_sequence: false,
                acknowledges: true,
                seq: 1_000,
                ack: 2_000,
            }),
            _ => None,
        };
        let (pod, ends) = (flow.first.src, flow.gets(sent, now));
        self.came_in(&wire, pod, seen, ends);
    }
}
