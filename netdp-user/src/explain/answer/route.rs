//! The route step: by which interface the packet leaves, and which rule and table say so.

use super::ask::Case;
use super::model::Step;
use super::node::Node;
use crate::datapath::name_of;
use crate::routes::{self, Report, outgoing_interface};
use crate::terminal;
use ipnet::IpNet;
use netdp_common::layout::proto;
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteType};
use rtnetlink::packet_route::rule::{RuleAction, RuleAttribute, RuleFlags, RuleMessage};
use std::net::IpAddr;

/// Tables that have a name (rt_tables of iproute2).
const TABLES: [(u32, &str); 3] = [(253, "default"), (254, "main"), (255, "local")];

/// The way that a packet takes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Way {
    /// It leaves by an interface.
    Out {
        ifindex: u32,
        name: String,
        gateway: Option<IpAddr>,
        /// The source that the route names.
        source: Option<IpAddr>,
        /// The route and the rule, in words.
        why: String,
    },
    /// The node receives it itself.
    Local,
    /// There is no route.
    None(String),
}

/// Returns the interface that leads to a source: the one by which its packets come.
pub(super) fn came_by(node: &mut Node<'_>, src: IpAddr) -> Option<u32> {
    let route = node.queries.route(src, 0, &[], Report::Taken).ok()?;
    outgoing_interface(&route)
}

/// Looks up the way of a packet that comes by `came_by`; 0: that the node sends.
pub(super) fn way(node: &mut Node<'_>, case: &Case, src: IpAddr, came_by: u32) -> Way {
    let mut packet = Vec::new();
    if came_by != 0 {
        packet.push(RouteAttribute::Iif(came_by));
        packet.push(RouteAttribute::Source(RouteAddress::from(src)));
    } else if node.is_local(src) {
        packet.push(RouteAttribute::Source(RouteAddress::from(src)));
    }
    let protocol = u32::from(case.protocol);
    // The kernel looks up no other protocols (`rtm_getroute_parse_ip_proto`, Linux 6.12).
    if matches!(
        protocol,
        proto::TCP | proto::UDP | proto::ICMP | proto::ICMPV6
    ) {
        packet.push(RouteAttribute::IpProto(case.protocol));
    }
    if matches!(protocol, proto::TCP | proto::UDP) {
        let port = case.src_port.unwrap_or(super::ask::ANY_PORT);
        packet.push(RouteAttribute::Sport(port));
        packet.push(RouteAttribute::Dport(case.dst_port));
    }
    let taken = match node.queries.route(case.dst, 0, &packet, Report::Taken) {
        Ok(taken) => taken,
        Err(err) => {
            // Without its source and the interface that it came by: is there a route at all?
            let exists = node.queries.route(case.dst, 0, &[], Report::Taken).is_ok();
            return Way::None(if exists && came_by != 0 {
                format!(
                    "there is a route, but the kernel rejects such a packet ({err:#}): the reverse path \
                     filter (rp_filter), forwarding that is off, or a rule for its source"
                )
            } else {
                format!("{err:#}")
            });
        }
    };
    if taken.header.kind == RouteType::Local {
        return Way::Local;
    }
    let Some(ifindex) = outgoing_interface(&taken) else {
        return Way::None(format!("its route is {:?}", taken.header.kind));
    };
    let entry = node.queries.route(case.dst, 0, &packet, Report::Entry).ok();
    let name = name_of(ifindex).unwrap_or_else(|| ifindex.to_string());
    Way::Out {
        ifindex,
        gateway: routes::gateway(&taken),
        source: entry.as_ref().and_then(routes::source),
        why: why(node, entry.as_ref(), case, src, came_by),
        name,
    }
}

impl Way {
    /// Makes the step.
    pub(super) fn step(&self, is_uplink: bool) -> Step {
        match self {
            Self::Out {
                name, gateway, why, ..
            } => {
                let kind = if is_uplink { "an uplink" } else { "no uplink" };
                let via = gateway.map_or_else(String::new, |via| format!(", via {via}"));
                Step::new("route", format!("{name}, {kind}{via}"), why)
            }
            Self::Local => Step::new("route", "to the node itself", "an address of the node"),
            Self::None(why) => Step::new("route", "none", why),
        }
    }
}

/// Describes the entry that matched, with its table and the rule that leads there.
fn why(
    node: &Node<'_>,
    entry: Option<&RouteMessage>,
    case: &Case,
    src: IpAddr,
    came_by: u32,
) -> String {
    let Some(entry) = entry else {
        return "the entry of the table is unknown".to_owned();
    };
    let table = table_of(entry);
    let to = destination(entry, case.dst);
    let named = TABLES.iter().find(|(number, _)| *number == table);
    let name = named.map_or_else(|| table.to_string(), |(_, name)| (*name).to_owned());
    let rules = &node.routing[usize::from(case.dst.is_ipv6())];
    let came_by = name_of(came_by).unwrap_or_default();
    let (rule, marked) = rule(rules, table, src, case.dst, &came_by);
    let rule = rule.map_or_else(String::new, |rule| {
        format!(", rule {}{}", priority(rule), selectors(rule))
    });
    let may = match marked.as_slice() {
        [] => String::new(),
        marked => {
            let marked: Vec<_> = marked.iter().map(ToString::to_string).collect();
            format!(
                "; may differ for marked packets, by rule {}",
                marked.join(", ")
            )
        }
    };
    format!("{to} in table {name}{rule}{may}")
}

fn table_of(route: &RouteMessage) -> u32 {
    let table = route.attributes.iter().find_map(|it| match it {
        RouteAttribute::Table(table) => Some(*table),
        _ => None,
    });
    table.unwrap_or_else(|| u32::from(route.header.table))
}

fn destination(route: &RouteMessage, dst: IpAddr) -> String {
    match IpNet::new(dst, route.header.destination_prefix_length) {
        Ok(net) if net.prefix_len() == 0 => "the default route".to_owned(),
        Ok(net) => net.trunc().to_string(),
        Err(_) => "an entry".to_owned(),
    }
}

/// Returns the first rule that leads to the table, and the priorities of the rules before it that
/// apply to packets with a mark.
fn rule<'r>(
    rules: &'r [RuleMessage],
    table: u32,
    src: IpAddr,
    dst: IpAddr,
    came_by: &str,
) -> (Option<&'r RuleMessage>, Vec<u32>) {
    let mut marked = Vec::new();
    let mut rules: Vec<_> = rules.iter().map(|rule| (priority(rule), rule)).collect();
    rules.sort_by_key(|(priority, _)| *priority);
    for (priority, rule) in rules {
        if rule.header.action != RuleAction::ToTable || !matches(rule, src, dst, came_by) {
            continue;
        }
        if is_marked(rule) {
            marked.push(priority);
        } else if rule_table(rule) == table {
            return (Some(rule), marked);
        }
    }
    (None, marked)
}

fn priority(rule: &RuleMessage) -> u32 {
    let found = rule.attributes.iter().find_map(|it| match it {
        RuleAttribute::Priority(priority) => Some(*priority),
        _ => None,
    });
    found.unwrap_or(0)
}

fn rule_table(rule: &RuleMessage) -> u32 {
    let found = rule.attributes.iter().find_map(|it| match it {
        RuleAttribute::Table(table) => Some(*table),
        _ => None,
    });
    found.unwrap_or_else(|| u32::from(rule.header.table))
}

/// Returns what a rule says of packets, as `ip rule` writes it, in brackets; nothing if it applies to
/// all.
fn selectors(rule: &RuleMessage) -> String {
    let each = rule.attributes.iter().filter_map(|it| match it {
        RuleAttribute::Source(address) => Some(format!("from {address}/{}", rule.header.src_len)),
        RuleAttribute::Destination(address) => {
            Some(format!("to {address}/{}", rule.header.dst_len))
        }
        RuleAttribute::Iifname(name) => Some(format!("iif {}", terminal::line(name))),
        _ => None,
    });
    let mut each: Vec<_> = each.collect();
    each.sort();
    let not = match rule.header.flags.contains(RuleFlags::Invert) {
        true => "not ",
        false => "",
    };
    match each.is_empty() {
        true => String::new(),
        false => format!(" ({not}{})", each.join(" ")),
    }
}

fn is_marked(rule: &RuleMessage) -> bool {
    let is_mark = |it: &RuleAttribute| matches!(it, RuleAttribute::FwMark(mark) if *mark != 0);
    rule.attributes.iter().any(is_mark)
}

/// Reports whether a rule applies, by what its selectors say of addresses and interface.
fn matches(rule: &RuleMessage, src: IpAddr, dst: IpAddr, came_by: &str) -> bool {
    let within = |address: &IpAddr, len: u8, ip: IpAddr| {
        IpNet::new(*address, len).is_ok_and(|net| net.contains(&ip))
    };
    let all = rule.attributes.iter().all(|it| match it {
        RuleAttribute::Source(address) => within(address, rule.header.src_len, src),
        RuleAttribute::Destination(address) => within(address, rule.header.dst_len, dst),
        RuleAttribute::Iifname(name) => name == came_by,
        RuleAttribute::Oifname(_) => false,
        _ => true,
    });
    all != rule.header.flags.contains(RuleFlags::Invert)
}

#[cfg(test)]
mod tests {
    use super::{RuleAction, RuleAttribute, RuleMessage, rule};
    use std::net::IpAddr;

    fn to_table(priority: u32, table: u32, attributes: &[RuleAttribute]) -> RuleMessage {
        let mut rule = RuleMessage::default();
        rule.header.action = RuleAction::ToTable;
        rule.header.src_len = 24;
        rule.attributes = attributes.to_vec();
        rule.attributes.push(RuleAttribute::Priority(priority));
        rule.attributes.push(RuleAttribute::Table(table));
        rule
    }

    #[test]
    fn the_rule_is_the_first_that_applies_and_leads_to_the_table() {
        let pods: IpAddr = "172.16.0.0".parse().unwrap();
        let rules = [
            to_table(32_766, 254, &[]),
            to_table(100, 7, &[RuleAttribute::FwMark(1)]),
            to_table(200, 7, &[RuleAttribute::Iifname("eth9".into())]),
            to_table(300, 7, &[RuleAttribute::Source(pods)]),
        ];
        let of = |table, src: &str| -> (Option<u32>, Vec<u32>) {
            let (src, dst) = (src.parse().unwrap(), "10.2.0.17".parse().unwrap());
            let (found, marked) = rule(&rules, table, src, dst, "cni0");
            (found.map(super::priority), marked)
        };
        assert_eq!(of(7, "172.16.0.2"), (Some(300), vec![100]));
        assert_eq!(of(254, "172.16.1.2"), (Some(32_766), vec![100]));
        assert_eq!(of(9, "172.16.1.2"), (None, vec![100]));
    }
}
