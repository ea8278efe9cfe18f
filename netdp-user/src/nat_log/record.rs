//! Records of the log: a JSON document on each line.

use serde::{Deserialize, Serialize};
use std::borrow::Cow;

/// Version of the format.
pub(crate) const VERSION: u32 = 1;

/// The subject of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    /// A mapping has begun.
    Begin,
    /// A mapping has ended.
    End,
    /// A mapping lives.
    Alive,
    /// Records are missing.
    Gap,
    /// The agent has started.
    Start,
    /// The agent has ended.
    Stop,
    /// Another policy is in force.
    Policy,
}

impl Kind {
    /// All kinds.
    pub(crate) const ALL: [Self; 7] = [
        Self::Begin,
        Self::End,
        Self::Alive,
        Self::Gap,
        Self::Start,
        Self::Stop,
        Self::Policy,
    ];

    /// Returns the name, as in a record.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Begin => "begin",
            Self::End => "end",
            Self::Alive => "alive",
            Self::Gap => "gap",
            Self::Start => "start",
            Self::Stop => "stop",
            Self::Policy => "policy",
        }
    }
}

/// A record. Fields that do not belong to its kind are absent. Times are RFC 3339 in UTC.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Record<'a> {
    /// [`VERSION`].
    pub v: u32,
    /// Number of the record, which goes on over restarts.
    pub seq: u64,
    /// The kernel's `boot_id`.
    pub boot: Cow<'a, str>,
    /// Name of the node.
    pub node: Cow<'a, str>,
    /// The subject.
    pub event: Kind,
    /// The mapping: the same in all records of one mapping, and in no others.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Protocol.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub proto: Option<String>,
    /// Address and port, or ICMP identifier, of the pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<String>,
    /// Address and port that the destination sees.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seen_as: Option<String>,
    /// Address and port of the destination, with `--nat-log-destinations`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<String>,
    /// The pod's namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ns: Option<Cow<'a, str>>,
    /// The pod's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<Cow<'a, str>>,
    /// The pod's UID.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<Cow<'a, str>>,
    /// Time at which the mapping began.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub begin: Option<String>,
    /// Time at which the mapping ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<String>,
    /// Time of other events.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<String>,
    /// Begin of a gap.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// End of a gap.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<String>,
    /// Time before which all begins and ends are in the log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub complete: Option<String>,
    /// Number of records that are missing, if it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub n: Option<u64>,
    /// The reason of an end or a gap.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub why: Option<Cow<'a, str>>,
    /// Packets that the pod sent, and that were sent to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub packets: Option<[u64; 2]>,
    /// Their bytes; null where they were not counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<[Option<u64>; 2]>,
    /// Hash of the policy in force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub policy: Option<Cow<'a, str>>,
    /// Version of the agent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<Cow<'a, str>>,
}

impl<'a> Record<'a> {
    /// Creates a record without further fields.
    pub(crate) const fn new(event: Kind, seq: u64, boot: &'a str, node: &'a str) -> Self {
        Self {
            v: VERSION,
            seq,
            boot: Cow::Borrowed(boot),
            node: Cow::Borrowed(node),
            event,
            id: None,
            proto: None,
            pod: None,
            seen_as: None,
            to: None,
            ns: None,
            name: None,
            uid: None,
            begin: None,
            end: None,
            at: None,
            from: None,
            until: None,
            complete: None,
            n: None,
            why: None,
            packets: None,
            bytes: None,
            policy: None,
            version: None,
        }
    }

    /// Returns the latest time in the record, in milliseconds since 1970.
    pub(crate) fn latest(&self) -> Option<u64> {
        let times = [&self.begin, &self.end, &self.at, &self.from, &self.until];
        times
            .into_iter()
            .flatten()
            .filter_map(|text| time(text))
            .max()
    }
}

/// Parses a time by RFC 3339, in milliseconds since 1970.
pub(crate) fn time(text: &str) -> Option<u64> {
    let time: jiff::Timestamp = text.parse().ok()?;
    u64::try_from(time.as_millisecond()).ok()
}

/// Formats a time in milliseconds since 1970 by RFC 3339 in UTC.
pub(crate) fn text(time: u64) -> String {
    let time = i64::try_from(time).unwrap_or(i64::MAX);
    let time = jiff::Timestamp::from_millisecond(time).unwrap_or(jiff::Timestamp::MAX);
    format!("{time:.3}")
}
