//! Live mappings added up by pod and by destination, for `netdp top` and for metrics.

use super::batch;
use super::maps::Maps;
use super::sweep::now;
use anyhow::{Context as _, Result};
use netdp_common::flow::age;
use netdp_common::layout::{Addr, Half, MAPPING_HOST, Mapping, RESERVED_WORDS, Tuple, proto};
use netdp_common::nat::ports;
use std::collections::{HashMap, HashSet};
use std::hash::Hash;
use std::net::IpAddr;

/// The most pods, and the most destinations, that are told apart: a scan of all addresses must not
/// take the viewer's memory.
pub(super) const TOLD_APART: usize = 65_536;

/// A destination whose ports mappings share: they are taken for each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Destination {
    /// Protocol number (`proto`).
    pub protocol: u32,
    /// Address of the destination.
    pub address: IpAddr,
    /// Port of the destination; the type and code for ICMP queries.
    pub id: u16,
    /// Address of the node that it sees.
    pub seen_as: IpAddr,
}

impl Destination {
    /// Reports whether it has ports that mappings can use up.
    pub(super) const fn has_ports(&self) -> bool {
        matches!(self.protocol, proto::TCP | proto::UDP)
    }
}

/// Use by one pod or one destination.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Use {
    /// Live mappings.
    pub mappings: u64,
    /// Of these, mappings that began since the last walk.
    pub new: u64,
    /// Bytes that pods have sent in live mappings.
    pub bytes_out: u64,
    /// Bytes that were sent to pods in live mappings.
    pub bytes_in: u64,
}

/// Live mappings by protocol.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ByProtocol {
    /// TCP.
    pub tcp: u64,
    /// UDP.
    pub udp: u64,
    /// ICMP and ICMPv6.
    pub icmp: u64,
    /// All others.
    pub other: u64,
}

impl ByProtocol {
    /// Returns the number of all mappings.
    pub const fn total(&self) -> u64 {
        self.tcp + self.udp + self.icmp + self.other
    }

    /// Returns the number of mappings of a protocol.
    pub(super) const fn of(&mut self, protocol: u32) -> &mut u64 {
        match protocol {
            proto::TCP => &mut self.tcp,
            proto::UDP => &mut self.udp,
            proto::ICMP | proto::ICMPV6 => &mut self.icmp,
            _ => &mut self.other,
        }
    }
}

/// The result of a walk through the mappings.
#[derive(Debug, Clone, Default)]
pub struct Usage {
    /// The datapath's time of the walk, in ticks.
    pub at: u32,
    /// Mappings by protocol.
    pub protocols: ByProtocol,
    /// By the pod's address.
    pub pods: HashMap<IpAddr, Use>,
    /// By destination.
    pub destinations: HashMap<Destination, Use>,
    /// Mappings by pod of the destinations that were watched.
    pub shares: HashMap<(IpAddr, Destination), u64>,
    /// True if there were more pods or destinations than are told apart.
    pub is_cut: bool,
}

impl Maps {
    /// Walks through all mappings and adds them up. `since`: the time of the last walk, in ticks.
    /// `watched`: the destinations whose mappings are also counted by pod.
    ///
    /// # Errors
    /// Returns an error if a map can't be read.
    pub fn usage(&self, since: Option<u32>, watched: &HashSet<Destination>) -> Result<Usage> {
        let at = now(self)?;
        let mut usage = Usage {
            at,
            ..Usage::default()
        };
        let recent = since.map(|since| age(at, since));
        batch::for_each::<Tuple, Mapping>(&self.snat_data, |tuple, half| {
            let is_new = recent.is_some_and(|recent| age(at, half.created) < recent);
            let destination = usage.add_original(self, tuple, half, is_new);
            if watched.contains(&destination) {
                let share = (IpAddr::from(tuple.src), destination);
                *usage.shares.entry(share).or_default() += 1;
            }
        })
        .context("reading the snat map")?;
        batch::for_each::<Tuple, Mapping>(&self.rev_snat_data, |wire, half| {
            // A reservation of the node's own flow is no mapping.
            if half.flags & MAPPING_HOST == 0 {
                usage.add_reply(self, wire, half);
            }
        })
        .context("reading the rev_snat map")?;
        Ok(usage)
    }

    /// Returns how many ports there are towards one destination ([`ports::of_clients`]).
    ///
    /// # Errors
    /// Returns an error if a map can't be read.
    pub fn ports_of_destination(&self) -> Result<u64> {
        let mut reserved = [0; RESERVED_WORDS];
        for (read, word) in self.reserved_ports.iter().zip(&mut reserved) {
            *word = read.context("reading the reserved_ports map")?;
        }
        Ok(ports::of_clients(&self.settings()?, &reserved).count() as u64)
    }

    /// Returns the kernel's number of the `snat` map, by which programs that use these maps are known.
    ///
    /// # Errors
    /// Returns an error if the kernel does not report it.
    pub(crate) fn snat_id(&self) -> Result<u32> {
        let info = self.snat_data.info().context("querying the snat map")?;
        Ok(info.id())
    }
}

impl Usage {
    /// Adds a mapping, by its original half. Returns its destination.
    pub(super) fn add_original(
        &mut self,
        maps: &Maps,
        tuple: &Tuple,
        half: &Mapping,
        is_new: bool,
    ) -> Destination {
        let (_, bytes) = maps.traffic(Half::Original, tuple, half);
        let added = Use {
            mappings: 1,
            new: u64::from(is_new),
            bytes_out: bytes.unwrap_or(0),
            bytes_in: 0,
        };
        let destination = destination(tuple.proto, tuple.dst, tuple.dst_id, half.addr);
        *self.protocols.of(tuple.proto) += 1;
        self.add(tuple.src.into(), destination, &added);
        destination
    }

    /// Adds the traffic towards the pod, by the reply half.
    pub(super) fn add_reply(&mut self, maps: &Maps, wire: &Tuple, half: &Mapping) {
        let (_, bytes) = maps.traffic(Half::Reply, wire, half);
        let added = Use {
            bytes_in: bytes.unwrap_or(0),
            ..Use::default()
        };
        let destination = destination(wire.proto, wire.src, wire.src_id, wire.dst);
        self.add(IpAddr::from(half.addr), destination, &added);
    }

    /// Subtracts a mapping that has ended: what its original half had, if that was added, and the
    /// bytes of its reply half.
    pub(super) fn subtract(
        &mut self,
        tuple: &Tuple,
        half: &Mapping,
        (was_added, bytes_out): (bool, Option<u64>),
        bytes_in: Option<u64>,
    ) {
        let destination = destination(tuple.proto, tuple.dst, tuple.dst_id, half.addr);
        let pod = self.pods.get_mut(&IpAddr::from(tuple.src));
        let uses = [pod, self.destinations.get_mut(&destination)];
        for used in uses.into_iter().flatten() {
            used.bytes_in = used.bytes_in.saturating_sub(bytes_in.unwrap_or(0));
            if was_added {
                used.mappings = used.mappings.saturating_sub(1);
                used.bytes_out = used.bytes_out.saturating_sub(bytes_out.unwrap_or(0));
            }
        }
        if was_added {
            let mappings = self.protocols.of(tuple.proto);
            *mappings = mappings.saturating_sub(1);
        }
    }

    fn add(&mut self, pod: IpAddr, destination: Destination, added: &Use) {
        let pods = add(&mut self.pods, pod, added);
        let destinations = add(&mut self.destinations, destination, added);
        self.is_cut |= !(pods && destinations);
    }
}

/// Adds to the entry of a key; returns `false` if there is no room for a new one.
fn add<K: Hash + Eq>(uses: &mut HashMap<K, Use>, key: K, added: &Use) -> bool {
    let is_full = uses.len() >= TOLD_APART;
    let used = match uses.get_mut(&key) {
        Some(used) => used,
        None if is_full => return false,
        None => uses.entry(key).or_default(),
    };
    used.mappings += added.mappings;
    used.new += added.new;
    used.bytes_out += added.bytes_out;
    used.bytes_in += added.bytes_in;
    true
}

/// Returns the destination with this address and L4 id, as seen from an address of the node.
pub(super) fn destination(protocol: u32, address: Addr, id: u16, seen_as: Addr) -> Destination {
    Destination {
        protocol,
        address: address.into(),
        id,
        seen_as: seen_as.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_beyond_the_limit_are_left_out_and_known_ones_go_on() {
        let mut uses = HashMap::new();
        let one = Use {
            mappings: 1,
            ..Use::default()
        };
        for key in 0..TOLD_APART {
            assert!(add(&mut uses, key, &one));
        }
        assert!(!add(&mut uses, TOLD_APART, &one));
        assert!(add(&mut uses, 0, &one));
        assert_eq!(uses[&0].mappings, 2);
        assert_eq!(uses.len(), TOLD_APART);
    }

    #[test]
    fn protocols_add_up() {
        let mut by = ByProtocol::default();
        for protocol in [proto::TCP, proto::UDP, proto::ICMP, proto::ICMPV6, 47] {
            *by.of(protocol) += 1;
        }
        assert_eq!((by.tcp, by.udp, by.icmp, by.other), (1, 1, 2, 1));
        assert_eq!(by.total(), 5);
    }
}
