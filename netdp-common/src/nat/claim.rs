//! The state of the search for a wire tuple.

use super::ports::Search;
use crate::flow::age;
use crate::layout::{Mapping, PORT_RANGES, PortRange, Tuple};
use crate::packet::Packet;

/// The state of one search for a wire tuple.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(super) struct Claim {
    /// The wire tuple of the replies; `dst_id` is the candidate.
    pub(super) wire: Tuple,
    /// The reply half that claims the wire tuple.
    pub(super) reply: Mapping,
    pub(super) ranges: [PortRange; PORT_RANGES],
    pub(super) search: Search,
    pub(super) state: ClaimState,
    /// The bucket against which the mapping counts, see [`crate::slot::share`].
    pub(super) bucket: u32,
    /// Flags of the original half in addition to those of the caller.
    pub(super) origin: u16,
    pad: u16,
    /// The index in `rule_hits` of the rule under which the mapping begins.
    pub(super) rule: u32,
    /// Candidates whose mappings may be evicted.
    pub(super) evictable: [Evictable; EVICTABLES],
    /// The sequence number of the SYN that begins the mapping, if `is_syn` is 1.
    pub(super) syn: u32,
    pub(super) is_syn: u32,
    /// The position of the search: the first random candidate, or the word of a port map.
    pub(super) at: u32,
    /// Candidates that may still be tried.
    pub(super) tries: u32,
    /// Number of the random candidate that was tried last.
    pub(super) tried: u32,
    /// Number of all candidates that were tried.
    pub(super) candidates: u32,
    /// The preferred port, if `has_wanted` is 1.
    pub(super) wanted: u32,
    pub(super) has_wanted: u32,
    /// The destination, in the form of a port map's key.
    pub(super) key: Tuple,
    /// The index of the destination's port map.
    pub(super) map: u32,
    /// 1 if all ports were recently found taken.
    pub(super) exhausted: u32,
}

impl Claim {
    /// The initial value, before a search.
    pub(super) const EMPTY: Self = Self {
        wire: Packet::EMPTY.tuple,
        reply: Mapping::new(&Packet::EMPTY.new.addr, 0, 0, 0),
        ranges: [PortRange::EMPTY; PORT_RANGES],
        search: Search::new(0, 0),
        state: ClaimState::Searching,
        bucket: 0,
        origin: 0,
        pad: 0,
        rule: 0,
        evictable: [Evictable::NONE; EVICTABLES],
        syn: 0,
        is_syn: 0,
        at: 0,
        tries: 0,
        tried: 0,
        candidates: 0,
        wanted: 0,
        has_wanted: 0,
        key: Packet::EMPTY.tuple,
        map: 0,
        exhausted: 0,
    };

    /// Returns the port of a candidate whose mapping may be evicted.
    #[inline(always)]
    pub(super) fn evictable_port(&self, n: usize) -> Option<u16> {
        u16::try_from(self.evictable[n & (EVICTABLES - 1)].port.checked_sub(1)?).ok()
    }

    /// Reports whether a SYN begins the mapping and its sequence number lies after all that the
    /// earlier connection of this port has sent, so that the peer accepts it as a new connection
    /// even in TIME-WAIT (RFC 9293 3.6.1, RFC 6191; `nf_nat_used_tuple_harder` in
    /// net/netfilter/nf_nat_core.c, Linux 6.12). `acked`: the last acknowledgement number of the
    /// peer.
    #[inline(always)]
    pub(super) const fn follows(&self, acked: u32) -> bool {
        self.is_syn != 0 && age(self.syn, acked) > 0
    }

    /// Sets the bucket against which the mapping will count, and the flags that record it.
    #[inline(always)]
    pub(super) const fn set_bucket(&mut self, bucket: u32, origin: u16) {
        self.bucket = bucket;
        self.origin = origin;
    }
}

/// The number of eviction candidates that a search remembers. A power of two.
pub(super) const EVICTABLES: usize = 4;

/// A candidate whose mapping may be evicted.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(super) struct Evictable {
    /// The candidate plus 1; 0 for none.
    pub(super) port: u32,
    /// The eviction rank: the highest is evicted first; the maximum if the mapping is over.
    pub(super) rank: u32,
}

impl Evictable {
    pub(super) const NONE: Self = Self { port: 0, rank: 0 };
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum ClaimState {
    Searching,
    Claimed,
    Full,
}
