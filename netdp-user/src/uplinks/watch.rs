//! When the node's network changes.

use std::time::Duration;

use anyhow::{Context as _, Result};
use futures::StreamExt as _;
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::{Handle, MulticastGroup};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::model::Snapshot;
use super::snapshot::{family_of, snapshot};

/// How long a burst of notifications may go on before it is reported.
const COALESCE: Duration = Duration::from_millis(20);

/// How long a report comes after the one before while notifications do not end: each look at a node
/// of thousands of links is dear. From the first to the last, five times as long each time.
pub(super) const PAUSES: (Duration, Duration) = (COALESCE, Duration::from_millis(500));

const GROUPS: [MulticastGroup; 5] = [
    MulticastGroup::Link,
    MulticastGroup::Ipv4Ifaddr,
    MulticastGroup::Ipv6Ifaddr,
    MulticastGroup::Ipv4Route,
    MulticastGroup::Ipv6Route,
];

/// Follows links, addresses and default routes of one network namespace.
///
/// Dropping it closes its sockets.
pub struct Monitor {
    /// Requests go over a socket of their own, so that a flood of
    /// notifications cannot push out the answer to one.
    handle: Handle,
    changes: Changes,
    _tasks: JoinSet<()>,
}

impl Monitor {
    /// Starts to follow the network namespace of the calling thread, on the
    /// current tokio runtime (its I/O and time drivers must be on). Changes
    /// from here on are reported.
    ///
    /// # Errors
    /// Where the netlink sockets cannot be opened.
    pub async fn new() -> Result<Self> {
        let (requests, handle, _) =
            rtnetlink::new_connection().context("opening a netlink socket for requests")?;
        let (events, _, mut messages) = rtnetlink::new_multicast_connection(&GROUPS)
            .context("opening a netlink socket for link, address and route notifications")?;
        let (mark, changes) = watch::channel(());
        let mut tasks = JoinSet::new();
        tasks.spawn(requests);
        tasks.spawn(events);
        // Messages are dropped as they come, not when someone asks, so that a
        // busy agent does not pile them up in memory.
        tasks.spawn(async move {
            while let Some((message, _)) = messages.next().await {
                if matters(&message) {
                    mark.send_replace(());
                }
            }
        });
        Ok(Self {
            handle,
            changes: Changes::new(changes),
            _tasks: tasks,
        })
    }

    /// Waits until a link, an address or a default route has changed since the
    /// last return, or a notification was lost. A burst of up to 20 ms is
    /// reported once; while they do not end, reports come less and less often, up
    /// to half a second apart. Dropping the future loses no change.
    ///
    /// # Errors
    /// Where the netlink socket has failed: changes are no longer seen, and
    /// the monitor must be made anew.
    pub async fn changed(&mut self) -> Result<()> {
        self.changes.next().await
    }

    /// The network as it is now.
    ///
    /// # Errors
    /// As [`snapshot`].
    pub async fn snapshot(&self) -> Result<Snapshot> {
        snapshot(&self.handle).await
    }
}

/// The reader's side of the "something changed" mark.
pub(super) struct Changes {
    mark: watch::Receiver<()>,
    pace: Pace,
    /// When what was noticed is reported.
    due: Option<Instant>,
}

impl Changes {
    pub(super) fn new(mark: watch::Receiver<()>) -> Self {
        Self {
            mark,
            pace: Pace::default(),
            due: None,
        }
    }

    pub(super) async fn next(&mut self) -> Result<()> {
        let due = match self.due {
            Some(due) => due,
            None => {
                // Waits on a copy: were this future dropped during the pause, the
                // original would still hold the change as unseen.
                let mut probe = self.mark.clone();
                probe.changed().await.ok().context(
                    "the netlink socket for link, address and route notifications was closed",
                )?;
                *self.due.insert(self.pace.due(Instant::now()))
            }
        };
        sleep_until(due).await;
        self.mark.mark_unchanged();
        self.due = None;
        self.pace.reported(Instant::now());
        Ok(())
    }
}

/// How soon reports follow each other.
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
    /// When a change that was noticed `now` is to be reported.
    pub(super) fn due(&mut self, now: Instant) -> Instant {
        let Some(last) = self.last else {
            return now + COALESCE;
        };
        self.pause = if now < last + self.pause {
            (self.pause * 5).min(PAUSES.1)
        } else {
            PAUSES.0
        };
        (now + COALESCE).max(last + self.pause)
    }

    pub(super) const fn reported(&mut self, now: Instant) {
        self.last = Some(now);
    }
}

/// Whether a notification can mean another snapshot. Nodes add and remove
/// routes to pods all day, which are in none.
pub(super) fn matters(message: &NetlinkMessage<RouteNetlinkMessage>) -> bool {
    match &message.payload {
        NetlinkPayload::InnerMessage(
            RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route),
        ) => family_of(route).is_some(),
        NetlinkPayload::InnerMessage(
            RouteNetlinkMessage::NewLink(_)
            | RouteNetlinkMessage::DelLink(_)
            | RouteNetlinkMessage::NewAddress(_)
            | RouteNetlinkMessage::DelAddress(_),
        ) => true,
        // The socket's buffer was full: what was lost may have mattered.
        NetlinkPayload::Overrun(_) => true,
        _ => false,
    }
}
