//! An event as it is shown.

use super::names::Known;
use crate::codes::Code;
use crate::datapath::EndedBy;
use crate::datapath::protocol_name;
use crate::events::{Begun, Dropped, Ended, Ends, Headers, Kind, Note, format_id};
use crate::format::{bytes, grouped};
use crate::pods::Owner;
use crate::time::pretty;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use netdp_common::layout::DropReason;
use netdp_common::layout::proto;
use serde::Serialize;
use std::net::{IpAddr, SocketAddr};

/// Version of the JSON.
pub(super) const SCHEMA: u32 = 1;

/// A pod, for programs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Pod {
    namespace: String,
    name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    uid: Option<String>,
}

impl Pod {
    pub(super) fn new(owner: Owner<'_>) -> Self {
        Self {
            namespace: owner.claim.namespace.clone(),
            name: owner.claim.name.clone(),
            uid: owner.claim.uid.clone(),
        }
    }
}

/// A line: an event, or several drops that are alike.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Line {
    schema: u32,
    /// The time of the first event.
    time: String,
    event: Kind,
    #[serde(skip_serializing_if = "Option::is_none")]
    id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<Code>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<&'static str>,
    /// The number of drops that are alike.
    #[serde(skip_serializing_if = "Option::is_none")]
    count: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    direction: Option<&'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    uplink: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    protocol: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    source: Option<IpAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    source_id: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    destination: Option<IpAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    destination_id: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    nat_address: Option<IpAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    nat_id: Option<u16>,
    /// Flags of a TCP segment, or what else the packet is.
    #[serde(skip_serializing_if = "Option::is_none")]
    packet: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rule: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pod: Option<Pod>,
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<EndedBy>,
    #[serde(skip_serializing_if = "Option::is_none")]
    age_seconds: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    packets_out: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    packets_in: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes_out: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes_in: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    text: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    fault: Option<bool>,
    /// Nanoseconds since 1970, for the text.
    #[serde(skip)]
    at: u64,
}

impl Line {
    fn new(event: Kind, at: u64) -> Self {
        Self {
            schema: SCHEMA,
            time: timestamp(at).map_or_else(String::new, |time| format!("{time:.3}")),
            event,
            id: None,
            code: None,
            reason: None,
            count: None,
            direction: None,
            uplink: None,
            protocol: None,
            source: None,
            source_id: None,
            destination: None,
            destination_id: None,
            nat_address: None,
            nat_id: None,
            packet: None,
            rule: None,
            pod: None,
            why: None,
            age_seconds: None,
            packets_out: None,
            packets_in: None,
            bytes_out: None,
            bytes_in: None,
            text: None,
            fault: None,
            at,
        }
    }

    fn with_ends(mut self, ends: &Ends, known: &Known) -> Self {
        self.protocol = Some(protocol_name(ends.protocol));
        self.source = Some(ends.pod.ip());
        self.source_id = Some(ends.pod.port());
        self.destination = Some(ends.to.ip());
        self.destination_id = Some(ends.to.port());
        self.nat_address = Some(ends.seen_as.ip());
        self.nat_id = Some(ends.seen_as.port());
        self.pod = known.owner(ends.pod.ip(), self.at).map(Pod::new);
        self
    }

    pub(super) fn begun(begun: &Begun, at: u64, known: &mut Known) -> Self {
        Self {
            uplink: known.interface(begun.ifindex),
            rule: known.rule(begun.rule).map(|net| net.to_string()),
            ..Self::new(Kind::Begin, at).with_ends(&begun.ends, known)
        }
    }

    pub(super) fn ended(ended: &Ended, at: u64, known: &Known) -> Self {
        // The pod is the one that had the address when the mapping began.
        let began = at.saturating_sub(ended.age.saturating_mul(1_000_000_000));
        Self {
            why: Some(ended.why),
            age_seconds: Some(ended.age),
            packets_out: Some(ended.packets[0]),
            packets_in: Some(ended.packets[1]),
            bytes_out: ended.bytes[0],
            bytes_in: ended.bytes[1],
            pod: known.owner(ended.ends.pod.ip(), began).map(Pod::new),
            ..Self::new(Kind::End, at).with_ends(&ended.ends, known)
        }
    }

    pub(super) fn note(kind: Kind, note: &Note, at: u64) -> Self {
        Self {
            text: Some(note.text.clone()),
            fault: Some(note.is_fault),
            ..Self::new(kind, at)
        }
    }

    /// Returns the line of `count` drops that are alike; L4 ids that differ among them are left out.
    pub(super) fn dropped(
        (kind, dropped): (Kind, &Dropped),
        headers: Option<&Headers>,
        at: u64,
        count: u64,
        (differs_source, differs_destination): (bool, bool),
        known: &mut Known,
    ) -> Self {
        let reason = reason(dropped.reason);
        let mut line = Self {
            id: dropped.id.map(format_id),
            code: reason.and_then(Code::of_drop),
            reason: reason.map(DropReason::name),
            count: Some(count),
            direction: Some(if dropped.arriving { "in" } else { "out" }),
            uplink: known.interface(dropped.ifindex),
            ..Self::new(kind, at)
        };
        if let Some(headers) = headers {
            let has_ids = matches!(
                headers.protocol,
                proto::TCP | proto::UDP | proto::SCTP | proto::DCCP | proto::UDP_LITE
            );
            let id = |end: SocketAddr, differs: bool| (has_ids && !differs).then(|| end.port());
            line.protocol = Some(protocol_name(headers.protocol));
            line.source = Some(headers.source.ip());
            line.source_id = id(headers.source, differs_source);
            line.destination = Some(headers.destination.ip());
            line.destination_id = id(headers.destination, differs_destination);
            line.packet = Some(headers.sort.words()).filter(|words| !words.is_empty());
            let of_pod = match dropped.arriving {
                true => headers.destination,
                false => headers.source,
            };
            line.pod = known.owner(of_pod.ip(), at).map(Pod::new);
        }
        line
    }

    /// Returns the line for people.
    pub(super) fn to_text(&self) -> String {
        let (time, kind) = (local_time(self.at), self.event.name());
        format!("{time}  {kind:<8}{}", self.words())
    }

    /// Returns the kind.
    pub(crate) const fn kind(&self) -> Kind {
        self.event
    }

    /// Returns the time, in nanoseconds since 1970.
    pub(crate) const fn at(&self) -> u64 {
        self.at
    }

    /// Reports whether something is wrong.
    pub(crate) fn is_fault(&self) -> bool {
        self.fault.unwrap_or(self.reason.is_some())
    }

    /// Returns what has happened, for people, after a space or a colon.
    pub(crate) fn words(&self) -> String {
        let mut text = String::new();
        if let Some(pod) = &self.pod {
            text += &format!(" {}/{}", pod.namespace, pod.name);
        }
        if let (Some(source), Some(to)) = (self.source, self.destination) {
            let source = endpoint(source, self.source_id);
            let to = endpoint(to, self.destination_id);
            text += &format!(" {source} → {to}");
        }
        for word in [&self.protocol, &self.packet].into_iter().flatten() {
            text += &format!(" {word}");
        }
        if let (Some(address), id) = (self.nat_address, self.nat_id) {
            text += &format!(" as {}", endpoint(address, id));
        }
        match self.event {
            Kind::Begin => {
                let uplink = self.uplink.as_deref().unwrap_or("-");
                let rule = self.rule.as_deref().unwrap_or("everything else");
                text += &format!(" {uplink} rule {rule}");
            }
            Kind::End => text += &self.end_text(),
            Kind::Refused | Kind::Drop => text += &self.drop_text(),
            Kind::Config | Kind::Finding | Kind::Agent => {
                text += &format!(" {}", self.text.as_deref().unwrap_or("-"));
            }
        }
        text
    }

    fn end_text(&self) -> String {
        let packets = |number: Option<u64>| match number {
            Some(1) => "1 packet".to_owned(),
            number => format!("{} packets", number.map_or_else(|| "-".into(), grouped)),
        };
        let amount = |number: Option<u64>| number.map_or_else(|| "-".to_owned(), bytes);
        format!(
            " after {}: {}; {}, {} out; {}, {} in",
            self.age_seconds.map_or_else(|| "-".into(), pretty),
            self.why.map_or("-", EndedBy::words),
            packets(self.packets_out),
            amount(self.bytes_out),
            packets(self.packets_in),
            amount(self.bytes_in),
        )
    }

    fn drop_text(&self) -> String {
        let reasons = DropReason::ALL.iter().copied();
        let mut reasons = reasons.filter(|reason| Some(reason.name()) == self.reason);
        let words = reasons.next().map_or("for an unknown reason", words);
        let mut text = match self.event {
            Kind::Refused => format!(": {words}"),
            _ => format!(": {words} ({})", self.reason.unwrap_or("-")),
        };
        if let Some(count) = self.count.filter(|count| *count > 1) {
            text += &format!(" ×{} in 1s", grouped(count));
        }
        if let Some(code) = &self.code {
            text += &format!("  {code}");
        }
        if let Some(id) = &self.id {
            text += &format!("  {id}");
        }
        text
    }
}

fn endpoint(address: IpAddr, id: Option<u16>) -> String {
    match id {
        Some(id) => SocketAddr::new(address, id).to_string(),
        None => address.to_string(),
    }
}

fn timestamp(nanoseconds: u64) -> Option<Timestamp> {
    Timestamp::from_nanosecond(i128::from(nanoseconds)).ok()
}

/// Formats a time as local time of the day, with milliseconds.
pub(super) fn local_time(nanoseconds: u64) -> String {
    let time = timestamp(nanoseconds).map(|time| time.to_zoned(TimeZone::system()));
    time.map_or_else(
        || "-".into(),
        |time| time.strftime("%H:%M:%S%.3f").to_string(),
    )
}

/// Returns the drop reason with a number.
pub(super) fn reason(number: u32) -> Option<DropReason> {
    let number = usize::try_from(number).ok()?;
    DropReason::ALL.get(number).copied()
}

/// Returns a drop reason in words that follow the packet.
const fn words(reason: DropReason) -> &'static str {
    match reason {
        DropReason::Malformed => "a header is truncated or inconsistent",
        DropReason::UnsupportedProtocol => "its protocol is not translated",
        DropReason::ExtensionHeader => "it has an IPv6 extension header that is not skipped",
        DropReason::FragmentOfDropped => "the first fragment of its datagram was dropped",
        DropReason::IcmpNoFlow | DropReason::TcpNoFlow => "belongs to no mapping",
        DropReason::Unsolicited => "the other pod has not sent to it",
        DropReason::RewriteFailed => "the kernel could not rewrite it",
        DropReason::ForgedSource => "its source is behind another interface than it came by",
        DropReason::NoSourceAddress => "the uplink has no address",
        DropReason::NoFreePort => "every port is taken",
        DropReason::TableFull => {
            "the mapping tables are full, or the pod has used up its share of them"
        }
        DropReason::NodeProtocol => "the node itself uses this protocol with it",
        DropReason::PodLimit => "the pod has reached its limit (--pod-flows, --pod-new-flows)",
        DropReason::IpsecPolicy => "an IPsec policy covers it, and it would leave in clear text",
    }
}
