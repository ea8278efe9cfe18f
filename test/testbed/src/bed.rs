//! The standard test bed: a node with uplinks, the pods behind it, and hosts beyond it.
//!
//! ```text
//!  pod0 ─┐                                   ┌─ neighbour (has a route to pods)
//!  pod1 ─┤ cni0  node  eth0 ─ lan  router0 ──┤
//!        └───────────  eth1 ─ lan  router1   └─ on_link (has none)
//!                                  └─ server (own network; no route back to pods)
//! ```
//!
//! The router has the last usable address of its network, see [`last_host`].

use super::link::veth;
use super::netns::Netns;
use anyhow::{Context as _, Result};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::Deref;

/// Bridge in a router that connects the machines of its network.
const LAN: &str = "lan";

/// Bridge in the node that connects its pods.
const CNI: &str = "cni0";

/// A machine with one interface, `eth0`.
#[derive(Debug, Clone)]
pub struct Host {
    /// Its namespace; a `Host` dereferences to it.
    pub ns: Netns,
    /// Its addresses, at most one per family.
    pub addresses: Vec<IpNet>,
}

impl Host {
    /// Returns its IPv4 address.
    pub fn v4(&self) -> Result<Ipv4Addr> {
        first_v4(&self.addresses).with_context(|| format!("{} has no IPv4", self.name()))
    }

    /// Returns its IPv6 address.
    pub fn v6(&self) -> Result<Ipv6Addr> {
        first_v6(&self.addresses).with_context(|| format!("{} has no IPv6", self.name()))
    }
}

impl Deref for Host {
    type Target = Netns;

    fn deref(&self) -> &Netns {
        &self.ns
    }
}

/// An uplink of the node, and the router of the network behind it.
#[derive(Debug, Clone)]
pub struct Uplink {
    /// Name of the interface on the node.
    pub name: String,
    /// The node's addresses on it, at most one per family.
    pub addresses: Vec<IpNet>,
    /// The router. It silently drops packets without a route, which includes packets to pods.
    pub router: Netns,
}

impl Uplink {
    /// Returns the node's IPv4 address on this uplink.
    pub fn v4(&self) -> Result<Ipv4Addr> {
        first_v4(&self.addresses).with_context(|| format!("{} has no IPv4", self.name))
    }

    /// Returns the node's IPv6 address on this uplink.
    pub fn v6(&self) -> Result<Ipv6Addr> {
        first_v6(&self.addresses).with_context(|| format!("{} has no IPv6", self.name))
    }
}

/// A node with pods and uplinks. [`Bed::server`], [`Bed::on_link`] and [`Bed::neighbour`] add hosts
/// beyond the uplinks.
#[derive(Debug)]
pub struct Bed {
    /// Namespace of the node.
    pub node: Netns,
    /// The pods, in the order of their addresses.
    pub pods: Vec<Host>,
    /// The uplinks; the default routes use the first.
    pub uplinks: Vec<Uplink>,
    pod_networks: Vec<IpNet>,
}

/// Description of a [`Bed`] to be built.
#[derive(Debug, Clone, Default)]
pub struct BedBuilder {
    uplinks: Vec<(String, Vec<String>)>,
    pods: u32,
    pod_networks: Vec<String>,
}

impl BedBuilder {
    /// Adds an uplink with these addresses of the node. The default routes of both families use the
    /// first uplink.
    #[must_use]
    pub fn uplink(mut self, name: &str, addresses: &[&str]) -> Self {
        self.uplinks.push((name.into(), owned(addresses)));
        self
    }

    /// Adds `count` pods in these networks, at most one per family: the node has the first address,
    /// the pods the following ones.
    #[must_use]
    pub fn pods(mut self, count: u32, networks: &[&str]) -> Self {
        self.pods = count;
        self.pod_networks = owned(networks);
        self
    }

    /// Creates the namespaces, links, addresses and routes.
    pub fn build(self) -> Result<Bed> {
        let node = Netns::new("node")?;
        node.forward()?;
        let mut bed = Bed {
            node,
            pods: Vec::new(),
            uplinks: Vec::new(),
            pod_networks: parse(&self.pod_networks)?,
        };
        for (name, addresses) in &self.uplinks {
            bed.add_uplink(name, parse(addresses)?)?;
        }
        bed.node.bridge(CNI)?;
        for network in bed.pod_networks.clone() {
            bed.node.address(CNI, nth_host(network, 1)?)?;
        }
        for index in 0..self.pods {
            bed.add_pod(index)?;
        }
        Ok(bed)
    }
}

impl Bed {
    /// Returns an empty description of a bed.
    #[must_use]
    pub fn builder() -> BedBuilder {
        BedBuilder::default()
    }

    /// Creates a kubelet's chains on the node, which show that the iptables backend in use is `nft`
    /// or `legacy`.
    pub fn kubelet_chain(&self, backend: &str, name: &str) -> Result<()> {
        for family in ["iptables", "ip6tables"] {
            let program = format!("{family}-{backend}");
            self.node
                .run(&[&program, "--wait", "60", "-t", "mangle", "-N", name])?;
        }
        Ok(())
    }

    /// Builds a dual-stack bed: one uplink `eth0` (10.1.0.10/16, fd00:1::10/64), and two pods
    /// (172.16.0.2 and .3, fd00:172::2 and ::3).
    pub fn dual_stack() -> Result<Self> {
        Self::builder()
            .uplink("eth0", &["10.1.0.10/16", "fd00:1::10/64"])
            .pods(2, &["172.16.0.0/24", "fd00:172::/64"])
            .build()
    }

    /// Adds a host in a network of its own behind the uplink's router. It has no route back to
    /// pods. If the uplink is not the default one, the node gets a route to the host.
    pub fn server(&self, uplink: usize, addresses: &[&str]) -> Result<Host> {
        let uplink_index = uplink;
        let uplink = self.uplink(uplink)?;
        let host = host("server", &owned(addresses))?;
        let port = format!("to-{}", self.ports(&uplink.router)?);
        veth(&uplink.router, &port, &host, "eth0")?;
        for address in &host.addresses {
            let router = last_host(*address);
            uplink.router.address(&port, router)?;
            host.address("eth0", *address)?;
            host.route(default(*address), router.addr())?;
            if uplink_index > 0 {
                let via = same_family(&uplink.addresses, *address)?;
                self.node.route(address.trunc(), last_host(via).addr())?;
            }
        }
        Ok(host)
    }

    /// Adds a host in the uplink's own network without a route to pods.
    pub fn on_link(&self, uplink: usize, addresses: &[&str]) -> Result<Host> {
        let uplink = self.uplink(uplink)?;
        let host = host("host", &owned(addresses))?;
        let port = format!("port{}", self.ports(&uplink.router)?);
        uplink.router.plug(LAN, &port, &host, "eth0")?;
        for address in &host.addresses {
            host.address("eth0", *address)?;
            host.route(default(*address), last_host(*address).addr())?;
        }
        Ok(host)
    }

    /// Adds a host in the uplink's own network with a route to pods through the node.
    pub fn neighbour(&self, uplink: usize, addresses: &[&str]) -> Result<Host> {
        let host = self.on_link(uplink, addresses)?;
        let node = &self.uplink(uplink)?.addresses;
        for network in &self.pod_networks {
            if let Ok(via) = same_family(node, *network) {
                host.route(*network, via.addr())?;
            }
        }
        Ok(host)
    }

    fn uplink(&self, index: usize) -> Result<&Uplink> {
        self.uplinks
            .get(index)
            .with_context(|| format!("the bed has no uplink {index}"))
    }

    /// Returns the number of interfaces in a namespace, which numbers the next one.
    fn ports(&self, ns: &Netns) -> Result<usize> {
        Ok(ns.ip("-o link show")?.lines().count())
    }

    fn add_uplink(&mut self, name: &str, addresses: Vec<IpNet>) -> Result<()> {
        let router = Netns::new("router")?;
        router.forward()?;
        router.blackhole_the_rest()?;
        router.bridge(LAN)?;
        router.plug(LAN, "node", &self.node, name)?;
        for address in &addresses {
            router.address(LAN, last_host(*address))?;
            self.node.address(name, *address)?;
            if self.uplinks.is_empty() {
                self.node
                    .route(default(*address), last_host(*address).addr())?;
            }
        }
        self.uplinks.push(Uplink {
            name: name.into(),
            addresses,
            router,
        });
        Ok(())
    }

    fn add_pod(&mut self, index: u32) -> Result<()> {
        let pod = Host {
            ns: Netns::new("pod")?,
            addresses: self
                .pod_networks
                .iter()
                .map(|network| nth_host(*network, index + 2))
                .collect::<Result<_>>()?,
        };
        self.node.plug(CNI, &format!("pod{index}"), &pod, "eth0")?;
        for address in &pod.addresses {
            pod.address("eth0", *address)?;
            pod.route(default(*address), nth_host(*address, 1)?.addr())?;
        }
        self.pods.push(pod);
        Ok(())
    }
}

fn host(role: &str, addresses: &[String]) -> Result<Host> {
    Ok(Host {
        ns: Netns::new(role)?,
        addresses: parse(addresses)?,
    })
}

fn owned(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

fn parse(texts: &[String]) -> Result<Vec<IpNet>> {
    texts
        .iter()
        .map(|text| {
            text.parse()
                .with_context(|| format!("{text:?} is not an address with a prefix length"))
        })
        .collect()
}

fn default(family_of: IpNet) -> IpNet {
    match family_of {
        IpNet::V4(_) => Ipv4Net::default().into(),
        IpNet::V6(_) => Ipv6Net::default().into(),
    }
}

fn same_family(among: &[IpNet], family_of: IpNet) -> Result<IpNet> {
    let same = |net: &&IpNet| net.addr().is_ipv4() == family_of.addr().is_ipv4();
    among
        .iter()
        .find(same)
        .copied()
        .with_context(|| format!("no address of the family of {family_of}"))
}

fn first_v4(among: &[IpNet]) -> Option<Ipv4Addr> {
    among.iter().find_map(|net| match net.addr() {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(_) => None,
    })
}

fn first_v6(among: &[IpNet]) -> Option<Ipv6Addr> {
    among.iter().find_map(|net| match net.addr() {
        IpAddr::V6(address) => Some(address),
        IpAddr::V4(_) => None,
    })
}

/// Returns the last usable address of a network, by convention the router's: 10.1.255.254 in
/// 10.1.0.0/16, fd00::fffe in fd00::/64 (prefixes up to /112).
#[must_use]
pub fn last_host(net: IpNet) -> IpNet {
    match net {
        IpNet::V4(net) => {
            let address = u32::from(net.broadcast()).saturating_sub(1);
            Ipv4Net::new_assert(address.into(), net.prefix_len()).into()
        }
        IpNet::V6(net) => {
            let address = u128::from(net.network()) | 0xfffe;
            Ipv6Net::new_assert(address.into(), net.prefix_len()).into()
        }
    }
}

fn nth_host(net: IpNet, n: u32) -> Result<IpNet> {
    let address: IpAddr = match net {
        IpNet::V4(net) => Ipv4Addr::from(u32::from(net.network()) + n).into(),
        IpNet::V6(net) => Ipv6Addr::from(u128::from(net.network()) + u128::from(n)).into(),
    };
    Ok(IpNet::new(address, net.prefix_len())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routers_are_last() {
        let last = |net: &str| last_host(net.parse().unwrap()).to_string();
        assert_eq!(last("10.1.0.10/16"), "10.1.255.254/16");
        assert_eq!(last("10.0.0.3/29"), "10.0.0.6/29");
        assert_eq!(last("fd00:1::10/64"), "fd00:1::fffe/64");
    }

    #[test]
    fn pods_follow_the_node() {
        let nth = |net: &str, n| nth_host(net.parse().unwrap(), n).unwrap().to_string();
        assert_eq!(nth("172.16.0.0/24", 1), "172.16.0.1/24");
        assert_eq!(nth("172.16.0.7/24", 2), "172.16.0.2/24");
        assert_eq!(nth("fd00:172::/64", 3), "fd00:172::3/64");
    }
}
