//! Mappings that a sweep has ended before their timeout, because the tables were nearly full.

use crate::codes::Code;
use crate::report::EndedForRoom;
use crate::time::now;
use std::time::Duration;
use tokio::time::Instant;

/// Minimum time between two log messages about it.
const TOLD_EVERY: Duration = Duration::from_secs(600);

/// Mappings that were ended for room since the agent started.
#[derive(Debug, Default)]
pub(super) struct ForRoom {
    pub(super) ended: Option<EndedForRoom>,
    /// Mappings ended since the last log message.
    untold: u64,
    told_at: Option<Instant>,
}

impl ForRoom {
    /// Counts mappings that a sweep has ended; returns whether there were any.
    pub(super) fn count(&mut self, ended: usize) -> bool {
        let ended = ended as u64;
        if ended > 0 {
            let before = self.ended.as_ref().map_or(0, |it| it.mappings);
            self.ended = Some(EndedForRoom {
                mappings: before + ended,
                last_at: now(),
            });
            self.untold += ended;
        }
        let is_due = self.told_at.is_none_or(|at| at.elapsed() >= TOLD_EVERY);
        if self.untold > 0 && is_due {
            log::warn!(
                code:% = Code::EndsForRoom;
                "the mapping tables are nearly full: {} mappings that had closed, or were never answered, \
                 ended before their timeout (--max-flows)",
                self.untold
            );
            (self.untold, self.told_at) = (0, Some(Instant::now()));
        }
        ended > 0
    }
}

#[cfg(test)]
mod tests {
    use super::ForRoom;

    #[test]
    fn what_is_ended_for_room_adds_up() {
        let mut room = ForRoom::default();
        assert!(!room.count(0) && room.ended.is_none());
        assert!(room.count(3) && room.count(4));
        assert_eq!(room.ended.map(|it| it.mappings), Some(7));
        assert_eq!(room.untold, 4, "the first message was a moment ago");
    }
}
