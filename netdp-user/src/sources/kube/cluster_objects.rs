//! Objects with networks of the cluster, reduced to what is read of them: a Node has up to hundreds
//! of image names, and there are thousands of Nodes.

use ipnet::IpNet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Resource;
use kube::core::ClusterResourceScope;
use serde::Deserialize;
use std::borrow::Cow;
use std::net::IpAddr;

/// A Node: its pod CIDRs and addresses.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct ClusterNode {
    metadata: ObjectMeta,
    spec: NodeSpec,
    status: NodeStatus,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct NodeSpec {
    /// The only pod CIDR of API servers before dual-stack.
    #[serde(rename = "podCIDR")]
    pod_cidr: Option<String>,
    #[serde(rename = "podCIDRs")]
    pod_cidrs: Vec<String>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct NodeStatus {
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
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub(super) struct ServiceCidr {
    metadata: ObjectMeta,
    spec: ServiceCidrSpec,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
struct ServiceCidrSpec {
    cidrs: Vec<String>,
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

impl Resource for ClusterNode {
    type DynamicType = ();
    type Scope = ClusterResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        "Node".into()
    }

    fn group((): &()) -> Cow<'_, str> {
        "".into()
    }

    fn version((): &()) -> Cow<'_, str> {
        "v1".into()
    }

    fn plural((): &()) -> Cow<'_, str> {
        "nodes".into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

/// The version is that of the API server at hand.
impl Resource for ServiceCidr {
    type DynamicType = &'static str;
    type Scope = ClusterResourceScope;

    fn kind(_: &Self::DynamicType) -> Cow<'_, str> {
        "ServiceCIDR".into()
    }

    fn group(_: &Self::DynamicType) -> Cow<'_, str> {
        "networking.k8s.io".into()
    }

    fn version(version: &Self::DynamicType) -> Cow<'_, str> {
        (*version).into()
    }

    fn plural(_: &Self::DynamicType) -> Cow<'_, str> {
        "servicecidrs".into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}
