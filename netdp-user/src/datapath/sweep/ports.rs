//! Release of the ports of ended mappings in the maps of used ports.

use crate::datapath::batch;
use crate::datapath::maps::Maps;
use anyhow::{Context as _, Result};
use netdp_common::layout::PortMapOwner;
use netdp_common::layout::Tuple;
use netdp_common::slot::port_map;
use std::collections::HashMap;

impl Maps {
    /// Marks the ports of these wire tuples as free, if there are maps of used ports.
    ///
    /// # Errors
    /// Returns an error if a map can't be read or written.
    pub fn release_ports(&mut self, wires: &[Tuple]) -> Result<()> {
        let mut freed = HashMap::<Tuple, Vec<u16>>::new();
        for wire in wires {
            let ports = freed.entry(port_map::destination(wire)).or_default();
            ports.push(wire.dst_id);
        }
        let mut owned = Vec::new();
        batch::for_each::<u32, PortMapOwner>(&self.pods()?.port_map_owners_data, |index, owner| {
            if owner.wire.proto != 0
                && let Some(ports) = freed.remove(&owner.wire)
            {
                owned.push((*index, ports));
            }
        })
        .context("reading the port_map_owners map")?;
        for (index, ports) in owned {
            let maps = &mut self.pods_mut()?.port_maps;
            let mut bits = maps.get(&index, 0).context("reading the port_maps map")?;
            for port in ports {
                if let Some(word) = bits.0.get_mut(usize::from(port) / 64) {
                    *word &= !(1 << (port % 64));
                }
            }
            maps.set(index, bits, 0)
                .context("writing the port_maps map")?;
        }
        Ok(())
    }
}
