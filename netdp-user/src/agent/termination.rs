//! SIGTERM and SIGINT, handled on a thread of their own: the loop may be waiting for a program or
//! the kernel, and that must not delay the agent's end.

use crate::programs;
use anyhow::{Context as _, Result};
use tokio::runtime::Builder;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

/// Receiver of the termination request.
pub(super) struct Termination(watch::Receiver<bool>);

impl Termination {
    /// Installs the signal handlers.
    ///
    /// # Errors
    /// Returns an error if the signals cannot be caught, or the thread cannot be started.
    pub(super) fn install() -> Result<Self> {
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
        let (requested, receiver) = watch::channel(false);
        std::thread::Builder::new()
            .name("netdp-signals".into())
            .spawn(move || {
                runtime.block_on(async {
                    tokio::select! {
                        _ = terminate.recv() => {}
                        _ = interrupt.recv() => {}
                    }
                });
                // Before the notification: by the time the loop receives it, it waits for no
                // program any more.
                programs::end_all();
                requested.send(true)
            })
            .context("starting a thread for signals")?;
        Ok(Self(receiver))
    }

    /// Waits until the agent has to end. Cancel-safe.
    pub(super) async fn requested(&mut self) {
        if self.0.wait_for(|requested| *requested).await.is_err() {
            // The thread ended without a signal.
            std::future::pending::<()>().await;
        }
    }
}
