//! Loads: the traffic that is sent through a bed.

use std::fmt;

/// Traffic sent through a bed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Load {
    /// Flows of the packets.
    pub flows: Flows,
    /// The destinations are masqueraded.
    pub masqueraded: bool,
    pub direction: Direction,
    pub servers: Servers,
}

/// Servers of a load's flows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Servers {
    /// Up to 16,384 flows have the same.
    Few,
    /// Each flow has its own: there are as many pairs of addresses as flows.
    Each,
}

/// Flows of a load: packet by packet in turn, or all new.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flows {
    /// This many flows, a power of two.
    Live(u32),
    /// A new flow for every packet.
    New,
}

/// Direction of a load's packets, relative to the client that has begun the flows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// The client sends.
    Original,
    /// The server sends, on existing flows.
    Reply,
}

impl fmt::Display for Load {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.flows {
            Flows::Live(1) => write!(f, "1 flow")?,
            Flows::Live(flows) => write!(f, "{flows} flows")?,
            Flows::New => write!(f, "all new flows")?,
        }
        if self.direction == Direction::Reply {
            write!(f, ", replies")?;
        }
        if !self.masqueraded {
            write!(f, ", bypassed")?;
        }
        if self.servers == Servers::Each {
            write!(f, ", each to another address")?;
        }
        Ok(())
    }
}
