//! What the agent has to do with others than packets: it follows the Kubernetes API, says there
//! what became of it, and answers probes. All of that is done on a thread of its own, so that
//! neither a slow API nor a long sweep holds up the other.

mod events;
mod health;
mod lease;

use crate::pod::NoEbpf;
use crate::sources::kube::{self, Asker, KubeOptions, MapRef, Teller, Trouble, View};
use anyhow::{Context as _, Result};
use netdp_common::verdict::DropReason;
use std::collections::BTreeMap;
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};
use tokio::sync::watch;

/// The name of the Lease of a node.
pub fn lease_name(node: &str) -> String {
    format!("netdp-{node}")
}

/// Something that its operator has to look at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// The reason of an Event about it.
    pub reason: &'static str,
    /// In words.
    pub text: String,
}

/// Why packets were refused: the reason of Events, and the rest of a sentence.
pub(crate) const REFUSALS: [(DropReason, &str, &str); 5] = [
    (
        DropReason::NoFreePort,
        "PortsExhausted",
        "no port of the node's address was free",
    ),
    (
        DropReason::TableFull,
        "TablesFull",
        "the mapping tables were full, or the pod had its share of them (--max-flows)",
    ),
    (
        DropReason::PodLimit,
        "PodLimit",
        "the pod had reached its limit (--pod-flows, --pod-new-flows)",
    ),
    (
        DropReason::NodeProtocol,
        "NodeProtocol",
        "the node itself speaks their protocol with the destination",
    ),
    (
        DropReason::IpsecPolicy,
        "IpsecPolicy",
        "an IPsec policy covers them, and they would have left in clear",
    ),
];

/// What the agent says of itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Told {
    /// netdp's version.
    pub version: String,
    /// How packets are translated.
    pub mode: String,
    /// Why not by eBPF, where that was wanted most, and what would mend it.
    pub no_ebpf: Option<NoEbpf>,
    /// Grows with each configuration that was taken or rejected.
    pub serial: u64,
    /// Hash of the policy in force.
    pub hash: String,
    /// How many policies have been in force on this node, this one included.
    pub generation: u64,
    /// Since when it is in force, in seconds since 1970.
    pub applied_at: u64,
    /// Where it came from.
    pub source: String,
    /// How many rules it has.
    pub rules: usize,
    /// What its author should look at.
    pub warnings: Vec<String>,
    /// Documents that counted before, and are not there any more.
    pub gone: Vec<String>,
    /// Why what is there now was not taken.
    pub rejected: Vec<String>,
    /// The ConfigMaps that it, or what was rejected, was made of.
    pub maps: Vec<MapRef>,
    /// Names of the uplinks.
    pub uplinks: Vec<String>,
    /// Live mappings.
    pub mappings: usize,
    /// Packets of pods that the node could not serve, by the reason of Events about them.
    pub refused: BTreeMap<&'static str, u64>,
    /// What is not as it should be, for as long as that lasts.
    pub notes: Vec<Note>,
    /// Why the node is not ready; nothing if it is.
    pub unready: Vec<String>,
    /// How often programs were found taken off.
    pub losses: u64,
    /// What became of it last.
    pub last_loss: String,
}

/// When the agent's loop turned last.
#[derive(Debug)]
struct Pulse {
    start: Instant,
    /// Milliseconds after `start`.
    last: AtomicU64,
}

impl Pulse {
    fn age(&self) -> Duration {
        let last = Duration::from_millis(self.last.load(Ordering::Relaxed));
        self.start.elapsed().saturating_sub(last)
    }
}

/// The agent's end of the thread.
#[derive(Debug)]
pub struct Control {
    pulse: Arc<Pulse>,
    told: watch::Sender<Told>,
    view: watch::Receiver<View>,
}

impl Control {
    /// Starts the thread, if there is anything for it to do.
    ///
    /// # Errors
    /// The address can't be listened on, or the thread can't be made.
    pub fn start(kube: Option<KubeOptions>, listen: Option<SocketAddr>) -> Result<Option<Self>> {
        if kube.is_none() && listen.is_none() {
            return Ok(None);
        }
        let listener = listen.map(listen_on).transpose()?;
        let pulse = Arc::new(Pulse {
            start: Instant::now(),
            last: AtomicU64::new(0),
        });
        let (told, hears_told) = watch::channel(Told {
            unready: vec!["the agent is starting".into()],
            ..Told::default()
        });
        let (sees, view) = watch::channel(View::default());
        let thread = Thread {
            kube,
            listener,
            pulse: Arc::clone(&pulse),
            told: hears_told,
            sees,
            view: view.clone(),
        };
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("starting a runtime for the API and probes")?;
        std::thread::Builder::new()
            .name("netdp-control".into())
            .spawn(move || runtime.block_on(thread.run()))
            .context("starting a thread for the API and probes")?;
        Ok(Some(Self { pulse, told, view }))
    }

    /// The loop turned.
    pub fn beat(&self) {
        let now = u64::try_from(self.pulse.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.pulse.last.store(now, Ordering::Relaxed);
    }

    /// Says how things are.
    pub fn tell(&self, told: Told) {
        self.told.send_if_modified(|old| {
            let changed = *old != told;
            *old = told;
            changed
        });
    }

    /// What the API says now.
    pub fn view(&mut self) -> View {
        self.view.borrow_and_update().clone()
    }

    /// Waits until the API says something else. Cancelling loses nothing.
    pub async fn changed(&mut self) {
        if self.view.changed().await.is_err() {
            // Nothing is followed.
            std::future::pending::<()>().await;
        }
    }
}

fn listen_on(at: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(at)
        .and_then(|listener| listener.set_nonblocking(true).map(|()| listener))
        .with_context(|| format!("listening on {at} (--http-listen)"))
}

/// What the thread has.
struct Thread {
    kube: Option<KubeOptions>,
    listener: Option<TcpListener>,
    pulse: Arc<Pulse>,
    told: watch::Receiver<Told>,
    sees: watch::Sender<View>,
    view: watch::Receiver<View>,
}

impl Thread {
    async fn run(self) {
        let health = health::serve(self.listener, self.pulse, self.told.clone());
        let api = async {
            if let Some(options) = self.kube {
                follow(options, self.sees, self.view, self.told).await;
            }
        };
        tokio::join!(health, api);
    }
}

/// Connects, however often that takes, then follows and tells.
async fn follow(
    options: KubeOptions,
    sees: watch::Sender<View>,
    view: watch::Receiver<View>,
    told: watch::Receiver<Told>,
) {
    const PAUSE: Duration = Duration::from_secs(5);
    let teller = Arc::new(Teller::default());
    let client = loop {
        match kube::connect(options.kubeconfig.as_deref()).await {
            Ok(client) => break client,
            Err(error) => {
                let trouble = Trouble::new(format!("{error:#}"));
                teller.trouble(Asker::Client, &trouble);
                let problem = Some(trouble.text);
                sees.send_if_modified(|view| {
                    let changed = view.problem != problem;
                    view.problem = problem;
                    changed
                });
                tokio::time::sleep(PAUSE).await;
            }
        }
    };
    teller.well(Asker::Client);
    tokio::join!(
        kube::follow(client.clone(), &options, sees, Arc::clone(&teller)),
        events::publish(client.clone(), &options, told.clone(), &teller),
        lease::keep(client, &options, told, view, &teller),
    );
}
