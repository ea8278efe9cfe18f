//! Combined view of the API from all watches.

use super::api_error::{ApiError, ApiErrorKind};
use super::client::KubeOptions;
use super::log_throttle::{ApiUser, LogThrottle};
use super::networks::{Book, Holder};
use super::watch_id::{ConfigMapSelection, WatchId};
use crate::config::{AutoNetwork, Diagnostic, Document};
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
    pub config_maps: Option<Vec<Arc<ConfigMapDocuments>>>,
    /// This node, once it has been received.
    pub node: Option<NodeFacts>,
    /// Networks of all Nodes, while the configuration asks for them and once they have been listed.
    pub of_nodes: Option<Arc<[AutoNetwork]>>,
    /// Networks of ServiceCIDRs, in the same way; empty if the API has no such objects.
    pub of_services: Option<Arc<[AutoNetwork]>>,
    /// Set if the API has no ServiceCIDRs.
    pub no_services: bool,
    /// Reason why the API cannot be followed right now.
    pub problem: Option<String>,
    /// Set if listing ConfigMaps was refused (401 or 403) and has never been granted.
    pub refused: bool,
}

/// Reference to a ConfigMap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigMapRef {
    /// Namespace of the ConfigMap.
    pub namespace: String,
    /// Name of the ConfigMap.
    pub name: String,
    /// UID, unique across re-creations.
    pub uid: String,
    /// Resource version, opaque.
    pub resource_version: String,
}

impl ConfigMapDocuments {
    /// Returns the approximate size of the retained data, in bytes.
    pub(super) fn bytes(&self) -> usize {
        let map = &self.config_map;
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

impl ConfigMapRef {
    /// Returns the common prefix of its documents' names.
    pub fn prefix(&self) -> String {
        format!("{}/{}/", self.namespace, self.name)
    }
}

/// A ConfigMap and its documents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConfigMapDocuments {
    /// Reference to the ConfigMap.
    pub config_map: ConfigMapRef,
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

/// A book of networks, and what it says.
#[derive(Default)]
struct BookState {
    book: Book,
    /// `None` until the objects have been listed.
    networks: Option<Arc<[AutoNetwork]>>,
}

impl State {
    fn book(&mut self, holder: Holder) -> &mut BookState {
        match holder {
            Holder::Nodes => &mut self.nodes,
            Holder::ServiceCidrs => &mut self.services,
        }
    }
}

/// State of all watches, as received so far.
#[derive(Default)]
struct State {
    config_maps: BTreeMap<ConfigMapSelection, Vec<Arc<ConfigMapDocuments>>>,
    node: Option<NodeFacts>,
    nodes: BookState,
    services: BookState,
    no_services: bool,
    errors: BTreeMap<WatchId, ApiError>,
}

/// State shared by all watches.
pub(super) struct Shared {
    state: Mutex<State>,
    throttle: Arc<LogThrottle>,
    view: watch::Sender<View>,
    nodes: Api<Node>,
    node_name: Option<String>,
}

impl Shared {
    pub(super) fn new(
        view: watch::Sender<View>,
        client: Client,
        options: &KubeOptions,
        throttle: Arc<LogThrottle>,
    ) -> Self {
        Self {
            state: Mutex::default(),
            throttle,
            view,
            nodes: Api::all(client),
            node_name: options.node_name.clone(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets the ConfigMaps of one watch.
    pub(super) fn set_config_maps(
        &self,
        selection: ConfigMapSelection,
        maps: Vec<Arc<ConfigMapDocuments>>,
    ) {
        self.lock().config_maps.insert(selection, maps);
        self.publish();
    }

    /// Sets the facts about the node.
    pub(super) fn set_node(&self, node: NodeFacts) {
        self.lock().node = Some(node);
        self.publish();
    }

    /// Changes a book of networks by `change`, which returns whether the networks differ afterwards.
    pub(super) fn change_book(&self, holder: Holder, change: impl FnOnce(&mut Book) -> bool) {
        {
            let mut state = self.lock();
            let of_holder = state.book(holder);
            if !change(&mut of_holder.book) {
                return;
            }
            of_holder.networks = Some(of_holder.book.networks());
            if holder == Holder::ServiceCidrs {
                state.no_services = false;
            }
        }
        self.publish();
    }

    /// Returns what `read` returns of a book.
    pub(super) fn read_book<T>(&self, holder: Holder, read: impl FnOnce(&Book) -> T) -> T {
        read(&self.lock().book(holder).book)
    }

    /// Forgets the networks of objects that are no longer followed.
    pub(super) fn forget_book(&self, holder: Holder) {
        *self.lock().book(holder) = BookState::default();
        self.publish();
    }

    /// Records that the API has no ServiceCIDRs. Those that it had before stay known.
    pub(super) fn set_no_services(&self) {
        {
            let mut state = self.lock();
            let known = &state.services.networks;
            state.no_services = known.as_ref().is_none_or(|nets| nets.is_empty());
            state.services.networks.get_or_insert_default();
        }
        self.publish();
    }

    pub(super) fn node(&self) -> Option<NodeFacts> {
        self.lock().node.clone()
    }

    /// Sets or clears the error of a watch.
    pub(super) fn set_error(&self, watch: WatchId, error: Option<&ApiError>) {
        match error {
            Some(error) => {
                self.lock().errors.insert(watch, error.clone());
                self.throttle.record_error(ApiUser::Watch(watch), error);
            }
            None => {
                self.lock().errors.remove(&watch);
                self.throttle.record_success(ApiUser::Watch(watch));
            }
        }
        self.publish();
        if error.is_none() && self.view.borrow().config_maps.is_some() {
            self.throttle.record_sync();
        }
    }

    fn publish(&self) {
        let view = {
            let state = self.lock();
            let all = ConfigMapSelection::ALL.map(|selection| state.config_maps.get(&selection));
            let is_complete = all.iter().all(Option::is_some);
            let is_denied = |selection: &ConfigMapSelection| {
                let error = state.errors.get(&WatchId::ConfigMaps(*selection));
                error.is_some_and(|error| error.kind == ApiErrorKind::Denied)
            };
            View {
                config_maps: is_complete
                    .then(|| all.into_iter().flatten().flatten().cloned().collect()),
                node: state.node.clone(),
                of_nodes: state.nodes.networks.clone(),
                of_services: state.services.networks.clone(),
                no_services: state.no_services,
                // Names of pods are no part of the configuration; the log reports them.
                problem: (state.errors.iter())
                    .find(|(watch, _)| **watch != WatchId::Pods)
                    .map(|(_, error)| error.text.clone()),
                refused: !is_complete && ConfigMapSelection::ALL.iter().any(is_denied),
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
    pub(super) async fn check_same_cluster(&self) -> Result<(), ApiError> {
        const TIMEOUT: Duration = Duration::from_secs(15);
        let Some(name) = &self.node_name else {
            return Ok(());
        };
        let Some(known) = self.node() else {
            return Ok(());
        };
        let params = ListParams::default()
            .fields(&format!("metadata.name={name}"))
            .limit(1);
        let nodes = timeout(TIMEOUT, self.nodes.list(&params)).await;
        let nodes = nodes
            .map_err(|_| {
                ApiError::of_kind(
                    ApiErrorKind::Unavailable,
                    "timed out waiting for the API server",
                )
            })?
            .map_err(|error| ApiError::of(&error))?;
        if nodes
            .items
            .iter()
            .any(|node| node.uid().as_ref() == Some(&known.uid))
        {
            return Ok(());
        }
        Err(ApiError::new(format!(
            "ConfigMaps are gone, but the Node {name} was replaced as well: ignored, as the API \
             server has probably lost its data; restart the agent if the cluster was created anew"
        )))
    }
}
