//! The maps of what the node itself receives: `node_ports`, `node_protocols`.

use super::batch;
use super::maps::ignore_missing;
use crate::node::{Spoken, Wanted};
use anyhow::{Context as _, Result};
use aya::maps::{Array, HashMap, Map, MapData};
use netdp_common::abi::{NodeProtocol, pins};
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::os::fd::AsFd as _;
use std::path::Path;

/// Both maps, with what they hold: nobody else writes them.
pub struct NodeMaps {
    ports: Array<MapData, u32>,
    protocols: HashMap<MapData, NodeProtocol, u32>,
    /// Bits by port; no zeros.
    ports_held: BTreeMap<u16, u32>,
    protocols_held: BTreeSet<Spoken>,
}

impl NodeMaps {
    /// Opens the maps pinned below `bpffs`, and reads them.
    ///
    /// # Errors
    /// A map is missing or not what it should be.
    pub fn open(bpffs: &Path) -> Result<Self> {
        let pinned = |file: &str| {
            let path = bpffs.join(file);
            MapData::from_pin(&path)
                .with_context(|| format!("opening the pinned map {}", path.display()))
        };
        let ports = pinned(pins::NODE_PORTS)?;
        let mut ports_held = BTreeMap::new();
        batch::for_each::<u32, u32>(ports.fd().as_fd(), |port, bits| {
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
                Ok(Spoken {
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
        })
    }

    /// The `NODE_PORT_*` bits in force, by port.
    #[must_use]
    pub const fn ports(&self) -> &BTreeMap<u16, u32> {
        &self.ports_held
    }

    /// The protocols in force.
    #[must_use]
    pub const fn protocols(&self) -> &BTreeSet<Spoken> {
        &self.protocols_held
    }

    /// Puts what is wanted in force; writes only what differs, and adds before it removes. Gives the
    /// number of writes.
    ///
    /// # Errors
    /// The kernel refused a write. What was written by then is in force.
    pub fn set(&mut self, wanted: &Wanted) -> Result<usize> {
        let mut writes = 0;
        for (&port, &bits) in &wanted.ports {
            writes += self.set_port(port, bits)?;
        }
        for &spoken in wanted.protocols.difference(&self.protocols_held.clone()) {
            self.protocols
                .insert(spoken.key(), 1, 0)
                .with_context(|| format!("adding {spoken:?} to node_protocols"))?;
            self.protocols_held.insert(spoken);
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

    fn set_port(&mut self, port: u16, bits: u32) -> Result<usize> {
        if self.ports_held.get(&port).copied().unwrap_or_default() == bits {
            return Ok(0);
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
