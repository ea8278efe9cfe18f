//! Start of the agent without an API, with one that denies access, or with a bad configuration in
//! it.

use crate::cluster::{Cluster, EVERYTHING, NOT_THE_NEIGHBOUR, wait_status};
use crate::common::{NETDP, wait_log};
use crate::proxy::{Fault, Proxy};
use anyhow::Result;
use std::fs;
use testbed::{Agent, AgentOptions};

fn proxied(cluster: &Cluster) -> Result<(Proxy, AgentOptions)> {
    let proxy = Proxy::start(&cluster.bed.node, &cluster.kubeconfig()?)?;
    let options = cluster.options(&cluster.kubeconfig_of(&proxy)?);
    Ok((proxy, options))
}

#[test]
fn without_the_api_the_defaults_hold_and_the_node_is_not_ready() -> Result<()> {
    let cluster = Cluster::start()?;
    cluster.configure(EVERYTHING)?;
    let (proxy, options) = proxied(&cluster)?;
    proxy.set(Fault::Silent);
    let agent = Agent::start(&cluster.bed.node, options)?;
    // Neither masquerades everything nor bypasses everything: the neighbour is in 10.0.0.0/8.
    assert!(!cluster.is_masqueraded()?);
    cluster.wait_probe(
        &agent,
        "503",
        "no configuration from the Kubernetes API yet",
    )?;
    proxy.set(Fault::None);
    cluster.wait_masqueraded(&agent, true)?;
    cluster.wait_probe(&agent, "200", "from the Kubernetes API in force on eth0")
}

#[test]
fn without_the_api_the_last_word_to_an_earlier_agent_holds() -> Result<()> {
    let cluster = Cluster::start()?;
    cluster.configure(EVERYTHING)?;
    let (proxy, options) = proxied(&cluster)?;
    let mut agent = Agent::start(&cluster.bed.node, options)?;
    assert!(cluster.is_masqueraded()?);
    for fault in [Fault::Cut, Fault::Status(403), Fault::Garbage] {
        proxy.set(fault);
        agent.restart()?;
        assert!(cluster.is_masqueraded()?, "{fault:?}");
        wait_status(&agent, "the earlier word", |report| {
            let api = report["api"].as_str().unwrap_or_default();
            api.contains("the configuration that an earlier agent received is in force")
        })?;
        cluster.wait_probe(&agent, "200", "ok")?;
    }
    // A change made meanwhile takes effect once the API is back.
    cluster.configure(NOT_THE_NEIGHBOUR)?;
    proxy.set(Fault::None);
    cluster.wait_masqueraded(&agent, false)
}

#[test]
fn files_are_enough_where_the_operator_gave_no_rights() -> Result<()> {
    let cluster = Cluster::bare()?;
    cluster.api.apply(&crate::cluster::account())?;
    let file = cluster.dir.path().join("config.yaml");
    fs::write(&file, EVERYTHING)?;
    let options = AgentOptions::new(NETDP)
        .config(&file)
        .arg("--kubeconfig")
        .arg(cluster.kubeconfig()?)
        .arg(format!("--http-listen={}", crate::cluster::PROBES));
    let agent = Agent::start(&cluster.bed.node, options)?;
    wait_log(&agent, "cannot list resource \"configmaps\"")?;
    assert!(cluster.is_masqueraded()?);
    cluster.wait_probe(&agent, "200", "from files in force")?;
    // The operator grants the permissions.
    cluster.api.apply(crate::cluster::RBAC)?;
    cluster.write(
        "more",
        "netdp.io/config: \"\"",
        "config",
        "nonMasqueradeCIDRs: [10.1.0.0/16]\n",
    )?;
    cluster.wait_masqueraded(&agent, false)
}

#[test]
fn a_config_that_is_bad_from_the_start_gives_the_defaults_and_no_readiness() -> Result<()> {
    let cluster = Cluster::start()?;
    cluster.configure("nonMasqueradeCIDRs:\n- 172.16.0.0/16\n- 10.1.0.0/33\n")?;
    let agent = cluster.agent()?;
    assert!(!cluster.is_masqueraded()?);
    cluster.wait_probe(
        &agent,
        "503",
        "the defaults are in force: kube-system/ip-masq-agent/config:3",
    )?;
    cluster.configure(EVERYTHING)?;
    cluster.wait_masqueraded(&agent, true)?;
    cluster.wait_probe(&agent, "200", "ok")
}
