//! The Node that the agent runs on.

use super::api_error::ApiError;
use super::reflector::ObjectStore;
use super::view::{NodeFacts, Shared};
use super::watch_id::WatchId;
use k8s_openapi::api::core::v1::Node;
use kube::ResourceExt as _;
use std::sync::Arc;

/// Store of this one Node.
pub(super) struct NodeStore {
    name: String,
    shared: Arc<Shared>,
}

impl NodeStore {
    pub(super) fn new(name: &str, shared: Arc<Shared>) -> Self {
        Self {
            name: name.to_owned(),
            shared,
        }
    }
}

/// Limit of listed Nodes. More than one means that the server ignores field selectors.
const MAX_NODES: usize = 64;

/// Content of a list.
#[derive(Debug, Default)]
pub(super) struct NodeList {
    node: Option<NodeFacts>,
    /// Number of listed Nodes, including this one.
    count: usize,
}

impl ObjectStore<Node> for NodeStore {
    type Listed = NodeList;

    fn fields(&self) -> Option<String> {
        Some(format!("metadata.name={}", self.name))
    }

    fn labels(&self) -> Option<String> {
        None
    }

    fn add_page(&self, page: Vec<Node>, listed: &mut Self::Listed) -> Result<(), ApiError> {
        listed.count += page.len();
        let found = page.iter().find(|node| node.name_any() == self.name);
        if let Some(node) = found {
            listed.node = Some(facts(node));
        }
        if listed.count > MAX_NODES {
            return Err(ApiError::new(format!(
                "the API lists more than {MAX_NODES} Nodes where it was asked for {}",
                self.name
            )));
        }
        Ok(())
    }

    async fn replace(&mut self, all: Self::Listed) -> Result<(), ApiError> {
        let Some(mut facts) = all.node else {
            return Err(ApiError::new(format!(
                "there is no Node {}; is --node-name right?",
                self.name
            )));
        };
        // A list after a gap does not distinguish a re-registered node from another cluster: the
        // UID by which deletions are checked stays.
        if let Some(known) = self.shared.node() {
            facts.uid = known.uid;
        }
        self.shared.set_node(facts);
        Ok(())
    }

    fn apply(&mut self, object: Node) -> Result<(), ApiError> {
        // A server that ignores selectors sends other Nodes, too.
        if object.name_any() == self.name {
            self.shared.set_node(facts(&object));
        }
        Ok(())
    }

    fn remove(&mut self, object: &Node) {
        if object.name_any() != self.name {
            return;
        }
        // The node evidently still exists: this agent runs on it.
        log::info!("the Node {} was deleted", object.name_any());
    }

    fn set_error(&mut self, error: Option<&ApiError>) {
        self.shared.set_error(WatchId::Node, error);
    }
}

fn facts(node: &Node) -> NodeFacts {
    let status = node.status.as_ref();
    let addresses = status.and_then(|status| status.addresses.as_ref());
    let spec = node.spec.as_ref();
    let single = spec.and_then(|spec| spec.pod_cidr.as_ref());
    let several = spec.and_then(|spec| spec.pod_cidrs.as_ref());
    let mut pod_cidrs: Vec<_> = several
        .into_iter()
        .flatten()
        .chain(single)
        .filter_map(|cidr| cidr.parse().ok())
        .collect();
    pod_cidrs.sort_unstable();
    pod_cidrs.dedup();
    NodeFacts {
        uid: node.uid().unwrap_or_default(),
        addresses: addresses
            .into_iter()
            .flatten()
            .filter(|address| address.type_ == "InternalIP")
            .filter_map(|address| address.address.parse().ok())
            .collect(),
        pod_cidrs,
    }
}
