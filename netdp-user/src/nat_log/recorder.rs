//! The recorder, which makes records of what it is told of mappings, each once.

use super::counters::Cause;
use super::queue::{Event, Gap, Numbered, Queue};
use super::state::Clock;
use crate::datapath::{EndedMapping, Identity, Watch};
use crate::time::now_milliseconds as now;
use netdp_common::layout::{Addr, Secret};
use netdp_common::packet::siphash;
use std::collections::HashMap;
use std::sync::Arc;

/// A mapping whose begin is in the log.
struct Begun {
    /// Time of its begin, in ticks.
    created: u32,
    /// The last pass in which it was seen.
    pass: u32,
}

/// Recorder of what the sweep and the programs tell.
pub(crate) struct Recorder {
    queue: Arc<Queue>,
    clock: Clock,
    watch: Watch,
    /// Living mappings in the log that began after `watch.since`, by their number.
    begun: HashMap<u64, Begun>,
    /// The most of them: as many as can live.
    most: usize,
    /// Number of the current pass.
    pass: u32,
    /// True if a begin found no room since the last pass.
    is_behind: bool,
    /// Time at which all reports of programs had been taken, in milliseconds since 1970.
    taken_at: u64,
}

impl Recorder {
    /// Creates the recorder that goes on where an earlier one ended: with its `watch`, where all reports of
    /// programs had been taken at a time. `most`: the mappings for which the tables have room.
    pub(super) fn new(
        queue: Arc<Queue>,
        clock: Clock,
        (watch, taken_at): (Watch, u64),
        most: usize,
    ) -> Self {
        Self {
            queue,
            clock,
            watch,
            begun: HashMap::new(),
            most,
            pass: 0,
            is_behind: false,
            taken_at,
        }
    }

    /// Converts ticks by this clock from now on.
    pub(super) const fn set_clock(&mut self, clock: Clock) {
        self.clock = clock;
    }

    /// Returns the mappings that it wants to know of.
    pub(crate) const fn watch(&self) -> Watch {
        self.watch
    }

    /// Records that the reports of programs were taken at a time, in milliseconds since 1970, and that so many
    /// were lost since the last time.
    pub(crate) fn taken(&mut self, at: u64, lost: u64) {
        let before = std::mem::replace(&mut self.taken_at, at);
        if lost == 0 {
            return;
        }
        self.queue.counters.lose(Cause::Programs, lost);
        // Some may have begun since the last pass.
        let from = self.watch.since.map(|since| self.clock.time(since));
        self.queue.add_gap(Gap {
            n: Some(lost),
            from: from.unwrap_or(before).min(before),
            until: now(),
            why: Cause::Programs.name(),
        });
    }

    /// Records a mapping that lives at a time, in ticks.
    pub(crate) fn lives(&mut self, now: u32, mapping: Numbered<Identity>) {
        if self.watch.is_new(now, mapping.of.created) {
            self.begins(mapping);
        } else {
            // Where there is no room, it is said with the next interval.
            self.queue.push(std::iter::once(Event::Alive(mapping, now)));
        }
    }

    fn begins(&mut self, mapping: Numbered<Identity>) {
        if let Some(begun) = self.begun.get_mut(&mapping.number) {
            begun.pass = self.pass;
            return;
        }
        let has_room = self.begun.len() < self.most;
        if has_room && self.queue.push(std::iter::once(Event::Begin(mapping))) {
            let begun = Begun {
                created: mapping.of.created,
                pass: self.pass,
            };
            self.begun.insert(mapping.number, begun);
        } else {
            // The next pass sees it again.
            self.is_behind = true;
        }
    }

    /// Records the end of a mapping, told at a time, in ticks. To be called once for each.
    pub(crate) fn ends(&mut self, now: u32, ended: &Numbered<EndedMapping>) {
        let Numbered { number, of } = *ended;
        let mapping = &of.mapping;
        let has_begun = self.begun.remove(&number).is_some();
        let is_new = self.watch.is_new(now, mapping.created) && !has_begun;
        let begin = Event::Begin(Numbered {
            number,
            of: *mapping,
        });
        let end = Event::End(*ended);
        let fits = if is_new {
            self.queue.push([begin, end].into_iter())
        } else {
            self.queue.push(std::iter::once(end))
        };
        if fits {
            return;
        }
        let until = self.clock.time(of.at);
        let from = if is_new {
            self.clock.time(mapping.created)
        } else {
            until
        };
        self.queue.lose(from, until);
    }

    /// Mappings are about to be removed, and will be told about once they are.
    pub(crate) fn removing(&self) {
        self.queue.removing();
    }

    /// They have been.
    pub(crate) fn removed(&self) {
        self.queue.removed();
    }

    /// Records that of mappings that were about to be removed, at most `most` in number, it is not known which
    /// have been.
    pub(crate) fn lost_track(&self, most: usize) {
        self.queue.removed();
        self.queue.counters.lose(Cause::Sweep, most as u64);
        let from = self.watch.since.map(|since| self.clock.time(since));
        self.queue.add_gap(Gap {
            n: None,
            from: from.unwrap_or(self.taken_at),
            until: now(),
            why: Cause::Sweep.name(),
        });
    }

    /// Records that a pass that began at a time, in ticks, has seen every mapping, and that the reports of
    /// programs have been taken since.
    pub(crate) fn passed(&mut self, begun: u32) {
        let pass = self.pass;
        self.pass = pass.wrapping_add(1);
        if std::mem::take(&mut self.is_behind) {
            // Whatever it has not seen has ended, told or not. If not, it would only begin once more.
            self.begun.retain(|_, it| it.pass == pass);
            return;
        }
        self.watch.since = Some(begun);
        let watch = self.watch;
        self.begun.retain(|_, it| watch.is_new(begun, it.created));
        self.queue.passed(begun);
    }
}

/// Returns the number of a mapping, by a node's secret: nothing about the mapping can be learnt from it
/// without that, and it is the same after a restart.
pub(crate) fn number(secret: Secret, mapping: &Identity) -> u64 {
    let [a, b] = words(&mapping.tuple.src);
    let [c, d] = words(&mapping.tuple.dst);
    let [e, f] = words(&mapping.addr);
    let ports = u64::from(mapping.tuple.src_id) << 32
        | u64::from(mapping.tuple.dst_id) << 16
        | u64::from(mapping.id);
    let rest = u64::from(mapping.tuple.proto) << 32 | u64::from(mapping.created);
    siphash::hash(secret, [a, b, c, d, e, f, ports, rest])
}

/// Returns an address as two words.
fn words(addr: &Addr) -> [u64; 2] {
    let [high, low] = [0, 8].map(|at| {
        let mut half = [0; 8];
        half.copy_from_slice(&addr.octets()[at..at + 8]);
        u64::from_be_bytes(half)
    });
    [high, low]
}

#[cfg(test)]
mod tests {
    use super::super::queue::Batch;
    use super::*;
    use crate::datapath::{EndedBy, MappingLog as _, Reports};
    use crate::ends::Ends;
    use netdp_common::layout::Tuple;
    use std::sync::Mutex;
    use std::time::Duration;

    fn mapping(number: u64) -> Numbered<Identity> {
        let [pod, to] = [[172, 16, 0, 2], [10, 2, 0, 1]].map(Addr::from_v4);
        let of = Identity {
            tuple: Tuple::new(pod, to, 1, 2, 6),
            addr: Addr::from_v4([10, 1, 0, 10]),
            id: 1,
            created: 100,
        };
        Numbered { number, of }
    }

    fn ended(number: u64) -> Numbered<EndedMapping> {
        let of = EndedMapping {
            mapping: mapping(number).of,
            at: 110,
            why: EndedBy::Timeout,
            packets: [0; 2],
            bytes: [None; 2],
        };
        Numbered { number, of }
    }

    fn recorder(most: usize) -> Recorder {
        let clock = Clock::at(100, 60_000);
        Recorder::new(Arc::default(), clock, (Watch::default(), 60_000), most)
    }

    /// Takes the numbers of mappings that have begun, and of those that have ended.
    fn told(recorder: &Recorder) -> (Vec<u64>, Vec<u64>, Batch) {
        let batch = recorder.queue.take(Duration::ZERO);
        let (mut begun, mut ended) = (Vec::new(), Vec::new());
        for event in &batch.events {
            match event {
                Event::Begin(it) => begun.push(it.number),
                Event::End(it) => ended.push(it.number),
                _ => {}
            }
        }
        recorder.queue.written(batch.events.len());
        (begun, ended, batch)
    }

    /// Has a pass see mappings.
    fn pass(recorder: &mut Recorder, live: impl IntoIterator<Item = u64>) {
        for number in live {
            recorder.lives(110, mapping(number));
        }
        recorder.passed(110);
    }

    #[test]
    fn what_finds_no_room_begins_with_the_next_pass_and_each_once() {
        let mut recorder = recorder(4);
        pass(&mut recorder, 0..6);
        assert_eq!(recorder.begun.len(), 4);
        let (mut begun, _, batch) = told(&recorder);
        assert_eq!(batch.since, None, "not all have begun in the log");
        // One ends that has begun, one that has not, and one of which nobody tells.
        recorder.ends(110, &ended(0));
        recorder.ends(110, &ended(5));
        pass(&mut recorder, 2..5);
        let (more, ended, batch) = told(&recorder);
        begun.extend(more);
        assert_eq!((begun, ended), (vec![0, 1, 2, 3, 5, 4], vec![0, 5]));
        assert_eq!(batch.since, Some(110));
        assert!(batch.gaps.is_empty());
        assert!(recorder.begun.is_empty(), "they are older than the pass");
    }

    #[test]
    fn what_is_remembered_of_a_log_that_stays_behind_is_bounded() {
        let mut recorder = recorder(1_000);
        for round in 0..50 {
            // Others live each time, and nobody tells that they have ended.
            pass(&mut recorder, round * 600..round * 600 + 1_001);
            assert!(recorder.begun.len() <= 1_000, "{}", recorder.begun.len());
            assert_eq!(told(&recorder).2.since, None);
        }
        pass(&mut recorder, 40_000..40_100);
        assert!(recorder.begun.len() <= 100, "those that were not seen");
        pass(&mut recorder, 40_000..40_100);
        assert_eq!(told(&recorder).2.since, Some(110), "it has caught up");
    }

    /// The reports of programs.
    #[derive(Clone, Default)]
    struct Programs(Arc<Mutex<(Vec<EndedMapping>, u64)>>);

    impl Reports for Programs {
        fn take(&mut self, most: usize) -> Vec<EndedMapping> {
            let reports = &mut self.0.lock().unwrap().0;
            let most = most.min(reports.len());
            reports.drain(..most).collect()
        }

        fn lost(&self) -> anyhow::Result<u64> {
            Ok(self.0.lock().unwrap().1)
        }

        fn now(&self) -> anyhow::Result<u32> {
            Ok(110)
        }
    }

    #[test]
    fn each_mapping_ends_once_whoever_ends_it() {
        let programs = Programs::default();
        let mut ends = Ends::over(Box::new(programs.clone()), [1, 2]).unwrap();
        let recorder = Arc::new(Mutex::new(recorder(1_000_000)));
        ends.tell_log(Arc::clone(&recorder), 0);
        let ended = |id: u16| {
            let mut ended = ended(0).of;
            ended.mapping.id = id;
            ended
        };
        let report = |id: u16| programs.0.lock().unwrap().0.push(ended(id));
        let told = || {
            let batch = recorder.lock().unwrap().queue.take(Duration::ZERO);
            let ids = batch.events.iter().filter_map(|event| match event {
                Event::End(it) => Some(it.of.mapping.id),
                _ => None,
            });
            ids.collect::<Vec<_>>()
        };
        // Two programs, then the sweep; many others in between.
        report(1);
        report(1);
        ends.take();
        let others: Vec<_> = (1..60_000).map(ended).collect();
        report(2);
        ends.tell(110, &[], &others);
        // The sweep, then a program.
        report(59_999);
        ends.passed(110);
        let mut ids = told();
        assert_eq!(ids.len(), 59_999);
        ids.sort_unstable();
        ids.dedup();
        assert_eq!(ids.len(), 59_999);
        // What has ended does not live, though a pass has read it before.
        ends.tell(110, &[ended(1).mapping], &[]);
        let batch = recorder.lock().unwrap().queue.take(Duration::ZERO);
        assert!(batch.events.is_empty(), "{:?}", batch.events);
        programs.0.lock().unwrap().1 = 7;
        ends.take();
        let gaps = recorder.lock().unwrap().queue.take(Duration::ZERO).gaps;
        assert_eq!((gaps[0].why, gaps[0].n), ("programs", Some(7)));
        assert_eq!(ends.lost(), 7);
    }
}
