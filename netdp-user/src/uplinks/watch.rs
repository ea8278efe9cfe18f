//! The monitor of the node's network, by netlink notifications.

use std::os::fd::{AsRawFd as _, OwnedFd};
use std::time::Duration;

use anyhow::{Context as _, Result};
use netlink_packet_core::{NetlinkBuffer, NlasIterator};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
};
use rtnetlink::Handle;
use tokio::io::unix::AsyncFd;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::model::Snapshot;
use super::route_classes::RouteFilter;
use super::selection::Selection;
use super::snapshot::snapshot;

/// Debounce time: the time for which notifications are coalesced before they are reported.
const DEBOUNCE: Duration = Duration::from_millis(20);

/// Minimum time between two reports while notifications do not end: each scan of a node with
/// thousands of links is expensive. It grows from the first value to the last, by a factor of five
/// each time.
pub(super) const PAUSES: (Duration, Duration) = (DEBOUNCE, Duration::from_millis(500));

/// RTNLGRP_LINK, _IPV4_IFADDR, _IPV4_ROUTE, _IPV4_RULE, _IPV6_IFADDR, _IPV6_ROUTE and _IPV6_RULE
/// (include/uapi/linux/rtnetlink.h) as bits: groups count from 1.
const GROUPS: u32 = 1 | 1 << 4 | 1 << 6 | 1 << 7 | 1 << 8 | 1 << 10 | 1 << 18;

/// Watches links, addresses and routes of one network namespace.
///
/// Dropping it closes its sockets.
pub(crate) struct Monitor {
    /// Requests use a socket of their own, so that a flood of notifications cannot push out the
    /// reply to one.
    handle: Handle,
    _requests: JoinSet<()>,
    events: AsyncFd<OwnedFd>,
    pace: Pace,
    /// Selection by whose names new links are uplinks from their first moment, except known ones.
    expected: Selection,
    /// Time at which detected changes are reported.
    due: Option<Instant>,
    filter: RouteFilter,
}

impl Monitor {
    /// Starts watching the network namespace of the calling thread, on the current tokio runtime
    /// (its I/O and time drivers must be enabled). Changes from here on are reported.
    ///
    /// # Errors
    /// Returns an error if the netlink sockets cannot be opened.
    pub(crate) async fn new() -> Result<Self> {
        let (connection, handle, _) =
            rtnetlink::new_connection().context("opening a netlink socket for requests")?;
        let mut requests = JoinSet::new();
        requests.spawn(connection);
        let events = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC,
            SockProtocol::NetlinkRoute,
        )
        .and_then(|events| bind(events.as_raw_fd(), &NetlinkAddr::new(0, GROUPS)).map(|()| events))
        .context("opening a netlink socket for link, address and route notifications")?;
        // SAFETY: an OwnedFd names one open descriptor until it is dropped.
        let events = unsafe { AsyncFd::register(events) };
        Ok(Self {
            handle,
            _requests: requests,
            events: events.context("waiting for link, address and route notifications")?,
            pace: Pace::default(),
            expected: Selection::default(),
            due: None,
            filter: RouteFilter::default(),
        })
    }

    /// Ignores irrelevant notifications of routes from now on.
    pub(crate) fn set_route_filter(&mut self, filter: RouteFilter) {
        self.filter = filter;
    }

    /// Reports a link that is a new uplink by its name without delay.
    pub(crate) fn set_expected(&mut self, selection: &Selection) {
        self.expected.clone_from(selection);
    }

    /// Waits until a link, an address or a route has changed since the last return, or a
    /// notification was lost. A burst of up to 20 ms is reported once; while notifications do not
    /// end, reports become less frequent, up to half a second apart. Dropping the future loses no
    /// change.
    ///
    /// # Errors
    /// Returns an error if the netlink socket has failed: changes are no longer detected, and the
    /// monitor must be created anew.
    pub(crate) async fn changed(&mut self) -> Result<()> {
        let due = loop {
            if let Some(due) = self.due {
                break due;
            }
            let ready = self.events.readable().await;
            let mut ready = ready.context("waiting for link, address and route notifications")?;
            ready.clear_ready();
            drop(ready);
            match self.read_pending()? {
                ChangeKind::Nothing => {}
                ChangeKind::Change => self.due = Some(self.pace.due(Instant::now())),
                ChangeKind::Uplink => self.due = Some(Instant::now()),
            }
        };
        // Notifications queue in the socket meanwhile, without a wake-up for each. A new uplink
        // does not wait.
        while Instant::now() < due {
            sleep_until(due.min(Instant::now() + DEBOUNCE)).await;
            if self.read_pending()? == ChangeKind::Uplink {
                break;
            }
        }
        self.read_pending()?;
        self.due = None;
        self.pace.record_report(Instant::now());
        Ok(())
    }

    /// Reads all pending notifications; returns the most important kind.
    fn read_pending(&self) -> Result<ChangeKind> {
        let mut datagram = vec![0; 1 << 15];
        let mut found = ChangeKind::Nothing;
        loop {
            match recv(
                self.events.as_raw_fd(),
                &mut datagram,
                MsgFlags::MSG_DONTWAIT,
            ) {
                Ok(length) => {
                    let datagram = datagram.get(..length).unwrap_or(&datagram);
                    if announces_uplink(datagram, &self.expected) {
                        found = ChangeKind::Uplink;
                    } else if needs_snapshot(datagram, &self.filter) {
                        found = found.max(ChangeKind::Change);
                    }
                }
                // The socket's buffer overflowed: a lost notification may have been relevant.
                Err(Errno::ENOBUFS) => found = found.max(ChangeKind::Change),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Ok(found),
                Err(err) => {
                    return Err(err).context("receiving link, address and route notifications");
                }
            }
        }
    }

    /// Takes a snapshot of the network as it is now.
    ///
    /// # Errors
    /// Returns the errors of [`snapshot`].
    pub(crate) async fn snapshot(&self) -> Result<Snapshot> {
        snapshot(&self.handle).await
    }
}

/// Rate limit of the reports.
#[derive(Debug)]
pub(super) struct Pace {
    pause: Duration,
    last: Option<Instant>,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            pause: PAUSES.0,
            last: None,
        }
    }
}

impl Pace {
    /// Returns the time at which a change that was detected `now` is to be reported.
    pub(super) fn due(&mut self, now: Instant) -> Instant {
        let Some(last) = self.last else {
            return now + DEBOUNCE;
        };
        self.pause = if now < last + self.pause {
            (self.pause * 5).min(PAUSES.1)
        } else {
            PAUSES.0
        };
        (now + DEBOUNCE).max(last + self.pause)
    }

    pub(super) const fn record_report(&mut self, now: Instant) {
        self.last = Some(now);
    }
}

/// Kind of a detected change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum ChangeKind {
    Nothing,
    /// Another snapshot is needed.
    Change,
    /// A new uplink has appeared.
    Uplink,
}

/// Size of struct nlmsghdr, which begins with length and type.
const HEADER: usize = 16;

/// Reports whether a notification among these is of a new link whose name alone makes it an uplink.
pub(super) fn announces_uplink(mut datagram: &[u8], expected: &Selection) -> bool {
    /// Size of struct ifinfomsg, and the offset of the index in it.
    const LINK: usize = 16;
    const INDEX: usize = 4;
    while let Ok(message) = NetlinkBuffer::new_checked(datagram) {
        let payload = message.payload();
        let index = payload.get(INDEX..).and_then(<[u8]>::first_chunk);
        let index = index.map_or(0, |index| u32::from_ne_bytes(*index));
        let attributes = NlasIterator::new(payload.get(LINK..).unwrap_or_default());
        let name = attributes
            .filter_map(Result::ok)
            .find(|attribute| attribute.kind() == libc::IFLA_IFNAME);
        let name = name.map(|name| String::from_utf8_lossy(name.value()).into_owned());
        let is_new = message.message_type() == libc::RTM_NEWLINK && !expected.keep.contains(&index);
        if is_new && name.is_some_and(|name| expected.expects(name.trim_end_matches('\0'))) {
            return true;
        }
        let length = message.length() as usize;
        match datagram.get(length.max(HEADER).next_multiple_of(4)..) {
            Some(rest) => datagram = rest,
            None => break,
        }
    }
    false
}

/// Reports whether a notification among these requires another snapshot. Only the necessary part of
/// each is parsed: link messages are long, and nodes add and remove routes to pods all day.
pub(super) fn needs_snapshot(mut datagram: &[u8], filter: &RouteFilter) -> bool {
    while let (Some(length), Some(kind)) = (
        datagram
            .first_chunk()
            .map(|bytes| u32::from_ne_bytes(*bytes)),
        datagram
            .get(4..)
            .and_then(<[u8]>::first_chunk)
            .map(|bytes| u16::from_ne_bytes(*bytes)),
    ) {
        let length = length as usize;
        let matters = match kind {
            libc::RTM_NEWLINK | libc::RTM_DELLINK | libc::RTM_NEWADDR | libc::RTM_DELADDR => true,
            libc::RTM_NEWRULE | libc::RTM_DELRULE => true,
            libc::RTM_NEWROUTE | libc::RTM_DELROUTE => {
                let end = length.clamp(HEADER, datagram.len());
                datagram
                    .get(HEADER..end)
                    .is_none_or(|route| is_relevant_route(route, filter))
            }
            _ => false,
        };
        if matters {
            return true;
        }
        match datagram.get(length.max(HEADER).next_multiple_of(4)..) {
            Some(rest) => datagram = rest,
            None => break,
        }
    }
    false
}

/// Reports whether a struct rtmsg with its attributes is about a route that may lead out by a link
/// not yet known to lead out.
fn is_relevant_route(route: &[u8], filter: &RouteFilter) -> bool {
    /// Size of struct rtmsg (include/uapi/linux/rtnetlink.h).
    const HEADER: usize = 12;
    let [family, length, _, _, table, protocol, _, kind, ..] = *route else {
        return true;
    };
    // A default route affects the choice of addresses too. Table numbers that do not fit the header
    // are given as RT_TABLE_COMPAT in it.
    if length == 0 && table == libc::RT_TABLE_MAIN {
        return true;
    }
    if kind == libc::RTN_LOCAL {
        // Routes by the kernel itself come and go with addresses.
        return protocol != libc::RTPROT_KERNEL;
    }
    if table == libc::RT_TABLE_LOCAL || kind != libc::RTN_UNICAST {
        return false;
    }
    let Some(attributes) = route.get(HEADER..) else {
        return true;
    };
    /// `RTA_VIA` of include/uapi/linux/rtnetlink.h (Linux 6.12); musl's libc has no name for it.
    const RTA_VIA: u16 = 18;
    let mut by = None;
    let mut gateway = false;
    for (attribute, value) in attributes_of(attributes) {
        match attribute {
            libc::RTA_OIF => by = value.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes)),
            libc::RTA_GATEWAY | RTA_VIA => gateway = true,
            // The route names a source.
            libc::RTA_PREFSRC if protocol != libc::RTPROT_KERNEL => return true,
            _ => {}
        }
    }
    let Some(by) = by else {
        return true;
    };
    let most = if i32::from(family) == libc::AF_INET {
        32
    } else {
        128
    };
    let to_guest = !gateway && length == most && filter.guests.contains(&by);
    !filter.uplinks.contains(&by) && !to_guest
}

/// Returns the attributes (struct rtattr) of a message, types and values.
fn attributes_of(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    const HEADER: usize = 4;
    std::iter::from_fn(move || {
        let [a, b, c, d, ..] = *bytes else {
            return None;
        };
        let length = usize::from(u16::from_ne_bytes([a, b]));
        let value = bytes.get(HEADER..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((u16::from_ne_bytes([c, d]), value))
    })
}
