//! Test pods.

use super::{Cluster, PATIENCE};
use crate::image::TOOLS;
use anyhow::{Context as _, Result};
use serde_json::Value;
use std::fs;
use std::net::Ipv4Addr;
use testbed::{Host, Netns, wait_some};

impl Cluster {
    /// Starts pods with these names and a shell; returns their networks once they run.
    pub fn pods<const N: usize>(&self, names: [&str; N]) -> Result<[Host; N]> {
        let manifests = names.map(|name| {
            format!(
                "apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: default}}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{{name: sh, image: {TOOLS}, imagePullPolicy: IfNotPresent}}]
---
"
            )
        });
        // The ServiceAccount is created shortly after its namespace.
        let mut output = None;
        wait_some(PATIENCE, "pods to be taken", || {
            let applied = self.api.apply(&manifests.concat());
            let done = applied.is_ok();
            output = applied.err();
            done.then_some(())
        })
        .with_context(|| format!("{output:?}"))?;
        let hosts = names.iter().map(|name| self.host(name));
        let hosts: Vec<Host> = hosts.collect::<Result<_>>()?;
        hosts.try_into().ok().context("a pod is missing")
    }

    /// Returns the network of a pod once it runs.
    fn host(&self, name: &str) -> Result<Host> {
        let ask = format!("get pod {name} -o jsonpath={{.status.phase}}:{{.status.podIP}}");
        let address: Ipv4Addr = wait_some(PATIENCE, &format!("pod {name} to run"), || {
            let output = self.kubectl(&ask).ok()?;
            output.strip_prefix("Running:")?.parse().ok()
        })
        .with_context(|| self.kubectl("describe pods").unwrap_or_default())?;
        let path = self.path(&self.sandbox(address)?);
        Ok(Host {
            ns: Netns::borrow(name, &path)?,
            addresses: vec![format!("{address}/24").parse()?],
        })
    }

    /// Returns the namespace file, on the node, of the pod with this address, from the cached
    /// result of the bridge plugin.
    fn sandbox(&self, address: Ipv4Addr) -> Result<String> {
        let results = self.machine.dir().join("lib/cni/results");
        for entry in fs::read_dir(&results).context("what CNI plugins have left")? {
            let output: Value = serde_json::from_slice(&fs::read(entry?.path())?)?;
            let list = |key: &str| {
                output["result"][key]
                    .as_array()
                    .cloned()
                    .unwrap_or_default()
            };
            let is_its = |ip: &Value| {
                let given = ip["address"].as_str().unwrap_or_default();
                given.split('/').next() == Some(&address.to_string())
            };
            if list("ips").iter().any(is_its) {
                let interfaces = list("interfaces");
                let mut sandboxes = interfaces.iter().filter_map(|it| it["sandbox"].as_str());
                let path = sandboxes.find(|path| !path.is_empty());
                // /var/run is an absolute symlink that leads out of the machine's directory.
                return path
                    .map(|path| path.replace("/var/run/", "/run/"))
                    .context("a pod without a namespace");
            }
        }
        anyhow::bail!("no plugin has given {address} to a pod")
    }
}
