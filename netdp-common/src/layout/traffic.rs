//! Counts of packets and bytes: of mappings, of rules, of pairs of addresses.
//!
//! The bytes of a packet are its length without the link header; a VLAN tag inside the frame counts.
//! A packet that the kernel has not segmented yet (GSO) counts as one, with its headers once.

use super::addr::Addr;
use super::mapping::{MAPPING_COUNTED_ORIGINAL, MAPPING_COUNTED_REPLY};
use super::tuple::Tuple;

/// A number of packets, and of their bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// Packets.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
}

impl Traffic {
    /// Returns the traffic of one packet with `bytes` bytes.
    #[inline(always)]
    #[must_use]
    pub const fn packet(bytes: u32) -> Self {
        Self {
            packets: 1,
            bytes: bytes as u64,
        }
    }

    /// Adds other traffic.
    #[inline(always)]
    pub const fn add(&mut self, other: &Self) {
        self.packets = self.packets.wrapping_add(other.packets);
        self.bytes = self.bytes.wrapping_add(other.bytes);
    }

    /// Subtracts an earlier value.
    #[inline(always)]
    pub const fn subtract(&mut self, earlier: &Self) {
        self.packets = self.packets.wrapping_sub(earlier.packets);
        self.bytes = self.bytes.wrapping_sub(earlier.bytes);
    }

    /// Reports whether there was none.
    #[inline(always)]
    #[must_use]
    pub const fn is_zero(&self) -> bool {
        self.packets == 0
    }
}

/// First bit of the bytes in [`super::Mapping::traffic`]; below are the packets.
const BYTES_SHIFT: u32 = 10;

/// The upper bit of either part of [`super::Mapping::traffic`]. Once one of them is set (512
/// packets, or 2 MiB) the next packet carries the word over. The kernel makes no packet of 2 MiB
/// (`GSO_MAX_SIZE` of include/linux/netdevice.h, Linux 6.12, is 512 KiB), so that neither part ever
/// overflows; and programs of layout 1, which add 1 for each packet and carry nothing over, have
/// another 511 packets until they would change the bytes.
pub const TRAFFIC_FULL: u32 = 1 << 31 | 1 << (BYTES_SHIFT - 1);

/// The largest count of a half of layout 1 that can stay in its word: it has the same meaning there.
pub const TRAFFIC_PLAIN: u32 = (1 << (BYTES_SHIFT - 1)) - 1;

/// Returns [`super::Mapping::traffic`] for one packet with `bytes` bytes. Such words can be added
/// until one has a bit of [`TRAFFIC_FULL`].
#[inline(always)]
#[must_use]
pub const fn packed(bytes: u32) -> u32 {
    bytes << BYTES_SHIFT | 1
}

/// Returns the packets in a word of [`super::Mapping::traffic`].
#[inline(always)]
#[must_use]
pub(super) const fn packed_packets(word: u32) -> u32 {
    word & ((1 << BYTES_SHIFT) - 1)
}

/// Returns the traffic in a word of [`super::Mapping::traffic`].
#[inline(always)]
#[must_use]
pub const fn unpacked(word: u32) -> Traffic {
    Traffic {
        packets: packed_packets(word) as u64,
        bytes: (word >> BYTES_SHIFT) as u64,
    }
}

/// [`Tuple::proto`] in the keys of the `traffic` map: set for reply halves.
const REPLY_KEY: u32 = 0x100;

/// One of the two halves of a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Half {
    /// The original half, in `snat`.
    Original,
    /// The reply half, in `rev_snat`.
    Reply,
}

impl Half {
    /// Returns the bit of [`super::Mapping::flags`] that this half has since it counts bytes.
    #[inline(always)]
    #[must_use]
    pub const fn counted(self) -> u16 {
        match self {
            Self::Original => MAPPING_COUNTED_ORIGINAL,
            Self::Reply => MAPPING_COUNTED_REPLY,
        }
    }

    /// Returns the key of this half in the `traffic` map, from its key in its own.
    #[inline(always)]
    #[must_use]
    pub const fn traffic_key(self, tuple: &Tuple) -> Tuple {
        let mut key = *tuple;
        if let Self::Reply = self {
            key.proto |= REPLY_KEY;
        }
        key
    }

    /// Returns the half, and its key in its own map, that a key of the `traffic` map belongs to.
    #[must_use]
    pub const fn of_traffic_key(key: &Tuple) -> (Self, Tuple) {
        let mut tuple = *key;
        tuple.proto &= !REPLY_KEY;
        match key.proto & REPLY_KEY {
            0 => (Self::Original, tuple),
            _ => (Self::Reply, tuple),
        }
    }
}

/// Entries of `rule_hits`. The last one has the hits of all rules from its number on, and of
/// destinations for which no rule decides ([`super::PolicyValue::rule`] is then `u32::MAX`).
pub const RULE_HITS: u32 = 131_072;

/// Value of `rule_hits`; the key is [`super::PolicyValue::rule`], at most [`RULE_HITS`] - 1. What
/// the rule has decided by itself: the packets of mappings are in the mappings, and those that hit
/// a bypassed [`Pair`] are there until the pair is replaced.
///
/// The programs only add. Nothing clears an entry: whoever shows hits by prefix has to record what an
/// entry had when its number was given to another prefix.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RuleHits {
    /// Packets that left unmodified because of the rule.
    pub bypassed: Traffic,
    /// Mappings that began under the rule.
    pub flows: u64,
    /// The time of the last change, in ticks.
    pub last: u32,
    /// Padding, always zero.
    pub pad: u32,
}

/// Value of `rule_ended`; the key is the index in `rule_hits` of the rule that decided about the
/// destination when the mapping ended. What pods had sent over mappings that the agent has ended (of
/// those that live it is in the mappings), and what the agent's own test packets have added to
/// `rule_hits` and pairs. The agent is the only writer, and only adds.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RuleEnded {
    /// Packets that were translated.
    pub sent: Traffic,
    /// Test packets that passed.
    pub own: Traffic,
    /// Mappings that began for test packets.
    pub own_flows: u64,
    /// The time of the last packet in `sent`, in ticks.
    pub last: u32,
    /// Padding, always zero.
    pub pad: u32,
}

/// Returns the index in `rule_hits` of a rule.
#[inline(always)]
#[must_use]
pub const fn rule_index(rule: u32) -> u32 {
    if rule < RULE_HITS {
        rule
    } else {
        RULE_HITS - 1
    }
}

/// The most slots of `bypass_cache`, as a power of two: a table without chains, in which the last pair
/// replaces the earlier one. 8,192 pairs take 512 KiB of each CPU, and 4,096 pairs of consecutive
/// addresses do not meet.
pub const PAIR_BITS: u32 = 13;

/// The fewest slots, where there are very many CPUs: 1,024.
pub const MIN_PAIR_BITS: u32 = 10;

/// Returns the index in `bypass_cache` of a slot of a CPU, whose slots lie side by side.
#[inline(always)]
#[must_use]
pub const fn pair_index(cpu: u32, bits: u32, slot: u32) -> u32 {
    cpu << bits | slot
}

/// Value of `bypass_cache`: a pair of addresses between which packets of one CPU are bypassed. It fills a
/// cache line: the map begins at a page.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pair {
    /// The pod's address.
    pub pod: Addr,
    /// The address of its peer.
    pub peer: Addr,
    /// The epoch ([`super::Settings::epoch`]) in which the pair was found to be bypassed.
    pub epoch: u32,
    /// The index in `rule_hits` of the rule that bypasses it, plus 1; 0 if the slot is free.
    pub rule: u32,
    /// Packets of the pod that hit the pair, and are not in `rule_hits` yet.
    pub hits: Traffic,
    /// Packets that hit the same pair in earlier epochs.
    pub earlier: u64,
}

impl Pair {
    /// Returns the packets that have hit it in all epochs, as far as it has stayed in its slot.
    #[inline(always)]
    #[must_use]
    pub const fn packets(&self) -> u64 {
        self.earlier.wrapping_add(self.hits.packets)
    }
}
