//! Drop reasons and their counters.

use crate::direction::Direction;

macro_rules! drop_reasons {
    ($($(#[doc = $doc:literal])+ $name:ident => $field:ident,)+) => {
        /// A drop reason. Each has its own counter.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u32)]
        pub enum DropReason {
            $($(#[doc = $doc])+ $name,)+
        }

        impl DropReason {
            /// Reports whether the reason is a refusal: the packet was valid but the node could not
            /// serve it.
            #[inline(always)]
            #[must_use]
            pub const fn is_refusal(self) -> bool {
                matches!(
                    self,
                    Self::NoFreePort
                        | Self::TableFull
                        | Self::NoSourceAddress
                        | Self::NodeProtocol
                        | Self::PodLimit
                        | Self::IpsecPolicy
                )
            }

            /// Reports whether the packet itself is at fault, so that `--untranslatable` decides
            /// what happens to it.
            #[inline(always)]
            #[must_use]
            pub const fn is_untranslatable(self) -> bool {
                matches!(
                    self,
                    Self::Malformed
                        | Self::UnsupportedProtocol
                        | Self::ExtensionHeader
                        | Self::IcmpNoFlow
                        | Self::TcpNoFlow
                )
            }

            /// Returns the direction of the packets that are dropped for the reason: whether their
            /// source or their destination was to be translated. A hairpin packet is first of the one,
            /// then of the other. `None`: the reason is counted for both together.
            #[must_use]
            pub const fn direction(self) -> Option<Direction> {
                match self {
                    Self::RewriteFailed | Self::FragmentOfDropped | Self::IcmpNoFlow => None,
                    Self::Unsolicited => Some(Direction::Ingress),
                    Self::Malformed
                    | Self::UnsupportedProtocol
                    | Self::ExtensionHeader
                    | Self::TcpNoFlow
                    | Self::NoSourceAddress
                    | Self::NoFreePort
                    | Self::TableFull
                    | Self::ForgedSource
                    | Self::NodeProtocol
                    | Self::PodLimit
                    | Self::IpsecPolicy => Some(Direction::Egress),
                }
            }

            /// All drop reasons.
            pub const ALL: &[Self] = &[$(Self::$name),+];

            /// Returns the name of the reason's counter, the field of [`Drops`] at position `self
            /// as usize`.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$name => stringify!($field),)+
                }
            }
        }

        /// Packets dropped, by reason.
        #[repr(C)]
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Drops {
            $($(#[doc = $doc])+ pub $field: u64,)+
        }

        impl Drops {
            /// Returns the counter of a reason.
            #[must_use]
            pub const fn get(&self, reason: DropReason) -> u64 {
                match reason {
                    $(DropReason::$name => self.$field,)+
                }
            }

            /// Returns the counter of a reason for modification.
            pub const fn get_mut(&mut self, reason: DropReason) -> &mut u64 {
                match reason {
                    $(DropReason::$name => &mut self.$field,)+
                }
            }
        }
    };
}

drop_reasons! {
    /// The IP or L4 header is truncated or inconsistent.
    Malformed => malformed,
    /// A protocol that the datapath does not translate.
    UnsupportedProtocol => unsupported_protocol,
    /// More IPv6 extension headers than the parser skips, or one that it does not support.
    ExtensionHeader => extension_header,
    /// A fragment of a datagram whose first fragment was dropped.
    FragmentOfDropped => fragment_of_dropped,
    /// An ICMP message that belongs to no mapping.
    IcmpNoFlow => icmp_no_flow,
    /// A TCP segment that opens no connection and belongs to no mapping.
    TcpNoFlow => tcp_no_flow,
    /// The uplink has no address of the packet's family.
    NoSourceAddress => no_source_address,
    /// No port is free towards this destination.
    NoFreePort => no_free_port,
    /// The mapping tables are full, or the pod has used up its share of them.
    TableFull => table_full,
    /// A pod's packet to another pod's endpoint on the wire that the other pod has not sent to.
    Unsolicited => unsolicited,
    /// The kernel failed to rewrite the packet.
    RewriteFailed => rewrite_failed,
    /// A pod's packet whose source is a pod behind another interface.
    ForgedSource => forged_source,
    /// The node itself uses this protocol, which has no ports, with the destination.
    NodeProtocol => node_protocol,
    /// The pod has reached its limit of mappings, or of new mappings per time.
    PodLimit => pod_limit,
    /// With the node's address the packet would match an IPsec policy, yet leave in clear text.
    IpsecPolicy => ipsec_policy,
}
