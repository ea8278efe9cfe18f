//! What the programs log, passed on to the agent's log.

use anyhow::{Context as _, Result, anyhow};
use aya_log::EbpfLogger;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

type Logger = EbpfLogger<&'static dyn log::Log>;

/// The log of the programs, if there are any.
pub(super) struct ProgramLog(Option<AsyncFd<Logger>>);

impl ProgramLog {
    pub(super) fn watch(logger: Option<Logger>) -> Result<Self> {
        let Some(logger) = logger else {
            return Ok(Self(None));
        };
        // SAFETY: the logger owns its ring buffer's descriptor, and gives the
        // same one for as long as it lives.
        let log = unsafe { AsyncFd::register_with_interest(logger, Interest::READABLE) };
        let log = log.map_err(|err| anyhow!("watching the programs' log: {err}"))?;
        Ok(Self(Some(log)))
    }

    /// Waits until the programs have said something, and passes it on.
    pub(super) async fn pass_on(&mut self) -> Result<()> {
        let Some(log) = &mut self.0 else {
            return std::future::pending().await;
        };
        let mut spoke = log
            .readable_mut()
            .await
            .context("reading the programs' log")?;
        spoke.get_inner_mut().flush();
        spoke.clear_ready();
        Ok(())
    }
}
