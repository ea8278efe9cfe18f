//! Which mappings an address and port may have been at a time, by what is known of each.

use std::collections::BTreeSet;

/// Milliseconds by which times of mappings may be off: a tick of the datapath.
const SLACK: u64 = 68;

/// The end of a mapping, as far as it is known. Times are in milliseconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    /// It ended.
    At(u64),
    /// It lives.
    Lives,
    /// It lived at a time, and ended in a gap.
    Unknown(u64),
}

/// A mapping that has, or had, the address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Candidate {
    /// Protocol.
    pub proto: String,
    /// Address and port of the pod.
    pub pod: String,
    /// Namespace and name of the pod.
    pub name: Option<String>,
    /// UID of the pod.
    pub uid: Option<String>,
    /// Address and port on the wire.
    pub seen_as: String,
    /// Destination, if it is known.
    pub to: Option<String>,
    /// Begin.
    pub begin: u64,
    /// End.
    pub end: End,
    /// The number of its last record; `None` if it is only in the maps.
    pub seq: Option<u64>,
}

/// A time in which mappings may have existed that the log lacks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Gap {
    /// Begin.
    pub from: u64,
    /// End.
    pub until: u64,
    /// The reason.
    pub why: String,
}

impl Gap {
    fn contains(&self, time: u64) -> bool {
        self.from <= time && time <= self.until
    }
}

/// The findings about a time.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Found {
    /// Mappings that had the address.
    pub sure: Vec<Candidate>,
    /// Mappings that may have had it.
    pub possible: Vec<Candidate>,
    /// The gap in which the time lies, unless the answer does not depend on it.
    pub gap: Option<Gap>,
}

/// The answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    /// One pod.
    One,
    /// Nobody.
    Nobody,
    /// It can't be told.
    Unknown,
}

impl Found {
    /// Returns the answer.
    pub(super) fn answer(&self) -> Answer {
        let pods: BTreeSet<_> = self.sure.iter().map(Candidate::owner).collect();
        match pods.len() {
            _ if !self.possible.is_empty() || self.gap.is_some() => Answer::Unknown,
            0 => Answer::Nobody,
            1 => Answer::One,
            _ => Answer::Unknown,
        }
    }
}

impl Candidate {
    /// Returns what distinguishes its pod: the name, or the address where there is no name.
    fn owner(&self) -> (Option<&str>, Option<&str>, &str) {
        match &self.name {
            Some(name) => (Some(name), self.uid.as_deref(), ""),
            None => (None, None, self.pod.rsplit_once(':').map_or("", |it| it.0)),
        }
    }

    /// Reports whether it can't have existed together with another: they have the same tuple.
    fn excludes(&self, other: &Self) -> bool {
        self.to.is_some()
            && self.to == other.to
            && self.proto == other.proto
            && self.seen_as == other.seen_as
    }

    /// Reports whether it had the address at a time; `None` if that is unknown.
    fn had(&self, time: u64, gaps: &[Gap]) -> Option<bool> {
        if time.saturating_add(SLACK) < self.begin {
            return Some(false);
        }
        match self.end {
            End::Lives => Some(true),
            End::At(end) => Some(time <= end.saturating_add(SLACK)),
            End::Unknown(lived) if time <= lived => Some(true),
            End::Unknown(lived) => {
                let ended_in = || gaps.iter().filter(|gap| gap.until > lived);
                let first = ended_in().map(|gap| gap.from).min();
                let last = ended_in().map(|gap| gap.until).max();
                match (first, last) {
                    (Some(first), _) if time < first => Some(true),
                    (_, Some(last)) if time > last => Some(false),
                    _ => None,
                }
            }
        }
    }
}

/// Finds the mappings that had the address at a time. `is_exact`: only one mapping at a time can be what
/// was asked for.
pub(super) fn find(all: Vec<Candidate>, gaps: &[Gap], time: u64, is_exact: bool) -> Found {
    let mut found = Found::default();
    let begun: Vec<_> = all.iter().filter(|it| it.begin <= time).collect();
    let is_over = |it: &Candidate| {
        begun
            .iter()
            .any(|later| later.begin > it.begin && later.excludes(it))
    };
    let had: Vec<_> = all
        .iter()
        .map(|it| match it.had(time, gaps) {
            // Another one has its tuple.
            Some(true) | None if is_over(it) => Some(false),
            had => had,
        })
        .collect();
    for (candidate, had) in all.into_iter().zip(had) {
        match had {
            Some(true) => found.sure.push(candidate),
            None => found.possible.push(candidate),
            Some(false) => {}
        }
    }
    let is_certain =
        is_exact && found.sure.len() == 1 && found.sure.iter().all(|it| it.to.is_some());
    if !is_certain {
        found.gap = gaps.iter().find(|gap| gap.contains(time)).cloned();
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(name: &str, begin: u64, end: End) -> Candidate {
        Candidate {
            proto: "tcp".into(),
            pod: format!("172.16.0.{begin}:1"),
            name: Some(name.into()),
            uid: None,
            seen_as: "10.1.0.10:1".into(),
            to: None,
            begin: begin * 1_000,
            end,
            seq: None,
        }
    }

    fn gap(from: u64, until: u64) -> Gap {
        Gap {
            from: from * 1_000,
            until: until * 1_000,
            why: "killed".into(),
        }
    }

    fn names(found: &[Candidate]) -> Vec<&str> {
        found.iter().filter_map(|it| it.name.as_deref()).collect()
    }

    #[test]
    fn the_mapping_of_the_time_is_found() {
        let all = || {
            vec![
                candidate("a", 10, End::At(20_000)),
                candidate("b", 30, End::Lives),
            ]
        };
        for (time, expected, answer) in [
            (9, vec![], Answer::Nobody),
            (10, vec!["a"], Answer::One),
            (20, vec!["a"], Answer::One),
            (25, vec![], Answer::Nobody),
            (31, vec!["b"], Answer::One),
        ] {
            let found = find(all(), &[], time * 1_000, false);
            assert_eq!(
                (names(&found.sure), found.answer()),
                (expected, answer),
                "{time}"
            );
        }
    }

    #[test]
    fn a_gap_makes_answers_unknown_where_they_depend_on_it() {
        let gaps = [gap(40, 45), gap(60, 61)];
        let lost = || vec![candidate("a", 10, End::Unknown(12_000))];
        let at = |time: u64| find(lost(), &gaps, time * 1_000, false).answer();
        assert_eq!(at(39), Answer::One, "no record was lost before");
        assert_eq!(at(42), Answer::Unknown);
        assert_eq!(at(50), Answer::Unknown, "it may have ended in either");
        assert_eq!(at(62), Answer::Nobody);
        let found = find(Vec::new(), &gaps, 41_000, false);
        assert_eq!(
            found.answer(),
            Answer::Unknown,
            "another may have begun and ended"
        );
        let alive = vec![candidate("a", 10, End::Unknown(50_000))];
        assert_eq!(find(alive, &gaps, 55_000, false).answer(), Answer::One);
    }

    #[test]
    fn a_tuple_has_one_mapping_at_a_time() {
        let to = |name, begin, end| Candidate {
            to: Some("192.0.2.1:443".into()),
            ..candidate(name, begin, end)
        };
        let gaps = [gap(40, 45)];
        let all = || {
            vec![
                to("a", 10, End::Unknown(12_000)),
                to("b", 42, End::At(90_000)),
            ]
        };
        let found = find(all(), &gaps, 44_000, true);
        assert_eq!(
            (names(&found.sure), found.answer()),
            (vec!["b"], Answer::One)
        );
        let found = find(all(), &gaps, 44_000, false);
        assert_eq!(
            found.answer(),
            Answer::Unknown,
            "others may have had the port"
        );
    }

    #[test]
    fn several_pods_at_a_port_are_told_apart_by_destinations_only() {
        let all = vec![
            candidate("a", 10, End::Lives),
            candidate("b", 11, End::Lives),
        ];
        let found = find(all, &[], 20_000, false);
        assert_eq!((found.sure.len(), found.answer()), (2, Answer::Unknown));
        let all = vec![
            candidate("a", 10, End::Lives),
            candidate("a", 11, End::Lives),
        ];
        assert_eq!(
            find(all, &[], 20_000, false).answer(),
            Answer::One,
            "one pod"
        );
    }
}
