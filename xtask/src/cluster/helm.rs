//! netdp's chart in the cluster, installed by Helm itself.

use super::{Cluster, PATIENCE};
use crate::shell;
use anyhow::{Context as _, Result};
use serde_json::Value;
use std::path::Path;
use testbed::{Running, kube_programs};

impl Cluster {
    /// Runs the equivalent of `helm install netdp deploy/helm/netdp --namespace kube-system` with
    /// these values and waits until netdp runs on every node. `xtask` is the program that contains
    /// Helm.
    pub fn install(&self, xtask: &Path, values: &Value) -> Result<()> {
        self.helm(xtask, &["--values", &values.to_string()])?;
        self.wait_rollout("netdp")
    }

    /// Runs the equivalent of `helm upgrade` with these values and waits for the roll-out.
    pub fn upgrade(&self, xtask: &Path, values: &Value) -> Result<()> {
        self.helm(xtask, &["--upgrade", "--values", &values.to_string()])?;
        self.wait_rollout("netdp")
    }

    /// Runs the equivalent of `helm uninstall netdp --namespace kube-system`.
    pub fn uninstall(&self, xtask: &Path) -> Result<()> {
        self.helm(xtask, &["--uninstall"]).map(drop)
    }

    fn helm(&self, xtask: &Path, arguments: &[&str]) -> Result<String> {
        let cache = kube_programs::cache()?;
        let cache = cache.ancestors().nth(2).context("no cache")?;
        let mut helm = self.bed.node.command(xtask);
        helm.arg("helm")
            .arg("--kubeconfig")
            .arg(self.api.admin_kubeconfig())
            .args(arguments)
            .arg(shell::root().join("deploy/helm/netdp"))
            // It caches its API discovery in $HOME.
            .env("HOME", self.machine.dir())
            .env("XDG_CACHE_HOME", cache);
        for home in ["HELM_CACHE_HOME", "HELM_CONFIG_HOME", "HELM_DATA_HOME"] {
            helm.env(home, self.machine.dir());
        }
        Running::start(helm)?.finish(PATIENCE)
    }
}
