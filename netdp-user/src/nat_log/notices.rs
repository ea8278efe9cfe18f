//! Notices to an IPFIX collector that new flows are refused: ports exhausted and quota exceeded (RFC 8158,
//! natEvent 12 and 13).
//!
//! They say that something happens, not how often, and are no part of the log: they are limited in rate, are
//! sent once, and have a socket, sequence numbers and an observation domain of their own, so that neither can
//! delay or displace the log's records, or look like a loss of them.

use super::ipfix::{
    DESTINATION_PORT, DESTINATION_V4, DESTINATION_V6, Element, Message, NAT_EVENT, NAT_SOURCE_V4,
    NAT_SOURCE_V6, PROTOCOL, SOURCE_V4, SOURCE_V6, TIME, connect, domain, put_address, put16,
    put32, put64,
};
use crate::datapath::open_map;
use crate::events::{Dropped, Headers};
use anyhow::{Context as _, Result};
use aya::maps::{Map, MapData};
use netdp_common::layout::{Addr, DropReason, Limits, UPLINK_V4, UPLINK_V6, Uplink, pins};
use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::path::Path;
use std::time::{Duration, Instant};

/// Interval at which the same is said again.
const PAUSE: Duration = Duration::from_secs(10);

/// The most subjects of which notices are remembered.
const MOST: usize = 1024;

const QUOTA_EVENT: Element = (466, 4);
const MAX_SESSIONS: Element = (471, 4);
const MAX_PER_USER: Element = (473, 4);

/// natEvent: NAT ports exhausted.
const PORTS_EXHAUSTED: u8 = 12;
/// natEvent: quota exceeded.
const QUOTA_EXCEEDED: u8 = 13;

/// natQuotaExceededEvent: maximum session entries.
const SESSIONS: u32 = 1;
/// natQuotaExceededEvent: maximum entries per user.
const PER_USER: u32 = 3;

/// The templates, and their elements after [`NAT_EVENT`] and [`TIME`].
const TEMPLATES: [(u16, &[Element]); 7] = [
    (259, &[NAT_SOURCE_V4, PROTOCOL]),
    (260, &[NAT_SOURCE_V6, PROTOCOL]),
    (261, &[QUOTA_EVENT, MAX_SESSIONS]),
    (262, &[QUOTA_EVENT, MAX_PER_USER, SOURCE_V4]),
    (263, &[QUOTA_EVENT, MAX_PER_USER, SOURCE_V6]),
    (
        264,
        &[NAT_SOURCE_V4, PROTOCOL, DESTINATION_V4, DESTINATION_PORT],
    ),
    (
        265,
        &[NAT_SOURCE_V6, PROTOCOL, DESTINATION_V6, DESTINATION_PORT],
    ),
];

/// The subject of a notice, which is said once in [`PAUSE`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Subject {
    /// No port of an address is free for a protocol, towards some destination.
    Ports(Addr, u8),
    /// The tables are full, or a pod has used up its share.
    Sessions,
    /// A pod has as many mappings as it may.
    User(Addr),
}

/// A notice.
struct Notice {
    subject: Subject,
    /// The time, in milliseconds since 1970.
    time: u64,
    /// The destination of the refused flow.
    to: (Addr, u16),
}

/// The notices to a collector.
pub(crate) struct Notices {
    collector: SocketAddr,
    with_destinations: bool,
    domain: u32,
    limits: Limits,
    uplinks: aya::maps::HashMap<MapData, u32, Uplink>,
    socket: Option<UdpSocket>,
    /// Data records that were sent before (RFC 7011 3.1).
    sequence: u32,
    recently: Recently,
}

impl Notices {
    /// Creates those for a collector, over the maps pinned below `bpffs`; nothing is sent yet. `node`: its name.
    ///
    /// # Errors
    /// Returns an error if the map of uplinks is missing or has another type.
    pub(super) fn new(
        collector: SocketAddr,
        with_destinations: bool,
        node: &str,
        bpffs: &Path,
        limits: Limits,
    ) -> Result<Self> {
        let uplinks = Map::HashMap(open_map(bpffs, pins::UPLINKS)?);
        Ok(Self {
            collector,
            with_destinations,
            domain: domain(&format!("{node} refusals")),
            limits,
            uplinks: uplinks.try_into().context("opening the uplinks map")?,
            socket: None,
            sequence: 0,
            recently: Recently::default(),
        })
    }

    /// Sends a notice of a refused packet, unless that was said lately. `time`: in nanoseconds since 1970.
    pub(crate) fn refused(&mut self, time: u64, dropped: &Dropped) {
        let Some(notice) = self.notice(time, dropped) else {
            return;
        };
        if !self.recently.admit(notice.subject, Instant::now()) {
            return;
        }
        if let Err(err) = self.send(&notice) {
            log::debug!(
                "the collector does not learn of {:?}: {err}",
                notice.subject
            );
        }
    }

    fn notice(&self, time: u64, dropped: &Dropped) -> Option<Notice> {
        let headers = Headers::of(dropped)?;
        let (pod, to) = (headers.source, headers.destination);
        let is = |reason: DropReason| dropped.reason == reason as u32;
        let subject = if is(DropReason::NoFreePort) {
            let uplink = self.uplinks.get(&dropped.ifindex, 0).ok()?;
            let (address, has) = match pod.is_ipv4() {
                true => (uplink.v4, UPLINK_V4),
                false => (uplink.v6, UPLINK_V6),
            };
            if uplink.flags & has == 0 {
                return None;
            }
            Subject::Ports(address, u8::try_from(headers.protocol).ok()?)
        } else if is(DropReason::TableFull) {
            Subject::Sessions
        } else if is(DropReason::PodLimit) && self.limits.flows != 0 {
            Subject::User(pod.ip().into())
        } else {
            return None;
        };
        Some(Notice {
            subject,
            time: time / 1_000_000,
            to: (to.ip().into(), to.port()),
        })
    }

    fn send(&mut self, notice: &Notice) -> io::Result<()> {
        let (template, record) = record(notice, &self.limits, self.with_destinations);
        let mut message = Message::new(self.sequence, self.domain);
        // There are few messages, each of which can be read without the others.
        message.add_templates(&TEMPLATES.map(|(number, elements)| {
            let all = [&[NAT_EVENT, TIME], elements].concat();
            (number, all)
        }));
        message.add(template, &record);
        let (message, records) = message.finish();
        let socket = match &self.socket {
            Some(socket) => socket,
            None => {
                let socket = connect(self.collector)?;
                socket.set_nonblocking(true)?;
                self.socket.insert(socket)
            }
        };
        // An error may be about the message before.
        let sent = socket.send(&message).or_else(|_| socket.send(&message));
        sent?;
        self.sequence = self.sequence.wrapping_add(records);
        Ok(())
    }
}

/// Returns the template and the bytes of a notice's record.
fn record(notice: &Notice, limits: &Limits, with_destinations: bool) -> (u16, Vec<u8>) {
    let mut record = Vec::with_capacity(64);
    let event = match notice.subject {
        Subject::Ports(..) => PORTS_EXHAUSTED,
        Subject::Sessions | Subject::User(_) => QUOTA_EXCEEDED,
    };
    record.push(event);
    put64(&mut record, notice.time);
    let template = match notice.subject {
        Subject::Ports(address, protocol) => {
            put_address(&mut record, address);
            record.push(protocol);
            if with_destinations {
                put_address(&mut record, notice.to.0);
                put16(&mut record, notice.to.1);
            }
            match (address.is_v4(), with_destinations) {
                (true, false) => 259,
                (false, false) => 260,
                (true, true) => 264,
                (false, true) => 265,
            }
        }
        Subject::Sessions => {
            put32(&mut record, SESSIONS);
            put32(&mut record, limits.capacity);
            261
        }
        Subject::User(pod) => {
            put32(&mut record, PER_USER);
            put32(&mut record, limits.flows);
            put_address(&mut record, pod);
            if pod.is_v4() { 262 } else { 263 }
        }
    };
    (template, record)
}

/// What was said last, and when.
#[derive(Default)]
struct Recently(HashMap<Subject, Instant>);

impl Recently {
    /// Reports whether something may be said, and remembers that it is. Where there is no room to remember it,
    /// it is not.
    fn admit(&mut self, subject: Subject, now: Instant) -> bool {
        let is_late = |at: &Instant| now.duration_since(*at) < PAUSE;
        if self.0.get(&subject).is_some_and(is_late) {
            return false;
        }
        if self.0.len() >= MOST {
            self.0.retain(|_, at| is_late(at));
        }
        if self.0.len() >= MOST {
            return false;
        }
        self.0.insert(subject, now);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_subject_is_told_once_in_ten_seconds_and_few_are_remembered() {
        let begin = Instant::now();
        let at = |seconds| begin + Duration::from_secs(seconds);
        let address = Addr::from_v4([10, 1, 0, 10]);
        let mut recently = Recently::default();
        let (tcp, udp) = (Subject::Ports(address, 6), Subject::Ports(address, 17));
        assert!(recently.admit(tcp, at(0)) && recently.admit(udp, at(0)));
        assert!(!recently.admit(tcp, at(9)));
        assert!(recently.admit(tcp, at(10)));
        let pod = |n: u16| {
            let [high, low] = n.to_be_bytes();
            Subject::User(Addr::from_v4([172, 16, high, low]))
        };
        let admitted = (0..2_000).filter(|n| recently.admit(pod(*n), at(11)));
        // Of the two before, one is not remembered any more.
        assert_eq!(admitted.count(), MOST - 1);
        assert_eq!(recently.0.len(), MOST);
        assert!(!recently.admit(Subject::Sessions, at(19)), "no room");
        assert!(recently.admit(Subject::Sessions, at(21)));
    }

    #[test]
    fn a_record_has_the_length_of_its_template() {
        let limits = Limits {
            flows: 3,
            ..Limits::UNLIMITED
        };
        let v4 = Addr::from_v4([10, 1, 0, 10]);
        let v6 = Addr::from(std::net::IpAddr::from([
            0x20, 1, 0xd, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7,
        ]));
        let mut seen = Vec::new();
        for subject in [
            Subject::Ports(v4, 6),
            Subject::Ports(v6, 6),
            Subject::Sessions,
            Subject::User(v4),
            Subject::User(v6),
        ] {
            for with_destinations in [false, true] {
                let to = match subject {
                    Subject::Ports(address, _) => (address, 443),
                    _ => (v4, 443),
                };
                let notice = Notice {
                    subject,
                    time: 1,
                    to,
                };
                let (number, record) = record(&notice, &limits, with_destinations);
                let template = TEMPLATES.iter().find(|(it, _)| *it == number).unwrap();
                let own: u16 = template.1.iter().map(|(_, length)| length).sum();
                assert_eq!(
                    record.len(),
                    usize::from(NAT_EVENT.1 + TIME.1 + own),
                    "{number}"
                );
                seen.push(number);
            }
        }
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen, TEMPLATES.map(|(number, _)| number));
    }
}
