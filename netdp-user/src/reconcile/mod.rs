//! From what is to be to the changes that make it so ([`diff`]), and from these to what was reached
//! ([`execute`]): no kernel.
//!
//! Applying every change of a full diff against nothing is always safe: each
//! only states what is to be.

mod execute;

use crate::uplinks::{Asked, Given, Mac, Sources, Uplink};
use ipnet::IpNet;
use netdp_common::abi::Action;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

pub use execute::{Backend, Execution, Step, execute};

/// A prefix of the policy and what is done there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PolicyRule {
    /// The destinations.
    pub prefix: IpNet,
    /// The action for new flows.
    pub action: Action,
}

/// What the datapath is to look like, or does.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct State {
    /// The policy; `None` is one that is not known.
    pub policy: Option<Vec<PolicyRule>>,
    /// Every address of the node.
    pub local: BTreeSet<IpAddr>,
    /// The uplinks, by interface index.
    pub uplinks: BTreeMap<u32, Uplink>,
    /// Interfaces that are none, of which only what comes in is looked at, by index.
    pub observed: BTreeMap<u32, Uplink>,
    /// By which hardware addresses the node sends at uplinks.
    pub macs: BTreeSet<Mac>,
    /// Which sources packets may leave them with.
    pub sources: Sources,
    /// Interfaces towards pods that hairpin is wanted on, by index.
    pub pod_links: BTreeMap<u32, String>,
    /// Interfaces of which it is not known what is attached, by index, since a change failed there.
    /// None is wanted so.
    pub unknown: BTreeMap<u32, String>,
}

impl State {
    /// Keeps what a map with room for so many addresses allows. Where they are more, what packets
    /// come by that are not the node's can't be told from pods' any more: nothing is attached that
    /// is not already, and the addresses that are known, and those of uplinks, come first. Whether
    /// all of them fit.
    pub fn fit(&mut self, room: usize, applied: &Self) -> bool {
        if self.local.len() <= room {
            return true;
        }
        let v4 = self
            .uplinks
            .values()
            .filter_map(|it| it.v4.map(IpAddr::from));
        let v6 = self
            .uplinks
            .values()
            .filter_map(|it| it.v6.map(IpAddr::from));
        let first: BTreeSet<IpAddr> = v4.chain(v6).collect();
        let mut all: Vec<_> = std::mem::take(&mut self.local).into_iter().collect();
        all.sort_by_key(|ip| (!first.contains(ip), !applied.local.contains(ip)));
        self.local = all.into_iter().take(room).collect();
        self.uplinks
            .retain(|ifindex, _| applied.uplinks.contains_key(ifindex));
        self.observed
            .retain(|ifindex, _| applied.observed.contains_key(ifindex));
        self.pod_links
            .retain(|ifindex, _| applied.pod_links.contains_key(ifindex));
        false
    }
}

/// One step from one state to another.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    /// Put this policy in force, whole.
    SetPolicy(Vec<PolicyRule>),
    /// Take this address for the node's own.
    AddLocal(IpAddr),
    /// The node no longer has this address.
    RemoveLocal(IpAddr),
    /// Write down a hardware address by which the node sends.
    AddMac(Mac),
    /// It counts no more.
    RemoveMac(Mac),
    /// Write down a source that packets may leave with.
    SetSource(Asked, Given),
    /// It counts no more.
    RemoveSource(Asked),
    /// Write down an uplink's addresses.
    SetUplink(Uplink),
    /// Attach the programs to an uplink.
    Attach(Uplink),
    /// Write down an interface of which only what comes in is looked at.
    SetObserved(Uplink),
    /// Attach what looks at that, and take off what an uplink has besides.
    Observe(Uplink),
    /// Take the programs off.
    Detach {
        /// The interface's index.
        ifindex: u32,
        /// Its name when it was last seen.
        name: String,
    },
    /// Attach the hairpin program to an interface towards pods.
    AttachPods {
        /// The interface's index.
        ifindex: u32,
        /// Its name.
        name: String,
    },
    /// Take it off.
    DetachPods {
        /// The interface's index.
        ifindex: u32,
        /// Its name when it was last seen.
        name: String,
    },
}

/// The changes from `is` to `wanted`, in the order in which they are safe: what
/// programs read is written before they are attached, and an address is known
/// as the node's own before an uplink masquerades with it.
pub fn diff(is: &State, wanted: &State) -> Vec<Change> {
    let mut changes = Vec::new();
    let policy = wanted.policy.as_ref();
    if let Some(rules) = policy
        && is.policy.as_ref() != policy
    {
        changes.push(Change::SetPolicy(rules.clone()));
    }
    changes.extend(
        wanted
            .local
            .difference(&is.local)
            .map(|ip| Change::AddLocal(*ip)),
    );
    let macs = wanted.macs.difference(&is.macs);
    changes.extend(macs.map(|mac| Change::AddMac(*mac)));
    for (asked, given) in &wanted.sources {
        if is.sources.get(asked) != Some(given) {
            changes.push(Change::SetSource(*asked, *given));
        }
    }
    for (ifindex, uplink) in &wanted.uplinks {
        let before = is.uplinks.get(ifindex);
        if before != Some(uplink) {
            changes.push(Change::SetUplink(uplink.clone()));
        }
        if before.is_none() {
            changes.push(Change::Attach(uplink.clone()));
        }
    }
    for (ifindex, link) in &wanted.observed {
        let before = is.observed.get(ifindex);
        if before != Some(link) {
            changes.push(Change::SetObserved(link.clone()));
        }
        if before.is_none() {
            changes.push(Change::Observe(link.clone()));
        }
    }
    for (ifindex, uplink) in is.uplinks.iter().chain(&is.observed) {
        if !wanted.uplinks.contains_key(ifindex) && !wanted.observed.contains_key(ifindex) {
            changes.push(Change::Detach {
                ifindex: *ifindex,
                name: uplink.name.clone(),
            });
        }
    }
    for (&ifindex, name) in &is.unknown {
        if !wanted.uplinks.contains_key(&ifindex) && !wanted.observed.contains_key(&ifindex) {
            let name = name.clone();
            changes.push(Change::Detach { ifindex, name });
        }
    }
    for (&ifindex, name) in &is.pod_links {
        if wanted.pod_links.get(&ifindex) != Some(name) {
            let name = name.clone();
            changes.push(Change::DetachPods { ifindex, name });
        }
    }
    for (&ifindex, name) in &wanted.pod_links {
        if is.pod_links.get(&ifindex) != Some(name) {
            let name = name.clone();
            changes.push(Change::AttachPods { ifindex, name });
        }
    }
    let macs = is.macs.difference(&wanted.macs);
    changes.extend(macs.map(|mac| Change::RemoveMac(*mac)));
    let gone = is.sources.keys();
    let gone = gone.filter(|asked| !wanted.sources.contains_key(asked));
    changes.extend(gone.map(|asked| Change::RemoveSource(*asked)));
    changes.extend(
        is.local
            .difference(&wanted.local)
            .map(|ip| Change::RemoveLocal(*ip)),
    );
    changes
}

#[cfg(test)]
mod tests {
    use super::{Change, PolicyRule, State, diff};
    use crate::uplinks::{Asked, Given, LinkLayer, Uplink};
    use netdp_common::abi::Action;
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
        }
    }

    pub(super) fn wanted() -> State {
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

    fn asked() -> Asked {
        Asked {
            link: 2,
            named: false,
            net: "10.0.0.0/24".parse().unwrap(),
        }
    }

    fn given(last: u8) -> Given {
        Given {
            addr: [10, 0, 0, last].into(),
            via: 2,
        }
    }

    #[test]
    fn nothing_changes_where_nothing_differs() {
        assert_eq!(diff(&wanted(), &wanted()), []);
    }

    #[test]
    fn programs_are_attached_after_all_that_they_read() {
        let changes = diff(&State::default(), &wanted());
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
        let mut unknown = wanted();
        unknown.policy = None;
        assert_eq!(diff(&wanted(), &unknown), []);
    }

    #[test]
    fn addresses_without_room_are_not_taken_for_pods_of_a_new_uplink() {
        let mut fits = wanted();
        assert!(fits.fit(1, &State::default()));
        assert_eq!(fits, wanted());

        let mut many = wanted();
        many.local
            .extend((2..100).map(|n| IpAddr::from([9, 0, 0, n])));
        // Nothing was attached: nothing is.
        let mut fresh = many.clone();
        assert!(!fresh.fit(10, &State::default()));
        assert!(fresh.uplinks.is_empty() && fresh.pod_links.is_empty());
        assert_eq!(fresh.local.len(), 10);
        // What was attached and known stays.
        let mut applied = wanted();
        applied.local.insert([9, 0, 0, 77].into());
        let mut grown = many.clone();
        grown.uplinks.insert(3, uplink(3));
        assert!(!grown.fit(2, &applied));
        assert_eq!(grown.uplinks, wanted().uplinks);
        assert_eq!(grown.local, applied.local);
    }

    #[test]
    fn a_new_address_rewrites_the_uplink_without_attaching_again() {
        let mut moved = wanted();
        moved.local = [[10, 0, 0, 2].into()].into();
        moved.uplinks.get_mut(&2).unwrap().v4 = Some([10, 0, 0, 2].into());
        moved.sources.insert(asked(), given(2));
        let changes = diff(&wanted(), &moved);
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
        assert!(diff(&wanted(), &moved).contains(&gone));
    }

    #[test]
    fn an_interface_towards_pods_follows_its_name() {
        let mut renamed = wanted();
        renamed.pod_links = [(7, "cali2".into())].into();
        let changes = diff(&wanted(), &renamed);
        let (ifindex, name) = (7, "cali1".into());
        let off = Change::DetachPods { ifindex, name };
        let name = "cali2".into();
        assert_eq!(changes, [off, Change::AttachPods { ifindex, name }]);
    }

    #[test]
    fn an_interface_that_becomes_an_uplink_is_attached_to_again() {
        let mut before = wanted();
        before.uplinks.clear();
        before.observed = [(2, uplink(2))].into();
        let set = Change::SetUplink(uplink(2));
        assert_eq!(diff(&before, &wanted()), [set, Change::Attach(uplink(2))]);
        let set = Change::SetObserved(uplink(2));
        assert_eq!(diff(&wanted(), &before), [set, Change::Observe(uplink(2))]);
    }

    #[test]
    fn an_uplink_that_is_no_more_is_detached() {
        let mut without = wanted();
        without.uplinks.clear();
        let gone = Change::Detach {
            ifindex: 2,
            name: "eth2".into(),
        };
        assert_eq!(diff(&wanted(), &without), [gone]);
    }
}
