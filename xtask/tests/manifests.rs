//! The content of deploy/ applied to a real API server: Kustomize's output with kubectl, and the
//! chart with Helm.

mod deploy;

use anyhow::{Context as _, Result, ensure};
use deploy::cluster::{Cluster, PATIENCE, chart, name};
use deploy::objects;
use serde_json::{Value, json};
use std::process::Command;
use std::sync::Mutex;
use testbed::Running;
use xtask::cluster::ip_masq_agent;

/// Serialises the tests: an API server needs many resources.
static ONE: Mutex<()> = Mutex::new(());

#[test]
fn kustomize_and_helm_give_the_same_objects() -> Result<()> {
    let _one = ONE.lock();
    let cluster = Cluster::start()?;
    let targets = "\
- target: {kind: ConfigMap}
  patch: |-
    - op: replace
      path: /data/nat.rules
      value: 10.1.0.0/16 192.168.7.0/24";
    let cases = [
        (objects("base", "", "")?, json!({})),
        (
            objects("overlays/ip-masq-agent", "", "")?,
            json!({"replaceIpMasqAgent": true}),
        ),
        (
            objects("overlays/k8s-custom-iptables", "", targets)?,
            json!({"targets": ["10.1.0.0/16", "192.168.7.0/24"]}),
        ),
        (objects("base", "files", "")?, json!({"api": false})),
        (objects("base", "sys-admin", "")?, json!({"sysAdmin": true})),
        (
            objects("base", "metrics", "")?,
            json!({"metrics": {"enabled": true}}),
        ),
        (objects("base", "takeover", "")?, json!({"takeover": true})),
        (
            objects("base", "named-maps", "")?,
            json!({"labelledConfigMaps": false}),
        ),
        (
            objects("base", "pod-names-api", "")?,
            json!({"podNames": "api"}),
        ),
        (
            objects("base", "iptables", "")?,
            json!({"mode": "iptables"}),
        ),
        (
            objects("base", "", &argument("--mode=ebpf"))?,
            json!({"mode": "ebpf"}),
        ),
    ];
    for (objects, values) in cases {
        cluster.apply(&objects)?;
        let by_kustomize = cluster.objects()?;
        cluster.forget()?;
        cluster.install(&values)?;
        let by_helm = cluster.objects()?;
        cluster.forget()?;
        assert!(by_kustomize.len() >= 2, "{by_kustomize:?}");
        assert_eq!(names(&by_kustomize), names(&by_helm), "with {values}");
        for (kustomize, helm) in by_kustomize.iter().zip(&by_helm) {
            assert_eq!(kustomize, helm, "with {values}");
        }
    }
    Ok(())
}

/// The same for objects of the Prometheus operator and Grafana's sidecar, which the API server checks no
/// further.
#[test]
fn kustomize_and_helm_give_the_same_monitoring() -> Result<()> {
    let _one = ONE.lock();
    let mut cluster = Cluster::start()?;
    cluster.define_monitoring()?;
    let all = objects("base", "monitoring", "")?;
    cluster.apply(&all)?;
    let by_kustomize = cluster.objects()?;
    cluster.forget()?;
    let on = json!({"enabled": true});
    let values = json!({"metrics": on, "podMonitor": on, "prometheusRule": on, "dashboard": on});
    cluster.install(&values)?;
    let by_helm = cluster.objects()?;
    cluster.forget()?;
    for kind in ["PodMonitor", "PrometheusRule"] {
        ensure!(
            by_kustomize.iter().any(|it| it["kind"] == kind),
            "no {kind}"
        );
    }
    assert_eq!(names(&by_kustomize), names(&by_helm));
    for (kustomize, helm) in by_kustomize.iter().zip(&by_helm) {
        assert_eq!(kustomize, helm);
    }
    Ok(())
}

#[test]
fn helm_makes_no_pod_monitor_without_metrics() -> Result<()> {
    let _one = ONE.lock();
    let cluster = Cluster::start()?;
    let values = json!({"podMonitor": {"enabled": true}});
    let error = format!("{:#}", cluster.install(&values).unwrap_err());
    ensure!(
        error.contains("podMonitor.enabled needs metrics.enabled"),
        "{error}"
    );
    Ok(())
}

/// The values of the chart change the rules where they say so, and nowhere else.
#[test]
fn helm_sets_labels_severity_and_pages_of_alerts() -> Result<()> {
    let _one = ONE.lock();
    let mut cluster = Cluster::start()?;
    cluster.define_monitoring()?;
    let rules = |values: Value| -> Result<Value> {
        cluster.install(&json!({"prometheusRule": values}))?;
        let all = cluster.objects()?;
        cluster.forget()?;
        let mut rules = all.into_iter().filter(|it| it["kind"] == "PrometheusRule");
        rules.next().context("no PrometheusRule")
    };
    let plain = rules(json!({"enabled": true}))?;
    let set = rules(json!({
        "enabled": true,
        "labels": {"release": "prometheus"},
        "natLogSeverity": "critical",
        "runbookBase": "https://git.example.com/netdp/",
    }))?;
    assert_eq!(set["metadata"]["labels"]["release"], "prometheus");
    let mut gaps = 0;
    for (plain, set) in alerts(&plain).zip(alerts(&set)) {
        let pages = [plain, set].map(|it| it["annotations"]["runbook_url"].as_str());
        let [Some(plain_page), Some(page)] = pages else {
            panic!("{plain} {set}");
        };
        assert_eq!(page, format!("https://git.example.com/netdp/{plain_page}"));
        if set["alert"] == "NetdpNatLogGap" {
            gaps += 1;
            assert_eq!(set["labels"]["severity"], "critical");
        } else {
            assert_eq!(set["labels"], plain["labels"]);
        }
    }
    assert_eq!(gaps, 1);
    Ok(())
}

#[test]
fn the_overlay_leaves_nothing_of_ip_masq_agent() -> Result<()> {
    let _one = ONE.lock();
    let cluster = Cluster::start()?;
    cluster.apply(&[ip_masq_agent("registry.example.com/ip-masq-agent:v2.12.0")])?;
    let overlay = objects("overlays/ip-masq-agent", "", "")?;
    cluster.apply(&overlay)?;
    let replaced = daemonset(&cluster.objects()?)?;
    cluster.forget()?;
    cluster.apply(&overlay)?;
    assert_eq!(replaced, daemonset(&cluster.objects()?)?);
    assert_eq!(replaced["metadata"]["name"], "ip-masq-agent");
    Ok(())
}

#[test]
fn without_the_api_there_are_no_rights_on_it() -> Result<()> {
    let objects = objects("base", "files", "")?;
    let kinds: Vec<_> = objects.iter().map(|object| &object["kind"]).collect();
    assert_eq!(kinds, ["ServiceAccount", "DaemonSet"]);
    Ok(())
}

#[test]
fn helm_refuses_bad_values_and_says_which() -> Result<()> {
    let _one = ONE.lock();
    let cluster = Cluster::start()?;
    let cases = [
        (json!({"imagee": {}}), "imagee"),
        (json!({"args": "--enable-ipv6"}), "/args"),
        (json!({"args": ["enable-ipv6"]}), "/args/0"),
        (json!({"httpPort": 0}), "/httpPort"),
        (json!({"metrics": {"port": 0}}), "/metrics/port"),
        (json!({"mode": "shadow"}), "/mode"),
        (json!({"maxUnavailable": "0%"}), "/maxUnavailable"),
        (json!({"image": {"digest": "sha256:12"}}), "/image/digest"),
        (json!({"targets": ["10.0.0.1"]}), "/targets/0"),
        (json!({"natLog": {"hostPath": "var"}}), "/natLog/hostPath"),
        (
            json!({"podMonitor": {"interval": "often"}}),
            "/podMonitor/interval",
        ),
        (
            json!({"prometheusRule": {"natLogSeverity": "page"}}),
            "/prometheusRule/natLogSeverity",
        ),
        (
            json!({"prometheusRule": {"runbookBase": "docs"}}),
            "/prometheusRule/runbookBase",
        ),
        (
            json!({"config": {"nonMasqueradeCIDR": []}}),
            "nonMasqueradeCIDR",
        ),
        (
            json!({"config": {"resyncInterval": 60}}),
            "/config/resyncInterval",
        ),
    ];
    for (values, named) in cases {
        let error = format!("{:#}", cluster.install(&values).unwrap_err());
        assert!(
            error.contains("schema") && error.contains(named),
            "{values}: {error}"
        );
    }
    assert_eq!(cluster.objects()?, [json!(null); 0]);
    Ok(())
}

/// The patch in docs/install.md for uninstalling and for new tables makes agents detach on exit,
/// until the manifests are applied again.
#[test]
fn the_documented_patch_lasts_until_the_manifests_are_applied_again() -> Result<()> {
    let _one = ONE.lock();
    let cluster = Cluster::start()?;
    let patches: Vec<_> = include_str!("../../docs/install.md")
        .lines()
        .map(str::trim)
        .filter(|line| line.starts_with("'[{\"op\""))
        .map(|line| line.trim_matches('\''))
        .collect();
    let [patch, same] = patches[..] else {
        panic!("{patches:?}");
    };
    assert_eq!(patch, same);
    for (kustomization, name) in [
        ("base", "netdp"),
        ("overlays/ip-masq-agent", "ip-masq-agent"),
    ] {
        let objects = objects(kustomization, "", "")?;
        cluster.apply(&objects)?;
        let before = daemonset(&cluster.objects()?)?;
        let arguments = |daemonset: &Value| {
            daemonset["spec"]["template"]["spec"]["containers"][0]["args"].clone()
        };
        let patched = [
            "-n",
            "kube-system",
            "patch",
            "daemonset",
            name,
            "--type",
            "json",
            "--patch",
            patch,
        ];
        cluster.server.kubectl(&patched)?;
        let now = arguments(&daemonset(&cluster.objects()?)?);
        let last = now.as_array().and_then(|all| all.last());
        assert_eq!(last, Some(&json!("--on-exit=detach")), "{now}");
        cluster.apply(&objects)?;
        let after = daemonset(&cluster.objects()?)?;
        assert_eq!(arguments(&after), arguments(&before));
        cluster.forget()?;
    }
    Ok(())
}

/// A ConfigMap created with kubectl is not replaced, and the remedy in the error message works.
#[test]
fn helm_does_not_take_a_config_map_that_is_there() -> Result<()> {
    let _one = ONE.lock();
    let cluster = Cluster::start()?;
    for (name, key, values) in [
        (
            "ip-masq-agent",
            "config",
            json!({"config": {"nonMasqueradeCIDRs": ["10.0.0.0/8"]}}),
        ),
        (
            "k8s-custom-iptables",
            "nat.rules",
            json!({"targets": ["10.1.0.0/16"]}),
        ),
    ] {
        let kubectl = |arguments: &str| {
            let arguments: Vec<_> = arguments.split(' ').collect();
            cluster.server.kubectl(&arguments)
        };
        kubectl(&format!(
            "create configmap {name} --from-literal={key}=mine -n kube-system"
        ))?;
        let error = format!("{:#}", cluster.install(&values).unwrap_err());
        let value = values.as_object().and_then(|it| it.keys().next());
        let value = value.context("no value")?;
        for words in [
            format!("the ConfigMap kube-system/{name} already exists"),
            format!("Omit the value `{value}`"),
        ] {
            ensure!(error.contains(&words), "no {words:?} in\n{error}");
        }
        let kept = kubectl(&format!("get configmap {name} -n kube-system -o yaml"))?;
        ensure!(kept.contains("mine"), "{kept}");
        // Exactly as the message says.
        let told = error
            .split("replaces its content: ")
            .nth(1)
            .context("no way out")?;
        for command in told.lines().next().unwrap_or_default().split("; ") {
            let command = command.strip_prefix("kubectl ").context("no command")?;
            kubectl(command.trim())?;
        }
        cluster.install(&values)?;
        let taken = kubectl(&format!("get configmap {name} -n kube-system -o yaml"))?;
        ensure!(!taken.contains("mine"), "{taken}");
        cluster.forget()?;
    }
    Ok(())
}

#[test]
fn helm_lint_finds_nothing_wrong() -> Result<()> {
    let mut lint = Command::new(env!("CARGO_BIN_EXE_xtask"));
    lint.args(["helm", "--lint", "--kubeconfig", "/nonexistent"])
        .arg(chart()?);
    let found: Value = serde_json::from_str(&Running::start(lint)?.finish(PATIENCE)?)?;
    let messages = found["Messages"].as_array().context("no messages")?;
    // Only the recommendation of an icon. Warnings are 2, errors 3.
    let severities: Vec<_> = messages.iter().map(|it| &it["Severity"]).collect();
    assert_eq!(severities, [1], "{found}");
    Ok(())
}

/// Returns a patch that adds an argument.
fn argument(text: &str) -> String {
    format!(
        "- target: {{kind: DaemonSet}}\n  patch: |-\n    - op: add\n      \
         path: /spec/template/spec/containers/0/args/-\n      value: {text}"
    )
}

fn names(objects: &[Value]) -> Vec<String> {
    objects.iter().map(name).collect()
}

fn daemonset(objects: &[Value]) -> Result<Value> {
    let mut all = objects
        .iter()
        .filter(|object| object["kind"] == "DaemonSet");
    let one = all.next().context("there is no DaemonSet")?;
    ensure!(all.next().is_none(), "there are two DaemonSets");
    Ok(one.clone())
}

/// Returns the alerts of a PrometheusRule.
fn alerts(rule: &Value) -> impl Iterator<Item = &Value> {
    let groups = rule["spec"]["groups"].as_array().into_iter().flatten();
    let rules = groups.flat_map(|group| group["rules"].as_array().into_iter().flatten());
    rules.filter(|rule| rule["alert"].is_string())
}
