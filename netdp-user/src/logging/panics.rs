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
