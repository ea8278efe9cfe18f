//! inotify watches on configuration files.

use std::mem;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use notify::{Event, RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use super::interest::Interest;

/// Debounce interval after the first event of a change: one edit causes several events, and a newly
/// created file is still empty.
const DEBOUNCE: Duration = Duration::from_millis(20);

/// Limit of repeated walks while the paths keep changing.
const MAX_WALKS: usize = 8;

type Sink = Box<dyn Fn(notify::Result<Event>) + Send>;

/// Reports when files at some paths change, appear or vanish: edited, replaced by a rename, reached
/// by another symbolic link (as in a ConfigMap volume), or in directories that do not exist yet.
///
/// Create it before the first read, so that no change is missed in between. Some changes go
/// undetected (mounts, renamed ancestors, network file systems): also read periodically, after
/// [`rearm`](Self::rearm).
pub(crate) struct Watcher {
    paths: Vec<PathBuf>,
    open: fn(Sink) -> notify::Result<RecommendedWatcher>,
    inner: Option<RecommendedWatcher>,
    /// Filter for the events, shared with inotify's thread.
    interest: Arc<Mutex<Interest>>,
    /// Channel of capacity 1: several signals are the same as one. This sender also keeps the
    /// channel open.
    signal: mpsc::Sender<()>,
    signals: mpsc::Receiver<()>,
    /// End of the current debounce, so that a cancelled wait continues where it was.
    debounced_until: Option<Instant>,
    problem: Option<String>,
}

impl Watcher {
    /// Watches `paths`, which need not exist. If the system does not allow it, this is logged,
    /// [`problem`](Self::problem) returns the reason, and [`changed`](Self::changed) never returns.
    pub(crate) fn new(paths: &[PathBuf]) -> Self {
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
            debounced_until: None,
            problem: None,
        };
        watcher.rearm();
        watcher
    }

    /// Returns why changes may go undetected until the next resync, if they may.
    pub(crate) fn problem(&self) -> Option<&str> {
        self.problem.as_deref()
    }

    /// Waits for a change; changes within a few milliseconds of each other are one. A change after
    /// this returns makes the next call return.
    ///
    /// Cancel-safe, so that it can be a branch of `select!`.
    pub(crate) async fn changed(&mut self) {
        let debounced_until = match self.debounced_until {
            Some(debounced_until) => debounced_until,
            None => {
                self.signals.recv().await;
                *self.debounced_until.insert(Instant::now() + DEBOUNCE)
            }
        };
        sleep_until(debounced_until).await;
        self.debounced_until = None;
        while self.signals.try_recv().is_ok() {}
        self.rearm();
    }

    /// Walks the paths again and watches what they lead through now. Call it before a read that
    /// [`changed`](Self::changed) did not trigger, such as a resync.
    pub(crate) fn rearm(&mut self) {
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

    /// Adds watches until a walk finds nothing unwatched.
    fn watch_all(&self, inner: &mut RecommendedWatcher) -> Result<(), String> {
        for _ in 0..MAX_WALKS {
            let interest = Interest::of(&self.paths);
            let dirs = interest.dirs.clone();
            let before = mem::replace(&mut *self.lock_interest(), interest);
            // All of them again: a directory may have been replaced by one of the same name.
            for dir in before.dirs {
                // The watch of a removed directory is gone, too.
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
        // They change faster than the walks: retry soon.
        let _ = self.signal.try_send(());
        Ok(())
    }

    fn lock_interest(&self) -> MutexGuard<'_, Interest> {
        self.interest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the callback for inotify's thread.
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
                // A full channel means that a signal is pending already.
                let _ = signal.try_send(());
            }
        })
    }
}

#[cfg(test)]
mod tests;
