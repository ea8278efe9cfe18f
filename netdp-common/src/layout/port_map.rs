//! The ports towards one destination that were found taken.

use super::tuple::Tuple;

/// The number of destinations that have a map at the same time.
pub const PORT_MAPS: u32 = 128;

/// The number of 64-bit words of a map.
pub const PORT_MAP_WORDS: u32 = 1024;

/// The destination of a map, and its state. Value of `port_map_owners`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortMapOwner {
    /// The wire tuple of the replies, with 0 for the node's port.
    pub wire: Tuple,
    /// The time of the last use, in ticks.
    pub used_at: u32,
    /// The time at which the map was last cleared because all ports were taken, in ticks.
    pub cleared_at: u32,
    /// The bucket of the last pod for which no port was free ([`crate::slot::share`]), plus 1; 0
    /// for none.
    pub refused: u32,
    /// The time of that refusal, in ticks.
    pub refused_at: u32,
    /// The first port of the range in which none was free.
    pub refused_class: u32,
    /// Padding, always zero.
    pub pad: u32,
}

/// Value of `port_maps`: a bit for each port that was found taken.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct PortMapBits(pub [u64; PORT_MAP_WORDS as usize]);
