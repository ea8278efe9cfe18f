//! Paths past the hooks: ways on which packets meet no TC hook, as far as links show.

use super::model::Snapshot;
use super::select::Uplink;

/// Returns the paths past the uplinks' TC hooks, a sentence each.
pub fn detours(snapshot: &Snapshot, uplinks: &[Uplink]) -> Vec<String> {
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
