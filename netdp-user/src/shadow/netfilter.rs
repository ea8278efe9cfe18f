//! Search for the nat rule that netfilter applied.

use crate::iptables::{Backend, Iptables, RuleOption, RuleOptions, Table};
use crate::nf_conntrack::Flow;
use crate::upstream::custom_iptables::COMMENT_PREFIX;
use netdp_common::layout::Family;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// Time for which tables that were read remain valid.
const TABLE_LIFETIME: Duration = Duration::from_secs(5);

/// Result of the chains that netdp would replace, for a connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum NetfilterOutcome {
    /// Masqueraded, by this rule.
    Masqueraded(String),
    /// Not masqueraded, by this rule or because none matches.
    Untranslated(String),
    /// The rules cannot be read.
    Unknown(String),
}

/// Source of netfilter's rules.
pub(super) trait NetfilterRules {
    fn outcome(&mut self, flow: &Flow) -> NetfilterOutcome;
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
        if self
            .read
            .is_some_and(|read| read.elapsed() < TABLE_LIFETIME)
        {
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

impl NetfilterRules for NatTables {
    fn outcome(&mut self, flow: &Flow) -> NetfilterOutcome {
        self.refresh();
        let family = Family::of(flow.original.source);
        let tables = self.tables.iter().filter(|(of, _)| *of == family);
        let mut not = None;
        for (_, table) in tables {
            match evaluate(table, &self.chain, flow) {
                NetfilterOutcome::Untranslated(rule)
                    if not.is_none() || table.chains.contains_key(&self.chain) =>
                {
                    not = Some(NetfilterOutcome::Untranslated(rule));
                }
                NetfilterOutcome::Untranslated(_) => {}
                other => return other,
            }
        }
        not.unwrap_or_else(|| {
            NetfilterOutcome::Unknown(
                self.problem
                    .clone()
                    .unwrap_or_else(|| "no nat table can be read".into()),
            )
        })
    }
}

/// Evaluates the chain `chain` and the rules of k8s-custom-iptables, as POSTROUTING does.
pub(super) fn evaluate(table: &Table, chain: &str, flow: &Flow) -> NetfilterOutcome {
    let mut not = format!("there is no chain {chain}");
    if table.chains.contains_key(chain) {
        not = format!("no rule of {chain} matches");
    }
    for rule in table.rules(chain) {
        let options = RuleOptions::parse(&rule.text);
        if !matches(&options, flow) {
            continue;
        }
        let text = format!("-A {chain} {}", rule.text);
        match options.target() {
            Some("MASQUERADE" | "SNAT") => return NetfilterOutcome::Masqueraded(text),
            Some("RETURN" | "ACCEPT") => {
                not = text;
                break;
            }
            _ => {}
        }
    }
    for rule in table.rules("POSTROUTING") {
        let options = RuleOptions::parse(&rule.text);
        let masquerades = options.target() == Some("MASQUERADE");
        if masquerades && options.has_comment(COMMENT_PREFIX) && matches(&options, flow) {
            return NetfilterOutcome::Masqueraded(format!("-A POSTROUTING {}", rule.text));
        }
    }
    NetfilterOutcome::Untranslated(not)
}

/// Reports whether a flow meets the conditions of a rule, as far as they are about addresses and
/// protocols.
fn matches(rule: &RuleOptions<'_>, flow: &Flow) -> bool {
    let is_within = |option: &RuleOption<'_, '_>, ip: IpAddr| {
        let net = option.net();
        net.is_none_or(|net| net.contains(&ip) != option.inverted)
    };
    rule.iter().all(|option| match option.name {
        "-s" => is_within(&option, flow.original.source),
        // POSTROUTING runs after destination NAT.
        "-d" => is_within(&option, flow.reply.source),
        "-p" => option.is_protocol(flow.protocol) != option.inverted,
        _ => true,
    })
}
