//! Tests of `netdp fleet`.

use crate::cluster::RECOVERY;
use crate::cluster::{Cluster, EVERYTHING, NODE};
use anyhow::{Context as _, Result};
use serde_json::Value;
use std::process::Command;
use testbed::{Agent, output, wait_for};

pub fn fleet(cluster: &Cluster, arguments: &[&str]) -> Result<String> {
    let mut command: Command = cluster.bed.node.command(crate::common::NETDP);
    command
        .arg("fleet")
        .arg("--kubeconfig")
        .arg(cluster.api.admin_kubeconfig())
        .args(arguments);
    output(&mut command)
}

/// Waits until the output shows the node as expected.
pub fn wait_shown(
    cluster: &Cluster,
    agent: &Agent,
    wanted: impl Fn(&Value) -> bool,
) -> Result<Value> {
    let mut seen = Value::Null;
    wait_for(RECOVERY, "the node to be shown as wanted", || {
        let shown = fleet(cluster, &["-o", "json"]).ok();
        let shown = shown.and_then(|text| serde_json::from_str::<Value>(&text).ok());
        let rows = shown.as_ref().and_then(Value::as_array);
        let row = rows.and_then(|rows| rows.iter().find(|row| row["node"] == NODE));
        seen = row.cloned().unwrap_or_default();
        wanted(&seen)
    })
    .with_context(|| format!("it is shown as {seen:#}\nthe agent wrote:\n{}", agent.log()))?;
    Ok(seen)
}

#[test]
fn it_shows_what_is_in_force_where() -> Result<()> {
    let cluster = Cluster::start()?;
    cluster.configure(EVERYTHING)?;
    cluster
        .api
        .apply("apiVersion: v1\nkind: Node\nmetadata: {name: node-b}\n")?;
    let agent = cluster.agent()?;
    let first = wait_shown(&cluster, &agent, |row| row["state"] == "ready")?;
    assert_eq!(first["mode"], "ebpf");
    let report = crate::common::status(&agent)?["report"].clone();
    assert_eq!(first["config"], report["config"]["hash"]);
    // Another configuration changes the hash and the generation.
    cluster.configure("nonMasqueradeCIDRs: [172.16.0.0/16, 192.0.2.0/24]\n")?;
    let next = first["generation"].as_u64().context("a number")? + 1;
    let second = wait_shown(&cluster, &agent, |row| row["generation"] == next)?;
    assert_ne!(second["config"], first["config"]);
    // A bad one changes neither and is reported.
    cluster.configure("nonMasqueradeCIDRs: [x]\n")?;
    let third = wait_shown(&cluster, &agent, |row| {
        let errors = row["errors"].as_str().unwrap_or_default();
        errors.contains("kube-system/ip-masq-agent/config:1")
    })?;
    assert_eq!(
        (&third["config"], &third["state"]),
        (&second["config"], &second["state"])
    );
    // An unknown key rejects nothing and causes a warning.
    cluster.configure("nonMasqueradeCIDR: [192.0.2.0/24]\n")?;
    wait_shown(&cluster, &agent, |row| {
        row["errors"] == "" && row["warnings"].to_string().contains("unknown key")
    })?;
    let text = fleet(&cluster, &[])?;
    assert!(text.contains("NODE") && text.contains("node-b"), "{text}");
    assert!(text.contains("no agent"), "{text}");
    assert!(text.contains("1 of 2 nodes ready"), "{text}");
    Ok(())
}

/// As in the agent's pod, whose ServiceAccount may write Leases but not list them.
#[test]
fn without_the_right_it_says_so_once_and_what_to_do() -> Result<()> {
    let cluster = Cluster::start()?;
    let kubeconfig = cluster.kubeconfig()?;
    let mut command: Command = cluster.bed.node.command(crate::common::NETDP);
    command.arg("fleet").arg("--kubeconfig").arg(kubeconfig);
    let told = crate::common::refused(command)?;
    assert_eq!(told.lines().count(), 1, "{told}");
    assert_eq!(told.matches("forbidden").count(), 1, "{told}");
    assert!(
        told.contains("the right to list Leases in netdp-fleet"),
        "{told}"
    );
    Ok(())
}
