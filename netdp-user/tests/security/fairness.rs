//! A pod that opens flows as fast as it can does not prevent another pod from opening its own.

use crate::common::{Echo, echoes};
use crate::good::{Clients, Figures, Old};
use crate::kinds::Kind;
use crate::site::{Control, Site, Subject, Wrongs, both, ends};
use anyhow::{Context as _, Result};
use nix::sys::signal::Signal;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A small table size, and netdp's default.
const SMALL: &str = "8192";
const DEFAULT: &str = "262144";

/// Packets per second of each family: enough to fill the tables within seconds.
const RATE: u32 = 30_000;

/// Maximum time for a flood to fill the tables, after which it continues.
const LONGEST: Duration = Duration::from_secs(15);
const LONG: Duration = Duration::from_secs(3);

/// Interval between two requests of the old connections.
const PAUSE: Duration = Duration::from_millis(200);

/// Serialises the floods, since the machine may be small.
static ALONE: Mutex<()> = Mutex::new(());

/// Treatment of the agent during the flood.
#[derive(Debug, Clone, Copy)]
enum Fate {
    Lives,
    Stops,
    Dies,
}

/// Runs a flood and checks the success of another pod.
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
    // More than the tables hold, and some time after that.
    let enough = room.parse::<u32>()? / 2 + 10_000;
    let mut end = None;
    while end.is_none_or(|end| Instant::now() < end) {
        if end.is_none() && (flood.sent() >= enough || start.elapsed() > LONGEST) {
            end = Some(Instant::now() + LONG);
        }
        let result = old.go_on();
        let broken = result.is_err();
        wrongs.note("during the flood", result);
        if broken {
            break;
        }
        std::thread::sleep(PAUSE);
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
