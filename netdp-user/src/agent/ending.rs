//! SIGTERM and SIGINT, heard on a thread of their own: the loop may be waiting for a program or for the
//! kernel, and whoever stops the agent does not want to wait with it.

use crate::programs;
use anyhow::{Context as _, Result};
use tokio::runtime::Builder;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// Whether the agent was told to end.
pub(super) struct Ending(watch::Receiver<bool>);

impl Ending {
    /// Listens from now on.
    ///
    /// # Errors
    /// The signals can't be caught, or the thread can't be made.
    pub(super) fn listen() -> Result<Self> {
        let runtime = Builder::new_current_thread()
            .enable_all()
            .build()
            .context("starting the runtime for signals")?;
        let (mut terminate, mut interrupt) = {
            let _inside = runtime.enter();
            (
                signal(SignalKind::terminate())?,
                signal(SignalKind::interrupt())?,
            )
        };
        let (tell, told) = watch::channel(false);
        std::thread::Builder::new()
            .name("netdp-signals".into())
            .spawn(move || {
                runtime.block_on(async {
                    tokio::select! {
                        _ = terminate.recv() => {}
                        _ = interrupt.recv() => {}
                    }
                });
                // First: then the loop has been waiting for the last time when it learns of it.
                programs::end_all();
                tell.send(true)
            })
            .context("starting a thread for signals")?;
        Ok(Self(told))
    }

    /// Waits until the agent is told to end. Dropping the future loses nothing.
    pub(super) async fn begun(&mut self) {
        if self.0.wait_for(|begun| *begun).await.is_err() {
            // The thread is gone without having heard anything.
            std::future::pending::<()>().await;
        }
    }
}
