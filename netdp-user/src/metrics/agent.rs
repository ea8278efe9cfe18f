//! Metrics of what the agent's loop has published.

use super::samples::Samples;
use super::table::{
    API, API_HEARD, APPLIED, APPLY, BUILD, CONFIG_INFO, ENTRIES, FINDINGS, FOREIGN, GENERATION,
    READY, RELOADED, RELOADED_AT, RULES, SELF_CHECK, SELF_CHECK_AT, UPLINK_INFO, UPLINK_UP,
    WARNINGS,
};
use super::{Source, float, lock};
use crate::codes::Code;
use crate::report::UplinkReport;
use crate::time;
use crate::version::{REVISION, VERSION};
use anyhow::Result;
use prometheus_client::metrics::histogram::Histogram;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// Bounds of the distribution of the times to apply a configuration, in seconds.
const DURATIONS: [f64; 7] = [0.001, 0.005, 0.02, 0.1, 0.5, 2.0, 10.0];

/// The codes of the findings that the agent itself can have.
pub(super) const JUDGED: [Code; 10] = [
    Code::Rejected,
    Code::Defaults,
    Code::NoWayBack,
    Code::SilentNetwork,
    Code::NoUplink,
    Code::NoAddress,
    Code::Detour,
    Code::OtherNat,
    Code::ChainBack,
    Code::SelfCheck,
];

/// The configuration, as metrics have it.
#[derive(Debug, Default)]
pub(crate) struct ConfigState {
    /// Hash of the policy in force.
    pub hash: String,
    /// Source of its configuration.
    pub source: String,
    /// Number of policies that have been in force.
    pub generation: u64,
    /// Time at which it came into force, in seconds since 1970.
    pub applied_at: u64,
    /// Rules that bypass.
    pub bypass: usize,
    /// Rules that masquerade.
    pub masquerade: usize,
    /// Number of warnings.
    pub warnings: usize,
    /// True if the current configuration was rejected.
    pub is_rejected: bool,
    /// Time of the last acceptance or rejection, in seconds since 1970.
    pub reloaded_at: u64,
}

/// State of the agent, as of its last publication.
#[derive(Debug, Default)]
pub(crate) struct Published {
    /// `ebpf`, `iptables` or `shadow`.
    pub mode: &'static str,
    /// The configuration.
    pub config: ConfigState,
    /// The uplinks with attached programs.
    pub uplinks: Vec<UplinkReport>,
    /// Uplinks, each with whether it has passed the last self-check.
    pub passed: BTreeMap<String, bool>,
    /// Time of the last self-check, in seconds since 1970; `None` if there was none.
    pub checked_at: Option<u64>,
    /// True if the node is ready.
    pub is_ready: bool,
    /// Number of findings by code.
    pub findings: BTreeMap<Code, usize>,
    /// NAT rules of other programs that contradict the configuration.
    pub conflicts: usize,
    /// Those that do not.
    pub harmless: usize,
    /// True if the Kubernetes API is followed.
    pub follows_api: bool,
    /// Addresses of the node in the datapath's map, if there is one.
    pub local_addrs: Option<usize>,
}

/// Values that the agent's loop publishes for metrics.
#[derive(Debug)]
pub(crate) struct AgentState {
    /// Release of the kernel.
    kernel: String,
    published: Mutex<Option<Published>>,
    apply: Histogram,
    /// Time of the last answer about what is followed, in seconds since 1970; before the first, that of
    /// the agent's start.
    heard: Arc<AtomicU64>,
}

impl AgentState {
    /// Returns the state before anything is published.
    pub(crate) fn new() -> Self {
        let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
        Self {
            kernel: kernel.trim().to_owned(),
            published: Mutex::new(None),
            apply: Histogram::new(DURATIONS),
            heard: Arc::new(AtomicU64::new(time::now())),
        }
    }

    /// Returns the time of the API's last answer, to be kept up to date.
    pub(crate) fn heard(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.heard)
    }

    /// Publishes the agent's state.
    pub(crate) fn publish(&self, published: Published) {
        *lock(&self.published) = Some(published);
    }

    /// Records how long it took to write a configuration to the datapath.
    pub(crate) fn record_apply(&self, took: Duration) {
        self.apply.observe(took.as_secs_f64());
    }
}

impl Source for AgentState {
    fn collect(&self, samples: &mut Samples) -> Result<()> {
        samples.histogram(APPLY, &[], &self.apply);
        let published = lock(&self.published);
        let Some(state) = &*published else {
            samples.gauge(READY, &[], 0.0);
            return Ok(());
        };
        let build = [VERSION, REVISION, state.mode, &self.kernel];
        samples.info(BUILD, &build);
        add_config(samples, &state.config);
        add_uplinks(samples, state);
        samples.gauge(READY, &[], flag(state.is_ready));
        for code in JUDGED {
            let count = state.findings.get(&code).copied().unwrap_or_default();
            let labels = [code.to_string(), code.severity().to_string()];
            let labels = labels.each_ref().map(String::as_str);
            samples.gauge(FINDINGS, &labels, float(count as u64));
        }
        samples.gauge(FOREIGN, &["conflict"], float(state.conflicts as u64));
        samples.gauge(FOREIGN, &["harmless"], float(state.harmless as u64));
        samples.gauge(API, &[], flag(state.follows_api));
        if state.follows_api {
            let heard = self.heard.load(Ordering::Relaxed);
            samples.gauge(API_HEARD, &[], float(heard));
        }
        if let Some(addresses) = state.local_addrs {
            let rules = state.config.bypass + state.config.masquerade;
            samples.gauge(ENTRIES, &["policy"], float(rules as u64));
            samples.gauge(ENTRIES, &["local_addrs"], float(addresses as u64));
        }
        Ok(())
    }
}

fn add_config(samples: &mut Samples, config: &ConfigState) {
    samples.info(CONFIG_INFO, &[&config.hash, &config.source]);
    samples.gauge(GENERATION, &[], float(config.generation));
    samples.gauge(APPLIED, &[], float(config.applied_at));
    samples.gauge(RULES, &["bypass"], float(config.bypass as u64));
    samples.gauge(RULES, &["masquerade"], float(config.masquerade as u64));
    samples.gauge(WARNINGS, &[], float(config.warnings as u64));
    samples.gauge(RELOADED, &[], flag(!config.is_rejected));
    samples.gauge(RELOADED_AT, &[], float(config.reloaded_at));
}

fn add_uplinks(samples: &mut Samples, state: &Published) {
    // Two interfaces can't have one name, but one may be renamed while another is read.
    let uplinks: BTreeMap<_, _> = state.uplinks.iter().map(|it| (&it.name, it)).collect();
    // The datapath has no numbers for more.
    for (name, uplink) in uplinks.into_iter().take(UPLINK_INFO.most) {
        let v4 = uplink.v4.map_or_else(String::new, |it| it.to_string());
        let v6 = uplink.v6.map_or_else(String::new, |it| it.to_string());
        samples.info(UPLINK_INFO, &[name, &uplink.attached, &v4, &v6]);
        samples.gauge(UPLINK_UP, &[name], flag(uplink.up));
    }
    for (name, passed) in state.passed.iter().take(SELF_CHECK.most) {
        samples.gauge(SELF_CHECK, &[name], flag(*passed));
    }
    if let Some(at) = state.checked_at {
        samples.gauge(SELF_CHECK_AT, &[], float(at));
    }
}

const fn flag(is_set: bool) -> f64 {
    if is_set { 1.0 } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use super::{AgentState, JUDGED, Published};
    use crate::codes::Code;
    use crate::metrics::Source as _;
    use crate::metrics::samples::Samples;
    use crate::metrics::table::FINDINGS;
    use crate::version::{REVISION, VERSION};

    fn text(state: &AgentState) -> String {
        let mut samples = Samples::default();
        state.collect(&mut samples).unwrap();
        samples.into_text().unwrap()
    }

    #[test]
    fn an_agent_that_has_published_nothing_is_not_ready() {
        let told = text(&AgentState::new());
        assert!(told.contains("\nnetdp_ready 0.0\n"), "{told}");
    }

    #[test]
    fn every_code_is_there_and_the_api_only_where_it_is_followed() {
        assert_eq!(FINDINGS.most, JUDGED.len());
        let state = AgentState::new();
        state.heard().store(1_700_000_000, super::Ordering::Relaxed);
        state.publish(Published::default());
        let told = text(&state);
        let build = format!("{{version=\"{VERSION}\",revision=\"{REVISION}\",mode=\"\",");
        assert!(told.contains(&build), "{told}");
        assert_eq!(told.matches("netdp_findings{").count(), JUDGED.len());
        assert!(
            told.contains("{code=\"NDP103\",severity=\"warning\"} 0.0\n"),
            "{told}"
        );
        assert!(!told.contains("heard_timestamp_seconds "), "{told}");
        state.publish(Published {
            follows_api: true,
            findings: [(Code::Defaults, 1)].into(),
            ..Published::default()
        });
        let told = text(&state);
        assert!(
            told.contains("{code=\"NDP103\",severity=\"warning\"} 1.0\n"),
            "{told}"
        );
        assert!(
            told.contains("heard_timestamp_seconds 1700000000.0\n"),
            "{told}"
        );
    }
}
