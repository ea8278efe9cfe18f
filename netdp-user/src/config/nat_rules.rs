//! Parser for k8s-custom-iptables' `nat.rules`: networks to masquerade, and nothing else.
//!
//! Its script passed each word of the file to `iptables -d`. So a word may have any form accepted
//! there: a network, with host bits or without a length, or several with commas between them. Host
//! names are refused: a policy must not depend on a name server.

use std::collections::{HashMap, hash_map};

use ipnet::IpNet;

use super::Options;
use super::cidr::{self, CidrError};
use super::diagnostic::{Diagnostic, quoted};
use super::parse::{Entry, FileConfig, ipv6_is_off};

/// Parses the `text` of `file`, and appends errors and warnings to `errors` and `warnings`.
pub(super) fn parse(
    file: &str,
    text: &str,
    options: &Options,
    errors: &mut Vec<Diagnostic>,
    warnings: &mut Vec<Diagnostic>,
) -> FileConfig {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut entries = Vec::new();
    let mut lines: HashMap<IpNet, usize> = HashMap::new();
    for (line, words) in (1..).zip(text.lines()) {
        let words = words.split(|c: char| c.is_whitespace() || c == ',');
        for word in words.filter(|word| !word.is_empty()) {
            let mut warn = |message| warnings.push(Diagnostic::at(file, line, message));
            let prefix = match network(word, options, &mut warn) {
                Ok(prefix) => prefix,
                Err(message) => {
                    errors.push(Diagnostic::at(file, line, message));
                    continue;
                }
            };
            match lines.entry(prefix) {
                hash_map::Entry::Occupied(first) => warn(format!(
                    "{prefix} is already listed in line {}",
                    first.get()
                )),
                hash_map::Entry::Vacant(vacant) => {
                    vacant.insert(line);
                    entries.push(Entry { prefix, line });
                }
            }
        }
    }
    FileConfig {
        nat_rules: entries,
        ..FileConfig::default()
    }
}

/// Returns the network of `word`, or an error message.
fn network(word: &str, options: &Options, warn: &mut impl FnMut(String)) -> Result<IpNet, String> {
    let prefix = match cidr::parse(word) {
        Ok(prefix) => prefix,
        Err(CidrError::NoLength(network)) => network,
        Err(CidrError::HostBits { network, .. }) => {
            warn(format!(
                "{word} has bits set beyond its length; {network} is used"
            ));
            network
        }
        Err(problem) => return Err(format!("{} {problem}", quoted(word))),
    };
    if matches!(prefix, IpNet::V6(_)) && !options.enable_ipv6 {
        return Err(ipv6_is_off(prefix));
    }
    Ok(prefix)
}
