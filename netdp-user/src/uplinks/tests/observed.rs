//! Observed interfaces that are no uplinks.

use super::super::LinkLayer;
use super::Net;

fn observed(net: &Net, uplinks: &[&str]) -> Vec<String> {
    let selected = net.by_routes(uplinks);
    let line = |link: &super::super::Uplink| {
        let tags = if link.untagged { " untagged" } else { "" };
        format!("{}{tags}", link.name)
    };
    selected.observed.iter().map(line).collect()
}

fn node() -> Net {
    let mut net = Net::new();
    for name in ["eth0", "eth1"] {
        net.link(name);
    }
    for pod in ["veth0", "cali0"] {
        net.link(pod).kind = Some("veth".into());
    }
    net.master("cni0", "bridge", &["veth0"]);
    net.leads("cni0", "172.16.0.0/24", false);
    net.leads("cali0", "172.16.1.7/32", false);
    net
}

#[test]
fn what_leads_out_and_is_no_uplink_is_observed() {
    let mut net = node();
    assert_eq!(observed(&net, &["eth0"]), ["eth1"]);
    assert_eq!(observed(&net, &["wan0"]), [""; 0], "nothing is in force");
    assert_eq!(observed(&net, &["eth*"]), [""; 0]);
    net.link("tun0").link_layer = LinkLayer::None;
    net.link("ib0").link_layer = LinkLayer::Other;
    net.link("eth2").up = false;
    net.link("kube-ipvs0").kind = Some("dummy".into());
    net.link("wire").kind = Some("veth".into());
    net.leads("wire", "10.1.9.0/24", false);
    assert_eq!(observed(&net, &["eth0"]), ["eth1", "tun0", "wire"]);
}

#[test]
fn each_packet_is_observed_once() {
    let mut net = node();
    net.master("bond0", "bond", &["eth1"]);
    net.on("bond0", "bond0.7", "vlan");
    net.on("bond0", "bond0.8", "vlan");
    assert_eq!(
        observed(&net, &["eth0"]),
        ["bond0 untagged", "bond0.7", "bond0.8"]
    );
    // An uplink beneath sees the packets.
    assert_eq!(observed(&net, &["bond0"]), ["eth0"]);
    // It passes tagged packets unmodified.
    assert_eq!(observed(&net, &["bond0", "bond0.7"]), ["eth0", "bond0.8"]);
    assert_eq!(
        observed(&net, &["bond0.7"]),
        ["eth0", "bond0 untagged", "bond0.8"]
    );
    let mut net = node();
    net.on("eth1", "mv0", "macvlan");
    net.addr("mv0", "10.1.0.5/16");
    assert_eq!(
        observed(&net, &["mv0"]),
        ["eth0"],
        "eth1 sees the same packets"
    );
    assert_eq!(
        observed(&net, &["eth0"]),
        ["mv0"],
        "nothing is routed by eth1"
    );
}
