//! Throttled log lines about the API, common to all parts of the agent that query it: one when an
//! error begins, one when all errors are over, and a reminder each hour in between.

use super::api_error::{ApiError, ApiErrorKind};
use super::watch_id::WatchId;
use crate::codes::Code;
use crate::time::{self, pretty};
use log::Level;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Minimum interval between two log lines about new errors of one kind: an API that comes and goes
/// must not fill the log.
const MIN_INTERVAL: Duration = Duration::from_secs(60);

/// Interval of reminders about a lasting error.
const REMINDER_INTERVAL: Duration = Duration::from_secs(3600);

/// Part of the agent that uses the API.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum ApiUser {
    /// The client: reads the kubeconfig or the ServiceAccount.
    Client,
    /// A watch of objects.
    Watch(WatchId),
    /// The writer of the Lease.
    Lease,
    /// The writer of Events.
    Events,
}

impl ApiUser {
    /// Reports whether the configuration depends on this part.
    const fn follows(self) -> bool {
        matches!(self, Self::Client | Self::Watch(_))
    }
}

/// A logged error of one kind.
#[derive(Debug)]
struct LoggedError {
    /// The part that the log line named.
    user: ApiUser,
    since: Instant,
    /// Time of the last log line about it.
    at: Instant,
    /// Time since when that part has had no error, while others still have.
    cleared: Option<Instant>,
}

/// A pending log line about the end of a logged error.
#[derive(Debug)]
struct PendingRecovery {
    since: Instant,
    /// Set if the configuration was affected.
    follows: bool,
}

/// Current errors, and those that were logged.
#[derive(Debug, Default)]
struct State {
    errors: BTreeMap<ApiUser, ApiError>,
    logged: BTreeMap<ApiErrorKind, LoggedError>,
    /// Time of the last log line about a new error.
    began: BTreeMap<ApiErrorKind, Instant>,
    pending: Option<PendingRecovery>,
    /// Set once all followed objects have been received.
    complete: bool,
    /// Set once it was logged that the API is followed.
    followed: bool,
}

type Line = (Level, String);

impl State {
    fn record_error(&mut self, user: ApiUser, error: &ApiError, now: Instant) -> Option<Line> {
        self.errors.insert(user, error.clone());
        self.remove_ended();
        let kind = error.kind;
        let follows = user.follows() || kind == ApiErrorKind::Unavailable;
        let text = describe(user, error);
        let Some(logged) = self.logged.get_mut(&kind) else {
            if self
                .began
                .get(&kind)
                .is_some_and(|at| now < *at + MIN_INTERVAL)
            {
                return None;
            }
            self.began.insert(kind, now);
            let (since, at, cleared) = (now, now, None);
            let logged = LoggedError {
                user,
                since,
                at,
                cleared,
            };
            self.logged.insert(kind, logged);
            self.expect_recovery(follows, now);
            return Some((Level::Warn, text));
        };
        if user == logged.user {
            logged.cleared = None;
        }
        // An unavailable API is unavailable to all parts. An operation refused to the Lease may be
        // granted to watches.
        let affects_more =
            user.follows() && !logged.user.follows() && kind != ApiErrorKind::Unavailable;
        let remains = logged
            .cleared
            .is_some_and(|since| now >= since + MIN_INTERVAL);
        if affects_more || remains {
            (logged.user, logged.at, logged.cleared) = (user, now, None);
            self.expect_recovery(follows, now);
            return Some((Level::Warn, text));
        }
        if now < logged.at + REMINDER_INTERVAL {
            return None;
        }
        logged.at = now;
        let lasts = pretty(now.duration_since(logged.since).as_secs());
        Some((Level::Warn, format!("still, after {lasts}: {text}")))
    }

    fn record_success(&mut self, user: ApiUser, now: Instant) -> Option<Line> {
        self.errors.remove(&user);
        for logged in self.logged.values_mut() {
            if logged.user == user {
                logged.cleared.get_or_insert(now);
            }
        }
        self.remove_ended();
        let follows = self.pending.as_ref()?.follows;
        // Until everything has been received, the success of a single watch is not logged.
        if !self.errors.is_empty() || (follows && !self.complete) {
            return None;
        }
        let lasted = pretty(now.duration_since(self.pending.take()?.since).as_secs());
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
    fn record_sync(&mut self) -> Option<Line> {
        self.complete = true;
        if self.followed || self.errors.keys().any(|user| user.follows()) {
            return None;
        }
        self.followed = true;
        self.pending.take_if(|pending| pending.follows);
        Some((Level::Info, "following the Kubernetes API".into()))
    }

    /// Removes logged errors of kinds that are over.
    fn remove_ended(&mut self) {
        let errors = &self.errors;
        let is_there = |kind: ApiErrorKind| errors.values().any(|error| error.kind == kind);
        self.logged.retain(|kind, _| is_there(*kind));
    }

    fn expect_recovery(&mut self, follows: bool, now: Instant) {
        let pending = self.pending.get_or_insert(PendingRecovery {
            since: now,
            follows,
        });
        pending.follows |= follows;
    }
}

fn describe(user: ApiUser, error: &ApiError) -> String {
    let text = &error.text;
    if user.follows() {
        format!("cannot follow the Kubernetes API: {text}")
    } else if error.kind == ApiErrorKind::Unavailable {
        format!("the Kubernetes API does not answer: {text}")
    } else {
        format!("{text}; masquerading goes on")
    }
}

/// Log throttle common to all parts of the agent.
#[derive(Debug, Default)]
pub(crate) struct LogThrottle {
    state: Mutex<State>,
    /// Time of the last success, in seconds since 1970.
    heard: Arc<AtomicU64>,
}

impl LogThrottle {
    /// Returns a throttle that also keeps the time of the last success, in seconds since 1970.
    pub(crate) fn keeping(heard: Arc<AtomicU64>) -> Self {
        Self {
            heard,
            ..Self::default()
        }
    }

    /// Records an error; called on each failed attempt.
    pub(crate) fn record_error(&self, user: ApiUser, error: &ApiError) {
        self.log(|state| state.record_error(user, error, Instant::now()));
        log::debug!("{user:?}: {}", error.text);
    }

    /// Records that a request of this part succeeded.
    pub(crate) fn record_success(&self, user: ApiUser) {
        // What is written says nothing about what is followed.
        if matches!(user, ApiUser::Watch(watch) if watch != WatchId::Pods) {
            self.heard.store(time::now(), Ordering::Relaxed);
        }
        self.log(|state| state.record_success(user, Instant::now()));
    }

    /// Records that all followed objects have been received.
    pub(crate) fn record_sync(&self) {
        self.log(State::record_sync);
    }

    fn log(&self, line: impl FnOnce(&mut State) -> Option<Line>) {
        let line = line(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner));
        if let Some((level, line)) = line {
            match level {
                Level::Warn => log::warn!(code:% = Code::ApiSilent; "{line}"),
                level => log::log!(level, "{line}"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::watch_id::ConfigMapSelection;
    use super::*;

    const MAIN: ApiUser = ApiUser::Watch(WatchId::ConfigMaps(ConfigMapSelection::Main));
    const NODE: ApiUser = ApiUser::Watch(WatchId::Node);

    /// A state that has received everything, and its log line at a given second.
    struct Clock(State, Instant);

    impl Clock {
        fn new() -> Self {
            let mut state = State::default();
            assert!(state.record_sync().is_some());
            Self(state, Instant::now())
        }

        fn error(
            &mut self,
            second: u64,
            user: ApiUser,
            kind: ApiErrorKind,
            text: &str,
        ) -> Option<String> {
            let error = ApiError::of_kind(kind, text);
            let now = self.1 + Duration::from_secs(second);
            self.0.record_error(user, &error, now).map(|it| it.1)
        }

        fn success(&mut self, second: u64, user: ApiUser) -> Option<String> {
            let now = self.1 + Duration::from_secs(second);
            self.0.record_success(user, now).map(|it| it.1)
        }
    }

    #[test]
    fn an_unavailable_api_is_logged_once_whoever_queries_it_and_in_whatever_words() {
        let mut clock = Clock::new();
        let first = clock
            .error(
                0,
                ApiUser::Lease,
                ApiErrorKind::Unavailable,
                "the Lease: cut",
            )
            .unwrap();
        assert_eq!(first, "the Kubernetes API does not answer: the Lease: cut");
        for second in 1..3600 {
            for user in [MAIN, NODE, ApiUser::Lease, ApiUser::Events] {
                let words = if second % 2 == 0 { "cut" } else { "refused" };
                assert_eq!(
                    clock.error(second, user, ApiErrorKind::Unavailable, words),
                    None
                );
            }
        }
        let again = clock
            .error(3600, NODE, ApiErrorKind::Unavailable, "cut")
            .unwrap();
        assert!(again.starts_with("still, after 1h0m: "), "{again}");
        for user in [MAIN, NODE, ApiUser::Events] {
            assert_eq!(clock.success(3700, user), None);
        }
        let over = clock.success(3700, ApiUser::Lease).unwrap();
        assert_eq!(over, "following the Kubernetes API again, after 1h1m");
        assert_eq!(clock.success(3701, MAIN), None);
    }

    #[test]
    fn a_refusal_of_watches_is_logged_although_the_lease_was_refused_first() {
        let mut clock = Clock::new();
        let first = clock
            .error(0, ApiUser::Lease, ApiErrorKind::Denied, "the Lease: no")
            .unwrap();
        assert_eq!(first, "the Lease: no; masquerading goes on");
        let second = clock
            .error(1, MAIN, ApiErrorKind::Denied, "cannot watch")
            .unwrap();
        assert!(
            second.ends_with("follow the Kubernetes API: cannot watch"),
            "{second}"
        );
        for second in 2..100 {
            assert_eq!(
                clock.error(second, MAIN, ApiErrorKind::Denied, "cannot list"),
                None
            );
            assert_eq!(
                clock.error(second, NODE, ApiErrorKind::Denied, "nodes"),
                None
            );
            assert_eq!(
                clock.error(second, ApiUser::Lease, ApiErrorKind::Denied, "no"),
                None
            );
        }
        assert_eq!(clock.success(100, MAIN), None);
        assert_eq!(clock.success(100, ApiUser::Lease), None);
        assert!(clock.success(101, NODE).is_some());
    }

    #[test]
    fn an_error_that_remains_when_others_end_is_logged() {
        let mut clock = Clock::new();
        assert!(clock.error(0, MAIN, ApiErrorKind::Denied, "maps").is_some());
        assert_eq!(
            clock.error(0, ApiUser::Lease, ApiErrorKind::Denied, "the Lease"),
            None
        );
        assert_eq!(clock.success(5, MAIN), None);
        assert_eq!(
            clock.error(10, ApiUser::Lease, ApiErrorKind::Denied, "the Lease"),
            None
        );
        let left = clock
            .error(70, ApiUser::Lease, ApiErrorKind::Denied, "the Lease")
            .unwrap();
        assert_eq!(left, "the Lease; masquerading goes on");
        assert_eq!(
            clock.error(80, ApiUser::Lease, ApiErrorKind::Denied, "the Lease"),
            None
        );
        assert!(clock.success(90, ApiUser::Lease).is_some());
    }

    #[test]
    fn an_api_that_comes_and_goes_is_logged_once_a_minute() {
        let mut clock = Clock::new();
        let mut lines = 0;
        for second in (0..600).step_by(4) {
            lines += usize::from(
                clock
                    .error(second, MAIN, ApiErrorKind::Unavailable, "cut")
                    .is_some(),
            );
            lines += usize::from(clock.success(second + 2, MAIN).is_some());
        }
        assert_eq!(lines, 20);
    }

    #[test]
    fn an_end_is_logged_although_another_error_began_that_was_not() {
        let mut clock = Clock::new();
        assert!(clock.error(0, MAIN, ApiErrorKind::Denied, "no").is_some());
        assert!(clock.success(1, MAIN).is_some());
        assert!(
            clock
                .error(2, MAIN, ApiErrorKind::Unavailable, "cut")
                .is_some()
        );
        // Too soon after the last line of its kind.
        assert_eq!(clock.error(3, MAIN, ApiErrorKind::Denied, "no"), None);
        let over = clock.success(4, MAIN);
        assert_eq!(
            over.unwrap(),
            "following the Kubernetes API again, after 2s"
        );
    }

    #[test]
    fn at_the_start_all_watches_have_to_succeed() {
        let mut state = State::default();
        let now = Instant::now();
        let error = ApiError::of_kind(ApiErrorKind::Unavailable, "cut");
        assert!(state.record_error(MAIN, &error, now).is_some());
        assert_eq!(state.record_success(MAIN, now), None);
        let logged = state.record_sync().unwrap();
        assert_eq!(logged, (Level::Info, "following the Kubernetes API".into()));
        assert_eq!(state.record_success(NODE, now), None);
    }
}
