//! Flows, and the assertions of cases about them.

use super::bed::{At, Family, node, pod};
use super::build::{ACK, SYN, tcp, udp};
use super::driver::Wire;
use super::packet::{End, Packet};
use anyhow::{Result, ensure};
use std::net::IpAddr;

/// A flow of a pod, as both sides see it.
#[derive(Debug, Clone, Copy)]
pub struct Flow {
    pub pod: usize,
    pub inside: End,
    pub outside: End,
    /// Source that the outside sees: the external endpoint.
    pub wire: End,
}

/// Returns the number of the uplink to a destination.
pub fn uplink(dst: IpAddr) -> usize {
    let text = dst.to_string();
    usize::from(text.starts_with("198.18.") || text.starts_with("2001:db8:4:"))
}

impl Wire {
    /// Sends a pod's packet and checks that it leaves with an address of the node and is otherwise
    /// as a router would forward it. Returns the source that the outside sees.
    pub fn out(&mut self, n: usize, packet: &Packet) -> Result<End> {
        self.send(At::Pod(n), packet)?;
        self.came_out(packet)
    }

    /// Performs the second half of [`out`](Self::out): the check.
    pub fn came_out(&mut self, packet: &Packet) -> Result<End> {
        let n = uplink(packet.dst);
        let found = self.expect(At::Uplink(n), &format!("packet like {packet:?}"), |p| {
            (p.dst, p.proto, p.part) == (packet.dst, packet.proto, packet.part)
        })?;
        let family = Family::of(packet.dst);
        let wire = (node(family, n), found.sport());
        let wanted = packet.clone().forwarded().from(wire);
        ensure!(found == wanted, "there came {found:?}, not {wanted:?}");
        Ok(wire)
    }

    /// Checks that the packet does not leave in any form.
    pub fn refused(&mut self, n: usize, packet: &Packet) -> Result<()> {
        self.send(At::Pod(n), packet)?;
        self.expect_nothing(At::Uplink(uplink(packet.dst)))
    }

    /// Checks that a packet from outside to `flow.wire` reaches the pod with the pod's address.
    pub fn back(&mut self, flow: &Flow, packet: &Packet) -> Result<()> {
        self.send(At::Uplink(uplink(flow.outside.0)), packet)?;
        let wanted = packet.clone().forwarded().to(flow.inside);
        self.expect_exactly(At::Pod(flow.pod), &wanted)
    }

    /// Checks that a packet from outside does not reach the pod.
    pub fn not_back(&mut self, n: usize, packet: &Packet) -> Result<()> {
        self.send(At::Uplink(uplink(packet.src)), packet)?;
        self.expect_nothing(At::Pod(n))
    }

    /// Opens a UDP flow that is answered.
    pub fn udp(&mut self, n: usize, port: u16, outside: End) -> Result<Flow> {
        let family = Family::of(outside.0);
        let inside = (pod(family, n), port);
        let wire = self.out(n, &udp(inside, outside, b"question"))?;
        let flow = Flow {
            pod: n,
            inside,
            outside,
            wire,
        };
        self.back(&flow, &udp(outside, wire, b"answer"))?;
        Ok(flow)
    }

    /// Opens a TCP connection: the pod's next sequence number is 1001, the server's 5001.
    pub fn tcp(&mut self, n: usize, port: u16, outside: End) -> Result<Flow> {
        let inside = (pod(Family::of(outside.0), n), port);
        let wire = self.out(n, &tcp(inside, outside, SYN, (1000, 0), b""))?;
        let flow = Flow {
            pod: n,
            inside,
            outside,
            wire,
        };
        self.back(&flow, &tcp(outside, wire, SYN | ACK, (5000, 1001), b""))?;
        self.same(&flow, &flow.sends(ACK, (1001, 5001), b""))?;
        Ok(flow)
    }

    /// Checks that a pod's packet leaves with the flow's mapping.
    pub fn same(&mut self, flow: &Flow, packet: &Packet) -> Result<()> {
        let wire = self.out(flow.pod, packet)?;
        ensure!(
            wire == flow.wire,
            "the mapping changed from {:?} to {wire:?}",
            flow.wire
        );
        Ok(())
    }
}

impl Flow {
    /// Returns a TCP segment of the pod.
    pub fn sends(&self, flags: u8, numbers: (u32, u32), payload: &[u8]) -> Packet {
        tcp(self.inside, self.outside, flags, numbers, payload)
    }

    /// Returns a TCP segment of the server.
    pub fn gets(&self, flags: u8, numbers: (u32, u32), payload: &[u8]) -> Packet {
        tcp(self.outside, self.wire, flags, numbers, payload)
    }

    /// Returns a datagram of the pod.
    pub fn asks(&self, payload: &[u8]) -> Packet {
        udp(self.inside, self.outside, payload)
    }

    /// Returns a datagram of the server.
    pub fn answers(&self, payload: &[u8]) -> Packet {
        udp(self.outside, self.wire, payload)
    }
}

impl Family {
    pub const fn of(addr: IpAddr) -> Self {
        match addr {
            IpAddr::V4(_) => Self::V4,
            IpAddr::V6(_) => Self::V6,
        }
    }
}
