//! From the desired state to the changes that lead to it ([`diff`]), and from these to the reached
//! state ([`execute()`]), without access to the kernel.
//!
//! Applying every change of a full diff against the empty state is always safe: each change only
//! states a part of the desired state.

mod execute;

use crate::uplinks::{Mac, SourceChoice, SourceQuery, Sources, Uplink};
use ipnet::IpNet;
use netdp_common::layout::Action;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

pub use execute::{Backend, Execution, Step, execute};

/// A prefix of the policy and its action.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PolicyRule {
    /// The destinations that it covers.
    pub prefix: IpNet,
    /// The action for new flows.
    pub action: Action,
}

/// The desired, applied or reached state of the datapath.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct State {
    /// The policy; `None` if it is unknown.
    pub policy: Option<Vec<PolicyRule>>,
    /// All addresses of the node.
    pub local: BTreeSet<IpAddr>,
    /// The uplinks, by interface index.
    pub uplinks: BTreeMap<u32, Uplink>,
    /// Observed interfaces, by index: no uplinks, ingress program only.
    pub observed: BTreeMap<u32, Uplink>,
    /// Source MAC addresses of the node at its uplinks.
    pub macs: BTreeSet<Mac>,
    /// Source addresses that packets may leave with.
    pub sources: Sources,
    /// Interfaces towards pods that are to have the hairpin program, by index.
    pub pod_links: BTreeMap<u32, String>,
    /// Interfaces on which a change failed, so that their attached programs are unknown, by index.
    /// Always empty in a desired state.
    pub unknown: BTreeMap<u32, String>,
}

impl State {
    /// Limits the node's addresses to the capacity of a map. Returns false if they exceed it: then
    /// packets from the node's remaining addresses cannot be distinguished from pods', so nothing
    /// new is attached, and the addresses of uplinks and those already applied take precedence.
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
    /// Put this policy in force as a whole.
    SetPolicy(Vec<PolicyRule>),
    /// Add an address of the node.
    AddLocal(IpAddr),
    /// Remove an address of the node.
    RemoveLocal(IpAddr),
    /// Add a MAC address of the node.
    AddMac(Mac),
    /// Remove a MAC address of the node.
    RemoveMac(Mac),
    /// Set a source address that packets may leave with.
    SetSource(SourceQuery, SourceChoice),
    /// Remove a source address.
    RemoveSource(SourceQuery),
    /// Write the addresses of an uplink.
    SetUplink(Uplink),
    /// Attach the programs to an uplink.
    Attach(Uplink),
    /// Write the entry of an observed interface.
    SetObserved(Uplink),
    /// Attach the ingress program to an observed interface, and detach any program of an uplink.
    Observe(Uplink),
    /// Detach the programs from an interface.
    Detach {
        /// The kernel's index of the interface.
        ifindex: u32,
        /// The interface's name when last seen.
        name: String,
    },
    /// Attach the hairpin program to an interface towards pods.
    AttachPods {
        /// The kernel's index of the interface.
        ifindex: u32,
        /// The interface's name, for messages.
        name: String,
    },
    /// Detach the hairpin program from an interface.
    DetachPods {
        /// The kernel's index of the interface.
        ifindex: u32,
        /// The interface's name when last seen.
        name: String,
    },
}

/// Returns the changes from `current` to `desired` in a safe order: the map entries that programs read
/// are written before the programs are attached, and an address is in the set of the node's
/// addresses before an uplink masquerades with it.
pub fn diff(current: &State, desired: &State) -> Vec<Change> {
    let mut changes = Vec::new();
    let policy = desired.policy.as_ref();
    if let Some(rules) = policy
        && current.policy.as_ref() != policy
    {
        changes.push(Change::SetPolicy(rules.clone()));
    }
    changes.extend(
        desired
            .local
            .difference(&current.local)
            .map(|ip| Change::AddLocal(*ip)),
    );
    let macs = desired.macs.difference(&current.macs);
    changes.extend(macs.map(|mac| Change::AddMac(*mac)));
    for (asked, given) in &desired.sources {
        if current.sources.get(asked) != Some(given) {
            changes.push(Change::SetSource(*asked, *given));
        }
    }
    for (ifindex, uplink) in &desired.uplinks {
        let before = current.uplinks.get(ifindex);
        if before != Some(uplink) {
            changes.push(Change::SetUplink(uplink.clone()));
        }
        if before.is_none() {
            changes.push(Change::Attach(uplink.clone()));
        }
    }
    for (ifindex, link) in &desired.observed {
        let before = current.observed.get(ifindex);
        if before != Some(link) {
            changes.push(Change::SetObserved(link.clone()));
        }
        if before.is_none() {
            changes.push(Change::Observe(link.clone()));
        }
    }
    for (ifindex, uplink) in current.uplinks.iter().chain(&current.observed) {
        if !desired.uplinks.contains_key(ifindex) && !desired.observed.contains_key(ifindex) {
            changes.push(Change::Detach {
                ifindex: *ifindex,
                name: uplink.name.clone(),
            });
        }
    }
    for (&ifindex, name) in &current.unknown {
        if !desired.uplinks.contains_key(&ifindex) && !desired.observed.contains_key(&ifindex) {
            let name = name.clone();
            changes.push(Change::Detach { ifindex, name });
        }
    }
    for (&ifindex, name) in &current.pod_links {
        if desired.pod_links.get(&ifindex) != Some(name) {
            let name = name.clone();
            changes.push(Change::DetachPods { ifindex, name });
        }
    }
    for (&ifindex, name) in &desired.pod_links {
        if current.pod_links.get(&ifindex) != Some(name) {
            let name = name.clone();
            changes.push(Change::AttachPods { ifindex, name });
        }
    }
    let macs = current.macs.difference(&desired.macs);
    changes.extend(macs.map(|mac| Change::RemoveMac(*mac)));
    let gone = current.sources.keys();
    let gone = gone.filter(|asked| !desired.sources.contains_key(asked));
    changes.extend(gone.map(|asked| Change::RemoveSource(*asked)));
    changes.extend(
        current
            .local
            .difference(&desired.local)
            .map(|ip| Change::RemoveLocal(*ip)),
    );
    changes
}

#[cfg(test)]
mod tests;
