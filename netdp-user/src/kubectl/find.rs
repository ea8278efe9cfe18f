//! The pods that are meant, their nodes, and the agents there.

use super::run::Kubectl;
use anyhow::{Context as _, Result, bail, ensure};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelectorRequirement;
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
    /// Its addresses, the first one of the family that the cluster prefers.
    pub(crate) addresses: Vec<IpAddr>,
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
    let selector = selector(&object)
        .with_context(|| format!("{target}: name a pod of it instead"))?
        .with_context(|| format!("{target} selects no pods by labels"))?;
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
    let first = status.pod_ip.as_ref()?.parse().ok()?;
    let all = status.pod_ips.iter().flatten();
    let others = all.filter_map(|it| it.ip.parse().ok());
    let others = others.filter(|it: &IpAddr| *it != first);
    Some(Found {
        name: format!("{namespace}/{}", pod.metadata.name.as_deref()?),
        addresses: std::iter::once(first).chain(others).collect(),
        node: pod.spec.as_ref()?.node_name.clone()?,
    })
}

/// Returns the selector of an object's pods, as kubectl takes it: a Service's labels, or the labels and the
/// expressions that a workload matches; `None` if it has none.
///
/// # Errors
/// Returns an error that names what can't be read.
fn selector(object: &Value) -> Result<Option<String>> {
    let selector = &object["spec"]["selector"];
    let (labels, expressions) = match (
        selector.get("matchLabels"),
        selector.get("matchExpressions"),
    ) {
        // A map of labels may have labels of these names, but not with such values.
        (None, None) => (selector, &Value::Null),
        (Some(Value::String(_)), _) | (_, Some(Value::String(_))) => (selector, &Value::Null),
        (labels, expressions) => (
            labels.unwrap_or(&Value::Null),
            expressions.unwrap_or(&Value::Null),
        ),
    };
    let mut all = Vec::new();
    for (key, value) in labels.as_object().into_iter().flatten() {
        let value = value
            .as_str()
            .with_context(|| format!("the selector's label {key} is no text"))?;
        all.push(format!("{key}={value}"));
    }
    for value in expressions.as_array().into_iter().flatten() {
        let read = LabelSelectorRequirement::deserialize(value);
        let read = read.context("reading the selector's matchExpressions")?;
        all.push(expression(&read)?);
    }
    Ok((!all.is_empty()).then(|| all.join(",")))
}

/// Returns an expression as kubectl takes it.
fn expression(it: &LabelSelectorRequirement) -> Result<String> {
    let (key, operator) = (&it.key, it.operator.as_str());
    let values = it.values.as_deref().unwrap_or_default();
    let is_set = match operator {
        "In" | "NotIn" => true,
        "Exists" | "DoesNotExist" => false,
        _ => bail!(
            "the selector's expression {key} has the operator {operator}, which is not In, NotIn, Exists or \
             DoesNotExist"
        ),
    };
    ensure!(
        is_set != values.is_empty(),
        "the selector's expression {key} {operator} has {} values",
        values.len()
    );
    let values = values.join(",");
    Ok(match operator {
        "In" => format!("{key} in ({values})"),
        "NotIn" => format!("{key} notin ({values})"),
        "Exists" => key.clone(),
        _ => format!("!{key}"),
    })
}

#[cfg(test)]
mod tests {
    use super::{found, selector};
    use serde_json::{Value, json};
    use std::net::IpAddr;

    #[test]
    fn workloads_and_services_select_their_pods() {
        let deployment =
            json!({"spec": {"selector": {"matchLabels": {"app": "cart", "tier": "web"}}}});
        let of = |object: &Value| selector(object).unwrap();
        assert_eq!(of(&deployment).as_deref(), Some("app=cart,tier=web"));
        let service = json!({"spec": {"selector": {"app": "cart"}}});
        assert_eq!(of(&service).as_deref(), Some("app=cart"));
        let odd = json!({"spec": {"selector": {"app": "cart", "matchLabels": "x"}}});
        assert_eq!(of(&odd).as_deref(), Some("app=cart,matchLabels=x"));
        assert_eq!(of(&json!({"spec": {}})), None);
        let none = json!({"spec": {"selector": {"matchExpressions": []}}});
        assert_eq!(of(&none), None);
    }

    #[test]
    fn expressions_of_a_selector_are_kubectls() {
        let of = |labels: Value, expressions: Value| {
            let selected = json!({"matchLabels": labels, "matchExpressions": expressions});
            selector(&json!({"spec": {"selector": selected}}))
        };
        let all = json!([
            {"key": "tier", "operator": "In", "values": ["web", "api"]},
            {"key": "track", "operator": "NotIn", "values": ["canary"]},
            {"key": "netdp.io/app", "operator": "Exists"},
            {"key": "old", "operator": "DoesNotExist", "values": []},
        ]);
        assert_eq!(
            of(json!({"app": "cart"}), all.clone()).unwrap().as_deref(),
            Some("app=cart,tier in (web,api),track notin (canary),netdp.io/app,!old")
        );
        assert_eq!(
            of(Value::Null, all).unwrap().as_deref(),
            Some("tier in (web,api),track notin (canary),netdp.io/app,!old")
        );
        for (wrong, words) in [
            (
                json!({"key": "a", "operator": "Gt", "values": ["1"]}),
                "a has the operator Gt",
            ),
            (json!({"key": "a", "operator": "In"}), "a In has 0 values"),
            (
                json!({"key": "a", "operator": "Exists", "values": ["1"]}),
                "a Exists has 1 values",
            ),
            (json!("a"), "matchExpressions"),
        ] {
            let err = format!("{:#}", of(Value::Null, json!([wrong])).unwrap_err());
            assert!(err.contains(words), "{err}");
        }
    }

    #[test]
    fn only_a_pod_that_runs_has_a_node_and_an_address() {
        let pod = |phase: &str| {
            serde_json::from_value(json!({
                "metadata": {"name": "cart-5d9", "namespace": "shop"},
                "spec": {"nodeName": "node-a", "containers": []},
                "status": {
                    "phase": phase,
                    "podIP": "172.16.0.2",
                    "podIPs": [{"ip": "172.16.0.2"}, {"ip": "fd00:172::2"}],
                },
            }))
            .unwrap()
        };
        let running = found(&pod("Running")).unwrap();
        assert_eq!(running.name, "shop/cart-5d9");
        assert_eq!(running.node, "node-a");
        let addresses = ["172.16.0.2", "fd00:172::2"].map(|it| it.parse::<IpAddr>().unwrap());
        assert_eq!(running.addresses, addresses);
        assert_eq!(found(&pod("Pending")), None);
    }
}
