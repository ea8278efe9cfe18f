//! netdp's image in the manifests of the agents that it replaces, otherwise unchanged: containerd
//! runs the image with the privileges that the manifest grants.

mod deploy;
mod node;

use anyhow::{Context as _, Result, ensure};
use node::{AGENT, Node};
use serde_json::{Value, json};
use std::fs;
use xtask::cluster::{custom_iptables, ip_masq_agent};
use xtask::image;

/// Logged once where eBPF is not possible.
const FALLBACK: &str = "--mode auto: iptables, because eBPF does not work here: ";

/// Returns the container of ip-masq-agent's manifest with netdp's image.
fn masq_agent() -> Value {
    container(&ip_masq_agent(image::NAME))
}

fn container(manifest: &Value) -> Value {
    manifest["spec"]["template"]["spec"]["containers"][0].clone()
}

/// Returns a node with the ConfigMap mounted as the kubelet does.
fn node() -> Result<Node> {
    let node = Node::start()?;
    let config = "nonMasqueradeCIDRs: [172.16.0.0/16, 10.1.0.0/16]\n";
    fs::write(node.volume("config").join("ip-masq-agent"), config)?;
    Ok(node)
}

fn rules(node: &Node, program: &str) -> Result<String> {
    node.bed.node.run(&[program, "-t", "nat"])
}

fn has(told: &str, words: &[&str]) -> Result<()> {
    for words in words {
        ensure!(told.contains(words), "{words:?} is not in\n{told}");
    }
    Ok(())
}

/// Checks that netdp masquerades with the chain, and logs the reason and the remedy.
fn is_in_iptables_mode(node: &Node, id: &str, chain: &str, add: &[&str]) -> Result<()> {
    node.wait_in_force(id)?;
    let log = node.containerd.log(id);
    ensure!(log.matches(FALLBACK).count() == 1, "{log}");
    assert_eq!(node.source_seen()?, node.address);
    let status = node.containerd.exec(id, &["netdp", "status"])?;
    has(&status, &["mode       iptables", "no eBPF    ", chain])?;
    for line in add {
        ensure!(
            log.contains(&format!("]   {line}")),
            "{line} is not in\n{log}"
        );
        has(&status, &[&format!("to add     {line}")])?;
    }
    // The advice must be for the author of a manifest, not for an administrator on the node.
    for words in ["mount -t bpf", "modprobe", "CAP_SYS_ADMIN"] {
        ensure!(!log.contains(words), "{words:?}: {log}");
    }
    Ok(())
}

const ALL: [&str; 4] = [
    "containers[0].securityContext.capabilities.add: [BPF, PERFMON]",
    "containers[0].env: [{name: NETDP_BPFFS, value: /bpf/netdp}]",
    "containers[0].volumeMounts: [{name: bpffs, mountPath: /bpf, mountPropagation: HostToContainer}, \
     {name: state, mountPath: /run/netdp}]",
    "volumes: [{name: bpffs, hostPath: {path: /sys/fs/bpf, type: Directory}}, {name: state, hostPath: \
     {path: /run/netdp, type: DirectoryOrCreate}}]",
];

#[test]
fn ip_masq_agents_manifest_works_with_the_image_alone() -> Result<()> {
    let node = node()?;
    let container = masq_agent();
    ensure!(container["command"].is_null() && container["args"].is_null());
    node.run(AGENT, &container)?;
    is_in_iptables_mode(&node, AGENT, "IP-MASQ-AGENT", &ALL)?;
    let log = node.containerd.log(AGENT);
    has(
        &log,
        &["CAP_BPF and CAP_PERFMON are missing and the node's /sys/fs/bpf is not mounted"],
    )?;
    has(
        &rules(&node, "iptables-nft-save")?,
        &["-d 10.1.0.0/16", "-j MASQUERADE"],
    )?;
    // As with ip-masq-agent, the chain outlives the pod.
    node.containerd.stop(AGENT)?;
    assert_eq!(node.source_seen()?, node.address, "without an agent");
    node.run("next", &container)?;
    is_in_iptables_mode(&node, "next", "IP-MASQ-AGENT", &ALL)
}

/// A manifest as cluster vendors write it: arguments, minimal privileges, a read-only root.
#[test]
fn so_do_arguments_and_a_root_that_is_read_only() -> Result<()> {
    let node = node()?;
    let mut container = masq_agent();
    container["args"] = json!([
        "--masq-chain=IP-MASQ",
        "--nomasq-all-reserved-ranges",
        "--random-fully=false",
        "--v=2",
        "--logtostderr=true",
        "-stderrthreshold=2",
        "--legacy_stderr_threshold_behavior=false",
    ]);
    container["securityContext"] = json!({
        "privileged": false,
        "allowPrivilegeEscalation": false,
        "readOnlyRootFilesystem": true,
        "capabilities": {"drop": ["ALL"], "add": ["NET_ADMIN", "NET_RAW"]},
        "seccompProfile": {"type": "RuntimeDefault"},
    });
    // The built-in rules bypass the server's reserved range unless there is a list.
    node.run(AGENT, &container)?;
    is_in_iptables_mode(&node, AGENT, "IP-MASQ", &ALL)?;
    ensure!(node.root_is_read_only(AGENT)?);
    let ignored =
        "--legacy_stderr_threshold_behavior, --stderrthreshold: accepted for compatibility";
    has(&node.containerd.log(AGENT), &["/dev/shm/netdp", ignored])
}

/// A bpffs that a privileged container mounts itself ends with the container, and so do the
/// programs.
#[test]
fn a_privileged_container_does_not_begin_what_would_end_with_it() -> Result<()> {
    let node = node()?;
    let mut container = masq_agent();
    container["securityContext"] = json!({"privileged": true});
    node.run(AGENT, &container)?;
    is_in_iptables_mode(&node, AGENT, "IP-MASQ-AGENT", &ALL[1..])?;
    let log = node.containerd.log(AGENT);
    ensure!(!log.contains("are missing and"), "{log}");
    node.containerd.stop(AGENT)?;
    assert_eq!(node.source_seen()?, node.address, "without an agent");
    Ok(())
}

/// The image contains both iptables backends; the node's is used.
#[test]
fn it_uses_the_iptables_that_the_node_uses() -> Result<()> {
    for kind in ["nft", "legacy"] {
        let node = node()?;
        let hint = format!("iptables-{kind} -w -t mangle -N KUBE-IPTABLES-HINT");
        node.bed.node.run(&hint.split(' ').collect::<Vec<_>>())?;
        let mut container = masq_agent();
        container["securityContext"]["readOnlyRootFilesystem"] = json!(true);
        node.run(AGENT, &container)?;
        is_in_iptables_mode(&node, AGENT, "IP-MASQ-AGENT", &ALL)?;
        let log = node.containerd.log(AGENT);
        has(
            &log,
            &[&format!("iptables: backend {kind}, chain IP-MASQ-AGENT")],
        )?;
        has(
            &rules(&node, &format!("iptables-{kind}-save"))?,
            &["-A IP-MASQ-AGENT"],
        )?;
        // The lock of iptables-legacy is a file, which only a volume can share.
        let lock = "path: /run/xtables.lock, type: FileOrCreate";
        ensure!(log.contains(lock) == (kind == "legacy"), "{kind}: {log}");
    }
    Ok(())
}

/// The lines that netdp logs are added to the manifest.
#[test]
fn what_it_says_is_to_be_added_gives_ebpf() -> Result<()> {
    let node = node()?;
    let manifest = ip_masq_agent(image::NAME);
    node.run(AGENT, &container(&manifest))?;
    node.wait_in_force(AGENT)?;
    let log = node.containerd.log(AGENT);
    let patched = deploy::patched(&manifest, &patch(&manifest, &log)?)?;
    node.containerd.stop(AGENT)?;
    node.run("next", &container(&patched))?;
    node.wait_log("next", "netdp: in force on eth0")?;
    node.wait_log("next", "taken over: chain IP-MASQ-AGENT")?;
    assert_eq!(node.source_seen()?, node.address);
    let status = node.containerd.exec("next", &["netdp", "status"])?;
    has(&status, &["mode       ebpf", "datapath   in force"])?;
    ensure!(
        !status.contains("no eBPF") && !status.contains("unpinned"),
        "{status}"
    );
    // All of it is on the node.
    ensure!(node.volume("bpffs").join("netdp/settings").exists());
    ensure!(node.volume("state").join("status.json").exists());
    node.containerd.stop("next")?;
    assert_eq!(node.source_seen()?, node.address, "without an agent");
    Ok(())
}

/// Returns the manifest lines that the agent logs as missing, as a JSON patch.
fn patch(manifest: &Value, log: &str) -> Result<String> {
    let mut patch = String::new();
    for (_, line) in log.lines().filter_map(|line| line.split_once("]   ")) {
        let (place, value) = line.split_once(": ").context("no place")?;
        let path = place.replace("[0]", "/0").replace('.', "/");
        let path = format!("/spec/template/spec/{path}");
        let mut add = |path: &str, value: &str| {
            patch += &format!("- op: add\n  path: {path}\n  value: {value}\n");
        };
        if manifest.pointer(&path).is_some() {
            items(value)
                .iter()
                .for_each(|item| add(&format!("{path}/-"), item));
        } else {
            add(&path, value);
        }
    }
    Ok(patch)
}

/// Returns the items of a YAML list in flow style.
fn items(list: &str) -> Vec<String> {
    let inside = list.trim_start_matches('[').trim_end_matches(']');
    let mut found = Vec::new();
    let (mut item, mut depth) = (String::new(), 0);
    for c in inside.chars() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            _ => {}
        }
        if c == ',' && depth == 0 {
            found.push(std::mem::take(&mut item));
        } else {
            item.push(c);
        }
    }
    found.push(item);
    found
}

#[test]
fn with_mode_ebpf_it_ends_and_says_what_to_add() -> Result<()> {
    let node = node()?;
    let mut container = masq_agent();
    container["args"] = json!(["--mode=ebpf"]);
    node.run(AGENT, &container)?;
    let (log, last_words) = node.wait_end(AGENT)?;
    for told in [&log, &last_words] {
        has(
            told,
            &["netdp: error: eBPF mode does not work in this pod: CAP_BPF and CAP_PERFMON"],
        )?;
        has(told, &ALL)?;
        ensure!(!told.contains("mount -t bpf"), "{told}");
    }
    let rules = rules(&node, "iptables-nft-save")?;
    ensure!(!rules.contains("IP-MASQ-AGENT"), "{rules}");
    // An unknown flag is shown by `kubectl describe`, too.
    container["args"] = json!(["--masq-chian=X"]);
    node.run("flag", &container)?;
    let (_, last_words) = node.wait_end("flag")?;
    has(&last_words, &["'--masq-chian' found", "'--masq-chain'"])?;
    // A command run in a live container is not the end of that container.
    container["args"] = json!(["--mode=iptables"]);
    node.run("lives", &container)?;
    node.wait_in_force("lives")?;
    let failed = node.containerd.exec("lives", &["netdp", "flows"]);
    ensure!(failed.is_err(), "{failed:?}");
    ensure!(
        node.containerd
            .exec("lives", &["netdp", "run", "--uplnk=x"])
            .is_err()
    );
    node.containerd.stop("lives")?;
    Ok(())
}

/// An earlier agent with more privileges has left programs: they continue, and no chain is added.
#[test]
fn programs_that_are_in_force_are_not_left_for_a_chain() -> Result<()> {
    let node = node()?;
    let objects = deploy::objects("overlays/ip-masq-agent", "", "")?;
    let daemonset = objects.iter().find(|it| it["kind"] == "DaemonSet");
    let mut earlier = container(daemonset.context("no DaemonSet")?);
    earlier["args"] = json!(["--attach=clsact"]);
    node.run(AGENT, &earlier)?;
    node.wait_log(AGENT, "netdp: in force on eth0")?;
    node.containerd.stop(AGENT)?;
    // The pins are not visible.
    node.run("next", &masq_agent())?;
    let (log, last_words) = node.wait_end("next")?;
    for told in [log, last_words] {
        has(
            &told,
            &[
                "netdp's eBPF programs are in force (egress program",
                "on eth0 (clsact)",
            ],
        )?;
        has(&told, &["--mode iptables", "netdp detach"])?;
        has(&told, &ALL)?;
    }
    // They are visible but cannot be used.
    let mut weak = earlier.clone();
    weak["securityContext"]["capabilities"]["add"] = json!(["NET_ADMIN", "NET_RAW"]);
    node.run("weak", &weak)?;
    let (log, _) = node.wait_end("weak")?;
    has(
        &log,
        &[
            "netdp's eBPF programs are in force (/bpf/netdp)",
            "CAP_BPF and CAP_PERFMON are missing",
        ],
    )?;
    assert_eq!(node.source_seen()?, node.address);
    let rules = rules(&node, "iptables-nft-save")?;
    ensure!(!rules.contains("IP-MASQ-AGENT"), "{rules}");
    // With TCX, the owner of the programs cannot be determined: this is only logged.
    let mut tcx = earlier.clone();
    tcx["args"] = json!(["--attach=tcx"]);
    node.run("tcx", &tcx)?;
    node.wait_log("tcx", "netdp: in force on eth0")?;
    node.containerd.stop("tcx")?;
    node.run("last", &masq_agent())?;
    node.wait_in_force("last")?;
    has(
        &node.containerd.log("last"),
        &["TCX programs of an unknown owner are attached to eth0"],
    )
}

/// Its networks are masqueraded; all other destinations are left to other rules.
#[test]
fn k8s_custom_iptables_manifest_works_with_the_image_alone() -> Result<()> {
    let node = node()?;
    let rules_file = node.volume("cfg").join("nat.rules");
    fs::write(&rules_file, "198.51.100.0/24 192.0.2.0/24 ")?;
    let manifest = custom_iptables(image::NAME);
    node.run(AGENT, &container(&manifest))?;
    is_in_iptables_mode(&node, AGENT, "NETDP-CUSTOM", &ALL[1..])?;
    // Beside ip-masq-agent's chain, which stays.
    node.run("masq", &masq_agent())?;
    is_in_iptables_mode(&node, "masq", "IP-MASQ-AGENT", &ALL)?;
    let rules = rules(&node, "iptables-nft-save")?;
    has(
        &rules,
        &[
            "-A NETDP-CUSTOM -d 198.51.100.0/24",
            "-A IP-MASQ-AGENT -d 10.1.0.0/16",
        ],
    )?;
    let last = rules
        .lines()
        .rfind(|line| line.starts_with("-A NETDP-CUSTOM"));
    ensure!(last.is_some_and(|line| line.contains("RETURN")), "{rules}");
    // The image has no shell except for that.
    let shell = node.containerd.exec(AGENT, &["sh", "-c", "id"]);
    let told = format!("{:#}", shell.expect_err("there is a shell"));
    has(&told, &["netdp's image has no shell", "netdp status"])?;
    // With the additions from its log, its own chain goes and all others stay.
    let patch = patch(&manifest, &node.containerd.log(AGENT))?;
    node.containerd.stop(AGENT)?;
    node.run("next", &container(&deploy::patched(&manifest, &patch)?))?;
    node.wait_log("next", "taken over: chain NETDP-CUSTOM")?;
    let rules = self::rules(&node, "iptables-nft-save")?;
    ensure!(
        !rules.contains("NETDP-CUSTOM") && rules.contains("-A IP-MASQ-AGENT"),
        "{rules}"
    );
    assert_eq!(node.source_seen()?, node.address);
    Ok(())
}
