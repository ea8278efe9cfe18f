//! Combined view of the API from all watches.

use super::client::KubeOptions;
use super::follow::{Kind, Trouble};
use super::tell::{Asker, Teller};
use crate::config::{Diagnostic, Document};
use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt as _};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::timeout;

/// View of the API, as far as it has been received.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct View {
    /// ConfigMaps in effect, in merge order: ip-masq-agent's, then labelled ones by name, then
    /// k8s-custom-iptables'. `None` until all have been listed once.
    pub maps: Option<Vec<Arc<MapDocuments>>>,
    /// This node, once it has been received.
    pub node: Option<NodeFacts>,
    /// Reason why the API cannot be followed right now.
    pub problem: Option<String>,
    /// Set if listing ConfigMaps was refused (401 or 403) and has never been granted.
    pub refused: bool,
}

/// Reference to a ConfigMap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MapRef {
    /// Namespace of the ConfigMap.
    pub namespace: String,
    /// Name of the ConfigMap.
    pub name: String,
    /// UID, unique across re-creations.
    pub uid: String,
    /// Resource version, opaque.
    pub resource_version: String,
}

impl MapDocuments {
    /// Returns the approximate size of the retained data, in bytes.
    pub(super) fn bytes(&self) -> usize {
        let map = &self.map;
        let of_map = map.namespace.len() + map.name.len() + map.uid.len();
        let documents = self
            .documents
            .iter()
            .map(|document| size_of::<Document>() + document.name.len() + document.text.len());
        let findings =
            self.errors.iter().chain(&self.warnings).map(|finding| {
                size_of::<Diagnostic>() + finding.file.len() + finding.message.len()
            });
        of_map + map.resource_version.len() + documents.chain(findings).sum::<usize>()
    }
}

impl MapRef {
    /// Returns the common prefix of its documents' names.
    pub fn prefix(&self) -> String {
        format!("{}/{}/", self.namespace, self.name)
    }
}

/// A ConfigMap and its documents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MapDocuments {
    /// Reference to the ConfigMap.
    pub map: MapRef,
    /// One document for each relevant key, by key; named NAMESPACE/NAME/KEY.
    pub documents: Vec<Document>,
    /// Errors about keys whose content is not text.
    pub errors: Vec<Diagnostic>,
    /// Warnings for the ConfigMap's author.
    pub warnings: Vec<Diagnostic>,
}

/// Facts about the agent's node.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NodeFacts {
    /// UID of the Node object.
    pub uid: String,
    /// Its addresses of type InternalIP.
    pub addresses: Vec<IpAddr>,
    /// Its pod CIDRs.
    pub pod_cidrs: Vec<IpNet>,
}

/// Identifier of a watch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Part {
    Main,
    Labelled,
    NatRules,
    Node,
}

impl Part {
    const MAPS: [Self; 3] = [Self::Main, Self::Labelled, Self::NatRules];
}

#[derive(Default)]
struct Heard {
    maps: BTreeMap<Part, Vec<Arc<MapDocuments>>>,
    node: Option<NodeFacts>,
    troubles: BTreeMap<Part, Trouble>,
}

/// State shared by all watches.
pub(super) struct Shared {
    heard: Mutex<Heard>,
    teller: Arc<Teller>,
    view: watch::Sender<View>,
    nodes: Api<Node>,
    node_name: Option<String>,
}

impl Shared {
    pub(super) fn new(
        view: watch::Sender<View>,
        client: Client,
        options: &KubeOptions,
        teller: Arc<Teller>,
    ) -> Self {
        Self {
            heard: Mutex::default(),
            teller,
            view,
            nodes: Api::all(client),
            node_name: options.node_name.clone(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Heard> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets the ConfigMaps of one watch.
    pub(super) fn set_maps(&self, part: Part, maps: Vec<Arc<MapDocuments>>) {
        self.lock().maps.insert(part, maps);
        self.publish();
    }

    /// Sets the facts about the node.
    pub(super) fn set_node(&self, node: NodeFacts) {
        self.lock().node = Some(node);
        self.publish();
    }

    pub(super) fn node(&self) -> Option<NodeFacts> {
        self.lock().node.clone()
    }

    /// Sets or clears the error of a watch.
    pub(super) fn set_state(&self, part: Part, trouble: Option<&Trouble>) {
        match trouble {
            Some(trouble) => {
                self.lock().troubles.insert(part, trouble.clone());
                self.teller.trouble(Asker::Watch(part), trouble);
            }
            None => {
                self.lock().troubles.remove(&part);
                self.teller.well(Asker::Watch(part));
            }
        }
        self.publish();
        if trouble.is_none() && self.view.borrow().maps.is_some() {
            self.teller.heard_all();
        }
    }

    fn publish(&self) {
        let view = {
            let heard = self.lock();
            let all = Part::MAPS.map(|part| heard.maps.get(&part));
            let maps = all.iter().all(Option::is_some);
            let refused = |part: &Part| {
                let trouble = heard.troubles.get(part);
                trouble.is_some_and(|trouble| trouble.kind == Kind::Refused)
            };
            View {
                maps: maps.then(|| all.into_iter().flatten().flatten().cloned().collect()),
                node: heard.node.clone(),
                problem: heard.troubles.values().next().map(|t| t.text.clone()),
                refused: !maps && Part::MAPS.iter().any(refused),
            }
        };
        self.view.send_if_modified(|old| {
            let changed = *old != view;
            if changed {
                *old = view;
            }
            changed
        });
    }

    /// Checks that a list in which known objects are missing is plausible. An empty API server, or
    /// one of another cluster, also lists nothing, but lacks this node's previous UID.
    pub(super) async fn same_cluster(&self) -> Result<(), Trouble> {
        const PATIENCE: Duration = Duration::from_secs(15);
        let Some(name) = &self.node_name else {
            return Ok(());
        };
        let Some(known) = self.node() else {
            return Ok(());
        };
        let params = ListParams::default()
            .fields(&format!("metadata.name={name}"))
            .limit(1);
        let nodes = timeout(PATIENCE, self.nodes.list(&params)).await;
        let nodes = nodes
            .map_err(|_| Trouble::of_kind(Kind::Away, "timed out waiting for the API server"))?
            .map_err(|error| Trouble::of(&error))?;
        if nodes
            .items
            .iter()
            .any(|node| node.uid().as_ref() == Some(&known.uid))
        {
            return Ok(());
        }
        Err(Trouble::new(format!(
            "ConfigMaps are gone, but the Node {name} is another one too: ignored, as the API \
             server has probably lost its data; restart the agent if the cluster was created anew"
        )))
    }
}
