//! Bonds, bridges and other masters that links are enslaved to.

use super::model::{Link, Snapshot};

/// Returns the masters that a link's packets pass through, from the nearest up. The two halves of a
/// cloud's accelerated NIC are related in this way too: the virtual function is enslaved to the
/// synthetic device with the address.
pub(super) fn masters<'a>(
    snapshot: &'a Snapshot,
    link: &'a Link,
) -> impl Iterator<Item = &'a Link> {
    let above = |link: &&'a Link| match snapshot.vrf(link) {
        Some(_) => None,
        None => snapshot.link(link.master?),
    };
    // A snapshot taken during a change could contain a loop.
    std::iter::successors(Some(link), above)
        .skip(1)
        .take(snapshot.links.len())
}

/// Returns the topmost master of a link, or the link itself.
pub(super) fn top<'a>(snapshot: &'a Snapshot, link: &'a Link) -> &'a Link {
    masters(snapshot, link).last().unwrap_or(link)
}
