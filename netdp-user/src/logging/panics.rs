//! Messages of panics: the standard library's as text, ours as JSON.

use super::json::Fields;
use super::{KEPT, LogFormat};
use log::Level;
use std::io::Write as _;
use std::panic::PanicHookInfo;

/// Has panics reported in the form of the log.
pub(super) fn report(format: LogFormat) {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        let line = line(info);
        match format {
            LogFormat::Text => usual(info),
            LogFormat::Json => {
                let _ = std::io::stderr().write_all(line.as_bytes());
            }
        }
        if let Some(kept) = KEPT.get() {
            kept.write_now(&line);
        }
    }));
}

fn line(info: &PanicHookInfo<'_>) -> String {
    let thread = std::thread::current();
    let name = thread.name().unwrap_or("<unnamed>");
    let said = info.payload_as_str().unwrap_or("no message");
    let place = info
        .location()
        .map_or_else(String::new, |place| format!(" at {place}"));
    Fields::new(
        Level::Error,
        &format!("thread '{name}' panicked{place}: {said}"),
    )
    .line()
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    /// Set for the process of its own in which the test panics.
    const PANICS: &str = "NETDP_TEST_PANICS";

    #[test]
    fn a_panic_is_one_json_object() {
        if std::env::var_os(PANICS).is_some() {
            super::report(super::LogFormat::Json);
            panic!("on \"purpose\"\nin two lines");
        }
        let own = std::env::current_exe().unwrap();
        let name = "logging::panics::tests::a_panic_is_one_json_object";
        let mut again = Command::new(own);
        let ended = again
            .args(["--exact", name, "--nocapture"])
            .env(PANICS, "1");
        let told = String::from_utf8(ended.output().unwrap().stderr).unwrap();
        let line = told.lines().find(|line| line.starts_with('{')).unwrap();
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        assert_eq!(line["level"], "error");
        let message = line["msg"].as_str().unwrap();
        assert!(
            message.contains("panics.rs:") && message.ends_with("on \"purpose\"\\u{a}in two lines"),
            "{message}"
        );
    }
}
