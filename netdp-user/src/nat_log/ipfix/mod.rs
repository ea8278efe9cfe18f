//! The log as IPFIX over UDP (RFC 7011), with the NAT events of RFC 8158.
//!
//! IPv4: a record when a mapping begins (NAT44 session create) and one when it ends (NAT44 session
//! delete). RFC 8158 has no event for a mapping of IPv6 to IPv6 with ports: these are flow records.

mod message;

pub(super) use message::{
    DESTINATION_PORT, DESTINATION_V4, DESTINATION_V6, Element, Message, NAT_EVENT, NAT_SOURCE_V4,
    NAT_SOURCE_V6, PROTOCOL, SOURCE_V4, SOURCE_V6, TIME, connect, domain, put_address, put16,
    put32, put64,
};

use crate::datapath::{EndedMapping, Identity};
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

/// Interval at which templates are sent again (RFC 7011 8.1).
const REFRESH: Duration = Duration::from_secs(60);

/// Time limit of an ICMP error about a message.
const ERROR_AFTER: Duration = Duration::from_millis(50);

const SOURCE_PORT: Element = (7, 2);
const OCTETS: Element = (1, 8);
const PACKETS: Element = (2, 8);
const FLOW_START: Element = (152, 8);
const FLOW_END: Element = (153, 8);
const NAT_SOURCE_PORT: Element = (227, 2);

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
            self.sequence = self.sequence.wrapping_add(records);
            sent += records as usize;
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
    fn message(&mut self, sessions: &[Session<'_>]) -> (Vec<u8>, u32) {
        let mut message = Message::new(self.sequence, self.domain);
        if self.templates_at.is_none_or(|at| at.elapsed() >= REFRESH) {
            let templates = [SESSION, BEGIN_V6, END_V6]
                .map(|template| (template.number, template.elements(self.with_destinations)));
            message.add_templates(&templates);
            self.templates_at = Some(Instant::now());
        }
        for session in sessions {
            let (template, record) = self.record(session);
            if !message.add(template, &record) {
                break;
            }
        }
        message.finish()
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
