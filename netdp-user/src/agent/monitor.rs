//! The network's monitor, which is opened anew when netlink fails.

use crate::uplinks::{Monitor, Selection, Settled, Snapshot};
use anyhow::Result;
use std::time::Duration;
use tokio::time::{Instant, sleep_until};

/// How long netlink rests after a failure.
const REST: Duration = Duration::from_secs(1);

/// A monitor that outlives netlink's failures.
pub(super) struct Reopening {
    monitor: Monitor,
    /// When to open it anew, after a failure.
    reopen_at: Option<Instant>,
}

impl Reopening {
    /// Opens it.
    ///
    /// # Errors
    /// Netlink fails.
    pub(super) async fn new() -> Result<Self> {
        Ok(Self {
            monitor: Monitor::new().await?,
            reopen_at: None,
        })
    }

    /// Waits until the network has changed, or may have: after a failure each time that it is tried
    /// anew, once a second. Dropping the future loses nothing.
    pub(super) async fn changed(&mut self) {
        if self.reopen_at.is_none() {
            let Err(err) = self.monitor.changed().await else {
                return;
            };
            log::warn!("watching the network: {err:#}");
        }
        let at = *self.reopen_at.get_or_insert_with(|| Instant::now() + REST);
        sleep_until(at).await;
        match Monitor::new().await {
            Ok(monitor) => {
                self.monitor = monitor;
                self.reopen_at = None;
            }
            Err(err) => {
                log::warn!("{err:#}");
                self.reopen_at = Some(Instant::now() + REST);
            }
        }
    }

    /// Reads the network as it is now.
    ///
    /// # Errors
    /// Netlink fails.
    pub(super) async fn snapshot(&self) -> Result<Snapshot> {
        self.monitor.snapshot().await
    }

    /// Sets what may go unnoticed, see [`Monitor::settle`].
    pub(super) fn settle(&mut self, settled: Settled) {
        self.monitor.settle(settled);
    }

    /// Sets what is noticed at once, see [`Monitor::expect`].
    pub(super) fn expect(&mut self, selection: &Selection) {
        self.monitor.expect(selection);
    }
}
