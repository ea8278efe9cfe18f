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
        // A change that failed does not mean that nothing is attached: taking it off would end what works.
        let is_unknown = |ifindex: &u32| applied.unknown.contains_key(ifindex);
        self.uplinks
            .retain(|ifindex, _| applied.uplinks.contains_key(ifindex) || is_unknown(ifindex));
        self.observed
            .retain(|ifindex, _| applied.observed.contains_key(ifindex) || is_unknown(ifindex));
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
mod tests;
