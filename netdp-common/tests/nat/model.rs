//! Random walks of the model against the fake.

use netdp_common::env::Clock as _;
use netdp_common::flow::{Carried, SEEN_CARRIED_OVER, Timeouts, left};
use netdp_common::layout::{Action, Addr, Half, Mapping, PortRange, SETTING_PORTS, Traffic, Tuple};
use proptest::prelude::*;
use std::collections::HashMap;
use testkit::build::{ACK, Build, FIN, RST, SYN};
use testkit::fake::{Fake, Seen, addr, tuple_of};
use testkit::model::{Carries, Halves, NETS, Outcome, RANGE, Step, Subject, World, steps};

struct Host {
    fake: Fake,
    /// The traffic of each half, by its key in `traffic`.
    counted: HashMap<Tuple, (Identity, Traffic)>,
}

/// The fields that distinguish a half from an earlier one with the same key: its endpoint, and the time at
/// which it began.
type Identity = (Addr, u16, u32);

const fn identity_of(half: &Mapping) -> Identity {
    (half.addr, half.id, half.created)
}

impl Host {
    fn new(reserved: bool, ethernet: bool, unsegmented: Option<u32>) -> Self {
        let mut fake = Fake::new();
        if !ethernet {
            fake.uplink.l2_len = 0;
        }
        fake.settings.flags |= SETTING_PORTS;
        fake.settings.ports[0] = PortRange::new(RANGE[0], RANGE[2]);
        if reserved {
            fake.reserved.insert(RANGE[1]);
        }
        fake.unsegmented.set(unsegmented);
        Self {
            fake,
            counted: HashMap::new(),
        }
    }

    /// Runs a packet, and checks that it is counted once where it is translated by a half, and
    /// nowhere else.
    fn run(&mut self, half: Half, packet: &Build) -> Outcome {
        let key = tuple_of(packet);
        let outcome = outcome(match half {
            Half::Original => self.fake.out(packet),
            Half::Reply => self.fake.back(packet),
        });
        let fake = &self.fake;
        self.counted.retain(|key, (identity, _)| {
            let (half, tuple) = Half::of_traffic_key(key);
            half_of(fake, half, &tuple).is_some_and(|half| identity_of(&half) == *identity)
        });
        if let Some(mapping) = half_of(fake, half, &key) {
            let none = (identity_of(&mapping), Traffic::default());
            let (_, sum) = self.counted.entry(half.traffic_key(&key)).or_insert(none);
            if let Outcome::As(_) = outcome {
                let len = u32::try_from(packet.bytes().len()).expect("a length");
                sum.add(&Traffic::packet(fake.unsegmented.get().unwrap_or(len)));
            }
            assert_eq!(fake.counted(half, &key), *sum, "{packet:?}");
        }
        for key in self.fake.traffic.borrow().keys() {
            let (half, tuple) = Half::of_traffic_key(key);
            let owner = half_of(fake, half, &tuple).expect("its half");
            assert_ne!(owner.seen() & SEEN_CARRIED_OVER, 0, "it is marked");
        }
        outcome
    }
}

fn half_of(fake: &Fake, half: Half, key: &Tuple) -> Option<Mapping> {
    match half {
        Half::Original => fake.snat.get(key),
        Half::Reply => fake.rev_snat.get(key),
    }
}

fn outcome(seen: Seen) -> Outcome {
    match seen {
        Seen::Pass => Outcome::Pass,
        Seen::As(wire) => Outcome::As(wire),
        Seen::Drop(reason) => Outcome::Drop(reason),
        other => panic!("{other:?}"),
    }
}

impl Subject for Host {
    fn out(&mut self, packet: &Build) -> Outcome {
        self.run(Half::Original, packet)
    }

    fn back(&mut self, packet: &Build) -> Outcome {
        self.run(Half::Reply, packet)
    }

    fn policy(&mut self, bypass: &[&'static str]) {
        for (net, _, _) in self.fake.policy.drain(..) {
            self.fake.bypassed_before.insert(net);
        }
        for prefix in bypass {
            self.fake.rule(prefix, Action::Bypass);
        }
        self.fake.settings.epoch += 1;
    }

    fn forget_policies(&mut self) {
        self.fake.bypassed_before.clear();
    }

    fn node_has_socket(&mut self, is: bool) -> bool {
        self.fake.sent_by_socket = is;
        is
    }

    fn lead(&mut self, uplink: usize) {
        self.fake.ifindex = 2 + u32::try_from(uplink).expect("an index");
        let [v4, v6] = NETS
            .each_ref()
            .map(|net| addr(net.nodes[uplink].trim_matches(['[', ']'])));
        (self.fake.uplink.v4, self.fake.uplink.v6) = (v4, v6);
        self.fake.local.extend([v4, v6]);
        self.fake.settings.epoch += 1;
    }

    fn advance(&mut self, seconds: u64) {
        self.fake.advance(seconds);
    }

    /// Runs the agent's sweep in a single pass.
    fn sweep(&mut self) {
        let (now, timeouts) = (self.fake.now(), Timeouts::default());
        for (tuple, half) in self.fake.snat.all() {
            let wire = tuple.reply_to(half.addr, half.id);
            let reply = self.fake.rev_snat.get(&wire).expect("a reply half");
            let timeout = timeouts.of(&Carried::by(&tuple, &half, Some(&reply)));
            if left(now, half.last_seen, reply.last_seen, timeout) == 0 {
                self.fake.snat.remove(&tuple);
                self.fake.rev_snat.remove(&wire);
                for key in [
                    Half::Original.traffic_key(&tuple),
                    Half::Reply.traffic_key(&wire),
                ] {
                    self.fake.traffic.borrow_mut().remove(&key);
                    self.counted.remove(&key);
                }
            }
        }
    }

    /// Does nothing: all state belongs to the programs.
    fn restart(&mut self) {}

    fn halves(&self) -> Halves {
        [self.fake.snat.all(), self.fake.rev_snat.all()]
    }

    fn is_reserved(&self, port: u16) -> bool {
        self.fake.reserved.contains(&port)
    }
}

/// A FIN after a RST keeps the connection if it lies after the pod's SYN, which counts until the pod
/// has acknowledged anything.
#[test]
fn a_fin_after_a_rst_is_compared_with_the_syn_of_a_pod_that_acknowledged_nothing() {
    let out = |flags| Step::Out {
        pod: 1,
        server: 1,
        port: 0,
        carries: Carries::Tcp(flags),
        from_socket: false,
    };
    let reply = |flags, in_sequence| Step::Reply {
        flow: 0,
        flags,
        in_sequence,
    };
    let steps = [
        out(SYN),
        reply(RST | ACK, true),
        out(0),
        reply(FIN | ACK, true),
        reply(SYN, false),
    ];
    for net in &NETS {
        let mut world = World::new(Host::new(false, true, None), net);
        for step in steps {
            world.take(step);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn random_walks_keep_to_the_model(
        steps in steps(120),
        reserved: bool,
        ethernet: bool,
        large: bool,
        net in 0..2usize,
    ) {
        // Four such packets are carried over.
        let unsegmented = large.then_some(600_000);
        let mut world = World::new(Host::new(reserved, ethernet, unsegmented), &NETS[net]);
        for step in steps {
            world.take(step);
        }
    }
}
