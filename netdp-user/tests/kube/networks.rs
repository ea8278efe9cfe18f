//! The cluster's own networks: pod CIDRs and addresses of all Nodes, and ServiceCIDRs.

use crate::cluster::{Cluster, RECOVERY, wait_status};
use crate::common::{status, wait_log};
use crate::proxy::{Fault, Proxy, SERVICES};
use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use std::fmt::Write as _;
use std::time::Instant;
use testbed::{Agent, wait_for};

/// Policy that masquerades everything but the cluster's networks of these kinds.
fn nothing_but(kinds: &str) -> String {
    format!("nonMasqueradeCIDRs: []\nautoNonMasquerade: [{kinds}]\n")
}

/// Registers a second node, in whose pod CIDR the neighbour is.
fn add_other_node(cluster: &Cluster) -> Result<()> {
    cluster.api.apply(
        "apiVersion: v1\nkind: Node\nmetadata: {name: node-b}\n\
         spec: {podCIDR: 10.1.0.16/28, podCIDRs: [10.1.0.16/28]}\n",
    )?;
    Ok(())
}

fn has_rule(report: &Value, prefix: &str, origin: &str) -> bool {
    let rules = report["config"]["rules"].as_array();
    let mut rules = rules.into_iter().flatten();
    rules.any(|rule| rule["prefix"] == prefix && rule["origin"] == origin)
}

#[test]
fn nodes_that_join_are_known_and_those_that_leave_not_forgotten_at_once() -> Result<()> {
    let cluster = Cluster::start()?;
    cluster.configure(&nothing_but("pods"))?;
    let agent = cluster.agent()?;
    ensure!(cluster.is_masqueraded()?);
    wait_status(&agent, "this node's network", |report| {
        has_rule(report, "172.16.0.0/24", "auto: pods (node node-a)")
    })?;
    let config =
        |key: &str| Ok::<_, anyhow::Error>(status(&agent)?["report"]["config"][key].clone());
    let (hash, generation) = (config("hash")?, config("generation")?);
    add_other_node(&cluster)?;
    cluster.wait_masqueraded(&agent, false)?;
    wait_status(&agent, "the other node's network", |report| {
        has_rule(report, "10.1.0.16/28", "auto: pods (node node-b)")
    })?;
    // No other configuration: the nodes of a fleet learn of it one after the other.
    ensure!((config("hash")?, config("generation")?) == (hash, generation));
    cluster.api.kubectl(&["delete", "node", "node-b"])?;
    // A Node that joins later is known only after the end of the other one was.
    cluster.api.apply(
        "apiVersion: v1\nkind: Node\nmetadata: {name: node-c}\n\
         spec: {podCIDR: 10.9.0.16/28, podCIDRs: [10.9.0.16/28]}\n",
    )?;
    wait_status(&agent, "the third node's network", |report| {
        has_rule(report, "10.9.0.16/28", "auto: pods (node node-c)")
            && has_rule(report, "10.1.0.16/28", "auto: pods (node node-b)")
    })?;
    ensure!(!cluster.is_masqueraded()?, "forgotten at once");
    // Without the key nothing counts.
    cluster.configure("nonMasqueradeCIDRs: []\n")?;
    cluster.wait_masqueraded(&agent, true)?;
    // What was forgotten is not known again.
    cluster.configure(&nothing_but("pods"))?;
    wait_status(&agent, "this node's network", |report| {
        has_rule(report, "172.16.0.0/24", "auto: pods (node node-a)")
    })?;
    cluster.wait_masqueraded(&agent, true)
}

#[test]
fn addresses_of_nodes_count_where_they_are_asked_for() -> Result<()> {
    let cluster = Cluster::start()?;
    cluster.configure(&nothing_but("pods"))?;
    // A Node's status counts when it is created, too.
    cluster.api.apply(
        "apiVersion: v1\nkind: Node\nmetadata: {name: node-b}\n\
         status: {addresses: [{type: InternalIP, address: 10.1.0.20}]}\n",
    )?;
    let agent = cluster.agent()?;
    wait_status(&agent, "this node's network", |report| {
        has_rule(report, "172.16.0.0/24", "auto: pods (node node-a)")
    })?;
    ensure!(cluster.is_masqueraded()?);
    cluster.configure(&nothing_but("nodes"))?;
    cluster.wait_masqueraded(&agent, false)?;
    wait_status(&agent, "the origin", |report| {
        has_rule(report, "10.1.0.20/32", "auto: nodes (node node-b)")
    })
}

/// Prints the figures of docs/kubernetes.md: memory, and the time until a node that joins is in force.
#[test]
fn five_thousand_nodes() -> Result<()> {
    const NODES: usize = 5_000;
    let cluster = Cluster::start()?;
    let node = |number: usize, cidr: &str| {
        format!(
            "apiVersion: v1\nkind: Node\nmetadata: {{name: other-{number}}}\n\
             spec: {{podCIDR: {cidr}, podCIDRs: [{cidr}]}}\n---\n"
        )
    };
    let mut manifests = String::new();
    for number in 0..NODES {
        let _ = write!(
            manifests,
            "{}",
            node(
                number,
                &format!("100.{}.{}.0/24", 64 + number / 256, number % 256)
            )
        );
    }
    let file = cluster.dir.path().join("nodes.yaml");
    std::fs::write(&file, manifests)?;
    cluster
        .api
        .kubectl(&["create", "-f", &file.to_string_lossy()])?;
    cluster.configure("nonMasqueradeCIDRs: []\n")?;
    let agent = cluster.agent()?;
    let memory = || {
        let text = std::fs::read_to_string(format!("/proc/{}/status", agent.pid()))?;
        let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let size = line.and_then(|line| line.trim().strip_suffix(" kB"));
        let size: f64 = size.context("no VmRSS")?.parse()?;
        Ok::<_, anyhow::Error>(size / 1024.0)
    };
    let before = memory()?;
    cluster.configure(&nothing_but("pods"))?;
    let start = Instant::now();
    wait_status(&agent, "all nodes", |report| {
        has_rule(
            report,
            "100.64.0.0/12",
            "auto: pods (node other-0 and 4095 more)",
        )
    })?;
    eprintln!(
        "{NODES} nodes, from the key to the policy in force: {:.0} ms; {before:.1} MiB resident \
         before, {:.1} MiB after",
        start.elapsed().as_secs_f64() * 1e3,
        memory()?
    );
    let start = Instant::now();
    add_other_node(&cluster)?;
    let asked = start.elapsed();
    cluster.wait_masqueraded(&agent, false)?;
    eprintln!(
        "one more, from sending it to the policy in force: {:.0} ms, of which kubectl took {:.0} ms",
        start.elapsed().as_secs_f64() * 1e3,
        asked.as_secs_f64() * 1e3
    );
    Ok(())
}

#[test]
fn what_was_known_stays_while_the_api_is_gone_and_after_a_restart() -> Result<()> {
    let cluster = Cluster::start()?;
    cluster.configure(&nothing_but("pods"))?;
    add_other_node(&cluster)?;
    let proxy = Proxy::start(&cluster.bed.node, &cluster.kubeconfig()?)?;
    let options = cluster.options(&cluster.kubeconfig_of(&proxy)?);
    let mut agent = Agent::start(&cluster.bed.node, options)?;
    cluster.wait_masqueraded(&agent, false)?;
    for fault in [
        Fault::Cut,
        Fault::Status(403),
        Fault::Garbage,
        Fault::EmptyLists,
    ] {
        proxy.set(fault);
        let before = proxy.requests();
        wait_for(RECOVERY, "requests", || proxy.requests() >= before + 6)?;
        ensure!(!cluster.is_masqueraded()?, "{fault:?}");
        if fault == Fault::Cut {
            agent.restart()?;
            ensure!(!cluster.is_masqueraded()?, "after a restart");
            wait_status(&agent, "the origin", |report| {
                has_rule(report, "10.1.0.16/28", "auto: pods (node node-b)")
            })?;
        }
    }
    proxy.set(Fault::None);
    wait_status(&agent, "the API to be followed", |report| {
        report["api"] == "followed"
    })
}

#[test]
fn service_cidrs_are_read_in_either_version() -> Result<()> {
    for version in ["v1", "v1beta1"] {
        let cluster = Cluster::start()?;
        cluster.configure(&nothing_but("services"))?;
        let proxy = Proxy::start(&cluster.bed.node, &cluster.kubeconfig()?)?;
        proxy.set(Fault::ServiceCidrs(version));
        let options = cluster.options(&cluster.kubeconfig_of(&proxy)?);
        let agent = Agent::start(&cluster.bed.node, options)?;
        cluster.wait_masqueraded(&agent, false)?;
        wait_status(&agent, "the origin", |report| {
            has_rule(report, SERVICES, "auto: services")
        })?;
    }
    Ok(())
}

#[test]
fn an_api_without_service_cidrs_is_warned_of() -> Result<()> {
    let cluster = Cluster::start()?;
    cluster.configure(&nothing_but("services"))?;
    let mut agent = cluster.agent()?;
    wait_log(&agent, "the Kubernetes API has no ServiceCIDRs")?;
    ensure!(cluster.is_masqueraded()?);
    wait_status(&agent, "the API to be followed", |report| {
        report["api"] == "followed"
    })?;
    // The flag is enough.
    let options = cluster.options(&cluster.kubeconfig()?);
    *agent.options() = options.arg(format!("--service-cidr={SERVICES}"));
    agent.restart()?;
    cluster.wait_masqueraded(&agent, false)?;
    wait_status(&agent, "the origin", |report| {
        has_rule(report, SERVICES, "auto: services (--service-cidr)")
            && !report["config"]["warnings"]
                .to_string()
                .contains("ServiceCIDRs")
    })
}
