//! The thread that writes the log.

use super::counters::Cause;
use super::ipfix::Session;
use super::queue::{Batch, Event, Gap, Numbered, Queue};
use super::record::{Kind, Record, text};
use super::recorder::Recorder;
use super::sink::Sink;
use super::state::Saved;
use crate::codes::Code;
use crate::datapath::{EndedMapping, Identity, lock, protocol_name};
use crate::ends::SharedEnds;
use crate::pods::{Names, Owner};
use crate::state_dir::StateDir;
use crate::time::now_milliseconds as now;
use netdp_common::layout::Addr;
use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Interval at which reports of programs are taken and events are written.
const INTERVAL: Duration = Duration::from_millis(100);

/// Interval at which the state is saved, if there is anything new.
const SAVE_EVERY: Duration = Duration::from_secs(1);

/// Events that are written at once: some 1.4 MB.
const WRITTEN_AT_ONCE: usize = 4096;

/// Pause after a failure.
const PAUSE: Duration = Duration::from_millis(500);

/// Failures after which the end of the agent is not delayed any more.
const TRIES_AT_END: u32 = 3;

/// Time for which the end of the agent waits for a collector to read.
const READ_AT_END: Duration = Duration::from_secs(1);

/// The names of pods, read again for mappings that began since.
pub(super) struct NameCache {
    pub cni_dir: PathBuf,
    pub state_dir: StateDir,
    pub is_off: bool,
    /// With the time at which they were read, in milliseconds since 1970.
    names: Option<(Names, u64)>,
}

impl NameCache {
    /// Creates a cache that has read nothing.
    pub const fn new(cni_dir: PathBuf, state_dir: StateDir, is_off: bool) -> Self {
        Self {
            cni_dir,
            state_dir,
            is_off,
            names: None,
        }
    }

    /// Reads the names again if they are older than a begin, in milliseconds since 1970.
    fn refresh(&mut self, begin: u64) {
        let is_fresh = self.names.as_ref().is_some_and(|(_, at)| *at > begin);
        if !self.is_off && !is_fresh {
            let at = now();
            let names = Names::load(&self.cni_dir, &self.state_dir);
            self.names = Some((names, at));
        }
    }

    fn owner(&self, address: Addr, time: u64) -> Option<Owner<'_>> {
        let (names, _) = self.names.as_ref()?;
        names.owner(address.into(), time)
    }
}

/// The writer.
pub(super) struct Writer {
    pub queue: Arc<Queue>,
    pub recorder: Arc<Mutex<Recorder>>,
    pub ends: SharedEnds,
    pub sink: Sink,
    /// As it is saved; `next` is the number of the next record.
    pub state: Saved,
    pub state_dir: StateDir,
    pub names: NameCache,
    pub node: String,
    pub policy: Option<String>,
    pub with_destinations: bool,
    pub saved_at: Option<Instant>,
    /// Time before which all that there was to tell is on the disk, or has been read by the collector, in
    /// milliseconds since 1970.
    pub stored_until: u64,
}

impl Writer {
    /// Writes until the queue is closed. `gaps`: what an earlier agent has left out.
    pub fn run(mut self, gaps: Vec<Gap>) {
        let boot = self.state.boot.clone();
        let node = self.node.clone();
        let mut start = Vec::new();
        for gap in gaps {
            start.push(self.gap(gap, &boot, &node));
        }
        let mut record = self.record(Kind::Start, &boot, &node);
        record.at = Some(text(now()));
        record.version = Some(Cow::Borrowed(env!("CARGO_PKG_VERSION")));
        start.push(record);
        if !self.write_records(&start) {
            return;
        }
        self.save();
        loop {
            self.follow_clock();
            lock(&self.ends).take();
            let batch = self.queue.take(INTERVAL);
            let is_last = batch.is_last;
            if !self.write(batch) {
                // The state says that the log is incomplete.
                return;
            }
            if is_last {
                // What programs end from here on is the next agent's.
                lock(&self.ends).close_log();
                if !self.write_rest() {
                    return;
                }
                break;
            }
        }
        let complete = self.state.written_until();
        let mut record = self.record(Kind::Stop, &boot, &node);
        record.at = Some(text(now()));
        record.complete = Some(text(complete));
        if self.write_records(&[record]) && self.sync() {
            let end = Instant::now() + READ_AT_END;
            while !self.sink.is_stored() && Instant::now() < end {
                std::thread::sleep(Duration::from_millis(10));
            }
            self.state.is_clean = true;
            self.save();
        }
    }

    /// Writes what writing the last batch has added; `false` if that can't be done.
    fn write_rest(&mut self) -> bool {
        for _ in 0..TRIES_AT_END {
            let rest = self.queue.take(Duration::ZERO);
            if rest.events.is_empty() && rest.gaps.is_empty() {
                return true;
            }
            if !self.write(rest) {
                return false;
            }
        }
        false
    }

    /// Converts ticks by the node's clock as it is, if somebody has set it.
    fn follow_clock(&mut self) {
        let Ok(ticks) = lock(&self.ends).ticks() else {
            return;
        };
        let clock = self.state.clock.or_at(ticks, now());
        if clock != self.state.clock {
            log::info!(
                "the node's clock was set: the NAT log's times are by the new one from here on"
            );
            lock(&self.recorder).set_clock(clock);
            self.state.clock = clock;
        }
    }

    /// Writes a batch; `false` if the agent ends and nothing can be written.
    fn write(&mut self, batch: Batch) -> bool {
        let clock = self.state.clock;
        let begins = batch.events.iter().filter_map(|event| match event {
            Event::Begin(it) => Some(it.of.created),
            Event::End(it) => Some(it.of.mapping.created),
            Event::Alive(..) | Event::Policy(..) => None,
        });
        // A tick more: the begin is rounded.
        let latest = begins
            .map(|created| clock.time(created.wrapping_add(1)))
            .max();
        if let Some(latest) = latest.filter(|_| !self.sink.takes_sessions()) {
            self.names.refresh(latest);
        }
        let begun = Instant::now();
        for events in batch.events.chunks(WRITTEN_AT_ONCE) {
            if !self.write_events(events) {
                return false;
            }
            self.queue.written(events.len());
            self.queue.set_lag(begun.elapsed());
        }
        self.queue.set_lag(Duration::ZERO);
        let (boot, node) = (self.state.boot.clone(), self.node.clone());
        for gap in batch.gaps {
            warn_of(&gap);
            let record = self.gap(gap, &boot, &node);
            if !self.write_records(&[record]) {
                return false;
            }
        }
        let has_passed = batch.since.is_some();
        if has_passed {
            self.state.since = batch.since;
        }
        // Before the first pass nothing is complete.
        if self.state.since.is_some() {
            self.state.complete = batch.complete;
        }
        self.note_stored();
        self.state.lost = lock(&self.ends).lost();
        if has_passed || self.saved_at.is_none_or(|at| at.elapsed() >= SAVE_EVERY) {
            self.save();
        }
        if self.sink.is_rotation_due() && self.sync() {
            self.sink.rotate();
        }
        true
    }

    /// Has the disk store what was written; `false` if it may lack some of it, which is a gap then.
    fn sync(&mut self) -> bool {
        let Err((lines, err)) = self.sink.sync() else {
            return true;
        };
        log::warn!("the NAT log may lack {lines} records, which could not be stored: {err}");
        self.queue.counters.lose(Cause::Disk, lines);
        self.queue.add_gap(Gap {
            n: Some(lines),
            from: self.stored_until,
            until: now(),
            why: Cause::Disk.name(),
        });
        false
    }

    /// Saves the state, once the disk has what it promises.
    fn save(&mut self) {
        self.saved_at = Some(Instant::now());
        if !self.sync() {
            return;
        }
        self.state.unread_since = (!self.note_stored()).then_some(self.stored_until);
        if let Err(err) = self.state.save(&self.state_dir) {
            log::warn!("{err:#}");
        }
    }

    /// Notes up to which time all is stored, if nothing waits to be; reports whether that is so.
    fn note_stored(&mut self) -> bool {
        let is_stored = self.sink.is_stored();
        if is_stored {
            self.stored_until = self.state.written_until();
        }
        is_stored
    }

    /// Creates a record with the next number.
    fn record<'a>(&mut self, kind: Kind, boot: &'a str, node: &'a str) -> Record<'a> {
        let number = self.state.next;
        self.state.next += 1;
        Record::new(kind, number, boot, node)
    }

    fn gap<'a>(&mut self, gap: Gap, boot: &'a str, node: &'a str) -> Record<'a> {
        let mut record = self.record(Kind::Gap, boot, node);
        record.n = gap.n;
        // The clock may have been set back in between.
        record.from = Some(text(gap.from.min(gap.until)));
        record.until = Some(text(gap.until));
        record.why = Some(Cow::Borrowed(gap.why));
        record
    }

    fn write_events(&mut self, events: &[Event]) -> bool {
        if self.sink.takes_sessions() {
            return self.write_sessions(events);
        }
        let (boot, node) = (self.state.boot.clone(), self.node.clone());
        let mut lines = Vec::with_capacity(events.len() * 384);
        let mut kinds = Vec::with_capacity(events.len());
        for event in events {
            if let Event::Policy(hash, _) = event {
                self.policy = Some(hash.clone());
            }
            let number = self.state.next;
            self.state.next += 1;
            let record = self.event(event, Record::new(Kind::Begin, number, &boot, &node));
            kinds.push(record.event);
            put_line(&mut lines, &record);
        }
        let is_written = self.write_lines(&lines);
        if is_written {
            for kind in kinds {
                self.queue.counters.add_record(kind);
            }
        }
        is_written
    }

    /// Writes records that are not about one mapping; IPFIX has none such.
    fn write_records(&mut self, records: &[Record<'_>]) -> bool {
        if self.sink.takes_sessions() {
            return true;
        }
        let mut lines = Vec::new();
        for record in records {
            put_line(&mut lines, record);
        }
        let is_written = self.write_lines(&lines);
        for record in records.iter().filter(|_| is_written) {
            self.queue.counters.add_record(record.event);
        }
        is_written
    }

    /// Writes lines, and behind them a gap if earlier ones were lost: that may not wait, as an agent that
    /// is killed would not tell it.
    fn write_lines(&mut self, lines: &[u8]) -> bool {
        let Some(mut lacks_lines) = self.try_lines(lines) else {
            return false;
        };
        let (boot, node) = (self.state.boot.clone(), self.node.clone());
        while lacks_lines {
            let gap = Gap {
                n: None,
                from: self.stored_until,
                until: now(),
                why: self.sink.cause().name(),
            };
            warn_of(&gap);
            let mut line = Vec::new();
            put_line(&mut line, &self.gap(gap, &boot, &node));
            match self.try_lines(&line) {
                Some(lacks) => lacks_lines = lacks,
                None => return false,
            }
            self.queue.counters.add_record(Kind::Gap);
        }
        true
    }

    /// Writes lines until it succeeds, and reports whether earlier ones were lost; `None` if the agent ends
    /// before that.
    fn try_lines(&mut self, lines: &[u8]) -> Option<bool> {
        let waits = (&*self.queue, &self.ends);
        retry(waits, self.sink.cause(), || self.sink.write_lines(lines))
    }

    fn write_sessions(&mut self, events: &[Event]) -> bool {
        let clock = self.state.clock;
        let sessions: Vec<_> = events
            .iter()
            .filter_map(|event| match event {
                Event::Begin(it) => Some(Session {
                    mapping: &it.of,
                    begin: clock.time(it.of.created),
                    end: None,
                }),
                Event::End(it) => Some(Session {
                    mapping: &it.of.mapping,
                    begin: clock.time(it.of.mapping.created),
                    end: Some((clock.time(it.of.at), &it.of)),
                }),
                Event::Alive(..) | Event::Policy(..) => None,
            })
            .collect();
        let mut rest = &sessions[..];
        let waits = (&*self.queue, &self.ends);
        let sent = retry(waits, Cause::Collector, || {
            while !rest.is_empty() {
                let (sent, result) = match self.sink.write_sessions(rest) {
                    Ok(sent) => (sent, Ok(())),
                    Err((sent, err)) => (sent, Err(err)),
                };
                rest = rest.get(sent..).unwrap_or_default();
                result?;
            }
            self.sink.settle()
        });
        if sent.is_some() {
            for session in &sessions {
                let kind = if session.end.is_some() {
                    Kind::End
                } else {
                    Kind::Begin
                };
                self.queue.counters.add_record(kind);
            }
        }
        sent.is_some()
    }

    /// Fills in the record of an event.
    fn event<'a>(&'a self, event: &Event, mut record: Record<'a>) -> Record<'a> {
        match event {
            Event::Begin(it) => self.mapping(record, it),
            Event::Alive(it, at) => {
                record.event = Kind::Alive;
                record.at = Some(text(self.state.clock.time(*at)));
                self.mapping(record, it)
            }
            Event::End(it) => {
                record.event = Kind::End;
                self.ended(record, it)
            }
            Event::Policy(hash, at) => {
                record.event = Kind::Policy;
                record.at = Some(text(*at));
                record.policy = Some(Cow::Owned(hash.clone()));
                record
            }
        }
    }

    fn mapping<'a>(&'a self, mut record: Record<'a>, it: &Numbered<Identity>) -> Record<'a> {
        let mapping = &it.of;
        let begin = self.state.clock.time(mapping.created);
        record.id = Some(format!("{:016x}", it.number));
        record.proto = Some(protocol_name(mapping.tuple.proto));
        record.pod = Some(endpoint(mapping.tuple.src, mapping.tuple.src_id));
        record.seen_as = Some(endpoint(mapping.addr, mapping.id));
        if self.with_destinations {
            record.to = Some(endpoint(mapping.tuple.dst, mapping.tuple.dst_id));
        }
        if let Some(owner) = self.names.owner(mapping.tuple.src, begin) {
            let claim = owner.claim;
            record.ns = Some(Cow::Borrowed(&claim.namespace));
            record.name = Some(Cow::Borrowed(&claim.name));
            record.uid = claim.uid.as_deref().map(Cow::Borrowed);
        }
        record.begin = Some(text(begin));
        record.policy = self.policy.as_deref().map(Cow::Borrowed);
        record
    }

    fn ended<'a>(&'a self, record: Record<'a>, it: &Numbered<EndedMapping>) -> Record<'a> {
        let mapping = Numbered {
            number: it.number,
            of: it.of.mapping,
        };
        let mut record = self.mapping(record, &mapping);
        record.end = Some(text(self.state.clock.time(it.of.at)));
        record.why = Some(Cow::Borrowed(it.of.why.name()));
        record.packets = Some(it.of.packets);
        record.bytes = Some(it.of.bytes);
        record
    }
}

/// Calls `write` until it succeeds; `None` if the agent ends before that. Programs' reports are taken
/// meanwhile: the queue has more room than their ring buffer.
fn retry<T>(
    (queue, ends): (&Queue, &SharedEnds),
    cause: Cause,
    mut write: impl FnMut() -> std::io::Result<T>,
) -> Option<T> {
    let mut has_failed = false;
    let mut tries = 0;
    loop {
        let err = match write() {
            Ok(written) => {
                if has_failed {
                    queue.set_blocked(None);
                    log::info!("the NAT log is written again");
                }
                return Some(written);
            }
            Err(err) => err,
        };
        if !has_failed {
            has_failed = true;
            queue.set_blocked(Some(cause));
            log::warn!("the NAT log can't be written, is retried, and waits in memory: {err}");
        }
        lock(ends).take();
        if queue.wait_for_end(PAUSE) {
            tries += 1;
            if tries == TRIES_AT_END {
                return None;
            }
            std::thread::sleep(PAUSE);
        }
    }
}

fn warn_of(gap: &Gap) {
    log::warn!(
        code:% = Code::LogGap;
        "the NAT log lacks {} records ({}), see docs/nat-log.md {}",
        gap.n.map_or_else(|| "some".into(), |n| n.to_string()),
        gap.why,
        Code::LogGap
    );
}

fn put_line(lines: &mut Vec<u8>, record: &Record<'_>) {
    let begin = lines.len();
    match serde_json::to_writer(&mut *lines, record) {
        Ok(()) => lines.push(b'\n'),
        Err(err) => {
            lines.truncate(begin);
            log::warn!("a record of the NAT log: {err}");
        }
    }
}

fn endpoint(address: Addr, id: u16) -> String {
    SocketAddr::new(IpAddr::from(address), id).to_string()
}
