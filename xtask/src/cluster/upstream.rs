//! Manifests of the agents that netdp replaces, and the rules that ip-masq-agent leaves on nodes.

use serde_json::{Value, json};

/// Returns the DaemonSet as published by its project (ip-masq-agent.yaml at e3000864), with another
/// image.
#[must_use]
pub fn ip_masq_agent(image: &str) -> Value {
    let container = json!({
        "name": "ip-masq-agent",
        "image": image,
        "securityContext": {
            "privileged": false,
            "capabilities": {"add": ["NET_ADMIN", "NET_RAW"]},
        },
        "volumeMounts": [{"name": "config", "mountPath": "/etc/config"}],
    });
    let volume = json!({
        "name": "config",
        "configMap": {
            "name": "ip-masq-agent",
            "optional": true,
            "items": [{"key": "config", "path": "ip-masq-agent"}],
        },
    });
    daemonset(&json!({"k8s-app": "ip-masq-agent"}), &container, &volume)
}

/// Returns the DaemonSet of k8s-custom-iptables as published by its project (daemon.yaml at
/// 48ec4ca), with another image.
#[must_use]
pub fn custom_iptables(image: &str) -> Value {
    let container = json!({
        "name": "k8s-custom-iptables",
        "image": image,
        "imagePullPolicy": "Always",
        "securityContext": {"privileged": true},
        "command": ["sh", "-c", "/run.sh"],
        "env": [{"name": "SLEEP_INTERVAL", "value": "30"}],
        "resources": {"requests": {"cpu": "5m", "memory": "10Mi"}},
        "volumeMounts": [{"name": "cfg", "mountPath": "/cfg"}],
    });
    let volume = json!({"name": "cfg", "configMap": {"name": "k8s-custom-iptables"}});
    daemonset(&json!({"name": "k8s-custom-iptables"}), &container, &volume)
}

fn daemonset(labels: &Value, container: &Value, volume: &Value) -> Value {
    json!({
        "apiVersion": "apps/v1",
        "kind": "DaemonSet",
        "metadata": {"name": container["name"], "namespace": "kube-system"},
        "spec": {
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels},
                "spec": {
                    "hostNetwork": true,
                    "containers": [container],
                    "volumes": [volume],
                },
            },
        },
    })
}

/// Returns ip-masq-agent's rules for `iptables-restore --noflush` with these non-masquerade CIDRs.
#[must_use]
pub fn ip_masq_agent_rules(non_masquerade: &[&str]) -> String {
    let mut rules = String::from(
        "*nat\n:IP-MASQ-AGENT - [0:0]\n\
         -A POSTROUTING -m comment --comment \"ip-masq-agent: ensure nat POSTROUTING directs all \
         non-LOCAL destination traffic to our custom IP-MASQ-AGENT chain\" -m addrtype ! \
         --dst-type LOCAL -j IP-MASQ-AGENT\n",
    );
    for destination in ["169.254.0.0/16"].iter().chain(non_masquerade) {
        rules += &format!(
            "-A IP-MASQ-AGENT -d {destination} -m comment --comment \"ip-masq-agent: local \
             traffic is not subject to MASQUERADE\" -j RETURN\n"
        );
    }
    rules
        + "-A IP-MASQ-AGENT -m comment --comment \"ip-masq-agent: outbound traffic is subject to \
           MASQUERADE (must be last in chain)\" -j MASQUERADE --random-fully\nCOMMIT\n"
}
