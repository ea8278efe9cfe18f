//! Endpoints of services: where native rules of nftables that change destinations, such as kube-proxy's in
//! that mode, send a new connection. From the JSON of libnftables-json(5).

use super::assess::is_named;
use super::nft::{self, TableName, objects};
use super::nft_redirect::{Context, bare, elements, net, pairs};
use super::owner;
use super::service::{Connection, Doubts, Endpoint, MAX_DEPTH, Service, Then};
use serde_json::Value;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

/// Chain of kube-proxy that has it masquerade the packets that go through it.
const MARK: &str = "mark-for-masquerade";

/// Chains of kube-proxy that have the name of a service, after these words and a hash.
const NAMED: [&str; 2] = ["service-", "external-"];

/// Finds the service in the NAT chains of a table, of which this is the listing.
pub(super) fn of_table(
    table: &TableName,
    roots: &[String],
    listing: &Value,
    connection: &Connection<'_>,
) -> Option<Service> {
    let mut chains: BTreeMap<&str, Vec<&Value>> = BTreeMap::new();
    for rule in objects(listing, "rule") {
        let chain = rule["chain"].as_str().unwrap_or_default();
        chains.entry(chain).or_default().push(&rule["expr"]);
    }
    for root in roots {
        let mut walk = Walk {
            chains: &chains,
            context: nft::context(listing, connection.local),
            connection,
            table,
            path: Vec::new(),
            is_marked: false,
            found: None,
            doubts: Doubts::default(),
        };
        let then = walk.chain(root);
        if let Some(mut found) = walk.found {
            found.doubt = walk.doubts.of(then);
            return Some(found);
        }
    }
    None
}

struct Walk<'a> {
    chains: &'a BTreeMap<&'a str, Vec<&'a Value>>,
    context: Context<'a>,
    connection: &'a Connection<'a>,
    table: &'a TableName,
    /// Names of the chains from the base chain on.
    path: Vec<&'a str>,
    is_marked: bool,
    found: Option<Service>,
    doubts: Doubts,
}

impl<'a> Walk<'a> {
    fn chain(&mut self, name: &'a str) -> Then {
        let chains = self.chains;
        let Some(rules) = chains.get(name) else {
            return Then::Returns;
        };
        if self.path.len() == MAX_DEPTH || self.path.contains(&name) {
            return Then::Returns;
        }
        let was_marked = self.is_marked;
        self.path.push(name);
        let mut may_return = None;
        let mut then = Then::Returns;
        for rule in rules {
            let (is_certain, after) = self.rule(rule);
            if let Some(after) = self.doubts.settle(after, is_certain, &mut may_return, || {
                format!("chain {name} of table {}", self.table.name)
            }) {
                then = after;
                break;
            }
        }
        self.path.pop();
        self.is_marked = was_marked;
        then
    }

    /// Follows a rule. Returns whether the packet certainly meets it, and what it then does.
    fn rule(&mut self, rule: &'a Value) -> (bool, Then) {
        let mut is_certain = true;
        for part in rule.as_array().into_iter().flatten() {
            if let Some(condition) = part.get("match") {
                match self.meets(condition) {
                    Some(true) => {}
                    Some(false) => return (true, Then::GoesOn),
                    None => is_certain = false,
                }
            } else if let Some(map) = part.get("vmap") {
                let (certain, then) = self.map(&map["key"], &map["data"], is_certain);
                return (is_certain && certain, then);
            } else if let Some(statement) = part.get("dnat") {
                self.add(statement);
                let place = self.place();
                self.doubts.redirect(|| place);
                return (is_certain, Then::Redirected);
            } else {
                match self.verdict(part, is_certain) {
                    Then::GoesOn => {}
                    then => return (is_certain, then),
                }
            }
        }
        (is_certain, Then::GoesOn)
    }

    fn place(&self) -> String {
        let chain = self.path.last().copied().unwrap_or_default();
        format!("chain {chain} of table {}", self.table.name)
    }

    /// Follows a verdict; other statements let the packet go on.
    fn verdict(&mut self, verdict: &'a Value, is_certain: bool) -> Then {
        let Some((kind, of)) = verdict.as_object().and_then(|it| it.iter().next()) else {
            return Then::GoesOn;
        };
        match kind.as_str() {
            "return" => Then::Returns,
            "accept" | "drop" | "reject" | "redirect" => Then::Ends,
            "jump" | "goto" => {
                let target = of["target"].as_str().unwrap_or_default();
                if target == MARK {
                    self.is_marked |= is_certain;
                    return Then::GoesOn;
                }
                match self.chain(target) {
                    Then::Returns | Then::GoesOn if kind == "goto" => Then::Returns,
                    Then::Returns | Then::GoesOn => Then::GoesOn,
                    then => then,
                }
            }
            _ => Then::GoesOn,
        }
    }

    /// Follows the verdicts of a map that the packet may get.
    fn map(&mut self, key: &Value, data: &'a Value, is_certain: bool) -> (bool, Then) {
        let Some(pairs) = pairs(data, &self.context) else {
            return (false, Then::GoesOn);
        };
        let is_random = key.get("numgen").is_some() || key.get("jhash").is_some();
        let mut fates = Vec::new();
        for (element, verdict) in pairs {
            match self.is_one(key, bare(element)) {
                Some(true) => return (true, self.verdict(verdict, is_certain)),
                Some(false) => {}
                None => fates.push(self.verdict(verdict, is_certain && is_random)),
            }
        }
        let first = fates.first().copied().unwrap_or(Then::GoesOn);
        // A number that is drawn gets one of them.
        let is_same = is_random && fates.iter().all(|fate| *fate == first);
        let mixed = fates.into_iter().find(|fate| *fate != Then::GoesOn);
        (is_same, mixed.unwrap_or(Then::GoesOn))
    }

    /// Reports whether the packet is as a condition says; `None` if that is unknown.
    fn meets(&self, condition: &Value) -> Option<bool> {
        let (left, right) = (&condition["left"], &condition["right"]);
        let among = elements(right, &self.context)?;
        let mut is_unknown = false;
        let mut is = false;
        for element in among {
            match self.is_one(left, bare(element)) {
                Some(true) => is = true,
                Some(false) => {}
                None => is_unknown = true,
            }
        }
        let is = (is || !is_unknown).then_some(is)?;
        match condition["op"].as_str() {
            Some("==" | "in") => Some(is),
            Some("!=") => Some(!is),
            _ => None,
        }
    }

    /// Reports whether a field of the packet is an element; `None` if that is unknown.
    fn is_one(&self, field: &Value, element: &Value) -> Option<bool> {
        if element == "*" {
            return None;
        }
        if let Some(fields) = field["concat"].as_array() {
            let elements = element["concat"].as_array()?;
            let each = fields.iter().zip(elements);
            let all: Vec<_> = each.map(|(field, it)| self.is_one(field, it)).collect();
            return match all.contains(&Some(false)) {
                true => Some(false),
                false => all.into_iter().collect::<Option<Vec<_>>>().map(|_| true),
            };
        }
        let connection = self.connection;
        if field["fib"]["result"] == "type" {
            let is_of_destination = field["fib"]["flags"] == serde_json::json!(["daddr"]);
            let is_local = connection.local.contains(&connection.dst.ip());
            return (is_of_destination && element == "local").then_some(is_local);
        }
        if let Some(key) = field["meta"]["key"].as_str() {
            return match key {
                "l4proto" => self.is_protocol(element),
                "iifname" => {
                    // nft has `*` at the end of a pattern.
                    let pattern = element.as_str()?.replace('*', "+");
                    Some(is_named(connection.came_by?, &pattern))
                }
                _ => None,
            };
        }
        let payload = &field["payload"];
        let protocol = payload["protocol"].as_str()?;
        match (protocol, payload["field"].as_str()?) {
            ("ip" | "ip6", "daddr") => is_address(connection.dst.ip(), element),
            ("ip" | "ip6", "saddr") => is_address(connection.src?, element),
            ("ip", "protocol") | ("ip6", "nexthdr") => self.is_protocol(element),
            ("th", "dport") => is_port(connection.dst.port(), element),
            (_, "dport") => match self.is_protocol(&payload["protocol"])? {
                true => is_port(connection.dst.port(), element),
                false => Some(false),
            },
            _ => None,
        }
    }

    fn is_protocol(&self, element: &Value) -> Option<bool> {
        let number = match element.as_str() {
            Some("tcp") => 6,
            Some("udp") => 17,
            Some("sctp") => 132,
            Some("icmp") => 1,
            Some("ipv6-icmp" | "icmpv6") => 58,
            Some(_) => return None,
            None => element.as_u64()?,
        };
        Some(number == u64::from(self.connection.protocol))
    }

    /// Adds the destinations of a statement.
    fn add(&mut self, statement: &Value) {
        let (address, port) = (&statement["addr"], &statement["port"]);
        let all = match address.get("map") {
            None => vec![address],
            Some(map) => match pairs(&map["data"], &self.context) {
                Some(pairs) => pairs.into_iter().map(|(_, value)| value).collect(),
                None => return,
            },
        };
        for address in all {
            let (address, port) = match address["concat"].as_array().map(Vec::as_slice) {
                Some([address, port]) => (address, port),
                _ => (address, port),
            };
            let Some(address) = address.as_str().and_then(|it| it.parse::<IpAddr>().ok()) else {
                continue;
            };
            let port = port.as_u64().and_then(|port| u16::try_from(port).ok());
            let to = SocketAddr::new(address, port.unwrap_or(self.connection.dst.port()));
            let names = self.path.iter().copied().chain([self.table.name.as_str()]);
            let service = self.found.get_or_insert_with(|| Service {
                owner: owner::owner(&names.collect::<Vec<_>>(), ""),
                name: self.path.iter().find_map(|chain| name(chain)),
                endpoints: Vec::new(),
                doubt: None,
            });
            if !service.endpoints.iter().any(|known| known.to == to) {
                service.endpoints.push(Endpoint {
                    to,
                    is_marked: self.is_marked,
                });
            }
        }
    }
}

/// Returns the name of the service of a chain `service-HASH-NAMESPACE/NAME/PROTOCOL/PORT` of kube-proxy.
fn name(chain: &str) -> Option<String> {
    let rest = NAMED.iter().find_map(|words| chain.strip_prefix(words))?;
    let (_, rest) = rest.split_once('-')?;
    let parts: Vec<_> = rest.split('/').collect();
    match *parts.as_slice() {
        [namespace, name, _, ""] => Some(format!("{namespace}/{name}")),
        [namespace, name, _, port] => Some(format!("{namespace}/{name}:{port}")),
        _ => None,
    }
}

fn is_address(address: IpAddr, element: &Value) -> Option<bool> {
    if let Some(range) = element.get("range") {
        let end = |value: &Value| value.as_str()?.parse::<IpAddr>().ok();
        return Some((end(&range[0])?..=end(&range[1])?).contains(&address));
    }
    Some(net(element)?.contains(&address))
}

fn is_port(port: u16, element: &Value) -> Option<bool> {
    if let Some(range) = element.get("range") {
        let port = u64::from(port);
        return Some((range[0].as_u64()?..=range[1].as_u64()?).contains(&port));
    }
    Some(element.as_u64()? == u64::from(port))
}

#[cfg(test)]
mod tests {
    use super::super::nft::TableName;
    use super::super::service::{Connection, Service};
    use super::{name, of_table};
    use serde_json::{Value, json};
    use std::collections::BTreeSet;

    const KUBE_PROXY: &str = include_str!("tests/kube-proxy.json");

    fn service(listing: &Value, protocol: u8, src: Option<&str>, dst: &str) -> Option<Service> {
        let local: BTreeSet<_> = ["10.1.0.10".parse().unwrap()].into();
        let connection = Connection {
            src: src.map(|src| src.parse().unwrap()),
            dst: dst.parse().unwrap(),
            protocol,
            came_by: Some("cni0"),
            local: &local,
        };
        let table = TableName {
            family: "ip".into(),
            name: "kube-proxy".into(),
        };
        of_table(&table, &["nat-prerouting".to_owned()], listing, &connection)
    }

    #[test]
    fn maps_of_kube_proxy_lead_to_the_endpoints() {
        let listing = serde_json::from_str(KUBE_PROXY).unwrap();
        // A NodePort, which it masquerades.
        let found = service(&listing, 6, Some("172.16.0.2"), "10.1.0.10:3001").unwrap();
        let name = found.name.as_deref();
        assert_eq!((found.owner, name), ("kube-proxy", Some("ns1/svc1:p80")));
        // One of its two endpoints is of SCTP: half the connections get none.
        assert!(found.doubt.is_some());
        let ends = found.endpoints.iter();
        let ends: Vec<_> = ends.map(|it| (it.to.to_string(), it.is_marked)).collect();
        assert_eq!(ends, [("10.180.0.1:80".to_owned(), true)]);
        for (protocol, dst) in [
            (6, "10.1.0.10:3003"),
            (17, "10.1.0.10:3001"),
            (6, "10.2.0.1:3001"),
        ] {
            assert_eq!(service(&listing, protocol, None, dst), None, "{dst}");
        }
    }

    fn rules(rules: &Value) -> Value {
        let rule = |it: &Value| json!({"rule": {"chain": it[0], "expr": it[1]}});
        json!({"nftables": rules.as_array().unwrap().iter().map(rule).collect::<Vec<_>>()})
    }

    #[test]
    fn a_drawn_number_gets_one_of_all() {
        let number = json!({"numgen": {"mode": "random", "mod": 2, "offset": 0}});
        let listing = rules(&json!([
            ["nat-prerouting", [{"vmap": {"key": number, "data": {"set": [
                [0, {"goto": {"target": "a"}}], [1, {"goto": {"target": "b"}}]]}}}]],
            ["a", [{"dnat": {"addr": "10.2.0.1", "port": 8080}}]],
            ["b", [{"dnat": {"addr": {"map": {"key": number, "data": {"set": [
                [0, {"concat": ["10.2.0.2", 8081]}], [1, {"concat": ["10.2.0.3", 8081]}]]}}}}}]],
        ]));
        let found = service(&listing, 6, None, "10.96.0.1:80").unwrap();
        let ends: Vec<_> = found.endpoints.iter().map(|it| it.to.to_string()).collect();
        assert_eq!(ends, ["10.2.0.1:8080", "10.2.0.2:8081", "10.2.0.3:8081"]);
        assert_eq!(found.doubt, None);
    }

    #[test]
    fn what_can_not_be_judged_leaves_a_doubt() {
        let marked = json!({"match": {"op": "==", "left": {"meta": {"key": "mark"}}, "right": 1}});
        let port = json!({"match": {"op": "==", "right": 80,
            "left": {"payload": {"protocol": "tcp", "field": "dport"}}}});
        let to = json!({"dnat": {"addr": "10.2.0.1"}});
        let of = |all: &Value| service(&rules(all), 6, None, "10.96.0.1:80").unwrap();
        let found = of(&json!([["nat-prerouting", [marked, port, to]]]));
        assert_eq!(found.endpoints[0].to.to_string(), "10.2.0.1:80");
        let doubt = found.doubt.unwrap();
        assert_eq!(doubt, "chain nat-prerouting of table kube-proxy");
        let found = of(&json!([["nat-prerouting", [port, to]]]));
        assert_eq!(found.doubt, None);
        let escapes = json!([
            ["nat-prerouting", [marked, {"return": null}]],
            ["nat-prerouting", [port, to]],
        ]);
        assert!(of(&escapes).doubt.is_some());
        // A map by the mark, which may have no element for it.
        let by_mark = json!([
            ["nat-prerouting", [{"vmap": {"key": {"meta": {"key": "mark"}},
                "data": {"set": [[1, {"goto": {"target": "a"}}]]}}}]],
            ["a", [to]],
        ]);
        assert!(of(&by_mark).doubt.is_some());
        assert_eq!(service(&rules(&escapes), 17, None, "10.96.0.1:80"), None);
    }

    #[test]
    fn chains_have_the_names_of_services() {
        let of = |chain| name(chain);
        assert_eq!(
            of("service-AAAA-shop/db/tcp/sql").as_deref(),
            Some("shop/db:sql")
        );
        assert_eq!(of("external-AAAA-shop/db/udp/").as_deref(), Some("shop/db"));
        assert_eq!(of("services"), None);
    }
}
