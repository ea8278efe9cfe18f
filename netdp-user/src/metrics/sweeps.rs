//! Metrics that the sweep's thread makes from what its passes read anyway.

use super::namespaces::{Pods, Sums};
use super::ports::Ports;
use super::refusals::Refusals;
use super::samples::Samples;
use super::table::{
    ENDED, ENTRIES, MAPPINGS, MAPPINGS_MAX, MAX_ENTRIES, Metric, NAMESPACES, NS_CREATED,
    NS_MAPPINGS, NS_RECEIVED, NS_REFUSED, NS_SENT, POD_CREATED, POD_MAPPINGS, POD_RECEIVED,
    POD_REFUSED, POD_SENT, PODS, SWEEP, SWEEP_CPU,
};
use super::{MetricsOptions, PodSeries, Source, float, lock};
use crate::datapath::{ByProtocol, Capacities, SweepStats, Sweeper, cpu_time};
use crate::pods::Index;
use anyhow::Result;
use prometheus_client::metrics::histogram::Histogram;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Bounds of the distribution of sweeps' times, in seconds.
const DURATIONS: [f64; 8] = [0.001, 0.005, 0.02, 0.1, 0.5, 1.0, 2.0, 5.0];

/// The metrics of pods: each sum with those of its labels.
type PodMetrics = [&'static Metric; 5];
const BY_NAMESPACE: PodMetrics = [NS_MAPPINGS, NS_CREATED, NS_SENT, NS_RECEIVED, NS_REFUSED];
const BY_POD: PodMetrics = [
    POD_MAPPINGS,
    POD_CREATED,
    POD_SENT,
    POD_RECEIVED,
    POD_REFUSED,
];

/// Mappings that have ended, by why.
#[derive(Debug, Default)]
struct Ended {
    timeout: usize,
    address_gone: usize,
    policy: usize,
    room: usize,
    repair: usize,
}

/// Entries of the tables that only the sweep knows.
#[derive(Debug, Default)]
struct Entries {
    reservations: usize,
    carried: usize,
    inbound: usize,
}

/// The counts that a scrape reads.
#[derive(Debug)]
struct State {
    ended: Ended,
    protocols: ByProtocol,
    replied: ByProtocol,
    entries: Entries,
    ports: Ports,
    sums: Vec<(Sums, PodMetrics)>,
    /// Times of sweeps with a full pass.
    full: Histogram,
    /// Times of others.
    due: Histogram,
    cpu: Duration,
}

/// Counts of the sweep's thread.
#[derive(Debug)]
pub(crate) struct Sweeps {
    capacities: Capacities,
    state: Mutex<State>,
}

impl Sweeps {
    /// Returns empty counts for tables with these capacities.
    pub(crate) fn new(capacities: Capacities, options: &MetricsOptions) -> Self {
        let mut sums = Vec::new();
        if options.pods != PodSeries::Off {
            sums.push((Sums::by_namespace(NAMESPACES), BY_NAMESPACE));
        }
        if options.pods == PodSeries::Pod {
            sums.push((Sums::by_pod(PODS), BY_POD));
        }
        let state = State {
            ended: Ended::default(),
            protocols: ByProtocol::default(),
            replied: ByProtocol::default(),
            entries: Entries::default(),
            ports: Ports::default(),
            sums,
            full: Histogram::new(DURATIONS),
            due: Histogram::new(DURATIONS),
            cpu: Duration::ZERO,
        };
        Self {
            capacities,
            state: Mutex::new(state),
        }
    }
}

impl Source for Sweeps {
    fn collect(&self, samples: &mut Samples) -> Result<()> {
        let state = lock(&self.state);
        let (all, replied) = (by_name(&state.protocols), by_name(&state.replied));
        let mut live = 0;
        for ((protocol, all), (_, replied)) in all.into_iter().zip(replied) {
            let unreplied = all.saturating_sub(replied);
            live += all;
            samples.gauge(MAPPINGS, &[protocol, "replied"], float(all - unreplied));
            samples.gauge(MAPPINGS, &[protocol, "unreplied"], float(unreplied));
        }
        let (capacities, entries) = (&self.capacities, &state.entries);
        samples.gauge(MAPPINGS_MAX, &[], capacities.snat.into());
        let tables = [
            ("snat", live, capacities.snat),
            (
                "rev_snat",
                live + entries.reservations as u64,
                capacities.rev_snat,
            ),
            ("traffic", entries.carried as u64, capacities.traffic),
            (
                "inbound_live",
                entries.inbound as u64,
                capacities.inbound_live,
            ),
        ];
        for (table, entries, most) in tables {
            samples.gauge(ENTRIES, &[table], float(entries));
            samples.gauge(MAX_ENTRIES, &[table], most.into());
        }
        samples.gauge(MAX_ENTRIES, &["policy"], capacities.policy.into());
        samples.gauge(MAX_ENTRIES, &["local_addrs"], capacities.local_addrs.into());
        let ended = &state.ended;
        for (why, count) in [
            ("timeout", ended.timeout),
            ("address_gone", ended.address_gone),
            ("policy", ended.policy),
            ("room", ended.room),
            ("repair", ended.repair),
        ] {
            samples.count(ENDED, &[why], count as u64);
        }
        state.ports.collect(samples);
        for (sums, [mappings, created, sent, received, refused]) in &state.sums {
            for (name, sum) in sums.iter() {
                let labels: Vec<_> = name.iter().map(String::as_str).collect();
                samples.gauge(mappings, &labels, float(sum.mappings));
                samples.count(created, &labels, sum.began);
                samples.count(sent, &labels, sum.sent);
                samples.count(received, &labels, sum.received);
                samples.count(refused, &labels, sum.refused);
            }
        }
        samples.histogram(SWEEP, &["full"], &state.full);
        samples.histogram(SWEEP, &["due"], &state.due);
        samples.seconds(SWEEP_CPU, state.cpu.as_secs_f64());
        Ok(())
    }
}

/// Returns the numbers of each protocol with its label.
const fn by_name(numbers: &ByProtocol) -> [(&'static str, u64); 4] {
    [
        ("tcp", numbers.tcp),
        ("udp", numbers.udp),
        ("icmp", numbers.icmp),
        ("other", numbers.other),
    ]
}

/// The part of the sweep's thread that counts.
pub(crate) struct SweepRecorder {
    sweeps: Arc<Sweeps>,
    /// Destinations with series of their own.
    top: usize,
    names: Option<Arc<Mutex<Index>>>,
    pods: Pods,
    refusals: Refusals,
}

impl SweepRecorder {
    /// Counts for these metrics. `names`: the names of pods, if they are known.
    pub(crate) fn new(
        sweeps: Arc<Sweeps>,
        options: &MetricsOptions,
        names: Option<Arc<Mutex<Index>>>,
    ) -> Self {
        Self {
            sweeps,
            top: options.top,
            names,
            pods: Pods::default(),
            refusals: Refusals::default(),
        }
    }

    /// Takes in the result of a sweep that began at `begun`.
    pub(crate) fn record(&mut self, sweeper: &mut Sweeper, stats: &SweepStats, begun: Instant) {
        let now = Instant::now();
        let took = now.duration_since(begun).as_secs_f64();
        let counts = sweeper.take_counts();
        let peaks = sweeper.take_peaks().map(|peaks| {
            let ports = sweeper.maps().ports_of_destination();
            ports.map(|ports| (peaks, ports))
        });
        let mut state = lock(&self.sweeps.state);
        let ended = &mut state.ended;
        ended.timeout += stats.expired;
        ended.address_gone += stats.address_gone;
        ended.policy += stats.retired;
        ended.room += stats.evicted;
        ended.repair += stats.repaired;
        state.entries.inbound = sweeper.inbound();
        if let Ok(cpu) = cpu_time() {
            state.cpu = cpu;
        }
        match peaks.transpose() {
            Ok(Some((peaks, ports))) => {
                let usage = counts.as_ref().map(|(census, _)| &census.usage);
                (state.ports).update(&peaks, usage, (ports, self.top), now);
            }
            Ok(None) => {}
            Err(err) => log::warn!("metrics of ports: {err:#}"),
        }
        let Some((census, changes)) = counts else {
            state.due.observe(took);
            return;
        };
        state.full.observe(took);
        state.protocols = census.usage.protocols;
        state.replied = census.replied;
        state.entries.reservations = census.reservations;
        state.entries.carried = census.carried;
        let nobody = Index::default();
        let names = self.names.as_ref().map(|names| lock(names));
        let names = names.as_deref().unwrap_or(&nobody);
        let mut sums: Vec<_> = state.sums.iter_mut().map(|(sums, _)| sums).collect();
        self.pods
            .update(&mut sums, (&census.usage, &changes), names, now);
        let pods = census.usage.pods.keys().copied();
        if let Err(err) = (self.refusals).update(&mut sums, sweeper.maps(), pods, names, now) {
            log::warn!("metrics of refusals: {err:#}");
        }
    }
}
