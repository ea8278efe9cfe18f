//! `kubectl netdp`, as kubectl runs it; `xtask/tests/cluster.rs` has what needs a kubelet.

use crate::cluster::{Cluster, EVERYTHING, NODE};
use crate::common::NETDP;
use crate::fleet::{fleet, wait_shown};
use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::PathBuf;
use std::process::{Command, Output};
use testbed::{Agent, kube_programs, output};

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
    ensure!(ended.status.code() == Some(2), "{line}: {told}");
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
    let services = complete(&["explain", "-n", "default", "cart", "svc/k"])?;
    assert_eq!(services, "svc/kubernetes\n:4\n");
    Ok(())
}

/// Puts a kubectl in the place of the plugin's that runs netdp here instead of in a pod: `exec` is a kubelet's
/// work, and there is none.
fn stand_in_for_a_kubelet(cluster: &Cluster, agent: &Agent) -> Result<()> {
    let at = agent.command(&["explain"]);
    let directories = at.get_args().skip(1).map(|it| it.to_string_lossy());
    let directories: Vec<_> = directories.collect();
    let script = format!(
        "#!/bin/sh\ncase \" $* \" in *\" exec \"*)\n while [ \"$1\" != -- ]; do shift; done\n command=$3\n \
         shift 3\n exec {NETDP} \"$command\" {} \"$@\" ;;\nesac\nexec {} \"$@\"\n",
        directories.join(" "),
        kube_programs::find("kubectl")?.display(),
    );
    let path = cluster.dir.path().join("bin/kubectl");
    fs::remove_file(&path)?;
    fs::write(&path, script)?;
    Ok(fs::set_permissions(
        &path,
        fs::Permissions::from_mode(0o755),
    )?)
}

/// Writes a pod that runs on the node.
fn add_pod(cluster: &Cluster, namespace: &str, name: &str, addresses: &[&str]) -> Result<()> {
    let ips = addresses.iter().map(|ip| format!(r#"{{"ip": "{ip}"}}"#));
    let ips = ips.collect::<Vec<_>>().join(",");
    let status = format!(
        r#"{{"apiVersion": "v1", "kind": "Pod", "metadata": {{"name": "{name}", "namespace": "{namespace}",
                          "labels": {{"app.kubernetes.io/name": "{name}"}}}},
            "status": {{"phase": "Running", "podIP": "{}", "podIPs": [{ips}]}}}}"#,
        addresses[0]
    );
    cluster.api.apply(&format!(
        "apiVersion: v1
kind: ServiceAccount
metadata: {{name: default, namespace: {namespace}}}
---
apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: {namespace}, labels: {{app.kubernetes.io/name: {name}}}}}
spec:
  nodeName: {NODE}
  automountServiceAccountToken: false
  containers: [{{name: c, image: none}}]
"
    ))?;
    let file = cluster.dir.path().join("status.json");
    fs::write(&file, status)?;
    let path = format!("/api/v1/namespaces/{namespace}/pods/{name}/status");
    let file = file.to_str().context("a path")?;
    let replace = ["replace", "--raw", &path, "-f", file];
    cluster.api.kubectl(&replace).map(drop)
}

/// Services, one of each kind, and who may see them without their endpoints.
const SERVICES: &str = "\
apiVersion: v1
kind: Service
metadata: {name: db, namespace: shop}
spec:
  clusterIP: 10.96.0.12
  ports: [{name: sql, port: 80, targetPort: 7}, {name: metrics, port: 9187}]
---
apiVersion: discovery.k8s.io/v1beta1
kind: EndpointSlice
metadata: {name: db-1, namespace: shop, labels: {kubernetes.io/service-name: db}}
addressType: IPv4
ports: [{name: sql, port: 7}]
endpoints:
- addresses: [10.1.0.20]
- addresses: [10.1.0.21]
- addresses: [172.16.0.3]
- {addresses: [10.1.0.22], conditions: {ready: false}}
---
apiVersion: v1
kind: Service
metadata: {name: peers, namespace: shop}
spec: {clusterIP: None, ports: [{port: 7}]}
---
apiVersion: discovery.k8s.io/v1beta1
kind: EndpointSlice
metadata: {name: peers-4, namespace: shop, labels: {kubernetes.io/service-name: peers}}
addressType: IPv4
ports: [{port: 7}]
endpoints: [{addresses: [10.1.0.20], hostname: peers-0}]
---
apiVersion: discovery.k8s.io/v1beta1
kind: EndpointSlice
metadata: {name: peers-6, namespace: shop, labels: {kubernetes.io/service-name: peers}}
addressType: IPv6
ports: [{port: 7}]
endpoints: [{addresses: ['fd00:1::20'], hostname: peers-1}]
---
apiVersion: v1
kind: Service
metadata: {name: elsewhere, namespace: shop}
spec: {type: ExternalName, externalName: localhost}
---
apiVersion: v1
kind: Service
metadata: {name: alias, namespace: shop}
spec: {type: ExternalName, externalName: peers.shop.svc.cluster.local}
---
apiVersion: v1
kind: Service
metadata: {name: empty, namespace: shop}
spec: {clusterIP: 10.96.0.13, ports: [{port: 80}]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: reader}
rules: [{apiGroups: [''], resources: [pods, services], verbs: [get, list]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: reader}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: reader}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: reader}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: {name: pods-alone}
rules: [{apiGroups: [''], resources: [pods], verbs: [get, list]}]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: {name: pods-alone}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: pods-alone}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: pods-alone}]
";

/// Runs `kubectl netdp explain` for the pod; returns the exit status, and what it told on both outputs.
fn explained(cluster: &Cluster, line: &str) -> Result<(i32, String, String)> {
    let ended = kubectl(cluster, &format!("explain -n shop cart {line}"))?;
    let code = ended.status.code().context("killed")?;
    Ok((
        code,
        String::from_utf8(ended.stdout)?,
        String::from_utf8(ended.stderr)?,
    ))
}

/// No rule and no proxy is on the node.
#[test]
fn services_are_explained_by_their_endpoints_whatever_proxy_there_is() -> Result<()> {
    let cluster = Cluster::start()?;
    cluster.configure(EVERYTHING)?;
    install(&cluster)?;
    let agent = cluster.agent()?;
    stand_in_for_a_kubelet(&cluster, &agent)?;
    cluster
        .api
        .apply("apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n")?;
    cluster.api.apply(SERVICES)?;
    add_pod(&cluster, "kube-system", "netdp", &["10.1.0.10"])?;
    add_pod(&cluster, "shop", "cart", &["172.16.0.2", "fd00:172::2"])?;
    let by_name = explained(&cluster, "svc/db:sql")?;
    let (code, told, _) = &by_name;
    ensure!(*code == 0, "{by_name:?}");
    // The one that differs is first.
    for (line, expected) in told.lines().zip([
        "10.96.0.12:80 → 172.16.0.3:7 sees the pod's 172.16.0.2: it leaves by cni0",
        "10.96.0.12:80 → 10.1.0.20:7 sees 10.1.0.10, by eth0: masqueraded",
        "10.96.0.12:80 → 10.1.0.21:7 sees 10.1.0.10, by eth0: masqueraded",
        "10.96.0.12:80 is shop/db:sql: kube-proxy or its like replaces it before netdp sees a packet",
    ]) {
        ensure!(line.starts_with(expected), "{expected:?}: {told}");
    }
    ensure!(!told.contains("10.1.0.22"), "not ready: {told}");
    let first: Vec<_> = told.lines().take(4).collect();
    ensure!(
        include_str!("../../../docs/kubernetes.md").contains(&first.join("\n")),
        "docs/kubernetes.md has another transcript than {first:#?}"
    );
    for other in [
        "db.shop.svc.cluster.local:80",
        "10.96.0.12:80",
        "svc/shop/db:80",
    ] {
        let other = explained(&cluster, other)?;
        ensure!(
            other.1.lines().take(4).eq(told.lines().take(4)),
            "{other:?}"
        );
    }
    let (code, told, _) = explained(&cluster, "svc/db:sql --expect node -o json")?;
    ensure!(code == 1, "{code}");
    let answers: Value = serde_json::from_str(&told)?;
    ensure!(
        answers["answers"][0]["asked_for"] == "10.96.0.12:80",
        "{told}"
    );
    // A headless Service, of both families, by its own name and by another.
    for name in ["peers.shop.svc:7", "svc/alias:7"] {
        let (_, told, notes) = explained(&cluster, name)?;
        ensure!(
            told.contains("10.1.0.20:7 sees 10.1.0.10, by eth0"),
            "{told}"
        );
        ensure!(told.contains("[fd00:1::20]:7 gets nothing"), "{told}");
        ensure!(!told.contains("→"), "{told}");
        ensure!(notes.contains("shop/peers: a headless Service"), "{notes}");
    }
    let (_, told, _) = explained(&cluster, "peers-0.peers.shop.svc:7")?;
    ensure!(!told.contains("fd00:1::20"), "{told}");
    let (_, told, notes) = explained(&cluster, "svc/elsewhere:7")?;
    ensure!(told.contains("127.0.0.1:7 gets nothing"), "{told}");
    ensure!(notes.contains("whose name stands for localhost"), "{notes}");
    // Other destinations are the node's to explain.
    let (code, told, notes) = explained(&cluster, "10.1.0.20:7")?;
    ensure!(
        told.starts_with("10.1.0.20:7 sees 10.1.0.10") && code == 0,
        "{told}"
    );
    ensure!(!notes.contains("Service"), "{notes}");
    for (line, words) in [
        ("svc/nothing:80", r#"services "nothing" not found"#),
        (
            "svc/db:81",
            "shop/db has no port 81, but sql 80/tcp, metrics 9187/tcp",
        ),
        ("svc/db", "shop/db has several ports"),
        ("svc/empty:80", "shop/empty has no endpoint that is ready"),
        ("10.96.0.13:80", "shop/empty has no endpoint that is ready"),
        ("svc/db:sql --from 172.16.0.9 10.1.0.20", "ask for it alone"),
    ] {
        fails(&cluster, &format!("explain -n shop cart {line}"), words)?;
    }
    fails(
        &cluster,
        "explain --as reader -n shop cart svc/db:sql",
        "shop/db: its endpoints are read from the EndpointSlices of shop: kubectl get",
    )?;
    let told = kubectl(&cluster, "explain --as pods-alone -n shop cart 10.1.0.20:7")?;
    let notes = String::from_utf8(told.stderr)?;
    ensure!(told.status.success(), "{notes}");
    ensure!(
        notes.contains("cannot tell whether 10.1.0.20 is a Service's"),
        "{notes}"
    );
    Ok(())
}
