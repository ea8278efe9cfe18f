//! Daemons of the node and their configuration.

use super::machine::Machine;
use crate::image::TOOLS;
use anyhow::{Context as _, Result};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use testbed::{ApiServer, Netns, Running, kube_programs};

/// Name of the node.
pub const NODE: &str = "node-a";

/// Address of the node.
pub const NODE_IP: &str = "10.1.0.10";

/// Pod CIDR of the node.
pub const PODS: &str = "172.16.0.0/24";

/// Pod CIDR of the cluster, for any number of nodes.
const ALL_PODS: &str = "172.16.0.0/16";

/// containerd's socket on the machine.
pub const SOCKET: &str = "/run/containerd/containerd.sock";

/// Starts the control plane except the API server, in the node's network.
pub fn control_plane(node: &Netns, machine: &Machine, api: &ApiServer) -> Result<[Running; 2]> {
    let mut manager = program(node, api, "kube-controller-manager")?;
    manager
        .arg(format!(
            "--service-account-private-key-file={}",
            api.accounts_key().display()
        ))
        .arg(format!("--root-ca-file={}", api.ca().display()))
        .args(["--allocate-node-cidrs=true", "--bind-address=127.0.0.1"])
        .arg(format!("--cluster-cidr={ALL_PODS}"))
        .arg("--service-cluster-ip-range=10.96.0.0/16")
        // It creates the directory; the default one is the host's.
        .arg(format!(
            "--flex-volume-plugin-dir={}",
            machine.dir().join("plugins").display()
        ));
    let mut scheduler = program(node, api, "kube-scheduler")?;
    scheduler.arg("--bind-address=127.0.0.1");
    Ok([Running::start(manager)?, Running::start(scheduler)?])
}

fn program(node: &Netns, api: &ApiServer, name: &str) -> Result<Command> {
    let mut command = node.command(kube_programs::find(name)?);
    command
        .arg(format!("--kubeconfig={}", api.admin_kubeconfig().display()))
        .arg("--leader-elect=false");
    Ok(command)
}

/// Starts kube-proxy as kubeadm configures it, without its conntrack limits, which would apply to
/// the whole host.
pub fn kube_proxy(machine: &Machine, api: &ApiServer) -> Result<Running> {
    let mut command = machine.command(kube_programs::find("kube-proxy")?);
    command
        .arg(format!("--kubeconfig={}", api.admin_kubeconfig().display()))
        .arg(format!("--hostname-override={NODE}"))
        .arg(format!("--bind-address={NODE_IP}"))
        .args(["--proxy-mode=iptables"])
        .arg(format!("--cluster-cidr={ALL_PODS}"))
        .args(["--healthz-bind-address=127.0.0.1:10256"])
        .args(["--metrics-bind-address=127.0.0.1:10249"])
        .args(["--conntrack-max-per-core=0", "--conntrack-min=0"])
        .args(["--conntrack-tcp-timeout-established=0"])
        .args(["--conntrack-tcp-timeout-close-wait=0"])
        .arg("--iptables-min-sync-period=0s");
    Running::start(command)
}

/// Starts containerd with the container network of [`write_config`].
pub fn containerd(machine: &Machine) -> Result<Running> {
    let mut command = machine.command("containerd");
    command.arg("--config").arg(config(machine, "containerd"));
    Running::start(command)
}

/// Starts the kubelet.
pub fn kubelet(machine: &Machine, kubeconfig: &Path) -> Result<Running> {
    let mut command = machine.command(kube_programs::find("kubelet")?);
    command
        .arg(format!("--kubeconfig={}", kubeconfig.display()))
        .arg(format!("--config={}", config(machine, "kubelet").display()))
        .args(["--container-runtime=remote"])
        .arg(format!("--container-runtime-endpoint=unix://{SOCKET}"))
        .arg(format!("--pod-infra-container-image={TOOLS}"))
        .arg(format!("--node-ip={NODE_IP}"))
        .arg(format!("--hostname-override={NODE}"))
        .arg("--root-dir=/var/lib/kubelet");
    Running::start(command)
}

/// Writes the configuration of containerd, its network and the kubelet.
pub fn write_config(machine: &Machine) -> Result<()> {
    let networks = machine.dir().join("networks");
    fs::create_dir_all(&networks)?;
    for (path, text) in [
        (networks.join("10-bridge.conflist"), NETWORK.to_owned()),
        (
            config(machine, "containerd"),
            containerd_config(&networks.display().to_string()),
        ),
        (config(machine, "kubelet"), kubelet_config(machine)),
    ] {
        fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
    }
    Ok(())
}

fn config(machine: &Machine, of: &str) -> PathBuf {
    machine.dir().join(of).with_extension("config")
}

/// Pods on a bridge without masquerading, which is netdp's job.
const NETWORK: &str = r#"{
  "cniVersion": "0.4.0",
  "name": "pods",
  "plugins": [
    {
      "type": "bridge",
      "bridge": "cni0",
      "isGateway": true,
      "ipMasq": false,
      "hairpinMode": true,
      "ipam": {
        "type": "host-local",
        "ranges": [[{"subnet": "172.16.0.0/24"}]],
        "routes": [{"dst": "0.0.0.0/0"}]
      }
    },
    {"type": "portmap", "capabilities": {"portMappings": true}}
  ]
}
"#;

/// Returns containerd's configuration. Machines without `CAP_SYS_RESOURCE`, such as containers,
/// cannot lower `oom_score_adj`; test machines have no `AppArmor` profile.
fn containerd_config(networks: &str) -> String {
    format!(
        r#"version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
[grpc]
address = "{SOCKET}"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{TOOLS}"
disable_apparmor = true
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "overlayfs"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
SystemdCgroup = false
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "/usr/lib/cni"
conf_dir = "{networks}"
"#
    )
}

/// Returns the kubelet's configuration. The plugin directory is one that leaves nothing on the
/// host's file systems; eviction is off, so that a full disk of the host has no effect.
fn kubelet_config(machine: &Machine) -> String {
    format!(
        "apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
authentication: {{anonymous: {{enabled: true}}, webhook: {{enabled: false}}}}
authorization: {{mode: AlwaysAllow}}
cgroupDriver: cgroupfs
cgroupRoot: /{}
failSwapOn: false
evictionHard:
  nodefs.available: 0%
  nodefs.inodesFree: 0%
  imagefs.available: 0%
  memory.available: 100Mi
imageGCHighThresholdPercent: 100
resolvConf: /dev/null
nodeStatusUpdateFrequency: 1s
volumePluginDir: /var/lib/kubelet/plugins/volume
",
        machine.cgroup()
    )
}
