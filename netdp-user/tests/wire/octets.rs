//! Serialisation and parsing of packets.

use super::checksum::{internet, octets};
use super::packet::{Packet, Part, word};
use anyhow::{Context as _, Result, ensure};
use std::net::{Ipv4Addr, Ipv6Addr};

const FRAGMENT: u8 = 44;

impl Packet {
    /// Returns the bytes of the packet from the IP header on.
    pub fn bytes(&self) -> Vec<u8> {
        if self.is_v4() {
            self.v4_bytes()
        } else {
            self.v6_bytes()
        }
    }

    fn v4_bytes(&self) -> Vec<u8> {
        let len = 20 + self.options.len();
        let part = self
            .part
            .map_or(0, |p| (p.offset / 8) | (u16::from(p.more) << 13));
        let mut bytes = vec![0x40 | u8::try_from(len / 4).unwrap_or(5), self.tos];
        bytes.extend(
            u16::try_from(len + self.body.len())
                .unwrap_or(0)
                .to_be_bytes(),
        );
        bytes.extend(self.id.to_be_bytes());
        bytes.extend((part | u16::from(self.df) << 14).to_be_bytes());
        bytes.extend([self.ttl, self.proto, 0, 0]);
        bytes.extend(octets(self.src));
        bytes.extend(octets(self.dst));
        bytes.extend(&self.options);
        let sum = internet(&[&bytes]);
        bytes[10..12].copy_from_slice(&sum.to_be_bytes());
        bytes.extend(&self.body);
        bytes
    }

    fn v6_bytes(&self) -> Vec<u8> {
        let mut chain = self.extensions.clone();
        if let Some(part) = self.part {
            let mut rest = vec![0];
            rest.extend((part.offset | u16::from(part.more)).to_be_bytes());
            rest.extend(part.id.to_be_bytes());
            chain.push((FRAGMENT, rest));
        }
        let mut rest = Vec::new();
        for (at, (_, header)) in chain.iter().enumerate() {
            rest.push(chain.get(at + 1).map_or(self.proto, |next| next.0));
            rest.extend(header);
        }
        rest.extend(&self.body);
        let first = 6 << 28 | u32::from(self.tos) << 20 | self.label;
        let mut bytes = first.to_be_bytes().to_vec();
        bytes.extend(u16::try_from(rest.len()).unwrap_or(0).to_be_bytes());
        bytes.extend([chain.first().map_or(self.proto, |c| c.0), self.ttl]);
        bytes.extend(octets(self.src));
        bytes.extend(octets(self.dst));
        bytes.extend(rest);
        bytes
    }

    /// Parses a packet, possibly followed by padding. A wrong IP checksum is an error.
    pub fn parse(bytes: &[u8]) -> Result<Self> {
        match bytes.first().context("no bytes")? >> 4 {
            4 => Self::parse_v4(bytes, true),
            6 => Self::parse_v6(bytes, true),
            version => anyhow::bail!("IP version {version}"),
        }
    }

    /// Parses the packet quoted by an ICMP error, which may be truncated.
    pub fn parse_cut(bytes: &[u8]) -> Result<Self> {
        match bytes.first().context("no bytes")? >> 4 {
            4 => Self::parse_v4(bytes, false),
            _ => Self::parse_v6(bytes, false),
        }
    }

    fn parse_v4(bytes: &[u8], whole: bool) -> Result<Self> {
        ensure!(bytes.len() >= 20, "a cut IPv4 header");
        let len = usize::from(bytes[0] & 15) * 4;
        let header = bytes.get(..len).context("cut IPv4 options")?;
        ensure!(internet(&[header]) == 0, "a wrong IPv4 header checksum");
        let total = usize::from(word(bytes, 2));
        ensure!(!whole || total <= bytes.len(), "a cut IPv4 packet");
        let flags = word(bytes, 6);
        let part = Part {
            offset: (flags & 0x1fff) * 8,
            more: flags & 0x2000 != 0,
            id: 0,
        };
        let addr =
            |at: usize| Ipv4Addr::new(bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]);
        Ok(Self {
            tos: bytes[1],
            id: word(bytes, 4),
            df: flags & 0x4000 != 0,
            part: (part.offset > 0 || part.more).then_some(part),
            ttl: bytes[8],
            options: header[20..].to_vec(),
            ..Self::new(
                addr(12).into(),
                addr(16).into(),
                bytes[9],
                bytes[len..total.clamp(len, bytes.len())].to_vec(),
            )
        })
    }

    fn parse_v6(bytes: &[u8], whole: bool) -> Result<Self> {
        ensure!(bytes.len() >= 40, "a cut IPv6 header");
        let first = u32::from(word(bytes, 0)) << 16 | u32::from(word(bytes, 2));
        let total = 40 + usize::from(word(bytes, 4));
        ensure!(!whole || total <= bytes.len(), "a cut IPv6 packet");
        let addr = |at: usize| -> Result<Ipv6Addr> {
            Ok(<[u8; 16]>::try_from(&bytes[at..at + 16])?.into())
        };
        let mut packet = Self::new(addr(8)?.into(), addr(24)?.into(), bytes[6], Vec::new());
        let mut rest = &bytes[40..total.min(bytes.len())];
        while matches!(packet.proto, 0 | 43 | 60 | FRAGMENT) && rest.len() >= 8 {
            let kind = packet.proto;
            packet.proto = rest[0];
            let len = if kind == FRAGMENT {
                8
            } else {
                usize::from(rest[1]) * 8 + 8
            };
            let (header, behind) = rest.split_at_checked(len).context("a cut extension")?;
            if kind == FRAGMENT {
                packet.part = Some(Part {
                    offset: word(header, 2) & 0xfff8,
                    more: header[3] & 1 != 0,
                    id: u32::from(word(header, 4)) << 16 | u32::from(word(header, 6)),
                });
            } else {
                packet.extensions.push((kind, header[1..].to_vec()));
            }
            rest = behind;
            if packet.part.is_some_and(|p| p.offset > 0) {
                break;
            }
        }
        packet.body = rest.to_vec();
        packet.tos = u8::try_from(first >> 20 & 0xff)?;
        packet.label = first & 0xf_ffff;
        packet.id = 0x1234;
        packet.ttl = bytes[7];
        Ok(packet)
    }
}
