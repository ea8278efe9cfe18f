//! The samples of one scrape, and their text in the format of OpenMetrics.

use super::table::{ALL, Kind, Metric};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{
    DescriptorEncoder, EncodeMetric as _, MetricEncoder, NoLabelSet, text,
};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use std::collections::HashMap;
use std::fmt;

/// Value of a sample.
#[derive(Debug, Clone)]
enum Value {
    Count(u64),
    Seconds(f64),
    Gauge(f64),
    Info,
    Histogram(Histogram),
    Distribution(Distribution),
}

/// A distribution that something else has counted.
#[derive(Debug, Clone)]
pub(super) struct Distribution {
    /// Sum of all values.
    pub sum: u64,
    /// Upper bounds, and how many values are in each class. The last class has no bound.
    pub classes: Vec<(f64, u64)>,
}

/// A sample with the values of its metric's labels.
#[derive(Debug, Clone)]
struct Sample {
    labels: Vec<String>,
    value: Value,
}

/// The samples of one scrape, by the name of their metric.
#[derive(Debug, Default)]
pub(crate) struct Samples(HashMap<&'static str, Vec<Sample>>);

impl Samples {
    /// Adds a counter.
    pub(super) fn count(&mut self, metric: &'static Metric, labels: &[&str], count: u64) {
        self.add(metric, labels, Value::Count(count));
    }

    /// Adds a counter of seconds.
    pub(super) fn seconds(&mut self, metric: &'static Metric, seconds: f64) {
        self.add(metric, &[], Value::Seconds(seconds));
    }

    /// Adds a gauge.
    pub(super) fn gauge(&mut self, metric: &'static Metric, labels: &[&str], value: f64) {
        self.add(metric, labels, Value::Gauge(value));
    }

    /// Adds text in labels.
    pub(super) fn info(&mut self, metric: &'static Metric, labels: &[&str]) {
        self.add(metric, labels, Value::Info);
    }

    /// Adds a distribution.
    pub(super) fn histogram(
        &mut self,
        metric: &'static Metric,
        labels: &[&str],
        histogram: &Histogram,
    ) {
        self.add(metric, labels, Value::Histogram(histogram.clone()));
    }

    /// Adds a distribution that something else has counted.
    pub(super) fn distribution(&mut self, metric: &'static Metric, distribution: Distribution) {
        self.add(metric, &[], Value::Distribution(distribution));
    }

    fn add(&mut self, metric: &'static Metric, labels: &[&str], value: Value) {
        debug_assert_eq!(labels.len(), metric.labels.len(), "{}", metric.name);
        let samples = self.0.entry(metric.name).or_default();
        debug_assert!(samples.len() < metric.most, "{}", metric.name);
        let labels = labels.iter().map(|it| (*it).to_owned()).collect();
        samples.push(Sample { labels, value });
    }

    /// Returns the text of all samples, in the order of the table of metrics.
    ///
    /// # Errors
    /// Returns an error if formatting fails.
    pub(super) fn into_text(self) -> Result<String, fmt::Error> {
        let mut registry = Registry::default();
        registry.register_collector(Box::new(self));
        let mut out = String::new();
        text::encode(&mut out, &registry)?;
        Ok(out)
    }
}

impl Collector for Samples {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        for metric in ALL {
            let Some(samples) = self.0.get(metric.name) else {
                continue;
            };
            let (suffix, kind) = match metric.kind {
                Kind::Counter => ("_total", MetricType::Counter),
                Kind::Gauge => ("", MetricType::Gauge),
                Kind::Histogram => ("", MetricType::Histogram),
                Kind::Info => ("_info", MetricType::Info),
            };
            let name = metric.name.strip_suffix(suffix).unwrap_or(metric.name);
            let mut family = encoder.encode_descriptor(name, metric.help, None, kind)?;
            for sample in samples {
                let values = sample.labels.iter().map(String::as_str);
                let labels: Vec<_> = metric.labels.iter().copied().zip(values).collect();
                encode(&mut family, labels, &sample.value)?;
            }
        }
        Ok(())
    }
}

fn encode(family: &mut MetricEncoder<'_>, labels: Vec<(&str, &str)>, value: &Value) -> fmt::Result {
    if let Value::Info = value {
        return family.encode_info(&labels);
    }
    let mut encoder = family.encode_family(&labels)?;
    match value {
        Value::Count(count) => encoder.encode_counter::<NoLabelSet, _, u64>(count, None),
        Value::Seconds(seconds) => encoder.encode_counter::<NoLabelSet, _, f64>(seconds, None),
        Value::Gauge(value) => encoder.encode_gauge(value),
        Value::Histogram(histogram) => histogram.encode(encoder),
        Value::Distribution(Distribution { sum, classes }) => {
            let count = classes.iter().map(|(_, count)| count).sum();
            encoder.encode_histogram::<NoLabelSet>(*sum as f64, count, classes, None)
        }
        Value::Info => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::table::{BUILD, DROPPED, READY, SWEEP, SWEEP_CPU};
    use super::Samples;
    use prometheus_client::metrics::histogram::Histogram;

    #[test]
    fn the_text_is_open_metrics_in_the_order_of_the_table() {
        let mut samples = Samples::default();
        samples.seconds(SWEEP_CPU, 0.25);
        let durations = Histogram::new([0.1, 1.0]);
        durations.observe(0.5);
        samples.histogram(SWEEP, &["full"], &durations);
        samples.gauge(READY, &[], 1.0);
        samples.info(BUILD, &["0.1.0", "0123abcd4567", "ebpf", "6.1"]);
        samples.count(DROPPED, &["eth0", "egress", "malformed"], 0);
        samples.count(DROPPED, &["a\"b\\c\nd", "egress", "table_full"], 7);
        let text = samples.into_text().unwrap();
        assert_eq!(
            text,
            "# HELP netdp_dropped_packets Packets that were dropped, by reason; each reason has one \
             direction, or counts both (either).\n\
             # TYPE netdp_dropped_packets counter\n\
             netdp_dropped_packets_total{uplink=\"eth0\",direction=\"egress\",reason=\"malformed\"} 0\n\
             netdp_dropped_packets_total{uplink=\"a\\\"b\\\\c\\nd\",direction=\"egress\",reason=\"table_full\"} 7\n\
             # HELP netdp_build Version, revision of the sources and mode of the agent, and release of \
             the kernel.\n\
             # TYPE netdp_build info\n\
             netdp_build_info{version=\"0.1.0\",revision=\"0123abcd4567\",mode=\"ebpf\",kernel=\"6.1\"} 1\n\
             # HELP netdp_ready 1 if the node is ready, as /readyz answers.\n\
             # TYPE netdp_ready gauge\n\
             netdp_ready 1.0\n\
             # HELP netdp_sweep_duration_seconds Time that a sweep took, with a full pass or without.\n\
             # TYPE netdp_sweep_duration_seconds histogram\n\
             netdp_sweep_duration_seconds_sum{kind=\"full\"} 0.5\n\
             netdp_sweep_duration_seconds_count{kind=\"full\"} 1\n\
             netdp_sweep_duration_seconds_bucket{le=\"0.1\",kind=\"full\"} 0\n\
             netdp_sweep_duration_seconds_bucket{le=\"1.0\",kind=\"full\"} 1\n\
             netdp_sweep_duration_seconds_bucket{le=\"+Inf\",kind=\"full\"} 1\n\
             # HELP netdp_sweep_cpu_seconds CPU time of the sweep's thread.\n\
             # TYPE netdp_sweep_cpu_seconds counter\n\
             netdp_sweep_cpu_seconds_total 0.25\n\
             # EOF\n"
        );
    }
}
