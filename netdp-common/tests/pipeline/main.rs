//! [`pipeline`](netdp_common::pipeline): what comes before and after the decision about a packet.

mod drops;
mod failures;
mod fragments;
mod parsing;

use netdp_common::direction::Direction;
use testkit::build::{ACK, Build, SYN};
use testkit::fake::{Fake, Frame, Run};

/// A pod, a server and the node of one family: ADDRESS:PORT.
#[derive(Clone, Copy, Debug)]
struct Net {
    pod: &'static str,
    server: &'static str,
    node: &'static str,
}

const BOTH: [Net; 2] = [
    Net {
        pod: "172.16.0.2:4000",
        server: "198.51.100.7:443",
        node: "192.0.2.10:4000",
    },
    Net {
        pod: "[fd00:1::2]:4000",
        server: "[2001:db8::7]:443",
        node: "[fd00::10]:4000",
    },
];

impl Net {
    fn syn(&self) -> Build {
        Build::tcp(self.pod, self.server, SYN)
    }

    fn udp(&self) -> Build {
        Build::udp(self.pod, self.server)
    }

    fn answer(&self) -> Build {
        Build::tcp(self.server, self.node, SYN | ACK)
    }
}

fn out(fake: &Fake, frame: &Frame) -> Run {
    fake.run(frame, Direction::Egress)
}

fn back(fake: &Fake, frame: &Frame) -> Run {
    fake.run(frame, Direction::Ingress)
}
