//! Settings that several files may make, of which one is in force.

use std::time::Duration;

use super::diagnostic::Diagnostic;
use super::key::Key;
use super::parse::{FileConfig, Setting};

/// Files with their names.
pub(super) type Files<'a> = &'a [(&'a str, FileConfig)];

/// Whether any file says `true`. Those that say `false` are told that they have no say.
pub(super) fn either(files: Files<'_>, key: Key, warnings: &mut Vec<Diagnostic>) -> bool {
    let Some((name, line)) = first_true(files, key) else {
        return false;
    };
    for (other, said) in of_all(files, |file| boolean(file, key)).filter(|(_, said)| !said.value) {
        let key = key.name();
        let message = format!("{key}: false has no effect, because {name}:{line} says true");
        warnings.push(Diagnostic::at(other, said.line, message));
    }
    true
}

/// The first file that says `true`, and the line.
pub(super) fn first_true<'a>(files: Files<'a>, key: Key) -> Option<(&'a str, usize)> {
    of_all(files, |file| boolean(file, key))
        .find(|(_, said)| said.value)
        .map(|(name, said)| (name, said.line))
}

fn boolean(file: &FileConfig, key: Key) -> Option<Setting<bool>> {
    match key {
        Key::MasqLinkLocal => file.masq_link_local,
        Key::MasqLinkLocalIpv6 => file.masq_link_local_ipv6,
        _ => None,
    }
}

/// The shortest interval of any file. Those that wanted a longer one are told.
pub(super) fn shortest_interval(
    files: Files<'_>,
    warnings: &mut Vec<Diagnostic>,
) -> Option<Duration> {
    let said = |file: &FileConfig| file.resync_interval;
    let (name, winner) = of_all(files, said).min_by_key(|(_, said)| said.value)?;
    for (other, said) in of_all(files, said).filter(|(_, said)| said.value > winner.value) {
        let message = format!(
            "{}: {:?} has no effect, because {name}:{} has the shorter {:?}",
            Key::ResyncInterval.name(),
            said.value,
            winner.line,
            winner.value
        );
        warnings.push(Diagnostic::at(other, said.line, message));
    }
    Some(winner.value)
}

fn of_all<'a, T>(
    files: Files<'a>,
    said: impl Fn(&FileConfig) -> Option<Setting<T>>,
) -> impl Iterator<Item = (&'a str, Setting<T>)> {
    files
        .iter()
        .filter_map(move |(name, file)| Some((*name, said(file)?)))
}
