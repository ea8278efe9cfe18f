//! The newest events, as the agent keeps them, in the same lines.

use super::line::Line;
use super::names::Known;
use crate::events::{Headers, Recent, Seen, What};
use std::path::Path;

/// Where names are read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sources<'a> {
    /// Directory of the pinned maps.
    pub bpffs: &'a Path,
    /// State directory of the agent.
    pub state_dir: &'a Path,
    /// libcni's cache of results.
    pub cni_dir: &'a Path,
}

/// Returns the newest events, the newest first. Names are read only if an event has any.
pub(crate) fn recent(events: &Recent, sources: &Sources<'_>) -> Vec<Line> {
    let newest = events.newest();
    let has_names = newest.iter().any(|it| it.event.kind().is_of_flow());
    // Without a datapath there are no events that have names, or they were of one that is gone.
    let mut known = has_names.then(|| Known::open(sources).ok()).flatten();
    let lines = newest.iter().map(|it| line(it, known.as_mut()));
    lines.flatten().collect()
}

/// Returns the line of an event; `None` if its names can't be read.
fn line(seen: &Seen, known: Option<&mut Known>) -> Option<Line> {
    let (kind, at) = (seen.event.kind(), seen.event.time);
    Some(match &seen.event.what {
        What::Config(note) | What::Finding(note) | What::Agent(note) => Line::note(kind, note, at),
        What::Begin(begun) => Line::begun(begun, at, known?),
        What::End(ended) => Line::ended(ended, at, known?),
        What::Refused(dropped) | What::Drop(dropped) => {
            let headers = Headers::of(dropped);
            let packet = (kind, dropped);
            Line::dropped(
                packet,
                headers.as_ref(),
                at,
                seen.count,
                seen.differs,
                known?,
            )
        }
    })
}
