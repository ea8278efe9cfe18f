//! Renders the policy as the rules of ip-masq-agent (cmd/ip-masq-agent/ip-masq-agent.go at
//! e3000864), with its chain, order and comments.

use crate::config::{Config, RuleAction};
use crate::upstream::masq_agent::{JUMP_COMMENT, MASQUERADE_COMMENT, RETURN_COMMENT};
use netdp_common::layout::Family;
use serde::{Deserialize, Serialize};
use std::fmt::Write as _;

/// Protocols to which `--to-ports` applies, in ip-masq-agent's order.
const PORT_PROTOCOLS: [&str; 3] = ["tcp", "udp", "sctp"];

/// Choice of source ports by MASQUERADE.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ports {
    /// Permitted ports from `--to-ports`, as inclusive ranges; empty permits all.
    pub ranges: Vec<(u16, u16)>,
    /// Full randomization of ports, from `--random-fully`.
    pub random_fully: bool,
}

/// The chain of one family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Chain {
    /// Name of the chain.
    pub name: String,
    /// Its rules as iptables-save prints them, without `-A NAME`, in order.
    pub rules: Vec<String>,
}

impl Chain {
    /// Returns the chain that implements `config`.
    ///
    /// Without masqueraded prefixes, the rules are in the order of the configuration, as
    /// ip-masq-agent writes them. With such prefixes the longest match has to decide, so the
    /// longest prefix goes first.
    #[must_use]
    pub(crate) fn new(name: &str, family: Family, config: &Config, ports: &Ports) -> Self {
        let mut listed: Vec<_> = config
            .rules
            .iter()
            .filter(|rule| Family::of(rule.prefix.addr()) == family)
            .map(|rule| (rule.prefix, rule.action))
            .collect();
        let default = listed
            .iter()
            .find(|(prefix, _)| prefix.prefix_len() == 0)
            .map_or(RuleAction::Masquerade, |(_, action)| *action);
        let longest_first = listed
            .iter()
            .any(|(_, action)| matches!(action, RuleAction::Masquerade));
        if longest_first {
            listed.sort_by_key(|(prefix, _)| std::cmp::Reverse(prefix.prefix_len()));
        }
        let mut rules = Vec::new();
        for (prefix, action) in listed {
            let destination = match prefix.prefix_len() {
                // iptables omits it, too.
                0 => String::new(),
                _ => format!("-d {prefix} "),
            };
            match action {
                RuleAction::Bypass => rules.push(format!(
                    "{destination}-m comment --comment \"{RETURN_COMMENT}\" -j RETURN"
                )),
                RuleAction::Masquerade => masquerade(&mut rules, &destination, ports),
            }
        }
        // ip-masq-agent writes the last rule even after a rule that matches everything.
        let reached = !longest_first || matches!(default, RuleAction::Masquerade);
        if reached && !rules.last().is_some_and(|r| matches_everything(r)) {
            masquerade(&mut rules, "", ports);
        }
        Self {
            name: name.into(),
            rules,
        }
    }
}

/// Reports whether no rule after this one can be reached.
fn matches_everything(rule: &str) -> bool {
    rule.starts_with("-m comment") && rule.contains("-j MASQUERADE")
}

/// Appends the rules that masquerade `destination`: one for each protocol with ports and each
/// range, with a probability that makes all ports equally likely; then one for everything else.
fn masquerade(rules: &mut Vec<String>, destination: &str, ports: &Ports) {
    let random = if ports.random_fully {
        " --random-fully"
    } else {
        ""
    };
    for protocol in PORT_PROTOCOLS {
        for (at, (min, max)) in ports.ranges.iter().enumerate() {
            let chance = match probability(&ports.ranges, at) {
                None => String::new(),
                Some(chance) => format!(" -m statistic --mode random --probability {chance}"),
            };
            let range = if min == max {
                min.to_string()
            } else {
                format!("{min}-{max}")
            };
            rules.push(format!(
                "{destination}-p {protocol} -m comment --comment \"{MASQUERADE_COMMENT}\"{chance} -j MASQUERADE --to-ports {range}{random}"
            ));
        }
    }
    rules.push(format!(
        "{destination}-m comment --comment \"{MASQUERADE_COMMENT}\" -j MASQUERADE{random}"
    ));
}

/// Returns the probability of the range at `at` among those from there on; `None` for the last,
/// which matches always. With the 11 digits that iptables-save prints: the kernel stores it in
/// units of 2^-31 (include/uapi/linux/netfilter/xt_statistic.h).
fn probability(ranges: &[(u16, u16)], at: usize) -> Option<String> {
    let rest = ranges.get(at..)?;
    let (first, others) = rest.split_first()?;
    if others.is_empty() {
        return None;
    }
    let length = |(min, max): &(u16, u16)| u32::from(max.saturating_sub(*min)) + 1;
    let all: u32 = rest.iter().map(length).sum();
    let scale = f64::from(1_u32 << 31);
    let chance = (f64::from(length(first)) / f64::from(all) * scale).round_ties_even() / scale;
    Some(format!("{chance:.11}"))
}

/// Returns the rule in POSTROUTING that jumps to the chain, as iptables-save prints it.
#[must_use]
pub(crate) fn jump_rule(chain: &str) -> String {
    format!(
        "-A POSTROUTING -m comment --comment \"{JUMP_COMMENT} {chain} chain\" -m addrtype ! --dst-type LOCAL -j {chain}"
    )
}

/// Returns the input for iptables-restore --noflush that writes all of `chain`, and the jump to it
/// if there is none yet. Everything else in the table remains unchanged.
#[must_use]
pub(crate) fn restore_input(chain: &Chain, with_jump: bool) -> String {
    let mut text = format!("*nat\n:{} - [0:0]\n", chain.name);
    for rule in &chain.rules {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "-A {} {rule}", chain.name);
    }
    if with_jump {
        text.push_str(&jump_rule(&chain.name));
        text.push('\n');
    }
    text.push_str("COMMIT\n");
    text
}
