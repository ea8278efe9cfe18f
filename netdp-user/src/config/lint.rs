//! Lints: valid configurations that are probably mistakes, assessed by the policy as a whole.

use std::collections::{HashMap, HashSet};

use ipnet::IpNet;

use crate::codes::Code;

use super::auto::{AutoKind, AutoNetworks};
use super::defaults::{LINK_LOCAL_V4, LINK_LOCAL_V6};
use super::diagnostic::Diagnostic;
use super::key::Key;
use super::nesting;
use super::settings::{self, Files};
use super::{Config, MAX_RULES, Options, Origin, Rule, RuleAction};

/// File name of findings that belong to no line of any document.
pub(super) const POLICY: &str = "policy";

/// Returns the error for a policy that exceeds the kernel's maps.
pub(super) fn too_many(rules: &[Rule]) -> Diagnostic {
    let message = format!(
        "{} CIDRs in all documents together, more than the limit of {MAX_RULES}; list broader \
         networks",
        rules.len()
    );
    Diagnostic::whole_file(POLICY, message)
}

/// Networks of the cluster: a policy that masquerades these is probably a mistake, unless
/// `autoNonMasquerade` bypasses them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClusterCidrs {
    /// Networks of the pods; of a node, or of the whole cluster.
    pub pod_cidrs: Vec<IpNet>,
    /// Networks of the services.
    pub service_cidrs: Vec<IpNet>,
    /// Networks for `autoNonMasquerade`.
    pub auto: AutoNetworks,
}

/// Prefixes that are exempt from the lint of redundant rules.
#[derive(Debug, Default)]
pub(super) struct Exempt {
    /// Prefixes of `nat.rules`: they were written for a node with another default.
    pub nat_rules: HashSet<IpNet>,
    /// Prefixes that replaced a built-in rule.
    pub replacing: HashSet<IpNet>,
    /// Set if any prefix may lie in one of the cluster's networks, which are not known for good.
    pub inside_cluster: bool,
}

/// Warns of each configured rule without effect: its next broader rule, or the default, has the
/// same action. The cluster's own networks do not count: what is in them changes.
pub(super) fn redundant(rules: &[Rule], exempt: &Exempt, warnings: &mut Vec<Diagnostic>) {
    let mut broader: HashMap<IpNet, &Rule> = HashMap::new();
    let lasting = rules.iter().filter(|rule| !rule.is_auto());
    nesting::walk(&lasting.collect::<Vec<_>>(), |rule, around| {
        if let Some(outer) = around.last() {
            broader.insert(rule.prefix, outer);
        }
    });
    let is_exempt =
        |prefix: &IpNet| exempt.nat_rules.contains(prefix) || exempt.replacing.contains(prefix);
    for rule in rules {
        let Origin::File { file, line } = &rule.origin else {
            continue;
        };
        let why = match broader.get(&rule.prefix) {
            Some(outer) if outer.action == rule.action => {
                format!("{} ({}) contains it", outer.prefix, outer.origin)
            }
            None if rule.action == RuleAction::Masquerade
                && !exempt.inside_cluster
                && !is_exempt(&rule.prefix) =>
            {
                "destinations that no list covers are masqueraded anyway".to_owned()
            }
            _ => continue,
        };
        let list = match rule.action {
            RuleAction::Bypass => Key::NonMasqueradeCidrs.name(),
            RuleAction::Masquerade if exempt.nat_rules.contains(&rule.prefix) => "NAT rule",
            RuleAction::Masquerade => Key::MasqueradeCidrs.name(),
        };
        let message = format!("{list}: {} changes nothing, because {why}", rule.prefix);
        warnings.push(Diagnostic::at(file, *line, message));
    }
}

/// Warns if link-local addresses are not treated as a file sets it or its reader expects.
pub(super) fn link_local(
    files: Files<'_>,
    config: &Config,
    options: &Options,
    warnings: &mut Vec<Diagnostic>,
) {
    for (key, range) in [
        (Key::MasqLinkLocal, LINK_LOCAL_V4),
        (Key::MasqLinkLocalIpv6, LINK_LOCAL_V6),
    ] {
        let set = settings::first_true(files, key);
        let around = config.rules.covering(range).next();
        if let Some((file, line)) = set {
            let why = match around {
                _ if matches!(range, IpNet::V6(_)) && !options.enable_ipv6 => {
                    "IPv6 is off; pass --enable-ipv6".to_owned()
                }
                Some(rule) if rule.action == RuleAction::Bypass => {
                    format!("{} ({}) contains {range}", rule.prefix, rule.origin)
                }
                _ => continue,
            };
            let message = format!("{}: true has no effect, because {why}", key.name());
            warnings.push(Diagnostic::at(file, line, message));
        } else if let Some(rule) = around
            && rule.action == RuleAction::Masquerade
            && rule.prefix != range
            && let Origin::File { file, line } = &rule.origin
        {
            let message = format!(
                "{} masquerades {range}, too: link-local addresses, such as that of a metadata \
                 server",
                rule.prefix
            );
            warnings.push(Diagnostic::at(file, *line, message));
        }
    }
}

/// Warns of parts of the cluster that are masqueraded.
pub(super) fn cluster(
    config: &Config,
    options: &Options,
    cluster_cidrs: &ClusterCidrs,
    warnings: &mut Vec<Diagnostic>,
) {
    const POD: &str = "pods on other nodes would see the node's address; name it in \
                       nonMasqueradeCIDRs, or set autoNonMasquerade: [pods]";
    const SERVICE: &str = "this matters where services are not translated on the node; name it in \
                           nonMasqueradeCIDRs";
    // What bypasses them is about to be known.
    let awaited =
        config.auto.contains(&AutoKind::Pods) && cluster_cidrs.auto.awaits(AutoKind::Pods);
    let pods = cluster_cidrs.pod_cidrs.iter().filter(|_| !awaited);
    let services = cluster_cidrs.service_cidrs.iter();
    for (what, cidr, advice) in pods
        .map(|cidr| ("pod CIDR", *cidr, POD))
        .chain(services.map(|cidr| ("service CIDR", *cidr, SERVICE)))
    {
        if matches!(cidr, IpNet::V6(_)) && !options.enable_ipv6 {
            continue;
        }
        let inside = |action| {
            let inside = config.rules.inside(cidr);
            inside.filter(move |rule| rule.action == action && rule.prefix != cidr)
        };
        let around = config.rules.covering(cidr).next();
        if around.is_none_or(|rule| rule.action == RuleAction::Masquerade) {
            let bypassed: Vec<IpNet> = inside(RuleAction::Bypass).map(|rule| rule.prefix).collect();
            if IpNet::aggregate(&bypassed) == [cidr] {
                continue;
            }
            let why = match around {
                Some(rule) => format!("by {} ({})", rule.prefix, rule.origin),
                None => "because no list covers it".to_owned(),
            };
            let message = format!("the {what} {cidr} is masqueraded {why}: {advice}");
            let warning = Diagnostic::whole_file(POLICY, message);
            warnings.push(warning.with_code(Code::PodsMasqueraded));
            continue;
        }
        for rule in inside(RuleAction::Masquerade) {
            let message = format!("{}, in the {what} {cidr}, is masqueraded", rule.prefix);
            let warning = match &rule.origin {
                Origin::File { file, line } => Diagnostic::at(file, *line, message),
                _ => Diagnostic::whole_file(POLICY, message),
            };
            warnings.push(warning.with_code(Code::PodsMasqueraded));
        }
    }
}

/// Warns if there are `only_nat_rules` and the default action is not set.
pub(super) fn implicit_default_action(
    only_nat_rules: bool,
    config: &Config,
    options: &Options,
    warnings: &mut Vec<Diagnostic>,
) {
    let written = |rule: &Rule| matches!(rule.origin, Origin::File { .. });
    if options.default_action.is_some() || !only_nat_rules || !config.rules.iter().any(written) {
        return;
    }
    let message = "there are NAT rules but no ip-masq-agent configuration: other destinations are \
                   masqueraded by its defaults; set --default-action bypass to leave them alone, \
                   or --default-action masquerade to confirm this";
    warnings.push(Diagnostic::whole_file(POLICY, message));
}
