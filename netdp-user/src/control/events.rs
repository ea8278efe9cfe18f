//! Events: what became of a configuration, on its ConfigMaps; what the node lacks, on the Node.
//!
//! All nodes of a cluster name the Event about one version of a ConfigMap alike, so that there is
//! one, whoever comes first, and not one for each node.

mod budget;

use super::Told;
use crate::pod;
use crate::sources::kube::{KubeOptions, MapRef, describe, random};
use budget::Budget;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::api::PostParams;
use kube::{Api, Client};
use std::collections::VecDeque;
use std::time::{Duration, Instant};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

/// The greatest length of a message (the API's limit), in bytes.
const LONGEST: usize = 1024;

/// How many Events are remembered, so as not to ask the API for what it has.
const REMEMBERED: usize = 64;

/// What an Event is about.
#[derive(Debug, Clone, PartialEq, Eq)]
enum About {
    Map(MapRef),
    Node,
}

/// Something to say.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Happening {
    about: About,
    /// `Normal` or `Warning`.
    kind: &'static str,
    reason: &'static str,
    message: String,
}

/// Says for ever what the agent tells.
pub(super) async fn publish(
    client: Client,
    options: &KubeOptions,
    mut told: watch::Receiver<Told>,
) {
    let mut publisher = Publisher {
        client,
        node: options.node_name.clone(),
        posted: VecDeque::new(),
        budget: Budget::new(Instant::now()),
        held_back: false,
        failed: false,
    };
    let mut before = Told::default();
    while told.changed().await.is_ok() {
        // Lets the nodes of a cluster not come all at once, and a burst of changes pass.
        sleep(Duration::from_secs_f64(random())).await;
        let now = told.borrow_and_update().clone();
        for happening in happenings(&before, &now) {
            publisher.say(&happening).await;
        }
        before = now;
    }
}

fn happenings(before: &Told, now: &Told) -> Vec<Happening> {
    let mut found = Vec::new();
    if now.serial != before.serial {
        about_config(before, now, &mut found);
    }
    let mut node = |reason, message| {
        found.push(Happening {
            about: About::Node,
            kind: "Warning",
            reason,
            message,
        });
    };
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
            format!("pods' traffic is no longer masqueraded on {names}: it is no uplink any more"),
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
            message += &format!(". To be added {}: {lines}", pod::BELOW);
        }
        node("IptablesMode", message);
    }
    if now.losses > before.losses {
        node(
            "DatapathDetached",
            format!("pods' traffic was not masqueraded: {}", now.last_loss),
        );
    }
    // The counter outlives agents: the first look tells nothing new.
    if now.no_free_port > before.no_free_port && !before.version.is_empty() {
        let count = now.no_free_port - before.no_free_port;
        node(
            "PortsExhausted",
            format!(
                "{count} connections of pods were refused: no port of the node's address was free"
            ),
        );
    }
    found
}

fn about_config(before: &Told, now: &Told, found: &mut Vec<Happening>) {
    let mut others: Vec<&str> = now.rejected.iter().map(String::as_str).collect();
    for map in &now.maps {
        let prefix = map.prefix();
        let own = |lines: &[String]| -> Vec<String> {
            let own = lines.iter().filter_map(|line| line.strip_prefix(&prefix));
            own.map(str::to_owned).collect()
        };
        let mut say = |kind, reason, message| {
            found.push(Happening {
                about: About::Map(map.clone()),
                kind,
                reason,
                message,
            });
        };
        let errors = own(&now.rejected);
        others.retain(|line| !line.starts_with(&prefix));
        if !errors.is_empty() {
            let message = format!("{}; what was in force stays", errors.join("; "));
            say("Warning", "Rejected", message);
        }
        // Where one of many has changed, there is nothing new to say of the others.
        let is_news = !before.rejected.is_empty() || !before.maps.contains(map);
        if now.rejected.is_empty() && is_news {
            let message = format!("in force: config {}, {} rules", now.hash, now.rules);
            say("Normal", "Applied", message);
            let warnings = own(&now.warnings);
            if !warnings.is_empty() {
                say("Warning", "LookAtThis", warnings.join("; "));
            }
        }
    }
    if !others.is_empty() {
        found.push(Happening {
            about: About::Node,
            kind: "Warning",
            reason: "ConfigRejected",
            message: format!("{}; what was in force stays", others.join("; ")),
        });
    }
}

struct Publisher {
    client: Client,
    node: Option<String>,
    /// Names of Events that there are.
    posted: VecDeque<String>,
    budget: Budget,
    /// Something was not said for want of budget, which the log has.
    held_back: bool,
    /// The last one could not be posted, which was said.
    failed: bool,
}

impl Publisher {
    async fn say(&mut self, happening: &Happening) {
        let Some(event) = self.event(happening) else {
            return;
        };
        let name = event.metadata.name.clone().unwrap_or_default();
        if self.posted.contains(&name) {
            return;
        }
        let (about, reason) = (&happening.about, happening.reason);
        if !self.budget.take(about, reason, Instant::now()) {
            if !self.held_back {
                log::info!(
                    "{reason} is not said in an Event: there were many; the status has everything"
                );
            }
            self.held_back = true;
            return;
        }
        self.held_back = false;
        match self.post(&event).await {
            Ok(()) => {
                self.failed = false;
                self.posted.push_back(name);
                if self.posted.len() > REMEMBERED {
                    self.posted.pop_front();
                }
            }
            Err(error) if !self.failed => {
                self.failed = true;
                log::warn!(
                    "saying {} in an Event: {error}; all else goes on",
                    happening.reason
                );
            }
            Err(error) => log::debug!("saying {} in an Event: {error}", happening.reason),
        }
    }

    async fn post(&self, event: &Event) -> Result<(), String> {
        const PATIENCE: Duration = Duration::from_secs(10);
        let namespace = event.metadata.namespace.as_deref().unwrap_or("default");
        let api: Api<Event> = Api::namespaced(self.client.clone(), namespace);
        match timeout(PATIENCE, api.create(&PostParams::default(), event)).await {
            Ok(Ok(_)) => Ok(()),
            // Another node, or an earlier agent, was first.
            Ok(Err(kube::Error::Api(status))) if status.is_already_exists() => Ok(()),
            Ok(Err(error)) => Err(describe(&error)),
            Err(_) => Err("the API is silent".into()),
        }
    }

    /// `None` for one about a node that has no name.
    fn event(&self, happening: &Happening) -> Option<Event> {
        let now = Timestamp::now();
        let (object, namespace, version) = match &happening.about {
            About::Map(map) => {
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
            About::Node => {
                let name = self.node.clone()?;
                let object = ObjectReference {
                    api_version: Some("v1".into()),
                    kind: Some("Node".into()),
                    // As the kubelet does it: `kubectl describe node` looks for this.
                    uid: Some(name.clone()),
                    name: Some(name),
                    ..ObjectReference::default()
                };
                (object, "default".into(), now.to_string())
            }
        };
        let about = object.name.clone().unwrap_or_default();
        let id = crate::config::fnv1a(
            format!("{version} {} {}", happening.reason, happening.message).as_bytes(),
        );
        let (about, _) = about.split_at(about.floor_char_boundary(200));
        let mut message = happening.message.clone();
        message.truncate(message.floor_char_boundary(LONGEST));
        Some(Event {
            metadata: ObjectMeta {
                name: Some(format!("{about}.{id:016x}")),
                namespace: Some(namespace),
                ..ObjectMeta::default()
            },
            involved_object: object,
            type_: Some(happening.kind.into()),
            reason: Some(happening.reason.into()),
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
