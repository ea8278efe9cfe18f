//! Random walks of the model against the fake.

use netdp_common::env::Clock as _;
use netdp_common::flow::{Carried, Timeouts, left};
use netdp_common::layout::{Action, PortRange, SETTING_PORTS};
use proptest::prelude::*;
use testkit::build::Build;
use testkit::fake::{Fake, Seen, addr};
use testkit::model::{Halves, NETS, Outcome, RANGE, Subject, World, steps};

struct Host {
    fake: Fake,
}

impl Host {
    fn new(reserved: bool, ethernet: bool) -> Self {
        let mut fake = Fake::new();
        if !ethernet {
            fake.uplink.l2_len = 0;
        }
        fake.settings.flags |= SETTING_PORTS;
        fake.settings.ports[0] = PortRange::new(RANGE[0], RANGE[2]);
        if reserved {
            fake.reserved.insert(RANGE[1]);
        }
        Self { fake }
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
        outcome(self.fake.out(packet))
    }

    fn back(&mut self, packet: &Build) -> Outcome {
        outcome(self.fake.back(packet))
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

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn random_walks_keep_to_the_model(
        steps in steps(120),
        reserved: bool,
        ethernet: bool,
        net in 0..2usize,
    ) {
        let mut world = World::new(Host::new(reserved, ethernet), &NETS[net]);
        for step in steps {
            world.take(step);
        }
    }
}
