//! The image, run by containerd with exactly the privileges that the DaemonSet grants.

mod deploy;
mod node;

use anyhow::{Context as _, Result, ensure};
use node::{AGENT, Node, PATIENCE};
use serde_json::{Value, json};
use std::fs;
use testbed::{API_PORT, ApiServer, ContainerOptions, wait_for};
use xtask::image;

#[test]
fn it_translates_with_the_daemonsets_rights() -> Result<()> {
    let node = Node::start()?;
    let pod = DaemonSet::read("")?;
    node.run(AGENT, &pod.container)?;
    node.wait_in_force(AGENT)?;

    // It has exactly the granted capabilities.
    let status = node.process_status(AGENT)?;
    let granted = mask(&pod.capabilities()?)?;
    for set in ["CapPrm", "CapEff", "CapBnd"] {
        assert_eq!(field(&status, set)?, format!("{granted:016x}"), "{set}");
    }
    assert_eq!(field(&status, "CapAmb")?, "0000000000000000");
    assert_eq!(field(&status, "NoNewPrivs")?, "1");
    assert_eq!(field(&status, "Seccomp")?, "2", "no seccomp filter");
    assert_eq!(field(&status, "Uid")?, "0\t0\t0\t0");
    ensure!(node.root_is_read_only(AGENT)?, "its root can be written to");

    let before = node.source_seen()?;
    assert_eq!(before, node.address);
    let told = node.containerd.exec(AGENT, &["netdp", "status"])?;
    eprintln!("netdp status, in the container:\n{told}");
    ensure!(
        told.contains("eth0") && told.contains("10.1.0.10"),
        "{told}"
    );

    for (probe, answer) in [
        ("livenessProbe", "event loop runs"),
        ("readinessProbe", "in force"),
    ] {
        let told = node.probe(&pod.container[probe])?;
        ensure!(told.contains(answer), "{probe}: {told}");
    }

    // A rolling update: the datapath outlives the pod, and the next one adopts it.
    node.containerd.stop(AGENT)?;
    assert_eq!(node.source_seen()?, node.address, "without an agent");
    node.run("next", &pod.container)?;
    node.wait_in_force("next")?;
    assert_eq!(node.source_seen()?, node.address, "with the next agent");
    Ok(())
}

#[test]
fn each_capability_is_needed() -> Result<()> {
    let pod = DaemonSet::read("")?;
    let all = pod.capabilities()?;
    assert_eq!(all, ["BPF", "NET_ADMIN", "NET_RAW", "PERFMON"]);
    // Without CAP_NET_RAW it runs, but does not inspect packets (netdp-user/tests/node/ahead.rs).
    for missing in all.iter().filter(|name| *name != "NET_RAW") {
        let rest: Vec<_> = all.iter().filter(|name| *name != missing).collect();
        let mut container = pod.container.clone();
        insist(&mut container, "ebpf")?;
        container["securityContext"]["capabilities"]["add"] = json!(rest);
        let node = Node::start()?;
        node.run(AGENT, &container)?;
        let (log, last_words) = node.wait_end(AGENT)?;
        for told in [&log, &last_words] {
            ensure!(
                told.contains(&format!(
                    "netdp: error: eBPF mode does not work in this pod: CAP_{missing} is missing"
                )) && told.contains(&format!("securityContext.capabilities.add: [{missing}]"))
                    && !told.contains("prohibited"),
                "without CAP_{missing} it says:\n{told}"
            );
        }
        ensure!(
            !log.contains("in force on eth0"),
            "it works without CAP_{missing}:\n{log}"
        );
    }
    Ok(())
}

#[test]
fn it_follows_the_cluster_with_its_service_account() -> Result<()> {
    let node = Node::start()?;
    let server = ApiServer::start(&node.bed.node)?;
    let objects = deploy::objects("base", "", "")?;
    server.apply(&json!({"apiVersion": "v1", "kind": "List", "items": objects}).to_string())?;
    // The files that the kubelet would mount into the pod.
    let secrets = node.dir.path().join("secrets");
    fs::copy(server.ca(), secrets.join("ca.crt"))?;
    fs::write(secrets.join("namespace"), "kube-system")?;
    fs::write(secrets.join("token"), server.token("kube-system", "netdp")?)?;
    let mut container = DaemonSet::read("")?.container;
    for (name, value) in [
        ("KUBERNETES_SERVICE_HOST", "127.0.0.1".to_owned()),
        ("KUBERNETES_SERVICE_PORT", API_PORT.to_string()),
    ] {
        let variables = container["env"].as_array_mut().context("no env")?;
        variables.push(json!({"name": name, "value": value}));
    }
    node.run(AGENT, &container)?;
    node.wait_in_force(AGENT)?;
    assert_eq!(node.source_seen()?, node.address, "with the defaults");

    // None of the built-in rules covers the server.
    server.apply(
        "apiVersion: v1\n\
         kind: ConfigMap\n\
         metadata: {name: ip-masq-agent, namespace: kube-system}\n\
         data: {config: 'nonMasqueradeCIDRs: [198.51.100.0/24]'}\n",
    )?;
    wait_for(PATIENCE, "the ConfigMap to be in force", || {
        let told = node.containerd.exec(AGENT, &["netdp", "status"]);
        told.is_ok_and(|told| told.contains("198.51.100.0/24"))
    })
    .with_context(|| node.containerd.log(AGENT))?;
    wait_for(PATIENCE, "an Event on the ConfigMap", || {
        let events = server.kubectl(&["get", "events", "-n", "kube-system"]);
        events.is_ok_and(|events| events.contains("configmap/ip-masq-agent"))
    })
    .with_context(|| node.containerd.log(AGENT))?;
    wait_for(PATIENCE, "the node's Lease", || {
        let leases = server.kubectl(&["get", "leases", "-n", "netdp-fleet", "-o", "name"]);
        leases.is_ok_and(|leases| leases.contains("netdp-node"))
    })
    .with_context(|| node.containerd.log(AGENT))?;
    ensure!(
        !node.containerd.log(AGENT).contains("forbidden"),
        "{}",
        node.containerd.log(AGENT)
    );
    Ok(())
}

#[test]
fn sys_admin_does_instead_where_a_runtime_does_not_know_bpf() -> Result<()> {
    let node = Node::start()?;
    let pod = DaemonSet::read("sys-admin")?;
    assert_eq!(pod.capabilities()?, ["SYS_ADMIN", "NET_ADMIN", "NET_RAW"]);
    node.run(AGENT, &pod.container)?;
    node.wait_in_force(AGENT)?;
    assert_eq!(node.source_seen()?, node.address);
    Ok(())
}

/// The kubelet mounts an existing directory: an empty one, if the node has no bpffs.
#[test]
fn without_a_bpffs_on_the_node_it_says_what_to_do() -> Result<()> {
    let node = Node::without_bpffs()?;
    let mut container = DaemonSet::read("")?.container;
    insist(&mut container, "ebpf")?;
    node.run(AGENT, &container)?;
    let (log, last_words) = node.wait_end(AGENT)?;
    for told in [log, last_words] {
        ensure!(
            told.contains("the node has no bpffs at /sys/fs/bpf") && told.contains("fstab"),
            "{told}"
        );
    }
    Ok(())
}

#[test]
fn the_image_has_both_kinds_of_iptables_and_they_need_these_rights() -> Result<()> {
    // iptables-nft uses netlink; iptables-legacy opens a raw socket.
    let both = json!(["NET_ADMIN", "NET_RAW"]);
    let cases = [
        ("iptables-nft", json!(["NET_ADMIN"]), true),
        ("iptables-nft", json!(["NET_RAW"]), false),
        ("ip6tables-nft", json!(["NET_ADMIN"]), true),
        ("iptables-legacy", both.clone(), true),
        ("iptables-legacy", json!(["NET_ADMIN"]), false),
        ("ip6tables-legacy", both, true),
    ];
    let node = Node::without_bpffs()?;
    let rule = "-w 60 -t nat -A POSTROUTING -m addrtype ! --dst-type LOCAL -p tcp -m statistic \
                --mode random --probability 0.5 -m comment --comment netdp -j MASQUERADE \
                --to-ports 1024-29999 --random-fully";
    for (index, (program, capabilities, works)) in cases.into_iter().enumerate() {
        let id = format!("rules{index}");
        let mut options = ContainerOptions {
            command: vec![program.into()],
            security: DaemonSet::read("")?.container["securityContext"].clone(),
            mounts: vec![(node.volume("xtables-lock"), "/run/xtables.lock".into())],
            ..ContainerOptions::default()
        };
        options
            .command
            .extend(rule.split_whitespace().map(str::to_owned));
        options.security["capabilities"]["add"] = capabilities.clone();
        node.containerd.run(image::NAME, &id, &options)?;
        node.containerd.wait_end(&id)?;
        let listed = node
            .bed
            .node
            .run(&[&format!("{program}-save"), "-t", "nat"])?;
        assert_eq!(
            listed.contains("netdp"),
            works,
            "{program} with {capabilities}: {}",
            node.containerd.log(&id)
        );
        node.bed
            .node
            .run(&[program, "-w", "60", "-t", "nat", "-F"])?;
    }
    Ok(())
}

/// Adds `--mode` to a container.
fn insist(container: &mut Value, mode: &str) -> Result<()> {
    let args = container["args"].as_array_mut().context("no args")?;
    args.push(json!(format!("--mode={mode}")));
    Ok(())
}

/// The only container of the DaemonSet.
struct DaemonSet {
    container: Value,
}

impl DaemonSet {
    /// Reads the container of the base, with a component unless that is empty.
    fn read(component: &str) -> Result<Self> {
        let objects = deploy::objects("base", component, "")?;
        let daemonset = objects
            .iter()
            .find(|object| object["kind"] == "DaemonSet")
            .context("no DaemonSet")?;
        let pod = &daemonset["spec"]["template"]["spec"];
        ensure!(pod["hostNetwork"] == true, "not in the node's network");
        ensure!(
            pod["containers"].as_array().map(Vec::len) == Some(1)
                && pod["initContainers"].is_null(),
            "more than one container"
        );
        Ok(Self {
            container: pod["containers"][0].clone(),
        })
    }

    fn capabilities(&self) -> Result<Vec<String>> {
        let context = &self.container["securityContext"];
        ensure!(
            context["capabilities"]["drop"] == json!(["ALL"]),
            "{context}"
        );
        Ok(serde_json::from_value(
            context["capabilities"]["add"].clone(),
        )?)
    }
}

/// Returns capabilities as a bit mask, numbered as in linux/capability.h.
fn mask(names: &[String]) -> Result<u64> {
    names.iter().try_fold(0, |mask, name| {
        let number = match name.as_str() {
            "NET_ADMIN" => 12,
            "NET_RAW" => 13,
            "SYS_ADMIN" => 21,
            "PERFMON" => 38,
            "BPF" => 39,
            other => anyhow::bail!("CAP_{other} has no number here"),
        };
        Ok(mask | 1 << number)
    })
}

/// Returns a field of /proc/PID/status.
fn field<'a>(status: &'a str, name: &str) -> Result<&'a str> {
    status
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(":\t"))
        .with_context(|| format!("{name} is not in\n{status}"))
}
