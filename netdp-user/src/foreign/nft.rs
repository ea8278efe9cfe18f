//! Parser for rules in the format of `nft -j list table` (libnftables-json(5)).

use super::nft_redirect::{Context, branches, net};
use super::rule::{Match, NatRule, Ruleset, Target};
use ipnet::IpNet;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// Family and name of a table.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct TableName {
    /// `ip`, `ip6` or `inet`.
    pub family: String,
    pub name: String,
}

/// The base chains of a table.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct BaseChains {
    /// NAT chains at postrouting.
    pub outward: Vec<String>,
    /// Chains at prerouting, and NAT chains at output.
    pub inward: Vec<String>,
    /// Chains that precede the point where netfilter would translate replies: at prerouting, and at
    /// ingress of devices.
    pub early: Vec<EarlyChain>,
}

/// A chain that precedes netfilter's translation of replies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct EarlyChain {
    pub chain: String,
    /// Devices at whose ingress it is; everywhere if there are none.
    pub devices: Vec<String>,
}

/// Priority at which netfilter translates replies (`NF_IP_PRI_NAT_DST`,
/// include/uapi/linux/netfilter_ipv4.h).
const NAT: i64 = -100;

impl BaseChains {
    /// Reports whether iptables-nft creates such chains for its nat table.
    pub(crate) fn are_iptables(&self) -> bool {
        let known = |name: &String| {
            ["PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"].contains(&name.as_str())
        };
        self.outward.iter().chain(&self.inward).all(known)
    }
}

/// Returns the tables that may translate or redirect packets, from the output of `nft -j list
/// chains`.
pub(crate) fn tables(listing: &Value) -> BTreeMap<TableName, BaseChains> {
    let mut tables: BTreeMap<_, BaseChains> = BTreeMap::new();
    for chain in objects(listing, "chain") {
        let of = |key: &str| chain[key].as_str().unwrap_or_default();
        if !["ip", "ip6", "inet", "netdev"].contains(&of("family")) {
            continue;
        }
        let at_prerouting = of("hook") == "prerouting" && chain["prio"].as_i64() < Some(NAT);
        let early = of("type") == "filter" && (at_prerouting || of("hook") == "ingress");
        if early {
            let devices = elements(&chain["dev"])
                .into_iter()
                .filter_map(Value::as_str);
            let name = TableName {
                family: of("family").into(),
                name: of("table").into(),
            };
            tables.entry(name).or_default().early.push(EarlyChain {
                chain: of("name").into(),
                devices: devices.map(str::to_owned).collect(),
            });
        }
        let outward = match (of("type"), of("hook")) {
            ("nat", "postrouting") => true,
            ("nat", "prerouting" | "output") => false,
            // TPROXY; chains of iptables-nft are not parsed from nft's output.
            ("filter", "prerouting") if of("name") != "PREROUTING" => false,
            _ => continue,
        };
        let name = TableName {
            family: of("family").into(),
            name: of("table").into(),
        };
        let roots = tables.entry(name).or_default();
        if outward {
            roots.outward.push(of("name").into());
        } else {
            roots.inward.push(of("name").into());
        }
    }
    tables
}

/// Returns the objects of a kind in a listing.
pub(crate) fn objects<'a>(
    listing: &'a Value,
    kind: &'static str,
) -> impl Iterator<Item = &'a Value> {
    let all = listing["nftables"]
        .as_array()
        .map_or(&[][..], Vec::as_slice);
    all.iter().filter_map(move |object| object.get(kind))
}

/// Returns the devices at whose ingress a chain is, from the output of `nft -s -a list table`: the
/// JSON of nft 1.0.6 lacks them.
pub(crate) fn devices(text: &str, chain: &str) -> Vec<String> {
    let head = format!("chain {chain} {{");
    let mut lines = text.lines().map(str::trim_start);
    let found = lines.find(|line| line.starts_with(&head));
    // `type filter hook ingress device "eth0" priority …`, or `devices = { eth0, eth1 }`.
    let names = found.and_then(|_| lines.next()?.split_once(" device"));
    let names = names.and_then(|(_, rest)| rest.split_once(" priority"));
    let names = names.map_or("", |(names, _)| names);
    let names = names.strip_prefix('s').unwrap_or(names);
    let names = names.split([' ', ',', '{', '}', '=', '"']);
    let names = names.filter(|name| !name.is_empty());
    names.map(str::to_owned).collect()
}

/// Returns the sets and maps of a listing, on a node with these addresses.
pub(crate) fn context<'a>(listing: &'a Value, local: &'a BTreeSet<IpAddr>) -> Context<'a> {
    let named = ["set", "map"]
        .into_iter()
        .flat_map(|kind| objects(listing, kind));
    let named = named.filter_map(|set| Some((format!("@{}", set["name"].as_str()?), &set["elem"])));
    Context {
        local,
        named: named.collect(),
    }
}

/// Returns the tables whose NAT chains may change the destinations of packets of a family from elsewhere, with these
/// chains, from the output of `nft -j list chains`. Those of iptables-nft are left out.
pub(crate) fn redirecting(listing: &Value, is_v4: bool) -> BTreeMap<TableName, Vec<String>> {
    let mut tables: BTreeMap<_, Vec<String>> = BTreeMap::new();
    for chain in objects(listing, "chain") {
        let of = |key: &str| chain[key].as_str().unwrap_or_default();
        let is_of_family = of("family") == "inet" || (of("family") == "ip") == is_v4;
        let is_known = ["ip", "ip6", "inet"].contains(&of("family"));
        let is_nat = of("type") == "nat" && of("hook") == "prerouting";
        if is_known && is_of_family && is_nat && of("name") != "PREROUTING" {
            let table = TableName {
                family: of("family").into(),
                name: of("table").into(),
            };
            tables.entry(table).or_default().push(of("name").into());
        }
    }
    tables
}

/// Parses the table in `listing`, of a node with these addresses; `text` is the same table as
/// printed by `nft -s -a list table`.
pub(crate) fn ruleset(
    listing: &Value,
    text: &str,
    roots: BaseChains,
    local: &BTreeSet<IpAddr>,
) -> Ruleset {
    let texts: BTreeMap<u64, &str> = text
        .lines()
        .filter_map(|line| {
            let (rule, handle) = line.rsplit_once(" # handle ")?;
            Some((handle.trim().parse().ok()?, rule.trim()))
        })
        // Chains and sets have handles too, numbered separately.
        .filter(|(_, rule)| !rule.ends_with('{'))
        .collect();
    let context = context(listing, local);
    let mut chains: BTreeMap<String, Vec<NatRule>> = BTreeMap::new();
    for rule in objects(listing, "rule") {
        let text = rule["handle"]
            .as_u64()
            .and_then(|handle| texts.get(&handle));
        let text = text.map_or_else(|| rule["expr"].to_string(), |text| (*text).to_owned());
        let chain = rule["chain"].as_str().unwrap_or_default();
        let mut parsed = parse(&rule["expr"], text, &context.named);
        parsed.branches = branches(&rule["expr"], &context);
        chains.entry(chain.into()).or_default().push(parsed);
    }
    Ruleset {
        family: None,
        chains,
        roots: roots.outward,
        inward_roots: roots.inward,
        early_roots: roots.early.into_iter().map(|early| early.chain).collect(),
    }
}

fn parse(expressions: &Value, text: String, sets: &BTreeMap<String, &Value>) -> NatRule {
    let mut rule = NatRule {
        text,
        matches: Vec::new(),
        target: Target::Other,
        branches: Vec::new(),
    };
    for expression in expressions.as_array().into_iter().flatten() {
        let Some((kind, value)) = expression.as_object().and_then(|o| o.iter().next()) else {
            continue;
        };
        match kind.as_str() {
            "match" => rule.matches.push(condition(value, sets)),
            "masquerade" => rule.target = Target::Masquerade,
            "snat" => {
                let to = value["addr"].as_str().and_then(|ip| ip.parse().ok());
                rule.target = Target::Snat(to.into_iter().collect());
            }
            // As in iptables: MASQUERADE of iptables-nft may be printed in this form.
            "xt" if value["name"] == "MASQUERADE" => rule.target = Target::Masquerade,
            "xt" if value["name"] == "SNAT" => rule.target = Target::Snat(Vec::new()),
            "return" | "accept" => rule.target = Target::Leave,
            "drop" | "reject" => rule.target = Target::Drop,
            "jump" | "goto" => {
                let to = value["target"].as_str().unwrap_or_default();
                rule.target = Target::Jump(to.into());
            }
            "counter" | "log" | "mangle" | "comment" => {}
            _ => rule.matches.push(Match::Other(expression.to_string())),
        }
    }
    rule
}

fn condition(condition: &Value, sets: &BTreeMap<String, &Value>) -> Match {
    known_condition(condition, sets).unwrap_or_else(|| Match::Other(condition.to_string()))
}

fn known_condition(condition: &Value, sets: &BTreeMap<String, &Value>) -> Option<Match> {
    let not = match condition["op"].as_str()? {
        "==" | "in" => false,
        "!=" => true,
        _ => return None,
    };
    let (left, right) = (&condition["left"], &condition["right"]);
    let (kind, of) = left.as_object()?.iter().next()?;
    match kind.as_str() {
        "payload" => {
            let nets = nets(right, sets)?;
            match of["field"].as_str()? {
                "saddr" => Some(Match::Source { nets, not }),
                "daddr" => Some(Match::Destination { nets, not }),
                _ => None,
            }
        }
        "meta" if of["key"] == "oifname" || of["key"] == "oif" => {
            let names = names(right)?;
            Some(Match::Out { names, not })
        }
        "meta" if of["key"] == "iifname" || of["key"] == "iif" => {
            let names = names(right)?;
            Some(Match::In { names, not })
        }
        "meta" if of["key"] == "mark" => Some(mark(right, right, not)),
        "&" if of[0]["meta"]["key"] == "mark" => Some(mark(right, &of[1], not)),
        "fib" if of["result"] == "type" && right == "local" => {
            let flags = of["flags"].as_array()?;
            if flags.iter().any(|flag| flag == "saddr") {
                Some(Match::LocalSource { not })
            } else {
                Some(Match::LocalDestination { not })
            }
        }
        "ct" if of["key"] == "status" && right == "dnat" && !not => Some(Match::Translated),
        _ => None,
    }
}

/// Returns the condition on a mark: a comparison with 0 means that the mark is absent.
fn mark(value: &Value, shown: &Value, not: bool) -> Match {
    let text = shown
        .as_u64()
        .map_or_else(|| shown.to_string(), |mark| format!("{mark:#x}"));
    let zero = value.as_u64() == Some(0);
    Match::Mark {
        text,
        set: zero == not,
    }
}

fn elements(value: &Value) -> Vec<&Value> {
    match value.get("set").unwrap_or(value) {
        Value::Array(all) => all.iter().collect(),
        one => vec![one],
    }
}

/// Returns all names of interfaces, or `None` if one is something else.
fn names(value: &Value) -> Option<Vec<String>> {
    let names = elements(value).into_iter();
    let names = names.map(|name| Some(name.as_str()?.replace('*', "+")));
    names.collect()
}

/// Returns all prefixes, or `None` if one is something else.
fn nets(value: &Value, sets: &BTreeMap<String, &Value>) -> Option<Vec<IpNet>> {
    let named = value.as_str().and_then(|name| sets.get(name));
    elements(named.map_or(value, |elements| *elements))
        .into_iter()
        .map(|element| net(element.get("elem").map_or(element, |inner| &inner["val"])))
        .collect()
}
