//! RBAC of the manifests: each permission is needed, and no other.

use crate::cluster::{
    Cluster, EVERYTHING, NODE, NOT_THE_NEIGHBOUR, RBAC, RECOVERY, account, wait_status,
};
use crate::proxy::{Fault, Proxy};
use anyhow::{Context as _, Result, ensure};
use testbed::{Agent, wait_for};

/// All permissions: resource and verb.
const NEEDED: [(&str, &str); 9] = [
    ("configmaps", "list"),
    ("configmaps", "watch"),
    ("nodes", "list"),
    ("nodes", "watch"),
    ("servicecidrs", "list"),
    ("servicecidrs", "watch"),
    ("events", "create"),
    ("leases", "create"),
    ("leases", "patch"),
];

/// The right to ServiceCIDRs, as kubectl shows it.
const SERVICE_CIDRS: &str = "servicecidrs.networking.k8s.io [list watch]";

/// Returns the manifests without one permission.
pub fn without(resource: &str, verb: &str) -> String {
    let mut found = false;
    let mut of_resource = false;
    let mut text = String::new();
    for line in RBAC.lines() {
        let trimmed = line.trim();
        if let Some(resources) = trimmed.strip_prefix("resources: ") {
            of_resource = resources == format!("[{resource}]");
        }
        if let Some(verbs) = trimmed.strip_prefix("verbs: [").filter(|_| of_resource) {
            let left: Vec<_> = verbs
                .trim_end_matches(']')
                .split(", ")
                .filter(|other| *other != verb)
                .collect();
            found |= left.len() < verbs.split(", ").count();
            let left = if left.is_empty() {
                vec!["delete"]
            } else {
                left
            };
            text.push_str(&format!("  verbs: [{}]\n", left.join(", ")));
            continue;
        }
        text.push_str(line);
        text.push('\n');
    }
    assert!(found, "there is no {verb} of {resource}");
    text
}

/// Checks the agent's log about denied requests, after it has performed all its operations.
fn refusals(cluster: &Cluster, agent: &Agent, wanted: &str) -> Result<()> {
    wait_for(RECOVERY, wanted, || agent.log().contains(wanted)).with_context(|| {
        format!(
            "the agent wrote:\n{}\n{}",
            agent.log(),
            cluster.dir.path().display()
        )
    })
}

/// Waits until the API server no longer grants this permission to the agent.
fn wait_forbidden(cluster: &Cluster, resource: &str, verb: &str) -> Result<()> {
    let namespaces: &[&str] = match resource {
        "events" => &["kube-system", "default"],
        "leases" => &["netdp-fleet"],
        _ => &["kube-system"],
    };
    let who = "--as=system:serviceaccount:kube-system:netdp";
    for namespace in namespaces {
        wait_for(RECOVERY, &format!("no {verb} of {resource}"), || {
            // It prints `no` and exits with an error.
            let may = ["auth", "can-i", verb, resource, who, "-n", namespace];
            cluster.api.kubectl(&may).is_err()
        })?;
    }
    Ok(())
}

#[test]
fn each_permission_is_needed() -> Result<()> {
    let cluster = Cluster::start()?;
    cluster.configure(&format!("{EVERYTHING}autoNonMasquerade: [services]\n"))?;
    let proxy = Proxy::start(&cluster.bed.node, &cluster.kubeconfig()?)?;
    proxy.set(Fault::ServiceCidrs("v1"));
    let lease = format!("netdp-{NODE}");
    for (resource, verb) in NEEDED {
        cluster.api.apply(&without(resource, verb))?;
        let delete = [
            "-n",
            "netdp-fleet",
            "delete",
            "lease",
            "--ignore-not-found",
            &lease,
        ];
        cluster.api.kubectl(&delete)?;
        cluster
            .api
            .kubectl(&["-n", "kube-system", "delete", "events", "--all"])?;
        wait_forbidden(&cluster, resource, verb)?;
        let agent = if (resource, verb) == ("servicecidrs", "watch") {
            // Nothing is watched that cannot be listed.
            let options = cluster.options(&cluster.kubeconfig_of(&proxy)?);
            Agent::start(&cluster.bed.node, options)?
        } else {
            cluster.agent()?
        };
        let words = match (resource, verb) {
            // For a patch that may not create, the API server returns no details.
            ("leases", "create") => format!("\"{lease}\" is forbidden"),
            _ => format!("cannot {verb} resource \"{resource}\""),
        };
        refusals(&cluster, &agent, &words)?;
    }
    Ok(())
}

/// The component named-maps: only these two ConfigMaps can be read.
#[test]
fn named_config_maps_need_no_right_to_others() -> Result<()> {
    let cluster = Cluster::bare()?;
    let all = "  resources: [configmaps]\n";
    let named = format!("{all}  resourceNames: [ip-masq-agent, k8s-custom-iptables]\n");
    ensure!(RBAC.matches(all).count() == 1);
    cluster.api.apply(&account())?;
    cluster.api.apply(&RBAC.replace(all, &named))?;
    cluster.add_node()?;
    cluster.configure(EVERYTHING)?;
    cluster.write("more", "netdp.io/config: x", "config", NOT_THE_NEIGHBOUR)?;
    let options = cluster.options(&cluster.kubeconfig()?);
    let narrow = options.clone().arg("--labelled-config-maps=false");
    let mut agent = Agent::start(&cluster.bed.node, narrow)?;
    wait_status(&agent, "the API to be followed", |report| {
        report["api"] == "followed"
    })?;
    ensure!(!agent.log().contains("cannot "), "{}", agent.log());
    // A ConfigMap with the label has no effect.
    cluster.wait_masqueraded(&agent, true)?;
    cluster.configure(NOT_THE_NEIGHBOUR)?;
    cluster.wait_masqueraded(&agent, false)?;
    let who = "--as=system:serviceaccount:kube-system:netdp";
    let may = [
        "auth",
        "can-i",
        "list",
        "configmaps",
        who,
        "-n",
        "kube-system",
    ];
    ensure!(cluster.api.kubectl(&may).is_err());
    // Following the label requires the permission.
    *agent.options() = options;
    agent.restart()?;
    refusals(&cluster, &agent, "cannot list resource \"configmaps\"")
}

#[test]
fn nothing_is_refused_with_all_of_them_and_nothing_else_is_allowed() -> Result<()> {
    let cluster = Cluster::start()?;
    cluster.configure(&format!(
        "{EVERYTHING}autoNonMasquerade: [pods, services, nodes]\n"
    ))?;
    let agent = cluster.agent()?;
    let lease = format!("netdp-{NODE}");
    wait_for(RECOVERY, "the Lease and the Event", || {
        let lease = cluster.json(&["-n", "netdp-fleet", "get", "lease", &lease]);
        let events = cluster.json(&["-n", "kube-system", "get", "events"]);
        let applied = events.is_ok_and(|events| {
            let items = events["items"].as_array();
            items.is_some_and(|items| items.iter().any(|it| it["reason"] == "ConfigApplied"))
        });
        lease.is_ok() && applied
    })
    .with_context(|| format!("the agent wrote:\n{}", agent.log()))?;
    ensure!(!agent.log().contains("cannot "), "{}", agent.log());
    for (namespace, wanted) in [
        (
            "kube-system",
            &[
                "configmaps [list watch]",
                "events [create]",
                "nodes [list watch]",
                SERVICE_CIDRS,
            ][..],
        ),
        (
            "default",
            &["events [create]", "nodes [list watch]", SERVICE_CIDRS],
        ),
        (
            "netdp-fleet",
            &[
                "leases.coordination.k8s.io [create patch]",
                "nodes [list watch]",
                SERVICE_CIDRS,
            ],
        ),
        ("elsewhere", &["nodes [list watch]", SERVICE_CIDRS]),
    ] {
        let who = "--as=system:serviceaccount:kube-system:netdp";
        let list = [
            "auth",
            "can-i",
            "--list",
            "--no-headers",
            who,
            "-n",
            namespace,
        ];
        let listed = cluster.api.kubectl(&list)?;
        let mut allowed: Vec<String> = listed
            .lines()
            // Granted to everyone: querying one's own permissions, and non-resource paths.
            .filter(|line| !line.contains("selfsubject") && !line.trim_start().starts_with('['))
            .map(|line| {
                let what = line.split_whitespace().next().unwrap_or_default();
                let verbs = line.rsplit_once('[').map_or("", |(_, verbs)| verbs).trim();
                format!("{what} [{verbs}")
            })
            .collect();
        allowed.sort();
        ensure!(
            allowed == wanted,
            "in {namespace}: {allowed:?}, of\n{listed}"
        );
    }
    ensure!(account().contains("netdp"), "the ServiceAccount");
    Ok(())
}
