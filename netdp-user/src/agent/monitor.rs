//! Netlink monitor of the network that reopens after failures.

use crate::uplinks::{Monitor, RouteFilter, Selection, Snapshot};
use anyhow::Result;
use std::time::Duration;
use tokio::time::{Instant, sleep_until};

/// Pause after a failure of netlink.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// A monitor that survives failures of netlink.
pub(super) struct Reopening {
    monitor: Monitor,
    /// Time of the next attempt to reopen, after a failure.
    reopen_at: Option<Instant>,
}

impl Reopening {
    /// Opens the monitor.
    ///
    /// # Errors
    /// Returns an error if netlink fails.
    pub(super) async fn new() -> Result<Self> {
        Ok(Self {
            monitor: Monitor::new().await?,
            reopen_at: None,
        })
    }

    /// Waits until the network has changed or may have: after a failure, returns on each attempt to
    /// reopen, once a second. Cancel-safe.
    pub(super) async fn changed(&mut self) {
        if self.reopen_at.is_none() {
            let Err(err) = self.monitor.changed().await else {
                return;
            };
            log::warn!("watching the network: {err:#}");
        }
        let at = *self
            .reopen_at
            .get_or_insert_with(|| Instant::now() + RETRY_AFTER);
        sleep_until(at).await;
        match Monitor::new().await {
            Ok(monitor) => {
                self.monitor = monitor;
                self.reopen_at = None;
            }
            Err(err) => {
                log::warn!("{err:#}");
                self.reopen_at = Some(Instant::now() + RETRY_AFTER);
            }
        }
    }

    /// Takes a snapshot of the network.
    ///
    /// # Errors
    /// Returns an error if netlink fails.
    pub(super) async fn snapshot(&self) -> Result<Snapshot> {
        self.monitor.snapshot().await
    }

    /// Sets which changes may be ignored, see [`Monitor::set_route_filter`].
    pub(super) fn set_route_filter(&mut self, filter: RouteFilter) {
        self.monitor.set_route_filter(filter);
    }

    /// Sets which changes are reported at once, see [`Monitor::set_expected`].
    pub(super) fn set_expected(&mut self, selection: &Selection) {
        self.monitor.set_expected(selection);
    }
}
