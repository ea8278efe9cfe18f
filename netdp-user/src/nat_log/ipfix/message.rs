//! Messages of IPFIX (RFC 7011 3): a header, a set of templates, and sets of data records.

use crate::config::fnv1a;
use netdp_common::layout::Addr;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

/// The most bytes of a message, so that it is not fragmented on usual paths (RFC 7011 10.3.3).
const LARGEST: usize = 1400;

/// An information element: its number in IANA's registry, and its length.
pub(in crate::nat_log) type Element = (u16, u16);

pub(in crate::nat_log) const PROTOCOL: Element = (4, 1);
pub(in crate::nat_log) const SOURCE_V4: Element = (8, 4);
pub(in crate::nat_log) const DESTINATION_PORT: Element = (11, 2);
pub(in crate::nat_log) const DESTINATION_V4: Element = (12, 4);
pub(in crate::nat_log) const SOURCE_V6: Element = (27, 16);
pub(in crate::nat_log) const DESTINATION_V6: Element = (28, 16);
pub(in crate::nat_log) const NAT_SOURCE_V4: Element = (225, 4);
pub(in crate::nat_log) const NAT_EVENT: Element = (230, 1);
pub(in crate::nat_log) const NAT_SOURCE_V6: Element = (281, 16);
pub(in crate::nat_log) const TIME: Element = (323, 8);

/// A template: its number and its elements.
pub(in crate::nat_log) type Template = (u16, Vec<Element>);

/// A message that is being filled.
pub(in crate::nat_log) struct Message {
    bytes: Vec<u8>,
    /// The template of the last set, and the place where the set begins.
    set: Option<(u16, usize)>,
    records: u32,
}

impl Message {
    /// Begins a message, before which so many data records were sent.
    pub(in crate::nat_log) fn new(sequence: u32, domain: u32) -> Self {
        let mut bytes = Vec::with_capacity(LARGEST);
        let now = jiff::Timestamp::now().as_second();
        put16(&mut bytes, 10);
        put16(&mut bytes, 0);
        put32(&mut bytes, u32::try_from(now).unwrap_or(u32::MAX));
        put32(&mut bytes, sequence);
        put32(&mut bytes, domain);
        Self {
            bytes,
            set: None,
            records: 0,
        }
    }

    /// Adds templates, which come first.
    pub(in crate::nat_log) fn add_templates(&mut self, templates: &[Template]) {
        let bytes = &mut self.bytes;
        let begin = bytes.len();
        put16(bytes, 2);
        put16(bytes, 0);
        for (number, elements) in templates {
            put16(bytes, *number);
            put16(bytes, u16::try_from(elements.len()).unwrap_or(0));
            for (element, length) in elements {
                put16(bytes, *element);
                put16(bytes, *length);
            }
        }
        set_length(bytes, begin);
    }

    /// Adds a data record of a template. Returns `false` if it does not fit.
    pub(in crate::nat_log) fn add(&mut self, template: u16, record: &[u8]) -> bool {
        let open = self.set.filter(|(number, _)| *number == template);
        let header = if open.is_some() { 0 } else { 4 };
        let bytes = &mut self.bytes;
        if bytes.len() + header + record.len() > LARGEST {
            return false;
        }
        let begin = match open {
            Some((_, begin)) => begin,
            None => {
                let begin = bytes.len();
                put16(bytes, template);
                put16(bytes, 0);
                self.set = Some((template, begin));
                begin
            }
        };
        bytes.extend_from_slice(record);
        set_length(bytes, begin);
        self.records += 1;
        true
    }

    /// Returns the bytes, and the number of data records.
    pub(in crate::nat_log) fn finish(mut self) -> (Vec<u8>, u32) {
        let length = self.bytes.len();
        set16(&mut self.bytes, 2, length);
        (self.bytes, self.records)
    }
}

/// Opens a socket to a collector.
///
/// # Errors
/// Returns an error if there is no route to it.
pub(in crate::nat_log) fn connect(to: SocketAddr) -> io::Result<UdpSocket> {
    let any: SocketAddr = if to.is_ipv4() {
        (Ipv4Addr::UNSPECIFIED, 0).into()
    } else {
        (Ipv6Addr::UNSPECIFIED, 0).into()
    };
    let socket = UdpSocket::bind(any)?;
    socket.connect(to)?;
    Ok(socket)
}

pub(in crate::nat_log) fn put_address(bytes: &mut Vec<u8>, address: Addr) {
    if address.is_v4() {
        bytes.extend_from_slice(&address.v4_octets());
    } else {
        bytes.extend_from_slice(address.octets());
    }
}

pub(in crate::nat_log) fn put16(bytes: &mut Vec<u8>, value: u16) {
    bytes.extend_from_slice(&value.to_be_bytes());
}

pub(in crate::nat_log) fn put32(bytes: &mut Vec<u8>, value: u32) {
    bytes.extend_from_slice(&value.to_be_bytes());
}

pub(in crate::nat_log) fn put64(bytes: &mut Vec<u8>, value: u64) {
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

/// Returns the observation domain of a name: a hash of it, never 0.
#[expect(clippy::cast_possible_truncation, reason = "of a hash")]
pub(in crate::nat_log) fn domain(name: &str) -> u32 {
    (fnv1a(name.as_bytes()) as u32).max(1)
}
