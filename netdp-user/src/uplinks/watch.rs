//! When the node's network changes.

use std::time::Duration;

use anyhow::{Context as _, Result};
use futures::StreamExt as _;
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::{Handle, MulticastGroup};
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::model::Snapshot;
use super::snapshot::{family_of, snapshot};

/// How long a burst of notifications may go on before it is reported.
const COALESCE: Duration = Duration::from_millis(20);

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
            changes: Changes(changes),
            _tasks: tasks,
        })
    }

    /// Waits until a link, an address or a default route has changed since the
    /// last return, or a notification was lost. A burst of up to 20 ms is
    /// reported once. Dropping the future loses no change.
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
pub(super) struct Changes(pub(super) watch::Receiver<()>);

impl Changes {
    pub(super) async fn next(&mut self) -> Result<()> {
        // Waits on a copy: were this future dropped during the pause, the
        // original would still hold the change as unseen.
        let mut probe = self.0.clone();
        probe
            .changed()
            .await
            .ok()
            .context("the netlink socket for link, address and route notifications was closed")?;
        tokio::time::sleep(COALESCE).await;
        self.0.mark_unchanged();
        Ok(())
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
