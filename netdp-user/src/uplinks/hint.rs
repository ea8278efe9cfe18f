//! Hints for a pattern that no interface matches.

use super::model::Snapshot;
use crate::misspelling::nearest;
use globset::Glob;
use std::net::IpAddr;

/// Bytes of an interface's name, without the final zero (`IFNAMSIZ`, include/uapi/linux/if.h).
const MAX_NAME: usize = 15;

/// Maximum number of interfaces named in a hint.
const NAMED: usize = 3;

/// Jaro-Winkler similarity above which a name is taken for a misspelling.
const MIN_SIMILARITY: f64 = 0.85;

/// Returns a likely reason why `pattern` matches no interface, if there is one: an interface that
/// is yet to appear needs no hint.
pub(crate) fn hint(flag: &str, pattern: &str, snapshot: &Snapshot) -> Option<String> {
    let names: Vec<&str> = snapshot
        .links
        .iter()
        .map(|link| link.name.as_str())
        .collect();
    let bare = pattern.trim().trim_matches(['\'', '"']);
    if bare.is_empty() {
        return Some(format!(
            "it is blank: name an interface, or leave {flag} out"
        ));
    }
    if bare != pattern {
        let meant = meant(bare, &names);
        return Some(format!(
            "quotes and blanks are not part of a name: write {meant}"
        ));
    }
    let address = pattern.split('/').next().unwrap_or(pattern);
    if address.parse::<IpAddr>().is_ok() {
        return Some(format!(
            "it is an address, but the name of an interface is expected: {}",
            match flag {
                "--uplink" => "give it as --node-ip, or the interface that has it",
                _ => "give the interface that has it",
            }
        ));
    }
    if let Some(several) = several(pattern) {
        return Some(format!(
            "for several interfaces give {flag} several times: {several}"
        ));
    }
    for (why, candidate) in notations(pattern) {
        if let Some(candidate) = candidate
            && !candidate.is_empty()
        {
            return Some(format!("{why}: write {}", meant(&candidate, &names)));
        }
    }
    if pattern.starts_with('!') {
        return Some("negation is not supported: name the interfaces to use".into());
    }
    let loopback = snapshot.links.iter().find(|link| link.loopback);
    if loopback.is_some_and(|link| matches(pattern, &link.name)) {
        return Some("the loopback device is never taken".into());
    }
    let lower = pattern.to_lowercase();
    let by_case = |name: &&&str| matches(&lower, &name.to_lowercase());
    if let Some(name) = names.iter().find(by_case) {
        return Some(format!("letter case matters: there is {name}"));
    }
    let is_literal = !pattern.contains(['*', '?', '[', '{']);
    if is_literal && pattern.len() > MAX_NAME {
        return Some(format!(
            "no interface has a name of more than {MAX_NAME} bytes: `ip link` shows the names"
        ));
    }
    // A name that differs only in its numbers is another interface.
    let others = names
        .into_iter()
        .filter(|name| shape(name) != shape(pattern));
    let name = nearest(pattern, others, MIN_SIMILARITY)?;
    Some(format!("did you mean {name}?"))
}

/// Returns the notations of other tools, each with its equivalent here if `pattern` uses it.
fn notations(pattern: &str) -> [(&'static str, Option<String>); 6] {
    let before = |sign: char| pattern.split_once(sign).map(|(name, _)| name.to_owned());
    let regular = pattern
        .trim_start_matches('^')
        .trim_end_matches('$')
        .replace("\\d+", "*")
        .replace("\\d", "[0-9]")
        .replace("\\.", ".")
        .replace("[0-9]+", "[0-9]*")
        .replace(".*", "*")
        .replace(".+", "*");
    [
        (
            "regular expressions are not supported",
            (regular != pattern).then_some(regular),
        ),
        (
            "use * instead of iptables' +",
            pattern.contains('+').then(|| pattern.replace('+', "*")),
        ),
        (
            "use * instead of %",
            pattern
                .contains('%')
                .then(|| pattern.replace("%d", "*").replace('%', "*")),
        ),
        (
            "the part after the colon is the label of an address",
            before(':'),
        ),
        ("the part after the @ is another interface", before('@')),
        (
            "a name contains no slash",
            pattern.rsplit_once('/').map(|(_, name)| name.to_owned()),
        ),
    ]
}

/// Splits several names in one pattern into one pattern each.
fn several(pattern: &str) -> Option<String> {
    let inner = pattern
        .strip_prefix('(')
        .and_then(|rest| rest.strip_suffix(')'));
    let list = inner.unwrap_or(pattern);
    let mut depth = 0_u32;
    let parts: Vec<&str> = list
        .split(|sign: char| {
            match sign {
                '{' | '[' => depth += 1,
                '}' | ']' => depth = depth.saturating_sub(1),
                _ => {}
            }
            depth == 0 && (matches!(sign, ',' | ';' | '|') || sign.is_whitespace())
        })
        .filter(|part| !part.is_empty())
        .collect();
    (parts.len() > 1).then(|| parts.join(", "))
}

/// Returns the pattern, and the interfaces it matches.
fn meant(pattern: &str, names: &[&str]) -> String {
    let matching: Vec<&str> = names
        .iter()
        .copied()
        .filter(|name| matches(pattern, name))
        .collect();
    match matching.as_slice() {
        [] => pattern.to_owned(),
        [name] if *name == pattern => pattern.to_owned(),
        many => {
            let more = match many.len().saturating_sub(NAMED) {
                0 => String::new(),
                more => format!(" and {more} more"),
            };
            let named: Vec<&str> = many.iter().copied().take(NAMED).collect();
            format!("{pattern}, which matches {}{more}", named.join(", "))
        }
    }
}

/// Returns the name with a placeholder for each number.
fn shape(name: &str) -> String {
    let mut shape: Vec<char> = name
        .chars()
        .map(|sign| if sign.is_ascii_digit() { '#' } else { sign })
        .collect();
    shape.dedup_by(|a, b| *a == '#' && *b == '#');
    shape.into_iter().collect()
}

fn matches(pattern: &str, name: &str) -> bool {
    Glob::new(pattern).is_ok_and(|glob| glob.compile_matcher().is_match(name))
}

#[cfg(test)]
mod tests {
    use super::hint;
    use crate::uplinks::model::{Link, LinkLayer, Snapshot};

    fn hinted(pattern: &str) -> Option<String> {
        let names = ["lo", "eth0", "eth1", "wlp2s0", "cni0", "br-lan"];
        let links = names.iter().zip(1..).map(|(name, ifindex)| Link {
            ifindex,
            name: (*name).into(),
            up: true,
            running: true,
            loopback: *name == "lo",
            link_layer: LinkLayer::Ethernet,
            master: None,
            kind: None,
            below: None,
            xdp: false,
            mac: None,
        });
        let snapshot = Snapshot {
            links: links.collect(),
            ..Snapshot::default()
        };
        hint("--uplink", pattern, &snapshot)
    }

    #[test]
    fn notations_of_other_tools_are_distinguished() {
        for (pattern, words) in [
            (
                "eth+",
                "use * instead of iptables' +: write eth*, which matches eth0, eth1",
            ),
            ("+", "write *, which matches lo, eth0, eth1 and 3 more"),
            ("ens+", "write ens*"),
            (
                "eth.*",
                "regular expressions are not supported: write eth*, which",
            ),
            (
                "^eth0$",
                "regular expressions are not supported: write eth0",
            ),
            (r"eth\d+", "write eth*, which matches eth0, eth1"),
            ("eth[0-9]+", "write eth[0-9]*, which matches eth0, eth1"),
            ("(eth0|eth1)", "give --uplink several times: eth0, eth1"),
            ("eth0,eth1", "give --uplink several times: eth0, eth1"),
            ("eth0 eth1", "give --uplink several times: eth0, eth1"),
            ("eth%d", "write eth*, which matches eth0, eth1"),
            ("eth%", "write eth*, which matches eth0, eth1"),
            ("eth0:1", "the label of an address: write eth0"),
            ("eth0@if7", "after the @ is another interface: write eth0"),
            (
                "/sys/class/net/eth0",
                "a name contains no slash: write eth0",
            ),
            (
                "'eth*'",
                "quotes and blanks are not part of a name: write eth*, which",
            ),
            (
                "\"eth0\"",
                "quotes and blanks are not part of a name: write eth0",
            ),
            (
                " eth0",
                "quotes and blanks are not part of a name: write eth0",
            ),
            ("", "it is blank"),
            ("''", "it is blank"),
            ("10.1.0.10", "it is an address"),
            ("10.1.0.10/16", "it is an address"),
            ("fd00::1", "give it as --node-ip"),
            ("!eth0", "negation is not supported"),
            ("lo", "the loopback device is never taken"),
            ("lo*", "the loopback device is never taken"),
            ("ETH0", "letter case matters: there is eth0"),
            ("Eth*", "letter case matters: there is eth0"),
            ("enterprise-uplink-0", "more than 15 bytes"),
            ("eht0", "did you mean eth0?"),
            ("wlps0", "did you mean wlp2s0?"),
            ("br_lan", "did you mean br-lan?"),
        ] {
            let hint = hinted(pattern);
            assert!(
                hint.as_ref().is_some_and(|hint| hint.contains(words)),
                "{pattern:?}: {hint:?}"
            );
        }
    }

    #[test]
    fn an_interface_that_may_yet_appear_gets_no_hint() {
        for pattern in [
            "eth7",
            "ens*",
            "wg0",
            "{bond,team}0",
            "bond[0-9]",
            "wan?",
            "tun0",
        ] {
            assert_eq!(hinted(pattern), None, "{pattern}");
        }
    }
}
