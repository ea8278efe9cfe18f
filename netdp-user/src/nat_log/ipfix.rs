//! The log as IPFIX over UDP (RFC 7011), with the NAT events of RFC 8158.
//!
//! IPv4: a record when a mapping begins (NAT44 session create) and one when it ends (NAT44 session
//! delete). RFC 8158 has no event for a mapping of IPv6 to IPv6 with ports: these are flow records.

use crate::config::fnv1a;
use crate::datapath::{EndedMapping, Identity};
use netdp_common::layout::Addr;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

/// The most bytes of a message, so that it is not fragmented on usual paths (RFC 7011 10.3.3).
const LARGEST: usize = 1400;

/// Interval at which templates are sent again (RFC 7011 8.1).
const REFRESH: Duration = Duration::from_secs(60);

/// Time limit of an ICMP error about a message.
const ERROR_AFTER: Duration = Duration::from_millis(50);

/// An information element: its number in IANA's registry, and its length.
type Element = (u16, u16);

const PROTOCOL: Element = (4, 1);
const SOURCE_PORT: Element = (7, 2);
const SOURCE_V4: Element = (8, 4);
const DESTINATION_PORT: Element = (11, 2);
const DESTINATION_V4: Element = (12, 4);
const SOURCE_V6: Element = (27, 16);
const DESTINATION_V6: Element = (28, 16);
const OCTETS: Element = (1, 8);
const PACKETS: Element = (2, 8);
const FLOW_START: Element = (152, 8);
const FLOW_END: Element = (153, 8);
const NAT_SOURCE_V4: Element = (225, 4);
const NAT_SOURCE_PORT: Element = (227, 2);
const NAT_EVENT: Element = (230, 1);
const NAT_SOURCE_V6: Element = (281, 16);
const TIME: Element = (323, 8);

/// natEvent of RFC 8158 4.3: NAT44 session create.
const CREATE: u8 = 4;
/// natEvent: NAT44 session delete.
const DELETE: u8 = 5;

/// A template: its number, and the elements before those of the mapping itself.
struct Template {
    number: u16,
    own: &'static [Element],
    is_v6: bool,
}

const SESSION: Template = Template {
    number: 256,
    own: &[NAT_EVENT, TIME],
    is_v6: false,
};
const BEGIN_V6: Template = Template {
    number: 257,
    own: &[FLOW_START],
    is_v6: true,
};
const END_V6: Template = Template {
    number: 258,
    own: &[FLOW_START, FLOW_END, PACKETS, OCTETS],
    is_v6: true,
};

impl Template {
    fn elements(&self, with_destinations: bool) -> Vec<Element> {
        let mut elements = self.own.to_vec();
        let ([source, nat, destination], ports) = if self.is_v6 {
            ([SOURCE_V6, NAT_SOURCE_V6, DESTINATION_V6], SOURCE_PORT)
        } else {
            ([SOURCE_V4, NAT_SOURCE_V4, DESTINATION_V4], SOURCE_PORT)
        };
        elements.extend([source, nat, ports, NAT_SOURCE_PORT, PROTOCOL]);
        if with_destinations {
            elements.extend([destination, DESTINATION_PORT]);
        }
        elements
    }
}

/// Something to export: a mapping with its begin, and how it has ended if it has. Times are in
/// milliseconds since 1970.
pub(super) struct Session<'a> {
    /// The mapping.
    pub mapping: &'a Identity,
    /// Its begin.
    pub begin: u64,
    /// Its end, and what it has carried.
    pub end: Option<(u64, &'a EndedMapping)>,
}

/// The log as messages to a collector.
pub(super) struct Ipfix {
    to: SocketAddr,
    with_destinations: bool,
    domain: u32,
    socket: Option<UdpSocket>,
    /// Data records that were sent before (RFC 7011 3.1).
    sequence: u32,
    templates_at: Option<Instant>,
    /// The messages since the last time that none of them was answered by an error.
    unsettled: Vec<Vec<u8>>,
    is_failing: bool,
}

impl Ipfix {
    /// Returns the log for a collector; nothing is sent yet. `domain` distinguishes nodes behind one
    /// address.
    pub const fn new(to: SocketAddr, with_destinations: bool, domain: u32) -> Self {
        Self {
            to,
            with_destinations,
            domain,
            socket: None,
            sequence: 0,
            templates_at: None,
            unsettled: Vec::new(),
            is_failing: false,
        }
    }

    /// Sends sessions. Returns how many of them were sent.
    ///
    /// # Errors
    /// Returns an error if a message did not arrive: those that are not settled are sent again first with
    /// the next call, so that records may come twice.
    pub fn write(&mut self, sessions: &[Session<'_>]) -> Result<usize, (usize, io::Error)> {
        let mut sent = 0;
        if self.is_failing {
            self.send_again().map_err(|err| (0, err))?;
        }
        while let Some(rest) = sessions.get(sent..).filter(|rest| !rest.is_empty()) {
            let (message, records) = self.message(rest);
            self.send(message).map_err(|err| (sent, err))?;
            self.sequence = self
                .sequence
                .wrapping_add(u32::try_from(records).unwrap_or(0));
            sent += records;
        }
        Ok(sent)
    }

    /// Waits for an error about what was sent, and returns it. After an error everything that is not settled
    /// is sent again.
    ///
    /// # Errors
    /// Returns an error if there is nobody at the collector's address and port.
    pub fn settle(&mut self) -> io::Result<()> {
        if self.is_failing {
            return self.send_again();
        }
        self.await_error()?;
        self.unsettled.clear();
        Ok(())
    }

    /// Sends what is not settled once more, and settles it.
    fn send_again(&mut self) -> io::Result<()> {
        let messages = std::mem::take(&mut self.unsettled);
        let sent = (messages.iter()).try_for_each(|message| self.send(message.clone()));
        if let Err(err) = sent.and_then(|()| self.await_error()) {
            self.unsettled = messages;
            return Err(err);
        }
        self.unsettled.clear();
        self.is_failing = false;
        Ok(())
    }

    fn await_error(&mut self) -> io::Result<()> {
        let Some(socket) = &self.socket else {
            return Ok(());
        };
        std::thread::sleep(ERROR_AFTER);
        match socket.take_error()? {
            None => Ok(()),
            Some(err) => {
                self.is_failing = true;
                self.templates_at = None;
                Err(err)
            }
        }
    }

    /// Sends a message, and keeps it until it is settled.
    fn send(&mut self, message: Vec<u8>) -> io::Result<()> {
        let connected = match &self.socket {
            Some(socket) => socket,
            None => self.socket.insert(connect(self.to)?),
        };
        match connected.send(&message) {
            Ok(_) => {
                self.unsettled.push(message);
                Ok(())
            }
            Err(err) => {
                // The error may be about a message before, which is kept.
                self.is_failing = true;
                self.templates_at = None;
                Err(err)
            }
        }
    }

    /// Returns a message with as many sessions as fit, and their number.
    fn message(&mut self, sessions: &[Session<'_>]) -> (Vec<u8>, usize) {
        let mut message = Vec::with_capacity(LARGEST);
        let now = jiff::Timestamp::now().as_second();
        put16(&mut message, 10);
        put16(&mut message, 0);
        put32(&mut message, u32::try_from(now).unwrap_or(u32::MAX));
        put32(&mut message, self.sequence);
        put32(&mut message, self.domain);
        if self.templates_at.is_none_or(|at| at.elapsed() >= REFRESH) {
            self.put_templates(&mut message);
            self.templates_at = Some(Instant::now());
        }
        let mut records = 0;
        let mut set: Option<(u16, usize)> = None;
        for session in sessions {
            let (template, record) = self.record(session);
            let header = if set.is_some_and(|(number, _)| number == template) {
                0
            } else {
                4
            };
            if message.len() + header + record.len() > LARGEST {
                break;
            }
            if header != 0 {
                set = Some((template, message.len()));
                put16(&mut message, template);
                put16(&mut message, 0);
            }
            message.extend_from_slice(&record);
            if let Some((_, begin)) = set {
                set_length(&mut message, begin);
            }
            records += 1;
        }
        let length = message.len();
        set16(&mut message, 2, length);
        (message, records)
    }

    fn put_templates(&self, message: &mut Vec<u8>) {
        let begin = message.len();
        put16(message, 2);
        put16(message, 0);
        for template in [SESSION, BEGIN_V6, END_V6] {
            let elements = template.elements(self.with_destinations);
            put16(message, template.number);
            put16(message, u16::try_from(elements.len()).unwrap_or(0));
            for (number, length) in elements {
                put16(message, number);
                put16(message, length);
            }
        }
        set_length(message, begin);
    }

    /// Returns the template and the bytes of a session's record.
    fn record(&self, session: &Session<'_>) -> (u16, Vec<u8>) {
        let mut record = Vec::with_capacity(96);
        let mapping = session.mapping;
        let template = match (mapping.addr.is_v4(), session.end) {
            (true, end) => {
                record.push(if end.is_some() { DELETE } else { CREATE });
                put64(&mut record, end.map_or(session.begin, |(at, _)| at));
                SESSION.number
            }
            (false, None) => {
                put64(&mut record, session.begin);
                BEGIN_V6.number
            }
            (false, Some((at, ended))) => {
                put64(&mut record, session.begin);
                put64(&mut record, at);
                put64(&mut record, ended.packets[0]);
                put64(&mut record, ended.bytes[0].unwrap_or(0));
                END_V6.number
            }
        };
        put_address(&mut record, mapping.tuple.src);
        put_address(&mut record, mapping.addr);
        put16(&mut record, mapping.tuple.src_id);
        put16(&mut record, mapping.id);
        record.push(u8::try_from(mapping.tuple.proto).unwrap_or(0));
        if self.with_destinations {
            put_address(&mut record, mapping.tuple.dst);
            put16(&mut record, mapping.tuple.dst_id);
        }
        (template, record)
    }
}

fn connect(to: SocketAddr) -> io::Result<UdpSocket> {
    let any: SocketAddr = if to.is_ipv4() {
        (Ipv4Addr::UNSPECIFIED, 0).into()
    } else {
        (Ipv6Addr::UNSPECIFIED, 0).into()
    };
    let socket = UdpSocket::bind(any)?;
    socket.connect(to)?;
    Ok(socket)
}

fn put_address(bytes: &mut Vec<u8>, address: Addr) {
    if address.is_v4() {
        bytes.extend_from_slice(&address.v4_octets());
    } else {
        bytes.extend_from_slice(address.octets());
    }
}

fn put16(bytes: &mut Vec<u8>, value: u16) {
    bytes.extend_from_slice(&value.to_be_bytes());
}

fn put32(bytes: &mut Vec<u8>, value: u32) {
    bytes.extend_from_slice(&value.to_be_bytes());
}

fn put64(bytes: &mut Vec<u8>, value: u64) {
    bytes.extend_from_slice(&value.to_be_bytes());
}

/// Writes the length of a set that begins at a place and goes to the end.
fn set_length(bytes: &mut [u8], begin: usize) {
    let length = bytes.len() - begin;
    set16(bytes, begin + 2, length);
}

fn set16(bytes: &mut [u8], at: usize, value: usize) {
    let value = u16::try_from(value).unwrap_or(u16::MAX).to_be_bytes();
    if let Some(place) = bytes.get_mut(at..at + 2) {
        place.copy_from_slice(&value);
    }
}

/// Returns the observation domain of a node: a hash of its name, never 0.
#[expect(clippy::cast_possible_truncation, reason = "of a hash")]
pub(super) fn domain(node: &str) -> u32 {
    (fnv1a(node.as_bytes()) as u32).max(1)
}
