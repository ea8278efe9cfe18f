//! What the log says of the API: each change of its state, and no flood if it flaps.

use std::time::{Duration, Instant};

/// A state that was told is not contradicted more often than this.
const QUIET: Duration = Duration::from_secs(10);

/// Remembers what was said.
#[derive(Default)]
pub(super) struct Teller {
    /// `None`: nothing. Else the problem that was told, or that there is none.
    told: Option<(Instant, Option<String>)>,
}

impl Teller {
    /// Says what is new.
    pub(super) fn tell(&mut self, problem: Option<&str>) {
        if let Some((at, told)) = &self.told {
            let same = told.as_deref() == problem;
            if same || (at.elapsed() < QUIET && told.is_some() == problem.is_some()) {
                return;
            }
            // A recovery is told at once; what follows it soon is flapping.
            if at.elapsed() < QUIET && problem.is_some() {
                log::debug!("the Kubernetes API, again: {}", problem.unwrap_or_default());
                return;
            }
        }
        match problem {
            Some(problem) => log::warn!("the Kubernetes API can't be followed: {problem}"),
            None => log::info!("following the Kubernetes API"),
        }
        self.told = Some((Instant::now(), problem.map(str::to_owned)));
    }
}
