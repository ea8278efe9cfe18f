//! The way to the API: from inside a pod, or by a kubeconfig.

use super::limit::{ANSWER, ANSWER_TO_USER, Limits};
use anyhow::{Context as _, Result};
use kube::client::ClientBuilder;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long a connection may take to be made.
const CONNECT: Duration = Duration::from_secs(5);

/// Where a pod finds the token of its ServiceAccount.
const TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";

/// What to follow, and how to get there.
#[derive(Debug, Clone)]
pub struct KubeOptions {
    /// `None`: as a pod does.
    pub kubeconfig: Option<PathBuf>,
    /// `--kube on`: files alone are not enough.
    pub required: bool,
    /// Where the ConfigMaps are.
    pub namespace: String,
    /// The ConfigMap in ip-masq-agent's format.
    pub config_map: String,
    /// Whether those with the label count.
    pub labelled: bool,
    /// This node; without it the Node is not read, and there is no Lease.
    pub node_name: Option<String>,
    /// Where the Leases of the nodes are.
    pub lease_namespace: String,
}

/// Whether this process is in a pod that has a ServiceAccount.
pub fn in_cluster() -> bool {
    std::env::var_os("KUBERNETES_SERVICE_HOST").is_some() && Path::new(TOKEN).exists()
}

/// A client, which has not spoken to the API yet.
///
/// # Errors
/// The kubeconfig, or what a pod has instead, is missing or bad.
pub async fn connect(kubeconfig: Option<&Path>) -> Result<Client> {
    let config = match kubeconfig {
        Some(path) => from_file(path).await?,
        None => Config::incluster().context("reading the pod's ServiceAccount")?,
    };
    build(config, ANSWER)
}

/// A client for a person: by `kubeconfig`, or as kubectl would find its way.
///
/// # Errors
/// As [`connect`].
pub async fn connect_as_user(kubeconfig: Option<&Path>) -> Result<Client> {
    let config = match kubeconfig {
        Some(path) => from_file(path).await?,
        None => Config::infer().await.context("finding a kubeconfig")?,
    };
    build(config, ANSWER_TO_USER)
}

async fn from_file(path: &Path) -> Result<Config> {
    let context = || format!("the kubeconfig {}", path.display());
    let file = Kubeconfig::read_from(path).with_context(context)?;
    Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
        .await
        .with_context(context)
}

fn build(mut config: Config, bytes: usize) -> Result<Client> {
    config.connect_timeout = Some(CONNECT);
    // Whoever asks knows when to ask again.
    config.default_retry = false;
    let builder =
        ClientBuilder::try_from(config).context("making a client of the Kubernetes API")?;
    Ok(builder.with_layer(&Limits { bytes }).build())
}
