//! Common parts of the scenes: the cluster, two pods, and the display of commands and their output.

use crate::demo::narrate;
use anyhow::{Context as _, Result, ensure};
use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;
use testbed::migration::{Load, Tally};
use testbed::{Host, output, wait_some};
use xtask::cluster::{Cluster, NODE_IP};

/// Timeout for any operation in the cluster.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Maximum number of output lines shown for a command.
const LINES: usize = 14;

/// Pods and the node's network are bypassed.
pub const CONFIG: &str = "\
nonMasqueradeCIDRs:
- 172.16.0.0/16
- 10.1.0.0/16
";

pub struct Stage {
    pub cluster: Cluster,
    pub pods: [Host; 2],
    pub node: IpAddr,
    /// The program that contains Helm and Kustomize: this one.
    pub xtask: PathBuf,
    netdp: PathBuf,
}

impl Stage {
    pub fn new(cluster: Cluster, netdp: PathBuf) -> Result<Self> {
        fs::write(cluster.dir().join("config"), CONFIG)?;
        Ok(Self {
            pods: cluster.pods(["client", "other"])?,
            cluster,
            node: NODE_IP.parse()?,
            xtask: std::env::current_exe().context("where this program is")?,
            netdp,
        })
    }

    /// Shows a kubectl command and its output.
    pub fn kubectl(&self, line: &str) -> Result<()> {
        narrate(&format!("$ kubectl {}", typed(line)));
        show(&self.cluster.kubectl(line)?);
        Ok(())
    }

    /// Shows a kubectl command, repeated until its output contains `wanted`. Returns the output.
    pub fn kubectl_until(&self, line: &str, wanted: &str) -> Result<String> {
        narrate(&format!("$ kubectl {line}"));
        let what = format!("{wanted:?} from kubectl {line}");
        let text = wait_some(PATIENCE, &what, || {
            let text = self.cluster.kubectl(line).ok()?;
            text.contains(wanted).then_some(text)
        })?;
        show(&text);
        Ok(text)
    }

    /// Shows the command with which a user creates the ConfigMap, and creates it.
    pub fn create_config_map(&self) -> Result<()> {
        narrate("$ kubectl create configmap ip-masq-agent --from-file=config -n kube-system");
        let file = self.cluster.dir().join("config");
        let text = self.cluster.kubectl(&format!(
            "create configmap ip-masq-agent --from-file={} -n kube-system",
            file.display()
        ))?;
        show(&text);
        Ok(())
    }

    /// Shows a netdp command on the administrator's machine, repeated until its output contains
    /// `wanted`.
    pub fn netdp_until(&self, argument: &str, wanted: &str) -> Result<()> {
        narrate(&format!("$ netdp {argument}"));
        let text = wait_some(
            PATIENCE,
            &format!("{wanted:?} from netdp {argument}"),
            || {
                let mut netdp = self.cluster.node().command(&self.netdp);
                netdp
                    .arg(argument)
                    .env("KUBECONFIG", self.cluster.api().admin_kubeconfig());
                let text = output(&mut netdp).ok()?;
                text.contains(wanted).then_some(text)
            },
        )?;
        show(&text);
        Ok(())
    }

    /// Starts connections from both pods to the peered network; the servers must see the node's
    /// address.
    pub fn load(&self) -> Result<Load> {
        Load::start(&self.pods, &[self.cluster.peered.echo()], &[self.node])
    }

    /// Uninstalls netdp as documented.
    pub fn uninstall(&self) -> Result<()> {
        let patch = "[{\"op\":\"add\",\"path\":\"/spec/template/spec/containers/0/args/-\",\
                     \"value\":\"--on-exit=detach\"}]";
        self.kubectl(&format!(
            "-n kube-system patch daemonset netdp --type json --patch {patch}"
        ))?;
        self.cluster.wait_rollout("netdp")?;
        narrate("$ helm uninstall netdp --namespace kube-system");
        self.cluster.uninstall(&self.xtask)?;
        self.kubectl("-n kube-system delete configmap ip-masq-agent")
    }
}

/// Shows the counts of the load, which must be free of losses.
pub fn show_load(tally: &Tally) -> Result<()> {
    let kinds = tally.kinds();
    let answers: usize = kinds.iter().map(|(.., answers, _)| answers).sum();
    let (opened, lost) = tally.connections();
    narrate(&format!(
        "\n{tally}\n{answers} requests on {opened} connections, {lost} failed."
    ));
    ensure!(lost == 0, "connections were lost");
    Ok(())
}

/// Returns a command line as it is typed in a shell.
fn typed(line: &str) -> String {
    let quoted = |word: &str| match word.contains(['[', '{']) {
        true => format!("'{word}'"),
        false => word.to_owned(),
    };
    line.split(' ').map(quoted).collect::<Vec<_>>().join(" ")
}

/// Shows the output of a command; of a long one, the last lines.
pub fn show(text: &str) {
    let lines: Vec<&str> = text.lines().collect();
    let from = lines.len().saturating_sub(LINES);
    if from > 0 {
        narrate("   …");
    }
    for line in &lines[from..] {
        narrate(&format!("   {line}"));
    }
}
