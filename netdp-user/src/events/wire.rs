//! The protocol of the agent's socket: lines of JSON in both directions. Both sides are netdp;
//! their versions differ only during an upgrade.

use super::{Event, Kind, LostOfKind};
use serde::{Deserialize, Serialize};

/// The first line from whoever connects.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Request {
    /// Wants all events of these kinds from now on.
    Listen {
        /// The kinds.
        kinds: Vec<Kind>,
        /// The rate up to which the programs are to report, in events a second of each kind and CPU;
        /// 0 for the usual one.
        rate: u32,
    },
    /// Wants the packet of an event.
    Recall {
        /// The number of the event.
        id: u16,
    },
}

/// A line from the agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Reply {
    /// Events are reported from here on, up to this rate.
    Listening {
        /// Events a second of each kind and CPU.
        rate: u32,
    },
    /// An event.
    Event(Event),
    /// Numbers of events that were lost since the last such line.
    Lost(Vec<LostOfKind>),
    /// That was all: the listener has ended.
    End,
    /// The event that was wanted: the last one of its like.
    Recalled(Event),
    /// It can't be had.
    Error {
        /// The reason.
        text: String,
    },
}

impl Reply {
    /// Returns the line, with its end.
    pub(super) fn line(&self) -> String {
        // Of these types none can fail.
        let mut line = serde_json::to_string(self).unwrap_or_default();
        line.push('\n');
        line
    }
}
