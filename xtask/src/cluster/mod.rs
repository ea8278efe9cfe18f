//! A Kubernetes cluster of one node with a real kubelet, containerd, runc, CNI plugins, kube-proxy
//! and control plane.
//!
//! ```text
//!  pods ─ cni0  node-a  eth0 ─ lan  router ─┬─ near 10.1.0.20 (has a route to pods)
//!         172.16.0.0/24  10.1.0.10          └─ peered 10.2.0.1 (has a route to the node's network)
//! ```

mod daemons;
mod helm;
mod machine;
mod outside;
mod pods;
mod remains;
mod upstream;

use crate::image::{TOOLS, tools};
use anyhow::{Context as _, Result};
use machine::Machine;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;
use testbed::{
    ApiServer, Audience, Bed, Netns, NodeToken, Running, ensure_tracked, kube_programs, output,
    wait_for,
};

pub use daemons::{NODE, NODE_IP, PODS};
pub use outside::Outside;
pub use remains::{KernelObjects, Remains};
pub use upstream::{custom_iptables, ip_masq_agent, ip_masq_agent_rules};

/// Timeout for any operation in the cluster, on a machine busy with other tests. Idle ones take
/// seconds.
const PATIENCE: Duration = Duration::from_secs(180);

/// Token of the kubelet.
const KUBELET: &str = "netdp-testbed-kubelet";

/// The cluster. Dropping it ends everything in it.
#[derive(Debug)]
pub struct Cluster {
    /// A server with a route to the node's network and none to pods.
    pub peered: Outside,
    /// A server in the node's own network with a route to pods through the node.
    pub near: Outside,
    // Dropped in this order: each daemon before those that it depends on.
    kubelet: Running,
    _proxy: Running,
    plane: [Running; 2],
    containerd: Running,
    machine: Machine,
    kubeconfig: PathBuf,
    api: ApiServer,
    bed: Bed,
}

impl Cluster {
    /// Starts the cluster: the node is ready and has these images (OCI image layouts) besides that
    /// of the test pods.
    pub fn start(images: &[&Path]) -> Result<Self> {
        let bed = Bed::builder()
            .uplink("eth0", &[&format!("{NODE_IP}/16")])
            .pods(0, &[PODS])
            .build()?;
        // The load makes some hundred connections per second, each tracked for two minutes.
        ensure_tracked(&bed.node, 65536)?;
        let peered = Outside::serve(bed.server(0, &["10.2.0.1/16"])?)?;
        let near = Outside::serve(bed.neighbour(0, &["10.1.0.20/16"])?)?;
        let machine = Machine::boot(&bed.node, NODE)?;
        daemons::write_config(&machine)?;
        let containerd = daemons::containerd(&machine)?;
        let audience = Audience::Cluster(
            NODE_IP.parse()?,
            vec![NodeToken {
                node: NODE.into(),
                token: KUBELET.into(),
            }],
        );
        let api = std::thread::scope(|scope| {
            let api = scope.spawn(|| ApiServer::start_for(&bed.node, audience));
            import_all(&machine, images)
                .with_context(|| format!("containerd wrote:{}", containerd.written()))?;
            match api.join() {
                Ok(api) => api,
                Err(panic) => std::panic::resume_unwind(panic),
            }
        })?;
        let kubeconfig = api.write_kubeconfig("kubelet", &api.url(), KUBELET)?;
        let cluster = Self {
            peered,
            near,
            kubelet: daemons::kubelet(&machine, &kubeconfig)?,
            _proxy: daemons::kube_proxy(&machine, &api)?,
            plane: daemons::control_plane(&bed.node, &machine, &api)?,
            containerd,
            machine,
            kubeconfig,
            api,
            bed,
        };
        cluster.wait_node_ready()?;
        Ok(cluster)
    }

    /// Returns the API server.
    #[must_use]
    pub fn api(&self) -> &ApiServer {
        &self.api
    }

    /// Returns the node's network namespace.
    #[must_use]
    pub fn node(&self) -> &Netns {
        &self.bed.node
    }

    /// Runs kubectl as the administrator; `line` is split at white space.
    pub fn kubectl(&self, line: &str) -> Result<String> {
        let words: Vec<&str> = line.split_whitespace().collect();
        self.api.kubectl(&words)
    }

    /// Runs a program on the node, as in a root shell there, and returns its standard output;
    /// `line` is split at white space.
    pub fn on_node(&self, line: &str) -> Result<String> {
        let mut words = line.split_whitespace();
        let program = words.next().context("an empty command line")?;
        output(self.machine.command(program).args(words))
    }

    /// Returns the path on the host of a path on the node.
    #[must_use]
    pub fn path(&self, on_node: &str) -> PathBuf {
        self.machine.path(on_node)
    }

    /// Waits until the roll-out of a DaemonSet in `kube-system` is complete on every node.
    pub fn wait_rollout(&self, daemonset: &str) -> Result<()> {
        let wait = format!(
            "-n kube-system rollout status daemonset/{daemonset} --timeout={}s",
            PATIENCE.as_secs()
        );
        self.kubectl(&wait)
            .map(drop)
            .with_context(|| self.diagnostics_of(daemonset))
    }

    /// Kills the kubelet and starts it again; returns once it manages netdp's pod.
    pub fn restart_kubelet(&mut self) -> Result<()> {
        self.kubelet.kill9()?;
        self.kubelet = daemons::kubelet(&self.machine, &self.kubeconfig)?;
        self.wait_node_ready()?;
        self.wait_exec()
    }

    /// Kills containerd, which leaves containers running, and starts it again; returns once the
    /// kubelet reaches netdp's container through it.
    pub fn restart_containerd(&mut self) -> Result<()> {
        self.containerd.kill9()?;
        self.containerd = daemons::containerd(&self.machine)?;
        wait_containerd(&self.machine)
            .with_context(|| format!("containerd wrote:{}", self.containerd.written()))?;
        self.wait_node_ready()?;
        self.wait_exec()
    }

    /// Waits until the kubelet and containerd can run a program in netdp's container.
    fn wait_exec(&self) -> Result<()> {
        let exec = "-n kube-system exec daemonset/netdp -- netdp status";
        wait_for(PATIENCE, "kubectl exec", || self.kubectl(exec).is_ok())
            .with_context(|| self.diagnostics_of("netdp"))
    }

    /// Evaluates a jsonpath on netdp's pod, for example `.metadata.name`.
    pub fn agent(&self, path: &str) -> Result<String> {
        self.kubectl(&format!(
            "-n kube-system get pods -l app.kubernetes.io/name=netdp -o \
             jsonpath={{.items[0]{path}}}"
        ))
    }

    /// Kills netdp's container as a crash would; returns once the kubelet has started a new one
    /// that is ready.
    pub fn kill_agent(&self) -> Result<()> {
        let id = self.agent(".status.containerStatuses[0].containerID")?;
        let id = id.strip_prefix("containerd://").context(id.clone())?;
        self.on_node(&format!("ctr -n k8s.io task kill --signal SIGKILL {id}"))?;
        wait_for(PATIENCE, "another container of netdp's", || {
            let ready = self.agent(".status.containerStatuses[0].ready");
            let now = self.agent(".status.containerStatuses[0].containerID");
            ready.is_ok_and(|it| it == "true") && now.is_ok_and(|now| !now.ends_with(id))
        })
        .with_context(|| self.diagnostics_of("netdp"))
    }

    /// Returns a directory for the cluster's files, which has the same path on the node.
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.machine.dir()
    }

    /// Imports an image (OCI image layout) on the node.
    pub fn import(&self, image: &Path) -> Result<()> {
        import(&self.machine, image)
    }

    /// Waits until the kubelet answers and has reported that the node is ready.
    fn wait_node_ready(&self) -> Result<()> {
        const HEALTH: [&str; 4] = ["curl", "-sfm", "5", "http://127.0.0.1:10248/healthz"];
        let ready = "get nodes -o \
                     jsonpath={.items[*].status.conditions[?(@.type==\"Ready\")].status}";
        wait_for(PATIENCE, "the node to be ready", || {
            self.bed.node.run(&HEALTH).is_ok() && self.kubectl(ready).is_ok_and(|it| it == "True")
        })
        .with_context(|| {
            let [manager, scheduler] = &self.plane;
            format!(
                "the kubelet wrote:{}\nkube-controller-manager wrote:{}\nkube-scheduler wrote:{}",
                self.kubelet.written(),
                manager.written(),
                scheduler.written()
            )
        })
    }

    /// Returns diagnostics of a DaemonSet whose roll-out is incomplete.
    fn diagnostics_of(&self, daemonset: &str) -> String {
        [
            "get pods -o wide".to_owned(),
            "get events".to_owned(),
            format!("logs daemonset/{daemonset} --tail=50"),
        ]
        .map(|ask| {
            let output = self.kubectl(&format!("-n kube-system {ask}"));
            format!(
                "kubectl {ask}:\n{}",
                output.unwrap_or_else(|err| format!("{err:#}"))
            )
        })
        .join("\n")
    }
}

/// Waits until containerd responds.
fn wait_containerd(machine: &Machine) -> Result<()> {
    wait_for(PATIENCE, "containerd to answer", || {
        output(machine.command("ctr").arg("version")).is_ok()
    })
}

fn import(machine: &Machine, image: &Path) -> Result<()> {
    let mut ctr = machine.command("ctr");
    ctr.args(["--namespace", "k8s.io", "images", "import"])
        .arg(image);
    output(&mut ctr).map(drop)
}

/// Imports the image of test pods and of their sandboxes, and `images`.
fn import_all(machine: &Machine, images: &[&Path]) -> Result<()> {
    wait_containerd(machine)?;
    let own = machine.dir().join("tools.tar");
    fs::write(&own, tools(TOOLS, &kube_programs::find("busybox")?)?)?;
    for image in images.iter().copied().chain([own.as_path()]) {
        import(machine, image)?;
    }
    Ok(())
}
