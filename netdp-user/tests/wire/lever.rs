//! Operations of cases on the node other than sending packets.

use super::bed::{At, Bed, Medium, addressing};
use super::clock;
use super::driver::Wire;
use super::packet::Packet;
use super::socket::Socket;
use anyhow::{Result, ensure};
use std::net::IpAddr;
use std::time::Duration;
use testbed::{Netns, wait_for};

/// Timeout that is waited out only on failure.
const PATIENCE: Duration = Duration::from_secs(60);

impl Bed {
    /// Waits until the agent, if there is one, has applied the node's new address.
    pub fn agent_knows(&self, addr: IpAddr) -> Result<()> {
        match &self.agent {
            Some(agent) => clock::wait_for_address(&agent.bpffs(), addr, true, PATIENCE),
            None => Ok(()),
        }
    }

    /// Waits until the agent has applied the removal of the address; without an agent, until the
    /// kernel has ended the connections that were masqueraded with it. It does so in a work queue
    /// (net/netfilter/nf_nat_masquerade.c, Linux 6.12).
    pub fn agent_forgets(&self, addr: IpAddr) -> Result<()> {
        match &self.agent {
            Some(agent) => clock::wait_for_address(&agent.bpffs(), addr, false, PATIENCE),
            None => wait_for(PATIENCE, &format!("connections of {addr} to end"), || {
                let list = ["conntrack", "-L", "--reply-dst", &addr.to_string()];
                self.node.run(&list).is_ok_and(|list| list.is_empty())
            }),
        }
    }

    /// Triggers a sweep of the agent, if there is one: it runs one after each removal of an
    /// address. Once it has applied a second removal, the sweep is complete.
    pub fn sweep(&self) -> Result<()> {
        if self.agent.is_none() {
            return Ok(());
        }
        for addr in ["192.0.2.201", "192.0.2.202"] {
            self.node.ip(&format!("addr add {addr}/32 dev lo"))?;
            self.agent_knows(addr.parse()?)?;
            self.node.ip(&format!("addr del {addr}/32 dev lo"))?;
            self.agent_forgets(addr.parse()?)?;
        }
        let last = "192.0.2.203";
        self.node.ip(&format!("addr add {last}/32 dev lo"))?;
        self.agent_knows(last.parse()?)?;
        self.node.ip(&format!("addr del {last}/32 dev lo"))?;
        Ok(())
    }

    /// Sets the first uplink down and up again and restores what that removes: neighbours, routes,
    /// IPv6 addresses.
    pub fn flap(&self) -> Result<()> {
        self.node.ip("link set up0 down")?;
        self.node.ip("link set up0 up")?;
        self.node.wait_up("up0")?;
        // Commands fail for what survived; this does not matter.
        for line in addressing(Medium::Wire).lines() {
            let _ = self.node.ip(line);
        }
        let routes = self.node.ip("route show default")?;
        ensure!(routes.contains("up0"), "no default route: {routes}");
        Ok(())
    }
}

/// Waiting until the link is up, as the kernel detects it.
pub trait WaitUp {
    fn wait_up(&self, link: &str) -> Result<()>;

    /// Waits until packets to the IPv6 address are delivered to the node: the kernel does that in
    /// the background (`addrconf_dad_work`, net/ipv6/addrconf.c).
    fn wait_local(&self, addr: IpAddr) -> Result<()>;
}

impl WaitUp for Netns {
    fn wait_up(&self, link: &str) -> Result<()> {
        wait_for(PATIENCE, &format!("{link} to be up"), || {
            let state = self.ip(&format!("-br link show dev {link}"));
            // A tunnel device reports only that it has a carrier.
            state.is_ok_and(|state| state.contains(" UP ") || state.contains("POINTOPOINT"))
        })
    }

    fn wait_local(&self, addr: IpAddr) -> Result<()> {
        wait_for(PATIENCE, &format!("{addr} to be the node's"), || {
            let routes = self.ip("-6 route show table local");
            let local = format!("local {addr} ");
            routes.is_ok_and(|routes| routes.lines().any(|line| line.starts_with(&local)))
        })
    }
}

impl Wire {
    /// Ends all mappings by timeout.
    pub fn end_mappings(&mut self) -> Result<()> {
        self.advance(Duration::from_secs(10 * 24 * 3600))?;
        let bpffs = self.bed.agent()?.bpffs();
        self.bed.sweep()?;
        clock::wait_for_mappings(&bpffs, 0)
    }

    /// Sends the packet from the node by the first uplink, bypassing the node's IP stack.
    pub fn node_sends(&self, packet: &Packet) -> Result<()> {
        self.node_sends_tagged(packet, &[])
    }

    /// Sends the packet as [`node_sends`](Self::node_sends) does, with VLAN tags.
    pub fn node_sends_tagged(&self, packet: &Packet, tags: &[[u8; 4]]) -> Result<()> {
        let at = At::Uplink(0);
        let kind: [u8; 2] = if packet.is_v4() { [8, 0] } else { [0x86, 0xdd] };
        let frame = [
            &at.mac(2),
            &at.mac(1),
            tags.as_flattened(),
            &kind,
            &packet.bytes(),
        ]
        .concat();
        Socket::open(&self.bed.node, "up0")?.send(&frame)
    }
}
