//! Conclusions from two samples: rates, rows, and how long ports last.

use super::keys::{Keys, Tab};
use super::run_time::Runs;
use super::sampler::{Request, Sample};
use crate::datapath::{Destination, Usage, Use};
use crate::forecast::{PortsPast, most_used};
use crate::policy::PrefixUse;
use clap::ValueEnum;
use netdp_common::layout::{Counters, DropReason, Traffic};
use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};
use std::net::IpAddr;

/// Rates and sizes of the past that are kept for the bars.
const PAST: usize = 60;

/// Destinations whose mappings are counted by pod.
const WATCHED: usize = 10;

/// The part of a destination's ports, as a divisor, from which it is watched.
const WATCHED_FROM: u64 = 16;

/// The column by which rows are sorted, the highest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Sort {
    /// Live mappings.
    Mappings,
    /// New mappings per second.
    New,
    /// Bytes per second that pods send.
    Out,
    /// Bytes per second that are sent to pods.
    In,
}

impl Sort {
    /// Returns the next column.
    pub(super) const fn next(self) -> Self {
        match self {
            Self::Mappings => Self::New,
            Self::New => Self::Out,
            Self::Out => Self::In,
            Self::In => Self::Mappings,
        }
    }
}

/// Rates of one interface or of all of them, per second.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Rates {
    /// Masqueraded packets.
    pub masqueraded: f64,
    /// Their bytes.
    pub masqueraded_bytes: f64,
    /// Bypassed packets.
    pub bypassed: f64,
    /// Their bytes.
    pub bypassed_bytes: f64,
    /// Packets to pods whose destination was rewritten.
    pub replies: f64,
    /// Their bytes.
    pub replies_bytes: f64,
    /// Mappings that began.
    pub new: f64,
    /// Dropped packets, refused ones included.
    pub dropped: f64,
    /// Packets of new flows that were refused.
    pub refused: f64,
}

/// A pod or a destination.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Row<K> {
    /// Which one.
    pub key: K,
    /// Live mappings.
    pub mappings: u64,
    /// New mappings per second.
    pub new: f64,
    /// Bytes per second that pods send.
    pub out: f64,
    /// Bytes per second that are sent to pods.
    pub input: f64,
}

/// Everything that the screen shows.
#[derive(Debug, Default)]
pub(super) struct View {
    /// The last sample; `None` before the first.
    pub last: Option<Sample>,
    /// Rates of all interfaces.
    pub rates: Rates,
    /// Rates of each uplink.
    pub uplinks: Vec<(String, Rates)>,
    /// Drops: reason, packets so far, packets per second.
    pub drops: Vec<(DropReason, u64, f64)>,
    /// Rules of the policy, with packets and bytes per second; `None` at the first look.
    pub prefixes: Vec<(PrefixUse, Option<(f64, f64)>)>,
    /// Pods.
    pub pods: Vec<Row<IpAddr>>,
    /// Destinations.
    pub destinations: Vec<Row<Destination>>,
    /// Masqueraded packets per second, of the past.
    pub masqueraded: Vec<f64>,
    /// Bypassed packets per second.
    pub bypassed: Vec<f64>,
    /// New mappings per second.
    pub new: Vec<f64>,
    /// Live mappings.
    pub mappings: Vec<f64>,
    /// Nanoseconds of a run of the programs, if they are counted.
    pub run_time: Option<f64>,
    runs: Option<Runs>,
    /// Ports used towards the watched destinations, of the past.
    ports: PortsPast,
}

impl View {
    /// Returns what the next sample has to look at.
    pub(super) fn request(&self, keys: &Keys) -> Request {
        let since = self.last.as_ref().map(|sample| sample.usage.at);
        Request {
            since,
            watched: self.watched(),
            run_time: keys.shows_run_time(),
            prefixes: keys.tab == Tab::Prefixes,
        }
    }

    /// Returns the destinations towards which most ports are used.
    fn watched(&self) -> HashSet<Destination> {
        let Some(last) = &self.last else {
            return HashSet::new();
        };
        let most = most_used(&last.usage, last.ports / WATCHED_FROM, WATCHED);
        most.into_iter().collect()
    }

    /// Adds a sample.
    pub(super) fn add(&mut self, sample: Sample) {
        if let Some(last) = self.last.take() {
            let seconds = sample.at.duration_since(last.at).as_secs_f64().max(1e-3);
            self.rates = rates(&last.counters, &sample.counters, seconds);
            self.uplinks.clear();
            for uplink in &sample.uplinks {
                let before = last.uplinks.iter().find(|last| last.name == uplink.name);
                let before = before.map_or(uplink.counters, |last| last.counters);
                let rates = rates(&before, &uplink.counters, seconds);
                self.uplinks.push((uplink.name.clone(), rates));
            }
            self.drops = drops(&last.counters, &sample.counters, seconds);
            self.run_time = match (self.runs, sample.runs) {
                (Some(before), Some(now)) => mean(before, now),
                _ => None,
            };
            self.prefixes = prefixes(&last.prefixes, &sample.prefixes, seconds);
            self.pods = rows(&last.usage.pods, &sample.usage.pods, seconds);
            self.destinations = rows(
                &last.usage.destinations,
                &sample.usage.destinations,
                seconds,
            );
            push(&mut self.masqueraded, self.rates.masqueraded);
            push(&mut self.bypassed, self.rates.bypassed);
            push(&mut self.new, self.rates.new);
        }
        push(&mut self.mappings, float(sample.usage.protocols.total()));
        self.runs = sample.runs;
        self.last = Some(sample);
        self.remember_ports();
    }

    /// Keeps the past of the destinations that are watched from here on.
    fn remember_ports(&mut self) {
        let watched = self.watched();
        if let Some(last) = &self.last {
            self.ports.add(last.at, &watched, &last.usage);
        }
    }

    /// Returns in how many seconds the ports towards a destination will be used up, if they go on as
    /// in the past; `None` if they won't, or if that can't be told yet.
    pub(super) fn full_in(&self, key: &Destination) -> Option<u64> {
        self.ports.full_in(key, self.last.as_ref()?.ports)
    }

    /// Returns the destination towards which a pod uses the largest part of the ports, and how many;
    /// only watched destinations are told by pod.
    pub(super) fn worst(&self, pod: IpAddr) -> Option<(Destination, u64)> {
        let usage: &Usage = &self.last.as_ref()?.usage;
        let shares = usage.shares.iter().filter(|((of, _), _)| *of == pod);
        let worst = shares.max_by_key(|((_, key), used)| (**used, Reverse(*key)));
        worst.map(|((_, key), used)| (*key, *used))
    }

    /// Returns the destination towards which most ports are used, and how many of how many.
    pub(super) fn fullest(&self) -> Option<(Destination, u64, u64)> {
        let last = self.last.as_ref()?;
        let used = last.usage.destinations.iter();
        let (key, used) = used.max_by_key(|(key, used)| (used.mappings, Reverse(**key)))?;
        Some((*key, used.mappings, last.ports))
    }
}

/// Sorts rows by a column, the highest first.
pub(super) fn sort<K: Ord + Copy>(rows: &mut [&Row<K>], by: Sort) {
    rows.sort_by(|a, b| {
        let order = match by {
            Sort::Mappings => b.mappings.cmp(&a.mappings),
            Sort::New => b.new.total_cmp(&a.new),
            Sort::Out => b.out.total_cmp(&a.out),
            Sort::In => b.input.total_cmp(&a.input),
        };
        let order = order.then(b.mappings.cmp(&a.mappings));
        order.then(a.key.cmp(&b.key))
    });
}

fn push(past: &mut Vec<f64>, value: f64) {
    if past.len() >= PAST {
        past.remove(0);
    }
    past.push(value);
}

/// Returns a number for calculations, exact below 2^53.
#[expect(clippy::cast_precision_loss, reason = "shown with three digits")]
pub(crate) fn float(number: u64) -> f64 {
    number as f64
}

fn rates(before: &Counters, now: &Counters, seconds: f64) -> Rates {
    let rate = |count: &dyn Fn(&Counters) -> u64| {
        float(count(now).saturating_sub(count(before))) / seconds
    };
    let traffic =
        |of: &dyn Fn(&Counters) -> Traffic| (rate(&|c| of(c).packets), rate(&|c| of(c).bytes));
    let (masqueraded, masqueraded_bytes) = traffic(&|c| c.egress_masqueraded);
    let (bypassed, bypassed_bytes) = traffic(&|c| c.egress_bypassed);
    let (replies, replies_bytes) = traffic(&|c| c.ingress_translated);
    let dropped = |c: &Counters, is_counted: &dyn Fn(DropReason) -> bool| {
        let reasons = DropReason::ALL.iter().filter(|reason| is_counted(**reason));
        reasons.map(|reason| c.drops.get(*reason)).sum()
    };
    Rates {
        masqueraded,
        masqueraded_bytes,
        bypassed,
        bypassed_bytes,
        replies,
        replies_bytes,
        new: rate(&|c| c.mappings_created),
        dropped: rate(&|c| dropped(c, &|_| true)),
        refused: rate(&|c| dropped(c, &DropReason::is_refusal)),
    }
}

fn drops(before: &Counters, now: &Counters, seconds: f64) -> Vec<(DropReason, u64, f64)> {
    let mut drops: Vec<_> = (DropReason::ALL.iter())
        .map(|&reason| {
            let count = now.drops.get(reason);
            let more = count.saturating_sub(before.drops.get(reason));
            (reason, count, float(more) / seconds)
        })
        .filter(|(_, count, _)| *count > 0)
        .collect();
    drops.sort_by(|a, b| b.2.total_cmp(&a.2).then(b.1.cmp(&a.1)));
    drops
}

fn prefixes(
    before: &[PrefixUse],
    now: &[PrefixUse],
    seconds: f64,
) -> Vec<(PrefixUse, Option<(f64, f64)>)> {
    let before: HashMap<_, _> = before.iter().map(|it| (it.prefix, it)).collect();
    let each = now.iter().map(|it| {
        let rates = before.get(&it.prefix).map(|before| {
            let rate = |now: u64, before: u64| float(now.saturating_sub(before)) / seconds;
            (
                rate(it.packets, before.packets),
                rate(it.bytes, before.bytes),
            )
        });
        (it.clone(), rates)
    });
    each.collect()
}

fn mean(before: Runs, now: Runs) -> Option<f64> {
    let count = now.count.checked_sub(before.count)?;
    let nanos = now.nanos.checked_sub(before.nanos)?;
    (count > 0).then(|| float(nanos) / float(count))
}

/// Bytes of mappings that have ended meanwhile are not seen: what is left counts, never less than 0.
fn rows<K: std::hash::Hash + Eq + Copy>(
    before: &HashMap<K, Use>,
    now: &HashMap<K, Use>,
    seconds: f64,
) -> Vec<Row<K>> {
    let row = |(key, used): (&K, &Use)| {
        let earlier = before.get(key).copied().unwrap_or_default();
        let rate = |now: u64, before: u64| float(now.saturating_sub(before)) / seconds;
        Row {
            key: *key,
            mappings: used.mappings,
            new: float(used.new) / seconds,
            out: rate(used.bytes_out, earlier.bytes_out),
            input: rate(used.bytes_in, earlier.bytes_in),
        }
    };
    now.iter().map(row).collect()
}
