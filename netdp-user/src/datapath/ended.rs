//! Mappings that have ended, for those who listen to events, for the NAT log and for metrics.

use super::maps::Maps;
use netdp_common::layout::{
    Addr, ENDED_FOR_NODE, ENDED_MOVED, ENDED_UNTRANSLATED, Half, Mapping, Tuple,
};
use serde::{Deserialize, Serialize};

/// A mapping by what distinguishes it from any other of the same maps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Identity {
    /// The tuple of the pod's packets.
    pub tuple: Tuple,
    /// Address that the destination sees.
    pub addr: Addr,
    /// Port or identifier that the destination sees.
    pub id: u16,
    /// Time of its begin, in ticks.
    pub created: u32,
}

impl Identity {
    /// Returns the identity of a mapping by its original half.
    pub(crate) const fn of(tuple: &Tuple, half: &Mapping) -> Self {
        Self {
            tuple: *tuple,
            addr: half.addr,
            id: half.id,
            created: half.created,
        }
    }
}

/// The reason why a mapping has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum EndedBy {
    /// It was silent for its timeout.
    Timeout,
    /// The node has lost its address.
    AddressGone,
    /// The policy would not create it any more (`--on-reload`).
    Policy,
    /// Others needed the room, or its port.
    Room,
    /// The flow leaves by another uplink, or with another address.
    Moved,
    /// Its ports have begun another connection, which is not translated.
    Untranslated,
    /// The node itself uses its port.
    Node,
}

impl EndedBy {
    /// Returns the reason that a program has reported (`ENDED_*`).
    pub(super) const fn reported(number: u32) -> Self {
        match number {
            ENDED_MOVED => Self::Moved,
            ENDED_UNTRANSLATED => Self::Untranslated,
            ENDED_FOR_NODE => Self::Node,
            _ => Self::Room,
        }
    }

    /// Returns its name, as in records.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Timeout => "timeout",
            Self::AddressGone => "address_gone",
            Self::Policy => "policy",
            Self::Room => "room",
            Self::Moved => "moved",
            Self::Untranslated => "untranslated",
            Self::Node => "node",
        }
    }

    /// Returns it in words.
    pub(crate) const fn words(self) -> &'static str {
        match self {
            Self::Timeout => "timeout",
            Self::AddressGone => "the node has lost the address",
            Self::Policy => "the policy has changed",
            Self::Room => "its place was needed",
            Self::Moved => "the flow goes another way",
            Self::Untranslated => "its ports have begun a connection that is not translated",
            Self::Node => "the node uses its port",
        }
    }
}

/// A mapping that has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct EndedMapping {
    /// The mapping.
    pub mapping: Identity,
    /// Time of its end, in ticks.
    pub at: u32,
    /// The reason.
    pub why: EndedBy,
    /// Packets that the pod sent, and that were sent to it.
    pub packets: [u64; 2],
    /// Their bytes, where they were counted.
    pub bytes: [Option<u64>; 2],
}

impl EndedMapping {
    /// Reads the traffic of a mapping that ends at a time, in ticks. `reply`: its reply half, if it has
    /// one.
    pub(super) fn of(
        maps: &Maps,
        (tuple, wire): (&Tuple, &Tuple),
        half: &Mapping,
        reply: Option<&Mapping>,
        (why, at): (EndedBy, u32),
    ) -> Self {
        let (out, bytes_out) = maps.traffic(Half::Original, tuple, half);
        let (back, bytes_back) =
            reply.map_or((0, Some(0)), |it| maps.traffic(Half::Reply, wire, it));
        Self {
            mapping: Identity::of(tuple, half),
            at,
            why,
            packets: [out, back],
            bytes: [bytes_out, bytes_back],
        }
    }
}
