//! The pods that are meant, their nodes, and the agents there.

use super::run::Kubectl;
use anyhow::{Context as _, Result, bail, ensure};
use k8s_openapi::api::core::v1::Pod;
use serde::Deserialize;
use serde_json::Value;
use std::net::IpAddr;

/// Subject of a command of the plugin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Where {
    /// A node.
    Node(String),
    /// A pod, or what has pods: `NAME` or `KIND/NAME`, in a namespace or that of the context.
    Pod {
        namespace: Option<String>,
        name: String,
    },
    /// The only node that has an agent.
    Only,
}

/// Selection of the agents.
#[derive(Debug, Clone)]
pub(crate) struct Agents {
    pub(crate) namespace: String,
    /// Selector by labels.
    pub(crate) selector: String,
    pub(crate) container: Option<String>,
}

/// An agent's pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Agent {
    pub(crate) node: String,
    pub(crate) namespace: String,
    pub(crate) pod: String,
    pub(crate) container: Option<String>,
}

/// A pod that was asked about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    /// Namespace and name.
    pub(crate) name: String,
    pub(crate) address: IpAddr,
    pub(crate) node: String,
}

/// A list of objects.
#[derive(Debug, Deserialize)]
pub(crate) struct List<T> {
    pub(crate) items: Vec<T>,
}

impl Agents {
    /// Finds the agent to ask, and the pod if one was named.
    ///
    /// # Errors
    /// Returns an error if kubectl fails, the pod does not run, or its node has no agent.
    pub(crate) fn find(&self, kubectl: &Kubectl, target: &Where) -> Result<(Agent, Option<Found>)> {
        match target {
            Where::Node(node) => Ok((self.on(kubectl, node)?, None)),
            Where::Pod { namespace, name } => {
                let found = pod(kubectl, namespace.as_deref(), name)?;
                let agent = self.on(kubectl, &found.node)?;
                Ok((agent, Some(found)))
            }
            Where::Only => {
                let mut agents = self.list(kubectl, None)?;
                match agents.len() {
                    1 => Ok((agents.remove(0), None)),
                    0 => bail!("{}", self.none("")),
                    _ => {
                        let nodes: Vec<_> = agents.into_iter().map(|agent| agent.node).collect();
                        bail!(
                            "which node? Name a pod, or one of these with --node: {}",
                            nodes.join(", ")
                        )
                    }
                }
            }
        }
    }

    fn on(&self, kubectl: &Kubectl, node: &str) -> Result<Agent> {
        let agents = self.list(kubectl, Some(node))?;
        let first = agents.into_iter().next();
        first.with_context(|| self.none(&format!(" on the node {node}")))
    }

    pub(super) fn none(&self, at: &str) -> String {
        format!(
            "no agent runs{at}: no pod in {} has the labels {}; --agent-namespace and --agent-selector \
             name others",
            self.namespace, self.selector
        )
    }

    /// Lists the agents that run, on one node or on all.
    ///
    /// # Errors
    /// Returns an error if kubectl fails.
    pub(crate) fn list(&self, kubectl: &Kubectl, node: Option<&str>) -> Result<Vec<Agent>> {
        let fields = node.map(|node| format!("spec.nodeName={node}"));
        let mut ask = vec![
            "pods",
            "--namespace",
            &self.namespace,
            "--selector",
            &self.selector,
        ];
        if let Some(fields) = &fields {
            ask.extend(["--field-selector", fields]);
        }
        let pods: List<Pod> = kubectl.get(&ask)?;
        let mut agents: Vec<_> = pods
            .items
            .iter()
            .filter(|pod| is_running(pod))
            .filter_map(|pod| {
                Some(Agent {
                    node: pod.spec.as_ref()?.node_name.clone()?,
                    namespace: self.namespace.clone(),
                    pod: pod.metadata.name.clone()?,
                    container: self.container.clone(),
                })
            })
            .collect();
        agents.sort_by(|a, b| a.node.cmp(&b.node));
        Ok(agents)
    }
}

fn is_running(pod: &Pod) -> bool {
    let phase = pod
        .status
        .as_ref()
        .and_then(|status| status.phase.as_deref());
    phase == Some("Running") && pod.metadata.deletion_timestamp.is_none()
}

/// Finds a pod by its name, or a running one of a Deployment, a Service or the like.
fn pod(kubectl: &Kubectl, namespace: Option<&str>, name: &str) -> Result<Found> {
    let place = namespace.map_or_else(Vec::new, |it| vec!["--namespace", it]);
    let target = match name.contains('/') {
        true => name.to_owned(),
        false => format!("pod/{name}"),
    };
    let object: Value = kubectl.get(&[&[target.as_str()], place.as_slice()].concat())?;
    if object["kind"] == "Pod" {
        let pod: Pod = serde_json::from_value(object).context("reading the pod")?;
        return found(&pod).with_context(|| {
            format!("{target} does not run on a node yet: kubectl describe {target} says why")
        });
    }
    let selector =
        selector(&object).with_context(|| format!("{target} selects no pods by labels"))?;
    let ask = ["pods", "--selector", &selector];
    let pods: List<Pod> = kubectl.get(&[&ask, place.as_slice()].concat())?;
    let mut running: Vec<_> = pods.items.iter().filter_map(found).collect();
    running.sort_by(|a, b| a.name.cmp(&b.name));
    let all = running.len();
    ensure!(all > 0, "no pod of {target} runs");
    let first = running.remove(0);
    eprintln!(
        "netdp: {target}: the pod {} on {} (1 of {all})",
        first.name, first.node
    );
    Ok(first)
}

/// Returns what is known of a pod that runs.
fn found(pod: &Pod) -> Option<Found> {
    let status = pod.status.as_ref().filter(|_| is_running(pod))?;
    let namespace = pod.metadata.namespace.as_deref()?;
    Some(Found {
        name: format!("{namespace}/{}", pod.metadata.name.as_deref()?),
        address: status.pod_ip.as_ref()?.parse().ok()?,
        node: pod.spec.as_ref()?.node_name.clone()?,
    })
}

/// Returns the selector of an object's pods: a Service's labels, or the labels that a workload matches.
fn selector(object: &Value) -> Option<String> {
    let selector = &object["spec"]["selector"];
    let labels = match selector.get("matchLabels") {
        Some(labels) => labels,
        None => selector,
    };
    let labels = labels.as_object()?;
    let pairs = labels
        .iter()
        .map(|(key, value)| Some(format!("{key}={}", value.as_str()?)));
    let pairs: Vec<_> = pairs.collect::<Option<_>>()?;
    (!pairs.is_empty()).then(|| pairs.join(","))
}

#[cfg(test)]
mod tests {
    use super::{found, selector};
    use serde_json::json;

    #[test]
    fn workloads_and_services_select_their_pods() {
        let deployment =
            json!({"spec": {"selector": {"matchLabels": {"app": "cart", "tier": "web"}}}});
        assert_eq!(selector(&deployment).as_deref(), Some("app=cart,tier=web"));
        let service = json!({"spec": {"selector": {"app": "cart"}}});
        assert_eq!(selector(&service).as_deref(), Some("app=cart"));
        assert_eq!(selector(&json!({"spec": {}})), None);
        let expressions = json!({"spec": {"selector": {"matchExpressions": []}}});
        assert_eq!(selector(&expressions), None);
    }

    #[test]
    fn only_a_pod_that_runs_has_a_node_and_an_address() {
        let pod = |phase: &str| {
            serde_json::from_value(json!({
                "metadata": {"name": "cart-5d9", "namespace": "shop"},
                "spec": {"nodeName": "node-a", "containers": []},
                "status": {"phase": phase, "podIP": "172.16.0.2"},
            }))
            .unwrap()
        };
        let running = found(&pod("Running")).unwrap();
        assert_eq!(running.name, "shop/cart-5d9");
        assert_eq!(running.node, "node-a");
        assert_eq!(found(&pod("Pending")), None);
    }
}
