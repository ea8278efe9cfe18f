//! The pods of the agent's node, for their names.

use super::api_error::ApiError;
use super::object::{Kind, Object};
use super::reflector::ObjectStore;
use super::view::Shared;
use super::watch_id::WatchId;
use crate::pods::{ApiClaims, Claim};
use crate::time::now_milliseconds;
use jiff::Timestamp;
use kube::ResourceExt as _;
use kube::core::NamespaceResourceScope;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::sync::Arc;

/// Limit of pods of a node. Kubernetes supports 110, and some distributions 500.
const MAX_PODS: usize = 4096;

/// Number of pods per page of a list. A pod has some 5 to 20 KB.
const PER_PAGE: u32 = 50;

/// A pod, reduced to what is read of it.
pub(super) type NodePod = Object<PodSpec, PodStatus>;

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct PodSpec {
    node_name: Option<String>,
    host_network: bool,
}

impl Kind for PodSpec {
    type Version = ();
    type Scope = NamespaceResourceScope;
    const NAME: &'static str = "Pod";
    const PLURAL: &'static str = "pods";
    const GROUP: &'static str = "";

    fn version((): &()) -> &'static str {
        "v1"
    }
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct PodStatus {
    phase: Option<String>,
    #[serde(rename = "startTime")]
    start_time: Option<Timestamp>,
    #[serde(rename = "podIP")]
    pod_ip: Option<String>,
    #[serde(rename = "podIPs")]
    pod_ips: Vec<PodIp>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct PodIp {
    ip: String,
}

impl NodePod {
    fn key(&self) -> (String, String) {
        (self.namespace().unwrap_or_default(), self.name_any())
    }

    /// Returns its claims. A pod that has ended keeps its addresses in the API, but no longer has them;
    /// one in the node's network never had any of its own.
    fn claims(&self, node: &str) -> Vec<Claim> {
        let status = &self.status;
        let has_ended = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
        let is_here = self.spec.node_name.as_deref() == Some(node);
        if has_ended || self.spec.host_network || !is_here {
            return Vec::new();
        }
        let several = status.pod_ips.iter().map(|it| &it.ip);
        let mut addresses: Vec<_> = several
            .chain(&status.pod_ip)
            .filter_map(|ip| ip.parse().ok())
            .collect();
        addresses.sort_unstable();
        addresses.dedup();
        let start = status.start_time.map_or(0, Timestamp::as_millisecond);
        let (namespace, name) = self.key();
        let from = u64::try_from(start).unwrap_or_default();
        let uid = self.uid();
        Claim::all(
            &namespace,
            &name,
            uid.as_deref(),
            addresses.into_iter(),
            from,
        )
    }
}

/// Claims of each pod, by namespace and name.
type ByPod = BTreeMap<(String, String), Vec<Claim>>;

/// Store of the node's pods.
pub(super) struct PodStore {
    node: String,
    shared: Arc<Shared>,
    pods: ByPod,
    known: ApiClaims,
}

impl PodStore {
    pub(super) fn new(node: &str, shared: Arc<Shared>, known: ApiClaims) -> Self {
        Self {
            node: node.to_owned(),
            shared,
            pods: ByPod::new(),
            known,
        }
    }

    fn publish(&self) {
        self.known
            .set(self.pods.values().flatten().cloned().collect());
    }

    fn check(&self, number: usize) -> Result<(), ApiError> {
        if number <= MAX_PODS {
            return Ok(());
        }
        Err(ApiError::new(format!(
            "the API lists more than {MAX_PODS} pods where it was asked for those of {}",
            self.node
        )))
    }
}

impl ObjectStore<NodePod> for PodStore {
    type Listed = ByPod;

    fn fields(&self) -> Option<String> {
        Some(format!("spec.nodeName={}", self.node))
    }

    fn labels(&self) -> Option<String> {
        None
    }

    fn page_size(&self) -> u32 {
        PER_PAGE
    }

    fn add_page(&self, page: Vec<NodePod>, listed: &mut ByPod) -> Result<(), ApiError> {
        let new = page.iter().map(|pod| (pod.key(), pod.claims(&self.node)));
        listed.extend(new);
        self.check(listed.len())
    }

    async fn replace(&mut self, all: ByPod) -> Result<(), ApiError> {
        self.pods = all;
        self.publish();
        Ok(())
    }

    fn apply(&mut self, pod: NodePod) -> Result<(), ApiError> {
        let mut claims = pod.claims(&self.node);
        // A pod starts before it gets its address.
        let known = self.pods.get(&pod.key());
        for claim in &mut claims {
            let mut before = known.into_iter().flatten();
            let before = before.find(|it| it.address == claim.address && it.uid == claim.uid);
            claim.from = before
                .map_or_else(now_milliseconds, |it| it.from)
                .max(claim.from);
        }
        if self.pods.get(&pod.key()) != Some(&claims) {
            self.pods.insert(pod.key(), claims);
            self.check(self.pods.len())?;
            self.publish();
        }
        Ok(())
    }

    fn remove(&mut self, pod: &NodePod) {
        if self.pods.remove(&pod.key()).is_some() {
            self.publish();
        }
    }

    fn set_error(&mut self, error: Option<&ApiError>) {
        self.shared.set_error(WatchId::Pods, error);
    }
}

#[cfg(test)]
mod tests {
    use super::NodePod;
    use serde_json::json;

    fn claims(spec: &serde_json::Value, status: &serde_json::Value) -> Vec<String> {
        let pod = json!({
            "metadata": { "namespace": "shop", "name": "cart", "uid": "u-1" },
            "spec": spec,
            "status": status,
        });
        let pod: NodePod = serde_json::from_value(pod).unwrap();
        let claims = pod.claims("node-a").into_iter();
        let text = |it: crate::pods::Claim| {
            let uid = it.uid.unwrap_or_default();
            format!(
                "{} {}/{} {uid} {}",
                it.address, it.namespace, it.name, it.from
            )
        };
        claims.map(text).collect()
    }

    #[test]
    fn running_pods_of_the_node_claim_their_addresses() {
        let here = json!({ "nodeName": "node-a" });
        let running = json!({
            "phase": "Running", "startTime": "1970-01-01T00:00:05Z", "podIP": "172.16.0.2",
            "podIPs": [{ "ip": "172.16.0.2" }, { "ip": "fd00::2" }],
        });
        assert_eq!(
            claims(&here, &running),
            [
                "172.16.0.2 shop/cart u-1 5000",
                "fd00::2 shop/cart u-1 5000"
            ]
        );
        let none: [String; 0] = [];
        assert_eq!(claims(&json!({ "nodeName": "node-b" }), &running), none);
        let host = json!({ "nodeName": "node-a", "hostNetwork": true });
        assert_eq!(claims(&host, &running), none);
        let mut ended = running;
        ended["phase"] = "Succeeded".into();
        assert_eq!(claims(&here, &ended), none);
        assert_eq!(claims(&here, &json!({ "phase": "Pending" })), none);
    }
}
