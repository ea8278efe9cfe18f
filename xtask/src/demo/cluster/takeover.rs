//! Scene: netdp is uninstalled, ip-masq-agent's rules are installed, netdp takes them over under
//! load and rolls back.

use super::stage::{PATIENCE, Stage, show, show_load};
use crate::demo::narrate;
use crate::shell;
use anyhow::{Context as _, Result};
use serde_json::Value;
use std::fs;
use testbed::{output, wait_for};
use xtask::cluster::{ip_masq_agent, ip_masq_agent_rules};
use xtask::image::TOOLS;

/// The chain that netdp takes over.
const CHAIN: &str = "IP-MASQ-AGENT";

/// The kustomize overlay for the takeover.
const OVERLAY: &str = "deploy/kustomize/overlays/ip-masq-agent";

pub fn run(stage: &mut Stage) -> Result<()> {
    narrate("netdp goes, as docs/install.md says:\n");
    let datapath = stage.cluster.datapath()?;
    stage.uninstall()?;
    let mut left = None;
    let gone = wait_for(PATIENCE, "nothing to be left", || {
        left = stage.cluster.remains(&datapath).ok();
        left.as_ref().is_some_and(|left| left.is_nothing())
    });
    let left = left.context("what remains can't be listed")?;
    narrate(&format!("\nWhat remains of it:\n{left}"));
    gone?;

    narrate(
        "ip-masq-agent comes: its own manifest, with the rules that it leaves on nodes. (A \
         placeholder\nstands in for its program.)\n",
    );
    masquerade_by_chain(stage)?;
    stage.kubectl("-n kube-system get daemonset ip-masq-agent")?;
    let load = stage.load()?;

    narrate(&format!(
        "\nnetdp takes over:\n$ kubectl apply -k {OVERLAY}"
    ));
    shell::progress("the takeover, under load");
    show(&apply_overlay(stage)?);
    stage.cluster.wait_rollout("ip-masq-agent")?;
    wait_for(PATIENCE, "the chain to be gone", || {
        chain(stage).is_ok_and(|rules| rules.is_empty())
    })?;
    load.step().context("after the takeover")?;
    stage.kubectl_until(
        "-n kube-system logs daemonset/ip-masq-agent",
        "taken over: chain",
    )?;
    let (opened, lost) = load.tally().connections();
    narrate(&format!("{opened} connections so far, {lost} lost."));

    narrate("\nThe rollback:");
    shell::progress("the rollback, under load");
    stage.kubectl(
        "-n kube-system patch daemonset ip-masq-agent --type json --patch \
         [{\"op\":\"add\",\"path\":\"/spec/template/spec/containers/0/args/-\",\
         \"value\":\"--mode=iptables\"}]",
    )?;
    stage.cluster.wait_rollout("ip-masq-agent")?;
    wait_for(PATIENCE, "the programs to be gone", || {
        let attached = stage.cluster.datapath();
        attached.is_ok_and(|attached| attached == Default::default())
    })?;
    load.step().context("after the rollback")?;
    narrate("$ iptables -t nat -S IP-MASQ-AGENT    # on the node");
    let rules = chain(stage)?;
    show(&rules);
    anyhow::ensure!(!rules.is_empty(), "the chain is not back");
    show_load(&load.end()?)
}

/// Installs ip-masq-agent's manifest, ConfigMap and rules.
fn masquerade_by_chain(stage: &Stage) -> Result<()> {
    let manifest = ip_masq_agent(TOOLS);
    narrate("$ kubectl apply -f ip-masq-agent.yaml");
    show(&stage.cluster.api().apply(&manifest.to_string())?);
    stage.create_config_map()?;
    stage.cluster.wait_rollout("ip-masq-agent")?;
    let file = stage.cluster.dir().join("ip-masq-agent.rules");
    fs::write(
        &file,
        ip_masq_agent_rules(&["172.16.0.0/16", "10.1.0.0/16"]),
    )?;
    stage
        .cluster
        .on_node(&format!("iptables-restore --noflush {}", file.display()))
        .map(drop)
}

/// Returns the rules of the chain; empty if it does not exist.
fn chain(stage: &Stage) -> Result<String> {
    let rules = stage.cluster.on_node("iptables -w 60 -t nat -S")?;
    let of_chain = rules.lines().filter(|line| line.contains(CHAIN));
    Ok(of_chain.collect::<Vec<_>>().join("\n"))
}

/// Applies the overlay as a newer kubectl does; the one in Debian 12 does not support components.
fn apply_overlay(stage: &Stage) -> Result<String> {
    let mut kustomize = std::process::Command::new(&stage.xtask);
    kustomize.arg("kustomize").arg(shell::root().join(OVERLAY));
    let mut built: Value = serde_json::from_str(&output(&mut kustomize)?)?;
    let list = serde_json::json!({
        "apiVersion": "v1",
        "kind": "List",
        "items": built["resources"].take(),
    });
    stage.cluster.api().apply(&list.to_string())
}
