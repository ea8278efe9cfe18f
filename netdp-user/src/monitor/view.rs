//! The view of the events: filters, drops that are alike merged, lines, packets.

use super::capture::Capture;
use super::line::{Line, SCHEMA, local_time, reason};
use super::names::Known;
use super::totals::Totals;
use super::{Destination, Format, Options};
use crate::cli::output;
use crate::events::{Alike, Dropped, Event, Headers, Kind, LostOfKind, What};
use crate::flows::PodFilter;
use crate::format::grouped;
use crate::terminal;
use anyhow::Result;
use netdp_common::layout::{DropReason, EVENT_RATE};
use serde::Serialize;
use std::collections::{HashMap, VecDeque};
use std::io::{BufWriter, Stdout, Write as _};
use std::net::SocketAddr;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Time for which drops that are alike are merged.
const MERGED_FOR: Duration = Duration::from_secs(1);

/// Drops that are alike.
struct Group {
    kind: Kind,
    dropped: Dropped,
    headers: Option<Headers>,
    /// The time of the first.
    time: u64,
    count: u64,
    /// The time at which they are shown.
    due: Instant,
    /// True if their source ports, and their destination ports, differ.
    differs: (bool, bool),
}

/// A line about lost events, for programs.
#[derive(Serialize)]
struct LostLine<'a> {
    schema: u32,
    time: String,
    event: &'static str,
    lost: &'a [LostOfKind],
}

/// The output.
pub(super) struct View {
    options: Options,
    known: Known,
    /// `None` if packets go to standard output.
    out: Option<BufWriter<Stdout>>,
    capture: Option<Capture>,
    groups: HashMap<Alike, Group>,
    /// In the order of their first packets.
    order: VecDeque<Alike>,
    /// The time at which packets are written next.
    capture_at: Instant,
    lines: u64,
    /// Events a second of each kind and CPU that are reported.
    rate: u32,
    totals: Totals,
}

impl View {
    /// Prepares the output.
    ///
    /// # Errors
    /// Returns an error if there is no datapath, or the capture can't be made.
    pub(super) fn new(options: &Options) -> Result<Self> {
        let to_stdout = options.pcap == Some(Destination::Stdout);
        let known = Known::open(&options.sources())?;
        Ok(Self {
            options: options.clone(),
            known,
            out: (!to_stdout).then(output::stream),
            capture: options.pcap.as_ref().map(Capture::create).transpose()?,
            groups: HashMap::new(),
            order: VecDeque::new(),
            capture_at: Instant::now() + MERGED_FOR,
            lines: 0,
            rate: EVENT_RATE,
            totals: Totals::default(),
        })
    }

    /// Sets the number of events a second, of each kind and CPU, that are reported from here on.
    pub(super) const fn set_rate(&mut self, rate: u32) {
        self.rate = rate;
    }

    /// Returns the time of the next flush.
    pub(super) fn deadline(&self) -> Instant {
        let first = self.order.front().and_then(|alike| self.groups.get(alike));
        first.map_or(self.capture_at, |group| group.due.min(self.capture_at))
    }

    /// Reports whether all lines are shown that were asked for.
    pub(super) fn is_done(&self) -> bool {
        self.options.count.is_some_and(|count| self.lines >= count)
    }

    /// Shows an event, or keeps it to be merged with others.
    ///
    /// # Errors
    /// Returns an error if the output can't be written.
    pub(super) fn add(&mut self, event: Event) -> Result<()> {
        let kind = event.kind();
        let Event { time, what } = event;
        self.known.refresh();
        let line = match &what {
            What::Refused(dropped) | What::Drop(dropped) => {
                return self.add_drop(kind, dropped, time);
            }
            What::Begin(begun) if self.has(begun.ends.pod, begun.ends.to, time) => {
                Line::begun(begun, time, &mut self.known)
            }
            What::End(ended) if self.has(ended.ends.pod, ended.ends.to, time) => {
                Line::ended(ended, time, &self.known)
            }
            What::Config(note) | What::Finding(note) | What::Agent(note) if !self.has_filter() => {
                Line::note(kind, note, time)
            }
            _ => {
                self.totals.filtered[kind] += 1;
                return Ok(());
            }
        };
        self.write(kind, 1, &line)
    }

    fn has_filter(&self) -> bool {
        self.options.pod.is_some() || self.options.to.is_some()
    }

    /// Reports whether a flow passes the filters.
    fn has(&self, pod: SocketAddr, to: SocketAddr, time: u64) -> bool {
        let has_pod = match &self.options.pod {
            None => true,
            Some(PodFilter::Address(wanted)) => wanted.has(pod.ip(), pod.port()),
            Some(wanted @ PodFilter::Name(..)) => {
                let owner = self.known.owner(pod.ip(), time);
                owner.is_some_and(|it| wanted.has_name(&it.claim.namespace, &it.claim.name))
            }
        };
        let wanted = self.options.to;
        has_pod && wanted.is_none_or(|wanted| wanted.has(to.ip(), to.port()))
    }

    fn add_drop(&mut self, kind: Kind, dropped: &Dropped, time: u64) -> Result<()> {
        let headers = Headers::of(dropped);
        let passes = match (&headers, dropped.arriving) {
            (Some(it), false) => self.has(it.source, it.destination, time),
            (Some(it), true) => self.has(it.destination, it.source, time),
            (None, _) => !self.has_filter(),
        };
        if !passes || self.is_done() {
            self.totals.filtered[kind] += 1;
            return Ok(());
        }
        if let Some(capture) = &mut self.capture {
            let name = self.known.interface(dropped.ifindex);
            let reason = reason(dropped.reason).map_or("unknown", DropReason::name);
            capture.add(dropped, name, reason, time)?;
        }
        if self.out.is_none() {
            self.totals.shown[kind] += 1;
            self.lines += 1;
            return Ok(());
        }
        let alike = Alike::of(dropped, headers.as_ref(), kind == Kind::Refused);
        match self.groups.get_mut(&alike) {
            Some(group) => {
                group.count += 1;
                if let (Some(first), Some(this)) = (&group.headers, &headers) {
                    group.differs.0 |= first.source != this.source;
                    group.differs.1 |= first.destination != this.destination;
                }
            }
            None => {
                self.order.push_back(alike);
                let group = Group {
                    kind,
                    dropped: dropped.clone(),
                    headers,
                    time,
                    count: 1,
                    due: Instant::now() + MERGED_FOR,
                    differs: (false, false),
                };
                self.groups.insert(alike, group);
            }
        }
        Ok(())
    }

    /// Shows what was lost.
    ///
    /// # Errors
    /// Returns an error if the output can't be written.
    pub(super) fn lost(&mut self, lost: &[LostOfKind]) -> Result<()> {
        if lost.is_empty() {
            return Ok(());
        }
        self.totals.add_lost(lost);
        let Some(out) = &mut self.out else {
            return Ok(());
        };
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        let now = u64::try_from(since.unwrap_or_default().as_nanos()).unwrap_or(u64::MAX);
        match self.options.format {
            Format::Text => {
                let text = lost_text(lost, self.rate);
                writeln!(out, "{}  {:<8} {text}", local_time(now), "lost")?;
            }
            Format::Jsonl => {
                let line = LostLine {
                    schema: SCHEMA,
                    time: jiff::Timestamp::now()
                        .strftime("%Y-%m-%dT%H:%M:%S%.3fZ")
                        .to_string(),
                    event: "lost",
                    lost,
                };
                writeln!(out, "{}", serde_json::to_string(&line)?)?;
            }
        }
        out.flush()?;
        Ok(())
    }

    /// Writes the line of `events` events, unless all lines are shown that were asked for.
    fn write(&mut self, kind: Kind, events: u64, line: &Line) -> Result<()> {
        let is_done = self.is_done();
        let Some(out) = self.out.as_mut().filter(|_| !is_done) else {
            self.totals.filtered[kind] += events;
            return Ok(());
        };
        match self.options.format {
            Format::Text => writeln!(out, "{}", terminal::line(&line.to_text()))?,
            Format::Jsonl => writeln!(out, "{}", serde_json::to_string(line)?)?,
        }
        out.flush()?;
        self.lines += 1;
        self.totals.shown[kind] += events;
        Ok(())
    }

    /// Shows what was merged, if that is due.
    ///
    /// # Errors
    /// Returns an error if the output can't be written.
    pub(super) fn flush_if_due(&mut self) -> Result<()> {
        let now = Instant::now();
        self.flush_until(|group| group.due <= now)?;
        if now >= self.capture_at {
            self.flush_capture()?;
        }
        Ok(())
    }

    /// Shows what was merged.
    ///
    /// # Errors
    /// Returns an error if the output can't be written.
    pub(super) fn flush(&mut self) -> Result<()> {
        self.flush_until(|_| true)?;
        self.flush_capture()
    }

    /// Shows groups, in the order of their first events, until one is to be kept.
    fn flush_until(&mut self, is_over: impl Fn(&Group) -> bool) -> Result<()> {
        while let Some(alike) = self.order.front().copied()
            && let Some(group) = self.groups.get(&alike)
            && is_over(group)
        {
            let Some(group) = self.groups.remove(&alike) else {
                break;
            };
            self.order.pop_front();
            let line = Line::dropped(
                (group.kind, &group.dropped),
                group.headers.as_ref(),
                group.time,
                group.count,
                group.differs,
                &mut self.known,
            );
            self.write(group.kind, group.count, &line)?;
        }
        Ok(())
    }

    fn flush_capture(&mut self) -> Result<()> {
        self.capture_at = Instant::now() + MERGED_FOR;
        self.capture.as_mut().map_or(Ok(()), Capture::flush)
    }

    /// Shows what is left, and the sums.
    ///
    /// # Errors
    /// Returns an error if the output can't be written.
    pub(super) fn end(mut self) -> Result<()> {
        self.flush()?;
        if let (Some(out), Format::Jsonl) = (&mut self.out, self.options.format) {
            writeln!(out, "{}", self.totals.json(SCHEMA)?)?;
            out.flush()?;
        } else {
            eprintln!("netdp: {}", self.totals.text());
        }
        Ok(())
    }
}

/// Returns what was lost, for people.
fn lost_text(lost: &[LostOfKind], rate: u32) -> String {
    let each = |part: fn(&LostOfKind) -> u64| {
        let some = lost.iter().filter(|it| part(it) > 0);
        let some = some.map(|it| format!("{} {}", grouped(part(it)), it.kind.name()));
        let some: Vec<_> = some.collect();
        match some.is_empty() {
            true => "0".to_owned(),
            false => some.join(" "),
        }
    };
    format!(
        "{} (limit {}/s), {} full, {} slow reader",
        each(|it| it.lost.limited),
        grouped(rate.into()),
        each(|it| it.lost.full),
        each(|it| it.lost.reader)
    )
}

#[cfg(test)]
mod tests {
    use super::lost_text;
    use crate::events::{Kind, Lost, LostOfKind};

    #[test]
    fn losses_are_told_by_cause() {
        let lost = |kind, limited, reader| LostOfKind {
            kind,
            lost: Lost {
                limited,
                full: 0,
                reader,
            },
        };
        assert_eq!(
            lost_text(&[lost(Kind::Drop, 1204, 0)], 1000),
            "1,204 drop (limit 1,000/s), 0 full, 0 slow reader"
        );
        let both = [lost(Kind::Begin, 0, 7), lost(Kind::Drop, 2, 3)];
        assert_eq!(
            lost_text(&both, 20),
            "2 drop (limit 20/s), 0 full, 7 begin 3 drop slow reader"
        );
    }
}
