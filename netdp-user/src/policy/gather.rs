//! Content of `netdp policy`: the policy in force from the maps, origins from the agent's report,
//! counts from the maps and the ledger.

use super::keeper::Clock;
use super::ledger::{Amount, Key, Ledger, MapsId};
use super::{json, text};
use crate::cli::output::write_out;
use crate::codes::Code;
use crate::datapath::{Maps, NumberedPolicy, RuleCounts};
use crate::report::{ConfigReport, Report};
use crate::state_dir::StateDir;
use crate::time::{self, pretty};
use anyhow::{Context as _, Result, bail};
use ipnet::IpNet;
use netdp_common::layout::{Action, SETTING_IPV6, Traffic};
use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::path::Path;

/// Origin of rules that no document contains.
const BUILT_IN: &str = "built-in";

/// Selection that a user asks for.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Query {
    /// Only rules that were not hit; with a time, that were not hit for so many seconds.
    pub unused: Option<Option<u64>>,
    /// Only rules that cover this address.
    pub destination: Option<IpAddr>,
    /// Print JSON.
    pub json: bool,
}

/// The policy with its counts.
#[derive(Debug)]
pub(crate) struct View {
    pub agent_runs: bool,
    /// From the agent's report, if it wrote one.
    pub config: Option<ConfigReport>,
    /// Time from which on counts are known, in seconds since 1970.
    pub since: Option<u64>,
    /// Reason why counts are not known, if so.
    pub problem: Option<String>,
    /// The rules, each before those in it; last all other destinations, if there may be any.
    pub rows: Vec<Row>,
    /// Prefixes that the policy has lost within a day, and when, in seconds since 1970.
    pub removed: Vec<(Row, u64)>,
    /// Time at which this was read, in seconds since 1970.
    pub now: u64,
}

/// A rule with its counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Row {
    pub prefix: Key,
    /// Number of rules around it.
    pub depth: usize,
    pub action: Action,
    /// Its origin; `None` if the report does not have it.
    pub origin: Option<String>,
    pub counts: Option<Counts>,
    /// Codes of findings about it.
    pub codes: Vec<Code>,
}

/// The counts of a rule.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub amount: Amount,
    /// Time of the last hit, in seconds since 1970; 0 for never.
    pub last: u64,
    /// True if there were hits after `last` at an unknown time.
    pub later: bool,
}

impl Counts {
    /// Reports whether the rule was never hit.
    pub(super) const fn is_unused(&self) -> bool {
        self.amount.packets == 0 && self.amount.flows == 0
    }
}

/// An entry that no packet has needed.
pub(super) const NEVER_HIT: Code = Code::NeverHit;

/// An entry that changes nothing.
pub(super) const CHANGES_NOTHING: Code = Code::NoEffect;

/// Prints the policy with its counts.
///
/// # Errors
/// Returns an error if there are no maps, or they can't be read.
pub(crate) fn print(bpffs: &Path, state_dir: &Path, query: &Query) -> Result<()> {
    write_out(&output(bpffs, state_dir, query)?, query.json)
}

/// Returns the output of `netdp policy`.
///
/// # Errors
/// Returns the errors of [`print()`].
pub(crate) fn output(bpffs: &Path, state_dir: &Path, query: &Query) -> Result<String> {
    let view = View::gather(bpffs, state_dir)?;
    view.check_span(query)?;
    if query.json {
        return json::text(&view, query);
    }
    text::text(&view, query)
}

impl View {
    /// Reads the policy and its counts.
    ///
    /// # Errors
    /// Returns an error if there are no maps, or they can't be read.
    pub(crate) fn gather(bpffs: &Path, state_dir: &Path) -> Result<Self> {
        let maps = Maps::open(bpffs).with_context(|| {
            format!(
                "no datapath in {}; is netdp in eBPF mode here, and with this --bpffs?",
                bpffs.display()
            )
        })?;
        let dir = StateDir::at(state_dir);
        let report = Report::read(&dir).ok();
        let now = time::now();
        let policy = maps.numbered_policy()?;
        let counted = Counted::read(&maps, &dir, &policy, now);
        let (counted, problem) = match counted {
            Ok(counted) => (Some(counted), None),
            Err(err) => (None, Some(format!("{err:#}"))),
        };
        let config = report.map(|report| report.config);
        let origins = origins(config.as_ref());
        let ipv6 = maps.settings()?.flags & SETTING_IPV6 != 0;
        let mut rows = rows(&policy, &origins, ipv6);
        for row in &mut rows {
            row.counts = counted.as_ref().and_then(|it| it.of(row.prefix));
            row.codes = codes(row);
        }
        mark_without_effect(&mut rows);
        Ok(Self {
            agent_runs: dir.lock_holder().is_some(),
            since: counted.as_ref().map(|it| it.since),
            removed: counted.map(|it| it.removed()).unwrap_or_default(),
            config,
            problem,
            rows,
            now,
        })
    }

    /// Returns an error if it is not known which rules were unused for as long as a user asks.
    ///
    /// # Errors
    /// Returns an error if there are no counts, or if they began later.
    pub(super) fn check_span(&self, query: &Query) -> Result<()> {
        let Some(unused) = query.unused else {
            return Ok(());
        };
        let Some(since) = self.since else {
            let why = self.problem.as_deref().unwrap_or("there are no counts");
            bail!("which rules were unused is not known: {why}");
        };
        let span = self.now.saturating_sub(since);
        if let Some(seconds) = unused
            && span < seconds
        {
            bail!(
                "which rules were unused for so long is not known: counts began {} ago; ask for less, or \
                 give --unused without a time",
                pretty(span)
            );
        }
        Ok(())
    }

    /// Returns the rows that a user asks for.
    pub(super) fn selected(&self, query: &Query) -> Vec<&Row> {
        let covers = |row: &Row| match (query.destination, row.prefix) {
            (Some(address), Some(prefix)) => prefix.contains(&address),
            _ => true,
        };
        let is_unused = |row: &Row| match (query.unused, row.counts) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(None), Some(counts)) => counts.is_unused(),
            (Some(Some(seconds)), Some(counts)) => {
                counts.is_unused()
                    || !counts.later && counts.last.saturating_add(seconds) <= self.now
            }
        };
        let rows = self.rows.iter();
        rows.filter(|row| covers(row) && is_unused(row)).collect()
    }
}

/// The counts of all prefixes.
struct Counted {
    ledger: Ledger,
    counts: RuleCounts,
    live: HashMap<Key, (Traffic, u32)>,
    clock: Clock,
    since: u64,
}

impl Counted {
    fn read(maps: &Maps, state_dir: &StateDir, policy: &NumberedPolicy, now: u64) -> Result<Self> {
        let id = MapsId::of(maps.counts_id()?)?;
        let ledger = Ledger::read(state_dir, &id)?;
        let mut ledger = ledger.context("no agent of this version has counted yet")?;
        // The agent may not have done so yet; here it is not saved.
        ledger.follow(policy, None, maps, now)?;
        let clock = Clock::read(maps, now)?;
        // Before the mappings: what ends meanwhile is missing rather than counted twice.
        let counts = maps.rule_counts()?;
        let mut finder = ledger.finder();
        let mut live: HashMap<Key, (Traffic, u32)> = HashMap::new();
        maps.for_each_sent(|tuple, half, sent| {
            let key = finder.find(tuple.dst);
            let (sum, last) = live
                .entry(key)
                .or_insert((Traffic::default(), half.last_seen));
            sum.add(&sent);
            if half.last_seen.wrapping_sub(*last).cast_signed() > 0 {
                *last = half.last_seen;
            }
        })?;
        Ok(Self {
            since: ledger.since,
            ledger,
            counts,
            live,
            clock,
        })
    }

    /// Returns the counts of a prefix; `None` if they are not known.
    fn of(&self, key: Key) -> Option<Counts> {
        let entry = self.ledger.entries.get(&key)?;
        if entry.numbers.is_empty() {
            return None;
        }
        let (sent, last) = match self.live.get(&key) {
            Some((sent, last)) if entry.removed == 0 => (*sent, self.clock.time(*last)),
            _ => (Traffic::default(), 0),
        };
        let amount = Ledger::amount(entry, &self.counts, sent);
        let (read_at, clock) = (self.ledger.read_at, &self.clock);
        let hit = Ledger::last(entry, &self.counts, read_at, |tick| clock.time(tick));
        let known = hit.known.max(last);
        let later = hit.later && known < read_at;
        let counts = Counts {
            amount,
            last: if later { read_at } else { known },
            later,
        };
        // What happened before counting began has left a time in the maps.
        let is_since = !counts.is_unused();
        Some(if is_since { counts } else { Counts::default() })
    }

    fn removed(&self) -> Vec<(Row, u64)> {
        let gone = self.ledger.entries.iter();
        let gone = gone.filter(|(_, entry)| entry.removed != 0);
        gone.filter_map(|(key, entry)| {
            let row = Row {
                prefix: Some((*key)?),
                depth: 0,
                action: Action::Masquerade,
                origin: None,
                counts: self.of(*key),
                codes: Vec::new(),
            };
            Some((row, entry.removed))
        })
        .collect()
    }
}

/// Returns the origins in the agent's report, by prefix.
fn origins(config: Option<&ConfigReport>) -> BTreeMap<IpNet, String> {
    let rules = config.into_iter().flat_map(|config| &config.rules);
    let origins = rules.filter_map(|rule| Some((rule.prefix.parse().ok()?, rule.origin.clone())));
    origins.collect()
}

/// Returns the rules of a policy, each before those in it, and last all other destinations, if rules
/// leave any. `ipv6`: IPv6 is translated too.
fn rows(policy: &NumberedPolicy, origins: &BTreeMap<IpNet, String>, ipv6: bool) -> Vec<Row> {
    let mut rules: Vec<_> = policy.rules().collect();
    rules.sort_by_key(|(prefix, _)| *prefix);
    let has_root = |v4: bool| {
        rules
            .iter()
            .any(|(it, _)| it.prefix_len() == 0 && it.addr().is_ipv4() == v4)
    };
    let is_complete = has_root(true) && (!ipv6 || has_root(false));
    let mut around: Vec<IpNet> = Vec::new();
    let mut rows: Vec<_> = rules
        .into_iter()
        .map(|(prefix, value)| {
            while around.last().is_some_and(|it| !it.contains(&prefix)) {
                around.pop();
            }
            let depth = around.len();
            around.push(prefix);
            Row {
                prefix: Some(prefix),
                depth,
                action: Action::from_raw(value.action),
                origin: origins.get(&prefix).cloned(),
                counts: None,
                codes: Vec::new(),
            }
        })
        .collect();
    if is_complete {
        return rows;
    }
    rows.push(Row {
        prefix: None,
        depth: 0,
        action: Action::Masquerade,
        origin: Some(BUILT_IN.into()),
        counts: None,
        codes: Vec::new(),
    });
    rows
}

/// Returns the codes of findings that follow from a rule's counts.
fn codes(row: &Row) -> Vec<Code> {
    let is_unused = row.counts.is_some_and(|counts| counts.is_unused());
    match is_written(row) && is_unused {
        true => vec![NEVER_HIT],
        false => Vec::new(),
    }
}

/// Reports whether a document has the rule.
fn is_written(row: &Row) -> bool {
    let origin = row.origin.as_ref();
    row.prefix.is_some() && origin.is_some_and(|it| it != BUILT_IN && !it.starts_with("--"))
}

/// Marks written rules with the action that their destinations would have without them.
fn mark_without_effect(rows: &mut [Row]) {
    let mut around: Vec<Action> = Vec::new();
    for row in rows {
        around.truncate(row.depth);
        let outer = around.last().copied().unwrap_or(Action::Masquerade);
        if outer == row.action && is_written(row) {
            row.codes.insert(0, CHANGES_NOTHING);
        }
        around.push(row.action);
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::{Action, Counts, NEVER_HIT, Query, Row, View, codes, mark_without_effect, rows};
    use crate::datapath::NumberedPolicy;
    use crate::policy::ledger::Amount;
    use crate::report::ConfigReport;

    /// Returns a row with these packets, hit a minute before the time of [`view`].
    pub(crate) fn row(prefix: &str, depth: usize, action: Action, packets: u64) -> Row {
        Row {
            prefix: prefix.parse().ok(),
            depth,
            action,
            origin: Some("kube-system/ip-masq-agent/config:3".into()),
            counts: Some(Counts {
                amount: Amount {
                    packets,
                    bytes: packets * 1_000,
                    flows: if action == Action::Masquerade {
                        packets / 10
                    } else {
                        0
                    },
                },
                last: if packets == 0 { 0 } else { 1_000_000 - 60 },
                later: false,
            }),
            codes: Vec::new(),
        }
    }

    /// Returns a view at 1,000,000 s since 1970 with counts of nine days.
    pub(crate) fn view() -> View {
        let mut rows = vec![
            row("10.0.0.0/8", 0, Action::Bypass, 91_204_113),
            row("10.2.0.0/24", 1, Action::Masquerade, 0),
            row("fd00::/8", 0, Action::Bypass, 12),
            row("", 0, Action::Masquerade, 10_221),
        ];
        rows[1].codes = vec![NEVER_HIT];
        let mut removed = row("10.9.0.0/16", 0, Action::Masquerade, 7);
        removed.origin = None;
        View {
            agent_runs: true,
            config: Some(ConfigReport {
                hash: "a030bc85a030bc85".into(),
                generation: 7,
                applied_at: 1_000_000 - 2 * 86_400,
                source: "files".into(),
                ..ConfigReport::default()
            }),
            since: Some(1_000_000 - 9 * 86_400),
            problem: None,
            rows,
            removed: vec![(removed, 1_000_000 - 3_600)],
            now: 1_000_000,
        }
    }

    #[test]
    fn a_rule_like_the_one_around_it_changes_nothing() {
        let mut rows = vec![
            row("10.0.0.0/8", 0, Action::Bypass, 1),
            row("10.1.0.0/16", 1, Action::Bypass, 1),
            row("10.1.1.0/24", 2, Action::Masquerade, 1),
            row("10.2.0.0/16", 1, Action::Masquerade, 1),
            row("192.0.2.0/24", 0, Action::Masquerade, 1),
        ];
        mark_without_effect(&mut rows);
        let marked: Vec<_> = rows.iter().map(|row| !row.codes.is_empty()).collect();
        assert_eq!(marked, [false, true, false, false, true]);
    }

    #[test]
    fn rules_are_nested_and_may_leave_nothing_else() {
        let rules = [("0.0.0.0/0", 0), ("10.0.0.0/8", 1), ("10.2.0.0/16", 2)];
        let policy = NumberedPolicy::of(1, None, &rules);
        let shown = |ipv6| {
            let rows = rows(&policy, &[].into(), ipv6);
            let brief = rows.iter().map(|row| (row.prefix.is_some(), row.depth));
            brief.collect::<Vec<_>>()
        };
        assert_eq!(shown(false), [(true, 0), (true, 1), (true, 2)]);
        assert_eq!(shown(true).last(), Some(&(false, 0)));
    }

    #[test]
    fn only_written_entries_are_called_unused() {
        let mut unused = row("10.0.0.0/8", 0, Action::Bypass, 0);
        assert_eq!(codes(&unused), [NEVER_HIT]);
        unused.origin = Some(super::BUILT_IN.into());
        assert!(codes(&unused).is_empty());
        assert!(codes(&row("10.0.0.0/8", 0, Action::Bypass, 1)).is_empty());
    }

    #[test]
    fn unused_rules_and_those_of_an_address_are_selected() {
        let view = view();
        let count = |query: Query| view.selected(&query).len();
        assert_eq!(count(Query::default()), 4);
        let unused = |unused| Query {
            unused: Some(unused),
            ..Query::default()
        };
        assert_eq!(count(unused(None)), 1);
        assert_eq!(count(unused(Some(61))), 1);
        assert_eq!(count(unused(Some(60))), 4);
        let destination = "10.2.0.17".parse().ok();
        let chain = Query {
            destination,
            ..Query::default()
        };
        assert_eq!(count(chain), 3);
    }
}
