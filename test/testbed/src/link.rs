//! Veth pairs, bridges, addresses and routes.

use super::netns::Netns;
use anyhow::{Context as _, Result};
use ipnet::IpNet;
use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, Ordering};

/// Creates a veth pair between two namespaces, both ends up.
pub fn veth(a: &Netns, a_name: &str, b: &Netns, b_name: &str) -> Result<()> {
    a.ip(&format!(
        "link add {a_name} type veth peer name {b_name} netns {}",
        b.name()
    ))?;
    a.ip(&format!("link set {a_name} up"))?;
    b.ip(&format!("link set {b_name} up"))?;
    Ok(())
}

impl Netns {
    /// Creates a bridge that is up and has no ports yet (`ip link set PORT master NAME`).
    pub fn bridge(&self, name: &str) -> Result<()> {
        static SEQUENCE: AtomicU32 = AtomicU32::new(1);
        // A bridge without a MAC address of its own takes one of its ports' and changes it when a
        // port is added, which leaves stale neighbour entries.
        let [_, high, middle, low] = SEQUENCE.fetch_add(1, Ordering::Relaxed).to_be_bytes();
        self.ip(&format!(
            "link add {name} address 02:62:72:{high:02x}:{middle:02x}:{low:02x} \
             type bridge mcast_snooping 0"
        ))?;
        self.ip(&format!("link set {name} up"))?;
        Ok(())
    }

    /// Creates a veth pair from this namespace's bridge to an interface in another namespace.
    pub fn plug(&self, bridge: &str, port: &str, other: &Netns, other_name: &str) -> Result<()> {
        veth(self, port, other, other_name)?;
        self.ip(&format!("link set {port} master {bridge}"))?;
        Ok(())
    }

    /// Adds an address that is usable at once (no DAD), for example `10.1.0.10/16`.
    pub fn address(&self, interface: &str, address: IpNet) -> Result<()> {
        let no_dad = if address.addr().is_ipv6() {
            " nodad"
        } else {
            ""
        };
        self.ip(&format!("addr add {address} dev {interface}{no_dad}"))?;
        Ok(())
    }

    /// Adds a route; `0.0.0.0/0` and `::/0` are the default routes.
    pub fn route(&self, to: IpNet, via: IpAddr) -> Result<()> {
        self.ip(&format!("route add {to} via {via}"))?;
        Ok(())
    }

    /// Silently drops packets that match no other route, as clouds do: a router's ICMP error would
    /// end a connection early and hide that packets are lost.
    pub fn blackhole_the_rest(&self) -> Result<()> {
        self.ip("-4 route add blackhole default")?;
        self.ip("-6 route add blackhole default")?;
        Ok(())
    }

    /// Sets offloads of an interface, for example `["tso", "off"]`.
    pub fn offloads(&self, interface: &str, settings: &[&str]) -> Result<()> {
        let argv = [&["ethtool", "-K", interface], settings].concat();
        self.run(&argv).context("changing offloads")?;
        Ok(())
    }
}
