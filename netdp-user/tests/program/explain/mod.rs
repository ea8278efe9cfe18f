//! `netdp explain` says what the programs do: over random states, each packet is explained first and
//! then run, and nothing that was said may differ. Explaining changes no map.

mod contents;
mod packets;
mod random;
mod state;

use crate::build::{Build, SYN};
use crate::node::{Node, V4, ip};
use crate::test_run::{On, Seen, test_run};
use netdp_common::direction::Direction;
use netdp_common::layout::{Action, Counters, DropReason, PolicyValue, PortRange};
use netdp_user::datapath::{Hook, NoLeak, PortMode};
use netdp_user::explain::{At, Explained, Explainer, PacketBytes, Question, Tried, Verdict, Why};
use netdp_user::reconcile::Change;
use netdp_user::uplinks::{Mac, SourceChoice, SourceQuery};
use random::Random;
use state::State;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, TcpListener, UdpSocket};

/// Comparisons in all worlds together.
const COMPARISONS: usize = 100_000;
const SEED: u64 = 271_828;

/// Ports from which mappings get theirs, where they are configured: so few that they are searched
/// completely.
const RANGE: [u16; 4] = [4000, 4001, 4002, 4003];

/// The world whose tables fill up. All its mappings are the programs' own: they count them.
const CROWDED: u64 = 4;

/// A node with two uplinks, and interfaces towards pods.
struct World {
    node: Node,
    state: State,
    random: Random,
    explainer: Explainer,
    counters: Counters,
    number: u64,
    steps: usize,
    /// Sockets on ports that pods have, too.
    _sockets: (UdpSocket, TcpListener),
}

impl World {
    fn new(number: u64, seed: u64) -> Self {
        let narrow = number % 4 == 1;
        let mut node = Node::with(|setup| {
            setup.enable_ipv6 = number % 8 != 5;
            setup.no_leak = match number % 3 {
                0 => NoLeak::Drop,
                1 => NoLeak::Pass,
                _ => NoLeak::AddressOnly,
            };
            if narrow {
                setup.to_ports = vec![PortRange::new(RANGE[0], RANGE[3])];
            }
            setup.port_mode = match number % 8 {
                2 => PortMode::Hash,
                6 => PortMode::Random,
                _ => PortMode::Keep,
            };
            setup.udp_endpoints = number % 8 == 3;
            if number % 8 == 7 {
                (setup.pod_flows, setup.pod_new_flows) = (12, 40);
            }
            setup.secret = [number, seed];
            setup.max_flows = if number == CROWDED { 60 } else { 50_000 };
        });
        let second = node.second_uplink("192.0.2.20".parse().unwrap(), "fd00::20".parse().unwrap());
        let pods = ["pod0", "pod1"].map(|name| {
            let far = format!("{name}far");
            ip(&["link", "add", name, "type", "veth", "peer", "name", &far]);
            nix::net::if_::if_nametoindex(name).unwrap()
        });
        network();
        for addr in ["192.0.2.30", "fd00::30"] {
            node.apply(&Change::AddLocal(addr.parse().unwrap()));
        }
        sources(&mut node, second);
        if number.is_multiple_of(2) {
            for mac in [[0; 6], [2, 0, 0, 0, 0, 2]] {
                node.apply(&Change::AddMac(Mac { link: second, mac }));
            }
        }
        if number % 4 == 2 {
            node.uplink(Some(V4), None);
        }
        // Ages are below this.
        node.at(200_000);
        let state = State::open(
            &node.bpffs(),
            [1, second],
            pods,
            narrow.then_some(RANGE),
            number == CROWDED,
        );
        let udp = UdpSocket::bind("[::]:4004").unwrap();
        let tcp = TcpListener::bind("0.0.0.0:4003").unwrap();
        Self {
            explainer: Explainer::open(&node.bpffs()).unwrap(),
            counters: node.counters(),
            node,
            state,
            random: Random(seed ^ number << 32),
            number,
            steps: 0,
            _sockets: (udp, tcp),
        }
    }

    /// Returns the next random packet, and where it is.
    fn next(&mut self) -> (Vec<u8>, At) {
        let direction =
            self.random
                .pick(&[Direction::Egress, Direction::Egress, Direction::Ingress]);
        let frame = packets::packet(&mut self.random, direction);
        let [near, far] = self.state.pods;
        let at = At {
            direction,
            ifindex: self.random.pick(&self.state.uplinks),
            came_by: match direction {
                Direction::Egress => self.random.pick(&[near, near, near, far, 0, 1]),
                Direction::Ingress => 0,
            },
            // In test runs all packets have one.
            by_socket: true,
        };
        (frame, at)
    }

    /// Changes something at random.
    fn change(&mut self) {
        if self.random.once_in(300) {
            let addr = self.random.pick(&["192.0.2.20", "192.0.2.30", "fd00::30"]);
            let addr: IpAddr = addr.parse().unwrap();
            let is_local = self.node.local_addresses().contains(&addr);
            self.node.apply(&match is_local {
                true => Change::RemoveLocal(addr),
                false => Change::AddLocal(addr),
            });
        }
        let now = self.now();
        self.state.change(&mut self.random, now);
    }

    /// Explains one random packet, runs it, and compares both. Returns what was said; `None` if a
    /// tick of the clock came in between.
    fn step(&mut self) -> Option<Explained> {
        let now = self.now();
        self.steps += 1;
        for _ in 0..self.random.below(3) {
            self.change();
        }
        let (frame, at) = self.next();
        let packet = PacketBytes::ethernet(frame.clone()).unwrap();
        let said = self.explainer.decide(&packet, at).unwrap();
        let hook = match at.direction {
            Direction::Egress => Hook::Egress,
            Direction::Ingress => Hook::Ingress,
        };
        let on = On {
            ifindex: at.ifindex,
            came_by: at.came_by,
        };
        let program = self.node.datapath().program(hook).unwrap();
        let seen = test_run(program, &frame, 0, on);
        let after = self.node.counters();
        let mut counted = after;
        counted.subtract(&self.counters);
        self.counters = after;
        if self.now() != now {
            return None;
        }
        let wrong = compare(&said, &frame, &seen, &counted);
        if let Err(wrong) = wrong {
            let questions: Vec<_> = said.questions.iter().map(|it| format!("{it:?}")).collect();
            panic!(
                "{wrong}: step {} of world {}\n{at:?} of {frame:02x?}\n{}\n{:?} of {:?}, {:02x?}\n{seen:02x?}\n{:?}",
                self.steps,
                self.number,
                questions.join("\n"),
                said.verdict,
                said.tuple,
                said.bytes,
                counted.drops,
            );
        }
        Some(said)
    }

    fn now(&mut self) -> u32 {
        self.explainer.now().unwrap()
    }
}

/// Compares what was said with what was done.
fn compare(
    said: &Explained,
    frame: &[u8],
    seen: &Seen,
    counted: &Counters,
) -> Result<(), &'static str> {
    let dropped = DropReason::ALL
        .iter()
        .find(|it| counted.drops.get(**it) != 0);
    match (said.verdict, seen) {
        (Verdict::Unmodified(why), Seen::Next(bytes)) => {
            if bytes != frame {
                return Err("it was to go on unmodified");
            }
            let why_not = match why {
                Why::Bypassed => counted.egress_bypassed.packets != 1,
                Why::Own => counted.egress_host.packets != 1,
                Why::Reply => counted.egress_replies.packets != 1,
                Why::LetOut => counted.egress_let_out.packets != 1,
                Why::OutOfScope => {
                    counted.egress_bypassed.packets
                        + counted.egress_host.packets
                        + counted.egress_replies.packets
                        + counted.egress_let_out.packets
                        != 0
                }
                Why::NoPrograms => true,
                Why::Arrives => dropped.is_some(),
            };
            if why_not {
                return Err("it passed for another reason");
            }
            Ok(())
        }
        (Verdict::Rewritten(_), Seen::Next(bytes)) => {
            if bytes == frame && said.bytes != frame {
                return Err("it was to be rewritten");
            }
            if counts_on_chance(said) {
                // The port, and the checksums that cover it.
                return match (ends(bytes), ends(&said.bytes)) {
                    (Some(done), Some(told)) if done == told => Ok(()),
                    _ => Err("it was rewritten to another address"),
                };
            }
            if *bytes != said.bytes {
                return Err("it was rewritten otherwise");
            }
            Ok(())
        }
        (Verdict::Held, Seen::Shot) if dropped.is_none() => Ok(()),
        (Verdict::Dropped(reason), Seen::Shot | Seen::Redirected(_)) => {
            if dropped != Some(&reason) {
                return Err("it was dropped for another reason");
            }
            Ok(())
        }
        _ => Err("another verdict"),
    }
}

/// Reports whether the program takes the port at random, or the identification of a datagram.
fn counts_on_chance(said: &Explained) -> bool {
    let begins = |question: &Question| matches!(question, Question::Begins { result: Ok(()), .. });
    let tried = said.ports_tried();
    let own = said.tuple.map(|tuple| tuple.src_id);
    let kept = tried
        .first()
        .is_some_and(|it| it.result == Tried::Free && Some(it.port) == own);
    let is_fragment = said
        .questions
        .iter()
        .any(|it| matches!(it, Question::Fragment { .. }));
    is_fragment || said.questions.iter().any(begins) && !kept
}

/// Returns the addresses of a frame.
fn ends(frame: &[u8]) -> Option<&[u8]> {
    match frame.get(12..14)? {
        [0x08, 0] => frame.get(26..34),
        _ => frame.get(22..54),
    }
}

/// Gives the namespace addresses and routes, and makes it a router.
fn network() {
    for conf in ["ipv4", "ipv6"] {
        let file = format!("/proc/sys/net/{conf}/conf/all/forwarding");
        std::fs::write(file, "1").unwrap();
    }
    for name in ["lo", "up1", "pod0", "pod1", "up1far", "pod0far", "pod1far"] {
        ip(&["link", "set", name, "up"]);
    }
    for (addr, device) in [
        ("198.18.0.1/24", "up1"),
        ("192.0.2.20/32", "up1"),
        ("192.0.2.30/32", "up1"),
        ("172.16.0.1/24", "pod0"),
        ("172.16.1.1/24", "pod1"),
    ] {
        ip(&["addr", "add", addr, "dev", device]);
    }
    for (addr, device) in [
        ("2001:db8:f::1/64", "up1"),
        ("fd00::30/128", "up1"),
        ("fd00:1::1/64", "pod0"),
        ("fd00:2::1/64", "pod1"),
    ] {
        ip(&["addr", "add", addr, "dev", device, "nodad"]);
    }
    for route in [
        "default via 198.18.0.254 dev up1",
        "203.0.113.0/24 via 198.18.0.253 dev up1 src 192.0.2.30",
        "10.2.0.0/16 via 172.16.1.9 dev pod1",
        "default via 2001:db8:f::fe dev up1",
        "2001:db8:1::/48 via 2001:db8:f::fd dev up1 src fd00::30",
    ] {
        let words: Vec<_> = ["route", "add"]
            .into_iter()
            .chain(route.split(' '))
            .collect();
        ip(&words);
    }
    for neighbour in [
        "172.16.0.2 lladdr 02:00:00:00:00:22 dev pod0",
        "fd00:1::2 lladdr 02:00:00:00:00:22 dev pod0",
    ] {
        let words: Vec<_> = ["neigh", "add"]
            .into_iter()
            .chain(neighbour.split(' '))
            .collect();
        ip(&words);
    }
}

/// Configures sources by route, as the agent does.
fn sources(node: &mut Node, via: u32) {
    for (named, net, source) in [
        (true, "192.0.2.30/32", "192.0.2.30"),
        (false, "198.18.0.0/24", "192.0.2.20"),
        (true, "fd00::30/128", "fd00::30"),
        (false, "2001:db8:f::/64", "fd00::20"),
    ] {
        let asked = SourceQuery {
            link: via,
            named,
            net: net.parse().unwrap(),
        };
        let addr = source.parse().unwrap();
        node.apply(&Change::SetSource(asked, SourceChoice { addr, via }));
    }
}

#[test]
fn what_is_explained_is_what_happens() {
    let seed = std::env::var("NETDP_EXPLAIN_SEED").map_or(SEED, |seed| {
        seed.parse().expect("NETDP_EXPLAIN_SEED is a number")
    });
    const WORLDS: usize = 8;
    let mut verdicts = BTreeMap::<String, usize>::new();
    for number in 0..WORLDS {
        let mut world = World::new(number as u64, seed);
        let mut compared = 0;
        while compared < COMPARISONS / WORLDS {
            if let Some(said) = world.step() {
                compared += 1;
                *verdicts.entry(kind(&said)).or_default() += 1;
            }
        }
    }
    let missing: Vec<_> = KINDS
        .iter()
        .filter(|kind| !verdicts.contains_key(**kind))
        .collect();
    assert!(
        missing.is_empty(),
        "never seen: {missing:?} in {verdicts:#?}"
    );
}

/// The verdicts that random states lead to.
const KINDS: [&str; 25] = [
    "Source of None",
    "Source of Some(Whole)",
    "Source of Some(Inner)",
    "Destination of None",
    "Destination of Some(Whole)",
    "Held",
    "Unmodified(Arrives)",
    "Unmodified(Bypassed)",
    "Unmodified(LetOut)",
    "Unmodified(OutOfScope)",
    "Unmodified(Own)",
    "Unmodified(Reply)",
    "Dropped(ExtensionHeader)",
    "Dropped(ForgedSource)",
    "Dropped(FragmentOfDropped)",
    "Dropped(IcmpNoFlow)",
    "Dropped(IpsecPolicy)",
    "Dropped(Malformed)",
    "Dropped(NoFreePort)",
    "Dropped(NoSourceAddress)",
    "Dropped(NodeProtocol)",
    "Dropped(PodLimit)",
    "Dropped(TableFull)",
    "Dropped(TcpNoFlow)",
    "Dropped(UnsupportedProtocol)",
];

/// Returns the kind of a verdict, without its addresses.
fn kind(said: &Explained) -> String {
    match said.verdict {
        Verdict::Rewritten(to) => format!("{:?} of {:?}", to.end, to.part),
        other => format!("{other:?}"),
    }
}

#[test]
fn another_policy_may_be_asked_about() {
    let mut world = World::new(0, SEED);
    let syn = Build::tcp("172.16.0.2:4000", "198.51.100.7:443", SYN);
    let packet = PacketBytes::ip_only(syn.bytes());
    let at = At {
        direction: Direction::Egress,
        ifindex: world.state.uplinks[1],
        came_by: world.state.pods[0],
        by_socket: true,
    };
    let said = world.explainer.decide(&packet, at).unwrap();
    assert!(matches!(said.verdict, Verdict::Rewritten(_)), "{said:?}");
    assert_ne!(said.policy().map(|it| it.rule), Some(7));
    let bypass = PolicyValue {
        action: Action::Bypass as u32,
        rule: 7,
    };
    world.explainer.set_policy(move |_| Some(bypass));
    let said = world.explainer.decide(&packet, at).unwrap();
    assert_eq!(said.verdict, Verdict::Unmodified(Why::Bypassed));
    assert_eq!(said.policy(), Some(bypass));
}

#[test]
fn explaining_changes_no_map() {
    let mut world = World::new(0, SEED);
    for _ in 0..500 {
        world.step();
    }
    let mut maps = BTreeSet::new();
    for hook in [Hook::Egress, Hook::Ingress] {
        maps.extend(contents::maps_of(
            world.node.datapath().program(hook).unwrap(),
        ));
    }
    let before = contents::read(&maps);
    assert!(before["SNAT"].len() > 10, "{}", before["SNAT"].len());
    let mut rewritten = 0;
    for _ in 0..2_000 {
        let (frame, at) = world.next();
        let packet = PacketBytes::ethernet(frame).unwrap();
        let said = world.explainer.decide(&packet, at).unwrap();
        rewritten += usize::from(matches!(said.verdict, Verdict::Rewritten(_)));
    }
    assert!(rewritten > 100, "{rewritten}");
    let after = contents::read(&maps);
    for (name, entries) in &before {
        assert!(*entries == after[name], "{name} has changed");
    }
}
