//! Tests of whole configurations, by their display.

mod auto;
mod errors;
mod merging;
mod nat_rules;
mod policy;
mod reading;
mod upstream;
mod warnings;

use super::*;

/// Options with IPv6, for most cases.
const V6: Options = Options {
    enable_ipv6: true,
    nomasq_all_reserved_ranges: false,
    default_action: None,
};
const V4: Options = Options {
    enable_ipv6: false,
    nomasq_all_reserved_ranges: false,
    default_action: None,
};

const RFC1918: [&str; 3] = ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"];

fn doc(name: &str, text: &str) -> Document {
    Document {
        name: name.to_owned(),
        text: text.to_owned(),
        format: Format::of(name),
    }
}

/// Loads one file, `c.yaml`.
fn load_one(text: &str, opts: &Options) -> Result<Loaded, Rejected> {
    load(&[doc("c.yaml", text)], opts)
}

#[track_caller]
fn accept(text: &str) -> Loaded {
    load_one(text, &V6).unwrap_or_else(|rejected| panic!("{text:?} was rejected: {rejected}"))
}

/// Returns the prefixes with `action`, in the order of the rules.
fn prefixes(config: &Config, action: RuleAction) -> Vec<String> {
    let rules = config.rules.iter().filter(|rule| rule.action == action);
    rules.map(|rule| rule.prefix.to_string()).collect()
}

/// Returns the bypasses of `config` without the link-local ones.
fn bypasses(config: &Config) -> Vec<String> {
    let mut all = prefixes(config, RuleAction::Bypass);
    all.retain(|prefix| prefix != "169.254.0.0/16" && prefix != "fe80::/10");
    all
}

fn lines(diagnostics: &[Diagnostic]) -> Vec<String> {
    diagnostics.iter().map(ToString::to_string).collect()
}
