//! `autoNonMasquerade` on a node, where the list is empty or does not have the pods' networks: what
//! Azure/AKS#2076 and kubernetes-sigs/ip-masq-agent#65 report of ip-masq-agent.

use crate::common::clients::{tcp_source, udp_source};
use crate::common::{ECHO, Echo, nft, start_agent, status};
use anyhow::{Result, ensure};
use std::net::{IpAddr, SocketAddr};
use testbed::{Bed, ConfigVolume, EchoClient, Host};

/// Port of the Service on the node, which is translated to the pod's.
const NODE_PORT: u16 = 30_080;

/// A node, a second one with a pod, and a client beyond the router.
struct World {
    bed: Bed,
    _other: Host,
    client: Host,
    _echoes: Vec<Echo>,
}

impl World {
    fn new() -> Result<Self> {
        let bed = Bed::builder()
            .uplink("eth0", &["10.1.0.10/16"])
            .pods(1, &["172.16.0.0/24"])
            .build()?;
        let mut other = bed.neighbour(0, &["10.1.0.20/16"])?;
        other.ip("address add 172.16.1.2/32 dev lo")?;
        other.addresses.push("172.16.1.2/32".parse()?);
        bed.node.ip("route add 172.16.1.0/24 via 10.1.0.20")?;
        let client = bed.server(0, &["203.0.113.9/24"])?;
        nft(
            &bed.node,
            &format!(
                "table ip proxy {{ chain prerouting {{ type nat hook prerouting priority -100; \
                 iifname eth0 tcp dport {NODE_PORT} dnat to 172.16.0.2:{ECHO}; }}; }}"
            ),
        )?;
        let mut echoes = vec![Echo::start(&bed.pods[0])?, Echo::start(&client)?];
        echoes.push(Echo::start(&other)?);
        Ok(Self {
            bed,
            _other: other,
            client,
            _echoes: echoes,
        })
    }

    /// Returns the source that the pod on the other node sees of this node's pod, in TCP and UDP.
    fn pod_to_pod(&self) -> Result<[IpAddr; 2]> {
        let to: SocketAddr = ([172, 16, 1, 2], ECHO).into();
        let pod = &self.bed.pods[0];
        Ok([tcp_source(pod, to)?, udp_source(pod, to)?])
    }

    /// Returns the source that the pod sees of a client of the Service.
    fn client_to_service(&self) -> Result<IpAddr> {
        let to: SocketAddr = ([10, 1, 0, 10], NODE_PORT).into();
        let mut connection = EchoClient::connect(&self.client, to, crate::common::SOON)?;
        Ok(connection.ask()?.ip())
    }

    /// Returns the source that the client's server sees of the pod.
    fn pod_to_outside(&self) -> Result<IpAddr> {
        tcp_source(&self.bed.pods[0], (self.client.v4()?, ECHO).into())
    }
}

fn kept_with(mode: &str) -> Result<()> {
    let world = World::new()?;
    let node = IpAddr::from([10, 1, 0, 10]);
    let pod = IpAddr::from([172, 16, 0, 2]);
    let client = IpAddr::from(world.client.v4()?);
    let empty = ConfigVolume::new("nonMasqueradeCIDRs: []\n")?;
    let arguments = [mode, "--kube=off", "--pod-cidr=172.16.0.0/16"];
    let agent = start_agent(&world.bed.node, &empty, &arguments)?;
    ensure!(world.pod_to_pod()? == [node; 2], "{}", agent.log());
    drop(agent);

    let auto = ConfigVolume::new("nonMasqueradeCIDRs: []\nautoNonMasquerade: [pods, services]\n")?;
    let mut agent = start_agent(&world.bed.node, &auto, &arguments)?;
    ensure!(world.pod_to_pod()? == [pod; 2], "{}", agent.log());
    ensure!(world.client_to_service()? == client, "{}", agent.log());
    ensure!(world.pod_to_outside()? == node, "{}", agent.log());
    let rules = status(&agent)?["report"]["config"]["rules"].clone();
    let rules = rules.as_array().cloned().unwrap_or_default();
    let rule = rules.iter().find(|rule| rule["prefix"] == "172.16.0.0/16");
    ensure!(
        rule.is_some_and(|rule| rule["origin"] == "auto: pods (--pod-cidr)"),
        "{rules:?}"
    );
    let words = "services has no effect, because the Kubernetes API is not followed (--kube); \
                 --service-cidr names them";
    ensure!(agent.log().contains(words), "{}", agent.log());
    if mode == "--mode=ebpf" {
        // The chains have the networks, too.
        agent.stop()?;
        agent.netdp(&["detach", "--to-iptables"])?;
        ensure!(world.pod_to_pod()? == [pod; 2], "by the chains");
        ensure!(world.pod_to_outside()? == node, "by the chains");
    }
    Ok(())
}

#[test]
fn an_empty_list_leaves_pods_and_clients_their_addresses() -> Result<()> {
    kept_with("--mode=ebpf")
}

#[test]
fn in_iptables_mode_too() -> Result<()> {
    kept_with("--mode=iptables")
}
