//! The newest events, for the page and `/api/v1/events`.
//!
//! Those of the agent are always here. Those of single flows (begins and ends of mappings, refusals,
//! drops) come while somebody listens to them, and leave the agent's own at least half of the room.

use super::{Event, Headers, Kind, Note, What};
use crate::state_dir::StateDir;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

/// How many are kept.
const MOST: usize = 200;

/// How many of them may be about single flows.
const MOST_OF_FLOWS: usize = 100;

/// Time for which drops that are alike are merged, in nanoseconds.
const MERGED_FOR: u64 = 1_000_000_000;

/// The agent's own events that an earlier agent kept, in the state directory.
pub(crate) const FILE: &str = "events.json";

/// A kept event, or several drops that are alike.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    /// The event; of drops that are alike, the first.
    pub event: Event,
    /// The number of drops that are alike.
    pub count: u64,
    /// True if their sources, and their destinations, differ.
    pub differs: (bool, bool),
    /// True if it is about a single flow.
    is_of_flow: bool,
}

#[derive(Debug, Default)]
struct Kept {
    seen: VecDeque<Seen>,
    /// The kinds that somebody listens to.
    heard: Vec<Kind>,
}

/// The newest events. Clones share them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Recent(Arc<Mutex<Kept>>);

impl Recent {
    /// Returns those that an earlier agent has left, if any.
    pub(crate) fn after(state_dir: &StateDir) -> Self {
        let recent = Self::default();
        // Without the file, or with one of another version, there are none.
        let earlier: Vec<Event> = state_dir.read_json(FILE).unwrap_or_default();
        for event in earlier {
            recent.locked().add(event, false);
        }
        recent
    }

    /// Leaves the agent's own events to the next agent.
    ///
    /// # Errors
    /// Returns an error if the file can't be written.
    pub(crate) fn save(&self, state_dir: &StateDir) -> anyhow::Result<()> {
        let kept = self.locked();
        let own = kept.seen.iter().filter(|it| !it.is_of_flow);
        let own: Vec<Event> = own.map(|it| it.event.clone()).collect();
        drop(kept);
        state_dir.write_compact_json(FILE, &own)
    }

    /// Keeps an event of the agent's own, now.
    pub(crate) fn note(&self, what: What) {
        let event = Event { time: now(), what };
        self.locked().add(event, false);
    }

    /// Keeps what the log says of a refusal, unless the refusals themselves are listened to.
    pub(crate) fn refusal(&self, text: &str) {
        let mut kept = self.locked();
        if kept.heard.contains(&Kind::Refused) {
            return;
        }
        let note = Note {
            text: text.to_owned(),
            is_fault: true,
        };
        let what = What::Finding(note);
        kept.add(Event { time: now(), what }, true);
    }

    /// Keeps an event that is passed on to those who listen, unless the agent has kept it as its own.
    pub(super) fn passed_on(&self, event: &Event) {
        if event.kind().is_of_flow() {
            self.locked().add_of_flow(event);
        }
    }

    /// Sets the kinds that somebody listens to.
    pub(super) fn set_heard(&self, kinds: &[Kind]) {
        let heard = Kind::ALL.into_iter().filter(|kind| kinds.contains(kind));
        self.locked().heard = heard.collect();
    }

    /// Returns the kinds of single flows that somebody listens to, which are kept meanwhile.
    pub(crate) fn heard(&self) -> Vec<Kind> {
        let mut heard = self.locked().heard.clone();
        heard.retain(|kind| kind.is_of_flow());
        heard
    }

    /// Returns the events, the newest first.
    pub(crate) fn newest(&self) -> Vec<Seen> {
        let mut seen: Vec<Seen> = self.locked().seen.iter().rev().cloned().collect();
        // Events of the programs come a moment later than those of the agent.
        seen.sort_by_key(|it| std::cmp::Reverse(it.event.time));
        seen
    }

    fn locked(&self) -> MutexGuard<'_, Kept> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Kept {
    fn add_of_flow(&mut self, event: &Event) {
        let alike = self.seen.iter_mut().rev().find(|it| it.is_alike(event));
        match alike {
            Some(alike) => alike.merge(event),
            None => self.add(event.clone(), true),
        }
    }

    fn add(&mut self, event: Event, is_of_flow: bool) {
        let of_flows = self.seen.iter().filter(|it| it.is_of_flow).count();
        if is_of_flow && of_flows >= MOST_OF_FLOWS {
            let oldest = self.seen.iter().position(|it| it.is_of_flow);
            oldest.and_then(|oldest| self.seen.remove(oldest));
        } else if self.seen.len() >= MOST {
            self.seen.pop_front();
        }
        self.seen.push_back(Seen {
            event,
            count: 1,
            differs: (false, false),
            is_of_flow,
        });
    }
}

impl Seen {
    /// Reports whether an event is one more of these drops, within a second of the first.
    fn is_alike(&self, event: &Event) -> bool {
        let number = |event: &Event| match &event.what {
            What::Refused(dropped) | What::Drop(dropped) => dropped.id,
            _ => None,
        };
        let first = &self.event;
        let number_of_first = number(first);
        number_of_first.is_some()
            && number_of_first == number(event)
            && first.kind() == event.kind()
            && event.time.saturating_sub(first.time) < MERGED_FOR
    }

    fn merge(&mut self, event: &Event) {
        self.count += 1;
        let headers = |event: &Event| match &event.what {
            What::Refused(dropped) | What::Drop(dropped) => Headers::of(dropped),
            _ => None,
        };
        if let (Some(first), Some(this)) = (headers(&self.event), headers(event)) {
            self.differs.0 |= first.source != this.source;
            self.differs.1 |= first.destination != this.destination;
        }
    }
}

/// Returns the time, in nanoseconds since 1970.
pub(super) fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    u64::try_from(since.unwrap_or_default().as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::super::{Dropped, Ends};
    use super::*;
    use crate::datapath::EndedBy;
    use crate::events::Ended;

    fn note(number: usize) -> What {
        What::Config(Note {
            text: number.to_string(),
            is_fault: false,
        })
    }

    fn dropped(time: u64, id: u16) -> Event {
        let dropped = Dropped {
            reason: 1,
            ifindex: 2,
            arriving: false,
            length: 60,
            l2_len: 14,
            packet: Vec::new(),
            id: Some(id),
        };
        let what = What::Drop(dropped);
        Event { time, what }
    }

    fn ended(time: u64) -> Event {
        let end = "10.1.0.10:1".parse().unwrap();
        let ended = Ended {
            ends: Ends {
                protocol: 6,
                pod: end,
                to: end,
                seen_as: end,
            },
            why: EndedBy::AddressGone,
            age: 1,
            packets: [1, 1],
            bytes: [None, None],
        };
        let what = What::End(ended);
        Event { time, what }
    }

    #[test]
    fn a_flood_of_flows_leaves_the_newest_hundred_of_the_agent() {
        let recent = Recent::default();
        for number in 0..300 {
            recent.note(note(number));
        }
        assert_eq!(recent.newest().len(), MOST);
        for time in 0..1_000 {
            recent.passed_on(&ended(time));
        }
        let newest = recent.newest();
        let own: Vec<_> = newest.iter().filter(|it| !it.is_of_flow).collect();
        assert_eq!((newest.len(), own.len()), (200, 100));
        assert_eq!(own[0].event.what, note(299));
        assert_eq!(own[99].event.what, note(200));
        assert_eq!(newest[100].event.time, 999);
        // What the agent has told itself is not kept twice.
        recent.passed_on(&Event {
            time: u64::MAX,
            what: note(0),
        });
        assert_eq!(recent.newest()[0].event.what, note(299));
    }

    #[test]
    fn drops_that_are_alike_are_merged_within_a_second() {
        let recent = Recent::default();
        for (time, id) in [(0, 1), (1, 2), (MERGED_FOR - 1, 1), (MERGED_FOR, 1)] {
            recent.passed_on(&dropped(time, id));
        }
        let newest = recent.newest();
        let counts: Vec<_> = newest.iter().map(|it| (it.event.time, it.count)).collect();
        assert_eq!(counts, [(MERGED_FOR, 1), (1, 1), (0, 2)]);
    }

    #[test]
    fn a_refusal_is_kept_from_the_log_or_as_an_event_and_not_twice() {
        let recent = Recent::default();
        recent.refusal("refused");
        assert!(recent.heard().is_empty());
        recent.set_heard(&[Kind::Config, Kind::Refused]);
        assert_eq!(recent.heard(), [Kind::Refused]);
        recent.refusal("refused");
        assert_eq!(recent.newest().len(), 1);
    }

    #[test]
    fn the_next_agent_has_what_this_one_told() {
        let dir = tempfile::tempdir().unwrap();
        let dir = StateDir::at(dir.path());
        assert_eq!(Recent::after(&dir).newest(), []);
        let recent = Recent::default();
        recent.note(note(1));
        recent.passed_on(&ended(1));
        recent.save(&dir).unwrap();
        let next = Recent::after(&dir).newest();
        assert_eq!(next.len(), 1);
        assert_eq!(next[0].event.what, note(1));
    }
}
