//! Metrics in the format of OpenMetrics, served as `/metrics`.
//!
//! [`table`] names them. Each [`Source`] adds its samples at a scrape: [`counters`] reads the pinned
//! maps of counters, [`sweeps`] has what the sweep's thread has counted, [`agent`] what the loop has
//! published, [`process`] asks the kernel. No source walks the mapping tables.

mod agent;
mod counters;
mod events;
mod namespaces;
mod nat_log;
mod ports;
mod process;
mod refusals;
mod samples;
mod sweeps;
mod table;

use crate::http::{Hosts, Queue, Request, Response, Routes, misdirected};
use anyhow::Result;
use hyper::StatusCode;
pub(crate) use samples::Samples;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

pub(crate) use agent::{AgentState, ConfigState, Published};
pub(crate) use counters::{PinnedCounters, never_less};
pub(crate) use sweeps::{SweepRecorder, Sweeps};
pub(crate) use table::MOST_TOP;

/// The content type of OpenMetrics' text.
const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Time limit of a scrape.
const PATIENCE: Duration = Duration::from_secs(3);

/// Series about pods that are published.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum PodSeries {
    /// No series about pods.
    Off,
    /// Pods are added up by namespace.
    Namespace,
    /// Those by namespace, and others for each pod.
    Pod,
}

/// Options of the metrics.
#[derive(Debug, Clone)]
pub struct MetricsOptions {
    /// Address for `/metrics` alone, from `--metrics-listen`.
    pub listen: Option<SocketAddr>,
    /// Series about pods, from `--metrics-pods`.
    pub pods: PodSeries,
    /// Destinations with series of their own, from `--metrics-top`.
    pub top: usize,
}

/// A part of the agent that has metrics.
pub(crate) trait Source: Send {
    /// Adds the samples of a scrape. Reads no more than a few hundred entries of maps.
    ///
    /// # Errors
    /// Returns an error if a map can't be read.
    fn collect(&self, samples: &mut Samples) -> Result<()>;
}

impl<T: Source + Sync> Source for Arc<T> {
    fn collect(&self, samples: &mut Samples) -> Result<()> {
        T::collect(self, samples)
    }
}

/// The sources of all metrics.
pub(crate) struct Metrics {
    sources: Mutex<Vec<Box<dyn Source>>>,
    queue: Queue,
    /// Values that the agent's loop publishes.
    agent: Arc<AgentState>,
}

impl Metrics {
    /// Returns the metrics of the process and of the agent.
    pub(crate) fn new() -> Self {
        let agent = Arc::new(AgentState::new());
        let process = process::Process::started();
        Self {
            sources: Mutex::new(vec![Box::new(process), Box::new(Arc::clone(&agent))]),
            queue: Queue::new(PATIENCE),
            agent,
        }
    }

    /// Returns what the agent's loop publishes.
    pub(crate) fn agent(&self) -> &AgentState {
        &self.agent
    }

    /// Adds a source.
    pub(crate) fn add(&self, source: impl Source + 'static) {
        lock(&self.sources).push(Box::new(source));
    }

    /// Adds the path of the metrics, for whoever names the listener as they like.
    pub(crate) fn route(self: &Arc<Self>, routes: Routes) -> Routes {
        let metrics = Arc::clone(self);
        routes.slow("/metrics", &self.queue, move |_| metrics.answer())
    }

    /// Adds the path of the metrics, except for requests that name another machine.
    pub(crate) fn guarded_route(self: &Arc<Self>, routes: Routes) -> Routes {
        let metrics = Arc::clone(self);
        let refusal = |request: &Request| misdirected(request, Hosts::Addresses);
        let answer = move |_: &Request| metrics.answer();
        routes.guarded("/metrics", &self.queue, refusal, answer)
    }

    fn answer(&self) -> Response {
        match self.text() {
            Ok(text) => Response::new(StatusCode::OK, CONTENT_TYPE, text),
            Err(err) => {
                log::warn!("metrics: {err:#}");
                let text = format!("{err:#}\n");
                Response::text(StatusCode::INTERNAL_SERVER_ERROR, text)
            }
        }
    }

    fn text(&self) -> Result<String> {
        let mut samples = Samples::default();
        for source in &*lock(&self.sources) {
            // The others are needed all the more.
            if let Err(err) = source.collect(&mut samples) {
                log::warn!("metrics: {err:#}");
            }
        }
        Ok(samples.into_text()?)
    }
}

/// Locks a value that is complete whenever it is not locked.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns a number as metrics have it: exact up to 2^53.
#[expect(clippy::cast_precision_loss, reason = "exact up to 2^53")]
const fn float(number: u64) -> f64 {
    number as f64
}
