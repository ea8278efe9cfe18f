//! ConfigMaps and the Node object as configuration sources.

use crate::cluster::{Cluster, EVERYTHING, NODE, NOT_THE_NEIGHBOUR, RECOVERY, wait_status};
use crate::common::wait_log;
use anyhow::Result;
use serde_json::Value;
use testbed::{Agent, ConfigVolume, output, wait_some};

/// Returns the action and the origin of the rule for a prefix.
fn rule(report: &Value, prefix: &str) -> Option<(String, String)> {
    let rules = report["config"]["rules"].as_array()?;
    let rule = rules.iter().find(|rule| rule["prefix"] == prefix)?;
    let text = |key: &str| rule[key].as_str().map(str::to_owned);
    Some((text("action")?, text("origin")?))
}

fn has(report: &Value, prefix: &str, action: &str, origin: &str) -> bool {
    rule(report, prefix) == Some((action.into(), origin.into()))
}

#[test]
fn the_config_map_is_edited_deleted_and_made_again() -> Result<()> {
    let cluster = Cluster::start()?;
    cluster.configure(EVERYTHING)?;
    let agent = cluster.agent()?;
    assert!(cluster.is_masqueraded()?);
    cluster.configure(NOT_THE_NEIGHBOUR)?;
    cluster.wait_masqueraded(&agent, false)?;
    cluster.configure(EVERYTHING)?;
    cluster.wait_masqueraded(&agent, true)?;
    // As with ip-masq-agent, the built-in rules apply without a ConfigMap.
    cluster
        .api
        .kubectl(&["-n", "kube-system", "delete", "configmap", "ip-masq-agent"])?;
    cluster.wait_masqueraded(&agent, false)?;
    wait_status(&agent, "the defaults", |report| {
        report["config"]["source"] == "defaults (no ConfigMap, no file)"
    })?;
    let text = agent.netdp(&["status"])?;
    let line = "from defaults (no ConfigMap, no file), in force for ";
    assert!(text.contains(line), "{text}");
    cluster.configure(EVERYTHING)?;
    cluster.wait_masqueraded(&agent, true)
}

#[test]
fn config_maps_are_united_and_each_rule_says_where_it_is_from() -> Result<()> {
    let cluster = Cluster::start()?;
    cluster.configure("nonMasqueradeCIDRs:\n- 172.16.0.0/16\n- 192.0.2.0/24\n")?;
    cluster.write(
        "team-b",
        "netdp.io/config: \"\"",
        "b.yaml",
        "masqueradeCIDRs: [198.51.100.0/24]\n",
    )?;
    cluster.write(
        "team-a",
        "netdp.io/config: yes-please",
        "a.yaml",
        "nonMasqueradeCIDRs:\n- 192.0.2.0/24\n- 203.0.113.0/24\n",
    )?;
    cluster.write(
        "k8s-custom-iptables",
        "",
        "nat.rules",
        "10.9.0.0/16 10.8.0.0/16\n",
    )?;
    cluster.write(
        "of-others",
        "",
        "config",
        "masqueradeCIDRs: [198.51.100.128/25]\n",
    )?;
    let agent = cluster.agent()?;
    wait_status(&agent, "all rules", |report| {
        let files = report["config"]["files"].as_array();
        let files: Vec<_> = files
            .into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect();
        files
            == [
                "kube-system/ip-masq-agent/config",
                "kube-system/team-a/a.yaml",
                "kube-system/team-b/b.yaml",
                "kube-system/k8s-custom-iptables/nat.rules",
            ]
            && has(
                report,
                "192.0.2.0/24",
                "bypass",
                "kube-system/ip-masq-agent/config:3",
            )
            && has(
                report,
                "203.0.113.0/24",
                "bypass",
                "kube-system/team-a/a.yaml:3",
            )
            && has(
                report,
                "198.51.100.0/24",
                "masquerade",
                "kube-system/team-b/b.yaml:1",
            )
            && has(
                report,
                "10.9.0.0/16",
                "masquerade",
                "kube-system/k8s-custom-iptables/nat.rules:1",
            )
            && rule(report, "198.51.100.128/25").is_none()
    })?;
    // A contradiction is reported with both origins; the policy in force stays.
    cluster.write(
        "team-b",
        "netdp.io/config: \"\"",
        "b.yaml",
        "masqueradeCIDRs: [192.0.2.0/24]\n",
    )?;
    wait_log(
        &agent,
        "kube-system/team-b/b.yaml:1: 192.0.2.0/24 is in masqueradeCIDRs here, but in nonMasqueradeCIDRs at kube-system/ip-masq-agent/config:3",
    )?;
    // Without the label it no longer counts, and the others are valid again.
    cluster.write("team-b", "", "b.yaml", "masqueradeCIDRs: [192.0.2.0/24]\n")?;
    wait_status(&agent, "two ConfigMaps less", |report| {
        report["config"]["rejected"] == serde_json::json!([])
            && rule(report, "198.51.100.0/24").is_none()
    })
}

#[test]
fn a_volume_of_the_same_config_map_is_not_counted_twice() -> Result<()> {
    let cluster = Cluster::start()?;
    cluster.configure(EVERYTHING)?;
    // Named by its key, as in a volume that does not list items.
    let volume = ConfigVolume::new(EVERYTHING)?;
    let name = volume.file();
    let name = name
        .file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    let options = cluster
        .options(&cluster.kubeconfig()?)
        .config(volume.path())
        .arg(format!("--config-map={name}"));
    cluster.write(&name, "", "config", EVERYTHING)?;
    let agent = Agent::start(&cluster.bed.node, options)?;
    // The kubelet updates the volume within a minute; until then it would contradict.
    cluster.write(
        &name,
        "",
        "config",
        "nonMasqueradeCIDRs: []\nmasqueradeCIDRs: [172.16.0.0/16]\n",
    )?;
    wait_status(&agent, "the API's word", |report| {
        has(
            report,
            "172.16.0.0/16",
            "masquerade",
            &format!("kube-system/{name}/config:2"),
        ) && report["config"]["rejected"] == serde_json::json!([])
    })?;
    // Without the ConfigMap in the API, the file applies.
    cluster
        .api
        .kubectl(&["-n", "kube-system", "delete", "configmap", &name])?;
    wait_status(&agent, "the file", |report| {
        rule(report, "172.16.0.0/16").is_some_and(|(action, _)| action == "bypass")
            && report["config"]["source"] == "files"
    })
}

#[test]
fn a_config_map_without_the_key_is_warned_of() -> Result<()> {
    let cluster = Cluster::start()?;
    cluster.write("ip-masq-agent", "", "confg", EVERYTHING)?;
    let agent = cluster.agent()?;
    wait_log(
        &agent,
        "kube-system/ip-masq-agent/config: the ConfigMap has no key \"config\", only confg",
    )?;
    assert!(!cluster.is_masqueraded()?);
    Ok(())
}

#[test]
fn the_node_says_its_pod_range() -> Result<()> {
    let cluster = Cluster::start()?;
    cluster.configure("nonMasqueradeCIDRs: [10.0.0.0/8]\n")?;
    let agent = cluster.agent()?;
    wait_status(&agent, "a warning", |report| {
        let warnings = report["config"]["warnings"].to_string();
        warnings.contains("172.16.0.0/24")
    })?;
    let name = format!("netdp-{NODE}");
    let lease = wait_some(RECOVERY, "the Lease", || {
        let get = ["-n", "netdp-fleet", "get", "lease", &name];
        cluster.json(&get).ok()
    })?;
    let node = cluster.json(&["get", "node", NODE])?;
    assert_eq!(
        lease["metadata"]["ownerReferences"][0]["uid"],
        node["metadata"]["uid"]
    );
    Ok(())
}

/// Runs the documented commands as they are in the documents.
#[test]
fn the_documented_commands_make_and_change_the_config_map() -> Result<()> {
    let cluster = Cluster::start()?;
    let agent = cluster.agent()?;
    let document = include_str!("../../../docs/install.md");
    let commands: Vec<_> = document
        .lines()
        .filter_map(|line| line.strip_prefix("    "))
        .filter(|line| line.starts_with("kubectl create configmap"))
        .collect();
    let [create, change] = commands[..] else {
        panic!("{commands:?}");
    };
    for other in [
        include_str!("../../../deploy/README.md"),
        include_str!("../../../README.md"),
    ] {
        let words: Vec<_> = other.split_whitespace().collect();
        assert!(words.join(" ").contains(create), "{create}");
    }
    let run = |command: &str| {
        let mut shell = cluster.bed.node.command("sh");
        shell.args(["-ec", &format!("cd \"$0\"; {command}")]);
        shell.arg(cluster.dir.path());
        shell.env("KUBECONFIG", cluster.api.admin_kubeconfig());
        shell.env("HOME", cluster.dir.path());
        output(&mut shell)
    };
    let file = cluster.dir.path().join("config");
    std::fs::write(&file, EVERYTHING)?;
    run(create)?;
    cluster.wait_masqueraded(&agent, true)?;
    std::fs::write(&file, NOT_THE_NEIGHBOUR)?;
    run(change)?;
    cluster.wait_masqueraded(&agent, false)
}
