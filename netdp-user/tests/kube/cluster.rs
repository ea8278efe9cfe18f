//! A node with an API server on its loopback, a pod, and a neighbour that reports the source of
//! requests.

use crate::common::clients::tcp_source;
use crate::common::{ECHO, Echo, NETDP, status};
use crate::proxy::Proxy;
use anyhow::{Context as _, Result};
use serde_json::Value;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;
use testbed::{Agent, AgentOptions, ApiServer, Bed, Host, WorkDir, wait_for};

/// Name of the Node object.
pub const NODE: &str = "node-a";

/// Timeout for the agent to reconnect to a recovered API server: its longest back-off is 10 s, and
/// the machine is busy with other tests.
pub const RECOVERY: Duration = Duration::from_secs(50);

/// Address of the agent's probes.
pub const PROBES: &str = "127.0.0.1:10268";

/// Policy that masquerades traffic to the neighbour.
pub const EVERYTHING: &str = "nonMasqueradeCIDRs:\n- 172.16.0.0/16\n";

/// Policy that bypasses the neighbour.
pub const NOT_THE_NEIGHBOUR: &str = "nonMasqueradeCIDRs:\n- 172.16.0.0/16\n- 10.1.0.0/16\n";

/// RBAC of the manifests.
pub const RBAC: &str = include_str!("../../../deploy/kustomize/base/rbac.yaml");

/// The node with its pod and the API server.
pub struct Cluster {
    pub api: ApiServer,
    pub bed: Bed,
    pub near: Host,
    pub dir: WorkDir,
    _echo: Echo,
}

impl Cluster {
    /// Starts a cluster with the RBAC of the manifests and this node.
    pub fn start() -> Result<Self> {
        let cluster = Self::bare()?;
        cluster.api.apply(&account())?;
        cluster.api.apply(RBAC)?;
        cluster.add_node()?;
        Ok(cluster)
    }

    /// Starts a cluster without any objects.
    pub fn bare() -> Result<Self> {
        let bed = Bed::builder()
            .uplink("eth0", &["10.1.0.10/16"])
            .pods(1, &["172.16.0.0/24"])
            .build()?;
        let near = bed.neighbour(0, &["10.1.0.20/16"])?;
        Ok(Self {
            api: ApiServer::start(&bed.node)?,
            _echo: Echo::start(&near)?,
            near,
            bed,
            dir: WorkDir::new("kube")?,
        })
    }

    /// Registers the node as the kubelet does.
    pub fn add_node(&self) -> Result<()> {
        self.api.apply(&format!(
            "apiVersion: v1\nkind: Node\nmetadata: {{name: {NODE}}}\nspec: {{podCIDR: 172.16.0.0/24}}\n"
        ))?;
        Ok(())
    }

    /// Writes a kubeconfig of the agent's ServiceAccount.
    pub fn kubeconfig(&self) -> Result<PathBuf> {
        let token = self.api.token("kube-system", "netdp")?;
        self.api.write_kubeconfig("agent", &self.api.url(), &token)
    }

    /// Writes a kubeconfig of the agent's ServiceAccount that connects through a proxy.
    pub fn kubeconfig_of(&self, proxy: &Proxy) -> Result<PathBuf> {
        self.api.write_kubeconfig("proxied", &proxy.url(), "none")
    }

    /// Returns options of an agent whose only source is the API.
    pub fn options(&self, kubeconfig: &std::path::Path) -> AgentOptions {
        AgentOptions::new(NETDP)
            .config(&self.dir.path().join("no-such-file"))
            .arg("--kube=on")
            .arg("--kubeconfig")
            .arg(kubeconfig)
            .arg(format!("--node-name={NODE}"))
            .arg(format!("--http-listen={PROBES}"))
    }

    /// Starts an agent and waits until it is ready.
    pub fn agent(&self) -> Result<Agent> {
        Agent::start(&self.bed.node, self.options(&self.kubeconfig()?))
    }

    /// Writes a key and the labels of a ConfigMap.
    pub fn write(&self, name: &str, labels: &str, key: &str, text: &str) -> Result<()> {
        let text = serde_json::to_string(text)?;
        self.api.apply(&format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}, namespace: kube-system, \
             labels: {{{labels}}}}}\ndata: {{{key:?}: {text}}}\n"
        ))?;
        Ok(())
    }

    /// Writes ip-masq-agent's ConfigMap.
    pub fn configure(&self, text: &str) -> Result<()> {
        self.write("ip-masq-agent", "", "config", text)
    }

    /// Reports whether the neighbour sees the node's address.
    pub fn is_masqueraded(&self) -> Result<bool> {
        let to = (self.near.v4()?, ECHO).into();
        Ok(tcp_source(&self.bed.pods[0], to)? == IpAddr::from([10, 1, 0, 10]))
    }

    /// Waits until new connections are masqueraded or bypassed.
    pub fn wait_masqueraded(&self, agent: &Agent, wanted: bool) -> Result<()> {
        wait_for(RECOVERY, &format!("masqueraded: {wanted}"), || {
            self.is_masqueraded().is_ok_and(|is| is == wanted)
        })
        .with_context(|| format!("the agent wrote:\n{}", agent.log()))
    }

    /// Sends a request to the agent's HTTP server; returns the status code and the text.
    pub fn probe(&self, path: &str) -> Result<(String, String)> {
        let url = format!("http://{PROBES}{path}");
        let answer = ["curl", "-s", "-m", "10", "-w", "\n%{http_code}", &url];
        let answer = self.bed.node.run(&answer)?;
        let (text, code) = answer.rsplit_once('\n').context("no code")?;
        Ok((code.to_owned(), text.to_owned()))
    }

    /// Waits until `/readyz` returns this code and a text that contains `words`.
    pub fn wait_probe(&self, agent: &Agent, code: &str, words: &str) -> Result<()> {
        let mut seen = None;
        wait_for(
            RECOVERY,
            &format!("/readyz to be {code} with {words:?}"),
            || {
                seen = self.probe("/readyz").ok();
                seen.as_ref()
                    .is_some_and(|(is, text)| is == code && text.contains(words))
            },
        )
        .with_context(|| format!("it is {seen:?}; the agent wrote:\n{}", agent.log()))
    }

    /// Runs kubectl and returns its JSON output.
    pub fn json(&self, arguments: &[&str]) -> Result<Value> {
        let text = self.api.kubectl(&[arguments, &["-o", "json"]].concat())?;
        Ok(serde_json::from_str(&text)?)
    }
}

/// Returns the manifest of the agent's ServiceAccount.
pub fn account() -> String {
    "apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: netdp, namespace: kube-system}\n".into()
}

/// Waits until the status satisfies `wanted`.
pub fn wait_status(agent: &Agent, what: &str, wanted: impl Fn(&Value) -> bool) -> Result<()> {
    let mut seen = Value::Null;
    wait_for(RECOVERY, what, || {
        seen = status(agent).map_or(Value::Null, |status| status["report"].clone());
        wanted(&seen)
    })
    .with_context(|| format!("the report is {seen:#}\nthe agent wrote:\n{}", agent.log()))
}
