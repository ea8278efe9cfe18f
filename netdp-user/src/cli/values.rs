//! The values that flags take: ports, ranges, timeouts.

use crate::config::parse_duration;
use anyhow::{Context as _, Result, bail};
use netdp_common::abi::PortRange;
use netdp_common::conntrack::Timeouts;
use std::collections::BTreeSet;
use std::time::Duration;

/// `NAME=DURATION` over the defaults.
pub(super) fn parse_timeouts(list: &[String]) -> Result<Timeouts> {
    let mut timeouts = Timeouts::default();
    for text in list {
        let Some((name, value)) = text.split_once('=') else {
            bail!("--timeout {text:?}: expected NAME=DURATION, such as udp-replied=5m");
        };
        let slot = match name {
            "tcp-opening" => &mut timeouts.tcp_opening,
            "tcp-established" => &mut timeouts.tcp_established,
            "tcp-unreplied" => &mut timeouts.tcp_unreplied,
            "tcp-half-closed" => &mut timeouts.tcp_half_closed,
            "tcp-closing" => &mut timeouts.tcp_closing,
            "udp-unreplied" => &mut timeouts.udp_unreplied,
            "udp-replied" => &mut timeouts.udp_replied,
            "udp-lookup" => &mut timeouts.udp_lookup,
            "icmp" => &mut timeouts.icmp,
            "generic" => &mut timeouts.generic,
            _ => bail!("--timeout {text:?}: there is no timeout {name:?}; see --help"),
        };
        let duration = parse_duration(value)
            .ok()
            .filter(|d| *d >= Duration::from_secs(1));
        let Some(duration) = duration else {
            bail!(
                "--timeout {text:?}: {value:?} is not a duration of a second or more, such as 90s or 2h4m"
            );
        };
        *slot = duration.as_secs();
    }
    Ok(timeouts)
}

/// `1,5-7` as ranges, both ends included.
pub(super) fn parse_ranges(text: &str) -> Result<Vec<PortRange>> {
    let mut ranges = Vec::new();
    for range in text.split(',').map(str::trim).filter(|r| !r.is_empty()) {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let port = |text: &str| {
            text.parse::<u16>()
                .with_context(|| format!("{text:?} is not a port (0 to 65535)"))
        };
        let (first, last) = (port(first)?, port(last)?);
        if first > last {
            bail!("the range {range:?} ends before it begins");
        }
        ranges.push(PortRange::new(first, last));
    }
    Ok(ranges)
}

/// `1,5-7` as a set; ranges are inclusive.
pub(super) fn parse_ports(text: &str) -> Result<BTreeSet<u16>> {
    let ranges = parse_ranges(text)?;
    Ok(ranges.iter().flat_map(|r| r.min..=r.max).collect())
}

/// What the node's administrator has reserved. A kernel without the file has
/// reserved nothing.
pub(super) fn kernel_reserved_ports() -> BTreeSet<u16> {
    const FILE: &str = "/proc/sys/net/ipv4/ip_local_reserved_ports";
    let text = std::fs::read_to_string(FILE).unwrap_or_default();
    parse_ports(text.trim()).unwrap_or_else(|err| {
        log::warn!("{FILE}: {err:#}");
        BTreeSet::new()
    })
}

#[cfg(test)]
mod tests {
    use super::{parse_ports, parse_ranges};

    #[test]
    fn ports() {
        let ports: Vec<u16> = parse_ports("1, 5-7,65535").unwrap().into_iter().collect();
        assert_eq!(ports, [1, 5, 6, 7, 65535]);
        assert!(parse_ports("").unwrap().is_empty());
        for bad in ["x", "70000", "7-5", "1-", "-1"] {
            assert!(parse_ports(bad).is_err(), "{bad}");
        }
    }

    /// `ParseInterval` of ip-masq-agent, and what its `--to-ports` takes.
    #[test]
    fn ranges_are_those_of_ip_masq_agent() {
        let ends = |text: &str| -> Vec<(u16, u16)> {
            let ranges = parse_ranges(text).unwrap();
            ranges.iter().map(|range| (range.min, range.max)).collect()
        };
        for (text, expected) in [
            ("42-44", &[(42, 44)][..]),
            ("42", &[(42, 42)]),
            ("42-42", &[(42, 42)]),
            ("1024-29999,32768-65535", &[(1024, 29999), (32768, 65535)]),
            (
                "1024-29999,32768-49151,61000-65535",
                &[(1024, 29999), (32768, 49151), (61000, 65535)],
            ),
            ("1024,65535", &[(1024, 1024), (65535, 65535)]),
            ("", &[]),
        ] {
            assert_eq!(ends(text), expected, "{text}");
        }
        for bad in [
            "42 - 44", "42-43-44", "4x", "4x-44", "42-4x", "-44", "42-", "42-41",
        ] {
            assert!(parse_ranges(bad).is_err(), "{bad}");
        }
    }
}
