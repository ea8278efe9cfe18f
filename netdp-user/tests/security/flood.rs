//! Packets of any content, in any number, from a raw socket of a host.

use crate::build::udp;
use crate::checksum::internet;
use crate::common::wire::Capture;
use crate::common::{SOON, same_family};
use crate::packet::{End, Packet, TCP, UDP, word};
use anyhow::{Context as _, Result, ensure};
use std::io;
use std::mem::{size_of, zeroed};
use std::net::IpAddr;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use testbed::{Host, Netns, wait_for, wait_some};

/// Packets per system call.
const BATCH: usize = 64;

/// Maximum duration of a flood, whatever its test does.
const LONGEST: Duration = Duration::from_secs(60);

/// A raw socket on a host's `eth0` that sends to the next hop for an address.
#[derive(Debug)]
pub struct Raw {
    fd: OwnedFd,
    mac: [u8; 6],
    interface: i32,
}

impl Raw {
    pub fn towards(ns: &Netns, dst: IpAddr) -> Result<Self> {
        let mac = next_hop(ns, dst)?;
        let opened = ns.enter(|| -> io::Result<(OwnedFd, u32)> {
            // SAFETY: the only pointer is to a NUL-terminated string; a returned descriptor has no
            // other owner.
            unsafe {
                let kind = libc::SOCK_DGRAM | libc::SOCK_CLOEXEC;
                let fd = libc::socket(libc::AF_PACKET, kind, 0);
                if fd < 0 {
                    return Err(io::Error::last_os_error());
                }
                Ok((
                    OwnedFd::from_raw_fd(fd),
                    libc::if_nametoindex(c"eth0".as_ptr()),
                ))
            }
        })?;
        let (fd, interface) = opened.with_context(|| format!("a raw socket in {}", ns.name()))?;
        Ok(Self {
            fd,
            mac,
            interface: i32::try_from(interface)?,
        })
    }

    /// Sends one packet.
    pub fn send(&self, packet: &Packet) -> Result<()> {
        self.send_all(&[packet.bytes()])
    }

    /// Sends packets that begin with their IP header.
    pub fn send_all(&self, packets: &[Vec<u8>]) -> Result<()> {
        for batch in packets.chunks(BATCH) {
            self.send_batch(batch)?;
        }
        Ok(())
    }

    fn send_batch(&self, packets: &[Vec<u8>]) -> Result<()> {
        let mut addresses = Vec::with_capacity(packets.len());
        for packet in packets {
            let kind = match packet.first().map(|byte| byte >> 4) {
                Some(6) => libc::ETH_P_IPV6,
                _ => libc::ETH_P_IP,
            };
            // SAFETY: plain data, for which all zeroes is a valid value.
            let mut address = unsafe { zeroed::<libc::sockaddr_ll>() };
            address.sll_family = u16::try_from(libc::AF_PACKET)?;
            address.sll_protocol = u16::try_from(kind)?.to_be();
            address.sll_ifindex = self.interface;
            address.sll_halen = 6;
            address.sll_addr[..6].copy_from_slice(&self.mac);
            addresses.push(address);
        }
        let mut parts: Vec<libc::iovec> = packets
            .iter()
            .map(|packet| libc::iovec {
                iov_base: packet.as_ptr().cast_mut().cast(),
                iov_len: packet.len(),
            })
            .collect();
        let mut messages = Vec::with_capacity(packets.len());
        for (address, part) in addresses.iter_mut().zip(&mut parts) {
            // SAFETY: plain data, for which all zeroes is a valid value.
            let mut message = unsafe { zeroed::<libc::mmsghdr>() };
            message.msg_hdr.msg_name = (&raw mut *address).cast();
            message.msg_hdr.msg_namelen = u32::try_from(size_of::<libc::sockaddr_ll>())?;
            message.msg_hdr.msg_iov = part;
            message.msg_hdr.msg_iovlen = 1;
            messages.push(message);
        }
        let mut sent = 0;
        while sent < messages.len() {
            let rest = &mut messages[sent..];
            let count = u32::try_from(rest.len())?;
            // SAFETY: the messages and the memory they point to outlive the call.
            let done = unsafe { libc::sendmmsg(self.fd.as_raw_fd(), rest.as_mut_ptr(), count, 0) };
            if done < 0 {
                let error = io::Error::last_os_error();
                // The queue is full; a flood continues.
                ensure!(
                    error.raw_os_error() == Some(libc::ENOBUFS),
                    "sending: {error}"
                );
                continue;
            }
            sent += usize::try_from(done)?;
        }
        Ok(())
    }
}

/// A host that sends single packets.
#[derive(Debug)]
pub struct Attacker {
    raw: Raw,
    wire: Capture,
    from: End,
    to: End,
    marks: u32,
}

impl Attacker {
    /// Creates an attacker whose packets are routed towards `to` and pass `seen_at`.
    pub fn new(host: &Host, seen_at: &Netns, to: IpAddr) -> Result<Self> {
        Ok(Self {
            raw: Raw::towards(host, to)?,
            wire: Capture::start(seen_at)?,
            from: (same_family(&host.addresses, to)?, 9),
            to: (to, 9),
            marks: 0,
        })
    }

    /// Sends a packet; all of its consequences have arrived when this returns.
    pub fn send(&mut self, packet: &Packet) -> Result<()> {
        self.raw.send(packet)?;
        self.marks += 1;
        let mark = format!("mark-{}", self.marks);
        self.raw.send(&udp(self.from, self.to, mark.as_bytes()))?;
        wait_for(SOON, "the mark", || {
            let packets = self.wire.packets().unwrap_or_default();
            packets.iter().any(|p| p.payload.ends_with(mark.as_bytes()))
        })
    }
}

/// Returns the MAC address of a host's next hop towards `dst`.
fn next_hop(ns: &Netns, dst: IpAddr) -> Result<[u8; 6]> {
    let route = ns.ip(&format!("route get {dst}"))?;
    let via = after(&route, "via").unwrap_or_else(|| dst.to_string());
    wait_some(SOON, &format!("a neighbour {via}"), || {
        // Only triggers neighbour resolution.
        let _ = ns.run(&["ping", "-n", "-c1", "-W1", &via]);
        let found = ns.ip(&format!("neigh show {via}")).ok()?;
        let mut mac = [0; 6];
        let text = after(&found, "lladdr")?;
        for (byte, digits) in mac.iter_mut().zip(text.split(':')) {
            *byte = u8::from_str_radix(digits, 16).ok()?;
        }
        Some(mac)
    })
}

fn after(text: &str, word: &str) -> Option<String> {
    let mut words = text.split_whitespace();
    words.find(|found| *found == word)?;
    words.next().map(str::to_owned)
}

/// A packet with variable fields, whose checksums stay right.
#[derive(Debug, Clone)]
pub struct Template {
    bytes: Vec<u8>,
    /// Offset of the L4 header in bytes.
    l4: usize,
    /// Offset of its checksum in bytes.
    sum: Option<usize>,
    udp: bool,
}

impl Template {
    pub fn new(packet: &Packet) -> Self {
        let bytes = packet.bytes();
        let l4 = bytes.len() - packet.body.len();
        let sum = match packet.proto {
            TCP => Some(16),
            UDP => Some(6),
            _ => None,
        };
        Self {
            bytes,
            l4,
            sum: sum.filter(|_| packet.part.is_none()).map(|at| l4 + at),
            udp: packet.proto == UDP,
        }
    }

    pub fn bytes(&self) -> Vec<u8> {
        self.bytes.clone()
    }

    pub fn sport(&mut self, port: u16) {
        self.put(self.l4, port);
    }

    pub fn dport(&mut self, port: u16) {
        self.put(self.l4 + 2, port);
    }

    /// Sets the last 16 bits of the source address.
    pub fn source(&mut self, low: u16) {
        self.put(if self.is_v4() { 14 } else { 22 }, low);
    }

    /// Sets the last 16 bits of the destination address.
    pub fn destination(&mut self, low: u16) {
        self.put(if self.is_v4() { 18 } else { 38 }, low);
    }

    /// Sets the identification of a fragment: IPv6's lower half.
    pub fn id(&mut self, id: u16) {
        let at = if self.is_v4() { 4 } else { 46 };
        self.put_plain(at, id);
        self.sum_header();
    }

    fn is_v4(&self) -> bool {
        self.bytes[0] >> 4 == 4
    }

    fn put_plain(&mut self, at: usize, value: u16) {
        self.bytes[at..at + 2].copy_from_slice(&value.to_be_bytes());
    }

    /// Writes a word and updates the checksum (RFC 1624 3).
    fn put(&mut self, at: usize, value: u16) {
        let before = word(&self.bytes, at);
        self.put_plain(at, value);
        if let Some(sum_at) = self.sum {
            let sum = word(&self.bytes, sum_at);
            let mut new = u32::from(!sum) + u32::from(!before) + u32::from(value);
            while new > 0xffff {
                new = (new & 0xffff) + (new >> 16);
            }
            let new = match !u16::try_from(new).unwrap_or(0) {
                0 if self.udp => 0xffff,
                new => new,
            };
            self.put_plain(sum_at, new);
        }
        if at < self.l4 {
            self.sum_header();
        }
    }

    fn sum_header(&mut self) {
        if self.is_v4() {
            self.put_plain(10, 0);
            let sum = internet(&[&self.bytes[..20]]);
            self.put_plain(10, sum);
        }
    }
}

/// Sends a number of packets, each derived by `vary` from its number.
pub fn burst(
    raw: &Raw,
    template: &Template,
    count: u32,
    mut vary: impl FnMut(u32, &mut Template),
) -> Result<()> {
    let mut template = template.clone();
    let mut batch = Vec::with_capacity(BATCH);
    for n in 0..count {
        vary(n, &mut template);
        batch.push(template.bytes());
        if batch.len() == BATCH || n + 1 == count {
            raw.send_all(&batch)?;
            batch.clear();
        }
    }
    Ok(())
}

/// A continuous flood until this is dropped or [`end`](Self::end)ed.
#[derive(Debug)]
pub struct Flood {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU32>,
    thread: Option<JoinHandle<Result<u32>>>,
}

impl Flood {
    /// Starts a flood of `rate` packets per second of each template; `vary` derives packet `n`.
    pub fn start(
        raw: Raw,
        mut templates: Vec<Template>,
        rate: u32,
        vary: impl Fn(u32, &mut Template) + Send + 'static,
    ) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let told = Arc::<AtomicU32>::default();
        let count = Arc::clone(&told);
        let thread = std::thread::spawn(move || {
            let start = Instant::now();
            let mut sent = 0_u32;
            while !stopped.load(Ordering::Relaxed) && start.elapsed() < LONGEST {
                let due = start.elapsed().as_secs_f64() * f64::from(rate);
                if f64::from(sent) > due {
                    std::thread::sleep(Duration::from_micros(200));
                    continue;
                }
                let mut batch = Vec::with_capacity(BATCH);
                while batch.len() < BATCH {
                    for template in &mut templates {
                        vary(sent, template);
                        batch.push(template.bytes());
                    }
                    sent += 1;
                }
                raw.send_all(&batch)?;
                count.store(sent, Ordering::Relaxed);
            }
            Ok(sent)
        });
        Self {
            stop,
            sent: told,
            thread: Some(thread),
        }
    }

    /// Returns the number of packets sent so far of each template.
    pub fn sent(&self) -> u32 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Ends the flood; returns the number of packets sent of each template.
    pub fn end(mut self) -> Result<u32> {
        self.stop.store(true, Ordering::Relaxed);
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(sent)) => sent,
            _ => anyhow::bail!("the flood panicked"),
        }
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[test]
fn varied_packets_have_right_checksums() -> Result<()> {
    for (src, dst) in [("172.16.0.4", "10.66.0.1"), ("fd00:172::4", "fd00:66::1")] {
        let (src, dst) = ((src.parse()?, 1), (dst.parse()?, 2));
        let tcp = crate::build::tcp(src, dst, crate::build::SYN, (1, 0), b"");
        for packet in [tcp, udp(src, dst, b"x")] {
            let mut template = Template::new(&packet);
            for n in [0, 7, 0x1234, 0xffff] {
                template.sport(n);
                template.dport(!n);
                template.source(n ^ 0x55);
                template.destination(n ^ 0xaaaa);
                let read = Packet::parse(&template.bytes())?;
                ensure!(read.checksum_ok(), "{read:?}");
                ensure!((read.sport(), read.dport()) == (n, !n), "{read:?}");
            }
        }
    }
    Ok(())
}
