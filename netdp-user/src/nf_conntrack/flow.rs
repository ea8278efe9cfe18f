//! A connection in the view of connection tracking.

use std::net::{IpAddr, Ipv4Addr};

/// IPv4 dummy address (RFC 7600).
const DUMMY: Ipv4Addr = Ipv4Addr::new(192, 0, 0, 8);

/// Protocol number for experiments (RFC 3692).
const EXPERIMENT: u8 = 253;

/// Longest timeout, in seconds: the kernel keeps no entry for longer than `INT_MAX` jiffies, and
/// cuts this to 24 days or more (`__nf_ct_set_timeout`, Linux 6.18).
const LONGEST: u32 = 99 * 86_400;

/// Addresses and L4 ids of one direction of a connection, as its packets arrive at the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NfTuple {
    /// Address of the sender.
    pub source: IpAddr,
    /// Address of the receiver.
    pub destination: IpAddr,
    /// Source port, or ICMP identifier; 0 where the protocol has neither.
    pub source_id: u16,
    /// Destination port, or ICMP identifier.
    pub destination_id: u16,
}

impl NfTuple {
    /// Returns the opposite direction: source and destination swapped.
    #[must_use]
    pub const fn reversed(&self) -> Self {
        Self {
            source: self.destination,
            destination: self.source,
            source_id: self.destination_id,
            destination_id: self.source_id,
        }
    }
}

/// States of a TCP connection that matter here (include/uapi/linux/netfilter/nf_conntrack_tcp.h).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NfTcpState {
    /// The handshake is complete.
    Established,
    /// Any other state, by the kernel's number.
    Other(u8),
}

impl NfTcpState {
    /// `TCP_CONNTRACK_ESTABLISHED`.
    const ESTABLISHED: u8 = 3;

    /// Converts from the kernel's number.
    #[must_use]
    pub const fn from_raw(raw: u8) -> Self {
        match raw {
            Self::ESTABLISHED => Self::Established,
            other => Self::Other(other),
        }
    }

    /// Returns the kernel's number.
    #[must_use]
    pub const fn raw(self) -> u8 {
        match self {
            Self::Established => Self::ESTABLISHED,
            Self::Other(raw) => raw,
        }
    }
}

/// An entry of connection tracking.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flow {
    /// IP protocol number, as in the IPv4 header.
    pub protocol: u8,
    /// Original direction, before translation.
    pub original: NfTuple,
    /// Reply direction, as replies arrive from the wire.
    pub reply: NfTuple,
    /// Set if a reply was seen.
    pub answered: bool,
    /// Remaining lifetime of the entry, in seconds.
    pub timeout: u32,
    /// State of a TCP connection.
    pub tcp: Option<NfTcpState>,
    /// Set if it is TCP and tracking picked it up in mid-stream, from a packet of either side.
    pub picked_up: bool,
}

impl Flow {
    /// Returns the tuple of the original direction as it leaves the node.
    #[must_use]
    pub const fn translated_original(&self) -> NfTuple {
        self.reply.reversed()
    }

    /// Returns the marker entry of [`Conntrack::mark`](super::Conntrack::mark): no packet belongs
    /// to this flow.
    #[must_use]
    pub const fn mark() -> Self {
        let original = NfTuple {
            source: IpAddr::V4(DUMMY),
            destination: IpAddr::V4(Ipv4Addr::LOCALHOST),
            source_id: 0,
            destination_id: 0,
        };
        Self {
            protocol: EXPERIMENT,
            original,
            reply: original.reversed(),
            answered: false,
            timeout: LONGEST,
            tcp: None,
            picked_up: false,
        }
    }

    /// Reports whether this is the marker entry.
    #[must_use]
    pub fn is_mark(&self) -> bool {
        let mark = Self::mark();
        (self.protocol, self.original) == (mark.protocol, mark.original)
    }

    /// Reports whether netfilter translates the source.
    #[must_use]
    pub fn is_masqueraded(&self) -> bool {
        (self.original.source, self.original.source_id)
            != (self.reply.destination, self.reply.destination_id)
    }
}
