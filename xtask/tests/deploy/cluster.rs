//! An API server to which the content of deploy/ is applied.

use super::directory;
use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use std::fs;
use std::path::PathBuf;
use std::time::Duration;
use testbed::{ApiServer, Netns, Running, WorkDir, wait_for};

/// Timeout of Helm on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Kinds of netdp's objects, as kubectl names them.
const KINDS: &str = "namespaces,serviceaccounts,roles,rolebindings,clusterroles,clusterrolebindings,\
                     configmaps,daemonsets";

/// An API server without any object of netdp.
pub struct Cluster {
    pub server: ApiServer,
    ns: Netns,
    dir: WorkDir,
    /// Kinds of its objects that count.
    kinds: String,
}

impl Cluster {
    pub fn start() -> Result<Self> {
        let ns = Netns::new("manifests")?;
        Ok(Self {
            server: ApiServer::start(&ns)?,
            ns,
            dir: WorkDir::new("manifests")?,
            kinds: KINDS.to_owned(),
        })
    }

    /// Applies objects as a user does, with kubectl's field validation.
    pub fn apply(&self, objects: &[Value]) -> Result<()> {
        let list = json!({"apiVersion": "v1", "kind": "List", "items": objects});
        self.server.apply(&list.to_string())?;
        Ok(())
    }

    /// Runs the equivalent of `helm install netdp deploy/helm/netdp --namespace kube-system`.
    pub fn install(&self, values: &Value) -> Result<()> {
        let mut helm = self.ns.command(env!("CARGO_BIN_EXE_xtask"));
        helm.args(["helm", "--values", &values.to_string(), "--kubeconfig"])
            .arg(self.server.admin_kubeconfig())
            .arg(chart()?);
        for home in ["HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME"] {
            helm.env(home, self.dir.path());
        }
        Running::start(helm)?.finish(PATIENCE)?;
        Ok(())
    }

    /// Defines the kinds of the Prometheus operator, with any content.
    pub fn define_monitoring(&mut self) -> Result<()> {
        let kinds = [
            ("PodMonitor", "podmonitors"),
            ("PrometheusRule", "prometheusrules"),
        ];
        let definitions = kinds.map(|(kind, plural)| {
            let any = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
            json!({
                "apiVersion": "apiextensions.k8s.io/v1",
                "kind": "CustomResourceDefinition",
                "metadata": {"name": format!("{plural}.monitoring.coreos.com")},
                "spec": {
                    "group": "monitoring.coreos.com",
                    "scope": "Namespaced",
                    "names": {"kind": kind, "plural": plural},
                    "versions": [{
                        "name": "v1",
                        "served": true,
                        "storage": true,
                        "schema": {"openAPIV3Schema": any},
                    }],
                },
            })
        });
        self.apply(&definitions)?;
        self.kinds = format!("{KINDS},{}", kinds.map(|(_, plural)| plural).join(","));
        wait_for(PATIENCE, "the API server to serve the kinds", || {
            self.objects().is_ok()
        })
    }

    /// Returns netdp's objects as stored by the server, without fields that differ between runs.
    pub fn objects(&self) -> Result<Vec<Value>> {
        let list = self.server.kubectl(&[
            "get",
            &self.kinds,
            "--all-namespaces",
            "-l",
            "app.kubernetes.io/name=netdp",
            "-o",
            "json",
        ])?;
        let list: Value = serde_json::from_str(&list)?;
        let mut objects: Vec<Value> = items(&list).iter().cloned().map(essence).collect();
        objects.sort_by_key(name);
        Ok(objects)
    }

    /// Removes the objects and Helm's release record.
    pub fn forget(&self) -> Result<()> {
        let kubectl = |line: &str| {
            let words: Vec<&str> = line.split(' ').collect();
            self.server.kubectl(&words)
        };
        let ours = "-l app.kubernetes.io/name=netdp";
        kubectl("delete secrets -n kube-system -l owner=helm")?;
        let (namespace, others) = self.kinds.split_once(',').context("one kind only")?;
        kubectl(&format!("delete {others} --all-namespaces {ours}"))?;
        let gone = kubectl(&format!("delete {namespace} --wait=false {ours}"))?;
        if !gone.contains("No resources") && !gone.is_empty() {
            self.finalize("netdp-fleet")?;
        }
        wait_for(PATIENCE, "the end of netdp's objects", || {
            self.objects().is_ok_and(|objects| objects.is_empty())
        })
    }

    /// Finalizes an empty namespace: the task of a controller that does not run here.
    fn finalize(&self, namespace: &str) -> Result<()> {
        let file = self.dir.path().join("finalize.json");
        let ended = json!({
            "apiVersion": "v1",
            "kind": "Namespace",
            "metadata": {"name": namespace},
            "spec": {"finalizers": []},
        });
        fs::write(&file, ended.to_string())?;
        let path = format!("/api/v1/namespaces/{namespace}/finalize");
        let file = file.to_string_lossy();
        self.server
            .kubectl(&["replace", "--raw", &path, "-f", &file])?;
        Ok(())
    }
}

/// Returns an object without the fields that the server and the tools add.
fn essence(mut object: Value) -> Value {
    remove(
        &mut object["metadata"],
        &[
            "annotations",
            "creationTimestamp",
            "generation",
            "managedFields",
            "resourceVersion",
            "selfLink",
            "uid",
        ],
    );
    remove(
        &mut object["metadata"]["labels"],
        &["app.kubernetes.io/managed-by"],
    );
    // The controllers of a full cluster create a ServiceAccount's secrets.
    remove(&mut object, &["status", "secrets"]);
    // The server sets a Namespace's finalizers.
    if object["kind"] == "Namespace" {
        remove(&mut object, &["spec"]);
    }
    object
}

fn remove(object: &mut Value, keys: &[&str]) {
    if let Some(object) = object.as_object_mut() {
        object.retain(|key, _| !keys.contains(&key.as_str()));
    }
}

/// Returns kind, namespace and name of an object.
pub fn name(object: &Value) -> String {
    let metadata = &object["metadata"];
    format!(
        "{} {}/{}",
        object["kind"], metadata["namespace"], metadata["name"]
    )
}

/// Returns the objects of a list.
fn items(list: &Value) -> &[Value] {
    list["items"].as_array().map_or(&[], Vec::as_slice)
}

/// Returns the path of the chart.
pub fn chart() -> Result<PathBuf> {
    Ok(directory()?.join("helm/netdp"))
}
