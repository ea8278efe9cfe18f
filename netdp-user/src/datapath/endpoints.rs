//! External endpoints of pods, for hairpin: the programs maintain them in a map that is created
//! with them. A new agent fills its own map from the mappings.

use super::batch;
use super::maps::Maps;
use super::object;
use anyhow::{Context as _, Result};
use aya::Ebpf;
use aya::maps::HashMap;
use netdp_common::layout::{Endpoint, MAPPING_HOST, Mapping, Tuple};
use netdp_common::nat::endpoints;

/// Records the endpoints of all live mappings.
///
/// # Errors
/// Returns an error if a map can't be read or written.
pub fn fill(object: &mut Ebpf, maps: &Maps) -> Result<()> {
    let map = object::map_mut(object, "WIRE_ENDPOINTS")?;
    let mut index = HashMap::<_, Tuple, Endpoint>::try_from(map)?;
    let mut failed = None;
    batch::for_each(&maps.rev_snat_data, |wire: &Tuple, half: &Mapping| {
        if half.flags & MAPPING_HOST == 0 && endpoints::has_sockets(wire.proto) {
            let far = Endpoint {
                addr: wire.src,
                id: wire.src_id.into(),
            };
            let done = index.insert(endpoints::endpoint_key(wire), far, 0);
            failed = failed.take().or(done.err());
        }
    })?;
    match failed {
        Some(err) => Err(err).context("recording an endpoint on the wire"),
        None => Ok(()),
    }
}
