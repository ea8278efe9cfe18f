//! Primitives in which the cases are written.

use super::bed::{At, Bed, NotApplicable, Options, Subject, V4, is_masqueraded, is_pod, pod};
use super::build::udp;
use super::packet::{ICMP, ICMPV6, Packet, word};
use super::socket;
use anyhow::{Context as _, Result, bail, ensure};
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Timeout for a marker: waited out only if it is lost.
const PATIENCE: Duration = Duration::from_secs(30);

struct Seen {
    packet: Result<Packet, String>,
    frame: Vec<u8>,
    /// A case has consumed the packet.
    taken: bool,
}

/// A bed, and all packets captured on its wires.
pub struct Wire {
    pub bed: Bed,
    seen: [Vec<Seen>; 4],
    markers: u32,
    /// Masqueraded destinations that pods may nevertheless answer directly.
    answered: Vec<IpAddr>,
    bad_checksums: bool,
}

fn frame_of(at: At, packet: &[u8]) -> Vec<u8> {
    let mut frame = [at.mac(1), at.mac(2)].concat();
    frame.extend(if packet.first().is_some_and(|b| b >> 4 == 6) {
        [0x86, 0xdd]
    } else {
        [8, 0]
    });
    frame.extend(packet);
    frame
}

impl Wire {
    pub fn new(subject: Subject, options: &Options) -> Result<Self> {
        socket::go_anywhere()?;
        let bed = Bed::new(subject, options)?;
        socket::stay_on_one_cpu()?;
        Ok(Self {
            bed,
            seen: [const { Vec::new() }; 4],
            markers: 0,
            answered: Vec::new(),
            bad_checksums: false,
        })
    }

    /// Sends bytes that begin with the IP header towards the node.
    pub fn send_bytes(&self, at: At, packet: &[u8]) -> Result<()> {
        self.bed.sockets[at.index()].send(&frame_of(at, packet))
    }

    pub fn send(&self, at: At, packet: &Packet) -> Result<()> {
        self.send_bytes(at, &packet.bytes())
    }

    /// Sends a packet with VLAN tags before its EtherType.
    pub fn send_tagged(&self, at: At, packet: &Packet, tags: &[[u8; 4]]) -> Result<()> {
        let mut frame = frame_of(at, &packet.bytes());
        if let At::Pod(_) = at {
            // The frame is forwarded as it is, so it has the node's MAC address, as a routed packet
            // would.
            frame.splice(6..12, At::Uplink(0).mac(1));
        }
        frame.splice(12..12, tags.concat());
        self.bed.sockets[at.index()].send(&frame)
    }

    /// Sends a packet that every subject passes and waits for it at `at`: everything sent before it
    /// has then arrived or been dropped.
    fn mark(&mut self, at: At) -> Result<()> {
        self.markers += 1;
        let text = format!("wire-marker-{:08}", self.markers);
        let (from, src, dst) = match at {
            At::Uplink(0) => (At::Pod(0), pod(V4, 0), IpAddr::from([10, 9, 0, 1])),
            At::Uplink(_) => (At::Pod(0), pod(V4, 0), IpAddr::from([10, 9, 1, 1])),
            At::Pod(n) => (At::Uplink(0), IpAddr::from([10, 9, 0, 1]), pod(V4, n)),
        };
        self.send(from, &udp((src, 9), (dst, 9), text.as_bytes()))?;
        let start = Instant::now();
        while start.elapsed() < PATIENCE {
            let Some(frame) = self.bed.sockets[at.index()].receive(PATIENCE)? else {
                continue;
            };
            if frame.ends_with(text.as_bytes()) {
                return Ok(());
            }
            // The capture leaves one of two VLAN tags.
            let header = if word(&frame, 12) == 0x8100 { 18 } else { 14 };
            if matches!(word(&frame, header - 2), 0x0800 | 0x86dd) {
                let packet = Packet::parse(&frame[header..]).map_err(|error| error.to_string());
                self.seen[at.index()].push(Seen {
                    packet,
                    frame,
                    taken: false,
                });
            }
        }
        bail!("the marker towards {at:?} was lost")
    }

    /// Waits until all packets in flight have arrived. Twice, because packets that the node
    /// reinjects (held fragments) queue behind the first marker.
    fn settle(&mut self, at: At) -> Result<()> {
        self.mark(at)?;
        self.mark(at)
    }

    /// Consumes and returns the first packet at `at` that satisfies `wanted`.
    pub fn expect(
        &mut self,
        at: At,
        what: &str,
        wanted: impl Fn(&Packet) -> bool,
    ) -> Result<Packet> {
        self.settle(at)?;
        for seen in &mut self.seen[at.index()] {
            if let Ok(packet) = &seen.packet
                && !seen.taken
                && wanted(packet)
            {
                seen.taken = true;
                return Ok(packet.clone());
            }
        }
        bail!("no {what} at {at:?}; there were {:?}", self.untaken(at))
    }

    fn untaken(&self, at: At) -> Vec<&Packet> {
        let seen = self.seen[at.index()].iter().filter(|seen| !seen.taken);
        seen.filter_map(|seen| seen.packet.as_ref().ok())
            .filter(|packet| !packet.dst.is_multicast())
            .collect()
    }

    /// Consumes the frames at `at` that end with `end`.
    pub fn frames_with(&mut self, at: At, end: &[u8]) -> Result<Vec<Vec<u8>>> {
        self.settle(at)?;
        let mut frames = Vec::new();
        for seen in &mut self.seen[at.index()] {
            if !seen.taken && seen.frame.ends_with(end) {
                seen.taken = true;
                frames.push(seen.frame.clone());
            }
        }
        Ok(frames)
    }

    /// Checks that exactly this packet arrives.
    pub fn expect_exactly(&mut self, at: At, packet: &Packet) -> Result<()> {
        self.expect(at, &format!("{packet:?}"), |p| p == packet)?;
        Ok(())
    }

    /// Consumes and returns all packets at `at` that satisfy `wanted`.
    pub fn take_all(&mut self, at: At, wanted: impl Fn(&Packet) -> bool) -> Result<Vec<Packet>> {
        self.settle(at)?;
        let mut all = Vec::new();
        for seen in &mut self.seen[at.index()] {
            if let Ok(packet) = &seen.packet
                && !seen.taken
                && wanted(packet)
            {
                seen.taken = true;
                all.push(packet.clone());
            }
        }
        Ok(all)
    }

    /// Checks that no unconsumed packet has arrived or arrives there.
    pub fn expect_nothing(&mut self, at: At) -> Result<()> {
        self.settle(at)?;
        let there = self.untaken(at);
        ensure!(
            there.is_empty(),
            "nothing was to come to {at:?}, but there is {there:?}"
        );
        Ok(())
    }

    /// Allows pods' replies to this address to keep their source.
    pub fn answers_go_to(&mut self, addr: IpAddr) {
        self.answered.push(addr);
    }

    /// Disables the checksum check for a case that sends wrong ones itself.
    pub fn bad_checksums_are_sent(&mut self) {
        self.bad_checksums = true;
    }

    /// Checks the invariants of all cases on all packets captured on the uplinks.
    pub fn finish(mut self) -> Result<()> {
        for at in At::ALL {
            self.settle(at)?;
        }
        let mut wrong = Vec::new();
        for seen in self.seen[..2].iter().flatten() {
            match &seen.packet {
                Ok(packet) => wrong.extend(self.wrong(packet)),
                Err(error) => wrong.push(format!("{error}: {:02x?}", seen.frame)),
            }
        }
        ensure!(wrong.is_empty(), "on an uplink: {}", wrong.join("; "));
        Ok(())
    }

    fn wrong(&self, packet: &Packet) -> Option<String> {
        if !is_masqueraded(packet.dst) {
            return None;
        }
        if !self.bad_checksums && !packet.checksum_ok() {
            return Some(format!("a bad checksum: {packet:?}"));
        }
        if self.answered.contains(&packet.dst) {
            return None;
        }
        if is_pod(packet.src) {
            return Some(format!("a pod's source: {packet:?}"));
        }
        let error = match packet.proto {
            ICMP => matches!(packet.icmp().0, 3 | 11 | 12),
            ICMPV6 => matches!(packet.icmp().0, 1..=4),
            _ => false,
        };
        let inner = packet
            .inner()
            .ok()
            .filter(|_| error && packet.part.is_none())?;
        (is_pod(inner.src) || is_pod(inner.dst))
            .then(|| format!("a pod's address inside: {packet:?} quotes {inner:?}"))
    }

    /// Advances netdp's clock.
    pub fn advance(&mut self, by: Duration) -> Result<()> {
        let agent = self.bed.agent.as_ref().context(NotApplicable)?;
        super::clock::advance(&agent.bpffs(), by)
    }
}
