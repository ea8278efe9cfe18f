//! Masqueraded destinations as ranges, for queries about whole prefixes.

use super::{Rule, RuleAction};
use ipnet::IpNet;
use std::net::{Ipv4Addr, Ipv6Addr};

/// Destinations that are masqueraded. Multicast, loopback and IPv6 link-local destinations are
/// excluded whatever the rules are: they are not routed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Masqueraded {
    v4: Vec<Range>,
    v6: Vec<Range>,
}

/// First and last address as numbers.
type Range = (u128, u128);

impl Masqueraded {
    /// Returns the destinations that the longest matching rules masquerade, and those without a
    /// rule.
    pub fn of(rules: &[Rule]) -> Self {
        let unrouted4 = [v4_range([224, 0, 0, 0], 4), v4_range([127, 0, 0, 0], 8)];
        let unrouted6 = [
            v6_range(0xff00 << 112, 8),
            v6_range(0xfe80 << 112, 10),
            v6_range(1, 128),
        ];
        let mut v4: Vec<_> = unrouted4.map(|range| (range, false)).into();
        let mut v6: Vec<_> = unrouted6.map(|range| (range, false)).into();
        for rule in rules {
            let (ranges, unrouted) = match rule.prefix {
                IpNet::V4(_) => (&mut v4, unrouted4.as_slice()),
                IpNet::V6(_) => (&mut v6, unrouted6.as_slice()),
            };
            let range = range(&rule.prefix);
            let within = |around: &Range| around.0 <= range.0 && range.1 <= around.1;
            if !unrouted.iter().any(within) {
                ranges.push((range, rule.action == RuleAction::Masquerade));
            }
        }
        Self {
            v4: flatten(v4, u32::MAX.into()),
            v6: flatten(v6, u128::MAX),
        }
    }

    /// Reports whether some destination in `net` is masqueraded.
    pub fn touches(&self, net: &IpNet) -> bool {
        let (first, last) = range(net);
        let ranges = match net {
            IpNet::V4(_) => &self.v4,
            IpNet::V6(_) => &self.v6,
        };
        let at = ranges.partition_point(|range| range.1 < first);
        ranges.get(at).is_some_and(|range| range.0 <= last)
    }
}

fn v4_range(octets: [u8; 4], len: u32) -> Range {
    let first = u128::from(u32::from(Ipv4Addr::from(octets)));
    (first, first | (u128::from(u32::MAX) >> len))
}

fn v6_range(first: u128, len: u32) -> Range {
    (first, first | u128::MAX.checked_shr(len).unwrap_or(0))
}

fn range(net: &IpNet) -> Range {
    match net {
        IpNet::V4(net) => (
            u32::from(net.network()).into(),
            u32::from(net.broadcast()).into(),
        ),
        IpNet::V6(net) => {
            let number = |ip: Ipv6Addr| u128::from(ip);
            (number(net.network()), number(net.broadcast()))
        }
    }
}

/// Returns the parts of `0..=max` that are masqueraded by the innermost range around them;
/// addresses outside all ranges are masqueraded. Ranges are those of prefixes, so two of them are
/// nested or disjoint. No two are equal.
fn flatten(mut ranges: Vec<(Range, bool)>, max: u128) -> Vec<Range> {
    ranges.sort_unstable_by(|(a, _), (b, _)| a.0.cmp(&b.0).then(b.1.cmp(&a.1)));
    let mut found: Vec<Range> = Vec::new();
    let mut emit = |first: u128, last: u128, masqueraded: bool| {
        if !masqueraded || first > last {
            return;
        }
        match found.last_mut() {
            Some(before) if before.1.checked_add(1) == Some(first) => before.1 = last,
            _ => found.push((first, last)),
        }
    };
    let mut around = vec![((0, max), true)];
    let mut cursor = 0;
    let mut ended = false;
    for (range, masqueraded) in ranges {
        while let Some(&(outer, action)) = around.last()
            && outer.1 < range.0
        {
            emit(cursor, outer.1, action);
            cursor = outer.1 + 1;
            around.pop();
        }
        if let Some((_, action)) = around.last()
            && range.0 > cursor
        {
            emit(cursor, range.0 - 1, *action);
        }
        cursor = range.0;
        around.push((range, masqueraded));
    }
    while let Some((outer, action)) = around.pop() {
        if !ended {
            emit(cursor, outer.1, action);
        }
        match outer.1.checked_add(1) {
            Some(next) => cursor = next,
            None => ended = true,
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::super::Origin;
    use super::*;

    fn of(rules: &[(&str, RuleAction)]) -> Masqueraded {
        let rules: Vec<_> = rules
            .iter()
            .map(|(prefix, action)| Rule {
                prefix: prefix.parse().unwrap(),
                action: *action,
                origin: Origin::BuiltIn,
                also: Vec::new(),
            })
            .collect();
        Masqueraded::of(&rules)
    }

    fn touched(masqueraded: &Masqueraded, net: &str) -> bool {
        masqueraded.touches(&net.parse().unwrap())
    }

    #[test]
    fn a_prefix_is_touched_where_a_longer_or_shorter_rule_masquerades() {
        let all = of(&[
            ("10.0.0.0/8", RuleAction::Bypass),
            ("10.9.0.0/16", RuleAction::Masquerade),
            ("10.9.9.0/24", RuleAction::Bypass),
            ("fd00::/8", RuleAction::Bypass),
        ]);
        for net in [
            "0.0.0.0/0",
            "10.0.0.0/8",
            "10.9.0.0/16",
            "10.9.8.7/32",
            "9.0.0.0/8",
        ] {
            assert!(touched(&all, net), "{net}");
        }
        for net in ["::/0", "2001:db8::/32", "fc00::/7"] {
            assert!(touched(&all, net), "{net}");
        }
        for net in [
            "10.8.0.0/16",
            "10.9.9.0/24",
            "10.9.9.9/32",
            "10.128.0.0/9",
            "fd00:1::/64",
        ] {
            assert!(!touched(&all, net), "{net}");
        }
    }

    #[test]
    fn bypasses_that_leave_nothing_leave_nothing() {
        let none = of(&[
            ("0.0.0.0/1", RuleAction::Bypass),
            ("128.0.0.0/1", RuleAction::Bypass),
        ]);
        assert!(!touched(&none, "0.0.0.0/0"));
        let none = of(&[
            ("0.0.0.0/0", RuleAction::Bypass),
            ("::/0", RuleAction::Bypass),
        ]);
        assert!(!touched(&none, "0.0.0.0/0") && !touched(&none, "::/0"));
        let last = of(&[
            ("0.0.0.0/0", RuleAction::Bypass),
            ("255.255.255.255/32", RuleAction::Masquerade),
        ]);
        assert!(touched(&last, "0.0.0.0/0") && !touched(&last, "0.0.0.0/1"));
    }

    #[test]
    fn what_is_not_routed_is_not_masqueraded() {
        let all = of(&[]);
        for net in [
            "224.0.0.0/4",
            "239.1.1.1/32",
            "127.0.0.0/8",
            "ff00::/8",
            "fe80::/64",
            "::1/128",
        ] {
            assert!(!touched(&all, net), "{net}");
        }
        assert!(touched(&all, "169.254.0.0/16") && touched(&all, "0.0.0.0/0"));
        let multicast = of(&[
            ("224.0.0.0/4", RuleAction::Masquerade),
            ("239.1.0.0/16", RuleAction::Masquerade),
        ]);
        assert!(!touched(&multicast, "224.0.0.0/4"));
        assert!(!touched(&Masqueraded::default(), "0.0.0.0/0"));
    }
}
