//! One end of a wire as a raw socket: it sends and sees whole frames.

use anyhow::{Context as _, Result, ensure};
use std::ffi::CString;
use std::fs;
use std::io;
use std::mem::{size_of, zeroed};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::time::Duration;
use xtask::testbed::Netns;

/// Frames that wait for the test: enough for the largest bursts.
const BUFFER: libc::c_int = 16 << 20;

pub struct Socket {
    fd: OwnedFd,
}

impl Socket {
    /// A socket on `interface`; it does not see what it sends itself.
    pub fn open(ns: &Netns, interface: &str) -> Result<Self> {
        ns.enter(|| Self::here(interface))?
            .with_context(|| format!("a packet socket on {interface} in {}", ns.name()))
    }

    fn here(interface: &str) -> Result<Self> {
        let protocol = i32::from(u16::try_from(libc::ETH_P_ALL)?.to_be());
        // SAFETY: no pointers; a descriptor that is returned is ours.
        let fd = unsafe {
            let fd = libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0);
            ensure!(fd >= 0, io::Error::last_os_error());
            OwnedFd::from_raw_fd(fd)
        };
        set(&fd, libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, 1)?;
        set(&fd, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, BUFFER)?;
        let name = CString::new(interface)?;
        // SAFETY: plain data, for which zeroes are valid; `name` ends with 0.
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
        // SAFETY: the address lives through the call and has this length.
        let bound = unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), len) };
        ensure!(bound == 0, io::Error::last_os_error());
        Ok(Self { fd })
    }

    pub fn send(&self, frame: &[u8]) -> Result<()> {
        // SAFETY: the buffer is readable for its length.
        let sent =
            unsafe { libc::send(self.fd.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
        ensure!(
            usize::try_from(sent).ok() == Some(frame.len()),
            "sending {} bytes: {}",
            frame.len(),
            io::Error::last_os_error()
        );
        Ok(())
    }

    /// The next frame; `None` if none comes within `patience`.
    pub fn receive(&self, patience: Duration) -> Result<Option<Vec<u8>>> {
        let mut poll = libc::pollfd {
            fd: self.fd.as_raw_fd(),
            events: libc::POLLIN,
            revents: 0,
        };
        let patience = i32::try_from(patience.as_millis())?;
        // SAFETY: one pollfd.
        if unsafe { libc::poll(&raw mut poll, 1, patience) } <= 0 {
            return Ok(None);
        }
        let mut frame = vec![0; 70_000];
        // SAFETY: the buffer is writable for its length.
        let len = unsafe {
            libc::recv(
                self.fd.as_raw_fd(),
                frame.as_mut_ptr().cast(),
                frame.len(),
                libc::MSG_DONTWAIT,
            )
        };
        let Ok(len) = usize::try_from(len) else {
            return Ok(None);
        };
        frame.truncate(len);
        Ok(Some(frame))
    }
}

fn set(fd: &OwnedFd, level: i32, option: i32, value: i32) -> Result<()> {
    let len = u32::try_from(size_of::<i32>())?;
    // SAFETY: the value lives through the call and has this length.
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

/// Keeps this thread on one CPU: what it sends one after the other then stays
/// in order on its way, however many queues there are.
pub fn stay_on_one_cpu() -> Result<()> {
    // SAFETY: no arguments.
    let cpu = unsafe { libc::sched_getcpu() };
    run_on(&[usize::try_from(cpu)?])
}

/// Keeps this thread on that CPU.
pub fn stay_on(cpu: usize) -> Result<()> {
    run_on(&[cpu])
}

/// Lets it go again.
pub fn go_anywhere() -> Result<()> {
    run_on(&cpus()?)
}

/// The CPUs that are there.
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
    // SAFETY: plain data, for which zeroes are valid; the set has the length
    // that is given, and `CPU_SET` checks its bounds.
    unsafe {
        let mut set = zeroed::<libc::cpu_set_t>();
        cpus.iter().for_each(|&cpu| libc::CPU_SET(cpu, &mut set));
        let done = libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set);
        ensure!(done == 0, io::Error::last_os_error());
    }
    Ok(())
}
