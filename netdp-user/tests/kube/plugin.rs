//! `kubectl netdp`, as kubectl runs it; `xtask/tests/cluster.rs` has what needs a kubelet.

use crate::cluster::{Cluster, EVERYTHING, NODE};
use crate::common::NETDP;
use crate::fleet::{fleet, wait_shown};
use anyhow::{Result, ensure};
use serde_json::Value;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::{Command, Output};
use testbed::{kube_programs, output};

/// Installs the program under the names that kubectl looks for; returns the directory.
fn install(cluster: &Cluster) -> Result<PathBuf> {
    let bin = cluster.dir.path().join("bin");
    fs::create_dir(&bin)?;
    for name in ["kubectl-netdp", "kubectl_complete-netdp"] {
        symlink(NETDP, bin.join(name))?;
    }
    symlink(kube_programs::find("kubectl")?, bin.join("kubectl"))?;
    Ok(bin)
}

/// Returns a command on the node, with the administrator's kubeconfig.
fn command(cluster: &Cluster, program: &str) -> Command {
    let bin = cluster.dir.path().join("bin");
    let mut command = cluster.bed.node.command(bin.join(program));
    command
        .env("PATH", format!("{}:/usr/bin:/bin", bin.display()))
        .env("HOME", cluster.dir.path())
        .env("KUBECONFIG", cluster.api.admin_kubeconfig());
    command
}

fn kubectl(cluster: &Cluster, line: &str) -> Result<Output> {
    let mut command = command(cluster, "kubectl");
    Ok(command.arg("netdp").args(line.split(' ')).output()?)
}

/// Checks that the plugin fails with these words.
fn fails(cluster: &Cluster, line: &str, words: &str) -> Result<()> {
    let ended = kubectl(cluster, line)?;
    let told = String::from_utf8_lossy(&ended.stderr);
    ensure!(ended.status.code() != Some(0), "{line}: {told}");
    ensure!(told.contains(words), "{line}: {words:?} is not in {told}");
    Ok(())
}

#[test]
fn kubectl_runs_it_as_its_plugin() -> Result<()> {
    let cluster = Cluster::start()?;
    cluster.configure(EVERYTHING)?;
    install(&cluster)?;
    let agent = cluster.agent()?;
    wait_shown(&cluster, &agent, |row| row["state"] == "ready")?;
    let ours: Value = serde_json::from_str(&fleet(&cluster, &["-o", "json"])?)?;
    let by_plugin = kubectl(&cluster, "fleet -o json")?;
    let told = String::from_utf8_lossy(&by_plugin.stderr);
    ensure!(by_plugin.status.success(), "{told}");
    let by_plugin: Value = serde_json::from_slice(&by_plugin.stdout)?;
    for key in ["node", "state", "mode", "config", "generation"] {
        assert_eq!(by_plugin[0][key], ours[0][key], "{key}");
    }
    // No pod runs: there is no kubelet.
    for (line, words) in [
        ("status", "no agent runs: no pod in kube-system"),
        ("status --node node-a", "no agent runs on the node node-a"),
        ("explain -n shop nobody 10.2.0.1:80", "NotFound"),
        ("explain -n shop deploy/none 10.2.0.1:80", "NotFound"),
        ("explain 10.2.0.1:80", "name a pod and a destination"),
        (
            "who 10.1.0.10:44216",
            "no agent runs: no pod in kube-system",
        ),
        ("who node-a", "is not an address"),
        ("fleet --context nowhere", "nowhere"),
        ("frobnicate", "unrecognized subcommand"),
    ] {
        fails(&cluster, line, words)?;
    }
    Ok(())
}

#[test]
fn kubectl_gets_completions() -> Result<()> {
    let cluster = Cluster::start()?;
    install(&cluster)?;
    let complete = |words: &[&str]| -> Result<String> {
        output(command(&cluster, "kubectl_complete-netdp").args(words))
    };
    let commands = complete(&["s"])?;
    assert_eq!(commands, "status\nsuggest\nsupport-bundle\n:4\n");
    assert_eq!(complete(&["top", "--node", ""])?, format!("{NODE}\n:4\n"));
    let namespaces = complete(&["explain", "-n", "kube-"])?;
    ensure!(namespaces.contains("kube-system\n"), "{namespaces}");
    Ok(())
}
