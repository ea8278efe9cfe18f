//! The sums themselves, in bounded memory.

use super::By;
use crate::datapath::{Destination, Flow, FlowState};
use crate::flows::filter::Policy;
use crate::flows::list::Sort;
use crate::pods::Owner;
use ipnet::IpNet;
use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;

/// The most groups, pods and destinations that are told apart: a scan of all addresses must not take
/// the node's memory.
const TOLD_APART: usize = 65_536;

/// The most pairs of a group and a pod or destination that are told apart.
const PAIRS: usize = 262_144;

/// A pod: its address, and the time at which it got that.
pub(super) type PodKey = (IpAddr, Option<u64>);

/// Property that mappings have in common.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Key {
    Pod(PodKey),
    Destination(Destination),
    Prefix(IpNet),
    State(String),
    /// Lower bits of the interface's index; 0 if unknown.
    Uplink(u16),
}

/// Sums of mappings.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Sum {
    pub mappings: u64,
    /// TCP that is established.
    pub established: u64,
    /// TCP that both sides have closed, or that was reset.
    pub closing: u64,
    pub packets: u64,
    pub bytes_out: u64,
    pub bytes_in: u64,
}

impl Sum {
    fn add(&mut self, flow: &Flow) {
        self.mappings += 1;
        match flow.state {
            FlowState::Established => self.established += 1,
            FlowState::TimeWait | FlowState::Closed => self.closing += 1,
            _ => {}
        }
        self.packets += flow.packets();
        self.bytes_out += flow.bytes_out.unwrap_or(0);
        self.bytes_in += flow.bytes_in.unwrap_or(0);
    }
}

/// Mappings of a group with one pod, or of a pod with one destination.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Share {
    pub mappings: u32,
    pub closing: u32,
}

/// Keys with numbers, up to a limit.
#[derive(Debug)]
struct Numbers<K> {
    numbers: HashMap<K, u32>,
}

impl<K: Hash + Eq> Numbers<K> {
    fn new() -> Self {
        Self {
            numbers: HashMap::new(),
        }
    }

    /// Returns the number of a key, and whether it is new; `None` if there is no room for it.
    fn number(&mut self, key: K) -> Option<(u32, bool)> {
        let next = self.numbers.len();
        if let Some(number) = self.numbers.get(&key) {
            return Some((*number, false));
        }
        if next >= TOLD_APART {
            return None;
        }
        let number = u32::try_from(next).ok()?;
        self.numbers.insert(key, number);
        Some((number, true))
    }
}

/// A group, its sum, and the number of pods (or destinations, of a pod) that it has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Row {
    pub number: u32,
    pub key: Key,
    pub sum: Sum,
    pub others: u64,
}

/// Sums by group.
#[derive(Debug)]
pub(super) struct Sums<'a> {
    by: By,
    groups: Numbers<Key>,
    sums: Vec<Sum>,
    pods: Numbers<PodKey>,
    owners: Vec<(IpAddr, Option<Owner<'a>>)>,
    destinations: Numbers<(u32, IpAddr, u16)>,
    pairs: HashMap<(u32, u32), Share>,
    /// The sum of all.
    pub total: Sum,
    /// True if there were more groups than are told apart.
    pub is_cut: bool,
    /// True if there were more pods or destinations than are counted.
    pub is_uncounted: bool,
}

/// Returns what a mapping takes a port towards.
pub(super) fn destination(flow: &Flow) -> Destination {
    Destination {
        protocol: flow.tuple.proto,
        address: flow.tuple.dst.into(),
        id: flow.tuple.dst_id,
        seen_as: flow.nat_address.into(),
    }
}

impl<'a> Sums<'a> {
    pub(super) fn new(by: By) -> Self {
        Self {
            by,
            groups: Numbers::new(),
            sums: Vec::new(),
            pods: Numbers::new(),
            owners: Vec::new(),
            destinations: Numbers::new(),
            pairs: HashMap::new(),
            total: Sum::default(),
            is_cut: false,
            is_uncounted: false,
        }
    }

    /// Adds a mapping. `policy` is needed to add up by prefix.
    pub(super) fn add(&mut self, flow: &Flow, owner: Option<Owner<'a>>, policy: Option<&Policy>) {
        self.total.add(flow);
        let address = IpAddr::from(flow.tuple.src);
        let pod_key = (address, owner.map(|owner| owner.claim.from));
        let pod = self.pods.number(pod_key);
        if let Some((_, true)) = pod {
            self.owners.push((address, owner));
        }
        let group = self.groups.number(Key::of(self.by, flow, pod_key, policy));
        let Some((group, is_new)) = group else {
            self.is_cut = true;
            return;
        };
        if is_new {
            self.sums.push(Sum::default());
        }
        if let Some(sum) = self.sums.get_mut(group as usize) {
            sum.add(flow);
        }
        let other = match self.by {
            By::Pod => {
                let tuple = &flow.tuple;
                let destination = (tuple.proto, tuple.dst.into(), tuple.dst_id);
                self.destinations.number(destination)
            }
            _ => pod,
        };
        self.count(group, other.map(|(number, _)| number), flow);
    }

    fn count(&mut self, group: u32, other: Option<u32>, flow: &Flow) {
        let is_full = self.pairs.len() >= PAIRS;
        let share = match other.map(|other| (group, other)) {
            Some(pair) if is_full => self.pairs.get_mut(&pair),
            Some(pair) => Some(self.pairs.entry(pair).or_default()),
            None => None,
        };
        let Some(share) = share else {
            self.is_uncounted = true;
            return;
        };
        share.mappings += 1;
        if matches!(flow.state, FlowState::TimeWait | FlowState::Closed) {
            share.closing += 1;
        }
    }

    /// Returns the groups, those with most first.
    pub(super) fn rows(&self, sort: Option<Sort>) -> Vec<Row> {
        let mut others = vec![0_u64; self.sums.len()];
        for (group, _) in self.pairs.keys() {
            if let Some(count) = others.get_mut(*group as usize) {
                *count += 1;
            }
        }
        let groups = self.groups.numbers.iter().filter_map(|(key, number)| {
            let at = *number as usize;
            Some(Row {
                number: *number,
                key: key.clone(),
                sum: *self.sums.get(at)?,
                others: *others.get(at)?,
            })
        });
        let mut rows: Vec<_> = groups.collect();
        rows.sort_by(|a, b| {
            let most = |row: &Row| match sort {
                Some(Sort::Bytes) => row.sum.bytes_out + row.sum.bytes_in,
                Some(Sort::Packets) => row.sum.packets,
                _ => row.sum.mappings,
            };
            most(b).cmp(&most(a)).then_with(|| a.key.cmp(&b.key))
        });
        rows
    }

    /// Returns the number of pods.
    pub(super) fn pods(&self) -> usize {
        self.owners.len()
    }

    /// Returns the owner of an address that is the key of a group.
    pub(super) fn owner(&self, key: &PodKey) -> Option<Owner<'a>> {
        let number = self.pods.numbers.get(key)?;
        self.owners.get(*number as usize)?.1
    }

    /// Returns the pod that has most mappings of a group that is no pod.
    pub(super) fn biggest(&self, group: u32) -> Option<(IpAddr, Option<Owner<'a>>, Share)> {
        let of_group = self.pairs.iter().filter(|((of, _), _)| *of == group);
        let shares = of_group.map(|((_, pod), share)| (share.mappings, *pod, *share));
        let (_, pod, share) = shares.max_by_key(|(mappings, pod, _)| (*mappings, *pod))?;
        let (address, owner) = *self.owners.get(pod as usize)?;
        Some((address, owner, share))
    }
}
