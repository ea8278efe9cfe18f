//! The control-plane thread: follows the Kubernetes API, publishes Events and the Lease there, and
//! answers probes. A thread of its own, so that neither a slow API nor a long sweep delays the
//! other.

mod events;
mod health;
mod lease;

use crate::config::AutoKinds;
use crate::http::{self, Routes};
use crate::metrics::Metrics;
use crate::page::{HttpPage, Page, Place};
use crate::pods::ApiClaims;
use crate::requirements::NoEbpf;
use crate::sources::kube::{self, ApiError, ApiUser, ConfigMapRef, KubeOptions, LogThrottle, View};
use anyhow::{Context as _, Result};
use netdp_common::layout::DropReason;
use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// Returns the name of a node's Lease.
pub fn lease_name(node: &str) -> String {
    format!("netdp-{node}")
}

/// A condition that needs the operator's attention.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// Reason of the Event about it.
    pub reason: &'static str,
    /// Description for people, one line.
    pub text: String,
}

/// Drop reasons of refusals, with the reason of the Event and the end of its message.
pub(crate) const REFUSALS: [(DropReason, &str, &str); 5] = [
    (
        DropReason::NoFreePort,
        "PortsExhausted",
        "no port of the node's address was free",
    ),
    (
        DropReason::TableFull,
        "TablesFull",
        "the mapping tables were full, or the pod had used up its share of them (--max-flows)",
    ),
    (
        DropReason::PodLimit,
        "PodLimit",
        "the pod had reached its limit (--pod-flows, --pod-new-flows)",
    ),
    (
        DropReason::NodeProtocol,
        "NodeProtocol",
        "the node itself uses their protocol with the destination",
    ),
    (
        DropReason::IpsecPolicy,
        "IpsecPolicy",
        "an IPsec policy covers them, and they would have left in clear text",
    ),
];

/// The agent's status as published.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AgentStatus {
    /// Version of this netdp binary.
    pub version: String,
    /// Mode: `ebpf`, `iptables` or `shadow`.
    pub mode: String,
    /// Reason why eBPF is not used although it was preferred, and the remedy.
    pub no_ebpf: Option<NoEbpf>,
    /// Counter that grows with each accepted or rejected configuration.
    pub serial: u64,
    /// Hash of the policy in force.
    pub hash: String,
    /// Number of policies that have been in force on this node, including this one.
    pub generation: u64,
    /// Time at which it came into force, in seconds since 1970.
    pub applied_at: u64,
    /// Source of the configuration in force.
    pub source: String,
    /// Number of rules of the policy.
    pub rules: usize,
    /// Warnings for the author of the configuration.
    pub warnings: Vec<String>,
    /// Documents of the previous configuration that no longer exist.
    pub gone: Vec<String>,
    /// Reasons why the current configuration was rejected.
    pub rejected: Vec<String>,
    /// The ConfigMaps of the accepted or rejected configuration.
    pub maps: Vec<ConfigMapRef>,
    /// Names of the uplinks.
    pub uplinks: Vec<String>,
    /// Number of live mappings.
    pub mappings: usize,
    /// Refused packets of pods, by the reason of the Events about them.
    pub refused: BTreeMap<&'static str, u64>,
    /// Ongoing conditions that need the operator's attention.
    pub notes: Vec<Note>,
    /// Bypassed networks that have no way back to pods.
    pub no_way_back: Vec<String>,
    /// Reasons why the node is not ready; empty if it is.
    pub unready: Vec<String>,
    /// Number of times that programs were found detached.
    pub losses: u64,
    /// Result of the last such case.
    pub last_loss: String,
}

/// Heartbeat of the agent's loop.
#[derive(Debug)]
struct Heartbeat {
    start: Instant,
    /// Last heartbeat, in milliseconds after `start`.
    last: AtomicU64,
}

impl Heartbeat {
    fn age(&self) -> Duration {
        let last = Duration::from_millis(self.last.load(Ordering::Relaxed));
        self.start.elapsed().saturating_sub(last)
    }
}

/// The addresses to listen on.
#[derive(Debug, Clone, Copy)]
pub struct Listen {
    /// For probes and metrics.
    pub http: Option<SocketAddr>,
    /// For metrics alone.
    pub metrics: Option<SocketAddr>,
}

impl Listen {
    /// Reports whether there is an address.
    pub const fn any(self) -> bool {
        self.http.is_some() || self.metrics.is_some()
    }
}

/// The agent's handle of the thread.
#[derive(Debug)]
pub struct Control {
    heartbeat: Arc<Heartbeat>,
    status: watch::Sender<AgentStatus>,
    view: watch::Receiver<View>,
    wanted: watch::Sender<AutoKinds>,
}

impl Control {
    /// Starts the thread, if it has anything to do. `metrics`: what it serves, if it listens.
    ///
    /// # Errors
    /// Returns an error if an address cannot be listened on, or the thread cannot be started.
    pub fn start(
        kube: Option<KubeOptions>,
        claims: Option<ApiClaims>,
        listen: Listen,
        metrics: Option<&Arc<Metrics>>,
        (place, readers): (Place, HttpPage),
    ) -> Result<Option<Self>> {
        if kube.is_none() && !listen.any() {
            return Ok(None);
        }
        let listen_on = |at: Option<SocketAddr>, flag| at.map(|at| http::listen(at, flag));
        let listener = listen_on(listen.http, "--http-listen").transpose()?;
        let metrics_listener = listen_on(listen.metrics, "--metrics-listen").transpose()?;
        let heartbeat = Arc::new(Heartbeat {
            start: Instant::now(),
            last: AtomicU64::new(0),
        });
        let (status, status_receiver) = watch::channel(AgentStatus {
            unready: vec!["the agent is starting".into()],
            ..AgentStatus::default()
        });
        let (view_sender, view) = watch::channel(View::default());
        let (wanted, wanted_receiver) = watch::channel(AutoKinds::new());
        let page = match listener {
            Some(_) => Page::new(place, readers, status_receiver.clone()),
            None => None,
        };
        let thread = Thread {
            kube,
            claims,
            listener,
            metrics_listener,
            metrics: metrics.map(Arc::clone),
            page,
            heartbeat: Arc::clone(&heartbeat),
            status: status_receiver,
            view_sender,
            view: view.clone(),
            wanted: wanted_receiver,
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("starting a runtime for the API and probes")?;
        std::thread::Builder::new()
            .name("netdp-control".into())
            .spawn(move || runtime.block_on(thread.run()))
            .context("starting a thread for the API and probes")?;
        Ok(Some(Self {
            heartbeat,
            status,
            view,
            wanted,
        }))
    }

    /// Records a heartbeat of the loop.
    pub fn record_heartbeat(&self) {
        let now = u64::try_from(self.heartbeat.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.heartbeat.last.store(now, Ordering::Relaxed);
    }

    /// Publishes the agent's status if it has changed.
    pub fn publish(&self, status: AgentStatus) {
        self.status.send_if_modified(|old| {
            let changed = *old != status;
            *old = status;
            changed
        });
    }

    /// Follows the objects that have the cluster's networks of these kinds, and no others of that sort.
    pub fn follow_networks(&self, kinds: &AutoKinds) {
        self.wanted.send_if_modified(|wanted| {
            let changed = wanted != kinds;
            if changed {
                wanted.clone_from(kinds);
            }
            changed
        });
    }

    /// Returns the latest view of the API.
    pub fn view(&mut self) -> View {
        self.view.borrow_and_update().clone()
    }

    /// Waits until the view of the API changes. Cancel-safe.
    pub async fn changed(&mut self) {
        if self.view.changed().await.is_err() {
            // The API is not followed.
            std::future::pending::<()>().await;
        }
    }
}

/// State of the control-plane thread.
struct Thread {
    kube: Option<KubeOptions>,
    /// Names of pods that the API tells of, if they are wanted.
    claims: Option<ApiClaims>,
    listener: Option<TcpListener>,
    metrics_listener: Option<TcpListener>,
    metrics: Option<Arc<Metrics>>,
    page: Option<Arc<Page>>,
    heartbeat: Arc<Heartbeat>,
    status: watch::Receiver<AgentStatus>,
    view_sender: watch::Sender<View>,
    view: watch::Receiver<View>,
    wanted: watch::Receiver<AutoKinds>,
}

impl Thread {
    async fn run(self) {
        let routes = health::probes(Routes::default(), self.heartbeat, self.status.clone());
        let routes = match &self.page {
            Some(page) => page.routes(routes),
            None => routes,
        };
        let (routes, scraped) = match &self.metrics {
            Some(metrics) => (
                metrics.guarded_route(routes),
                metrics.route(Routes::default()),
            ),
            None => (routes, Routes::default()),
        };
        let requests = http::serve(self.listener, routes);
        let scrapes = http::serve(self.metrics_listener, scraped);
        let past = async {
            if let Some(page) = self.page {
                page.remember().await;
            }
        };
        let heard = self.metrics.map(|it| it.agent().heard());
        let throttle = LogThrottle::keeping(heard.unwrap_or_default());
        let api = async {
            if let Some(options) = self.kube {
                let (view, wanted) = (self.view, self.wanted);
                let throttle = Arc::new(throttle);
                follow(
                    options,
                    self.claims,
                    self.view_sender,
                    view,
                    wanted,
                    self.status,
                    throttle,
                )
                .await;
            }
        };
        tokio::join!(requests, scrapes, past, api);
    }
}

/// Connects, with any number of retries, then follows the API and publishes the status.
async fn follow(
    options: KubeOptions,
    claims: Option<ApiClaims>,
    view_sender: watch::Sender<View>,
    view: watch::Receiver<View>,
    wanted: watch::Receiver<AutoKinds>,
    status: watch::Receiver<AgentStatus>,
    throttle: Arc<LogThrottle>,
) {
    const PAUSE: Duration = Duration::from_secs(5);
    let client = loop {
        match kube::connect(options.kubeconfig.as_deref()).await {
            Ok(client) => break client,
            Err(error) => {
                let trouble = ApiError::new(format!("{error:#}"));
                throttle.record_error(ApiUser::Client, &trouble);
                let problem = Some(trouble.text);
                view_sender.send_if_modified(|view| {
                    let changed = view.problem != problem;
                    view.problem = problem;
                    changed
                });
                tokio::time::sleep(PAUSE).await;
            }
        }
    };
    throttle.record_success(ApiUser::Client);
    tokio::join!(
        kube::follow(
            client.clone(),
            &options,
            view_sender,
            wanted,
            Arc::clone(&throttle),
            claims
        ),
        events::publish(client.clone(), &options, status.clone(), &throttle),
        lease::keep(client, &options, status, view, &throttle),
    );
}
