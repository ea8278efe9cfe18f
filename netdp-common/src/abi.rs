//! The interface between datapath and user space: keys, values and names of maps.
//!
//! Every type is `repr(C)` with its padding named and zeroed; no bool, enum or `Option` crosses the
//! boundary. The layout is versioned by [`LAYOUT`].

use crate::addr::Addr;
use crate::conntrack::Closing;
use crate::tuple::{Tuple, proto};
use crate::verdict::Drops;

/// Version of everything in this file. A pinned map with another version is not
/// adopted.
pub const LAYOUT: u32 = 1;

/// The number of `--to-ports` ranges that the datapath holds.
pub const PORT_RANGES: usize = 4;

/// Words of the reserved-port bitmap: 65,536 ports.
pub const RESERVED_WORDS: usize = 1024;

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

/// The policy's action for new flows to a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[repr(u32)]
pub enum Action {
    /// Bypass: leave the source as it is (a non-masquerade CIDR).
    Bypass = 1,
    /// Masquerade with the uplink's address.
    Masquerade = 2,
    /// Drop: with the uplink's address the packet would match an IPsec policy of the node, but the
    /// kernel has already looked up the policy for the pod's address and does not repeat the
    /// lookup.
    Withhold = 3,
}

impl Action {
    /// Returns the action for the number in a [`PolicyValue`]. Numbers of a newer version
    /// masquerade: the choice that leaks nothing.
    #[inline(always)]
    #[must_use]
    pub const fn from_raw(raw: u32) -> Self {
        match raw & ACTION_MASK {
            1 => Self::Bypass,
            3 => Self::Withhold,
            _ => Self::Masquerade,
        }
    }
}

/// The part of [`PolicyValue::action`] that is an [`Action`].
pub const ACTION_MASK: u32 = 0xff;
/// [`PolicyValue::action`]: masqueraded now, but an earlier policy bypassed these
/// destinations. Connections of that time may still be alive.
pub const POLICY_WAS_BYPASSED: u32 = 0x100;
/// [`PolicyValue::action`]: no rule has this prefix. The entry only marks where
/// [`POLICY_WAS_BYPASSED`] begins or ends; the rest is that of the covering entry.
pub const POLICY_NO_RULE: u32 = 0x200;

/// Value of the policy tries.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PolicyValue {
    /// An [`Action`] as number (1 bypass, 2 masquerade, 3 withhold) and `POLICY_*` bits.
    pub action: u32,
    /// The rule's number, which is stable across policy changes that keep its prefix; `u32::MAX` if
    /// no rule decides.
    pub rule: u32,
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
/// may bypassed packets pass without a mapping lookup ([`crate::tables::Tables::is_known_bypass`]).
/// Cleared with each change of the policy, until a sweep over all mappings has found none.
pub const SETTING_NONE_STICKY: u32 = 32;
/// [`Settings::flags`]: connections that an earlier policy bypassed end after
/// [`crate::conntrack::DRAIN_SECONDS`] of silence.
pub const SETTING_DRAIN: u32 = 64;
/// [`Settings::flags`]: the wire endpoints of pods are recorded, for [`crate::nat::hairpin`].
pub const SETTING_HAIRPIN: u32 = 128;

/// [`Settings::flags`]: the interface by which a packet came is not compared with the location of
/// its source: interfaces of a VRF appear as the VRF.
pub const SETTING_ANY_SOURCE: u32 = 256;

/// [`Settings::flags`]: programs run at more than one interface, so that a reply may arrive by one
/// and leave for its pod by another.
pub const SETTING_SEVERAL_UPLINKS: u32 = 512;

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
    /// [`LAYOUT`] of the version that wrote the maps.
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
    /// The number of changes of policies, the node's addresses and uplinks: of all that decisions
    /// depend on. Whatever a program caches of them is valid for one epoch. Written after the
    /// change that it counts.
    pub epoch: u32,
    /// Padding, always zero.
    pub pad: u32,
}

/// [`Uplink::flags`]: `v4` is set.
pub const UPLINK_V4: u32 = 1;
/// [`Uplink::flags`]: `v6` is set.
pub const UPLINK_V6: u32 = 2;
/// [`Uplink::flags`]: packets with a VLAN tag do not belong to this uplink.
pub const UPLINK_UNTAGGED: u32 = 4;

/// [`Uplink::flags`]: the interface is an observed interface, not an uplink: only packets that
/// arrive by it are examined.
pub const UPLINK_OBSERVED: u32 = 8;

/// Value of the uplinks map; the key is the interface index.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Uplink {
    /// Address for masqueraded IPv4, if `UPLINK_V4`.
    pub v4: Addr,
    /// Address for masqueraded IPv6, if `UPLINK_V6`.
    pub v6: Addr,
    /// Bytes before the IP header: 14 on Ethernet, 0 on devices without one.
    pub l2_len: u32,
    /// `UPLINK_*` bits.
    pub flags: u32,
}

/// [`SourceKey::link`]: `addr` is the source that the kernel selects for packets by that interface.
pub const SOURCE_NAMED: u32 = 1 << 31;

/// [`SourceKey::link`] of addresses whose packets the node receives although it does not have them;
/// no interface has this index.
pub const SOURCE_ANY_IP: u32 = 0;

/// Key of the trie of sources: an interface, and an address to look up.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SourceKey {
    /// The index of the interface, and [`SOURCE_NAMED`] if `addr` is a source; otherwise that is a
    /// next hop.
    pub link: u32,
    /// IPv4 or IPv6, network byte order.
    pub addr: Addr,
}

/// Value of the trie of sources: the source address of leaving packets.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Source {
    /// IPv4 or IPv6, network byte order.
    pub addr: Addr,
    /// The index of the uplink at whose hooks the source is valid.
    pub via: u32,
}

/// Key of the set of hardware addresses by which the node itself sends at an uplink.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct MacKey {
    /// The interface index of the uplink.
    pub link: u32,
    /// The hardware address; all zeros marks that those of this uplink are known.
    pub mac: [u8; 6],
    /// Padding, always zero.
    pub pad: u16,
}

/// [`Mapping::flags`]: the wire tuple belongs to the node itself. The entry is a reservation
/// against pods; packets pass unmodified.
pub const MAPPING_HOST: u16 = 1;
/// [`Mapping::flags`]: the mapping began with a mid-stream TCP segment.
pub const MAPPING_PICKUP: u16 = 2;

/// [`Mapping::flags`] of a reply half: netfilter may already translate the flow. Packets that leave
/// with its wire tuple and the node's source pass unmodified.
pub const MAPPING_HANDED: u16 = 4;
/// [`Mapping::flags`] of a reply half: netfilter translates the flow. Packets that arrive for it
/// pass unmodified.
pub const MAPPING_YIELDED: u16 = 8;

/// [`Mapping::flags`] of an original half: the lower bits of the index of the interface by which
/// the pod's last packet came, see [`origin_tag`].
pub const MAPPING_ORIGIN: u16 = 0x7ff0;
/// [`Mapping::flags`] of an original half: counted against that interface, not the pod
/// ([`crate::share`]).
pub const MAPPING_BY_INTERFACE: u16 = 0x8000;

/// Returns the bits of [`MAPPING_ORIGIN`] for an interface index; 0 for packets of the node itself.
#[inline(always)]
#[must_use]
#[expect(clippy::cast_possible_truncation, reason = "masked")]
pub const fn origin_tag(ifindex: u32) -> u16 {
    (ifindex << 4) as u16 & MAPPING_ORIGIN
}

/// One half of a mapping. The SNAT map holds the original direction (key: the original tuple;
/// value: the external endpoint), the RevSNAT map the reply direction (key: the wire tuple; value:
/// the pod's endpoint). Each half records only the packets of its own direction, so that a packet
/// writes to one entry only.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// Address that replaces the packet's source (SNAT) or destination (RevSNAT).
    pub addr: Addr,
    /// Port or ICMP identifier that goes with it, host byte order.
    pub id: u16,
    /// `MAPPING_*` bits.
    pub flags: u16,
    /// Last packet of this direction, in ticks (see [`crate::conntrack`]).
    pub last_seen: u32,
    /// The time at which the mapping was created, in ticks.
    pub created: u32,
    /// Last TCP acknowledgement number of this direction; in the original half, before there was
    /// one, the number that acknowledges its SYN.
    pub tcp_ack: u32,
    /// TCP flags seen in this direction: `conntrack::SEEN_*` bits.
    pub tcp_seen: u8,
    /// In an original half: the lower bits of the epoch ([`Settings::epoch`]) in which its address
    /// was last found to be right for where the packets leave. In a reply half: the upper bits of
    /// [`Closing`].
    pub epoch: u8,
    /// In an original half: the lower bits of the index of the interface by which its packets
    /// leave; 0 if unknown. In a reply half: the lower bits of [`Closing`].
    pub uplink: u16,
    /// Packets in this direction (wrapping).
    pub packets: u32,
}

impl Mapping {
    /// Returns the `conntrack::SEEN_*` bits of this direction.
    #[inline(always)]
    #[must_use]
    pub const fn seen(&self) -> u32 {
        self.tcp_seen as u32
    }

    /// Returns how far the connection of a reply half has closed.
    #[must_use]
    pub const fn closing(&self) -> Closing {
        Closing::from_parts(self.epoch, self.uplink)
    }
}

/// A flow that keeps the pod's address although its peer is masqueraded: it began outside, to an
/// address behind the node, or an earlier policy bypassed it. Holds flows that the pod has not
/// answered yet, closed flows, and flows whose pod or peer has used up its share; all others are in
/// [`Live`]. Key: the tuple of the pod's packets.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Inbound {
    /// Last packet in either direction, in ticks.
    pub last_seen: u32,
    /// Silence in ticks after which the record expires; 0 stands for
    /// [`crate::conntrack::INBOUND_SECONDS`], the maximum for [`crate::conntrack::asked_seconds`].
    pub limit: u32,
}

/// [`Live::seen`]: the pod has sent a FIN.
pub const LIVE_FIN_OUT: u32 = 1;
/// [`Live::seen`]: the peer has sent a FIN.
pub const LIVE_FIN_IN: u32 = 2;
/// [`Live::seen`]: the position of the lower 16 bits of the index of the interface by which the
/// pod's last packet came.
pub const LIVE_ORIGIN_SHIFT: u32 = 16;

/// A flow as [`Inbound`] that the pod has answered. Same key. Value of `inbound_live`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Live {
    /// Last packet in either direction, in ticks.
    pub last_seen: u32,
    /// Silence in ticks after which it has ended; 0: by its protocol and state.
    pub limit: u32,
    /// `LIVE_*` bits and the interface.
    pub seen: u32,
    /// Last TCP acknowledgement number of the pod.
    pub ack: u32,
}

/// Value of `node_flows`: a flow of the node itself that no socket lookup finds, such as the
/// replies of a hostPort. Key: the wire tuple.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NodeFlow {
    /// Last packet that left, in ticks.
    pub last_seen: u32,
    /// Silence in ticks after which the record expires.
    pub limit: u32,
}

/// The single entry of the limits map: the limits of pods, and the node's secret.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The key of hashes that must not be predictable outside the node.
    pub secret: crate::siphash::Key,
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

/// The single entry of `recent_at`: the number of mappings ever put into the ring, and taken out
/// (wrapping).
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RecentAt {
    /// Number put in (wrapping).
    pub put: u32,
    /// Number taken out (wrapping).
    pub taken: u32,
}

/// Entries of the ring of the most recent mappings: a power of two.
pub const RECENT: u32 = 65_536;

/// [`Fragment::verdict`]: fragments of the datagram pass.
pub const FRAGMENT_PASS: u32 = 0;
/// [`Fragment::verdict`]: fragments of the datagram are rewritten.
pub const FRAGMENT_REWRITE: u32 = 1;
/// [`Fragment::verdict`]: fragments of the datagram are dropped.
pub const FRAGMENT_DROP: u32 = 2;

/// `node_ports`: the node answers on this TCP port, although it may have no listening socket there
/// (a hostPort, a service).
pub const NODE_PORT_TCP: u32 = 1;
/// `node_ports`: the node answers on this UDP port, likewise.
pub const NODE_PORT_UDP: u32 = 2;
/// `node_ports`: a service or socket of the node has this SCTP port.
pub const NODE_PORT_SCTP: u32 = 4;
/// `node_ports`: a service or socket of the node has this UDP-Lite port.
pub const NODE_PORT_UDP_LITE: u32 = 8;
/// `node_ports`: a service or socket of the node has this DCCP port.
pub const NODE_PORT_DCCP: u32 = 16;

/// Returns the bit of a protocol in `node_ports`; 0 for one without ports.
#[inline(always)]
#[must_use]
pub const fn node_port_bit(protocol: u32) -> u32 {
    match protocol {
        proto::TCP => NODE_PORT_TCP,
        proto::UDP => NODE_PORT_UDP,
        proto::SCTP => NODE_PORT_SCTP,
        proto::UDP_LITE => NODE_PORT_UDP_LITE,
        proto::DCCP => NODE_PORT_DCCP,
        _ => 0,
    }
}

/// Key of `node_protocols`: the node itself uses this protocol, which has no ports, with this peer
/// (a tunnel, IPsec, a routing daemon).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeProtocol {
    /// The peer; the family's unspecified address stands for any.
    pub peer: Addr,
    /// IP protocol number.
    pub proto: u32,
    /// Padding, always zero.
    pub pad: u32,
}

impl NodeProtocol {
    /// Builds the key for `proto` with `peer`.
    #[inline(always)]
    #[must_use]
    pub const fn new(peer: Addr, proto: u32) -> Self {
        Self {
            peer,
            proto,
            pad: 0,
        }
    }
}

/// The verdict for the fragments of one datagram. Key: a [`Tuple`] whose ids hold the upper and the
/// lower half of the IP identification.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fragment {
    /// The address to write into the packet.
    pub addr: Addr,
    /// One of `FRAGMENT_*`.
    pub verdict: u32,
    /// The IPv4 identification to write, or `packet::KEEP_IP_ID`.
    pub new_ip_id: u32,
    /// The time of the last fragment, in ticks.
    pub last_seen: u32,
    /// Padding, always zero.
    pub pad: u32,
}

/// Packet counters by outcome; one entry for each CPU.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Egress: source rewritten.
    pub egress_masqueraded: u64,
    /// Egress: passed because the policy bypasses the destination.
    pub egress_bypassed: u64,
    /// Egress: packets of the node itself.
    pub egress_host: u64,
    /// Egress: replies of inbound flows.
    pub egress_replies: u64,
    /// Egress: passed because it is never translated (multicast and similar).
    pub egress_untouched: u64,
    /// Ingress: destination rewritten to the pod.
    pub ingress_translated: u64,
    /// Ingress: belongs to no mapping; passed to the node.
    pub ingress_passed: u64,
    /// Egress: could not be translated, but passed by the no-leak policy.
    pub egress_let_out: u64,
    /// ICMP errors translated, in both directions.
    pub errors_translated: u64,
    /// Ingress: fragments queued until the first one of their datagram arrived.
    pub fragments_held: u64,
    /// Mappings created by the programs.
    pub mappings_created: u64,
    /// Mappings that could not preserve their source port.
    pub ports_changed: u64,
    /// Packets dropped, by reason.
    pub drops: Drops,
}

/// File names of the pinned maps below the `--bpffs` directory.
pub mod pins {
    /// [`super::Tuple`] → [`super::Mapping`], original direction.
    pub const SNAT: &str = "snat";
    /// [`super::Tuple`] → [`super::Mapping`], reply direction.
    pub const REV_SNAT: &str = "rev_snat";
    /// Prefix → [`super::PolicyValue`]; in force while `active_policy` is 0.
    pub const POLICY_0: &str = "policy_0";
    /// Prefix → [`super::PolicyValue`]; in force while `active_policy` is 1.
    pub const POLICY_1: &str = "policy_1";
    /// Interface index → [`super::Uplink`].
    pub const UPLINKS: &str = "uplinks";
    /// [`super::Addr`] → 1, every address of the node.
    pub const LOCAL_ADDRS: &str = "local_addrs";
    /// [`super::Tuple`] → [`super::Inbound`].
    pub const INBOUND: &str = "inbound";
    /// [`super::Tuple`] → [`super::Fragment`].
    pub const FRAGMENTS: &str = "fragments";
    /// 0 → [`super::Settings`].
    pub const SETTINGS: &str = "settings";
    /// 0 → [`super::Counters`], per CPU.
    pub const COUNTERS: &str = "counters";
    /// Port / 64 → bitmap word.
    pub const RESERVED_PORTS: &str = "reserved_ports";

    /// Port → `NODE_PORT_*` bits.
    pub const NODE_PORTS: &str = "node_ports";
    /// [`super::NodeProtocol`] → 1.
    pub const NODE_PROTOCOLS: &str = "node_protocols";

    /// [`super::Tuple`] → [`super::Live`].
    pub const INBOUND_LIVE: &str = "inbound_live";
    /// 0 → 1 once anything has been written to `inbound` or `inbound_live`.
    pub const INBOUND_USED: &str = "inbound_used";
    /// [`super::Tuple`] → [`super::Fragment`], on ingress.
    pub const FRAGMENTS_IN: &str = "fragments_in";
    /// [`super::Tuple`] → [`super::NodeFlow`].
    pub const NODE_FLOWS: &str = "node_flows";
    /// 0 → [`super::Limits`].
    pub const LIMITS: &str = "limits";
    /// Bucket → [`crate::share::Share`].
    pub const SHARES: &str = "shares";
    /// Bucket → [`crate::share::Ended`].
    pub const SHARES_ENDED: &str = "shares_ended";
    /// Number → [`super::Tuple`] of a mapping.
    pub const RECENT: &str = "recent";
    /// 0 → [`super::RecentAt`].
    pub const RECENT_AT: &str = "recent_at";
    /// Number → [`crate::port_map::Owner`].
    pub const PORT_MAP_OWNERS: &str = "port_map_owners";
    /// Number → [`crate::port_map::Bits`].
    pub const PORT_MAPS: &str = "port_maps";

    /// All maps: pin file name and the name in the eBPF object.
    pub const ALL: &[(&str, &str)] = &[
        (SNAT, "SNAT"),
        (REV_SNAT, "REV_SNAT"),
        (POLICY_0, "POLICY_0"),
        (POLICY_1, "POLICY_1"),
        (UPLINKS, "UPLINKS"),
        (LOCAL_ADDRS, "LOCAL_ADDRS"),
        (INBOUND, "INBOUND"),
        (FRAGMENTS, "FRAGMENTS"),
        (SETTINGS, "SETTINGS"),
        (COUNTERS, "COUNTERS"),
        (RESERVED_PORTS, "RESERVED_PORTS"),
        (NODE_PORTS, "NODE_PORTS"),
        (NODE_PROTOCOLS, "NODE_PROTOCOLS"),
        (INBOUND_LIVE, "INBOUND_LIVE"),
        (INBOUND_USED, "INBOUND_USED"),
        (FRAGMENTS_IN, "FRAGMENTS_IN"),
        (NODE_FLOWS, "NODE_FLOWS"),
        (LIMITS, "LIMITS"),
        (SHARES, "SHARES"),
        (SHARES_ENDED, "SHARES_ENDED"),
        (RECENT, "RECENT"),
        (RECENT_AT, "RECENT_AT"),
        (PORT_MAP_OWNERS, "PORT_MAP_OWNERS"),
        (PORT_MAPS, "PORT_MAPS"),
    ];
}

const _: () = {
    assert!(size_of::<Addr>() == 16);
    assert!(size_of::<Tuple>() == 40);
    assert!(size_of::<Mapping>() == 40);
    assert!(size_of::<Settings>() == 48);
    assert!(size_of::<Uplink>() == 40);
    assert!(size_of::<SourceKey>() == 20);
    assert!(size_of::<Source>() == 20);
    assert!(size_of::<MacKey>() == 12);
    assert!(size_of::<Inbound>() == 8);
    assert!(size_of::<Fragment>() == 32);
    assert!(size_of::<PolicyValue>() == 8);
    assert!(size_of::<NodeProtocol>() == 24);
    assert!(size_of::<NodeFlow>() == 8);
    assert!(size_of::<Live>() == 16);
    assert!(size_of::<Limits>() == 40);
    assert!(size_of::<crate::share::Share>() == 64);
    assert!(size_of::<crate::share::Ended>() == 16);
    assert!(size_of::<crate::port_map::Owner>() == 64);
    assert!(size_of::<crate::port_map::Bits>() == 8192);
    assert!(size_of::<crate::packet::Endpoint>() == 20);
    assert!(size_of::<Counters>() == 96 + size_of::<Drops>());
};

#[cfg(feature = "user")]
mod user {
    use crate::packet::Endpoint;

    use crate::port_map::{Bits, Owner};
    use crate::share::{Ended, Share};

    use super::{
        Addr, Counters, Inbound, Limits, Live, MacKey, Mapping, NodeFlow, NodeProtocol,
        PolicyValue, Settings, Source, SourceKey, Tuple, Uplink,
    };

    macro_rules! pod {
        ($($name:ty),+) => {
            $(
                // SAFETY: repr(C), consists of integers and byte arrays only, with no implicit
                // padding (the sizes are asserted above).
                unsafe impl aya::Pod for $name {}
            )+
        };
    }

    pod!(
        Addr,
        Tuple,
        Mapping,
        Settings,
        Uplink,
        Inbound,
        PolicyValue,
        Counters,
        NodeProtocol,
        NodeFlow,
        Live,
        Limits,
        Share,
        Ended,
        Owner,
        Bits,
        Endpoint,
        Source,
        SourceKey,
        MacKey
    );
}
