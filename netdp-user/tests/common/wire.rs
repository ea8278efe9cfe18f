//! Packet capture in a namespace.

use anyhow::{Context as _, Result};
use socket2::{Domain, Protocol, SockFilter, Socket, Type};
use std::io::{ErrorKind, Read as _};
use std::net::IpAddr;
use testbed::Netns;

/// Capture of every frame that any interface of a namespace sends or receives.
#[derive(Debug)]
pub struct Capture(Socket);

/// An IP packet; `bytes` begin with its IP header.
#[derive(Debug)]
pub struct Packet {
    pub source: IpAddr,
    pub destination: IpAddr,
    pub protocol: u8,
    /// The payload of the IP header (IPv6 extension headers not skipped).
    pub payload: Vec<u8>,
}

impl Capture {
    /// Starts a capture.
    pub fn start(ns: &Netns) -> Result<Self> {
        let every = u16::try_from(libc::ETH_P_ALL)?;
        let socket = ns
            .enter(|| {
                let protocol = Protocol::from(i32::from(every.to_be()));
                Socket::new(Domain::PACKET, Type::RAW, Some(protocol))
            })?
            .with_context(|| format!("capturing in {}", ns.name()))?;
        socket.set_recv_buffer_size(8 << 20)?;
        socket.set_nonblocking(true)?;
        Ok(Self(socket))
    }

    /// Starts a capture of transmitted frames only; with `hashed`, only of those with a hash
    /// (`skb->hash`).
    pub fn leaving(ns: &Netns, hashed: bool) -> Result<Self> {
        // include/uapi/linux/filter.h: the negative offset SKF_AD_OFF, from there
        // SKF_AD_PKTTYPE and SKF_AD_RXHASH. include/uapi/linux/if_packet.h.
        const TYPE: u32 = 0xffff_f000 + 4;
        const HASH: u32 = 0xffff_f000 + 32;
        const PACKET_OUTGOING: u32 = 4;
        let [load, equal, give] = [0x20, 0x15, 0x06];
        let refuse = || SockFilter::new(give, 0, 0, 0);
        let capture = Self::start(ns)?;
        capture.0.attach_filter(&[
            SockFilter::new(load, 0, 0, TYPE),
            SockFilter::new(equal, 1, 0, PACKET_OUTGOING),
            refuse(),
            SockFilter::new(load, 0, 0, HASH),
            SockFilter::new(equal, 0, 1, if hashed { 0 } else { u32::MAX }),
            refuse(),
            SockFilter::new(give, 0, 0, u32::MAX),
        ])?;
        // Discards packets from before the filter.
        capture.packets()?;
        Ok(capture)
    }

    /// Returns the IP packets since the last call.
    pub fn packets(&self) -> Result<Vec<Packet>> {
        let mut packets = Vec::new();
        let mut frame = vec![0; 65_600];
        loop {
            match (&self.0).read(&mut frame) {
                Ok(count) => packets.extend(parse(&frame[..count])),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(packets),
                Err(error) => return Err(error).context("reading captured frames"),
            }
        }
    }
}

fn parse(frame: &[u8]) -> Option<Packet> {
    let ethertype = u16::from_be_bytes([*frame.get(12)?, *frame.get(13)?]);
    let ip = frame.get(14..)?;
    match ethertype {
        0x0800 => {
            let header = usize::from(ip.first()? & 0xf) * 4;
            let length = usize::from(u16::from_be_bytes([*ip.get(2)?, *ip.get(3)?]));
            Some(Packet {
                source: <[u8; 4]>::try_from(ip.get(12..16)?).ok()?.into(),
                destination: <[u8; 4]>::try_from(ip.get(16..20)?).ok()?.into(),
                protocol: *ip.get(9)?,
                payload: ip.get(header..length.max(header).min(ip.len()))?.to_vec(),
            })
        }
        0x86dd => Some(Packet {
            source: <[u8; 16]>::try_from(ip.get(8..24)?).ok()?.into(),
            destination: <[u8; 16]>::try_from(ip.get(24..40)?).ok()?.into(),
            protocol: *ip.get(6)?,
            payload: ip.get(40..)?.to_vec(),
        }),
        _ => None,
    }
}
