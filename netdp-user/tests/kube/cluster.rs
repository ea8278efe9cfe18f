//! A node with an API server on its loopback, a pod, and a neighbour that sees who asks.

use crate::common::clients::tcp_source;
use crate::common::{ECHO, Echo, NETDP, status};
use crate::proxy::Proxy;
use anyhow::{Context as _, Result};
use serde_json::Value;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;
use testbed::{Agent, AgentOptions, ApiServer, Bed, Host, WorkDir, wait_for};

/// The node's name in Kubernetes.
pub const NODE: &str = "node-a";

/// How long the agent may take to come back to an API that is well again: its longest pause is
/// 10 s, and the machine is busy with other tests.
pub const RECOVERY: Duration = Duration::from_secs(50);

/// Where the agent serves probes.
pub const PROBES: &str = "127.0.0.1:10268";

/// The neighbour is masqueraded.
pub const EVERYTHING: &str = "nonMasqueradeCIDRs:\n- 172.16.0.0/16\n";

/// The neighbour is left alone.
pub const NOT_THE_NEIGHBOUR: &str = "nonMasqueradeCIDRs:\n- 172.16.0.0/16\n- 10.1.0.0/16\n";

/// What the manifests let the agent do.
pub const RBAC: &str = include_str!("../../../deploy/kustomize/base/rbac.yaml");

/// The node's pod, and all that is around it.
pub struct Cluster {
    pub api: ApiServer,
    pub bed: Bed,
    pub near: Host,
    pub dir: WorkDir,
    _echo: Echo,
}

impl Cluster {
    /// With the manifests' RBAC, and this node.
    pub fn start() -> Result<Self> {
        let cluster = Self::bare()?;
        cluster.api.apply(&account())?;
        cluster.api.apply(RBAC)?;
        cluster.add_node()?;
        Ok(cluster)
    }

    /// With nothing in it.
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

    /// Registers the node, as the kubelet does.
    pub fn add_node(&self) -> Result<()> {
        self.api.apply(&format!(
            "apiVersion: v1\nkind: Node\nmetadata: {{name: {NODE}}}\nspec: {{podCIDR: 172.16.0.0/24}}\n"
        ))?;
        Ok(())
    }

    /// A kubeconfig of the agent's ServiceAccount.
    pub fn kubeconfig(&self) -> Result<PathBuf> {
        let token = self.api.token("kube-system", "netdp")?;
        self.api.write_kubeconfig("agent", &self.api.url(), &token)
    }

    /// The same, by way of a proxy.
    pub fn kubeconfig_of(&self, proxy: &Proxy) -> Result<PathBuf> {
        self.api.write_kubeconfig("proxied", &proxy.url(), "none")
    }

    /// How an agent is started that follows the API only.
    pub fn options(&self, kubeconfig: &std::path::Path) -> AgentOptions {
        AgentOptions::new(NETDP)
            .config(&self.dir.path().join("no-such-file"))
            .arg("--kube=on")
            .arg("--kubeconfig")
            .arg(kubeconfig)
            .arg(format!("--node-name={NODE}"))
            .arg(format!("--http-listen={PROBES}"))
    }

    /// An agent that is in force.
    pub fn agent(&self) -> Result<Agent> {
        Agent::start(&self.bed.node, self.options(&self.kubeconfig()?))
    }

    /// Writes a key of a ConfigMap, and labels.
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

    /// Whether the neighbour sees the node's address.
    pub fn is_masqueraded(&self) -> Result<bool> {
        let to = (self.near.v4()?, ECHO).into();
        Ok(tcp_source(&self.bed.pods[0], to)? == IpAddr::from([10, 1, 0, 10]))
    }

    /// Waits until new connections are masqueraded, or are not.
    pub fn wait_masqueraded(&self, agent: &Agent, wanted: bool) -> Result<()> {
        wait_for(RECOVERY, &format!("masqueraded: {wanted}"), || {
            self.is_masqueraded().is_ok_and(|is| is == wanted)
        })
        .with_context(|| format!("the agent wrote:\n{}", agent.log()))
    }

    /// Asks the agent's HTTP server: the code and the text.
    pub fn probe(&self, path: &str) -> Result<(String, String)> {
        let url = format!("http://{PROBES}{path}");
        let answer = ["curl", "-s", "-m", "10", "-w", "\n%{http_code}", &url];
        let answer = self.bed.node.run(&answer)?;
        let (text, code) = answer.rsplit_once('\n').context("no code")?;
        Ok((code.to_owned(), text.to_owned()))
    }

    /// Waits until `/readyz` has this code and these words.
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

    /// What kubectl prints as JSON.
    pub fn json(&self, arguments: &[&str]) -> Result<Value> {
        let text = self.api.kubectl(&[arguments, &["-o", "json"]].concat())?;
        Ok(serde_json::from_str(&text)?)
    }
}

/// The agent's ServiceAccount.
pub fn account() -> String {
    "apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: netdp, namespace: kube-system}\n".into()
}

/// Waits until the status says so.
pub fn wait_status(agent: &Agent, what: &str, wanted: impl Fn(&Value) -> bool) -> Result<()> {
    let mut seen = Value::Null;
    wait_for(RECOVERY, what, || {
        seen = status(agent).map_or(Value::Null, |status| status["report"].clone());
        wanted(&seen)
    })
    .with_context(|| format!("the report is {seen:#}\nthe agent wrote:\n{}", agent.log()))
}
