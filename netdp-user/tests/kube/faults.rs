//! An API server that disappears, denies access, returns garbage or closes watches: the last good
//! configuration stays in force.

use crate::cluster::{Cluster, EVERYTHING, NOT_THE_NEIGHBOUR, RECOVERY, wait_status};
use crate::proxy::{Fault, Proxy};
use anyhow::{Result, ensure};
use testbed::{Agent, wait_for};

/// Every fault that prevents the agent from receiving a change.
const DEAF: [Fault; 6] = [
    Fault::Cut,
    Fault::Silent,
    Fault::Status(403),
    Fault::Status(500),
    Fault::Status(410),
    Fault::Garbage,
];

/// Starts a cluster that masquerades everything, and an agent that reaches its API through a proxy.
fn behind_a_proxy() -> Result<(Cluster, Proxy, Agent)> {
    let cluster = Cluster::start()?;
    cluster.configure(EVERYTHING)?;
    let proxy = Proxy::start(&cluster.bed.node, &cluster.kubeconfig()?)?;
    let agent = Agent::start(
        &cluster.bed.node,
        cluster.options(&cluster.kubeconfig_of(&proxy)?),
    )?;
    Ok((cluster, proxy, agent))
}

/// Masquerades everything, or everything except the neighbour.
fn configure(cluster: &Cluster, masqueraded: bool) -> Result<()> {
    cluster.configure(if masqueraded {
        EVERYTHING
    } else {
        NOT_THE_NEIGHBOUR
    })
}

#[test]
fn what_was_in_force_stays_and_changes_count_afterwards() -> Result<()> {
    let (cluster, proxy, agent) = behind_a_proxy()?;
    let mut masqueraded = true;
    for fault in DEAF {
        proxy.set(fault);
        let before = proxy.requests();
        masqueraded = !masqueraded;
        configure(&cluster, masqueraded)?;
        if fault != Fault::Cut {
            // The agent has met the fault.
            wait_for(RECOVERY, "requests", || proxy.requests() >= before + 3)?;
        }
        ensure!(
            cluster.is_masqueraded()? != masqueraded,
            "{fault:?}: changed"
        );
        if fault != Fault::Silent {
            wait_status(&agent, "a word of it", |report| {
                let api = report["api"].as_str().unwrap_or_default();
                api.contains("the configuration received last stays in force")
            })?;
        }
        cluster.wait_probe(&agent, "200", "ok")?;
        proxy.set(Fault::None);
        cluster.wait_masqueraded(&agent, masqueraded)?;
    }
    wait_status(&agent, "all well", |report| report["api"] == "followed")?;
    // Logged, but not for each attempt.
    let log = agent.log();
    let lines = log
        .lines()
        .filter(|line| line.contains("Kubernetes API"))
        .count();
    ensure!(lines <= 4 * DEAF.len(), "{lines} lines:\n{log}");
    Ok(())
}

#[test]
fn changes_count_with_a_slow_api_and_with_watches_that_do_not_last() -> Result<()> {
    let (cluster, proxy, agent) = behind_a_proxy()?;
    let mut masqueraded = true;
    for fault in [Fault::Slow, Fault::Gone] {
        proxy.set(fault);
        masqueraded = !masqueraded;
        configure(&cluster, masqueraded)?;
        cluster.wait_masqueraded(&agent, masqueraded)?;
    }
    // Watches that are closed at once are reopened with back-off.
    proxy.set(Fault::ShortWatches);
    let before = proxy.requests();
    wait_for(RECOVERY, "watches", || proxy.requests() >= before + 12)?;
    proxy.set(Fault::None);
    configure(&cluster, !masqueraded)?;
    cluster.wait_masqueraded(&agent, !masqueraded)
}

#[test]
fn a_cluster_that_was_made_anew_is_not_believed() -> Result<()> {
    let mut cluster = Cluster::start()?;
    cluster.configure(EVERYTHING)?;
    let mut agent = cluster.agent()?;
    assert!(cluster.is_masqueraded()?);
    cluster.api.restart_empty()?;
    // The ServiceAccount is a new one: the old token receives nothing.
    cluster.api.apply(&crate::cluster::account())?;
    cluster.api.apply(crate::cluster::RBAC)?;
    cluster.add_node()?;
    cluster.kubeconfig()?;
    assert!(cluster.is_masqueraded()?);
    // A new agent receives an empty list of ConfigMaps and applies it.
    agent.restart()?;
    cluster.wait_masqueraded(&agent, false)
}

#[test]
fn lists_that_are_empty_by_a_lie_are_not_believed() -> Result<()> {
    let (cluster, proxy, agent) = behind_a_proxy()?;
    // A watch that ends is resumed; a list follows only if it cannot be.
    proxy.set(Fault::Gone);
    wait_status(&agent, "the watches' end", |report| {
        report["api"] != "followed"
    })?;
    proxy.set(Fault::EmptyLists);
    wait_status(&agent, "disbelief", |report| {
        let api = report["api"].as_str().unwrap_or_default();
        api.contains("ignored, as the API server") || api.contains("there is no Node")
    })?;
    assert!(cluster.is_masqueraded()?);
    proxy.set(Fault::None);
    wait_status(&agent, "all well", |report| report["api"] == "followed")?;
    assert!(cluster.is_masqueraded()?);
    Ok(())
}

/// Whichever part of the agent sends the requests, however often, and whatever the error text.
#[test]
fn an_api_that_is_away_and_one_that_refuses_are_told_once_each() -> Result<()> {
    let (cluster, proxy, agent) = behind_a_proxy()?;
    wait_status(&agent, "all well", |report| report["api"] == "followed")?;
    let roles = ["netdp", "-n", "kube-system"];
    let troubles = || -> Vec<String> {
        let log = agent.log();
        let bad = log
            .lines()
            .filter(|line| line.contains("WARN") || line.contains("ERROR"));
        bad.map(str::to_owned).collect()
    };
    let again = || {
        agent
            .log()
            .matches("following the Kubernetes API again, after ")
            .count()
    };
    proxy.set(Fault::Cut);
    let before = proxy.requests();
    // The watches and the Lease, several times each.
    wait_for(RECOVERY, "connections", || proxy.requests() >= before + 25)?;
    ensure!(troubles().len() == 1, "{:#?}", troubles());
    ensure!(
        troubles()[0].contains("the Kubernetes API"),
        "{:#?}",
        troubles()
    );
    proxy.set(Fault::None);
    wait_for(RECOVERY, "the end to be told", || again() == 1)?;
    // All permissions are revoked. The error text names different roles each time.
    for (kind, arguments) in [
        ("role", &roles[..]),
        ("role", &["netdp", "-n", "netdp-fleet"]),
        ("role", &["netdp", "-n", "default"]),
        ("clusterrole", &["netdp"]),
    ] {
        cluster
            .api
            .kubectl(&[&["delete", kind], arguments].concat())?;
    }
    // An open watch is not affected: this ends it.
    proxy.set(Fault::Status(403));
    let before = proxy.requests();
    wait_for(RECOVERY, "requests", || proxy.requests() >= before + 10)?;
    proxy.set(Fault::None);
    let before = proxy.requests();
    wait_for(RECOVERY, "requests", || proxy.requests() >= before + 25)?;
    let refused: Vec<_> = troubles().split_off(1);
    let of = |words: &str| refused.iter().filter(|line| line.contains(words)).count();
    ensure!(
        of("cannot follow the Kubernetes API: the API answers 403") == 1,
        "{refused:#?}"
    );
    // Watching configurations and writing the Lease are reported separately.
    ensure!(
        of("writing the Lease") <= 1 && refused.len() <= 2,
        "{refused:#?}"
    );
    cluster.api.apply(crate::cluster::RBAC)?;
    wait_for(RECOVERY, "the end to be told", || again() == 2)?;
    ensure!(troubles().len() == 1 + refused.len(), "{:#?}", troubles());
    cluster.wait_probe(&agent, "200", "ok")
}
