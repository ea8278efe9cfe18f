//! Being told when configuration files change.

use std::mem;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use notify::{Event, RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use super::interest::Interest;

/// How long after the first sign of a change its other signs are awaited: one edit is several
/// events, and a file that was just created has yet to be written.
const SETTLE: Duration = Duration::from_millis(20);

/// How often a walk is repeated because the paths changed while they were walked.
const MAX_WALKS: usize = 8;

type Sink = Box<dyn Fn(notify::Result<Event>) + Send>;

/// Tells when files at some paths change, appear or vanish: edited, replaced by a rename, reached
/// by another symbolic link (as a ConfigMap volume does it), or in directories that are yet to be
/// created.
///
/// Make it before the first reading, so that no change falls between the two. It can't see
/// everything (mounts, renamed ancestors, network file systems): read from time to time as well,
/// after [`rearm`](Self::rearm).
pub struct Watcher {
    paths: Vec<PathBuf>,
    open: fn(Sink) -> notify::Result<RecommendedWatcher>,
    inner: Option<RecommendedWatcher>,
    /// What the events are held against, in the thread that inotify's events arrive in.
    interest: Arc<Mutex<Interest>>,
    /// A single place: one signal says as much as many. This end also keeps the channel open.
    signal: mpsc::Sender<()>,
    signals: mpsc::Receiver<()>,
    /// Set while the signs of a change are awaited, so that a cancelled wait goes on where it was.
    settled_at: Option<Instant>,
    problem: Option<String>,
}

impl Watcher {
    /// Watches `paths`, which need not exist. Where the system does not allow it, this is logged,
    /// [`problem`](Self::problem) tells why, and [`changed`](Self::changed) stays silent.
    pub fn new(paths: &[PathBuf]) -> Self {
        Self::with(paths, notify::recommended_watcher)
    }

    fn with(paths: &[PathBuf], open: fn(Sink) -> notify::Result<RecommendedWatcher>) -> Self {
        let (signal, signals) = mpsc::channel(1);
        let mut watcher = Self {
            paths: paths.to_vec(),
            open,
            inner: None,
            interest: Arc::default(),
            signal,
            signals,
            settled_at: None,
            problem: None,
        };
        watcher.rearm();
        watcher
    }

    /// Why changes may go unnoticed until the next resync, if they may.
    pub fn problem(&self) -> Option<&str> {
        self.problem.as_deref()
    }

    /// Waits for a change; changes within a few milliseconds of one another are one. A change that
    /// happens after this returns makes the next call return.
    ///
    /// Cancelling loses nothing, so that this can be a branch of `select!`.
    pub async fn changed(&mut self) {
        let settled_at = match self.settled_at {
            Some(settled_at) => settled_at,
            None => {
                self.signals.recv().await;
                *self.settled_at.insert(Instant::now() + SETTLE)
            }
        };
        sleep_until(settled_at).await;
        self.settled_at = None;
        while self.signals.try_recv().is_ok() {}
        self.rearm();
    }

    /// Walks the paths anew and watches what they lead over now. To be called before a reading
    /// that [`changed`](Self::changed) has not asked for, as a resync is.
    pub fn rearm(&mut self) {
        let problem = self.try_rearm().err();
        if problem != self.problem {
            match &problem {
                Some(problem) => log::warn!(
                    "configuration changes may go unnoticed until the next resync: {problem}"
                ),
                None => log::info!("configuration changes are noticed at once again"),
            }
        }
        self.problem = problem;
    }

    fn try_rearm(&mut self) -> Result<(), String> {
        let mut inner = match self.inner.take() {
            Some(inner) => inner,
            None => (self.open)(self.sink()).map_err(|error| {
                format!("inotify: {error}; is fs.inotify.max_user_instances exhausted?")
            })?,
        };
        let outcome = self.watch_all(&mut inner);
        self.inner = Some(inner);
        outcome
    }

    /// Watches until a walk finds nothing that is not watched already.
    fn watch_all(&self, inner: &mut RecommendedWatcher) -> Result<(), String> {
        for _ in 0..MAX_WALKS {
            let interest = Interest::of(&self.paths);
            let dirs = interest.dirs.clone();
            let before = mem::replace(&mut *self.lock_interest(), interest);
            // All of them anew: a directory may have been replaced by one of the same name.
            for dir in before.dirs {
                // Of one that is gone the watch is gone, too.
                let _ = inner.unwatch(&dir);
            }
            let failures: Vec<_> = dirs
                .iter()
                .filter_map(|dir| inner.watch(dir, RecursiveMode::NonRecursive).err())
                .collect();
            if Interest::of(&self.paths) != *self.lock_interest() {
                continue;
            }
            return match failures.first() {
                None => Ok(()),
                Some(error) => Err(format!("inotify: {error}")),
            };
        }
        // They change faster than we look: look again soon.
        let _ = self.signal.try_send(());
        Ok(())
    }

    fn lock_interest(&self) -> MutexGuard<'_, Interest> {
        self.interest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What inotify's thread calls for each event.
    fn sink(&self) -> Sink {
        let interest = Arc::clone(&self.interest);
        let signal = self.signal.clone();
        Box::new(move |event| {
            let matters = match event {
                Ok(event) => interest
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .concerns(&event),
                Err(error) => {
                    log::debug!("inotify: {error}");
                    true
                }
            };
            if matters {
                // Full means that the signal is already given.
                let _ = signal.try_send(());
            }
        })
    }
}

#[cfg(test)]
mod tests;
