//! Replaces pods, namespaces, nodes, hosts and addresses in texts, each by the same substitute throughout
//! a bundle.

mod address;

use address::Addresses;
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

/// Namespaces that every cluster has, or netdp.
const KNOWN: [&str; 5] = [
    "default",
    "kube-node-lease",
    "kube-public",
    "kube-system",
    "netdp-fleet",
];

/// The names that are to be replaced.
#[derive(Debug, Default)]
pub(super) struct Names {
    pub(super) namespaces: BTreeSet<String>,
    pub(super) pods: BTreeSet<String>,
    pub(super) nodes: BTreeSet<String>,
}

impl Names {
    /// Adds nodes and hosts that texts name: of an automatic rule's origin, and of URLs.
    pub(super) fn find(&mut self, text: &str) {
        for introduced in ["(node ", "://"] {
            for found in text.split(introduced).skip(1) {
                let name: String = found.chars().take_while(|c| is_of_word(*c)).collect();
                let name = match name.rsplit_once(':') {
                    Some((host, port)) if port.parse::<u16>().is_ok() => host,
                    _ => name.trim_end_matches([':', '.']),
                };
                if !name.is_empty() && name.parse::<IpAddr>().is_err() {
                    self.nodes.insert(name.to_owned());
                }
            }
        }
    }
}

/// The replacement of names and addresses.
#[derive(Debug)]
pub(super) struct Anonymiser {
    names: BTreeMap<String, String>,
    addresses: Addresses,
}

/// Reports whether a character may be part of a name or an address.
fn is_of_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || matches!(c, '.' | ':' | '-' | '_')
}

impl Anonymiser {
    pub(super) fn new(names: &Names) -> Self {
        let mut replaced = BTreeMap::new();
        for (kind, names) in [
            ("node", &names.nodes),
            ("namespace", &names.namespaces),
            ("pod", &names.pods),
        ] {
            let names = names.iter().filter(|it| !KNOWN.contains(&it.as_str()));
            for (number, name) in (1..).zip(names) {
                replaced.insert(name.clone(), format!("{kind}-{number}"));
            }
        }
        Self {
            names: replaced,
            addresses: Addresses::new(),
        }
    }

    /// Returns the text with all names and addresses replaced.
    pub(super) fn text(&self, text: &str) -> String {
        let mut out = String::with_capacity(text.len());
        let mut rest = text;
        while let Some(start) = rest.find(is_of_word) {
            let (before, from) = rest.split_at(start);
            out.push_str(before);
            let end = from.find(|c| !is_of_word(c)).unwrap_or(from.len());
            let (word, after) = from.split_at(end);
            let is_key = out.ends_with('"') && is_end_of_key(after);
            match is_key && !self.has_address(word) {
                true => out.push_str(word),
                false => out.push_str(&self.word(word, prefix_len(after))),
            }
            rest = after;
        }
        out.push_str(rest);
        out
    }

    fn has_address(&self, word: &str) -> bool {
        word.parse::<IpAddr>().is_ok() || endpoint(word).is_some()
    }

    /// Replaces a word. `len` is the length of the prefix, if one follows.
    fn word(&self, word: &str, len: Option<u8>) -> String {
        if let Some(name) = self.names.get(word) {
            return name.clone();
        }
        if let Some(mac) = mac(word) {
            return shown(&self.addresses.replace_mac(mac));
        }
        if let Ok(address) = word.parse::<IpAddr>() {
            // The address of an interface stays that of the host.
            let is_network = |len: &u8| IpNet::new(address, *len).is_ok_and(|it| it.trunc() == it);
            let len = len.filter(is_network).unwrap_or(128);
            return self.addresses.replace(address, len).to_string();
        }
        if let Some((address, port)) = endpoint(word) {
            return format!("{}:{port}", self.addresses.replace(address.into(), 32));
        }
        if is_uuid(word) {
            let number = format!("{:032x}", self.addresses.number(word));
            let parts = [&number[..8], &number[8..12], &number[12..16]];
            let ends = [&number[16..20], &number[20..]];
            return [&parts[..], &ends[..]].concat().join("-");
        }
        // An end of a sentence, a range, a qualified name. Pods' names have hyphens: last.
        for separator in [':', '_', '.', '-'] {
            let body = word.trim_end_matches(separator);
            if body.len() < word.len() && !body.is_empty() {
                return self.word(body, None) + &word[body.len()..];
            }
            let is_address = separator == '.' && word.parse::<Ipv4Addr>().is_ok();
            if word.contains(separator) && !is_address {
                let parts: Vec<_> = word.split(separator).collect();
                let replaced = parts.iter().map(|part| self.part(part));
                let replaced: Vec<_> = replaced.collect();
                if replaced.iter().ne(parts.iter()) {
                    return replaced.join(&separator.to_string());
                }
            }
        }
        word.to_owned()
    }

    /// Replaces a part of a word.
    fn part(&self, part: &str) -> String {
        match part.is_empty() {
            true => String::new(),
            false => self.word(part, None),
        }
    }
}

/// Reports whether a text goes on with the end of a key of a JSON object.
fn is_end_of_key(after: &str) -> bool {
    let rest = after.strip_prefix('"').map(str::trim_start);
    rest.is_some_and(|rest| rest.starts_with(':'))
}

/// Returns the prefix length that a text begins with.
fn prefix_len(after: &str) -> Option<u8> {
    let digits = after.strip_prefix('/')?;
    let end = digits.find(|c: char| !c.is_ascii_digit());
    digits[..end.unwrap_or(digits.len())].parse().ok()
}

/// Parses an address of IPv4 with what follows its colon: a port, or a line of a log.
fn endpoint(word: &str) -> Option<(Ipv4Addr, &str)> {
    let (address, port) = word.split_once(':')?;
    Some((address.parse().ok()?, port))
}

fn mac(word: &str) -> Option<[u8; 6]> {
    let mut bytes = [0; 6];
    let mut parts = word.split(':');
    for byte in &mut bytes {
        let part = parts.next().filter(|part| part.len() == 2)?;
        *byte = u8::from_str_radix(part, 16).ok()?;
    }
    parts.next().is_none().then_some(bytes)
}

fn shown(mac: &[u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

fn is_uuid(word: &str) -> bool {
    let parts: Vec<_> = word.split('-').collect();
    let lengths: Vec<_> = parts.iter().map(|part| part.len()).collect();
    let is_hex = |part: &&str| part.bytes().all(|byte| byte.is_ascii_hexdigit());
    lengths == [8, 4, 4, 4, 12] && parts.iter().all(is_hex)
}

#[cfg(test)]
mod tests {
    use super::{Anonymiser, Names};

    fn anonymiser() -> Anonymiser {
        let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let mut names = Names {
            namespaces: set(&["shop", "kube-system"]),
            pods: set(&["cart-5d9", "checkout-7f"]),
            nodes: set(&["worker-eu-3"]),
        };
        names.find("auto: pods (node ip-10-1-2-3 and 3 more), https://api.acme.example:6443/x");
        Anonymiser::new(&names)
    }

    #[test]
    fn names_are_replaced_wherever_they_stand() {
        let it = anonymiser();
        for (given, expected) in [
            ("shop/cart-5d9 (gone 3m)", "namespace-1/pod-1 (gone 3m)"),
            (
                "\"pod\": \"shop/checkout-7f\"",
                "\"pod\": \"namespace-1/pod-2\"",
            ),
            ("{\"shop\": \"shop\"}", "{\"shop\": \"namespace-1\"}"),
            (
                "pods/shop_cart-5d9_x, cart-5d9.shop.svc, shop:",
                "pods/namespace-1_pod-1_x, pod-1.namespace-1.svc, namespace-1:",
            ),
            (
                "kube-system/ip-masq-agent/config:7",
                "kube-system/ip-masq-agent/config:7",
            ),
            (
                "node worker-eu-3 at https://api.acme.example:6443/x (node ip-10-1-2-3 and 3 more)",
                "node node-3 at https://node-1:6443/x (node node-2 and 3 more)",
            ),
            (
                "shopping cart-5d99 -A POSTROUTING",
                "shopping cart-5d99 -A POSTROUTING",
            ),
            (
                "2026-12-02T08:45:12.123Z 15:04:05 v0.1.0 6.18.44-amd64 [1:84] -m",
                "2026-12-02T08:45:12.123Z 15:04:05 v0.1.0 6.18.44-amd64 [1:84] -m",
            ),
        ] {
            assert_eq!(it.text(given), expected);
        }
    }

    #[test]
    fn addresses_are_replaced_in_every_form() {
        let it = anonymiser();
        let one = it.text("10.7.3.9");
        let six = it.text("fd00:7::9");
        let mac = it.text("52:54:00:12:34:56");
        let given = "10.7.3.9:443, 10.7.3.9. 10.7.3.9: x 10.7.3.9-10.7.3.9 --to-source=10.7.3.9 \
                     \"10.7.3.9\" [fd00:7::9]:53 fd00:7::9, 52:54:00:12:34:56 \"10.7.3.9\": 1";
        let expected = given
            .replace("10.7.3.9", &one)
            .replace("fd00:7::9", &six)
            .replace("52:54:00:12:34:56", &mac);
        assert_eq!(it.text(given), expected);
        assert!(
            one.starts_with("10.") && six.starts_with("fd"),
            "{one} {six}"
        );
        assert_eq!(it.text("10.7.3.9/16"), format!("{one}/16"));
        let net = it.text("10.7.0.0/16");
        assert!(net.ends_with(".0.0/16"), "{net}");
        let prefix = net.trim_end_matches("0.0/16");
        assert!(one.starts_with(prefix), "{one} is not in {net}");
        assert_eq!(
            it.text("10.0.0.0/8 0.0.0.0/0 ::/0"),
            "10.0.0.0/8 0.0.0.0/0 ::/0"
        );
    }

    #[test]
    fn uids_are_replaced_by_uids() {
        let it = anonymiser();
        let uid = "3c1a0f52-7d1e-4a4b-9c5e-0123456789ab";
        let replaced = it.text(uid);
        assert_ne!(replaced, uid);
        assert!(super::is_uuid(&replaced), "{replaced}");
        assert_eq!(it.text(uid), replaced);
    }
}
