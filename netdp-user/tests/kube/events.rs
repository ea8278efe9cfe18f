//! Events on ConfigMaps and on the Node.

use crate::cluster::{Cluster, EVERYTHING, NODE, RECOVERY};
use crate::common::wait_log;
use crate::proxy::{Fault, Proxy};
use anyhow::{Context as _, Result};
use serde_json::Value;
use testbed::{Agent, wait_for, wait_some};

/// Waits for an Event with this reason and returns it.
pub fn event(cluster: &Cluster, agent: &Agent, namespace: &str, reason: &str) -> Result<Value> {
    let mut seen = Value::Null;
    wait_some(RECOVERY, &format!("an Event {reason}"), || {
        seen = cluster.json(&["-n", namespace, "get", "events"]).ok()?;
        let items = seen["items"].as_array()?;
        items
            .iter()
            .find(|event| event["reason"] == reason)
            .cloned()
    })
    .with_context(|| format!("there are {seen:#}\nthe agent wrote:\n{}", agent.log()))
}

#[test]
fn they_say_what_became_of_a_config_map() -> Result<()> {
    let cluster = Cluster::start()?;
    cluster.configure(EVERYTHING)?;
    let agent = cluster.agent()?;
    let applied = event(&cluster, &agent, "kube-system", "ConfigApplied")?;
    assert_eq!(applied["type"], "Normal");
    assert_eq!(applied["involvedObject"]["kind"], "ConfigMap");
    assert_eq!(applied["involvedObject"]["name"], "ip-masq-agent");
    let message = applied["message"].as_str().unwrap_or_default();
    assert!(message.starts_with("in force: config "), "{message}");
    cluster.configure("nonMasqueradeCIDRs:\n- 10.0.0.0/33\n")?;
    let rejected = event(&cluster, &agent, "kube-system", "ConfigRejected")?;
    assert_eq!(rejected["type"], "Warning");
    let message = rejected["message"].as_str().unwrap_or_default();
    assert!(message.starts_with("config:2: "), "{message}");
    assert!(
        message.ends_with("the previous configuration stays in force"),
        "{message}"
    );
    cluster.configure("nonMasqueradeCIDRs:\n- 10.0.0.0/8\n- 10.1.0.0/16\n")?;
    let warned = event(&cluster, &agent, "kube-system", "ConfigWarning")?;
    let message = warned["message"].as_str().unwrap_or_default();
    assert!(message.contains("10.1.0.0/16"), "{message}");
    Ok(())
}

/// A third party detaches all programs. They are back before a query could detect it.
#[test]
fn a_detached_datapath_is_told_of_the_node() -> Result<()> {
    let cluster = Cluster::start()?;
    cluster.configure(EVERYTHING)?;
    let mut options = cluster.options(&cluster.kubeconfig()?);
    options = options.arg("--attach=clsact");
    let agent = Agent::start(&cluster.bed.node, options)?;
    let off = ["tc", "filter", "del", "dev", "eth0", "egress"];
    cluster.bed.node.run(&off)?;
    let told = event(&cluster, &agent, "default", "DatapathDetached")?;
    assert_eq!(told["type"], "Warning");
    assert_eq!(told["involvedObject"]["kind"], "Node");
    let message = told["message"].as_str().unwrap_or_default();
    assert!(
        message.contains("the egress program is not attached to eth0 (clsact)"),
        "{message}"
    );
    cluster.wait_probe(&agent, "200", "ok")?;
    cluster.wait_masqueraded(&agent, true)
}

#[test]
fn the_nodes_of_a_cluster_share_one_about_each_version() -> Result<()> {
    let cluster = Cluster::start()?;
    cluster.configure(EVERYTHING)?;
    let mut agent = cluster.agent()?;
    event(&cluster, &agent, "kube-system", "ConfigApplied")?;
    // The same agent restarted, and one with another name.
    agent.restart()?;
    let log = agent.options().clone().arg("--log-level=debug");
    *agent.options() = log;
    agent.restart()?;
    cluster.configure("nonMasqueradeCIDRs:\n- 10.0.0.0/33\n")?;
    event(&cluster, &agent, "kube-system", "ConfigRejected")?;
    let events = cluster.json(&["-n", "kube-system", "get", "events"])?;
    let items = events["items"].as_array().context("a list")?;
    let applied = items
        .iter()
        .filter(|event| event["reason"] == "ConfigApplied")
        .count();
    assert_eq!(applied, 1, "{events:#}");
    Ok(())
}

#[test]
fn one_says_that_the_uplink_is_lost() -> Result<()> {
    let cluster = Cluster::start()?;
    cluster.configure(EVERYTHING)?;
    let agent = cluster.agent()?;
    // The Event for the initial state, so that the next one is for a change.
    event(&cluster, &agent, "kube-system", "ConfigApplied")?;
    cluster.bed.node.ip("link delete eth0")?;
    let lost = event(&cluster, &agent, "default", "UplinkLost")?;
    assert_eq!(lost["involvedObject"]["kind"], "Node");
    assert_eq!(lost["involvedObject"]["name"], NODE);
    assert!(
        lost["message"]
            .as_str()
            .unwrap_or_default()
            .contains("eth0")
    );
    Ok(())
}

#[test]
fn nothing_depends_on_the_right_to_write_them() -> Result<()> {
    let cluster = Cluster::bare()?;
    cluster.api.apply(&crate::cluster::account())?;
    cluster
        .api
        .apply(&crate::rbac::without("events", "create"))?;
    cluster.add_node()?;
    cluster.configure(EVERYTHING)?;
    let agent = cluster.agent()?;
    wait_log(&agent, "posting an Event ")?;
    assert!(cluster.is_masqueraded()?);
    cluster.wait_probe(&agent, "200", "ok")
}

/// The most severe condition, and not tied to a line of any ConfigMap.
#[test]
fn masqueraded_pods_are_told_of_the_node_and_in_the_fleet() -> Result<()> {
    let cluster = Cluster::start()?;
    cluster.configure("nonMasqueradeCIDRs: [10.0.0.0/8]\n")?;
    let agent = cluster.agent()?;
    let told = event(&cluster, &agent, "default", "ConfigWarning")?;
    assert_eq!(told["type"], "Warning");
    assert_eq!(told["involvedObject"]["kind"], "Node");
    let message = told["message"].as_str().unwrap_or_default();
    let words = "the pod CIDR 172.16.0.0/24 is masqueraded";
    assert!(message.contains(words), "{message}");
    crate::fleet::wait_shown(&cluster, &agent, |row| {
        row["warnings"].to_string().contains(words)
    })?;
    let text = crate::fleet::fleet(&cluster, &[])?;
    let line = format!("warning on {NODE}: policy: {words}");
    assert!(text.contains(&line), "{text}");
    Ok(())
}

/// The built-in rules then apply, which bypass the previously masqueraded destination.
#[test]
fn a_config_map_that_is_deleted_is_told() -> Result<()> {
    let cluster = Cluster::start()?;
    cluster.configure(EVERYTHING)?;
    let agent = cluster.agent()?;
    event(&cluster, &agent, "kube-system", "ConfigApplied")?;
    let delete = ["-n", "kube-system", "delete", "configmap", "ip-masq-agent"];
    cluster.api.kubectl(&delete)?;
    let gone = event(&cluster, &agent, "kube-system", "ConfigGone")?;
    assert_eq!(gone["type"], "Warning");
    assert_eq!(gone["involvedObject"]["name"], "ip-masq-agent");
    let message = gone["message"].as_str().unwrap_or_default();
    assert!(
        message.starts_with("no longer part of the configuration; in force: config "),
        "{message}"
    );
    wait_log(
        &agent,
        "kube-system/ip-masq-agent/config is gone: the configuration in force is from defaults (no \
         ConfigMap, no file)",
    )
}

/// Problems that occur while the API is unreachable are reported once it is back.
#[test]
fn what_happened_while_the_api_was_away_is_told_afterwards() -> Result<()> {
    let cluster = Cluster::start()?;
    cluster.configure(EVERYTHING)?;
    let proxy = Proxy::start(&cluster.bed.node, &cluster.kubeconfig()?)?;
    let options = cluster.options(&cluster.kubeconfig_of(&proxy)?);
    let agent = Agent::start(&cluster.bed.node, options)?;
    event(&cluster, &agent, "kube-system", "ConfigApplied")?;
    proxy.set(Fault::Cut);
    // Whichever request notices first tells of it.
    let told = [
        "cannot follow the Kubernetes API",
        "the Kubernetes API does not answer",
    ];
    wait_for(RECOVERY, "the agent to notice", || {
        let log = agent.log();
        told.iter().any(|words| log.contains(words))
    })?;
    cluster.bed.node.ip("link delete eth0")?;
    cluster.wait_probe(&agent, "503", "no program is attached")?;
    let before = proxy.requests();
    wait_for(RECOVERY, "attempts", || proxy.requests() >= before + 10)?;
    proxy.set(Fault::None);
    for reason in ["UplinkLost", "NotInForce"] {
        event(&cluster, &agent, "default", reason)?;
    }
    Ok(())
}

/// Packets from pods are dropped; nothing else would report it.
#[test]
fn an_uplink_without_an_address_is_told_and_not_ready() -> Result<()> {
    let cluster = Cluster::start()?;
    cluster.configure(EVERYTHING)?;
    let agent = cluster.agent()?;
    cluster.wait_probe(&agent, "200", "ok")?;
    cluster
        .bed
        .node
        .ip("address delete 10.1.0.10/16 dev eth0")?;
    let words = "eth0 has no IPv4 address any more";
    let told = event(&cluster, &agent, "default", "NoAddress")?;
    let message = told["message"].as_str().unwrap_or_default();
    assert!(message.starts_with(words), "{message}");
    crate::fleet::wait_shown(&cluster, &agent, |row| {
        row["state"] == "not ready" && row["errors"].to_string().contains(words)
    })?;
    Ok(())
}
