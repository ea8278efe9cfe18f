//! The external endpoints of pods: which of them are in use.

use crate::env::Env;
use crate::layout::{Endpoint, Tuple, proto};

/// Records that a pod has this endpoint on the wire by one of its live mappings.
#[inline(never)]
pub(super) fn record<E: Env>(env: &E, wire: &Tuple) -> bool {
    if !has_sockets(wire.proto) || is_in_use(env, wire) {
        return false;
    }
    let far = Endpoint {
        addr: wire.src,
        id: wire.src_id.into(),
    };
    env.insert_wire_endpoint(&endpoint_key(wire), &far);
    true
}

/// Reports whether the destination of `wire` is the external endpoint of a live mapping.
#[inline(always)]
pub(super) fn is_in_use<E: Env>(env: &E, wire: &Tuple) -> bool {
    match env.lookup_wire_endpoint(&endpoint_key(wire)) {
        Some(far) => {
            let known = Tuple::new(far.addr, wire.dst, id(&far), wire.dst_id, wire.proto);
            env.lookup_rev_snat(&known)
                .is_some_and(|slot| !slot.is_host())
        }
        None => false,
    }
}

/// Returns the key of the node's endpoint in a wire tuple.
#[inline(always)]
#[must_use]
pub const fn endpoint_key(wire: &Tuple) -> Tuple {
    Tuple::new(wire.dst, wire.dst, 0, wire.dst_id, wire.proto)
}

/// Reports whether the node's sockets of this protocol can be looked up.
#[inline(always)]
#[must_use]
pub const fn has_sockets(protocol: u32) -> bool {
    matches!(protocol, proto::TCP | proto::UDP)
}

#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "an id has 16 bits")]
pub(super) const fn id(endpoint: &Endpoint) -> u16 {
    endpoint.id as u16
}
