//! Search for the nat rule that netfilter applied.

use crate::conntrack::Flow;
use crate::iptables::{Backend, Family, Iptables, Table};
use ipnet::IpNet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Time for which tables that were read remain valid.
const FRESH: Duration = Duration::from_secs(5);

/// Beginning of the comments by which k8s-custom-iptables marks its rules.
const CUSTOM: &str = "custom-iptables-";

/// Result of the chains that netdp would replace, for a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Did {
    /// Masqueraded, by this rule.
    Masquerade(String),
    /// Not masqueraded, by this rule or because none matches.
    Not(String),
    /// The rules cannot be read.
    Unknown(String),
}

/// Source of netfilter's rules.
pub(super) trait Rules {
    fn did(&mut self, flow: &Flow) -> Did;
}

/// A recent snapshot of the nat tables.
#[derive(Debug)]
pub(super) struct NatTables {
    chain: String,
    /// Tables of both backends, with their family.
    tables: Vec<(Family, Table)>,
    problem: Option<String>,
    read: Option<Instant>,
}

impl NatTables {
    pub(super) fn new(chain: &str) -> Self {
        Self {
            chain: chain.into(),
            tables: Vec::new(),
            problem: None,
            read: None,
        }
    }

    fn refresh(&mut self) {
        if self.read.is_some_and(|read| read.elapsed() < FRESH) {
            return;
        }
        self.read = Some(Instant::now());
        self.tables.clear();
        self.problem = None;
        for family in [Family::V4, Family::V6] {
            for backend in [Backend::Nft, Backend::Legacy] {
                match (Iptables { family, backend }).read() {
                    Ok(table) => self.tables.push((family, table)),
                    // One readable backend suffices.
                    Err(err) => self.problem = Some(format!("{err:#}")),
                }
            }
        }
    }
}

impl Rules for NatTables {
    fn did(&mut self, flow: &Flow) -> Did {
        self.refresh();
        let family = match flow.original.source {
            IpAddr::V4(_) => Family::V4,
            IpAddr::V6(_) => Family::V6,
        };
        let tables = self.tables.iter().filter(|(of, _)| *of == family);
        let mut not = None;
        for (_, table) in tables {
            match did(table, &self.chain, flow) {
                Did::Not(rule) if not.is_none() || table.chains.contains_key(&self.chain) => {
                    not = Some(Did::Not(rule));
                }
                Did::Not(_) => {}
                other => return other,
            }
        }
        not.unwrap_or_else(|| {
            Did::Unknown(
                self.problem
                    .clone()
                    .unwrap_or_else(|| "no nat table can be read".into()),
            )
        })
    }
}

/// Evaluates the chain `chain` and the rules of k8s-custom-iptables, as POSTROUTING does.
pub(super) fn did(table: &Table, chain: &str, flow: &Flow) -> Did {
    let mut not = format!("there is no chain {chain}");
    if table.chains.contains_key(chain) {
        not = format!("no rule of {chain} matches");
    }
    for rule in table.rules(chain) {
        let rule = Parsed::read(&rule.text);
        if !rule.matches(flow) {
            continue;
        }
        let text = format!("-A {chain} {}", rule.text);
        match rule.target {
            "MASQUERADE" | "SNAT" => return Did::Masquerade(text),
            "RETURN" | "ACCEPT" => {
                not = text;
                break;
            }
            _ => {}
        }
    }
    for rule in table.rules("POSTROUTING") {
        let parsed = Parsed::read(&rule.text);
        if rule.text.contains(CUSTOM) && parsed.target == "MASQUERADE" && parsed.matches(flow) {
            return Did::Masquerade(format!("-A POSTROUTING {}", rule.text));
        }
    }
    Did::Not(not)
}

/// The match conditions of a rule's text.
struct Parsed<'a> {
    text: &'a str,
    source: Option<(bool, IpNet)>,
    destination: Option<(bool, IpNet)>,
    protocol: Option<&'a str>,
    target: &'a str,
}

impl<'a> Parsed<'a> {
    fn read(text: &'a str) -> Self {
        let mut rule = Parsed {
            text,
            source: None,
            destination: None,
            protocol: None,
            target: "",
        };
        let mut words = words(text).into_iter();
        let mut inverted = false;
        while let Some(word) = words.next() {
            match word {
                "!" => {
                    inverted = true;
                    continue;
                }
                "-s" => rule.source = words.next().and_then(net).map(|net| (inverted, net)),
                "-d" => rule.destination = words.next().and_then(net).map(|net| (inverted, net)),
                "-p" => rule.protocol = words.next(),
                "-j" => rule.target = words.next().unwrap_or_default(),
                // Its argument is no option, whatever its text.
                "--comment" => drop(words.next()),
                _ => {}
            }
            inverted = false;
        }
        rule
    }

    fn matches(&self, flow: &Flow) -> bool {
        let within = |asked: &Option<(bool, IpNet)>, ip: IpAddr| {
            asked.is_none_or(|(inverted, net)| net.contains(&ip) != inverted)
        };
        within(&self.source, flow.original.source)
            // POSTROUTING runs after destination NAT.
            && within(&self.destination, flow.reply.source)
            && self.protocol.is_none_or(|name| is_protocol(name, flow.protocol))
    }
}

/// Parses the argument of `-s` or `-d` as iptables-save writes it.
fn net(word: &str) -> Option<IpNet> {
    word.parse()
        .ok()
        .or_else(|| word.parse::<IpAddr>().ok().map(IpNet::from))
}

fn is_protocol(name: &str, number: u8) -> bool {
    match name {
        "tcp" => number == 6,
        "udp" => number == 17,
        "sctp" => number == 132,
        "icmp" => number == 1,
        "ipv6-icmp" | "icmpv6" => number == 58,
        other => other.parse() == Ok(number),
    }
}

/// Splits a rule into words; a quoted string is one word.
fn words(text: &str) -> Vec<&str> {
    let mut words = Vec::new();
    for (n, part) in text.split('"').enumerate() {
        if n % 2 == 1 {
            words.push(part);
        } else {
            words.extend(part.split_whitespace());
        }
    }
    words
}
