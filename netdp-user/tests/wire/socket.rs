//! One end of a wire as a raw socket, which sends and receives whole frames.

use anyhow::{Context as _, Result, ensure};
use std::ffi::CString;
use std::fs;
use std::io;
use std::mem::{size_of, zeroed};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::time::Duration;
use testbed::Netns;

/// Receive buffer in bytes: enough for the largest bursts.
const BUFFER: libc::c_int = 16 << 20;

/// Length of the Ethernet header that a tunnel device does not have.
const NO_HEADER: usize = 14;

pub struct Socket {
    fd: OwnedFd,
    kind: Kind,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Packet,
    /// A packet socket whose frames begin with a `virtio_net_hdr`.
    Scattering,
    Tun,
}

impl Socket {
    /// Opens a socket on `interface`; it does not receive its own frames.
    pub fn open(ns: &Netns, interface: &str) -> Result<Self> {
        ns.enter(|| Self::here(interface))?
            .with_context(|| format!("a packet socket on {interface} in {}", ns.name()))
    }

    /// Opens a socket for sending: of a frame longer than a page, only the Ethernet header is in
    /// the linear area of the socket buffer (`packet_alloc_skb` in net/packet/af_packet.c, Linux
    /// 6.18).
    pub fn scattering(ns: &Netns, interface: &str) -> Result<Self> {
        let socket = Self::open(ns, interface)?;
        set(&socket.fd, libc::SOL_PACKET, libc::PACKET_VNET_HDR, 1)?;
        Ok(Self {
            kind: Kind::Scattering,
            ..socket
        })
    }

    /// Creates a tunnel device and returns its far side; the device lives as long as that.
    pub fn tun(ns: &Netns, interface: &str) -> Result<Self> {
        ns.enter(|| Self::tun_here(interface))?
            .with_context(|| format!("the tunnel device {interface} in {}", ns.name()))
    }

    fn tun_here(interface: &str) -> Result<Self> {
        let fd: OwnedFd = fs::File::options()
            .read(true)
            .write(true)
            .open("/dev/net/tun")?
            .into();
        // SAFETY: plain data, for which all zeroes is a valid value.
        let mut request = unsafe { zeroed::<libc::ifreq>() };
        for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
            *to = libc::c_char::try_from(from)?;
        }
        request.ifr_ifru.ifru_flags = libc::c_short::try_from(libc::IFF_TUN | libc::IFF_NO_PI)?;
        // SAFETY: the request outlives the call.
        let made = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
        ensure!(made == 0, io::Error::last_os_error());
        Ok(Self {
            fd,
            kind: Kind::Tun,
        })
    }

    fn here(interface: &str) -> Result<Self> {
        let protocol = i32::from(u16::try_from(libc::ETH_P_ALL)?.to_be());
        // SAFETY: no pointers; a returned descriptor has no other owner.
        let fd = unsafe {
            let fd = libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0);
            ensure!(fd >= 0, io::Error::last_os_error());
            OwnedFd::from_raw_fd(fd)
        };
        set(&fd, libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, 1)?;
        set(&fd, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, BUFFER)?;
        let name = CString::new(interface)?;
        // SAFETY: plain data, for which all zeroes is a valid value; `name` is NUL-terminated.
        let (mut address, index) = unsafe {
            (
                zeroed::<libc::sockaddr_ll>(),
                libc::if_nametoindex(name.as_ptr()),
            )
        };
        ensure!(index != 0, io::Error::last_os_error());
        address.sll_family = u16::try_from(libc::AF_PACKET)?;
        address.sll_protocol = u16::try_from(protocol)?;
        address.sll_ifindex = i32::try_from(index)?;
        let len = u32::try_from(size_of::<libc::sockaddr_ll>())?;
        // SAFETY: the address outlives the call and has this length.
        let bound = unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), len) };
        ensure!(bound == 0, io::Error::last_os_error());
        Ok(Self {
            fd,
            kind: Kind::Packet,
        })
    }

    pub fn send(&self, frame: &[u8]) -> Result<()> {
        let with_header = [&[0; 10], frame].concat();
        let frame = match self.kind {
            Kind::Packet => frame,
            Kind::Scattering => &with_header,
            Kind::Tun => &frame[NO_HEADER..],
        };
        // SAFETY: the buffer is readable for its length.
        let sent = unsafe { libc::write(self.fd.as_raw_fd(), frame.as_ptr().cast(), frame.len()) };
        ensure!(
            usize::try_from(sent).ok() == Some(frame.len()),
            "sending {} bytes: {}",
            frame.len(),
            io::Error::last_os_error()
        );
        Ok(())
    }

    /// Returns the next frame; `None` if none arrives within `patience`.
    pub fn receive(&self, patience: Duration) -> Result<Option<Vec<u8>>> {
        let mut poll = libc::pollfd {
            fd: self.fd.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        let patience = i32::try_from(patience.as_millis())?;
        // SAFETY: the pointer is to one live pollfd, as the count says.
        if unsafe { libc::poll(&raw mut poll, 1, patience) } <= 0 {
            return Ok(None);
        }
        let mut frame = vec![0; 70_000];
        let start = if self.kind == Kind::Tun { NO_HEADER } else { 0 };
        let room = &mut frame[start..];
        // SAFETY: the buffer is writable for its length.
        let len = unsafe { libc::read(self.fd.as_raw_fd(), room.as_mut_ptr().cast(), room.len()) };
        let Ok(len) = usize::try_from(len) else {
            return Ok(None);
        };
        frame.truncate(start + len);
        if self.kind == Kind::Tun {
            let version = frame.get(start).map_or(0, |first| first >> 4);
            let kind: [u8; 2] = if version == 6 { [0x86, 0xdd] } else { [8, 0] };
            frame[start - 2..start].copy_from_slice(&kind);
        }
        Ok(Some(frame))
    }
}

fn set(fd: &OwnedFd, level: i32, option: i32, value: i32) -> Result<()> {
    let len = u32::try_from(size_of::<i32>())?;
    // SAFETY: the value outlives the call and has this length.
    let done = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            level,
            option,
            (&raw const value).cast(),
            len,
        )
    };
    ensure!(
        done == 0,
        "socket option {option}: {}",
        io::Error::last_os_error()
    );
    Ok(())
}

/// Pins this thread to its current CPU: packets that it sends one after the other then stay in
/// order, however many queues there are.
pub fn stay_on_one_cpu() -> Result<()> {
    // SAFETY: no arguments.
    let cpu = unsafe { libc::sched_getcpu() };
    run_on(&[usize::try_from(cpu)?])
}

/// Pins this thread to that CPU.
pub fn stay_on(cpu: usize) -> Result<()> {
    run_on(&[cpu])
}

/// Removes the pinning of this thread.
pub fn go_anywhere() -> Result<()> {
    run_on(&cpus()?)
}

/// Returns the available CPUs.
pub fn cpus() -> Result<Vec<usize>> {
    let online = fs::read_to_string("/sys/devices/system/cpu/online")?;
    let mut cpus = Vec::new();
    for range in online.trim().split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        cpus.extend(first.parse::<usize>()?..=last.parse()?);
    }
    Ok(cpus)
}

fn run_on(cpus: &[usize]) -> Result<()> {
    // SAFETY: plain data, for which all zeroes is a valid value; the set has the given length, and
    // `CPU_SET` checks its bounds.
    unsafe {
        let mut set = zeroed::<libc::cpu_set_t>();
        cpus.iter().for_each(|&cpu| libc::CPU_SET(cpu, &mut set));
        let done = libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set);
        ensure!(done == 0, io::Error::last_os_error());
    }
    Ok(())
}
