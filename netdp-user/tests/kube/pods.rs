//! Names of pods from the API.

use crate::cluster::{Cluster, NODE, NOT_THE_NEIGHBOUR, RECOVERY};
use crate::common::clients::{Tcp, any};
use crate::common::{ECHO, flows};
use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use testbed::{Agent, wait_for};

/// The permission that the component adds.
const RBAC: &str = include_str!("../../../deploy/kustomize/components/pod-names-api/rbac.yaml");

/// Writes a pod of this node, and its status as the kubelet does.
fn add_pod(cluster: &Cluster, name: &str, address: &str) -> Result<()> {
    let status = format!(
        r#"{{"apiVersion":"v1","kind":"Pod","metadata":{{"name":"{name}","namespace":"default"}},
            "status":{{"phase":"Running","startTime":"2026-01-01T00:00:00Z","podIP":"{address}",
                       "podIPs":[{{"ip":"{address}"}}]}}}}"#
    );
    // No controller creates it here.
    cluster.api.apply(
        "apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: default, namespace: default}\n",
    )?;
    cluster.api.apply(&format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: default}}\n\
         spec:\n  nodeName: {NODE}\n  automountServiceAccountToken: false\n  containers: [{{name: c, image: none}}]\n"
    ))?;
    let file = cluster.dir.path().join(format!("{name}.json"));
    std::fs::write(&file, status)?;
    let path = format!("/api/v1/namespaces/default/pods/{name}/status");
    let file = file.to_str().context("a path")?;
    cluster
        .api
        .kubectl(&["replace", "--raw", &path, "-f", file])?;
    Ok(())
}

/// Waits until all flows have this pod's name.
fn wait_named(agent: &Agent, name: Option<&str>) -> Result<()> {
    wait_for(RECOVERY, &format!("flows of {name:?}"), || {
        let is_named = |flow: &Value| flow["pod"]["name"].as_str() == name;
        flows(agent).is_ok_and(|flows| !flows.is_empty() && flows.iter().all(is_named))
    })
    .with_context(|| format!("{:#?}\nthe agent wrote:\n{}", flows(agent), agent.log()))
}

#[test]
fn pods_are_named_by_the_api_where_that_is_allowed() -> Result<()> {
    let cluster = Cluster::start()?;
    cluster.configure(&NOT_THE_NEIGHBOUR.replace("- 10.1.0.0/16\n", ""))?;
    let options = cluster.options(&cluster.kubeconfig()?);
    let agent = Agent::start(&cluster.bed.node, options.arg("--pod-names=api"))?;
    let (pod, to) = (&cluster.bed.pods[0], (cluster.near.v4()?, ECHO).into());
    let mut client = Tcp::connect(pod, any(to), to)?;
    client.ask()?;
    add_pod(&cluster, "cart", &pod.v4()?.to_string())?;
    // Without the permission there are no names, and everything else works.
    wait_for(RECOVERY, "a message about the permission", || {
        agent.log().contains("pods is forbidden")
    })
    .with_context(|| agent.log())?;
    wait_named(&agent, None)?;
    ensure!(cluster.is_masqueraded()?);
    cluster.api.apply(RBAC)?;
    wait_named(&agent, Some("cart"))?;
    client.ask()?;
    cluster
        .api
        .kubectl(&["delete", "pod", "cart", "--force", "--grace-period=0"])?;
    wait_for(RECOVERY, "the pod's end", || {
        let text = agent.netdp(&["flows"]);
        text.is_ok_and(|text| text.contains("default/cart (gone "))
    })
    .with_context(|| agent.netdp(&["flows"]).unwrap_or_default())
}
