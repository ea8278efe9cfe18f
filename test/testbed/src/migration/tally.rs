//! Counts of the load's connections by outcome.

use comfy_table::{Table, presets::UTF8_FULL_CONDENSED};
use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// Maximum number of kept messages about losses.
const MESSAGES: usize = 10;

/// Kind of a counted connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// TCP that stays open and busy.
    LongTcp,
    /// TCP that stays open and is idle during the handover.
    IdleTcp,
    /// TCP for one request.
    ShortTcp,
    /// A UDP socket that stays open.
    LongUdp,
    /// A UDP socket for one request.
    ShortUdp,
    /// A continuous ping.
    Icmp,
}

impl Kind {
    /// All kinds, in the order of reports.
    pub const ALL: [Self; 6] = [
        Self::LongTcp,
        Self::IdleTcp,
        Self::ShortTcp,
        Self::LongUdp,
        Self::ShortUdp,
        Self::Icmp,
    ];

    const fn name(self) -> &'static str {
        match self {
            Self::LongTcp => "TCP, open throughout",
            Self::IdleTcp => "TCP, open throughout, idle",
            Self::ShortTcp => "TCP, one question each",
            Self::LongUdp => "UDP, one socket throughout",
            Self::ShortUdp => "UDP, one question each",
            Self::Icmp => "ping throughout",
        }
    }
}

#[derive(Debug, Default)]
struct Counts {
    opened: AtomicUsize,
    answers: AtomicUsize,
    lost: AtomicUsize,
}

/// Counters per kind, shared by all threads.
#[derive(Debug, Default)]
pub struct Tally {
    counts: [Counts; Kind::ALL.len()],
    packets_lost: AtomicUsize,
    messages: Mutex<Vec<String>>,
}

impl Tally {
    fn of(&self, kind: Kind) -> &Counts {
        &self.counts[kind as usize]
    }

    pub(super) fn opened(&self, kind: Kind) {
        self.of(kind).opened.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn answered(&self, kind: Kind, count: usize) {
        self.of(kind).answers.fetch_add(count, Ordering::Relaxed);
    }

    pub(super) fn lost(&self, kind: Kind, why: &anyhow::Error) {
        self.of(kind).lost.fetch_add(1, Ordering::Relaxed);
        let mut messages = self.messages.lock().unwrap_or_else(PoisonError::into_inner);
        if messages.len() < MESSAGES {
            messages.push(format!("{}: {why:#}", kind.name()));
        }
    }

    pub(super) fn packets_lost(&self, count: usize) {
        self.packets_lost.fetch_add(count, Ordering::Relaxed);
    }

    /// Returns the number of opened and of lost connections.
    #[must_use]
    pub fn connections(&self) -> (usize, usize) {
        let sum = |of: fn(&Counts) -> &AtomicUsize| {
            let each = self.counts.iter().map(|c| of(c).load(Ordering::Relaxed));
            each.sum()
        };
        (sum(|c| &c.opened), sum(|c| &c.lost))
    }

    /// Returns the number of pings and datagrams without an answer.
    #[must_use]
    pub fn unanswered(&self) -> usize {
        self.packets_lost.load(Ordering::Relaxed)
    }

    /// Returns for each kind: opened, answers, lost.
    #[must_use]
    pub fn kinds(&self) -> Vec<(Kind, usize, usize, usize)> {
        let load = |count: &AtomicUsize| count.load(Ordering::Relaxed);
        let counts = |kind| {
            let c = self.of(kind);
            (kind, load(&c.opened), load(&c.answers), load(&c.lost))
        };
        Kind::ALL.map(counts).into()
    }

    /// Returns the reasons of the first losses.
    #[must_use]
    pub fn messages(&self) -> Vec<String> {
        let messages = self.messages.lock();
        messages.unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", table("connections", &self.kinds()))?;
        for message in self.messages() {
            write!(f, "\n{message}")?;
        }
        Ok(())
    }
}

fn table(title: &str, kinds: &[(Kind, usize, usize, usize)]) -> Table {
    let mut table = Table::new();
    table.load_style(UTF8_FULL_CONDENSED);
    table.set_header([title, "opened", "answers", "lost"]);
    for (kind, opened, answers, lost) in kinds {
        table.add_row([
            kind.name().to_owned(),
            opened.to_string(),
            answers.to_string(),
            lost.to_string(),
        ]);
    }
    table
}

/// Totals of a migration.
#[derive(Debug)]
pub struct Outcome {
    /// Per kind: opened, answers, lost.
    pub kinds: Vec<(Kind, usize, usize, usize)>,
    /// Number of takeovers and rollbacks.
    pub changes: usize,
    /// Packets that left the node with a pod's source address.
    pub leaks: u64,
    /// Connections translated by both netfilter and eBPF.
    pub twice: usize,
    /// Pings and datagrams without an answer; TCP retransmits by itself.
    pub packets_lost: usize,
    /// Reasons of the losses.
    pub messages: Vec<String>,
}

impl Outcome {
    pub(super) fn new(tally: &Tally, changes: usize, leaks: u64, twice: usize) -> Self {
        Self {
            kinds: tally.kinds(),
            changes,
            leaks,
            twice,
            packets_lost: tally.unanswered(),
            messages: tally.messages(),
        }
    }

    /// Returns the number of lost connections.
    #[must_use]
    pub fn lost(&self) -> usize {
        self.kinds.iter().map(|(.., lost)| lost).sum()
    }

    /// Reports whether no connection was lost, no packet leaked and none was translated twice.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.lost() == 0 && self.leaks == 0 && self.twice == 0
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}", table("connections, IPv4 and IPv6", &self.kinds))?;
        writeln!(
            f,
            "changes of hands:                           {}",
            self.changes
        )?;
        writeln!(
            f,
            "connections lost:                           {}",
            self.lost()
        )?;
        writeln!(
            f,
            "packets with a pod's source on the uplink:  {}",
            self.leaks
        )?;
        writeln!(
            f,
            "connections translated twice:               {}",
            self.twice
        )?;
        writeln!(
            f,
            "pings and datagrams without an answer:      {}",
            self.packets_lost
        )?;
        for message in &self.messages {
            writeln!(f, "{message}")?;
        }
        Ok(())
    }
}
