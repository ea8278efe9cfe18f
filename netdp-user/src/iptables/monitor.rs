//! Netlink notifications of changes to nf_tables, including iptables-nft (iptables-legacy sends
//! none), and to TC filters.

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

/// Debounce interval for a burst of changes: of rules, of filters.
const RULE_DEBOUNCE: Duration = Duration::from_millis(50);
const FILTER_DEBOUNCE: Duration = Duration::from_millis(5);

/// Minimum pause between two scans, as a multiple of a scan's duration.
const BACKOFF_FACTOR: u32 = 20;

/// Monitor of nf_tables, or of TC filters and qdiscs, in the calling thread's network namespace.
#[derive(Debug)]
pub(crate) struct RuleMonitor {
    socket: AsyncFd<OwnedFd>,
    what: &'static str,
    debounce: Duration,
    due: Option<Instant>,
    not_before: Instant,
}

impl RuleMonitor {
    /// Subscribes to changes of nf_tables.
    ///
    /// # Errors
    /// Returns an error if the socket cannot be opened.
    pub(crate) fn new() -> Result<Self> {
        let protocol = SockProtocol::NetlinkNetFilter;
        Self::subscribe(protocol, GROUP_NFTABLES, "nf_tables", RULE_DEBOUNCE)
    }

    /// Subscribes to changes of TC filters and qdiscs.
    ///
    /// # Errors
    /// Returns an error if the socket cannot be opened.
    pub(crate) fn of_filters() -> Result<Self> {
        let protocol = SockProtocol::NetlinkRoute;
        Self::subscribe(protocol, GROUP_TC, "TC filters", FILTER_DEBOUNCE)
    }

    fn subscribe(
        protocol: SockProtocol,
        group: u32,
        what: &'static str,
        debounce: Duration,
    ) -> Result<Self> {
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC,
            protocol,
        )
        .with_context(|| format!("opening a netlink socket for changes of {what}"))?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, group))
            .with_context(|| format!("subscribing to changes of {what}"))?;
        // SAFETY: an OwnedFd refers to one open descriptor until it is dropped.
        let socket = unsafe { AsyncFd::register(socket) };
        Ok(Self {
            socket: socket.with_context(|| format!("waiting for changes of {what}"))?,
            what,
            debounce,
            due: None,
            not_before: Instant::now(),
        })
    }

    /// Waits until rules have changed since the last return; a burst counts as one change.
    /// Cancel-safe: no change is lost.
    ///
    /// # Errors
    /// Returns an error if the socket has failed.
    pub(crate) async fn changed(&mut self) -> Result<()> {
        let due = match self.due {
            Some(due) => due,
            None => {
                self.socket.readable().await?.clear_ready();
                *self
                    .due
                    .insert((Instant::now() + self.debounce).max(self.not_before))
            }
        };
        sleep_until(due).await;
        self.discard_pending()?;
        self.due = None;
        Ok(())
    }

    /// Backs off for `BACKOFF_FACTOR` times the duration of the last scan.
    pub(crate) fn back_off(&mut self, time: Duration) {
        self.not_before = Instant::now() + time * BACKOFF_FACTOR;
    }

    /// Discards pending notifications: only their arrival matters, not their content.
    fn discard_pending(&self) -> Result<()> {
        let mut message = [0; 256];
        loop {
            match recv(
                self.socket.as_raw_fd(),
                &mut message,
                MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_TRUNC,
            ) {
                // The buffer overran and notifications were dropped: still a change.
                Ok(_) | Err(Errno::ENOBUFS | Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Ok(()),
                Err(err) => {
                    return Err(err).with_context(|| format!("receiving changes of {}", self.what));
                }
            }
        }
    }
}
