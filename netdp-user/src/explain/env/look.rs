//! Look-ups besides those of a decision.

use super::LiveMaps;
use anyhow::{Context as _, Result};
use aya::maps::MapError;
use netdp_common::layout::{
    Mapping, RESERVED_WORDS, SETTING_HASH_PORTS, SETTING_IPV6, SETTING_RANDOM_PORTS, Tuple,
};
use netdp_common::nat::ports;

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
        let mut reserved = [0; RESERVED_WORDS];
        for (index, word) in (0..).zip(&mut reserved) {
            let bits = self.reserved_ports.get(&index, 0);
            *word = bits.context("reading the reserved_ports map")?;
        }
        Ok(ports::of_clients(&self.settings()?, &reserved).collect())
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
