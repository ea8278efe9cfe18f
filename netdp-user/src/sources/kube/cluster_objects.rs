//! Objects with networks of the cluster, reduced to what is read of them: a Node has up to hundreds
//! of image names, and there are thousands of Nodes.

use super::object::{Kind, Object};
use ipnet::IpNet;
use kube::core::ClusterResourceScope;
use serde::Deserialize;
use std::net::IpAddr;

/// A Node: its pod CIDRs and addresses.
pub(super) type ClusterNode = Object<NodeSpec, NodeStatus>;

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(super) struct NodeSpec {
    /// The only pod CIDR of API servers before dual-stack.
    #[serde(rename = "podCIDR")]
    pod_cidr: Option<String>,
    #[serde(rename = "podCIDRs")]
    pod_cidrs: Vec<String>,
}

impl Kind for NodeSpec {
    type Version = ();
    type Scope = ClusterResourceScope;
    const NAME: &'static str = "Node";
    const PLURAL: &'static str = "nodes";
    const GROUP: &'static str = "";

    fn version((): &()) -> &'static str {
        "v1"
    }
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct NodeStatus {
    addresses: Vec<NodeAddress>,
}

#[derive(Debug, Clone, Deserialize)]
struct NodeAddress {
    #[serde(rename = "type")]
    kind: String,
    address: String,
}

impl ClusterNode {
    /// Returns the pod CIDRs, sorted. What is no CIDR is left out.
    pub(super) fn pod_cidrs(&self) -> Vec<IpNet> {
        let spec = &self.spec;
        sorted(spec.pod_cidrs.iter().chain(&spec.pod_cidr))
    }

    /// Returns the addresses of type InternalIP, sorted.
    pub(super) fn addresses(&self) -> Vec<IpAddr> {
        let internal = self.status.addresses.iter();
        let internal = internal.filter(|address| address.kind == "InternalIP");
        let mut addresses: Vec<_> = internal
            .filter_map(|address| address.address.parse().ok())
            .collect();
        addresses.sort_unstable();
        addresses.dedup();
        addresses
    }
}

/// A ServiceCIDR.
pub(super) type ServiceCidr = Object<ServiceCidrSpec>;

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct ServiceCidrSpec {
    cidrs: Vec<String>,
}

impl Kind for ServiceCidrSpec {
    /// The version that the API server has.
    type Version = &'static str;
    type Scope = ClusterResourceScope;
    const NAME: &'static str = "ServiceCIDR";
    const PLURAL: &'static str = "servicecidrs";
    const GROUP: &'static str = "networking.k8s.io";

    fn version(version: &&'static str) -> &'static str {
        version
    }
}

impl ServiceCidr {
    /// Returns the networks, sorted. What is no CIDR is left out.
    pub(super) fn cidrs(&self) -> Vec<IpNet> {
        sorted(self.spec.cidrs.iter())
    }
}

/// The shortest prefixes that are believed to be networks of a cluster, of IPv4 and IPv6: one Node with
/// a wrong CIDR must not bypass the Internet on all nodes.
const SHORTEST: (u8, u8) = (8, 16);

/// Parses networks, and sorts them without duplicates. Too short ones are left out.
fn sorted<'a>(texts: impl Iterator<Item = &'a String>) -> Vec<IpNet> {
    let nets = texts.filter_map(|text| text.parse().ok());
    let is_believed = |net: &IpNet| match net {
        IpNet::V4(net) => net.prefix_len() >= SHORTEST.0,
        IpNet::V6(net) => net.prefix_len() >= SHORTEST.1,
    };
    let mut nets: Vec<IpNet> = nets
        .map(|net: IpNet| net.trunc())
        .filter(is_believed)
        .collect();
    nets.sort_unstable();
    nets.dedup();
    nets
}
