//! The flags of klog, which every program of Kubernetes has: accepted so that a command line of
//! ip-masq-agent works. `--v` sets the level; messages go to standard error, whatever the others
//! say.

use super::args::LogLevel;
use clap::Args;

/// Klog's flags. Those that are strings here only show whether they were given.
#[derive(Debug, Args)]
#[command(next_help_heading = "Logging flags of ip-masq-agent (klog)")]
pub(super) struct Klog {
    /// Verbosity: up to 3 is info, 4 and 5 are debug, more is trace.
    #[arg(long = "v", value_name = "N", allow_negative_numbers = true)]
    verbosity: Option<i32>,
    #[command(flatten)]
    ignored: Ignored,
}

/// Flags that change nothing here.
#[derive(Debug, Args)]
struct Ignored {
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "")]
    logtostderr: Option<String>,
    #[arg(long, hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "")]
    alsologtostderr: Option<String>,
    #[arg(long = "add_dir_header", alias = "add-dir-header", hide = true, num_args = 0..=1,
          require_equals = true, default_missing_value = "")]
    add_dir_header: Option<String>,
    #[arg(long = "skip_headers", alias = "skip-headers", hide = true, num_args = 0..=1,
          require_equals = true, default_missing_value = "")]
    skip_headers: Option<String>,
    #[arg(long = "skip_log_headers", alias = "skip-log-headers", hide = true, num_args = 0..=1,
          require_equals = true, default_missing_value = "")]
    skip_log_headers: Option<String>,
    #[arg(long = "one_output", alias = "one-output", hide = true, num_args = 0..=1,
          require_equals = true, default_missing_value = "")]
    one_output: Option<String>,
    #[arg(long = "legacy_stderr_threshold_behavior", alias = "legacy-stderr-threshold-behavior",
          hide = true, num_args = 0..=1, require_equals = true, default_missing_value = "")]
    legacy_stderr_threshold_behavior: Option<String>,
    #[arg(long, hide = true, value_name = "N", allow_hyphen_values = true)]
    stderrthreshold: Option<String>,
    #[arg(long, hide = true, value_name = "N", allow_hyphen_values = true)]
    alsologtostderrthreshold: Option<String>,
    #[arg(long, hide = true, value_name = "PATTERNS")]
    vmodule: Option<String>,
    #[arg(long = "log_backtrace_at", alias = "log-backtrace-at", hide = true)]
    log_backtrace_at: Option<String>,
    #[arg(long = "log_dir", alias = "log-dir", hide = true)]
    log_dir: Option<String>,
    #[arg(long = "log_file", alias = "log-file", hide = true)]
    log_file: Option<String>,
    #[arg(long = "log_file_max_size", alias = "log-file-max-size", hide = true)]
    log_file_max_size: Option<String>,
    #[arg(
        long = "log-flush-frequency",
        alias = "log_flush_frequency",
        hide = true
    )]
    log_flush_frequency: Option<String>,
}

impl Klog {
    /// Returns the log level set by `--v`.
    pub(crate) fn level(&self) -> Option<LogLevel> {
        Some(match self.verbosity? {
            ..=3 => LogLevel::Info,
            4 | 5 => LogLevel::Debug,
            6.. => LogLevel::Trace,
        })
    }

    /// Returns the given flags that have no effect. `--logtostderr` requests the default.
    pub(crate) fn without_effect(&self) -> Vec<&'static str> {
        let Ignored {
            logtostderr: _,
            alsologtostderr,
            add_dir_header,
            skip_headers,
            skip_log_headers,
            one_output,
            legacy_stderr_threshold_behavior,
            stderrthreshold,
            alsologtostderrthreshold,
            vmodule,
            log_backtrace_at,
            log_dir,
            log_file,
            log_file_max_size,
            log_flush_frequency,
        } = &self.ignored;
        let logs_elsewhere = self.ignored.logtostderr.as_deref() == Some("false");
        [
            ("--logtostderr=false", logs_elsewhere),
            ("--alsologtostderr", alsologtostderr.is_some()),
            ("--add_dir_header", add_dir_header.is_some()),
            ("--skip_headers", skip_headers.is_some()),
            ("--skip_log_headers", skip_log_headers.is_some()),
            ("--one_output", one_output.is_some()),
            (
                "--legacy_stderr_threshold_behavior",
                legacy_stderr_threshold_behavior.is_some(),
            ),
            ("--stderrthreshold", stderrthreshold.is_some()),
            (
                "--alsologtostderrthreshold",
                alsologtostderrthreshold.is_some(),
            ),
            ("--vmodule", vmodule.is_some()),
            ("--log_backtrace_at", log_backtrace_at.is_some()),
            ("--log_dir", log_dir.is_some()),
            ("--log_file", log_file.is_some()),
            ("--log_file_max_size", log_file_max_size.is_some()),
            ("--log-flush-frequency", log_flush_frequency.is_some()),
        ]
        .into_iter()
        .filter_map(|(name, given)| given.then_some(name))
        .collect()
    }
}
