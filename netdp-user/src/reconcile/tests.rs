use super::{Change, PolicyRule, State, diff};
use crate::uplinks::{LinkLayer, SourceChoice, SourceQuery, Uplink};
use netdp_common::layout::Action;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

pub(super) fn uplink(ifindex: u32) -> Uplink {
    Uplink {
        ifindex,
        name: format!("eth{ifindex}"),
        link_layer: LinkLayer::Ethernet,
        v4: Some([10, 0, 0, 1].into()),
        v6: None,
        up: true,
        untagged: false,
        only_v4: false,
        only_v6: false,
    }
}

pub(super) fn desired() -> State {
    State {
        policy: Some(vec![PolicyRule {
            prefix: "10.0.0.0/8".parse().unwrap(),
            action: Action::Bypass,
        }]),
        local: [[10, 0, 0, 1].into()].into(),
        uplinks: [(2, uplink(2))].into(),
        observed: BTreeMap::new(),
        macs: BTreeSet::new(),
        sources: [(asked(), given(1))].into(),
        pod_links: [(7, "cali1".into())].into(),
        unknown: BTreeMap::new(),
    }
}

fn asked() -> SourceQuery {
    SourceQuery {
        link: 2,
        named: false,
        net: "10.0.0.0/24".parse().unwrap(),
    }
}

fn given(last: u8) -> SourceChoice {
    SourceChoice {
        addr: [10, 0, 0, last].into(),
        via: 2,
    }
}

#[test]
fn nothing_changes_where_nothing_differs() {
    assert_eq!(diff(&desired(), &desired()), []);
}

#[test]
fn programs_are_attached_after_all_that_they_read() {
    let changes = diff(&State::default(), &desired());
    assert!(matches!(
        changes.as_slice(),
        [
            Change::SetPolicy(_),
            Change::AddLocal(_),
            Change::SetSource(..),
            Change::SetUplink(_),
            Change::Attach(_),
            Change::AttachPods { ifindex: 7, .. }
        ]
    ));
}

#[test]
fn an_unknown_policy_is_left_alone() {
    let mut unknown = desired();
    unknown.policy = None;
    assert_eq!(diff(&desired(), &unknown), []);
}

#[test]
fn addresses_without_room_are_not_taken_for_pods_of_a_new_uplink() {
    let mut fits = desired();
    assert!(fits.fit(1, &State::default()));
    assert_eq!(fits, desired());

    let mut many = desired();
    many.local
        .extend((2..100).map(|n| IpAddr::from([9, 0, 0, n])));
    // Nothing was attached, so nothing is attached now.
    let mut fresh = many.clone();
    assert!(!fresh.fit(10, &State::default()));
    assert!(fresh.uplinks.is_empty() && fresh.pod_links.is_empty());
    assert_eq!(fresh.local.len(), 10);
    // Known and attached interfaces stay.
    let mut applied = desired();
    applied.local.insert([9, 0, 0, 77].into());
    let mut grown = many.clone();
    grown.uplinks.insert(3, uplink(3));
    assert!(!grown.fit(2, &applied));
    assert_eq!(grown.uplinks, desired().uplinks);
    assert_eq!(grown.local, applied.local);
    // Also where the last change of it failed.
    let failed = applied.uplinks.remove(&2).unwrap();
    applied.unknown.insert(2, failed.name);
    let mut grown = many.clone();
    grown.observed.insert(4, uplink(4));
    assert!(!grown.fit(2, &applied));
    assert_eq!(
        diff(&applied, &grown),
        [Change::SetUplink(uplink(2)), Change::Attach(uplink(2))]
    );
    applied.unknown = [(4, "eth4".into())].into();
    let mut grown = many;
    grown.observed.insert(4, uplink(4));
    assert!(!grown.fit(2, &applied));
    assert_eq!(grown.observed, [(4, uplink(4))].into());
}

#[test]
fn a_new_address_rewrites_the_uplink_without_attaching_again() {
    let mut moved = desired();
    moved.local = [[10, 0, 0, 2].into()].into();
    moved.uplinks.get_mut(&2).unwrap().v4 = Some([10, 0, 0, 2].into());
    moved.sources.insert(asked(), given(2));
    let changes = diff(&desired(), &moved);
    assert!(matches!(
        changes.as_slice(),
        [
            Change::AddLocal(_),
            Change::SetSource(..),
            Change::SetUplink(_),
            Change::RemoveLocal(_)
        ]
    ));
    moved.sources.clear();
    let gone = Change::RemoveSource(asked());
    assert!(diff(&desired(), &moved).contains(&gone));
}

#[test]
fn an_interface_towards_pods_follows_its_name() {
    let mut renamed = desired();
    renamed.pod_links = [(7, "cali2".into())].into();
    let changes = diff(&desired(), &renamed);
    let (ifindex, name) = (7, "cali1".into());
    let off = Change::DetachPods { ifindex, name };
    let name = "cali2".into();
    assert_eq!(changes, [off, Change::AttachPods { ifindex, name }]);
}

#[test]
fn an_interface_that_becomes_an_uplink_is_attached_to_again() {
    let mut before = desired();
    before.uplinks.clear();
    before.observed = [(2, uplink(2))].into();
    let set = Change::SetUplink(uplink(2));
    assert_eq!(diff(&before, &desired()), [set, Change::Attach(uplink(2))]);
    let set = Change::SetObserved(uplink(2));
    assert_eq!(diff(&desired(), &before), [set, Change::Observe(uplink(2))]);
}

#[test]
fn an_uplink_that_is_no_more_is_detached() {
    let mut without = desired();
    without.uplinks.clear();
    let gone = Change::Detach {
        ifindex: 2,
        name: "eth2".into(),
    };
    assert_eq!(diff(&desired(), &without), [gone]);
}
