//! Kubernetes Events: the result of a configuration, on its ConfigMaps; faults of the node, on the
//! Node.
//!
//! All nodes of a cluster give the Event about one version of a ConfigMap the same name, so that
//! there is one Event, created by the first node, and not one for each node.

mod budget;
mod hourly;

use super::{AgentStatus, Note, REFUSALS};
use crate::codes::Code;
use crate::pod;
use crate::sources::kube::{
    ApiError, ApiErrorKind, ApiUser, ConfigMapRef, KubeOptions, LogThrottle, random,
};
use budget::Budget;
use hourly::Hourly;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::api::PostParams;
use kube::{Api, Client};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

/// Length limit of a message (the API's), in bytes.
const LONGEST: usize = 1024;

/// Number of Event names that are remembered to avoid duplicate requests, and of Events that wait
/// while the API is unavailable.
const MAX_QUEUED: usize = 64;

/// First and longest pause before a failed post is retried.
const PAUSES: (Duration, Duration) = (Duration::from_secs(5), Duration::from_secs(300));

/// Interval of retries after the budget was exhausted.
const HELD_BACK: Duration = Duration::from_secs(60);

/// Object that an Event is about.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Involved {
    Map(ConfigMapRef),
    Node,
}

/// Draft of an Event.
#[derive(Debug, Clone, PartialEq, Eq)]
struct EventDraft {
    involved: Involved,
    /// Event type: `Normal` or `Warning`.
    kind: &'static str,
    reason: &'static str,
    message: String,
}

impl EventDraft {
    /// Drafts a warning about the Node.
    const fn warn_of_node(reason: &'static str, message: String) -> Self {
        Self {
            involved: Involved::Node,
            kind: "Warning",
            reason,
            message,
        }
    }
}

/// Publishes Events about the agent's status, forever.
pub(super) async fn publish(
    client: Client,
    options: &KubeOptions,
    mut status: watch::Receiver<AgentStatus>,
    throttle: &LogThrottle,
) {
    let mut publisher = Publisher {
        client,
        node: options.node_name.clone(),
        posted: VecDeque::new(),
        budget: Budget::new(Instant::now()),
        held_back: false,
        waiting: VecDeque::new(),
        ongoing: Ongoing::default(),
        hourly: Hourly::default(),
        has_unpublished: false,
        pause: PAUSES.0,
        throttle,
    };
    let mut before = AgentStatus::default();
    loop {
        let again = publisher.retry_after();
        tokio::select! {
            changed = status.changed() => if changed.is_err() { return },
            () = sleep(again.unwrap_or_default()), if again.is_some() => {}
        }
        // Spreads the requests of a cluster's nodes, and lets a burst of changes pass.
        sleep(Duration::from_secs_f64(random())).await;
        let now = status.borrow_and_update().clone();
        for draft in drafts(&before, &now) {
            publisher.queue(&draft);
        }
        publisher.queue_ongoing(&now.notes);
        publisher.queue_no_way_back(&now);
        publisher.post_waiting().await;
        before = now;
    }
}

fn drafts(before: &AgentStatus, now: &AgentStatus) -> Vec<EventDraft> {
    let mut found = Vec::new();
    if now.serial != before.serial {
        about_config(before, now, &mut found);
    }
    let mut node = |reason, message| found.push(EventDraft::warn_of_node(reason, message));
    let lost: Vec<_> = before
        .uplinks
        .iter()
        .filter(|name| !now.uplinks.contains(name))
        .cloned()
        .collect();
    if !lost.is_empty() {
        let names = lost.join(", ");
        node(
            "UplinkLost",
            format!("pods' traffic is no longer masqueraded on {names}: it is no longer an uplink"),
        );
    }
    if let Some(no_ebpf) = &now.no_ebpf
        && before.no_ebpf.is_none()
    {
        let mut message = format!(
            "pods' traffic is masqueraded by iptables rules, because eBPF does not work here: {}",
            no_ebpf.why
        );
        if !no_ebpf.add.is_empty() {
            let lines = no_ebpf.add.join("; ");
            message += &format!(". For eBPF, add {}: {lines}", pod::BELOW);
        }
        node("IptablesMode", message);
    }
    if now.losses > before.losses {
        node(
            "DatapathDetached",
            format!("pods' traffic was not masqueraded: {}", now.last_loss),
        );
    }
    for (drop, reason, why) in REFUSALS {
        let count = |status: &AgentStatus| status.refused.get(reason).copied().unwrap_or_default();
        let more = count(now).saturating_sub(count(before));
        // Counters outlive agents: the first reading is the baseline.
        if more > 0 && !before.version.is_empty() {
            let code = Code::of_drop(drop);
            let code = code.map_or_else(String::new, |code| format!(" {code}"));
            node(
                reason,
                format!("{more} packets of pods were refused: {why}{code}"),
            );
        }
    }
    found
}

fn about_config(before: &AgentStatus, now: &AgentStatus, found: &mut Vec<EventDraft>) {
    let mut others: Vec<&str> = now.rejected.iter().map(String::as_str).collect();
    let mut gone: Vec<&str> = now.gone.iter().map(String::as_str).collect();
    let is_same = |map: &ConfigMapRef| now.maps.iter().any(|it| it.prefix() == map.prefix());
    for map in before.maps.iter().filter(|map| !is_same(map)) {
        gone.retain(|name| !name.starts_with(&map.prefix()));
        found.push(EventDraft {
            involved: Involved::Map(map.clone()),
            kind: "Warning",
            reason: "ConfigGone",
            message: format!("no longer part of the configuration; {}", now.in_force()),
        });
    }
    for map in &now.maps {
        let prefix = map.prefix();
        let own = |lines: &[String]| -> Vec<String> {
            let own = lines.iter().filter_map(|line| line.strip_prefix(&prefix));
            own.map(str::to_owned).collect()
        };
        let mut add = |kind, reason, message| {
            found.push(EventDraft {
                involved: Involved::Map(map.clone()),
                kind,
                reason,
                message,
            });
        };
        let errors = own(&now.rejected);
        others.retain(|line| !line.starts_with(&prefix));
        if !errors.is_empty() {
            let message = format!(
                "{}; the previous configuration stays in force",
                errors.join("; ")
            );
            add("Warning", "ConfigRejected", message);
        }
        // If one of several ConfigMaps has changed, the others need no new Event.
        let is_news = !before.rejected.is_empty() || !before.maps.contains(map);
        if now.rejected.is_empty() && is_news {
            add("Normal", "ConfigApplied", now.in_force());
            let warnings = own(&now.warnings);
            if !warnings.is_empty() {
                add("Warning", "ConfigWarning", warnings.join("; "));
            }
        }
    }
    let mut node = |reason, message| found.push(EventDraft::warn_of_node(reason, message));
    if !others.is_empty() {
        let message = format!(
            "{}; the previous configuration stays in force",
            others.join("; ")
        );
        node("ConfigRejected", message);
    }
    if !gone.is_empty() {
        let message = format!("{}: gone; {}", gone.join(", "), now.in_force());
        node("ConfigGone", message);
    }
}

/// Drafts the Event about a network without a way back to pods: on the first ConfigMap, whose list is
/// wrong, or on the Node if there is none. The message has no counts, so that all nodes of a cluster
/// make one Event.
fn no_way_back(network: &str, maps: &[ConfigMapRef]) -> EventDraft {
    EventDraft {
        involved: maps
            .first()
            .map_or(Involved::Node, |map| Involved::Map(map.clone())),
        kind: "Warning",
        reason: "NoWayBackToPods",
        message: format!(
            "{network} is bypassed, answers the node and does not answer pods: it has no way back to \
             their addresses; netdp suggest prints what to change"
        ),
    }
}

impl AgentStatus {
    /// Describes the configuration in force, for Events about a configuration.
    fn in_force(&self) -> String {
        format!("in force: config {}, {} rules", self.hash, self.rules)
    }
}

/// Ongoing conditions that have been published, by reason.
#[derive(Debug, Default)]
struct Ongoing(BTreeMap<&'static str, BTreeSet<String>>);

impl Ongoing {
    /// Removes conditions that are over, and returns the unpublished ones by reason.
    fn unpublished(&mut self, notes: &[Note]) -> BTreeMap<&'static str, Vec<String>> {
        let stands = |reason: &str, text: &str| {
            (notes.iter()).any(|note| note.reason == reason && note.text == text)
        };
        for (reason, published) in &mut self.0 {
            published.retain(|text| stands(reason, text));
        }
        let mut unpublished: BTreeMap<&'static str, Vec<String>> = BTreeMap::new();
        for note in notes {
            let published = self.0.entry(note.reason).or_default();
            if !published.contains(&note.text) {
                unpublished
                    .entry(note.reason)
                    .or_default()
                    .push(note.text.clone());
            }
        }
        unpublished
    }

    fn record(&mut self, reason: &'static str, texts: Vec<String>) {
        self.0.entry(reason).or_default().extend(texts);
    }
}

struct Publisher<'a> {
    client: Client,
    node: Option<String>,
    /// Names of Events that exist in the API.
    posted: VecDeque<String>,
    budget: Budget,
    /// Set if an Event was suppressed because the budget was exhausted, which has been logged.
    held_back: bool,
    /// Events that wait to be posted. The API is often unavailable just when there is most to
    /// report.
    waiting: VecDeque<Event>,
    ongoing: Ongoing,
    hourly: Hourly,
    /// Set if the budget did not suffice for all ongoing conditions.
    has_unpublished: bool,
    /// Pause before waiting Events are retried.
    pause: Duration,
    throttle: &'a LogThrottle,
}

impl Publisher<'_> {
    /// Returns the time until a retry is due if nothing else happens; `None` if there is none.
    fn retry_after(&self) -> Option<Duration> {
        if !self.waiting.is_empty() {
            return Some(self.pause);
        }
        self.has_unpublished.then_some(HELD_BACK)
    }

    /// Queues an Event. Returns whether the budget allowed it.
    fn queue(&mut self, draft: &EventDraft) -> bool {
        let Some(event) = self.event(draft) else {
            return true;
        };
        let name = event.metadata.name.clone().unwrap_or_default();
        if self.posted.contains(&name) {
            return true;
        }
        let (about, reason) = (&draft.involved, draft.reason);
        if !self.budget.take(about, reason, Instant::now()) {
            if !self.held_back {
                log::info!("no Event {reason}: too many Events; netdp status has everything");
            }
            self.held_back = true;
            return false;
        }
        self.held_back = false;
        self.posted.push_back(name);
        if self.posted.len() > MAX_QUEUED {
            self.posted.pop_front();
        }
        self.waiting.push_back(event);
        if self.waiting.len() > MAX_QUEUED {
            self.waiting.pop_front();
        }
        true
    }

    /// Queues Events about ongoing conditions that are unpublished. Those beyond the budget are
    /// published later, if the condition lasts that long.
    fn queue_ongoing(&mut self, notes: &[Note]) {
        self.has_unpublished = false;
        for (reason, texts) in self.ongoing.unpublished(notes) {
            let draft = EventDraft::warn_of_node(reason, texts.join("; "));
            if self.queue(&draft) {
                self.ongoing.record(reason, texts);
            } else {
                self.has_unpublished = true;
            }
        }
    }

    /// Queues Events about networks without a way back to pods.
    fn queue_no_way_back(&mut self, status: &AgentStatus) {
        let now = Instant::now();
        for network in self.hourly.due(&status.no_way_back, now) {
            if self.queue(&no_way_back(network, &status.maps)) {
                self.hourly.record(network, now);
            }
        }
    }

    /// Posts waiting Events, the oldest first, until the API fails.
    async fn post_waiting(&mut self) {
        while let Some(event) = self.waiting.front() {
            let reason = event.reason.clone().unwrap_or_default();
            match self.post(event).await {
                Ok(()) => {
                    self.pause = PAUSES.0;
                    self.throttle.record_success(ApiUser::Events);
                }
                Err(trouble) => {
                    let is_refused_for_good = trouble.kind == ApiErrorKind::Unexpected;
                    let trouble = trouble.in_operation(&format!("posting an Event {reason}"));
                    self.throttle.record_error(ApiUser::Events, &trouble);
                    if !is_refused_for_good {
                        self.pause = (self.pause * 2).min(PAUSES.1);
                        return;
                    }
                }
            }
            self.waiting.pop_front();
        }
    }

    async fn post(&self, event: &Event) -> Result<(), ApiError> {
        const PATIENCE: Duration = Duration::from_secs(10);
        let namespace = event.metadata.namespace.as_deref().unwrap_or("default");
        let api: Api<Event> = Api::namespaced(self.client.clone(), namespace);
        match timeout(PATIENCE, api.create(&PostParams::default(), event)).await {
            Ok(Ok(_)) => Ok(()),
            // Another node or an earlier agent created it first.
            Ok(Err(kube::Error::Api(status))) if status.is_already_exists() => Ok(()),
            Ok(Err(error)) => Err(ApiError::of(&error)),
            Err(_) => Err(ApiError::timed_out()),
        }
    }

    /// Makes an Event; `None` for one about a node without a name.
    fn event(&self, draft: &EventDraft) -> Option<Event> {
        let now = Timestamp::now();
        let (object, namespace, version) = match &draft.involved {
            Involved::Map(map) => {
                let object = ObjectReference {
                    api_version: Some("v1".into()),
                    kind: Some("ConfigMap".into()),
                    name: Some(map.name.clone()),
                    namespace: Some(map.namespace.clone()),
                    uid: Some(map.uid.clone()),
                    resource_version: Some(map.resource_version.clone()),
                    ..ObjectReference::default()
                };
                let version = format!("{}{}", map.uid, map.resource_version);
                (object, map.namespace.clone(), version)
            }
            Involved::Node => {
                let name = self.node.clone()?;
                let object = ObjectReference {
                    api_version: Some("v1".into()),
                    kind: Some("Node".into()),
                    // As the kubelet does: `kubectl describe node` selects Events by this value.
                    uid: Some(name.clone()),
                    name: Some(name),
                    ..ObjectReference::default()
                };
                (object, "default".into(), now.to_string())
            }
        };
        let about = object.name.clone().unwrap_or_default();
        let id = crate::config::fnv1a(
            format!("{version} {} {}", draft.reason, draft.message).as_bytes(),
        );
        let (about, _) = about.split_at(about.floor_char_boundary(200));
        let mut message = draft.message.clone();
        message.truncate(message.floor_char_boundary(LONGEST));
        Some(Event {
            metadata: ObjectMeta {
                name: Some(format!("{about}.{id:016x}")),
                namespace: Some(namespace),
                ..ObjectMeta::default()
            },
            involved_object: object,
            type_: Some(draft.kind.into()),
            reason: Some(draft.reason.into()),
            message: Some(message),
            source: Some(EventSource {
                component: Some("netdp".into()),
                host: self.node.clone(),
            }),
            first_timestamp: Some(Time(now)),
            last_timestamp: Some(Time(now)),
            count: Some(1),
            ..Event::default()
        })
    }
}

#[cfg(test)]
mod tests;
