//! When somebody changes nf_tables, iptables-nft included. iptables-legacy tells nobody.

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

/// How long a burst of changes is waited for.
const COALESCE: Duration = Duration::from_millis(50);

/// How much longer than a look itself the time between two looks is.
const REST: u32 = 20;

/// Follows the nf_tables of the calling thread's network namespace.
#[derive(Debug)]
pub struct RuleMonitor {
    socket: AsyncFd<OwnedFd>,
    due: Option<Instant>,
    not_before: Instant,
}

impl RuleMonitor {
    /// Starts to follow.
    ///
    /// # Errors
    /// The socket cannot be opened.
    pub fn new() -> Result<Self> {
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkNetFilter,
        )
        .context("opening a netlink socket for changes of nf_tables")?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, GROUP_NFTABLES))
            .context("asking for changes of nf_tables")?;
        // SAFETY: an OwnedFd names one open descriptor until it is dropped.
        let socket = unsafe { AsyncFd::register(socket) };
        Ok(Self {
            socket: socket.context("waiting for changes of nf_tables")?,
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
                    .insert((Instant::now() + COALESCE).max(self.not_before))
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
                Err(err) => return Err(err).context("hearing of changes of nf_tables"),
            }
        }
    }
}
