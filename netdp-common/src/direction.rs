//! The directions of packets at a hook, and the ends of a tuple.

use crate::layout::{Addr, Tuple};

/// The direction of a packet, relative to the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Out of an interface.
    Egress,
    /// Into it.
    Ingress,
}

impl Direction {
    /// Returns the end that a translation replaces in this direction.
    #[inline(always)]
    #[must_use]
    pub const fn translated_end(self) -> End {
        match self {
            Self::Egress => End::Source,
            Self::Ingress => End::Destination,
        }
    }
}

/// An end of a tuple.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The sender's.
    Source,
    /// The receiver's.
    Destination,
}

impl End {
    /// Returns the other end.
    #[inline(always)]
    #[must_use]
    pub const fn opposite(self) -> Self {
        match self {
            Self::Source => Self::Destination,
            Self::Destination => Self::Source,
        }
    }

    /// Returns the address and the L4 id of this end.
    #[inline(always)]
    #[must_use]
    pub const fn of(self, tuple: &Tuple) -> (&Addr, u16) {
        match self {
            Self::Source => (&tuple.src, tuple.src_id),
            Self::Destination => (&tuple.dst, tuple.dst_id),
        }
    }
}
