//! A pod that begins flows as fast as it can does not keep another pod from its own.

use crate::build::{self, SYN};
use crate::common::{Echo, echoes};
use crate::flood::{Flood, Raw, Template};
use crate::good::{Clients, Figures, Old};
use crate::packet::{Packet, Part};
use crate::site::{Control, Site, Subject, Wrongs, both, end, ends};
use anyhow::{Context as _, Result};
use nix::sys::signal::Signal;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use xtask::testbed::UdpEchoServer;

/// Little room, and what netdp has if nothing is said.
const SMALL: &str = "8192";
const DEFAULT: &str = "262144";

/// Packets a second of each family, as many as there is room for within seconds.
const RATE: u32 = 30_000;

/// How long a flood goes on at least, and at most.
const LONG: Duration = Duration::from_secs(3);
const LONGEST: Duration = Duration::from_secs(20);

/// One flood at a time, on what may be a small machine.
static ALONE: Mutex<()> = Mutex::new(());

/// Where the accomplice answers.
const ANSWERED: std::ops::Range<u16> = 5001..5006;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    SynsToOne,
    SynsToMany,
    DatagramsToMany,
    AnsweredDatagrams,
    FirstFragments,
    LaterFragments,
}

impl Kind {
    #[allow(dead_code, reason = "the benchmark goes through all")]
    pub const ALL: [Self; 6] = [
        Self::SynsToOne,
        Self::SynsToMany,
        Self::DatagramsToMany,
        Self::AnsweredDatagrams,
        Self::FirstFragments,
        Self::LaterFragments,
    ];

    /// The packet that is varied. `nobody` answers nothing.
    fn packet(self, pod: IpAddr, nobody: IpAddr, accomplice: IpAddr) -> Packet {
        let (pod, nobody) = ((pod, 1), (nobody, 443));
        match self {
            Self::SynsToOne | Self::SynsToMany => build::tcp(pod, nobody, SYN, (1, 0), b""),
            Self::DatagramsToMany => build::udp(pod, nobody, b"x"),
            Self::AnsweredDatagrams => build::udp(pod, (accomplice, ANSWERED.start), b"x"),
            Self::FirstFragments | Self::LaterFragments => {
                let mut packet = build::udp(pod, nobody, &[0; 64]);
                packet.part = Some(Part {
                    offset: if self == Self::LaterFragments { 72 } else { 0 },
                    more: self == Self::FirstFragments,
                    id: 0x5eed_0000,
                });
                packet
            }
        }
    }

    /// Packet `n`: the beginning of a flow that was not there yet.
    fn vary(self, n: u32, packet: &mut Template) {
        let [_, upper, ..] = n.to_be_bytes();
        let low = u16::try_from(n & 0xffff).unwrap_or(0);
        let port = 1024 + u16::try_from(n % 60_000).unwrap_or(0);
        match self {
            Self::SynsToOne => packet.sport(port),
            Self::SynsToMany | Self::DatagramsToMany => {
                packet.sport(20_000 + u16::from(upper));
                packet.destination(low);
            }
            Self::AnsweredDatagrams => {
                packet.sport(port);
                let to = u16::try_from(n / 60_000).unwrap_or(0);
                packet.dport(ANSWERED.start + to % 5);
            }
            Self::FirstFragments => {
                packet.id(low);
                packet.sport(20_000 + u16::from(upper));
                packet.destination(low);
            }
            Self::LaterFragments => {
                packet.id(low);
                packet.destination(low);
            }
        }
    }

    /// Begins the flood of the third pod, `rate` packets a second in each family.
    pub fn flood(self, site: &Site, rate: u32) -> Result<Flood> {
        let mut templates = Vec::new();
        for nobody in ["10.66.0.0", "fd00:66::"] {
            let nobody: IpAddr = nobody.parse()?;
            let pod = end(site.evil(), nobody, 0)?.ip();
            let accomplice = end(&site.far, nobody, 0)?.ip();
            templates.push(Template::new(&self.packet(pod, nobody, accomplice)));
        }
        let raw = Raw::towards(site.evil(), "10.66.0.0".parse()?)?;
        let vary = move |n, template: &mut Template| self.vary(n, template);
        Ok(Flood::start(raw, templates, rate, vary))
    }

    /// Who answers it.
    pub fn accomplice(self, site: &Site) -> Result<Vec<UdpEchoServer>> {
        if self != Self::AnsweredDatagrams {
            return Ok(Vec::new());
        }
        let ends = ANSWERED.flat_map(|port| ends(&site.far, port));
        ends.map(|at| UdpEchoServer::start(&site.far, at)).collect()
    }
}

/// What becomes of the agent while the flood goes on.
#[derive(Debug, Clone, Copy)]
enum Fate {
    Lives,
    Stops,
    Dies,
}

/// A flood, and how another pod fares.
fn beside(subject: Subject, kind: Kind, room: &str, fate: Fate) -> Result<()> {
    let mut site = Site::start(subject, &["--max-flows", room])?;
    let _echo = Echo::start(&site.other)?;
    let _accomplice = kind.accomplice(&site)?;
    let mut old = Old::open(site.good(), &site.other, &ends(&site.other, 4000))?;
    old.go_on()?;
    if let Some(agent) = site.agent() {
        match fate {
            Fate::Lives => {}
            Fate::Stops => agent.signal(Signal::SIGSTOP)?,
            Fate::Dies => agent.kill9()?,
        }
    }
    let mut wrongs = Wrongs::default();
    let start = Instant::now();
    let flood = kind.flood(&site, RATE)?;
    let clients = Clients::start(site.good(), &echoes(&site.other));
    // More than there is room for.
    let enough = room.parse::<u32>()? / 2 + 10_000;
    let goes_on = || flood.sent() < enough && start.elapsed() < LONGEST;
    while start.elapsed() < LONG || goes_on() {
        let result = old.go_on();
        let broken = result.is_err();
        wrongs.note("during the flood", result);
        if broken {
            break;
        }
        std::thread::sleep(Duration::from_millis(200));
    }
    let attempts = clients.end()?;
    let sent = flood.end()?;
    let figures = Figures::of(&attempts);
    eprintln!("{subject:?} {kind:?} room {room} agent {fate:?}: {sent} x 2 sent, {figures:?}");
    wrongs.note("new flows", figures.good());
    if let (Fate::Stops, Some(agent)) = (fate, site.agent()) {
        agent.signal(Signal::SIGCONT)?;
    }
    wrongs.note("after the flood", old.go_on());
    wrongs
        .none()
        .with_context(|| format!("{kind:?}, room for {room}, the agent {fate:?}"))
}

fn each(kind: Kind) -> Result<()> {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    // Connection tracking had room for these.
    both(Control::Holds, |subject| {
        let mut wrongs = Wrongs::default();
        for (room, fate) in [
            (SMALL, Fate::Lives),
            (SMALL, Fate::Stops),
            (DEFAULT, Fate::Dies),
        ] {
            wrongs.note("", beside(subject, kind, room, fate));
            if subject == Subject::IpMasqAgent {
                break;
            }
        }
        wrongs.none()
    })
}

#[test]
fn syns_to_one_port_leave_other_pods_alone() -> Result<()> {
    each(Kind::SynsToOne)
}

#[test]
fn syns_to_many_hosts_leave_other_pods_alone() -> Result<()> {
    each(Kind::SynsToMany)
}

#[test]
fn datagrams_to_many_hosts_leave_other_pods_alone() -> Result<()> {
    each(Kind::DatagramsToMany)
}

#[test]
fn answered_datagrams_leave_other_pods_alone() -> Result<()> {
    each(Kind::AnsweredDatagrams)
}

#[test]
fn first_fragments_leave_other_pods_alone() -> Result<()> {
    each(Kind::FirstFragments)
}

#[test]
fn later_fragments_leave_other_pods_alone() -> Result<()> {
    each(Kind::LaterFragments)
}
