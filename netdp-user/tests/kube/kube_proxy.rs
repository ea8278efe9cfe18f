//! netdp beside a real kube-proxy in iptables mode, with a real API server.

use crate::common::clients::{Tcp, Udp, any};
use crate::common::{ECHO, Echo, POLICY_V4, World, flows, mappings};
use anyhow::{Context as _, Result, ensure};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use testbed::{ApiServer, Netns, Running, ensure_tracked, kube_programs, wait_for};

/// Timeout for kube-proxy to write its rules on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Returns a Service for TCP and UDP whose only endpoint is `backend`.
fn service(name: &str, cluster_ip: &str, node_port: u16, policy: &str, backend: IpAddr) -> String {
    let node = if backend.to_string().starts_with("172.16.") {
        "nodeName: node-a"
    } else {
        ""
    };
    format!(
        "apiVersion: v1
kind: Service
metadata: {{name: {name}, namespace: default}}
spec:
  type: NodePort
  clusterIP: {cluster_ip}
  externalTrafficPolicy: {policy}
  ports:
  - {{name: t, protocol: TCP, port: 80, targetPort: {ECHO}, nodePort: {node_port}}}
  - {{name: u, protocol: UDP, port: 80, targetPort: {ECHO}, nodePort: {node_port}}}
---
apiVersion: v1
kind: Endpoints
metadata: {{name: {name}, namespace: default}}
subsets:
- addresses: [{{ip: {backend}, {node}}}]
  ports:
  - {{name: t, protocol: TCP, port: {ECHO}}}
  - {{name: u, protocol: UDP, port: {ECHO}}}
---
"
    )
}

/// Starts kube-proxy as kubeadm configures it, without its conntrack limits, which would apply to
/// the whole machine.
fn kube_proxy(node: &Netns, api: &ApiServer) -> Result<Running> {
    let mut command = node.command(kube_programs::find("kube-proxy")?);
    command
        .arg("--kubeconfig")
        .arg(api.admin_kubeconfig())
        .args(["--hostname-override=node-a", "--bind-address=10.1.0.10"])
        .args(["--proxy-mode=iptables", "--cluster-cidr=172.16.0.0/16"])
        .args(["--healthz-bind-address=127.0.0.1:10256"])
        .args(["--metrics-bind-address=127.0.0.1:10249"])
        .args(["--conntrack-max-per-core=0", "--conntrack-min=0"])
        .args(["--conntrack-tcp-timeout-established=0"])
        .args(["--conntrack-tcp-timeout-close-wait=0"])
        .args(["--iptables-min-sync-period=0s"])
        // The test writes Endpoints: no controller creates EndpointSlices.
        .arg("--feature-gates=EndpointSliceProxying=false");
    Running::start(command)
}

/// Sends several TCP and UDP requests and checks the source of each.
fn asked(from: &Netns, to: &str, seen_as: [u8; 4]) -> Result<()> {
    let (to, seen_as): (SocketAddr, _) = (to.parse()?, IpAddr::from(seen_as));
    let mut tcp = Tcp::connect(from, any(to), to)?;
    let mut udp = Udp::connect(from, any(to), to)?;
    for _ in 0..3 {
        let seen = [tcp.ask()?.ip(), udp.ask()?.ip()];
        ensure!(seen == [seen_as; 2], "{to} saw {seen:?}, not {seen_as}");
    }
    Ok(())
}

#[test]
fn services_work_beside_kube_proxy() -> Result<()> {
    let world = World::with(POLICY_V4, &[])?;
    let (node, pods, far) = (&world.bed.node, &world.bed.pods, &world.far);
    let _echoes = [Echo::start(&pods[1])?, Echo::start(far)?];
    // Accounts for the continuous traffic between kube-proxy, the API server and etcd.
    ensure_tracked(node, 4096)?;
    let api = ApiServer::start(node)?;
    let inside = pods[1].v4()?.into();
    api.apply(
        &[
            "apiVersion: v1\nkind: Node\nmetadata: {name: node-a}\n---\n".to_owned(),
            service("cluster", "10.96.0.10", 30080, "Cluster", inside),
            service("local", "10.96.0.11", 30081, "Local", inside),
            service("outside", "10.96.0.12", 30082, "Cluster", far.v4()?.into()),
        ]
        .concat(),
    )?;
    let proxy = kube_proxy(node, &api)?;
    // The last chain that is written for a service is that of its endpoint.
    wait_for(PATIENCE, "kube-proxy's rules", || {
        let rules = node
            .run(&["iptables-save", "-t", "nat"])
            .unwrap_or_default();
        let to = |backend: IpAddr| rules.contains(&format!("--to-destination {backend}:{ECHO}"));
        to(inside) && far.v4().is_ok_and(|far| to(far.into()))
    })
    .with_context(|| format!("kube-proxy wrote:{}", proxy.written()))?;

    // From outside to a pod: seen with the node's internal address, or with the client's own.
    asked(far, "10.1.0.10:30080", [172, 16, 0, 1])?;
    asked(far, "10.1.0.10:30081", far.v4()?.octets())?;
    // From a pod to a pod.
    asked(&pods[0], "10.96.0.10:80", pods[0].v4()?.octets())?;
    asked(&pods[0], "10.96.0.11:80", pods[0].v4()?.octets())?;
    ensure!(
        mappings(&world.agent)? == 0,
        "netdp took part in what is kube-proxy's"
    );
    // From a pod to a backend beyond the uplink: netdp translates after kube-proxy.
    asked(&pods[0], "10.96.0.12:80", [10, 1, 0, 10])?;
    ensure!(mappings(&world.agent)? == 2);
    // `netdp explain` follows kube-proxy's rules.
    for (to, expected) in [
        (
            "10.96.0.12:80",
            "10.96.0.12:80 → 10.2.0.1:7 sees 10.1.0.10, by eth0",
        ),
        (
            "10.96.0.10:80",
            "10.96.0.10:80 → 172.16.0.3:7 sees the pod's 172.16.0.2",
        ),
        (
            "10.1.0.10:30082",
            "10.1.0.10:30082 → 10.2.0.1:7 sees 10.1.0.10, by eth0: netfilter translates it first, by a rule of kube-proxy",
        ),
    ] {
        let from = pods[0].v4()?.to_string();
        let explained = world.agent.netdp(&["explain", "--from", &from, to])?;
        ensure!(explained.starts_with(expected), "{explained}");
        ensure!(explained.contains("kube-proxy sends it to its only endpoint"));
    }
    // From outside to an outside backend: translated by kube-proxy alone; to netdp it is the node's
    // own.
    asked(&world.near, "10.1.0.10:30082", [10, 1, 0, 10])?;
    let pod = pods[0].v4()?.to_string();
    let mapped = flows(&world.agent)?;
    ensure!(
        mapped.len() == 2 && mapped.iter().all(|flow| flow["source"] == pod),
        "{mapped:#?}"
    );
    // From a pod directly to the backend, before and after a restart of kube-proxy.
    asked(&pods[0], "10.2.0.1:7", [10, 1, 0, 10])?;
    drop(proxy);
    let _proxy = kube_proxy(node, &api)?;
    asked(&pods[0], "10.2.0.1:7", [10, 1, 0, 10])?;
    asked(&pods[0], "10.96.0.12:80", [10, 1, 0, 10])
}
