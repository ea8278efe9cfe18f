//! Parsers for values of flags: ports, ranges, timeouts.

use crate::config::parse_duration;
use crate::metrics::MOST_TOP;
use crate::misspelling::nearest;
use anyhow::{Context as _, Result, bail};
use netdp_common::flow::Timeouts;
use netdp_common::layout::PortRange;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::Duration;

/// Accessor of a timeout.
pub(super) type TimeoutOf = fn(&mut Timeouts) -> &mut u64;

/// Names accepted by `--timeout`, each with its timeout.
pub(super) const TIMEOUTS: [(&str, TimeoutOf); 10] = [
    ("tcp-opening", |all| &mut all.tcp_opening),
    ("tcp-established", |all| &mut all.tcp_established),
    ("tcp-unreplied", |all| &mut all.tcp_unreplied),
    ("tcp-half-closed", |all| &mut all.tcp_half_closed),
    ("tcp-closing", |all| &mut all.tcp_closing),
    ("udp-unreplied", |all| &mut all.udp_unreplied),
    ("udp-replied", |all| &mut all.udp_replied),
    ("udp-lookup", |all| &mut all.udp_lookup),
    ("icmp", |all| &mut all.icmp),
    ("generic", |all| &mut all.generic),
];

/// Similarity above which a name is taken for a misspelling.
const MIN_SIMILARITY: f64 = 0.8;

/// Parses the number of destinations that have metrics of their own.
pub(super) fn parse_top(text: &str) -> Result<usize> {
    let number = text.parse().ok().filter(|number| *number <= MOST_TOP);
    number.with_context(|| format!("expected a number from 0 to {MOST_TOP}"))
}

/// Parses `NAME=DURATION` entries, applied to the defaults.
pub(super) fn parse_timeouts(list: &[String]) -> Result<Timeouts> {
    let mut timeouts = Timeouts::default();
    for text in list {
        let Some((name, value)) = text.split_once('=') else {
            bail!("--timeout {text:?}: expected NAME=DURATION, such as udp-replied=5m");
        };
        let names = || TIMEOUTS.iter().map(|(name, _)| *name);
        let Some((_, timeout)) = TIMEOUTS.iter().find(|(known, _)| *known == name) else {
            match nearest(name, names(), MIN_SIMILARITY) {
                Some(meant) => {
                    bail!("--timeout {text:?}: unknown timeout {name:?}; did you mean {meant}?")
                }
                None => bail!(
                    "--timeout {text:?}: unknown timeout {name:?}; known are {}",
                    names().collect::<Vec<_>>().join(", ")
                ),
            }
        };
        let duration = parse_duration(value)
            .ok()
            .filter(|d| *d >= Duration::from_secs(1));
        let Some(duration) = duration else {
            bail!(
                "--timeout {text:?}: {value:?} is not a duration of a second or more, such as 90s or 2h4m"
            );
        };
        *timeout(&mut timeouts) = duration.as_secs();
    }
    Ok(timeouts)
}

/// Parses `1,5-7` as ranges, both ends included.
pub(super) fn parse_ranges(text: &str) -> Result<Vec<PortRange>> {
    let mut ranges = Vec::new();
    for range in text.split(',').map(str::trim).filter(|r| !r.is_empty()) {
        // Notations of other tools.
        if let Some((first, last)) = [":", "..", "--"].iter().find_map(|it| range.split_once(it)) {
            bail!("{range:?} is not a range of ports: write {first}-{last}");
        }
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

/// Parses `1,5-7` as a set; ranges are inclusive.
pub(super) fn parse_ports(text: &str) -> Result<BTreeSet<u16>> {
    let ranges = parse_ranges(text)?;
    Ok(ranges.iter().flat_map(|r| r.min..=r.max).collect())
}

/// Returns the ports that the node's administrator has reserved; none if the kernel lacks the file.
pub(super) fn kernel_reserved_ports() -> BTreeSet<u16> {
    const FILE: &str = "/proc/sys/net/ipv4/ip_local_reserved_ports";
    let text = std::fs::read_to_string(FILE).unwrap_or_default();
    parse_ports(text.trim()).unwrap_or_else(|err| {
        log::warn!("{FILE}: {err:#}");
        BTreeSet::new()
    })
}

/// Parses an address and port to listen on, including Go's `:8080` for all addresses. An IPv6
/// address needs no brackets: manifests can't know which family a node's address has.
pub(super) fn parse_listen(text: &str) -> Result<SocketAddr, String> {
    let all = text.strip_prefix(':').map(|port| format!("0.0.0.0:{port}"));
    let text = all.as_deref().unwrap_or(text);
    let unbracketed = || {
        let (address, port) = text.rsplit_once(':')?;
        Some(SocketAddr::new(address.parse().ok()?, port.parse().ok()?))
    };
    text.parse().ok().or_else(unbracketed).ok_or_else(|| {
        "expected an address and a port, such as 127.0.0.1:8080, [::]:8080 or :8080".to_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::{TIMEOUTS, parse_listen, parse_ports, parse_ranges, parse_timeouts};

    #[test]
    fn each_name_is_of_one_timeout() {
        let given: Vec<String> = (TIMEOUTS.iter().zip(1000..))
            .map(|((name, _), seconds)| format!("{name}={seconds}s"))
            .collect();
        let mut all = parse_timeouts(&given).unwrap();
        for ((name, timeout), seconds) in TIMEOUTS.iter().zip(1000..) {
            assert_eq!(*timeout(&mut all), seconds, "{name}");
        }
    }

    #[test]
    fn a_timeout_that_does_not_exist_is_likely_another() {
        for (given, words) in [
            ("udp_replied=5m", "did you mean udp-replied?"),
            ("TCP-Established=1h", "did you mean tcp-established?"),
            ("tcp-halfclosed=1h", "did you mean tcp-half-closed?"),
            ("established=1h", "did you mean tcp-established?"),
            ("sctp=1h", "known are tcp-opening"),
        ] {
            let message = parse_timeouts(&[given.into()]).unwrap_err().to_string();
            assert!(message.contains(words), "{given}: {message}");
        }
    }

    #[test]
    fn other_notations_of_ranges_are_explained() {
        for range in ["1024:65535", "1024..65535", "1024--65535"] {
            let message = parse_ranges(range).unwrap_err().to_string();
            assert!(message.contains("write 1024-65535"), "{message}");
        }
    }

    #[test]
    fn places_to_listen_on() {
        for (text, place) in [
            (":8080", "0.0.0.0:8080"),
            ("127.0.0.1:1", "127.0.0.1:1"),
            ("[::]:1", "[::]:1"),
            ("2001:db8::7:10269", "[2001:db8::7]:10269"),
        ] {
            assert_eq!(parse_listen(text).unwrap().to_string(), place);
        }
        for bad in ["8080", "localhost:8080", "::1:8080x", ":"] {
            assert!(
                parse_listen(bad).unwrap_err().contains("[::]:8080"),
                "{bad}"
            );
        }
    }

    #[test]
    fn ports() {
        let ports: Vec<u16> = parse_ports("1, 5-7,65535").unwrap().into_iter().collect();
        assert_eq!(ports, [1, 5, 6, 7, 65535]);
        assert!(parse_ports("").unwrap().is_empty());
        for bad in ["x", "70000", "7-5", "1-", "-1"] {
            assert!(parse_ports(bad).is_err(), "{bad}");
        }
    }

    /// `ParseInterval` of ip-masq-agent, and the values accepted by its `--to-ports`.
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
