//! Look-ups besides those of a decision.

use super::LiveMaps;
use anyhow::{Context as _, Result};
use aya::maps::MapError;
use netdp_common::layout::{
    Mapping, PortRange, SETTING_HASH_PORTS, SETTING_IPV6, SETTING_PORTS, SETTING_RANDOM_PORTS,
    Tuple,
};

/// Ports of the class that clients use (`nat::ports::class_of`).
const CLIENTS: PortRange = PortRange::new(1024, u16::MAX);

impl LiveMaps {
    /// Reports whether IPv6 is translated.
    pub(in crate::explain) fn has_ipv6(&self) -> Result<bool> {
        Ok(self.settings()?.flags & SETTING_IPV6 != 0)
    }

    /// Returns the name of the `--port-mode`.
    pub(in crate::explain) fn port_mode(&self) -> Result<&'static str> {
        let flags = self.settings()?.flags;
        Ok(if flags & SETTING_RANDOM_PORTS != 0 {
            "random"
        } else if flags & SETTING_HASH_PORTS != 0 {
            "hash"
        } else {
            "keep"
        })
    }

    /// Returns the ports that mappings of TCP and UDP may take, without the reserved ones. Those of
    /// clients, if there is no `--to-ports`.
    pub(in crate::explain) fn ports(&self) -> Result<Vec<u16>> {
        let settings = self.settings()?;
        let ranges = match settings.flags & SETTING_PORTS {
            0 => vec![CLIENTS],
            _ => settings.ports.to_vec(),
        };
        let mut ports = Vec::new();
        let mut word = (u32::MAX, 0);
        for range in ranges.iter().filter(|range| !range.is_empty()) {
            for port in range.min..=range.max {
                let index = u32::from(port / 64);
                if word.0 != index {
                    let bits = self.reserved_ports.get(&index, 0);
                    word = (index, bits.context("reading the reserved_ports map")?);
                }
                if word.1 >> (port % 64) & 1 == 0 {
                    ports.push(port);
                }
            }
        }
        Ok(ports)
    }

    /// Returns the mapping that has a wire tuple: the pod's end.
    pub(in crate::explain) fn owner(&self, wire: &Tuple) -> Result<Option<Mapping>> {
        match self.rev_snat.get(wire, 0) {
            Ok(found) => Ok(Some(found)),
            Err(MapError::KeyNotFound) => Ok(None),
            Err(err) => Err(err).context("reading the rev_snat map"),
        }
    }
}
