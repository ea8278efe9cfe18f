//! What the log says of the API: each change of its state, and no flood if it flaps.

use std::time::{Duration, Instant};

/// Problems are not told more often than this.
const QUIET: Duration = Duration::from_secs(10);

/// Remembers what was said.
#[derive(Default)]
pub(super) struct Teller {
    /// The state that was told: `None` for nothing yet, else the problem if there was one.
    told: Option<Option<String>>,
    /// When a problem was told last.
    problem_at: Option<Instant>,
}

impl Teller {
    /// Says what is new.
    pub(super) fn tell(&mut self, problem: Option<&str>) {
        if !self.is_news(problem, Instant::now()) {
            return;
        }
        match problem {
            Some(problem) => log::warn!("the Kubernetes API can't be followed: {problem}"),
            None => log::info!("following the Kubernetes API"),
        }
    }

    fn is_news(&mut self, problem: Option<&str>, now: Instant) -> bool {
        let same = self.told.as_ref().map(Option::as_deref) == Some(problem);
        let quiet = self.problem_at.is_some_and(|at| now < at + QUIET);
        if same || (problem.is_some() && quiet) {
            return false;
        }
        if problem.is_some() {
            self.problem_at = Some(now);
        }
        self.told = Some(problem.map(str::to_owned));
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_state_is_told_once_and_flapping_is_not() {
        let mut teller = Teller::default();
        let start = Instant::now();
        let mut at =
            |seconds, problem| teller.is_news(problem, start + Duration::from_secs(seconds));
        assert!(at(0, None));
        assert!(!at(1, None));
        assert!(at(1, Some("cut")));
        assert!(!at(2, Some("cut")));
        assert!(at(3, None));
        // Again, and otherwise, too soon.
        assert!(!at(4, Some("cut")));
        assert!(!at(5, Some("500")));
        assert!(!at(6, None));
        assert!(at(11, Some("500")));
        assert!(at(12, None));
    }
}
