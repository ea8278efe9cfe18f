//! API client, configured from a pod's ServiceAccount or a kubeconfig.

use super::limit::{Limits, MAX_RESPONSE_BYTES, MAX_USER_RESPONSE_BYTES};
use anyhow::{Context as _, Result};
use kube::client::ClientBuilder;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Time limit for establishing a connection.
const CONNECT: Duration = Duration::from_secs(5);

/// Path of the ServiceAccount token in a pod.
const TOKEN: &str = "/var/run/secrets/kubernetes.io/serviceaccount/token";

/// Options for following the API: objects and access.
#[derive(Debug, Clone)]
pub struct KubeOptions {
    /// Path of a kubeconfig; `None` uses the pod's ServiceAccount.
    pub kubeconfig: Option<PathBuf>,
    /// Set by `--kube on`: files alone do not suffice.
    pub required: bool,
    /// Namespace of the ConfigMaps.
    pub namespace: String,
    /// Name of the ConfigMap in ip-masq-agent's format.
    pub config_map: String,
    /// Set if labelled ConfigMaps are followed, too.
    pub labelled: bool,
    /// Name of this node; without it the Node is not read, and there is no Lease.
    pub node_name: Option<String>,
    /// Namespace of the nodes' Leases.
    pub lease_namespace: String,
}

/// Reports whether this process runs in a pod with a ServiceAccount.
pub(crate) fn in_cluster() -> bool {
    std::env::var_os("KUBERNETES_SERVICE_HOST").is_some() && Path::new(TOKEN).exists()
}

/// Makes the agent's client without connecting yet.
///
/// # Errors
/// Returns an error if the kubeconfig, or the pod's equivalent, is missing or invalid.
pub async fn connect(kubeconfig: Option<&Path>) -> Result<Client> {
    let config = match kubeconfig {
        Some(path) => from_file(path).await?,
        None => Config::incluster().context("reading the pod's ServiceAccount")?,
    };
    build(config, MAX_RESPONSE_BYTES)
}

/// Makes a client for a user: from `kubeconfig`, or by kubectl's rules.
///
/// # Errors
/// Returns an error as [`connect`] does.
pub(crate) async fn connect_as_user(kubeconfig: Option<&Path>) -> Result<Client> {
    let config = match kubeconfig {
        Some(path) => from_file(path).await?,
        None => Config::infer().await.context("finding a kubeconfig")?,
    };
    build(config, MAX_USER_RESPONSE_BYTES)
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
    // Callers decide about retries.
    config.default_retry = false;
    let builder = ClientBuilder::try_from(config).context("creating a Kubernetes API client")?;
    Ok(builder.with_layer(&Limits { bytes }).build())
}
