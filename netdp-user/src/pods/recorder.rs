//! The agent's thread that follows libcni's cache, or the API, so that flows of ended pods keep their names.

use super::index::{Claim, Index};
use super::{ApiClaims, FILE, PodNameOptions, PodNames, Saved, cache, saved};
use crate::state_dir::StateDir;
use crate::time::now_milliseconds;
use anyhow::{Context as _, Result};
use netdp_common::flow::Timeouts;
use notify::event::{AccessKind, AccessMode};
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// Time to wait after a change, because a file is created before it is written.
const DEBOUNCE: Duration = Duration::from_millis(200);

/// Time between two looks at a directory that is watched, in case a change went unnoticed, and at one
/// that is missing.
const INTERVAL: Duration = Duration::from_secs(10);

/// Time for which an ended pod is remembered beyond the longest timeout of its mappings.
const BEYOND: Duration = Duration::from_secs(600);

/// Returns the longest timeout of a mapping, in seconds.
fn longest(timeouts: &Timeouts) -> u64 {
    let tcp = timeouts.tcp_established.max(timeouts.tcp_half_closed);
    let others = timeouts
        .udp_replied
        .max(timeouts.generic)
        .max(timeouts.icmp);
    tcp.max(timeouts.tcp_closing).max(others)
}

/// Causes for the thread to wake up.
#[derive(Debug)]
pub(super) enum Wake {
    Changed,
    End,
}

/// The running thread; it ends when this is dropped.
pub(crate) struct Recorder {
    wake: SyncSender<Wake>,
    thread: Option<JoinHandle<()>>,
    index: Arc<Mutex<Index>>,
}

impl Recorder {
    /// Starts the thread; `None` if names are off. With `api`, it takes what is set there instead of
    /// the cache. Ended pods are remembered for the longest of
    /// `timeouts`, and some minutes.
    ///
    /// # Errors
    /// Returns an error if the system allows no thread.
    pub(crate) fn start(
        options: &PodNameOptions,
        api: Option<ApiClaims>,
        state_dir: StateDir,
        timeouts: &Timeouts,
    ) -> Result<Option<Self>> {
        if options.source == PodNames::Off {
            return Ok(None);
        }
        let keep = Duration::from_secs(longest(timeouts)) + BEYOND;
        let (wake, woken) = sync_channel(1);
        if let Some(api) = &api {
            api.wake(wake.clone());
        }
        let index = Arc::new(Mutex::new(saved(&state_dir)));
        let follower = Follower {
            api,
            dir: options.cni_dir.clone(),
            is_required: options.source == PodNames::Cni,
            index: Arc::clone(&index),
            state_dir,
            keep: u64::try_from(keep.as_millis()).unwrap_or(u64::MAX),
            watcher: None,
            wake: wake.clone(),
            was_readable: None,
        };
        let thread = std::thread::Builder::new()
            .name("netdp-pods".into())
            .spawn(move || follower.run(&woken))
            .context("starting the thread that follows the names of pods")?;
        Ok(Some(Self {
            wake,
            thread: Some(thread),
            index,
        }))
    }

    /// Returns the index that the thread keeps up to date. It is locked for moments only.
    pub(crate) fn index(&self) -> Arc<Mutex<Index>> {
        Arc::clone(&self.index)
    }
}

impl Drop for Recorder {
    /// Waits for the thread, so that it writes nothing afterwards.
    fn drop(&mut self) {
        if self.wake.send(Wake::End).is_ok()
            && let Some(thread) = self.thread.take()
        {
            // A panic there has been printed.
            let _ = thread.join();
        }
    }
}

struct Follower {
    api: Option<ApiClaims>,
    dir: PathBuf,
    is_required: bool,
    index: Arc<Mutex<Index>>,
    state_dir: StateDir,
    /// Milliseconds for which ended claims are remembered.
    keep: u64,
    watcher: Option<RecommendedWatcher>,
    wake: SyncSender<Wake>,
    was_readable: Option<bool>,
}

impl Follower {
    fn run(mut self, woken: &Receiver<Wake>) {
        loop {
            self.look();
            match woken.recv_timeout(INTERVAL) {
                Ok(Wake::Changed) => {}
                Err(RecvTimeoutError::Timeout) => continue,
                Ok(Wake::End) | Err(RecvTimeoutError::Disconnected) => return,
            }
            // Events in the meantime are part of the same change.
            match woken.recv_timeout(DEBOUNCE) {
                Ok(Wake::End) | Err(RecvTimeoutError::Disconnected) => return,
                Ok(Wake::Changed) => std::thread::sleep(DEBOUNCE),
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    /// Takes what the API says, or reads the directory, and saves the index if it has changed.
    fn look(&mut self) {
        let found = match &self.api {
            Some(api) => api.get(),
            None => self.read(),
        };
        let Some(found) = found else {
            return;
        };
        let now = now_milliseconds();
        let claims = {
            let mut index = self.index.lock().unwrap_or_else(PoisonError::into_inner);
            let changed = index.refresh(found, now, self.keep);
            changed.then(|| index.iter().cloned().collect())
        };
        if let Some(claims) = claims
            && let Err(err) = self.save(claims)
        {
            log::warn!("{err:#}");
        }
    }

    /// Reads the directory; `None` if that fails.
    fn read(&mut self) -> Option<Vec<Claim>> {
        // Before it is read, so that no change is missed in between.
        self.watch();
        let found = cache::read(&self.dir);
        self.report(found.as_ref().err());
        if found.is_err() {
            self.watcher = None;
        }
        found.ok()
    }

    /// Watches the directory, again if it is another one of the same name by now.
    fn watch(&mut self) {
        if let Some(mut watcher) = self.watcher.take() {
            let again = watcher.watch(&self.dir, RecursiveMode::NonRecursive);
            self.watcher = again.is_ok().then_some(watcher);
        }
        if self.watcher.is_none() {
            self.watcher = self.watcher().ok();
        }
    }

    fn watcher(&self) -> notify::Result<RecommendedWatcher> {
        let wake = self.wake.clone();
        let mut watcher = notify::recommended_watcher(move |event: notify::Result<_>| {
            let is_read = |event: notify::Event| {
                event.kind.is_access()
                    && event.kind != EventKind::Access(AccessKind::Close(AccessMode::Write))
            };
            if !event.is_ok_and(is_read) {
                // A full channel means that a signal is pending already.
                let _ = wake.try_send(Wake::Changed);
            }
        })?;
        watcher.watch(&self.dir, RecursiveMode::NonRecursive)?;
        Ok(watcher)
    }

    /// Logs whether the directory can be read, when that changes.
    fn report(&mut self, error: Option<&std::io::Error>) {
        let is_readable = error.is_none();
        if self.was_readable.replace(is_readable) == Some(is_readable) {
            return;
        }
        let dir = self.dir.display();
        match error {
            None => log::info!("pods are named from {dir}"),
            Some(err) if self.is_required => {
                log::warn!("pods have no names: reading {dir}: {err}");
            }
            Some(err) => log::debug!("pods have no names: reading {dir}: {err}"),
        }
    }

    fn save(&self, mut claims: Vec<Claim>) -> Result<()> {
        claims.sort_by_key(|claim| (claim.from, claim.address));
        let saved = Saved {
            schema: Saved::SCHEMA,
            claims,
            from_api: self.api.is_some(),
        };
        self.state_dir.write_json(FILE, &saved)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::time::Instant;

    fn claims(state_dir: &StateDir) -> Vec<(String, bool)> {
        let index = saved(state_dir);
        let mut claims: Vec<_> = index
            .iter()
            .map(|claim| (claim.name.clone(), claim.until.is_some()))
            .collect();
        claims.sort();
        claims
    }

    fn wait(state_dir: &StateDir, wanted: &[(&str, bool)]) {
        let deadline = Instant::now() + Duration::from_secs(8);
        loop {
            let claims = claims(state_dir);
            let seen: Vec<_> = claims.iter().map(|(a, b)| (a.as_str(), *b)).collect();
            if seen == wanted {
                return;
            }
            assert!(Instant::now() < deadline, "{seen:?}, not {wanted:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn cached(name: &str) -> String {
        serde_json::json!({
            "cniArgs": [["K8S_POD_NAMESPACE", "shop"], ["K8S_POD_NAME", name]],
            "result": { "ips": [{ "address": "10.0.0.2/24" }] },
        })
        .to_string()
    }

    #[test]
    fn pods_are_recorded_as_they_come_and_go_and_over_restarts() {
        let (cni, state) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let state_dir = StateDir::open(state.path()).unwrap();
        let options = PodNameOptions {
            source: PodNames::Cni,
            cni_dir: cni.path().join("results"),
        };
        let start = || {
            Recorder::start(&options, None, state_dir.clone(), &Timeouts::default())
                .unwrap()
                .unwrap()
        };
        fs::create_dir(&options.cni_dir).unwrap();
        let recorder = start();
        fs::write(options.cni_dir.join("a"), cached("a")).unwrap();
        wait(&state_dir, &[("a", false)]);
        fs::remove_file(options.cni_dir.join("a")).unwrap();
        fs::write(options.cni_dir.join("b"), cached("b")).unwrap();
        wait(&state_dir, &[("a", true), ("b", false)]);
        drop(recorder);
        fs::remove_file(options.cni_dir.join("b")).unwrap();
        let _recorder = start();
        wait(&state_dir, &[("a", true), ("b", true)]);
    }

    #[test]
    fn no_thread_runs_where_names_are_off() {
        let options = PodNameOptions {
            source: PodNames::Off,
            cni_dir: "/nonexistent".into(),
        };
        let state_dir = StateDir::at(std::path::Path::new("/nonexistent"));
        assert!(
            Recorder::start(&options, None, state_dir, &Timeouts::default())
                .unwrap()
                .is_none()
        );
    }
}
