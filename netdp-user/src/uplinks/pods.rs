//! Selection of the links that lead to pods: a pure function of a snapshot.

use super::masters::masters;
use super::model::{LinkLayer, Snapshot};
use super::selection::Patterns;
use std::collections::BTreeMap;

/// Returns the links that match `patterns`, with their names, by index. Excludes the loopback
/// device, uplinks, links without an Ethernet header, and those whose master matches too, so that
/// each packet is processed once.
pub(crate) fn pod_links(
    snapshot: &Snapshot,
    patterns: &Patterns,
    is_uplink: impl Fn(u32) -> bool,
) -> BTreeMap<u32, String> {
    let named = |name: &str| patterns.matches(name);
    snapshot
        .links
        .iter()
        .filter(|link| named(&link.name) && !link.loopback && !is_uplink(link.ifindex))
        .filter(|link| link.link_layer == LinkLayer::Ethernet)
        .filter(|link| !masters(snapshot, link).any(|master| named(&master.name)))
        .map(|link| (link.ifindex, link.name.clone()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::pod_links;
    use crate::uplinks::model::{Link, LinkLayer, Snapshot};
    use crate::uplinks::selection::Patterns;

    fn link(ifindex: u32, name: &str, master: Option<u32>) -> Link {
        Link {
            ifindex,
            name: name.into(),
            up: true,
            running: true,
            loopback: name == "lo",
            link_layer: LinkLayer::Ethernet,
            mac: None,
            master,
            kind: None,
            below: None,
            xdp: false,
        }
    }

    #[test]
    fn names_choose_but_for_uplinks_and_the_ports_of_a_named_bridge() {
        let mut snapshot = Snapshot {
            links: vec![
                link(1, "lo", None),
                link(2, "eth0", None),
                link(3, "cni0", None),
                link(4, "veth1", Some(3)),
                link(5, "cali1", None),
                link(6, "cali2", None),
            ],
            ..Snapshot::default()
        };
        snapshot.links[5].link_layer = LinkLayer::None;
        let chosen = |patterns: &[&str]| {
            let patterns = Patterns::parse("--hairpin-interface", patterns).unwrap();
            let links = pod_links(&snapshot, &patterns, |ifindex| ifindex == 2);
            links.into_values().collect::<Vec<_>>().join(" ")
        };
        assert_eq!(chosen(&["cali*"]), "cali1");
        assert_eq!(chosen(&["*"]), "cni0 cali1");
        assert_eq!(chosen(&["veth*"]), "veth1");
        assert_eq!(chosen(&["cni0", "veth*"]), "cni0");
        assert_eq!(chosen(&[]), "");
    }
}
