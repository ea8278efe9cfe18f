//! Log of the eBPF programs, forwarded to the agent's log.

use crate::codes::Code;
use crate::datapath::Refusal;
use crate::events::Recent;
use anyhow::{Context as _, Result, anyhow};
use aya_log::EbpfLogger;
use log::{Log, Metadata, Record};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

type Logger = EbpfLogger<Refusals>;

/// The agent's log, for messages of the programs: a refusal gets its code and its pod, and is kept among
/// the newest events.
pub(super) struct Refusals(pub(super) Recent);

impl Log for Refusals {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        log::logger().enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        let text = record.args().to_string();
        let Some(refusal) = Refusal::parse(&text) else {
            return log::logger().log(record);
        };
        let code = refusal.reason.and_then(Code::of_drop);
        let code = code.map(|code| code.to_string());
        self.0.refusal(&match &code {
            Some(code) => format!("{text} {code}"),
            None => text.clone(),
        });
        let mut about = vec![("pod", refusal.from)];
        about.extend(code.as_deref().map(|code| ("code", code)));
        let mut told = record.to_builder();
        told.key_values(&about);
        log::logger().log(&told.args(format_args!("{text}")).build());
    }

    fn flush(&self) {
        log::logger().flush();
    }
}

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
