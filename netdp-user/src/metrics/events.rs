//! Metrics of the events that `netdp monitor` shows.

use super::table::{EVENTS, EVENTS_LOST};
use super::{Samples, Source};
use crate::events::{EventCounters, Kind};
use anyhow::Result;

impl Source for EventCounters {
    fn collect(&self, samples: &mut Samples) -> Result<()> {
        for kind in Kind::ALL {
            let (seen, lost) = self.for_metrics(kind)?;
            let kind = kind.name();
            samples.count(EVENTS, &[kind], seen);
            let causes = [
                ("limited", lost.limited),
                ("full", lost.full),
                ("reader", lost.reader),
            ];
            for (cause, lost) in causes {
                samples.count(EVENTS_LOST, &[kind, cause], lost);
            }
        }
        Ok(())
    }
}
