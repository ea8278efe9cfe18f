//! Paths past the hooks: on these, packets meet no TC hook, as far as links show.

use super::model::Snapshot;
use super::uplink::Uplink;

/// Returns the paths past the uplinks' TC hooks, a sentence each.
pub(crate) fn unhooked_paths(snapshot: &Snapshot, uplinks: &[Uplink]) -> Vec<String> {
    let with_xdp = snapshot.links.iter().filter(|link| link.xdp);
    with_xdp
        .map(|link| {
            let name = &link.name;
            if uplinks.iter().any(|uplink| uplink.ifindex == link.ifindex) {
                format!(
                    "an XDP program runs on {name}: packets that it sends back (XDP_TX) or \
                     redirects are not translated"
                )
            } else {
                format!(
                    "an XDP program runs on {name}: packets that it redirects to an uplink are not \
                     translated"
                )
            }
        })
        .collect()
}
