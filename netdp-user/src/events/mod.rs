//! Events: begins and ends of mappings, refusals, drops, configurations, findings and what the agent
//! does, for `netdp monitor` and the page.
//!
//! The programs write begins, refusals and drops to the ring buffer `events`, while
//! `Settings::events` says that somebody listens; [`crate::ends`] tells of ends, and the agent of the others.
//! One thread of the agent
//! reads all of them ([`hub`]) and passes them on to everyone who is connected to its socket
//! ([`listener`]). Nothing here ever waits for a listener: what it does not take is left out, and
//! counted. Without an agent `netdp monitor` reads the ring buffer itself.

mod counters;
mod headers;
mod hub;
mod listener;
mod memory;
mod recent;
mod ring;
mod service;
mod wire;

pub(crate) use counters::EventCounters;
pub(crate) use headers::{Alike, Headers};
pub(crate) use recent::{FILE, Recent, Seen};
pub(crate) use ring::Ring;
pub(crate) use service::{Sender, Service};
pub(crate) use wire::{Reply, Request};

use crate::datapath::EndedBy;
use clap::ValueEnum;
use netdp_common::layout::{EVENTS_BEGIN, EVENTS_DROP, EVENTS_END, EVENTS_REFUSED, events_setting};
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, SocketAddr};
use std::ops::{Index, IndexMut};

/// The agent's socket, in the state directory.
pub(crate) const SOCKET: &str = "events.sock";

/// The lock of whoever reads the ring buffer, in the state directory.
pub(crate) const LOCK: &str = "events.lock";

/// The kind of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    /// A mapping has begun.
    Begin,
    /// A mapping has ended.
    End,
    /// A new flow was refused.
    Refused,
    /// A packet was dropped for another reason.
    Drop,
    /// A configuration came into force, or was rejected.
    Config,
    /// The agent has found something, or it is gone.
    Finding,
    /// The agent has started or is ending, or has changed what it does on an uplink.
    Agent,
}

impl Kind {
    /// All kinds.
    pub(crate) const ALL: [Self; 7] = [
        Self::Begin,
        Self::End,
        Self::Refused,
        Self::Drop,
        Self::Config,
        Self::Finding,
        Self::Agent,
    ];

    /// Returns the name of the kind.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Begin => "begin",
            Self::End => "end",
            Self::Refused => "refused",
            Self::Drop => "drop",
            Self::Config => "config",
            Self::Finding => "finding",
            Self::Agent => "agent",
        }
    }

    /// Returns the bit of the kind in `Settings::events`; 0 if the programs do not report it.
    pub(crate) const fn setting(self) -> u32 {
        match self {
            Self::Begin => EVENTS_BEGIN,
            Self::Refused => EVENTS_REFUSED,
            Self::Drop => EVENTS_DROP,
            Self::End => EVENTS_END,
            Self::Config | Self::Finding | Self::Agent => 0,
        }
    }

    /// Reports whether events of the kind are about single flows.
    pub(crate) const fn is_of_flow(self) -> bool {
        !matches!(self, Self::Config | Self::Finding | Self::Agent)
    }

    /// Returns the bit of the kind in a set.
    const fn bit(self) -> u32 {
        1 << self as u32
    }
}

/// Returns `Settings::events` for kinds and a rate, in events a second; 0 if no program has to report
/// anything.
pub(crate) fn setting(kinds: &[Kind], rate: u32) -> u32 {
    match kinds.iter().fold(0, |bits, kind| bits | kind.setting()) {
        0 => 0,
        bits => events_setting(bits, rate),
    }
}

/// Reports whether `Settings::events` has the programs write to the ring buffer `events`.
const fn fills_ring(setting: u32) -> bool {
    setting & (EVENTS_BEGIN | EVENTS_REFUSED | EVENTS_DROP) != 0
}

/// A value for each kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct PerKind<T>([T; 7]);

impl<T> Index<Kind> for PerKind<T> {
    type Output = T;

    fn index(&self, kind: Kind) -> &T {
        &self.0[kind as usize]
    }
}

impl<T> IndexMut<Kind> for PerKind<T> {
    fn index_mut(&mut self, kind: Kind) -> &mut T {
        &mut self.0[kind as usize]
    }
}

/// Events that were not passed on, by cause.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Lost {
    /// The programs had reported as many as the rate allows.
    pub limited: u64,
    /// The ring buffer was full, or the agent's queue.
    pub full: u64,
    /// The listener did not read fast enough.
    pub reader: u64,
}

impl Lost {
    /// Reports whether nothing was lost.
    pub(crate) const fn is_none(&self) -> bool {
        self.limited == 0 && self.full == 0 && self.reader == 0
    }

    /// Adds what else was lost.
    pub(crate) const fn add(&mut self, more: &Self) {
        self.limited += more.limited;
        self.full += more.full;
        self.reader += more.reader;
    }

    /// Returns the number of lost events.
    pub(crate) const fn sum(&self) -> u64 {
        self.limited + self.full + self.reader
    }
}

/// Events of a kind that were lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LostOfKind {
    /// The kind.
    pub kind: Kind,
    /// The numbers of them, by cause.
    #[serde(flatten)]
    pub lost: Lost,
}

impl PerKind<Lost> {
    /// Returns the kinds of which some were lost.
    pub(crate) fn list(&self) -> Vec<LostOfKind> {
        let all = Kind::ALL.into_iter().map(|kind| LostOfKind {
            kind,
            lost: self[kind],
        });
        all.filter(|it| !it.lost.is_none()).collect()
    }

    /// Adds what else was lost.
    pub(crate) fn add(&mut self, more: &[LostOfKind]) {
        for LostOfKind { kind, lost } in more {
            self[*kind].add(lost);
        }
    }
}

/// An event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Event {
    /// The time, in nanoseconds since 1970.
    pub time: u64,
    /// The content.
    pub what: What,
}

/// The content of an event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum What {
    /// A mapping has begun.
    Begin(Begun),
    /// A mapping has ended.
    End(Ended),
    /// A new flow was refused.
    Refused(Dropped),
    /// A packet was dropped for another reason.
    Drop(Dropped),
    /// A configuration came into force, or was rejected.
    Config(Note),
    /// The agent has found something.
    Finding(Note),
    /// The agent has started or is ending, or has changed what it does on an uplink.
    Agent(Note),
}

impl Event {
    /// Returns the kind.
    pub(crate) const fn kind(&self) -> Kind {
        match self.what {
            What::Begin(_) => Kind::Begin,
            What::End(_) => Kind::End,
            What::Refused(_) => Kind::Refused,
            What::Drop(_) => Kind::Drop,
            What::Config(_) => Kind::Config,
            What::Finding(_) => Kind::Finding,
            What::Agent(_) => Kind::Agent,
        }
    }
}

/// The ends of a mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ends {
    /// The number of the IP protocol.
    pub protocol: u32,
    /// The pod's address and L4 id.
    pub pod: SocketAddr,
    /// The destination.
    pub to: SocketAddr,
    /// The source that the destination sees.
    pub seen_as: SocketAddr,
}

/// A mapping that has begun.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Begun {
    /// Its ends.
    #[serde(flatten)]
    pub ends: Ends,
    /// The index of the uplink.
    pub ifindex: u32,
    /// The number of the rule under which it began.
    pub rule: u32,
}

/// A mapping that has ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ended {
    /// Its ends.
    #[serde(flatten)]
    pub ends: Ends,
    /// The reason.
    pub why: EndedBy,
    /// Seconds from its begin on.
    pub age: u64,
    /// Packets from the pod, and to it.
    pub packets: [u64; 2],
    /// Bytes from the pod, and to it, as far as they were counted.
    pub bytes: [Option<u64>; 2],
}

/// A dropped packet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Dropped {
    /// The drop reason, as a number.
    pub reason: u32,
    /// The index of the interface.
    pub ifindex: u32,
    /// True if the packet was arriving.
    pub arriving: bool,
    /// Its length, in bytes.
    pub length: u32,
    /// The length of its link header, in bytes.
    pub l2_len: u32,
    /// Its first bytes, from its link header on.
    #[serde(with = "hex")]
    pub packet: Vec<u8>,
    /// The number under which the agent remembers it and its like.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<u16>,
}

/// A message of the agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Note {
    /// The message.
    pub text: String,
    /// True if something is wrong.
    pub is_fault: bool,
}

/// Formats the number of an event: `#a1f3`.
pub(crate) fn format_id(id: u16) -> String {
    format!("#{id:04x}")
}

/// Parses the number of an event, with or without its `#`.
///
/// # Errors
/// Returns an error if it is none.
pub(crate) fn parse_id(text: &str) -> Result<u16, String> {
    let digits = text.strip_prefix('#').unwrap_or(text);
    u16::from_str_radix(digits, 16)
        .map_err(|_| "not the number of an event, such as #a1f3".to_owned())
}

/// Returns an address with an L4 id.
pub(crate) fn end(address: impl Into<IpAddr>, id: u16) -> SocketAddr {
    SocketAddr::new(address.into(), id)
}

/// Bytes as hexadecimal digits.
mod hex {
    use serde::de::Error as _;
    use serde::{Deserialize as _, Deserializer, Serializer};
    use std::fmt::Write as _;

    pub(super) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        let mut text = String::with_capacity(bytes.len() * 2);
        for byte in bytes {
            // Writing to a String cannot fail.
            let _ = write!(text, "{byte:02x}");
        }
        serializer.serialize_str(&text)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(from)?;
        let pairs = text.as_bytes().chunks(2);
        let bytes = pairs.map(|pair| {
            let pair = str::from_utf8(pair).ok()?;
            u8::from_str_radix(pair, 16).ok()
        });
        bytes
            .collect::<Option<_>>()
            .ok_or_else(|| D::Error::custom("no hexadecimal digits"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_survives_the_socket() {
        let dropped = Dropped {
            reason: 5,
            ifindex: 2,
            arriving: false,
            length: 60,
            l2_len: 14,
            packet: vec![0, 1, 0xfe],
            id: Some(0xa1f3),
        };
        let ends = Ends {
            protocol: 6,
            pod: "172.16.0.2:44216".parse().unwrap(),
            to: "[2001:db8::7]:443".parse().unwrap(),
            seen_as: "10.1.0.10:44216".parse().unwrap(),
        };
        let ended = Ended {
            ends,
            why: EndedBy::AddressGone,
            age: 9,
            packets: [3, 4],
            bytes: [Some(100), None],
        };
        for what in [
            What::Refused(dropped.clone()),
            What::Drop(dropped),
            What::End(ended),
            What::Begin(Begun {
                ends,
                ifindex: 2,
                rule: 7,
            }),
            What::Config(Note {
                text: "a".into(),
                is_fault: true,
            }),
        ] {
            let event = Event { time: 1, what };
            let json = serde_json::to_string(&event).unwrap();
            assert_eq!(
                serde_json::from_str::<Event>(&json).unwrap(),
                event,
                "{json}"
            );
        }
    }

    #[test]
    fn numbers_of_events_are_read_as_they_are_shown() {
        assert_eq!(format_id(0xa1f3), "#a1f3");
        assert_eq!(format_id(7), "#0007");
        assert_eq!(parse_id("#a1f3"), Ok(0xa1f3));
        assert_eq!(parse_id("A1F3"), Ok(0xa1f3));
        assert!(parse_id("#1a1f3").is_err());
        assert!(parse_id("").is_err());
    }

    #[test]
    fn only_what_the_programs_report_is_in_the_setting() {
        assert_eq!(setting(&[Kind::Finding, Kind::Config], 5), 0);
        assert_eq!(setting(&[Kind::Agent, Kind::Begin], 0), EVENTS_BEGIN);
        assert_eq!(setting(&[Kind::Drop], 5), EVENTS_DROP | 5 << 8);
        let ends = setting(&[Kind::End], 0);
        assert_eq!(ends, EVENTS_END);
        assert!(!fills_ring(ends) && fills_ring(ends | EVENTS_REFUSED));
    }
}
