//! Sums over all events by what became of them, so that they can be compared.

use crate::events::{Kind, Lost, LostOfKind, PerKind};
use crate::format::grouped;
use serde::Serialize;

/// The sums of this run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Totals {
    pub shown: PerKind<u64>,
    /// Events that --pod, --to or --count left out.
    pub filtered: PerKind<u64>,
    pub lost: PerKind<Lost>,
}

/// The sums of a kind, for programs: `seen` is the sum of all others.
#[derive(Debug, Serialize)]
struct OfKind {
    kind: Kind,
    seen: u64,
    shown: u64,
    filtered: u64,
    #[serde(flatten)]
    lost: Lost,
}

/// The last line, for programs.
#[derive(Debug, Serialize)]
struct Summary {
    schema: u32,
    event: &'static str,
    totals: Vec<OfKind>,
}

impl Totals {
    /// Adds what was lost.
    pub(super) fn add_lost(&mut self, lost: &[LostOfKind]) {
        self.lost.add(lost);
    }

    fn of(&self, kind: Kind) -> OfKind {
        let (shown, filtered, lost) = (self.shown[kind], self.filtered[kind], self.lost[kind]);
        OfKind {
            kind,
            seen: shown + filtered + lost.sum(),
            shown,
            filtered,
            lost,
        }
    }

    /// Returns the last line, for programs.
    pub(super) fn json(&self, schema: u32) -> serde_json::Result<String> {
        let all = Kind::ALL.into_iter().map(|kind| self.of(kind));
        serde_json::to_string(&Summary {
            schema,
            event: "summary",
            totals: all.filter(|it| it.seen > 0).collect(),
        })
    }

    /// Returns the last line, for people.
    pub(super) fn text(&self) -> String {
        let all: Vec<_> = Kind::ALL.into_iter().map(|kind| self.of(kind)).collect();
        let sum = |part: fn(&OfKind) -> u64| grouped(all.iter().map(part).sum());
        format!(
            "{} events: {} shown, {} left out by --pod, --to or --count; lost: {} over the limit, {} for a \
             full buffer, {} for a slow reader",
            sum(|it| it.seen),
            sum(|it| it.shown),
            sum(|it| it.filtered),
            sum(|it| it.lost.limited),
            sum(|it| it.lost.full),
            sum(|it| it.lost.reader),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seen_is_the_sum_of_all_others() {
        let mut totals = Totals::default();
        totals.shown[Kind::Drop] = 3;
        totals.filtered[Kind::Drop] = 2;
        totals.add_lost(&[LostOfKind {
            kind: Kind::Drop,
            lost: Lost {
                limited: 1000,
                full: 20,
                reader: 4,
            },
        }]);
        assert_eq!(
            totals.json(1).unwrap(),
            r#"{"schema":1,"event":"summary","totals":[{"kind":"drop","seen":1029,"shown":3,"filtered":2,"limited":1000,"full":20,"reader":4}]}"#
        );
        assert_eq!(
            totals.text(),
            "1,029 events: 3 shown, 2 left out by --pod, --to or --count; lost: 1,000 over the limit, 20 for \
             a full buffer, 4 for a slow reader"
        );
    }
}
