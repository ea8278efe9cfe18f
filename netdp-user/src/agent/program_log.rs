//! Log of the eBPF programs, forwarded to the agent's log.

use anyhow::{Context as _, Result, anyhow};
use aya_log::EbpfLogger;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

type Logger = EbpfLogger<&'static dyn log::Log>;

/// Reader of the programs' log.
pub(super) struct ProgramLog(AsyncFd<Logger>);

impl ProgramLog {
    pub(super) fn watch(logger: Logger) -> Result<Self> {
        // SAFETY: the logger owns the descriptor of its ring buffer, and returns the same one for
        // as long as it lives.
        let log = unsafe { AsyncFd::register_with_interest(logger, Interest::READABLE) };
        let log = log.map_err(|err| anyhow!("watching the programs' log: {err}"))?;
        Ok(Self(log))
    }

    /// Waits for log records of the programs, and forwards them.
    pub(super) async fn forward(&mut self) -> Result<()> {
        let mut readable = self
            .0
            .readable_mut()
            .await
            .context("reading the programs' log")?;
        readable.get_inner_mut().flush();
        readable.clear_ready();
        Ok(())
    }
}
