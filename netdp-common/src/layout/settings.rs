//! The settings, and the limits of pods.

/// The number of `--to-ports` ranges that the datapath holds.
pub const PORT_RANGES: usize = 4;

/// An inclusive range of ports in host byte order; empty when `min > max`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortRange {
    /// First port, host byte order.
    pub min: u16,
    /// Last port, inclusive.
    pub max: u16,
}

impl PortRange {
    /// The range without any port.
    pub const EMPTY: Self = Self { min: 1, max: 0 };

    /// Builds the range from `min` to `max`, both included.
    #[inline(always)]
    #[must_use]
    pub const fn new(min: u16, max: u16) -> Self {
        Self { min, max }
    }

    /// Returns the number of ports.
    #[inline(always)]
    #[must_use]
    pub const fn len(&self) -> u32 {
        if self.min > self.max {
            0
        } else {
            self.max as u32 - self.min as u32 + 1
        }
    }

    /// Reports whether the range is empty.
    #[inline(always)]
    #[must_use]
    pub const fn is_empty(&self) -> bool {
        self.min > self.max
    }
}

/// [`Settings::flags`]: IPv6 is also translated.
pub const SETTING_IPV6: u32 = 1;

/// [`Settings::flags`]: [`Settings::ports`] is configured and replaces port classes.
pub const SETTING_PORTS: u32 = 2;

/// [`Settings::flags`]: source ports are never preserved but random.
pub const SETTING_RANDOM_PORTS: u32 = 4;

/// [`Settings::flags`]: source ports are never preserved but derived from a hash of the tuple.
pub const SETTING_HASH_PORTS: u32 = 8;

/// [`Settings::flags`]: a pod's UDP port has the same wire port for every destination
/// (endpoint-independent mapping, RFC 4787 REQ-1).
pub const SETTING_UDP_ENDPOINTS: u32 = 16;

/// [`Settings::flags`]: there is no live mapping whose destination the policy bypasses. Only then
/// may bypassed packets pass without a mapping lookup (`nat::policy::passes`).
/// Cleared with each change of the policy, until a sweep over all mappings has found none.
pub const SETTING_BYPASS_CACHE_VALID: u32 = 32;

/// [`Settings::flags`]: connections that an earlier policy bypassed end after
/// [`crate::flow::DRAIN_SECONDS`] of silence.
pub const SETTING_DRAIN: u32 = 64;

/// [`Settings::flags`]: the wire endpoints of pods are recorded, for [`crate::nat::hairpin`].
pub const SETTING_HAIRPIN: u32 = 128;

/// [`Settings::flags`]: the interface by which a packet came is not compared with the location of
/// its source: interfaces of a VRF appear as the VRF.
pub const SETTING_ANY_SOURCE: u32 = 256;

/// [`Settings::flags`]: programs run at more than one interface, so that a reply may arrive by one
/// and leave for its pod by another.
pub const SETTING_SEVERAL_UPLINKS: u32 = 512;

/// [`Settings::flags`]: programs report the mappings that they end ([`super::Ended`]).
pub const SETTING_LOG_ENDS: u32 = 1024;

/// [`Settings::no_leak`]: packets that cannot be translated are dropped.
pub const NO_LEAK_DROP: u32 = 0;

/// [`Settings::no_leak`]: packets that cannot be translated leave unmodified.
pub const NO_LEAK_PASS: u32 = 1;

/// [`Settings::no_leak`]: packets that cannot be translated leave with the node's address.
pub const NO_LEAK_ADDRESS: u32 = 2;

/// The single entry of the settings map.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The latest [`super::LAYOUT`] of which programs have been attached: the maps may hold what
    /// programs of that layout write. 0 until the first are attached.
    pub layout: u32,
    /// The active policy trie: 0 or 1.
    pub active_policy: u32,
    /// `SETTING_*` bits.
    pub flags: u32,
    /// One of `NO_LEAK_*`.
    pub no_leak: u32,
    /// Ports that mappings may use if `SETTING_PORTS` is set.
    pub ports: [PortRange; PORT_RANGES],
    /// Added to the clock, in ticks (wrapping): lets a test shift the time.
    pub clock_offset: u32,
    /// The number of policies that have been in force.
    pub generation: u32,
    /// The number of changes of policies, the node's addresses and uplinks, of removals of its
    /// hardware addresses, and of agents' starts: of all that cached decisions depend on. Whatever a program caches of them is valid for
    /// one epoch. Written after the change that it counts.
    pub epoch: u32,
    /// The kinds of events that somebody listens to (`EVENTS_*` bits), and the rate up to which they
    /// are reported ([`super::events_setting`]); 0 while nobody listens.
    pub events: u32,
}

/// The node's secret: 128 bits, the key of hashes that must not be predictable outside the node.
pub type Secret = [u64; 2];

/// The single entry of the limits map: the limits of pods, and the node's secret.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The key of hashes that must not be predictable outside the node.
    pub secret: Secret,
    /// The capacity of the mapping tables, in mappings.
    pub capacity: u32,
    /// The capacity of `inbound_live`, in flows.
    pub inbound_capacity: u32,
    /// Maximum number of mappings of one pod; 0 for no fixed limit.
    pub flows: u32,
    /// New mappings of one pod per second; 0 for no limit.
    pub rate: u32,
    /// Burst of new mappings of one pod, if `rate` is set.
    pub burst: u32,
    /// Padding, always zero.
    pub pad: u32,
}

impl Limits {
    /// No limit of a pod, tables without end, and no secret: where there is no entry, or no datapath.
    pub const UNLIMITED: Self = Self {
        secret: [0; 2],
        capacity: u32::MAX,
        inbound_capacity: u32::MAX,
        flows: 0,
        rate: 0,
        burst: 0,
        pad: 0,
    };
}
