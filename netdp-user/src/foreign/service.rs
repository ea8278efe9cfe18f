//! Endpoints of services: where rules that change destinations, such as kube-proxy's, send a new
//! connection; those of iptables.

use super::assess::is_named;
use super::owner;
use crate::iptables::{Backend, Iptables, RuleOption, RuleOptions, Table, has_table};
use netdp_common::layout::Family;
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

/// Chain of kube-proxy that has it masquerade the packets that go through it.
const MARK: &str = "KUBE-MARK-MASQ";

/// Maximum depth of jumps, as in the kernel.
pub(super) const MAX_DEPTH: usize = 16;

/// The first packet of a connection.
#[derive(Debug, Clone)]
pub(crate) struct Connection<'a> {
    /// Source address; `None` if it is not known.
    pub src: Option<IpAddr>,
    /// Destination, before anything has changed it.
    pub dst: SocketAddr,
    /// IP protocol number.
    pub protocol: u8,
    /// Name of the interface by which it comes to the node; `None` if that is not known.
    pub came_by: Option<&'a str>,
    /// Addresses of the node.
    pub local: &'a BTreeSet<IpAddr>,
}

/// A service that a connection is addressed to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Service {
    /// Likely author of its rules.
    pub owner: &'static str,
    /// Its name, if a rule's comment begins with one: `namespace/name:port`.
    pub name: Option<String>,
    /// Destinations of which each connection gets one, each once.
    pub endpoints: Vec<Endpoint>,
    /// The first rule that decides, by what is not known of the packet, whether it gets one of them at all;
    /// `None` if it certainly does.
    pub doubt: Option<String>,
}

/// An endpoint of a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Endpoint {
    /// Its address and port.
    pub to: SocketAddr,
    /// True if kube-proxy also masquerades the packets to it.
    pub is_marked: bool,
}

/// Finds the service that a connection is addressed to, by the rules of both kinds of iptables, and native ones of
/// nftables; `None` if no rule changes its destination, or rules can't be read.
#[must_use]
pub(crate) fn service(connection: &Connection<'_>) -> Option<Service> {
    let family = Family::of(connection.dst.ip());
    [Backend::Nft, Backend::Legacy]
        .into_iter()
        .filter(|backend| *backend == Backend::Nft || has_table(family, "nat"))
        .filter_map(|backend| Iptables { family, backend }.read().ok())
        .find_map(|table| of_table(&table, connection))
        .or_else(|| super::scan::nft_service(connection))
}

/// Finds the service in one table.
fn of_table(table: &Table, connection: &Connection<'_>) -> Option<Service> {
    let mut walk = Walk {
        table,
        connection,
        path: vec!["PREROUTING"],
        name: None,
        is_marked: false,
        found: None,
        doubts: Doubts::default(),
    };
    let then = walk.chain("PREROUTING");
    let mut found = walk.found?;
    found.doubt = walk.doubts.of(then);
    Some(found)
}

/// The fate of a packet after a rule or a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Then {
    /// It may meet the next rule.
    GoesOn,
    /// It certainly returns to the chain that it came from.
    Returns,
    /// It certainly meets no more rules, and keeps its destination.
    Ends,
    /// It certainly gets another destination.
    Redirected,
}

/// The rules that decide by what is not known of a packet.
#[derive(Debug, Default)]
pub(super) struct Doubts {
    /// The first by which it may end with its destination.
    may_escape: Option<String>,
    /// The first by which it may leave a chain that would change its destination.
    may_skip: Option<String>,
    /// The first by which it gets another destination, or may.
    may_redirect: Option<String>,
}

impl Doubts {
    /// Returns the fate of a chain after a rule with this fate, `None` if it is not settled yet. `may_return` is the
    /// first rule of the chain by which the packet may have left it before.
    pub(super) fn settle(
        &mut self,
        then: Then,
        is_certain: bool,
        may_return: &mut Option<String>,
        rule: impl FnOnce() -> String,
    ) -> Option<Then> {
        match (then, is_certain) {
            (Then::GoesOn, _) | (Then::Redirected, false) => None,
            (Then::Returns, true) => Some(Then::Returns),
            (Then::Returns, false) => {
                may_return.get_or_insert_with(rule);
                None
            }
            (Then::Ends, false) => {
                self.may_escape.get_or_insert_with(rule);
                None
            }
            (Then::Ends | Then::Redirected, true) => Some(match may_return.take() {
                None => then,
                Some(by) => {
                    self.may_skip.get_or_insert(by);
                    Then::Returns
                }
            }),
        }
    }

    /// Notes a rule that changes the destination, if the packet gets there.
    pub(super) fn redirect(&mut self, rule: impl FnOnce() -> String) {
        self.may_redirect.get_or_insert_with(rule);
    }

    /// Returns the rule because of which a packet with this fate may keep its destination, if it may.
    pub(super) fn of(self, then: Then) -> Option<String> {
        match then {
            Then::Redirected => self.may_escape,
            _ => self.may_escape.or(self.may_skip).or(self.may_redirect),
        }
    }
}

struct Walk<'a> {
    table: &'a Table,
    connection: &'a Connection<'a>,
    /// Names of the chains from the first on.
    path: Vec<&'a str>,
    name: Option<String>,
    is_marked: bool,
    found: Option<Service>,
    doubts: Doubts,
}

impl<'a> Walk<'a> {
    fn chain(&mut self, chain: &str) -> Then {
        let mut may_return = None;
        for rule in self.table.rules(chain) {
            let options = RuleOptions::parse(&rule.text);
            let Some(is_certain) = self.meets(&options) else {
                continue;
            };
            let then = self.target(&rule.text, &options, is_certain);
            let text = || rule.text.clone();
            if let Some(then) = self.doubts.settle(then, is_certain, &mut may_return, text) {
                return then;
            }
        }
        Then::Returns
    }

    /// Follows the target of a rule, whose conditions the packet certainly meets, or may.
    fn target(&mut self, rule: &'a str, options: &RuleOptions<'_>, is_certain: bool) -> Then {
        let mut all = options.iter();
        let Some(jump) = all.find(|option| matches!(option.name, "-j" | "-g")) else {
            return Then::GoesOn;
        };
        match jump.value() {
            "RETURN" => Then::Returns,
            "ACCEPT" | "DROP" | "REDIRECT" | "NETMAP" => Then::Ends,
            "DNAT" => {
                self.add(rule, options);
                self.doubts.redirect(|| rule.to_owned());
                Then::Redirected
            }
            MARK => {
                self.is_marked |= is_certain;
                Then::GoesOn
            }
            name => {
                let Some((name, _)) = self.table.chains.get_key_value(name) else {
                    return Then::GoesOn;
                };
                if self.path.len() == MAX_DEPTH || self.path.contains(&name.as_str()) {
                    return Then::GoesOn;
                }
                let (named, was_marked) = (self.name.clone(), self.is_marked);
                if let Some(comment) = comment(options) {
                    self.name = Some(comment);
                }
                self.path.push(name);
                let then = self.chain(name);
                self.path.pop();
                (self.name, self.is_marked) = (named, was_marked);
                match then {
                    Then::Ends | Then::Redirected => then,
                    _ if jump.name == "-g" => Then::Returns,
                    Then::GoesOn | Then::Returns => Then::GoesOn,
                }
            }
        }
    }

    /// Adds the destination of a rule.
    fn add(&mut self, rule: &str, options: &RuleOptions<'_>) {
        let port = self.connection.dst.port();
        let mut all = options.iter();
        let to = all.find(|option| option.name == "--to-destination");
        let Some(to) = to.and_then(|option| destination(option.value(), port)) else {
            return;
        };
        let service = self.found.get_or_insert_with(|| Service {
            owner: owner::owner(&self.path, rule),
            name: self.name.clone(),
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

    /// Reports whether the packet certainly meets all conditions of a rule; `None` if it does not meet
    /// one of them.
    fn meets(&self, options: &RuleOptions<'_>) -> Option<bool> {
        let mut is_certain = true;
        for option in options.iter() {
            match self.meets_one(&option) {
                Some(met) if met == option.inverted => return None,
                Some(_) => {}
                None => is_certain = false,
            }
        }
        Some(is_certain)
    }

    /// Reports whether the packet is as an option says, without its `!`; `None` if that is unknown.
    fn meets_one(&self, option: &RuleOption<'_, '_>) -> Option<bool> {
        let Connection {
            src,
            dst,
            protocol,
            came_by,
            local,
        } = self.connection;
        match option.name {
            "-m" | "-j" | "-g" | "--comment" | "--to-destination" | "--random" | "--persistent" => {
                Some(!option.inverted)
            }
            "-p" => Some(option.is_protocol(*protocol)),
            "-s" => Some(option.net()?.contains(&(*src)?)),
            "-d" => Some(option.net()?.contains(&dst.ip())),
            "--dport" | "--dports" => Some(has_port(option.value(), dst.port())?),
            "--dst-type" if option.value() == "LOCAL" => Some(local.contains(&dst.ip())),
            "-i" => Some(is_named((*came_by)?, option.value())),
            _ => None,
        }
    }
}

/// Reports whether `80,443,8000:8010` has a port; `None` if it is written otherwise.
fn has_port(list: &str, port: u16) -> Option<bool> {
    for part in list.split(',') {
        let (first, last) = part.split_once(':').unwrap_or((part, part));
        if (first.parse().ok()?..=last.parse().ok()?).contains(&port) {
            return Some(true);
        }
    }
    Some(false)
}

/// Returns the first address and port of `A[-B][:PORT[-PORT]]`; without a port, the connection's own.
fn destination(text: &str, port: u16) -> Option<SocketAddr> {
    let alone = text.split('-').next().unwrap_or(text);
    let bare = alone.trim_matches(['[', ']']);
    alone
        .parse()
        .ok()
        .or_else(|| Some((bare.parse::<IpAddr>().ok()?, port).into()))
}

/// Returns the service's name with which kube-proxy begins comments.
fn comment(options: &RuleOptions<'_>) -> Option<String> {
    let mut all = options.iter();
    let comment = all.find(|option| option.name == "--comment")?;
    let name = comment.value().split(' ').next()?;
    name.contains('/').then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::{Connection, Service, of_table};
    use crate::iptables::Table;
    use std::collections::BTreeSet;

    /// Rules as kube-proxy 1.20 writes them.
    const TABLE: &str = "\
*nat
:PREROUTING ACCEPT [0:0]
-A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A KUBE-SERVICES ! -s 172.16.0.0/16 -d 10.96.0.12/32 -p tcp -m comment --comment \"shop/db:sql cluster IP\" -m tcp --dport 80 -j KUBE-MARK-MASQ
-A KUBE-SERVICES -d 10.96.0.12/32 -p tcp -m comment --comment \"shop/db:sql cluster IP\" -m tcp --dport 80 -j KUBE-SVC-A
-A KUBE-SERVICES -m comment --comment \"kubernetes service nodeports\" -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS
-A KUBE-NODEPORTS -p tcp -m comment --comment \"shop/db:sql\" -m tcp --dport 30082 -j KUBE-MARK-MASQ
-A KUBE-NODEPORTS -p tcp -m comment --comment \"shop/db:sql\" -m tcp --dport 30082 -j KUBE-SVC-A
-A KUBE-SVC-A -m comment --comment \"shop/db:sql\" -m statistic --mode random --probability 0.50000000000 -j KUBE-SEP-A
-A KUBE-SVC-A -m comment --comment \"shop/db:sql\" -j KUBE-SEP-B
-A KUBE-SEP-A -s 172.16.0.9/32 -m comment --comment \"shop/db:sql\" -j KUBE-MARK-MASQ
-A KUBE-SEP-A -p tcp -m comment --comment \"shop/db:sql\" -m tcp -j DNAT --to-destination 172.16.0.9:5432
-A KUBE-SEP-B -p tcp -m comment --comment \"shop/db:sql\" -m tcp -j DNAT --to-destination 10.2.0.1:5432
-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000
-A PREROUTING -d 10.1.0.10/32 -p tcp -m tcp --dport 8080 -j DNAT --to-destination 172.16.0.7:80
-A PREROUTING -j DNAT --to-destination 192.0.2.1
COMMIT
";

    fn service_by(table: &str, src: Option<&str>, dst: &str) -> Option<Service> {
        let local: BTreeSet<_> = ["10.1.0.10".parse().unwrap()].into();
        let connection = Connection {
            src: src.map(|src| src.parse().unwrap()),
            dst: dst.parse().unwrap(),
            protocol: 6,
            came_by: Some("cni0"),
            local: &local,
        };
        of_table(&Table::parse(table), &connection)
    }

    fn service(src: Option<&str>, dst: &str) -> Option<Service> {
        service_by(TABLE, src, dst)
    }

    fn endpoints(src: Option<&str>, dst: &str) -> Vec<String> {
        let found = service(src, dst).map(|it| it.endpoints).unwrap_or_default();
        let text = |it: super::Endpoint| {
            let mark = if it.is_marked { " marked" } else { "" };
            format!("{}{mark}", it.to)
        };
        found.into_iter().map(text).collect()
    }

    #[test]
    fn a_service_has_all_its_endpoints() {
        let both = ["172.16.0.9:5432", "10.2.0.1:5432"];
        assert_eq!(endpoints(Some("172.16.0.2"), "10.96.0.12:80"), both);
        let found = service(Some("172.16.0.2"), "10.96.0.12:80").unwrap();
        assert_eq!(
            (found.owner, found.name.as_deref()),
            ("kube-proxy", Some("shop/db:sql"))
        );
    }

    #[test]
    fn what_comes_from_elsewhere_or_by_the_node_is_marked() {
        let both = ["172.16.0.9:5432 marked", "10.2.0.1:5432 marked"];
        assert_eq!(endpoints(Some("192.0.2.9"), "10.96.0.12:80"), both);
        assert_eq!(endpoints(Some("172.16.0.2"), "10.1.0.10:30082"), both);
        let own = ["172.16.0.9:5432 marked", "10.2.0.1:5432"];
        assert_eq!(endpoints(Some("172.16.0.9"), "10.96.0.12:80"), own);
    }

    #[test]
    fn other_ports_are_not_the_services() {
        assert_eq!(
            endpoints(Some("172.16.0.2"), "10.96.0.12:81"),
            ["192.0.2.1:81"]
        );
        assert_eq!(
            endpoints(Some("172.16.0.2"), "10.1.0.10:8080"),
            ["172.16.0.7:80"]
        );
    }

    #[test]
    fn a_rule_that_may_not_apply_leaves_a_doubt() {
        let doubt = |rules: &str| {
            let table = format!("*nat\n:PREROUTING ACCEPT [0:0]\n{rules}COMMIT\n");
            let found = service_by(&table, None, "10.1.0.10:8080");
            found.unwrap().doubt
        };
        let to = "-j DNAT --to-destination 172.16.0.7:80";
        let all = format!("-A PREROUTING -p tcp -m tcp --dport 8080 {to}\n");
        assert_eq!(doubt(&all), None);
        // As Docker writes it: pods don't come by its bridge.
        assert_eq!(
            doubt(&format!("-A PREROUTING ! -i docker0 -p tcp {to}\n")),
            None
        );
        let some = "-p tcp -m mark --mark 0x1 -j DNAT --to-destination 172.16.0.7:80";
        let doubted = doubt(&format!("-A PREROUTING {some}\n"));
        assert_eq!(doubted.as_deref(), Some(some));
        // It gets one of two.
        let both = format!("-A PREROUTING {some}\n{all}");
        assert_eq!(doubt(&both), None);
        // It may return before.
        let exempt = "-m mark --mark 0x1 -j RETURN";
        let doubted = doubt(&format!("-A PREROUTING {exempt}\n{all}"));
        assert_eq!(doubted.as_deref(), Some(exempt));
        assert_eq!(service(None, "10.96.0.12:80").unwrap().doubt, None);
    }
}
