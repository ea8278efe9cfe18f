//! Connection tracking events (`NEW`) over netlink.

use super::{Flow, message};
use anyhow::{Context as _, Result};
use netlink_packet_core::{NetlinkBuffer, NetlinkMessage, NetlinkPayload};
use netlink_packet_netfilter::conntrack::ConntrackMessage;
use netlink_packet_netfilter::{NetfilterMessage, NetfilterMessageInner};
use netlink_sys::{Socket, protocols::NETLINK_NETFILTER};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{setsockopt, sockopt::RcvBufForce};
use std::os::fd::AsFd as _;
use std::time::Duration;

/// `NFNLGRP_CONNTRACK_NEW` (include/uapi/linux/netfilter/nfnetlink.h).
const NEW: u32 = 1;

/// Receive buffer for events, in bytes: some ten thousand connections.
const RECEIVE_BUFFER: usize = 16 << 20;

/// New connections of this network namespace, reported on confirmation: by then it is decided
/// whether they are translated.
#[derive(Debug)]
pub(crate) struct Events {
    socket: Socket,
}

/// Result of a receive.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum EventBatch {
    /// New connections; empty if there were none until the timeout.
    Flows(Vec<Flow>),
    /// The buffer overran, and events were lost.
    Overrun,
}

impl Events {
    /// Subscribes to new connections. The kernel generates events only while there is a subscriber
    /// (net.netfilter.nf_conntrack_events = 2, its default).
    ///
    /// # Errors
    /// Returns an error if the kernel does not support such sockets.
    pub(crate) fn open() -> Result<Self> {
        let mut socket =
            Socket::new(NETLINK_NETFILTER).context("a netlink socket for new connections")?;
        socket.bind_auto()?;
        setsockopt(&socket, RcvBufForce, &RECEIVE_BUFFER)
            .context("making room for connection events")?;
        socket
            .add_membership(NEW)
            .context("listening for new connections")?;
        Ok(Self { socket })
    }

    /// Waits up to `wait` for new connections.
    ///
    /// # Errors
    /// Returns an error if the socket has failed.
    pub(crate) fn receive(&self, wait: Duration) -> Result<EventBatch> {
        let mut fds = [PollFd::new(self.socket.as_fd(), PollFlags::POLLIN)];
        let wait = PollTimeout::try_from(wait).unwrap_or(PollTimeout::MAX);
        match poll(&mut fds, wait) {
            Ok(0) | Err(Errno::EINTR) => return Ok(EventBatch::Flows(Vec::new())),
            other => other.context("waiting for new connections")?,
        };
        let mut datagram = Vec::with_capacity(1 << 16);
        match self.socket.recv(&mut datagram, libc::MSG_DONTWAIT) {
            Ok(_) => Ok(EventBatch::Flows(flows(&datagram))),
            Err(err) if err.raw_os_error() == Some(libc::ENOBUFS) => Ok(EventBatch::Overrun),
            Err(err) if err.kind() == std::io::ErrorKind::WouldBlock => {
                Ok(EventBatch::Flows(Vec::new()))
            }
            Err(err) => Err(err).context("receiving new-connection events"),
        }
    }
}

/// Returns the connections in a datagram.
fn flows(mut rest: &[u8]) -> Vec<Flow> {
    let mut flows = Vec::new();
    while let Ok(header) = NetlinkBuffer::new_checked(rest) {
        let length = header.length() as usize;
        let message = NetlinkMessage::<NetfilterMessage>::deserialize(rest);
        // Messages are aligned to four bytes.
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        if let Ok(message) = message
            && let NetlinkPayload::InnerMessage(message) = message.payload
            && let NetfilterMessageInner::Conntrack(ConntrackMessage::New(attributes)) =
                message.inner
        {
            flows.extend(message::flow(&attributes));
        }
    }
    flows
}
