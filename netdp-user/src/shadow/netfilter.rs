//! Which rule of the nat table netfilter followed.

use crate::conntrack::Flow;
use crate::iptables::{Backend, Family, Iptables, Table};
use ipnet::IpNet;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// How long what was read counts.
const FRESH: Duration = Duration::from_secs(5);

/// The words by which k8s-custom-iptables marks its rules.
const CUSTOM: &str = "custom-iptables-";

/// What the chains that netdp would replace do with a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Did {
    /// This rule masquerades it.
    Masquerade(String),
    /// They leave it alone; by which rule, or that there is none.
    Not(String),
    /// The rules can't be read.
    Unknown(String),
}

/// Whoever knows the rules.
pub(super) trait Rules {
    fn did(&mut self, flow: &Flow) -> Did;
}

/// The nat tables as they were a moment ago.
#[derive(Debug)]
pub(super) struct NatTables {
    chain: String,
    /// With the family, of both backends.
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
                    // One backend is enough.
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

/// Walks through the chain `chain` and the rules of k8s-custom-iptables, as POSTROUTING does.
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

/// What of a rule's text tells which connections it is for.
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
                // Its argument is no option, whatever it says.
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
            // POSTROUTING comes after destinations were replaced.
            && within(&self.destination, flow.reply.source)
            && self.protocol.is_none_or(|name| is_protocol(name, flow.protocol))
    }
}

/// `-s` and `-d` as iptables-save writes them.
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

/// The words of a rule; what stands in quotes is one.
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
