//! When somebody changes nf_tables, iptables-nft included (iptables-legacy tells nobody), or TC filters.

use anyhow::{Context as _, Result};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::time::Duration;
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, sleep_until};

/// NFNLGRP_NFTABLES (include/uapi/linux/netfilter/nfnetlink.h) as a bit: groups count from 1.
const GROUP_NFTABLES: u32 = 1 << (7 - 1);

/// RTNLGRP_TC (include/uapi/linux/rtnetlink.h) as a bit.
const GROUP_TC: u32 = 1 << (4 - 1);

/// How long a burst of changes is waited for: of rules, of filters.
const COALESCE: Duration = Duration::from_millis(50);
const COALESCE_FILTERS: Duration = Duration::from_millis(5);

/// How much longer than a look itself the time between two looks is.
const REST: u32 = 20;

/// Follows the nf_tables, or the TC filters and qdiscs, of the calling thread's network namespace.
#[derive(Debug)]
pub struct RuleMonitor {
    socket: AsyncFd<OwnedFd>,
    what: &'static str,
    coalesce: Duration,
    due: Option<Instant>,
    not_before: Instant,
}

impl RuleMonitor {
    /// Starts to follow nf_tables.
    ///
    /// # Errors
    /// The socket cannot be opened.
    pub fn new() -> Result<Self> {
        let protocol = SockProtocol::NetlinkNetFilter;
        Self::follow(protocol, GROUP_NFTABLES, "nf_tables", COALESCE)
    }

    /// Starts to follow TC filters and qdiscs.
    ///
    /// # Errors
    /// The socket cannot be opened.
    pub fn of_filters() -> Result<Self> {
        let protocol = SockProtocol::NetlinkRoute;
        Self::follow(protocol, GROUP_TC, "TC filters", COALESCE_FILTERS)
    }

    fn follow(
        protocol: SockProtocol,
        group: u32,
        what: &'static str,
        coalesce: Duration,
    ) -> Result<Self> {
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC,
            protocol,
        )
        .with_context(|| format!("opening a netlink socket for changes of {what}"))?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, group))
            .with_context(|| format!("asking for changes of {what}"))?;
        // SAFETY: an OwnedFd names one open descriptor until it is dropped.
        let socket = unsafe { AsyncFd::register(socket) };
        Ok(Self {
            socket: socket.with_context(|| format!("waiting for changes of {what}"))?,
            what,
            coalesce,
            due: None,
            not_before: Instant::now(),
        })
    }

    /// Waits until rules have changed since the last return; a burst counts once. Dropping the future
    /// loses no change.
    ///
    /// # Errors
    /// The socket has failed.
    pub async fn changed(&mut self) -> Result<()> {
        let due = match self.due {
            Some(due) => due,
            None => {
                self.socket.readable().await?.clear_ready();
                *self
                    .due
                    .insert((Instant::now() + self.coalesce).max(self.not_before))
            }
        };
        sleep_until(due).await;
        self.drain()?;
        self.due = None;
        Ok(())
    }

    /// Looking at the rules took so long: leaves the node in peace for a while.
    pub fn took(&mut self, time: Duration) {
        self.not_before = Instant::now() + time * REST;
    }

    /// What was told matters less than that it was.
    fn drain(&self) -> Result<()> {
        let mut message = [0; 256];
        loop {
            match recv(
                self.socket.as_raw_fd(),
                &mut message,
                MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_TRUNC,
            ) {
                // Too many at once: some were dropped, which comes to the same.
                Ok(_) | Err(Errno::ENOBUFS | Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Ok(()),
                Err(err) => {
                    return Err(err)
                        .with_context(|| format!("hearing of changes of {}", self.what));
                }
            }
        }
    }
}
