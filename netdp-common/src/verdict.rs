//! What becomes of a packet.

/// The end of a decision. One word (the reasons leave room for the others),
/// because a BPF function returns one register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Leave the packet as it is.
    Pass,
    /// Put [`crate::packet::Packet::new`] in.
    Rewrite,
    /// An ICMP error: put it in outside, and inside the packet it is about.
    RewriteError,
    /// An ICMP error that the node itself sends: put it in inside only.
    RewriteInner,
    /// Hold the fragment back until the first one of its datagram comes; pass it
    /// if there is no room.
    Hold,
    /// Drop it: it can't be translated and must not leak.
    Drop(DropReason),
}

macro_rules! drop_reasons {
    ($($(#[doc = $doc:literal])+ $name:ident => $field:ident,)+) => {
        /// Why a packet was dropped. Each reason has its own counter.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u32)]
        pub enum DropReason {
            $($(#[doc = $doc])+ $name,)+
        }

        impl DropReason {
            /// Whether the packet was fine but the node could not serve it.
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

            /// Whether the packet itself is at fault, so that the no-leak
            /// policy may decide otherwise.
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

            /// Every reason.
            pub const ALL: &[Self] = &[$(Self::$name),+];

            /// The reason in the words of its counter, a field of [`Drops`] at
            /// position `self as usize`.
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
            /// The count of a reason.
            #[must_use]
            pub const fn get(&self, reason: DropReason) -> u64 {
                match reason {
                    $(DropReason::$name => self.$field,)+
                }
            }

            /// The count of a reason, to change it.
            pub const fn get_mut(&mut self, reason: DropReason) -> &mut u64 {
                match reason {
                    $(DropReason::$name => &mut self.$field,)+
                }
            }
        }
    };
}

drop_reasons! {
    /// The IP or L4 header is cut short or contradicts itself.
    Malformed => malformed,
    /// A protocol that the datapath does not translate.
    UnsupportedProtocol => unsupported_protocol,
    /// More or other IPv6 extension headers than are understood.
    ExtensionHeader => extension_header,
    /// A fragment of a datagram whose first one was dropped.
    FragmentOfDropped => fragment_of_dropped,
    /// An ICMP message that belongs to no mapping.
    IcmpNoFlow => icmp_no_flow,
    /// A TCP segment that opens nothing and belongs to no mapping.
    TcpNoFlow => tcp_no_flow,
    /// The uplink has no address of the packet's family.
    NoSourceAddress => no_source_address,
    /// Every port towards this destination is taken.
    NoFreePort => no_free_port,
    /// The mapping tables are full, or the pod has its share of them.
    TableFull => table_full,
    /// A pod's packet to another pod's endpoint on the wire, which has not asked
    /// for it.
    Unasked => unasked,
    /// The kernel refused to change the packet.
    RewriteFailed => rewrite_failed,
    /// A pod's packet with the address of a pod that lives behind another interface.
    ForgedSource => forged_source,
    /// The node itself speaks this protocol, which has no ports, with the destination.
    NodeProtocol => node_protocol,
    /// The pod has as many mappings, or has begun as many in this time, as it may.
    PodLimit => pod_limit,
    /// With the node's address the packet would fall under an IPsec policy, and leave in clear.
    IpsecPolicy => ipsec_policy,
}

const _: () = assert!(size_of::<Verdict>() == 4 && size_of::<Option<Verdict>>() == 4);
