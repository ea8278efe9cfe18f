//! Settings that several files may contain, of which one is in force.

use std::time::Duration;

use super::diagnostic::Diagnostic;
use super::key::Key;
use super::parse::{FileConfig, Setting};

/// Files with their names.
pub(super) type Files<'a> = &'a [(&'a str, FileConfig)];

/// Reports whether any file sets `true`. Files that set `false` get a warning that it has no
/// effect.
pub(super) fn any_true(files: Files<'_>, key: Key, warnings: &mut Vec<Diagnostic>) -> bool {
    let Some((name, line)) = first_true(files, key) else {
        return false;
    };
    for (other, setting) in
        settings_of(files, |file| boolean(file, key)).filter(|(_, setting)| !setting.value)
    {
        let key = key.name();
        let message = format!("{key}: false has no effect, because {name}:{line} sets true");
        warnings.push(Diagnostic::at(other, setting.line, message));
    }
    true
}

/// Returns the first file that sets `true`, and the line.
pub(super) fn first_true<'a>(files: Files<'a>, key: Key) -> Option<(&'a str, usize)> {
    settings_of(files, |file| boolean(file, key))
        .find(|(_, setting)| setting.value)
        .map(|(name, setting)| (name, setting.line))
}

fn boolean(file: &FileConfig, key: Key) -> Option<Setting<bool>> {
    match key {
        Key::MasqLinkLocal => file.masq_link_local,
        Key::MasqLinkLocalIpv6 => file.masq_link_local_ipv6,
        _ => None,
    }
}

/// Returns the shortest interval of any file. Files with a longer one get a warning.
pub(super) fn shortest_interval(
    files: Files<'_>,
    warnings: &mut Vec<Diagnostic>,
) -> Option<Duration> {
    let interval = |file: &FileConfig| file.resync_interval;
    let (name, winner) = settings_of(files, interval).min_by_key(|(_, setting)| setting.value)?;
    for (other, setting) in
        settings_of(files, interval).filter(|(_, setting)| setting.value > winner.value)
    {
        let message = format!(
            "{}: {:?} has no effect, because {name}:{} has the shorter {:?}",
            Key::ResyncInterval.name(),
            setting.value,
            winner.line,
            winner.value
        );
        warnings.push(Diagnostic::at(other, setting.line, message));
    }
    Some(winner.value)
}

fn settings_of<'a, T>(
    files: Files<'a>,
    setting: impl Fn(&FileConfig) -> Option<Setting<T>>,
) -> impl Iterator<Item = (&'a str, Setting<T>)> {
    files
        .iter()
        .filter_map(move |(name, file)| Some((*name, setting(file)?)))
}
