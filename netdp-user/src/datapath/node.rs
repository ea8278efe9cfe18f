//! The maps of ports and protocols that the node itself receives: `node_ports`, `node_protocols`.

use super::ended::{EndedBy, EndedMapping};
use super::mapping_log::Teller;
use super::maps::{Maps, ignore_missing};
use super::rule_counts::EndedTraffic;
use super::sweep::now;
use super::{batch, bpffs};
use crate::node::{DesiredNodeMaps, ProtocolPeer};
use anyhow::{Context as _, Result};
use aya::maps::{Array, HashMap, Map, MapData};
use netdp_common::flow::{age, ticks};
use netdp_common::layout::{
    Action, Addr, MAPPING_HOST, Mapping, NodeProtocol, Tuple, node_port_bit, pins,
};
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::Path;

/// Both maps, with a copy of their contents: there is no other writer.
pub struct NodeMaps {
    ports: Array<MapData, u32>,
    protocols: HashMap<MapData, NodeProtocol, u32>,
    /// Bits by port; no zeros.
    ports_held: BTreeMap<u16, u32>,
    protocols_held: BTreeSet<ProtocolPeer>,
    added: Added,
}

/// Ports and protocols that the node has begun to receive.
#[derive(Debug, Clone, Default)]
pub struct Added {
    /// `NODE_PORT_*` bits by port.
    ports: BTreeMap<u16, u32>,
    protocols: BTreeSet<NodeProtocol>,
}

impl Added {
    /// Reports whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ports.is_empty() && self.protocols.is_empty()
    }

    /// Reports whether a mapping with this wire tuple, created so many ticks ago, has to end: its
    /// ingress packets may be the node's. A flow with ports that is older than the time within
    /// which a new rule is noticed was there before the rule: it is kept.
    fn ends(&self, wire: &Tuple, old: u32) -> bool {
        let bits = self.ports.get(&wire.dst_id).copied().unwrap_or_default();
        if bits & node_port_bit(wire.proto) != 0 {
            return u64::from(old) < ticks(NOTICED_SECONDS);
        }
        let any = if wire.src.is_v4() {
            Addr::from(IpAddr::V4(Ipv4Addr::UNSPECIFIED))
        } else {
            Addr::from(IpAddr::V6(Ipv6Addr::UNSPECIFIED))
        };
        [wire.src, any].into_iter().any(|peer| {
            self.protocols
                .contains(&NodeProtocol::new(peer, wire.proto))
        })
    }
}

/// Seconds within which a new rule is always noticed.
const NOTICED_SECONDS: u64 = 10;

impl Maps {
    /// Ends mappings of pods that took, just before it was detected, a port or protocol of the
    /// node. Returns their number.
    ///
    /// # Errors
    /// Returns an error if a map can't be read or written.
    pub fn end_for_node(&mut self, added: &Added) -> Result<usize> {
        let now = now(self)?;
        let wires = self.end(EndedBy::Node, |wire, half| {
            added.ends(wire, age(now, half.created))
        })?;
        self.release_ports(&wires)?;
        Ok(wires.len())
    }

    /// Ends mappings of pods towards destinations that the policy withholds. Returns their number.
    ///
    /// # Errors
    /// Returns an error if a map can't be read or written.
    pub fn end_withheld(&mut self) -> Result<usize> {
        let mut known = std::collections::HashMap::new();
        let wires = self.end(EndedBy::Policy, |wire, _| {
            let withheld = || matches!(self.action(&wire.src), Ok(Action::Withhold));
            *known.entry(wire.src).or_insert_with(withheld)
        })?;
        self.release_ports(&wires)?;
        Ok(wires.len())
    }

    /// Ends, for a reason, the pods' mappings that `ends` selects by wire tuple and reply half. Returns their wire
    /// tuples; the next full sweep recounts the shares.
    fn end(
        &self,
        why: EndedBy,
        mut ends: impl FnMut(&Tuple, &Mapping) -> bool,
    ) -> Result<Vec<Tuple>> {
        let mut wires = Vec::new();
        let mut originals = Vec::new();
        batch::for_each::<Tuple, Mapping>(&self.rev_snat_data, |wire, half| {
            if half.flags & MAPPING_HOST == 0 && ends(wire, half) {
                originals.push(wire.answers(half.addr, half.id));
                wires.push(*wire);
            }
        })
        .context("reading the rev_snat map")?;
        let mut sent = EndedTraffic::default();
        let mut teller = Teller::new(self.log.as_ref());
        for original in &originals {
            if let Ok(half) = self.snat.get(original, 0) {
                sent.add(self, original, &half);
                if teller.wants_ends() {
                    let wire = original.reply_to(half.addr, half.id);
                    let reply = self.rev_snat.get(&wire, 0).ok();
                    let ends = (original, &wire);
                    // The log gives the time.
                    let ended = EndedMapping::of(self, ends, &half, reply.as_ref(), (why, 0));
                    teller.ends(&ended);
                }
            }
        }
        if let Err(err) = self.add_ended(&mut sent, |maps, to| Ok(maps.decision(&to)?.rule)) {
            log::warn!("counting for their rules what ended mappings had sent: {err:#}");
        }
        teller.removing();
        let removed = batch::remove(&self.snat_data, &originals)
            .context("in the snat map")
            .and_then(|()| {
                batch::remove(&self.rev_snat_data, &wires).context("in the rev_snat map")
            });
        teller.tell(now(self), removed.is_ok())?;
        removed?;
        Ok(wires)
    }
}

impl NodeMaps {
    /// Opens the maps pinned below `bpffs`, and reads them.
    ///
    /// # Errors
    /// Returns an error if a map is missing or has another type or size.
    pub fn open(bpffs: &Path) -> Result<Self> {
        let pinned = |file: &str| bpffs::open_map(bpffs, file);
        let ports = pinned(pins::NODE_PORTS)?;
        let mut ports_held = BTreeMap::new();
        batch::for_each::<u32, u32>(&ports, |port, bits| {
            if let (Ok(port), 1..) = (u16::try_from(*port), *bits) {
                ports_held.insert(port, *bits);
            }
        })
        .context("reading node_ports")?;
        let protocols: HashMap<MapData, NodeProtocol, u32> =
            Map::HashMap(pinned(pins::NODE_PROTOCOLS)?).try_into()?;
        let protocols_held = protocols
            .keys()
            .map(|key| {
                let key = key.context("reading node_protocols")?;
                Ok(ProtocolPeer {
                    protocol: u8::try_from(key.proto)?,
                    peer: IpAddr::from(key.peer),
                })
            })
            .collect::<Result<_>>()?;
        Ok(Self {
            ports: Map::Array(ports).try_into()?,
            protocols,
            ports_held,
            protocols_held,
            added: Added::default(),
        })
    }

    /// Returns the `NODE_PORT_*` bits in force, by port.
    #[must_use]
    pub const fn ports(&self) -> &BTreeMap<u16, u32> {
        &self.ports_held
    }

    /// Returns the protocols in force.
    #[must_use]
    pub const fn protocols(&self) -> &BTreeSet<ProtocolPeer> {
        &self.protocols_held
    }

    /// Puts `wanted` in force; writes only the differences, and adds before it removes. Returns the
    /// number of writes.
    ///
    /// # Errors
    /// Returns an error if the kernel refuses a write. Earlier writes are in force.
    pub fn set(&mut self, wanted: &DesiredNodeMaps) -> Result<usize> {
        let mut writes = 0;
        for (&port, &bits) in &wanted.ports {
            writes += self.set_port(port, bits)?;
        }
        for &spoken in wanted.protocols.difference(&self.protocols_held.clone()) {
            self.protocols
                .insert(spoken.key(), 1, 0)
                .with_context(|| format!("adding {spoken:?} to node_protocols"))?;
            self.protocols_held.insert(spoken);
            self.added.protocols.insert(spoken.key());
            writes += 1;
        }
        let gone: Vec<u16> = self.ports_held.keys().copied().collect();
        for port in gone.into_iter().filter(|p| !wanted.ports.contains_key(p)) {
            writes += self.set_port(port, 0)?;
        }
        for spoken in self.protocols_held.clone().difference(&wanted.protocols) {
            ignore_missing(self.protocols.remove(&spoken.key()))
                .with_context(|| format!("removing {spoken:?} from node_protocols"))?;
            self.protocols_held.remove(spoken);
            writes += 1;
        }
        Ok(writes)
    }

    /// Takes the additions since the last call.
    pub fn take_added(&mut self) -> Added {
        std::mem::take(&mut self.added)
    }

    fn set_port(&mut self, port: u16, bits: u32) -> Result<usize> {
        let before = self.ports_held.get(&port).copied().unwrap_or_default();
        if before == bits {
            return Ok(0);
        }
        if bits & !before != 0 {
            self.added.ports.insert(port, bits & !before);
        }
        self.ports
            .set(u32::from(port), bits, 0)
            .with_context(|| format!("writing port {port} to node_ports"))?;
        if bits == 0 {
            self.ports_held.remove(&port);
        } else {
            self.ports_held.insert(port, bits);
        }
        Ok(1)
    }
}
