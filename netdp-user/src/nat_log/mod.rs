//! The NAT log: which pod had which address and port on the wire, and when (docs/nat-log.md).
//!
//! [`crate::ends`] tells [`recorder`] of mappings, which tells each one's begin and end once to
//! [`queue`]; [`writer`] writes them on a thread of its own, to a file, a socket or an IPFIX collector.
//! [`state`] is what the next agent needs. Nothing here delays a sweep or the agent's loop.

mod counters;
mod file;
mod ipfix;
mod notices;
mod queue;
mod record;
mod recorder;
mod sink;
mod socket;
mod state;
mod target;
mod writer;

use crate::datapath::{Maps, Watch, lock};
use crate::ends::SharedEnds;
use crate::machine;
use crate::pods::{PodNameOptions, PodNames};
use crate::state_dir::StateDir;
use crate::time::now_milliseconds as now;
use anyhow::{Context as _, Result};
use netdp_common::flow::ticks32;
use queue::{Event, Gap, Queue};
use sink::Sink;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use writer::{NameCache, Writer};

pub(crate) use counters::Counters;
pub(crate) use file::{Rotation, reader, rotated};
pub(crate) use notices::Notices;
pub(crate) use queue::Numbered;
pub(crate) use record::{Kind, Record, text, time};
pub(crate) use recorder::{Recorder, number};
pub(crate) use state::{Clock, FILE, Saved, note_off};
pub(crate) use target::Target;

/// Milliseconds before the last record of a log without state from which on records may be missing: longer
/// than the interval of passes.
pub(crate) const UNSAVED: u64 = 300_000;

/// Numbers that a killed agent may have used since it last saved the next one.
const UNSAVED_NUMBERS: u64 = 1_000_000;

/// Time for which the agent's end waits for the log.
const PATIENCE: Duration = Duration::from_secs(4);

/// Options of the NAT log.
#[derive(Debug, Clone)]
pub struct NatLogOptions {
    /// The destination of the log.
    pub(crate) target: Target,
    /// True to record destinations.
    pub(crate) destinations: bool,
    /// Interval at which living mappings are recorded.
    pub(crate) alive: Duration,
    /// The rotation of a file.
    pub(crate) rotation: Rotation,
}

/// The running log.
pub(crate) struct NatLog {
    queue: Arc<Queue>,
    /// What the collector is told of refusals, until it is taken.
    notices: Option<Notices>,
    thread: Option<JoinHandle<()>>,
}

impl NatLog {
    /// Starts the log over the maps pinned below `bpffs`. It is told of mappings by `ends`.
    ///
    /// # Errors
    /// Returns an error if the maps can't be read, another user could replace the log's file, or the
    /// system allows no thread.
    pub(crate) fn start(
        options: &NatLogOptions,
        bpffs: &Path,
        state_dir: &StateDir,
        pods: &PodNameOptions,
        ends: &SharedEnds,
    ) -> Result<Self> {
        options.target.check()?;
        let maps = Maps::open(bpffs)?;
        let (ticks, at) = (maps.ticks()?, now());
        let fresh = Saved {
            schema: Saved::SCHEMA,
            target: options.target.to_string(),
            boot: machine::boot_id()?,
            maps: maps.counts_id()?,
            clock: Clock::at(ticks, at),
            since: None,
            complete: at,
            next: 0,
            lost: lock(ends).lost(),
            is_clean: false,
            was_off: false,
            unread_since: None,
        };
        let last = options.target.file().and_then(file::last);
        let (state, gaps) = after(Saved::read(state_dir), last, fresh, ticks);
        let queue = Arc::new(Queue::default());
        let watch = Watch {
            since: state.since,
            alive: ticks32(options.alive.as_secs()),
        };
        let recorder = Arc::new(Mutex::new(Recorder::new(
            Arc::clone(&queue),
            state.clock,
            (watch, state.complete),
            maps.capacity()?,
        )));
        lock(ends).tell_log(Arc::clone(&recorder), state.lost);
        let node = machine::name();
        let notices = match &options.target {
            Target::Ipfix(to) => {
                let (destinations, limits) = (options.destinations, maps.limits()?);
                Some(Notices::new(*to, destinations, &node, bpffs, limits)?)
            }
            Target::File(_) | Target::Socket(_) => None,
        };
        let sink = match &options.target {
            Target::File(path) => {
                file::tidy(path.clone(), options.rotation.keep);
                Sink::File(file::LogFile::new(path.clone(), options.rotation))
            }
            Target::Socket(path) => Sink::Socket(socket::Socket::new(path.clone())),
            Target::Ipfix(to) => {
                let domain = ipfix::domain(&node);
                Sink::Ipfix(ipfix::Ipfix::new(*to, options.destinations, domain))
            }
        };
        let stored_until = state.known_until();
        let writer = Writer {
            queue: Arc::clone(&queue),
            recorder,
            ends: Arc::clone(ends),
            sink,
            state,
            state_dir: state_dir.clone(),
            stored_until,
            names: NameCache::new(
                pods.cni_dir.clone(),
                state_dir.clone(),
                pods.source == PodNames::Off,
            ),
            node,
            policy: None,
            with_destinations: options.destinations,
            saved_at: None,
        };
        mark_running(state_dir, &writer.state);
        let thread = std::thread::Builder::new()
            .name("netdp-nat-log".into())
            .spawn(move || writer.run(gaps))
            .context("starting the thread that writes the NAT log")?;
        Ok(Self {
            queue,
            notices,
            thread: Some(thread),
        })
    }

    /// Takes what is to be told of refused packets, if there is a collector for that.
    pub(crate) const fn take_notices(&mut self) -> Option<Notices> {
        self.notices.take()
    }

    /// Returns the counters of records and losses, for metrics.
    pub(crate) fn counters(&self) -> Arc<Counters> {
        Arc::clone(&self.queue.counters)
    }

    /// Records that a policy with this hash is in force.
    pub(crate) fn policy(&self, hash: &str) {
        // Where there is no room, the next records have its hash.
        let event = Event::Policy(hash.to_owned(), now());
        self.queue.push(std::iter::once(event));
    }

    /// Writes what is left. To be called once no sweep runs any more. `detaches`: the maps go, and all
    /// mappings with them.
    pub(crate) fn close(mut self, detaches: bool) {
        if detaches {
            let at = now();
            self.queue.add_gap(Gap {
                n: None,
                from: at,
                until: at,
                why: "detached",
            });
        }
        self.queue.close();
        let end = Instant::now() + PATIENCE;
        while let Some(thread) = &self.thread
            && !thread.is_finished()
        {
            if Instant::now() > end {
                log::warn!(
                    "the NAT log was not written to its end; the next agent records the gap"
                );
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        if let Some(thread) = self.thread.take() {
            // A panic there has been printed.
            let _ = thread.join();
        }
        let counters = &self.queue.counters;
        let records: u64 = counters.records().map(|(_, n)| n).sum();
        let lost: u64 = counters.lost().map(|(_, n)| n).sum();
        log::info!("the NAT log ends: {records} records of this agent, {lost} lost");
    }
}

/// Saves that an agent runs, so that the next one knows if this one is killed before it has written
/// anything.
fn mark_running(state_dir: &StateDir, state: &Saved) {
    let mut saved = Saved::read(state_dir).unwrap_or_else(|| state.clone());
    saved.is_clean = false;
    if let Err(err) = saved.save(state_dir) {
        log::warn!("{err:#}");
    }
}

/// Returns the state with which a log goes on, and what is missing from it. `last`: number, boot and
/// time of the last record in its file.
fn after(
    saved: Option<Saved>,
    last: Option<(u64, String, u64)>,
    fresh: Saved,
    ticks: u32,
) -> (Saved, Vec<Gap>) {
    let until = fresh.complete;
    let gap = |from: u64, why| Gap {
        n: None,
        from: from.min(until),
        until,
        why,
    };
    let (saved, elsewhere): (Option<_>, Option<_>) = match saved {
        Some(saved) if saved.target == fresh.target => (Some(saved), None),
        elsewhere => (None, elsewhere),
    };
    let Some(saved) = saved else {
        let Some((number, boot, time)) = last else {
            // What another log has not told yet, this one does not know.
            let moved = elsewhere.map(|saved| gap(saved.known_until(), "target"));
            return (fresh, moved.into_iter().collect());
        };
        let why = if boot == fresh.boot {
            "state_lost"
        } else {
            "reboot"
        };
        let state = Saved {
            next: number + 1,
            ..fresh
        };
        return (state, vec![gap(time.saturating_sub(UNSAVED), why)]);
    };
    let skipped = if saved.is_clean { 0 } else { UNSAVED_NUMBERS };
    let next = match last {
        Some((number, ..)) => (number + 1).max(if saved.is_clean { saved.next } else { 0 }),
        None => saved.next + skipped,
    };
    let known = saved.known_until();
    if saved.boot != fresh.boot || saved.maps != fresh.maps {
        let why = if saved.boot == fresh.boot {
            "detached"
        } else {
            "reboot"
        };
        return (Saved { next, ..fresh }, vec![gap(known, why)]);
    }
    let why = match (saved.was_off, saved.is_clean, saved.unread_since) {
        (true, ..) => Some("off"),
        (false, false, _) => Some("killed"),
        (false, true, Some(_)) => Some("collector"),
        (false, true, None) => None,
    };
    let state = Saved {
        clock: saved.clock.or_at(ticks, until),
        since: saved.since,
        // Without a log, what was lost is in that gap.
        lost: if saved.was_off {
            fresh.lost
        } else {
            saved.lost
        },
        // Until the first pass.
        complete: saved.complete,
        unread_since: saved.unread_since,
        next,
        ..fresh
    };
    (state, why.map(|why| gap(known, why)).into_iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(boot: &str, maps: u32, complete: u64) -> Saved {
        Saved {
            schema: Saved::SCHEMA,
            target: "/x".into(),
            boot: boot.into(),
            maps,
            clock: Clock::at(1_000, 60_000),
            since: None,
            complete,
            next: 7,
            lost: 0,
            is_clean: false,
            was_off: false,
            unread_since: None,
        }
    }

    /// Returns the reason and the begin of the gap, and the number of the next record.
    fn told(
        saved: Option<Saved>,
        last: Option<(u64, &str, u64)>,
    ) -> (Option<(&'static str, u64)>, u64) {
        let last = last.map(|(number, boot, time)| (number, boot.to_owned(), time));
        let fresh = Saved {
            next: 0,
            ..state("b", 1, 1_000_000)
        };
        let (state, gaps) = after(saved, last, fresh, 15_007);
        assert!(gaps.iter().all(|gap| gap.until == 1_000_000));
        let gap = gaps.first().map(|gap| (gap.why, gap.from));
        (gap, state.next)
    }

    #[test]
    fn a_start_says_what_is_missing() {
        assert_eq!(told(None, None), (None, 0), "the first");
        let clean = Saved {
            is_clean: true,
            since: Some(1_000),
            ..state("b", 1, 70_000)
        };
        assert_eq!(told(Some(clean.clone()), Some((6, "b", 0))), (None, 7));
        let killed = Saved {
            is_clean: false,
            ..clean.clone()
        };
        assert_eq!(
            told(Some(killed.clone()), Some((9, "b", 0))),
            (Some(("killed", 60_000)), 10),
            "from the last pass on"
        );
        let unread = Saved {
            unread_since: Some(50_000),
            ..clean.clone()
        };
        let expected = (Some(("collector", 50_000)), 10);
        assert_eq!(told(Some(unread), Some((9, "b", 0))), expected);
        let (gap, next) = told(Some(killed), None);
        assert_eq!((gap, next), (Some(("killed", 60_000)), 7 + UNSAVED_NUMBERS));
        for (other, why) in [
            (state("a", 1, 70_000), "reboot"),
            (state("b", 2, 70_000), "detached"),
        ] {
            assert_eq!(told(Some(other), Some((6, "b", 0))).0, Some((why, 70_000)));
        }
        let off = Saved {
            was_off: true,
            ..clean
        };
        assert_eq!(told(Some(off.clone()), None).0, Some(("off", 60_000)));
        for (was_off, lost) in [(true, 9), (false, 3)] {
            let saved = Saved {
                was_off,
                lost: 3,
                ..off.clone()
            };
            let fresh = Saved {
                lost: 9,
                ..state("b", 1, 1_000_000)
            };
            let (next, _) = after(Some(saved), None, fresh, 15_007);
            assert_eq!(next.lost, lost, "the gap has what was lost without a log");
        }
        assert_eq!(
            told(None, Some((6, "a", 900_000))),
            (Some(("reboot", 600_000)), 7),
            "the state is lost with the boot"
        );
        let elsewhere = Saved {
            target: "/y".into(),
            ..state("b", 1, 70_000)
        };
        let moved = Some(("target", 70_000));
        assert_eq!(told(Some(elsewhere), None), (moved, 0), "another log");
    }
}
