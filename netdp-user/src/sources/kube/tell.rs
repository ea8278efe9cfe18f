//! Throttled log lines about the API, common to all parts of the agent that query it: one when an
//! error begins, one when all errors are over, and a reminder each hour in between.

use super::follow::{Kind, Trouble};
use super::view::Part;
use crate::time::pretty;
use log::Level;
use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Minimum interval between two log lines about new errors of one kind: an API that comes and goes
/// must not fill the log.
const QUIET: Duration = Duration::from_secs(60);

/// Interval of reminders about a lasting error.
const REMIND: Duration = Duration::from_secs(3600);

/// Part of the agent that uses the API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Asker {
    /// The client: reads the kubeconfig or the ServiceAccount.
    Client,
    /// A watch of objects.
    Watch(Part),
    /// The writer of the Lease.
    Lease,
    /// The writer of Events.
    Events,
}

impl Asker {
    /// Reports whether the configuration depends on this part.
    const fn follows(self) -> bool {
        matches!(self, Self::Client | Self::Watch(_))
    }
}

/// A logged error of one kind.
#[derive(Debug)]
struct Said {
    /// The part that the log line named.
    asker: Asker,
    since: Instant,
    /// Time of the last log line about it.
    at: Instant,
    /// Time since when that part has had no error, while others still have.
    cleared: Option<Instant>,
}

/// A pending log line about the end of a logged error.
#[derive(Debug)]
struct Owed {
    since: Instant,
    /// Set if the configuration was affected.
    follows: bool,
}

/// Current errors, and those that were logged.
#[derive(Debug, Default)]
struct State {
    troubles: BTreeMap<Asker, Trouble>,
    said: BTreeMap<Kind, Said>,
    /// Time of the last log line about a new error.
    began: BTreeMap<Kind, Instant>,
    owed: Option<Owed>,
    /// Set once all followed objects have been received.
    complete: bool,
    /// Set once it was logged that the API is followed.
    followed: bool,
}

type Line = (Level, String);

impl State {
    fn trouble(&mut self, asker: Asker, trouble: &Trouble, now: Instant) -> Option<Line> {
        self.troubles.insert(asker, trouble.clone());
        self.forget();
        let kind = trouble.kind;
        let follows = asker.follows() || kind == Kind::Away;
        let words = words(asker, trouble);
        let Some(said) = self.said.get_mut(&kind) else {
            if self.began.get(&kind).is_some_and(|at| now < *at + QUIET) {
                return None;
            }
            self.began.insert(kind, now);
            let (since, at, cleared) = (now, now, None);
            let said = Said {
                asker,
                since,
                at,
                cleared,
            };
            self.said.insert(kind, said);
            self.owe(follows, now);
            return Some((Level::Warn, words));
        };
        if asker == said.asker {
            said.cleared = None;
        }
        // An unavailable API is unavailable to all parts. An operation refused to the Lease may be
        // granted to watches.
        let is_graver = asker.follows() && !said.asker.follows() && kind != Kind::Away;
        let is_left = said.cleared.is_some_and(|since| now >= since + QUIET);
        if is_graver || is_left {
            (said.asker, said.at, said.cleared) = (asker, now, None);
            self.owe(follows, now);
            return Some((Level::Warn, words));
        }
        if now < said.at + REMIND {
            return None;
        }
        said.at = now;
        let lasts = pretty(now.duration_since(said.since).as_secs());
        Some((Level::Warn, format!("still, after {lasts}: {words}")))
    }

    fn well(&mut self, asker: Asker, now: Instant) -> Option<Line> {
        self.troubles.remove(&asker);
        for said in self.said.values_mut() {
            if said.asker == asker {
                said.cleared.get_or_insert(now);
            }
        }
        self.forget();
        let follows = self.owed.as_ref()?.follows;
        // Until everything has been received, the success of a single watch is not logged.
        if !self.troubles.is_empty() || (follows && !self.complete) {
            return None;
        }
        let lasted = pretty(now.duration_since(self.owed.take()?.since).as_secs());
        let does = if follows { "following" } else { "writing to" };
        let again = if follows && !self.followed {
            String::new()
        } else {
            format!(" again, after {lasted}")
        };
        self.followed |= follows;
        Some((Level::Info, format!("{does} the Kubernetes API{again}")))
    }

    /// Records that all followed objects have been received.
    fn heard_all(&mut self) -> Option<Line> {
        self.complete = true;
        if self.followed || self.troubles.keys().any(|asker| asker.follows()) {
            return None;
        }
        self.followed = true;
        self.owed.take_if(|owed| owed.follows);
        Some((Level::Info, "following the Kubernetes API".into()))
    }

    /// Removes logged errors of kinds that are over.
    fn forget(&mut self) {
        let troubles = &self.troubles;
        let is_there = |kind: Kind| troubles.values().any(|trouble| trouble.kind == kind);
        self.said.retain(|kind, _| is_there(*kind));
    }

    fn owe(&mut self, follows: bool, now: Instant) {
        let owed = self.owed.get_or_insert(Owed {
            since: now,
            follows,
        });
        owed.follows |= follows;
    }
}

fn words(asker: Asker, trouble: &Trouble) -> String {
    let text = &trouble.text;
    if asker.follows() {
        format!("cannot follow the Kubernetes API: {text}")
    } else if trouble.kind == Kind::Away {
        format!("the Kubernetes API does not answer: {text}")
    } else {
        format!("{text}; masquerading goes on")
    }
}

/// Log throttle common to all parts of the agent.
#[derive(Debug, Default)]
pub(crate) struct Teller(Mutex<State>);

impl Teller {
    /// Records an error; called on each failed attempt.
    pub(crate) fn trouble(&self, asker: Asker, trouble: &Trouble) {
        self.tell(|state| state.trouble(asker, trouble, Instant::now()));
        log::debug!("{asker:?}: {}", trouble.text);
    }

    /// Records that a request of this part succeeded.
    pub(crate) fn well(&self, asker: Asker) {
        self.tell(|state| state.well(asker, Instant::now()));
    }

    /// Records that all followed objects have been received.
    pub(crate) fn heard_all(&self) {
        self.tell(State::heard_all);
    }

    fn tell(&self, line: impl FnOnce(&mut State) -> Option<Line>) {
        let line = line(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
        if let Some((level, line)) = line {
            log::log!(level, "{line}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAIN: Asker = Asker::Watch(Part::Main);
    const NODE: Asker = Asker::Watch(Part::Node);

    /// A state that has received everything, and its log line at a given second.
    struct Clock(State, Instant);

    impl Clock {
        fn new() -> Self {
            let mut state = State::default();
            assert!(state.heard_all().is_some());
            Self(state, Instant::now())
        }

        fn bad(&mut self, second: u64, asker: Asker, kind: Kind, text: &str) -> Option<String> {
            let trouble = Trouble::of_kind(kind, text);
            let now = self.1 + Duration::from_secs(second);
            self.0.trouble(asker, &trouble, now).map(|it| it.1)
        }

        fn well(&mut self, second: u64, asker: Asker) -> Option<String> {
            let now = self.1 + Duration::from_secs(second);
            self.0.well(asker, now).map(|it| it.1)
        }
    }

    #[test]
    fn an_api_that_is_away_is_told_once_whoever_asks_and_in_whatever_words() {
        let mut clock = Clock::new();
        let first = clock
            .bad(0, Asker::Lease, Kind::Away, "the Lease: cut")
            .unwrap();
        assert_eq!(first, "the Kubernetes API does not answer: the Lease: cut");
        for second in 1..3600 {
            for asker in [MAIN, NODE, Asker::Lease, Asker::Events] {
                let words = if second % 2 == 0 { "cut" } else { "refused" };
                assert_eq!(clock.bad(second, asker, Kind::Away, words), None);
            }
        }
        let again = clock.bad(3600, NODE, Kind::Away, "cut").unwrap();
        assert!(again.starts_with("still, after 1h0m: "), "{again}");
        for asker in [MAIN, NODE, Asker::Events] {
            assert_eq!(clock.well(3700, asker), None);
        }
        let over = clock.well(3700, Asker::Lease).unwrap();
        assert_eq!(over, "following the Kubernetes API again, after 1h1m");
        assert_eq!(clock.well(3701, MAIN), None);
    }

    #[test]
    fn what_is_refused_to_watches_is_told_though_the_lease_was_refused_first() {
        let mut clock = Clock::new();
        let first = clock
            .bad(0, Asker::Lease, Kind::Refused, "the Lease: no")
            .unwrap();
        assert_eq!(first, "the Lease: no; masquerading goes on");
        let second = clock.bad(1, MAIN, Kind::Refused, "cannot watch").unwrap();
        assert!(
            second.ends_with("follow the Kubernetes API: cannot watch"),
            "{second}"
        );
        for second in 2..100 {
            assert_eq!(clock.bad(second, MAIN, Kind::Refused, "cannot list"), None);
            assert_eq!(clock.bad(second, NODE, Kind::Refused, "nodes"), None);
            assert_eq!(clock.bad(second, Asker::Lease, Kind::Refused, "no"), None);
        }
        assert_eq!(clock.well(100, MAIN), None);
        assert_eq!(clock.well(100, Asker::Lease), None);
        assert!(clock.well(101, NODE).is_some());
    }

    #[test]
    fn what_is_left_when_others_are_well_is_told() {
        let mut clock = Clock::new();
        assert!(clock.bad(0, MAIN, Kind::Refused, "maps").is_some());
        assert_eq!(clock.bad(0, Asker::Lease, Kind::Refused, "the Lease"), None);
        assert_eq!(clock.well(5, MAIN), None);
        assert_eq!(
            clock.bad(10, Asker::Lease, Kind::Refused, "the Lease"),
            None
        );
        let left = clock
            .bad(70, Asker::Lease, Kind::Refused, "the Lease")
            .unwrap();
        assert_eq!(left, "the Lease; masquerading goes on");
        assert_eq!(
            clock.bad(80, Asker::Lease, Kind::Refused, "the Lease"),
            None
        );
        assert!(clock.well(90, Asker::Lease).is_some());
    }

    #[test]
    fn an_api_that_comes_and_goes_is_told_once_a_minute() {
        let mut clock = Clock::new();
        let mut lines = 0;
        for second in (0..600).step_by(4) {
            lines += usize::from(clock.bad(second, MAIN, Kind::Away, "cut").is_some());
            lines += usize::from(clock.well(second + 2, MAIN).is_some());
        }
        assert_eq!(lines, 20);
    }

    #[test]
    fn an_end_is_told_though_other_trouble_began_that_was_not() {
        let mut clock = Clock::new();
        assert!(clock.bad(0, MAIN, Kind::Refused, "no").is_some());
        assert!(clock.well(1, MAIN).is_some());
        assert!(clock.bad(2, MAIN, Kind::Away, "cut").is_some());
        // Too soon after the last line of its kind.
        assert_eq!(clock.bad(3, MAIN, Kind::Refused, "no"), None);
        let over = clock.well(4, MAIN);
        assert_eq!(
            over.unwrap(),
            "following the Kubernetes API again, after 2s"
        );
    }

    #[test]
    fn at_the_start_all_watches_have_to_be_well() {
        let mut state = State::default();
        let now = Instant::now();
        let trouble = Trouble::of_kind(Kind::Away, "cut");
        assert!(state.trouble(MAIN, &trouble, now).is_some());
        assert_eq!(state.well(MAIN, now), None);
        let said = state.heard_all().unwrap();
        assert_eq!(said, (Level::Info, "following the Kubernetes API".into()));
        assert_eq!(state.well(NODE, now), None);
    }
}
