//! Stacked uplinks.

use super::super::Uplink;
use super::super::select::Selected;
use super::{Net, names};

impl Net {
    /// Adds a link of a kind on top of another one.
    pub(super) fn on(&mut self, lower: &str, name: &str, kind: &str) {
        let below = self.index(lower);
        let link = self.link(name);
        link.below = Some(below);
        link.kind = Some(kind.into());
    }
}

fn untagged(selected: &Selected) -> Vec<&str> {
    let only = selected.uplinks.iter().filter(|uplink| uplink.untagged);
    only.map(|Uplink { name, .. }| name.as_str()).collect()
}

fn bond_with_vlans() -> Net {
    let mut net = Net::new();
    net.link("eth0");
    net.master("bond0", "bond", &["eth0"]);
    net.on("bond0", "bond0.100", "vlan");
    net.on("bond0", "bond0.200", "vlan");
    net.addr("bond0", "10.1.0.4/16");
    net.addr("bond0.100", "10.100.0.4/16");
    net
}

#[test]
fn a_vlan_device_and_what_it_stands_on_share_the_work() {
    let net = bond_with_vlans();
    let both = net.by_name(&["bond0*"]);
    assert_eq!(names(&both), ["bond0", "bond0.100", "bond0.200"]);
    assert_eq!(untagged(&both), ["bond0"]);
    assert_eq!(both.stacked.len(), 2, "{:?}", both.stacked);
    let both = net.by_name(&["eth0", "bond0.100"]);
    assert_eq!(names(&both), ["eth0", "bond0.100"]);
    assert_eq!(untagged(&both), ["eth0"], "a member carries the tags too");
}

#[test]
fn what_stands_alone_translates_everything() {
    let net = bond_with_vlans();
    for alone in ["bond0", "bond0.100"] {
        let selected = net.by_name(&[alone]);
        assert_eq!(names(&selected), [alone]);
        assert_eq!(untagged(&selected), [""; 0]);
        assert_eq!(selected.stacked, [""; 0]);
    }
}

#[test]
fn a_default_route_by_a_vlan_device_counts_as_well() {
    let mut net = bond_with_vlans();
    net.route4("bond0.100", "10.100.0.1");
    let selected = net.by_role(&["10.1.0.4"], false);
    assert_eq!(names(&selected), ["bond0", "bond0.100"]);
    assert_eq!(untagged(&selected), ["bond0"]);
}

#[test]
fn of_a_macvlan_and_its_parent_one_is_an_uplink() {
    for kind in ["macvlan", "macvtap", "ipvlan", "ipvtap"] {
        let mut net = Net::new();
        net.link("eth0");
        net.on("eth0", "mv0", kind);
        net.addr("mv0", "10.1.0.5/16");
        let selected = net.by_name(&["eth0", "mv0"]);
        assert_eq!(names(&selected), ["mv0"], "nothing is routed by eth0");
        assert!(selected.stacked[0].contains("mv0 alone"), "{selected:?}");
        net.addr("eth0", "10.1.0.4/16");
        let selected = net.by_name(&["eth0", "mv0"]);
        assert_eq!(names(&selected), ["eth0"], "it sees the packets of both");
        assert!(selected.stacked[0].contains("for both"), "{selected:?}");
        assert_eq!(names(&net.by_name(&["mv0"])), ["mv0"]);
    }
}

#[test]
fn a_macvlan_on_a_vlan_of_a_bond_is_tagged_at_the_bond() {
    let mut net = bond_with_vlans();
    net.on("bond0.200", "mv0", "macvlan");
    net.addr("mv0", "10.200.0.4/16");
    let selected = net.by_name(&["bond0*", "mv0"]);
    assert_eq!(names(&selected), ["bond0", "bond0.100", "mv0"]);
    assert_eq!(untagged(&selected), ["bond0"]);
}

#[test]
fn tunnels_and_wires_are_not_stacks() {
    for kind in ["vxlan", "ipip", "gre", "veth", "wireguard"] {
        let mut net = Net::new();
        net.link("eth0");
        net.on("eth0", "other", kind);
        let selected = net.by_name(&["eth0", "other"]);
        assert_eq!(names(&selected), ["eth0", "other"], "{kind}");
        assert_eq!(untagged(&selected), [""; 0]);
    }
}

#[test]
fn links_that_stand_on_each_other_in_a_circle_do_not_hang() {
    let mut net = Net::new();
    net.link("a");
    net.on("a", "b", "macvlan");
    let (a, b) = (net.index("a"), net.index("b"));
    net.0.links[1].below = Some(b);
    net.0.links[1].kind = Some("macvlan".into());
    assert_eq!(net.0.links[2].below, Some(a));
    assert_eq!(net.by_name(&["a", "b"]).uplinks.len(), 1);
}
