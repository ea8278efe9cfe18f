//! A connection as connection tracking sees it.

use std::net::{IpAddr, Ipv4Addr};

/// The IPv4 dummy address (RFC 7600).
const DUMMY: Ipv4Addr = Ipv4Addr::new(192, 0, 0, 8);

/// A protocol number for experiments (RFC 3692).
const EXPERIMENT: u8 = 253;

/// Seconds: the kernel keeps no entry for longer than `INT_MAX` jiffies, and cuts this to 24 days or
/// more (`__nf_ct_set_timeout`, Linux 6.18).
const LONGEST: u32 = 99 * 86_400;

/// One direction: what packets show when they come in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ends {
    /// Source address.
    pub source: IpAddr,
    /// Destination address.
    pub destination: IpAddr,
    /// Source port, or ICMP identifier; 0 where the protocol has neither.
    pub source_id: u16,
    /// Destination port, or ICMP identifier.
    pub destination_id: u16,
}

impl Ends {
    /// The other way round.
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

/// States of a TCP connection that matter here
/// (include/uapi/linux/netfilter/nf_conntrack_tcp.h).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TcpState {
    /// Both sides have agreed.
    Established,
    /// Any other, by its number.
    Other(u8),
}

impl TcpState {
    /// `TCP_CONNTRACK_ESTABLISHED`.
    const ESTABLISHED: u8 = 3;

    /// From the kernel's number.
    #[must_use]
    pub const fn from_raw(raw: u8) -> Self {
        match raw {
            Self::ESTABLISHED => Self::Established,
            other => Self::Other(other),
        }
    }

    /// The kernel's number.
    #[must_use]
    pub const fn raw(self) -> u8 {
        match self {
            Self::Established => Self::ESTABLISHED,
            Self::Other(raw) => raw,
        }
    }
}

/// A connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Flow {
    /// IP protocol number.
    pub protocol: u8,
    /// As its first packet came in.
    pub original: Ends,
    /// As answers come in.
    pub reply: Ends,
    /// Whether an answer was seen.
    pub answered: bool,
    /// Seconds until it is forgotten.
    pub timeout: u32,
    /// State, of TCP.
    pub tcp: Option<TcpState>,
    /// Whether it is TCP and tracking met it in mid-stream, by a packet of either side.
    pub picked_up: bool,
}

impl Flow {
    /// What leaves the node in the original direction.
    #[must_use]
    pub const fn leaves(&self) -> Ends {
        self.reply.reversed()
    }

    /// What [`Conntrack::mark`](super::Conntrack::mark) leaves: no packet is of this flow.
    #[must_use]
    pub const fn mark() -> Self {
        let original = Ends {
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

    /// Whether it is that.
    #[must_use]
    pub fn is_mark(&self) -> bool {
        let mark = Self::mark();
        (self.protocol, self.original) == (mark.protocol, mark.original)
    }

    /// Whether netfilter replaces the source.
    #[must_use]
    pub fn is_masqueraded(&self) -> bool {
        (self.original.source, self.original.source_id)
            != (self.reply.destination, self.reply.destination_id)
    }
}
