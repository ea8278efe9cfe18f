//! The log: on standard error, as text or as one JSON object a line, and the latest messages of the
//! agent in the state directory, for `netdp support-bundle`.

mod json;
mod kept;
mod limit;
mod panics;

use crate::state_dir::StateDir;
use crate::terminal;
use anyhow::Result;
use json::Fields;
use kept::Kept;
use limit::Limit;
use log::{Level, LevelFilter, Log, Metadata, Record};
use std::io::Write as _;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Instant;

pub(crate) use kept::{FILE, OLDER_FILE, latest};

/// Form of log messages.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum LogFormat {
    /// Lines for people.
    #[default]
    Text,
    /// One JSON object a line (docs/json.md).
    Json,
}

/// The form that messages of this process have; unset until the log is set up.
static FORMAT: OnceLock<LogFormat> = OnceLock::new();

/// The agent's latest messages.
static KEPT: OnceLock<Kept> = OnceLock::new();

/// The logger of the process: standard error, the kept messages, and the limit of both.
struct Logger {
    /// Decides which messages are logged, and writes them as text.
    text: env_logger::Logger,
    format: LogFormat,
    limit: Mutex<Limit>,
}

/// Sets the log of this process up. Only the first call has an effect.
pub(crate) fn init(level: LevelFilter, format: LogFormat) {
    if FORMAT.set(format).is_err() {
        return;
    }
    let mut builder = env_logger::Builder::new();
    builder
        .filter_level(level)
        // Logs watched directories that vanish, which is normal here.
        .filter_module("notify", LevelFilter::Error)
        // Log each failed request, which netdp logs once.
        .filter_module("kube_client", LevelFilter::Off)
        .filter_module("rustls", LevelFilter::Off)
        // Traces every relocation at debug level.
        .filter_module("aya", LevelFilter::Warn)
        .filter_module("aya_obj", LevelFilter::Warn);
    // The format of env_logger, but without characters that could control the reader's terminal.
    builder.format(|out, record| {
        let (time, level) = (out.timestamp(), record.level());
        let style = out.default_level_style(level);
        let message = record.args().to_string();
        let message = terminal::line(&message);
        writeln!(out, "[{time} {style}{level:<5}{style:#}] {message}")
    });
    panics::report(format);
    let text = builder.build();
    let most = text.filter();
    let logger = Logger {
        text,
        format,
        limit: Mutex::new(Limit::new(Instant::now())),
    };
    // Fails only where a test has set a logger.
    if log::set_boxed_logger(Box::new(logger)).is_ok() {
        log::set_max_level(most);
    }
}

/// Keeps the latest messages in the state directory from now on. Only the first call has an effect.
///
/// # Errors
/// Returns an error if the file can't be opened, or a thread can't be started.
pub(crate) fn keep_in(state_dir: &StateDir) -> Result<()> {
    let kept = Kept::start(state_dir)?;
    // A second call comes from a test in this process.
    let _ = KEPT.set(kept);
    Ok(())
}

/// Writes a message of the process that does not come through the log, such as the error that ends
/// it. Text is `text` as it is.
pub(crate) fn announce(level: Level, text: &str) {
    announce_as(FORMAT.get().copied().unwrap_or_default(), level, text);
}

/// Writes a message in a given form, as [`announce`] does.
pub(crate) fn announce_as(format: LogFormat, level: Level, text: &str) {
    let message = text.trim_start_matches("netdp: ");
    let message = message.trim_start_matches("error: ").trim_end();
    let fields = Fields::new(level, message);
    let line = match format {
        LogFormat::Text => format!("{}\n", terminal::lines(text.trim_end())),
        LogFormat::Json => fields.line(),
    };
    // Nobody is left to be told of a closed standard error.
    let _ = std::io::stderr().write_all(line.as_bytes());
    if let Some(kept) = KEPT.get() {
        kept.write_now(&fields.line());
    }
}

impl Logger {
    fn write(&self, record: &Record<'_>) {
        let kept = KEPT.get();
        if self.format == LogFormat::Text {
            self.text.log(record);
        }
        if self.format == LogFormat::Text && kept.is_none() {
            return;
        }
        let line = Fields::of(record).line();
        if self.format == LogFormat::Json {
            // Nobody is left to be told of a closed standard error.
            let _ = std::io::stderr().write_all(line.as_bytes());
        }
        if let Some(kept) = kept {
            kept.send(line);
        }
    }
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.text.enabled(metadata)
    }

    fn log(&self, record: &Record<'_>) {
        if !self.text.matches(record) {
            return;
        }
        let admitted = {
            let mut limit = self.limit.lock().unwrap_or_else(PoisonError::into_inner);
            limit.admit(record, Instant::now())
        };
        let Some(left_out) = admitted else {
            return;
        };
        if left_out > 0 {
            let mut about = Record::builder();
            about.level(Level::Warn).target(module_path!());
            self.write(
                &about
                    .args(format_args!("{}", limit::told(left_out)))
                    .build(),
            );
        }
        self.write(record);
    }

    fn flush(&self) {
        self.text.flush();
    }
}
