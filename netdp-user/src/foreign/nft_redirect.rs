//! Effect of a native nftables rule on packets that are addressed to the node, from the JSON of
//! libnftables-json(5).

use super::redirect::{has_between, may_be_node};
use super::rule::{Branch, BranchTarget};
use crate::node::{PortSet, Ranges, protocol_bit};
use ipnet::IpNet;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// Addresses of the node, and the table's named sets and maps with their elements, keyed by
/// `@name`.
pub(crate) struct Context<'a> {
    pub local: &'a BTreeSet<IpAddr>,
    pub named: BTreeMap<String, &'a Value>,
}

/// A field of a packet that shows whether it is addressed to the node, and to which port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Field {
    /// The destination port of one of these protocols (`NODE_PORT_*` bits).
    Port(u32),
    Protocol,
    Destination,
    /// `fib daddr type`.
    DestinationType,
    Other,
}

impl Field {
    fn read(key: &Value) -> Self {
        let payload = |key: &Value| {
            let of = |name: &str| key["payload"][name].as_str().unwrap_or_default();
            match (of("protocol"), of("field")) {
                ("th", "dport") => Self::Port(u32::MAX),
                (protocol, "dport") => Self::Port(protocol_bit(protocol)),
                ("ip", "protocol") | ("ip6", "nexthdr") => Self::Protocol,
                ("ip" | "ip6", "daddr") => Self::Destination,
                _ => Self::Other,
            }
        };
        if key["meta"]["key"] == "l4proto" {
            return Self::Protocol;
        }
        if key["fib"]["result"] == "type" && key["fib"]["flags"] == serde_json::json!(["daddr"]) {
            return Self::DestinationType;
        }
        if key["ct"]["dir"] == "original" {
            return match key["ct"]["key"].as_str() {
                Some("proto-dst") => Self::Port(u32::MAX),
                Some("daddr" | "ip daddr" | "ip6 daddr") => Self::Destination,
                _ => Self::Other,
            };
        }
        payload(key)
    }

    /// Returns all ports that can have the field.
    fn any(self) -> PortSet {
        match self {
            Self::Port(mask) => PortSet::of(mask, &Ranges::all()),
            _ => PortSet::all(),
        }
    }

    /// Returns all ports for which the field is one of `elements`.
    fn one_of(self, elements: &[&Value], local: &BTreeSet<IpAddr>) -> PortSet {
        self.ports_matching(elements, false, local)
            .unwrap_or_else(|| self.any())
    }

    /// Returns the ports for which the field is one of `elements` (none of them, if `not`), or
    /// `None` if an element is not supported.
    fn ports_matching(
        self,
        elements: &[&Value],
        not: bool,
        local: &BTreeSet<IpAddr>,
    ) -> Option<PortSet> {
        if elements.iter().any(|element| *element == "*") {
            return None;
        }
        match self {
            Self::Port(mask) => {
                let ports: Ranges = elements
                    .iter()
                    .map(|port| ports(port))
                    .collect::<Option<_>>()?;
                let ports = if not { ports.complement() } else { ports };
                Some(PortSet::of(mask, &ports))
            }
            Self::Protocol => {
                let bits = elements.iter().map(|protocol| match protocol {
                    Value::String(name) => Some(protocol_bit(name)),
                    number => Some(protocol_bit(&number.as_u64()?.to_string())),
                });
                let mask = bits
                    .collect::<Option<Vec<_>>>()?
                    .iter()
                    .fold(0, |a, b| a | b);
                let mask = if not { !mask } else { mask };
                Some(PortSet::of(mask, &Ranges::all()))
            }
            Self::Destination => {
                let is = elements.iter().any(|element| match address_range(element) {
                    Some((first, last)) => has_between(first, last, local),
                    None => net(element).is_none_or(|net| may_be_node(&[net], false, local)),
                });
                if !not {
                    return Some(if is {
                        PortSet::all()
                    } else {
                        PortSet::default()
                    });
                }
                let nets: Vec<_> = elements.iter().map(|e| net(e)).collect::<Option<_>>()?;
                let other = nets.is_empty() || may_be_node(&nets, true, local);
                Some(if other {
                    PortSet::all()
                } else {
                    PortSet::default()
                })
            }
            Self::DestinationType => {
                let is_local = elements.iter().any(|element| *element == "local");
                Some(if is_local == not {
                    PortSet::default()
                } else {
                    PortSet::all()
                })
            }
            Self::Other => None,
        }
    }
}

/// Parses `80`, or `{"range": [80, 90]}`.
fn ports(element: &Value) -> Option<(u16, u16)> {
    let port = |value: &Value| u16::try_from(value.as_u64()?).ok();
    if let Some(range) = element.get("range") {
        return Some((port(&range[0])?, port(&range[1])?));
    }
    let one = port(element)?;
    Some((one, one))
}

fn address_range(element: &Value) -> Option<(IpAddr, IpAddr)> {
    let end = |value: &Value| value.as_str()?.parse().ok();
    let range = element.get("range")?;
    Some((end(&range[0])?, end(&range[1])?))
}

/// Parses an address, or `{"prefix": {"addr": …, "len": …}}`.
pub(crate) fn net(element: &Value) -> Option<IpNet> {
    if let Some(prefix) = element.get("prefix") {
        let length = u8::try_from(prefix["len"].as_u64()?).ok()?;
        return IpNet::new(prefix["addr"].as_str()?.parse().ok()?, length).ok();
    }
    let address: IpAddr = element.as_str()?.parse().ok()?;
    Some(IpNet::from(address))
}

/// Returns an element without its attributes, such as a comment.
pub(crate) fn bare(element: &Value) -> &Value {
    element.get("elem").map_or(element, |inner| &inner["val"])
}

/// Returns the elements of a set or map, named or anonymous; the value itself if it is neither.
pub(crate) fn elements<'a>(value: &'a Value, context: &Context<'a>) -> Option<Vec<&'a Value>> {
    let set = match value.as_str() {
        Some(name) if name.starts_with('@') => *context.named.get(name)?,
        _ => value.get("set").unwrap_or(value),
    };
    Some(match set {
        // A named set without elements.
        Value::Null => Vec::new(),
        Value::Array(all) => all.iter().collect(),
        one => vec![one],
    })
}

/// Returns the ports of packets with one of these elements as the key.
fn keyed(key: &Value, keys: &[&Value], context: &Context<'_>) -> PortSet {
    let Some(parts) = key["concat"].as_array() else {
        let keys: Vec<_> = keys.iter().map(|key| bare(key)).collect();
        return Field::read(key).one_of(&keys, context.local);
    };
    let fields: Vec<_> = parts.iter().map(Field::read).collect();
    let any = fields
        .iter()
        .fold(PortSet::all(), |all, field| all.intersection(&field.any()));
    let mut set = PortSet::default();
    for element in keys {
        let values = bare(element)["concat"].as_array();
        let Some(values) = values.filter(|values| values.len() == fields.len()) else {
            return any;
        };
        let mut one = any.clone();
        for (field, value) in fields.iter().zip(values) {
            one = one.intersection(&field.one_of(&[bare(value)], context.local));
        }
        set.extend(&one);
    }
    set
}

/// Returns the ports of packets that match a `match` expression.
fn matched(condition: &Value, context: &Context<'_>) -> PortSet {
    let (left, right) = (&condition["left"], &condition["right"]);
    // Bits of a field: the protocol is known all the same.
    let field = Field::read(left.get("&").map_or(left, |both| &both[0]));
    let any = field.any();
    if left.get("&").is_some() {
        return any;
    }
    let number = || u16::try_from(right.as_u64()?).ok();
    let compared = |mask: u32, op: &str| {
        let port = number()?;
        let below = |end: u16| Ranges::one(0, end);
        let ports = match op {
            "<" => port.checked_sub(1).map_or_else(Ranges::default, below),
            "<=" => below(port),
            ">" => below(port).complement(),
            ">=" => port
                .checked_sub(1)
                .map_or_else(Ranges::all, |p| below(p).complement()),
            _ => return None,
        };
        Some(PortSet::of(mask, &ports))
    };
    match condition["op"].as_str().unwrap_or_default() {
        "==" | "in" => elements(right, context).map_or(any, |keys| keyed(left, &keys, context)),
        "!=" if left.get("concat").is_none() => elements(right, context)
            .and_then(|keys| {
                let keys: Vec<_> = keys.iter().map(|key| bare(key)).collect();
                field.ports_matching(&keys, true, context.local)
            })
            .unwrap_or(any),
        op => match field {
            Field::Port(mask) => compared(mask, op).unwrap_or(any),
            _ => any,
        },
    }
}

/// Returns the key and the value of each element of a map; `None` if they are unknown.
pub(crate) fn pairs<'a>(
    data: &'a Value,
    context: &Context<'a>,
) -> Option<Vec<(&'a Value, &'a Value)>> {
    let pair = |element: &'a Value| Some((element.get(0)?, element.get(1)?));
    elements(data, context)?.into_iter().map(pair).collect()
}

/// Returns the ports of packets for which a statement finds a new destination: the keys of its map,
/// if it uses one.
fn redirected_ports(statement: &Value, context: &Context<'_>) -> PortSet {
    let mut set = PortSet::all();
    for part in [&statement["addr"], &statement["port"]] {
        let map = &part["map"];
        if map.is_object()
            && let Some(pairs) = pairs(&map["data"], context)
        {
            let keys: Vec<_> = pairs.into_iter().map(|(key, _)| key).collect();
            set = set.intersection(&keyed(&map["key"], &keys, context));
        }
    }
    set
}

fn chain(verdict: &Value) -> Option<BranchTarget> {
    let target = ["jump", "goto"]
        .into_iter()
        .find_map(|kind| verdict[kind]["target"].as_str())?;
    Some(BranchTarget::Chain(target.into()))
}

/// Returns the targets of ingress packets.
pub(crate) fn branches(expressions: &Value, context: &Context<'_>) -> Vec<Branch> {
    let mut found = Vec::new();
    let mut ports = PortSet::all();
    for expression in expressions.as_array().into_iter().flatten() {
        if let Some(condition) = expression.get("match") {
            ports = ports.intersection(&matched(condition, context));
            if ports.is_empty() {
                break;
            }
        } else if let Some(vmap) = expression.get("vmap") {
            // If the elements are unknown, so are the chains.
            for (key, verdict) in pairs(&vmap["data"], context).unwrap_or_default() {
                if let Some(target) = chain(verdict) {
                    let ports = ports.intersection(&keyed(&vmap["key"], &[key], context));
                    found.push(Branch { ports, target });
                }
            }
        } else if let Some(target) = chain(expression) {
            let ports = ports.clone();
            found.push(Branch { ports, target });
        } else {
            let statement = ["dnat", "redirect", "tproxy"]
                .into_iter()
                .find_map(|kind| expression.get(kind));
            // A target of iptables-nft, if nft reads its tables.
            let target = expression["xt"]["name"].as_str();
            if let Some(statement) = statement {
                let ports = ports.intersection(&redirected_ports(statement, context));
                let target = BranchTarget::Redirect;
                found.push(Branch { ports, target });
            } else if let Some("DNAT" | "REDIRECT" | "NETMAP" | "TPROXY") = target {
                let ports = ports.clone();
                let target = BranchTarget::Redirect;
                found.push(Branch { ports, target });
            }
        }
    }
    found.retain(|branch| !branch.ports.is_empty());
    found
}
