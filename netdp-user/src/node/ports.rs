//! Sets of ports, by protocol.

use netdp_common::layout::{node_port_bit, proto};
use std::fmt;

/// The protocols with ports that `node_ports` covers, with their IP protocol numbers.
pub(crate) const PROTOCOLS: [(&str, u32); 5] = [
    ("tcp", proto::TCP),
    ("udp", proto::UDP),
    ("sctp", proto::SCTP),
    ("udplite", proto::UDP_LITE),
    ("dccp", proto::DCCP),
];

/// Ports as inclusive ranges: sorted, and not adjacent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Ranges(Vec<(u16, u16)>);

impl Ranges {
    /// Returns the range of all ports.
    pub(crate) fn all() -> Self {
        Self(vec![(0, u16::MAX)])
    }

    /// Returns the range `first` to `last`, both included; empty if `first` is greater.
    pub(crate) fn one(first: u16, last: u16) -> Self {
        Self::from_iter([(first, last)])
    }

    /// Reports whether the set is empty.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns the number of ports.
    pub(crate) fn count(&self) -> u32 {
        let count = |&(first, last): &(u16, u16)| u32::from(last - first) + 1;
        self.0.iter().map(count).sum()
    }

    /// Iterates over single ports.
    pub(crate) fn ports(&self) -> impl Iterator<Item = u16> {
        self.0.iter().flat_map(|&(first, last)| first..=last)
    }

    /// Iterates over the ranges.
    fn ranges(&self) -> impl Iterator<Item = (u16, u16)> {
        self.0.iter().copied()
    }

    /// Returns the ports that are in both sets.
    pub(crate) fn intersection(&self, other: &Self) -> Self {
        let (mut ours, mut theirs) = (self.0.iter().peekable(), other.0.iter().peekable());
        let mut both = Vec::new();
        while let (Some(own), Some(other)) = (ours.peek(), theirs.peek()) {
            let (first, last) = (own.0.max(other.0), own.1.min(other.1));
            if first <= last {
                both.push((first, last));
            }
            if own.1 < other.1 {
                ours.next();
            } else {
                theirs.next();
            }
        }
        Self(both)
    }

    /// Returns the ports that are in either set.
    pub(crate) fn union(&self, other: &Self) -> Self {
        self.ranges().chain(other.ranges()).collect()
    }

    /// Returns the ports that are not in the set.
    pub(crate) fn complement(&self) -> Self {
        let mut rest = Vec::new();
        let mut next = Some(0);
        for &(first, last) in &self.0 {
            if let Some(next) = next
                && next < first
            {
                rest.push((next, first - 1));
            }
            next = last.checked_add(1);
        }
        rest.extend(next.map(|next| (next, u16::MAX)));
        Self(rest)
    }
}

impl FromIterator<(u16, u16)> for Ranges {
    fn from_iter<I: IntoIterator<Item = (u16, u16)>>(ranges: I) -> Self {
        let mut all: Vec<_> = ranges.into_iter().filter(|(a, b)| a <= b).collect();
        all.sort_unstable();
        let mut apart: Vec<(u16, u16)> = Vec::with_capacity(all.len());
        for (first, last) in all {
            match apart.last_mut() {
                Some(before) if first <= before.1.saturating_add(1) => {
                    before.1 = before.1.max(last);
                }
                _ => apart.push((first, last)),
            }
        }
        Self(apart)
    }
}

/// Formats the ranges as `--dports` takes them: `80,8080-8081`.
impl fmt::Display for Ranges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, (first, last)) in self.0.iter().enumerate() {
            let comma = if n == 0 { "" } else { "," };
            if first == last {
                write!(f, "{comma}{first}")?;
            } else {
                write!(f, "{comma}{first}-{last}")?;
            }
        }
        Ok(())
    }
}

/// Ports by protocol.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct PortSet([Ranges; 5]);

impl PortSet {
    /// Returns every port of every protocol.
    pub(crate) fn all() -> Self {
        Self(std::array::from_fn(|_| Ranges::all()))
    }

    /// Returns these ports of the protocols in `mask` (`NODE_PORT_*` bits).
    pub(crate) fn of(mask: u32, ports: &Ranges) -> Self {
        Self(std::array::from_fn(|n| {
            let (_, number) = PROTOCOLS[n];
            if node_port_bit(number) & mask == 0 {
                Ranges::default()
            } else {
                ports.clone()
            }
        }))
    }

    /// Reports whether the set is empty.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.iter().all(Ranges::is_empty)
    }

    /// Returns the ports that are in both sets.
    pub(crate) fn intersection(&self, other: &Self) -> Self {
        Self(std::array::from_fn(|n| self.0[n].intersection(&other.0[n])))
    }

    /// Adds the ports of `other`. Reports whether the set has grown.
    pub(crate) fn extend(&mut self, other: &Self) -> bool {
        let mut grown = false;
        for (own, other) in self.0.iter_mut().zip(&other.0) {
            let both = own.union(other);
            grown |= both != *own;
            *own = both;
        }
        grown
    }

    /// Returns name and IP protocol number with the ports of each protocol.
    pub(crate) fn by_protocol(&self) -> impl Iterator<Item = (&'static str, u32, &Ranges)> {
        let named = PROTOCOLS.iter().zip(&self.0);
        named.map(|(&(name, number), ports)| (name, number, ports))
    }
}

/// Returns the bit of a protocol, by its name or number; 0 for one without ports.
pub(crate) fn protocol_bit(name: &str) -> u32 {
    let by_name = PROTOCOLS.iter().find(|(known, _)| *known == name);
    let number = by_name.map(|(_, number)| *number);
    node_port_bit(number.or_else(|| name.parse().ok()).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::{PortSet, Ranges, protocol_bit};
    use netdp_common::layout::{NODE_PORT_TCP, NODE_PORT_UDP, NODE_PORT_UDP_LITE};
    use proptest::prelude::*;

    fn some() -> impl Strategy<Value = Ranges> {
        let ends = prop_oneof![any::<u16>(), 0..20u16, 65_520..=u16::MAX];
        prop::collection::vec((ends.clone(), ends), 0..6).prop_map(Ranges::from_iter)
    }

    proptest! {
        // Each case checks every port.
        #![proptest_config(ProptestConfig::with_cases(40))]
        #[test]
        fn ranges_are_sets(a in some(), b in some()) {
            let set = |ranges: &Ranges| {
                let mut all = vec![false; 1 << 16];
                ranges.ports().for_each(|port| all[usize::from(port)] = true);
                all
            };
            let (left, right) = (set(&a), set(&b));
            let (both, one, rest) = (set(&a.intersection(&b)), set(&a.union(&b)), set(&a.complement()));
            for port in 0..1 << 16 {
                prop_assert_eq!(both[port], left[port] && right[port], "{}", port);
                prop_assert_eq!(one[port], left[port] || right[port], "{}", port);
                prop_assert_eq!(rest[port], !left[port], "{}", port);
            }
            prop_assert_eq!(a.count() as usize, left.iter().filter(|is| **is).count());
            prop_assert_eq!(a.complement().complement(), a);
        }
    }

    #[test]
    fn ranges_are_formatted_as_dports_takes_them() {
        let ranges = Ranges::from_iter([(9000, 9010), (80, 80), (81, 81), (443, 443)]);
        assert_eq!(ranges.to_string(), "80-81,443,9000-9010");
        assert_eq!(Ranges::one(2, 1).to_string(), "");
    }

    #[test]
    fn sets_grow_by_what_is_new() {
        let mut set = PortSet::of(NODE_PORT_TCP, &Ranges::one(80, 80));
        assert!(!set.extend(&set.clone()));
        assert!(set.extend(&PortSet::of(NODE_PORT_UDP, &Ranges::one(80, 80))));
        let udp = PortSet::of(NODE_PORT_UDP, &Ranges::all());
        let both = set.intersection(&udp);
        assert_eq!(both, PortSet::of(NODE_PORT_UDP, &Ranges::one(80, 80)));
        assert!(
            both.intersection(&PortSet::of(NODE_PORT_TCP, &Ranges::all()))
                .is_empty()
        );
    }

    #[test]
    fn protocols_have_names_and_numbers() {
        assert_eq!(protocol_bit("tcp"), NODE_PORT_TCP);
        assert_eq!(protocol_bit("136"), NODE_PORT_UDP_LITE);
        assert_eq!(protocol_bit("icmp"), 0);
        assert_eq!(protocol_bit("47"), 0);
    }
}
