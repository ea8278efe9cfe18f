//! Built-in rules.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::{Options, Origin, Rule, RuleAction};

/// Link-local range of IPv4, RFC 3927.
pub(super) const LINK_LOCAL_V4: IpNet = v4([169, 254, 0, 0], 16);

/// Link-local range of IPv6, RFC 4291 section 2.5.6.
pub(super) const LINK_LOCAL_V6: IpNet = v6(0xfe80, 10);

/// The prefix of all IPv4 addresses.
pub(super) const ALL_V4: IpNet = v4([0, 0, 0, 0], 0);

/// The prefix of all IPv6 addresses.
pub(super) const ALL_V6: IpNet = v6(0, 0);

/// Private ranges of RFC 1918.
const PRIVATE: [IpNet; 3] = [
    v4([10, 0, 0, 0], 8),
    v4([172, 16, 0, 0], 12),
    v4([192, 168, 0, 0], 16),
];

/// The ranges of RFC 5735 and RFC 6598 that are not public, without those that other rules cover.
const RESERVED: [IpNet; 8] = [
    v4([100, 64, 0, 0], 10),
    v4([192, 0, 0, 0], 24),
    v4([192, 0, 2, 0], 24),
    v4([192, 88, 99, 0], 24),
    v4([198, 18, 0, 0], 15),
    v4([198, 51, 100, 0], 24),
    v4([203, 0, 113, 0], 24),
    v4([240, 0, 0, 0], 4),
];

/// The flag that is the origin of a default action other than masquerade.
const DEFAULT_ACTION: &str = "--default-action";

const fn v4([a, b, c, d]: [u8; 4], len: u8) -> IpNet {
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), len))
}

const fn v6(first: u16, len: u8) -> IpNet {
    IpNet::V6(Ipv6Net::new_assert(
        Ipv6Addr::new(first, 0, 0, 0, 0, 0, 0, 0),
        len,
    ))
}

/// Settings in files that replace built-in rules.
#[derive(Debug, Clone, Copy)]
pub(super) struct Overrides {
    /// True if a file has its own list of non-masquerade CIDRs.
    pub list: bool,
    /// Value of `masqLinkLocal`.
    pub masq_link_local: bool,
    /// Value of `masqLinkLocalIPv6`.
    pub masq_link_local_ipv6: bool,
}

/// Returns the built-in rules.
pub(super) fn rules(options: &Options, overrides: Overrides) -> Vec<Rule> {
    let bypass_all = options.default_action == Some(RuleAction::Bypass);
    let mut rules = Vec::new();
    let mut add = |prefixes: &[IpNet], origin: &Origin| {
        rules.extend(prefixes.iter().map(|&prefix| Rule {
            prefix,
            action: RuleAction::Bypass,
            origin: origin.clone(),
            also: Vec::new(),
        }));
    };
    if bypass_all {
        let origin = Origin::Flag(DEFAULT_ACTION);
        add(&[ALL_V4], &origin);
        if options.enable_ipv6 {
            add(&[ALL_V6], &origin);
        }
    }
    let origin = Origin::BuiltIn;
    if !overrides.masq_link_local {
        add(&[LINK_LOCAL_V4], &origin);
    }
    if options.enable_ipv6 && !overrides.masq_link_local_ipv6 {
        add(&[LINK_LOCAL_V6], &origin);
    }
    if !overrides.list && !bypass_all {
        add(&PRIVATE, &origin);
        if options.nomasq_all_reserved_ranges {
            add(&RESERVED, &origin);
        }
    }
    rules
}
