//! `netdp fleet`: the configuration in force on each node of a cluster, from the agents' Leases.

use crate::cli::output::{table, write_out};
use crate::kubectl::{Kubectl, List};
use crate::sources::kube::{ApiError, ApiErrorKind, connect_as_user, describe, in_cluster};
use crate::time::{self, pretty};
use anyhow::{Context as _, Result, anyhow};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Node;
use kube::api::ListParams;
use kube::{Api, Client, ResourceExt as _};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::path::Path;
use std::time::Duration;

/// Time limit for the API's responses.
const PATIENCE: Duration = Duration::from_secs(30);

/// Labels of the agents' Leases.
const SELECTOR: &str = "app.kubernetes.io/name=netdp";

/// Number of objects per page of a list.
const PAGE: u32 = 500;

/// A node with or without an agent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct NodeState {
    /// Name of the Node object.
    pub node: String,
    /// `ready`, `not ready`, `stale` (the Lease has expired without renewal), or `no agent`.
    pub state: String,
    /// Version of the agent's netdp binary.
    pub version: String,
    /// Mode: `ebpf`, `iptables` or `shadow`.
    pub mode: String,
    /// Hash of the policy in force.
    pub config: String,
    /// Number of policies that have been in force on the node.
    pub generation: u64,
    /// Seconds for which the current policy has been in force.
    pub age_seconds: Option<u64>,
    /// Number of live mappings.
    pub mappings: u64,
    /// Seconds since the last renewal of the Lease.
    pub heard_seconds: Option<u64>,
    /// Refused packets of pods since the datapath was created.
    pub refused: u64,
    /// Faults on the node.
    pub errors: String,
    /// Conditions on the node that need attention.
    pub warnings: Vec<String>,
}

/// Prints the table, or JSON.
///
/// # Errors
/// Returns an error if the API cannot be queried, or the output cannot be written.
pub fn print(kubeconfig: Option<&Path>, namespace: &str, json: bool) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let nodes = runtime.block_on(async {
        let client = connect_as_user(kubeconfig).await?;
        tokio::time::timeout(PATIENCE, gather(client, namespace))
            .await
            .context("the Kubernetes API did not answer within 30 s")?
    })?;
    write(&nodes, json)
}

/// Prints the same by the user's kubectl.
///
/// # Errors
/// Returns an error if kubectl fails, or the output cannot be written.
pub(crate) fn print_by_kubectl(kubectl: &Kubectl, namespace: &str, json: bool) -> Result<()> {
    let selector = ["--selector", SELECTOR];
    let ask = [&["leases", "--namespace", namespace], &selector[..]].concat();
    let leases: List<Lease> = kubectl.get(&ask)?;
    let mut states = states(&leases.items);
    match kubectl.get::<List<Node>>(&["nodes"]) {
        Ok(nodes) => add_missing(&mut states, nodes.items),
        Err(err) => not_shown(&format!("{err:#}")),
    }
    write(&states.into_values().collect::<Vec<_>>(), json)
}

fn write(nodes: &[NodeState], json: bool) -> Result<()> {
    if json {
        return write_out(&(serde_json::to_string_pretty(nodes)? + "\n"), true);
    }
    write_out(&text(nodes), false)
}

fn states(leases: &[Lease]) -> BTreeMap<String, NodeState> {
    let now = time::now();
    leases
        .iter()
        .map(|lease| node_state(lease, now))
        .map(|state| (state.node.clone(), state))
        .collect()
}

/// Adds the nodes without a Lease.
fn add_missing(states: &mut BTreeMap<String, NodeState>, nodes: Vec<Node>) {
    for node in nodes {
        let name = node.name_any();
        states.entry(name.clone()).or_insert_with(|| NodeState {
            node: name,
            state: "no agent".into(),
            ..NodeState::default()
        });
    }
}

fn not_shown(why: &str) {
    eprintln!(
        "netdp: nodes without an agent are not shown: {}",
        crate::terminal::line(why)
    );
}

async fn gather(client: Client, namespace: &str) -> Result<Vec<NodeState>> {
    let leases: Api<Lease> = Api::namespaced(client.clone(), namespace);
    let ours = ListParams::default().labels(SELECTOR);
    let leases = list_all(&leases, ours)
        .await
        .map_err(|error| refused(&error, namespace))?;
    let mut states = states(&leases);
    match list_all(&Api::<Node>::all(client), ListParams::default()).await {
        Ok(nodes) => add_missing(&mut states, nodes),
        Err(error) => not_shown(&describe(&error)),
    }
    Ok(states.into_values().collect())
}

/// Explains why the Leases cannot be listed, and the remedy.
fn refused(error: &kube::Error, namespace: &str) -> anyhow::Error {
    let trouble = ApiError::of(error);
    let hint = match trouble.kind {
        ApiErrorKind::Denied if in_cluster() => format!(
            "; the agents' ServiceAccount may write Leases but not list them: run netdp fleet \
             where kubectl works for you, or kubectl -n {namespace} get leases"
        ),
        ApiErrorKind::Denied => format!("; you need the right to list Leases in {namespace}"),
        ApiErrorKind::Unavailable | ApiErrorKind::Unexpected => String::new(),
    };
    anyhow!("listing the Leases in {namespace}: {}{hint}", trouble.text)
}

/// Lists all objects page by page.
async fn list_all<K>(api: &Api<K>, mut params: ListParams) -> kube::Result<Vec<K>>
where
    K: Clone + Debug + DeserializeOwned,
{
    params.limit = Some(PAGE);
    let mut all = Vec::new();
    loop {
        let page = api.list(&params).await?;
        all.extend(page.items);
        params.continue_token = page.metadata.continue_.filter(|token| !token.is_empty());
        if params.continue_token.is_none() {
            return Ok(all);
        }
    }
}

fn node_state(lease: &Lease, now: u64) -> NodeState {
    let annotation = |key: &str| {
        let annotations = lease.annotations();
        let value = annotations.get(&format!("netdp.io/{key}"));
        value.cloned().unwrap_or_default()
    };
    let since = |second: i64| now.saturating_sub(u64::try_from(second).unwrap_or_default());
    let spec = lease.spec.as_ref();
    let renewed = spec.and_then(|spec| spec.renew_time.as_ref());
    let heard = renewed.map(|time| since(time.0.as_second()));
    let lasts = spec
        .and_then(|spec| spec.lease_duration_seconds)
        .unwrap_or_default();
    let stale = heard.is_none_or(|heard| heard > u64::try_from(lasts).unwrap_or_default());
    let applied: Option<jiff::Timestamp> = annotation("applied-at").parse().ok();
    let name = lease.name_any();
    let holder = spec.and_then(|spec| spec.holder_identity.clone());
    NodeState {
        node: holder.unwrap_or_else(|| name.trim_start_matches("netdp-").to_owned()),
        state: match (stale, annotation("ready").as_str()) {
            (true, _) => "stale",
            (false, "true") => "ready",
            (false, _) => "not ready",
        }
        .into(),
        version: annotation("version"),
        mode: annotation("mode"),
        config: annotation("config-hash"),
        generation: annotation("config-generation").parse().unwrap_or_default(),
        age_seconds: applied.map(|at| since(at.as_second())),
        mappings: annotation("mappings").parse().unwrap_or_default(),
        heard_seconds: heard,
        refused: annotation("refused").parse().unwrap_or_default(),
        errors: annotation("errors"),
        warnings: annotation("warnings").lines().map(str::to_owned).collect(),
    }
}

/// Limit of node names per line.
const NAMED: usize = 3;

/// Formats each warning once, with the nodes that have it.
fn warnings(nodes: &[NodeState]) -> String {
    let mut by_text: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for node in nodes {
        for warning in &node.warnings {
            by_text.entry(warning).or_default().push(&node.node);
        }
    }
    let line = |(text, nodes): (&str, Vec<&str>)| {
        let (named, more) = nodes.split_at(NAMED.min(nodes.len()));
        let more = match more.len() {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        format!("warning on {}{more}: {text}\n", named.join(", "))
    };
    by_text.into_iter().map(line).collect()
}

fn text(nodes: &[NodeState]) -> String {
    let mut rows = table(&[
        "NODE", "STATE", "VERSION", "MODE", "CONFIG", "GEN", "AGE", "MAPPINGS", "REFUSED",
        "RENEWED", "WARNINGS", "ERRORS",
    ]);
    let dash = |text: &str| {
        if text.is_empty() {
            "-".to_owned()
        } else {
            text.to_owned()
        }
    };
    let ago = |seconds: Option<u64>| seconds.map_or_else(|| "-".into(), pretty);
    for node in nodes {
        rows.add_row([
            node.node.clone(),
            node.state.clone(),
            dash(&node.version),
            dash(&node.mode),
            dash(&node.config),
            node.generation.to_string(),
            ago(node.age_seconds),
            node.mappings.to_string(),
            node.refused.to_string(),
            ago(node.heard_seconds),
            node.warnings.len().to_string(),
            dash(&node.errors),
        ]);
    }
    let configs: BTreeSet<&str> = nodes
        .iter()
        .map(|node| node.config.as_str())
        .filter(|config| !config.is_empty())
        .collect();
    let ready = nodes.iter().filter(|node| node.state == "ready").count();
    let agree = match configs.len() {
        0 => "no configuration is in force".to_owned(),
        1 => "all running agents have the same configuration".to_owned(),
        several => format!("{several} different configurations are in force"),
    };
    let warnings = warnings(nodes);
    format!(
        "{rows}\n{warnings}{ready} of {} nodes ready; {agree}\n",
        nodes.len()
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn lease(renewed: &str, ready: &str) -> Lease {
        serde_json::from_value(json!({
            "metadata": {"name": "netdp-a", "annotations": {
                "netdp.io/version": "1.0", "netdp.io/config-hash": "abc", "netdp.io/ready": ready,
                "netdp.io/config-generation": "3", "netdp.io/mappings": "7",
                "netdp.io/applied-at": "1970-01-01T00:01:00Z",
            }},
            "spec": {"holderIdentity": "a", "leaseDurationSeconds": 150, "renewTime": renewed},
        }))
        .unwrap()
    }

    #[test]
    fn silence_longer_than_the_lease_is_stale() {
        let at = "1970-01-01T00:01:40.000000Z";
        assert_eq!(node_state(&lease(at, "true"), 250).state, "ready");
        assert_eq!(node_state(&lease(at, "false"), 250).state, "not ready");
        let stale = node_state(&lease(at, "true"), 251);
        assert_eq!(
            (stale.state.as_str(), stale.heard_seconds),
            ("stale", Some(151))
        );
        assert_eq!(
            (stale.age_seconds, stale.generation, stale.mappings),
            (Some(191), 3, 7)
        );
    }

    #[test]
    fn the_table_says_whether_nodes_agree() {
        let node = |name: &str, config: &str, state: &str| NodeState {
            node: name.into(),
            config: config.into(),
            state: state.into(),
            ..NodeState::default()
        };
        let same = [
            node("a", "x", "ready"),
            node("b", "x", "ready"),
            node("c", "", "no agent"),
        ];
        assert!(text(&same).contains("2 of 3 nodes ready; all running agents have the same"));
        let mut warned = same.clone();
        for node in &mut warned {
            node.warnings = vec!["odd".into()];
        }
        warned[0].warnings.push("only here".into());
        let told = text(&warned);
        assert!(
            told.contains("warning on a, b, c: odd\nwarning on a: only here\n"),
            "{told}"
        );
        let mixed = [node("a", "x", "ready"), node("b", "y", "stale")];
        assert!(text(&mixed).contains("1 of 2 nodes ready; 2 different configurations"));
    }
}
