//! The list of mappings: streamed, or sorted where all or the first of them fit into memory.

use super::filter::Selector;
use super::rates::Rates;
use super::rows::RowWriter;
use super::{Format, Look, Options};
use crate::datapath::Flow;
use crate::format::grouped;
use anyhow::{Result, bail, ensure};
use netdp_common::layout::Addr;
use std::cell::Cell;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io::Write;
use std::time::Instant;

/// The most mappings that are sorted without `-n`.
const SORTED: usize = 100_000;

/// The error if there are more.
const TOO_MANY: &str = "more than 100,000 mappings match, which are not sorted without a limit: give -n NUMBER, or filters";

/// The order of rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Sort {
    /// Most bytes in both directions first.
    Bytes,
    /// Most packets in both directions first.
    Packets,
    /// Oldest first.
    Age,
    /// Longest without a packet first.
    Idle,
    /// Most bytes a second since the last look first, in both directions; needs --watch.
    Rate,
}

impl Sort {
    const fn describe(self) -> &'static str {
        match self {
            Self::Bytes => "most bytes first",
            Self::Packets => "most packets first",
            Self::Age => "oldest first",
            Self::Idle => "longest idle first",
            Self::Rate => "most bytes a second first",
        }
    }
}

/// Key by which mappings are ordered: the lowest comes first.
type Rank = (Reverse<u64>, [u8; 16], [u8; 16], u16, u16, u32);

/// An order, with what it needs to know.
#[derive(Debug, Clone, Copy)]
pub(super) struct Order<'a> {
    sort: Option<Sort>,
    rates: Option<&'a Rates>,
}

impl<'a> Order<'a> {
    pub(super) const fn new(sort: Option<Sort>, rates: Option<&'a Rates>) -> Self {
        Self { sort, rates }
    }
}

fn rank(order: Order<'_>, flow: &Flow) -> Rank {
    let by = match order.sort {
        Some(Sort::Bytes) => flow.bytes(),
        Some(Sort::Packets) => flow.packets(),
        Some(Sort::Age) => u64::from(flow.age),
        Some(Sort::Idle) => u64::from(flow.idle),
        // After a rate of 0 comes what is not known.
        Some(Sort::Rate) => {
            let rate = order.rates.and_then(|rates| rates.of(flow));
            rate.map_or(0, |rate| rate.saturating_add(1))
        }
        None => 0,
    };
    let bytes = |address: Addr| *address.octets();
    let tuple = &flow.tuple;
    let (src, dst) = (bytes(tuple.src), bytes(tuple.dst));
    (
        Reverse(by),
        src,
        dst,
        tuple.src_id,
        tuple.dst_id,
        tuple.proto,
    )
}

/// A mapping that is compared by its rank.
struct Ranked(Rank, Flow);

impl PartialEq for Ranked {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

impl Eq for Ranked {}

impl PartialOrd for Ranked {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Ranked {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.0.cmp(&other.0)
    }
}

/// The first mappings of an order, in the memory for these alone.
pub(super) struct First<'a> {
    order: Order<'a>,
    limit: usize,
    /// The last one of the order on top.
    heap: BinaryHeap<Ranked>,
}

impl<'a> First<'a> {
    pub(super) fn new(order: Order<'a>, limit: usize) -> Self {
        Self {
            order,
            limit,
            heap: BinaryHeap::new(),
        }
    }

    pub(super) fn push(&mut self, flow: &Flow) {
        let ranked = Ranked(rank(self.order, flow), *flow);
        if self.heap.len() < self.limit {
            self.heap.push(ranked);
        } else if let Some(mut last) = self.heap.peek_mut()
            && ranked < *last
        {
            *last = ranked;
        }
    }

    /// Returns them in order.
    pub(super) fn into_sorted(self) -> Vec<Flow> {
        let sorted = self.heap.into_sorted_vec().into_iter();
        sorted.map(|ranked| ranked.1).collect()
    }
}

/// The numbers of a walk.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Counts {
    /// Mappings that there are.
    pub all: usize,
    /// Those that pass the filters.
    pub matching: usize,
}

/// Describes what is shown of how much: the first line of the text.
pub(super) fn heading(counts: Counts, shown: usize, options: &Options) -> String {
    let count = |number: usize| grouped(number as u64);
    let all = match counts.all {
        1 => "1 mapping".to_owned(),
        all => format!("{} mappings", count(all)),
    };
    let order = options.sort.map_or("", Sort::describe);
    let order = match order {
        "" => String::new(),
        order => format!(", {order}"),
    };
    let is_cut = shown < counts.matching;
    match (options.filter.is_empty(), is_cut) {
        (true, false) => format!("{all}{order}"),
        (true, true) => format!("{} of {all}{order}", count(shown)),
        (false, false) => format!("{} of {all} match{order}", count(shown)),
        (false, true) => format!(
            "{} of the {} that match, of {all}{order}",
            count(shown),
            count(counts.matching)
        ),
    }
}

/// Prints the mappings that pass the filters.
///
/// # Errors
/// Returns an error if a map can't be read, the output can't be written, or there are too many mappings
/// for the order that was asked for.
pub(super) fn print(look: &Look<'_>, out: &mut dyn Write) -> Result<()> {
    let options = look.options;
    if options.sort == Some(Sort::Rate) {
        return print_by_rate(look, out);
    }
    let order = Order::new(options.sort, None);
    let mut writer = RowWriter::new(options.format, look.names, None, out);
    match options.limit {
        Some(limit) => {
            let mut first = First::new(order, limit);
            let counts = each(look, |flow| {
                first.push(flow);
                Ok(())
            })?;
            let flows = first.into_sorted();
            writer.print_all(&flows, &heading(counts, flows.len(), options))
        }
        None if matches!(options.format, Format::Jsonl | Format::Csv) && options.sort.is_none() => {
            writer.begin("", &[])?;
            each(look, |flow| writer.row(flow))?;
            writer.end()
        }
        None => print_sorted(look, &mut writer),
    }
}

/// Prints mappings by their rates since the last look.
fn print_by_rate(look: &Look<'_>, out: &mut dyn Write) -> Result<()> {
    let options = look.options;
    ensure!(
        options.watch.is_some(),
        "--sort rate compares two looks: give --watch"
    );
    let mut past = look.past.borrow_mut();
    past.rates.begin(Instant::now());
    let rates = &past.rates;
    let order = Order::new(options.sort, Some(rates));
    let mut first = First::new(order, options.limit.unwrap_or(SORTED));
    let mut count = 0;
    let counts = each(look, |flow| {
        count += 1;
        if options.limit.is_none() && count > SORTED {
            bail!(TOO_MANY);
        }
        rates.see(flow);
        first.push(flow);
        Ok(())
    })?;
    let flows = first.into_sorted();
    let mut heading = heading(counts, flows.len(), options);
    if rates.is_first() {
        heading += "; rates are known from the next look on";
    }
    RowWriter::new(options.format, look.names, Some(rates), out).print_all(&flows, &heading)
}

/// Prints all in order, or in no order if there are too many and none was asked for.
fn print_sorted(look: &Look<'_>, writer: &mut RowWriter<'_>) -> Result<()> {
    let options = look.options;
    let order = Order::new(options.sort, None);
    let mut flows = Vec::new();
    let mut is_streaming = false;
    let counts = each(look, |flow| {
        if is_streaming {
            return writer.row(flow);
        }
        if flows.len() < SORTED {
            flows.push(*flow);
            return Ok(());
        }
        if options.sort.is_some() {
            bail!(TOO_MANY);
        }
        is_streaming = true;
        let most = grouped(SORTED as u64);
        let heading = format!("more than {most} mappings, not sorted; -n NUMBER sorts");
        writer.begin(&heading, &flows)?;
        for earlier in flows.drain(..) {
            writer.row(&earlier)?;
        }
        writer.row(flow)
    })?;
    if is_streaming {
        writer.end()?;
        return writer.note(&heading(counts, counts.matching, options));
    }
    flows.sort_unstable_by_key(|flow| rank(order, flow));
    writer.print_all(&flows, &heading(counts, flows.len(), options))
}

/// Calls `each` for every mapping that passes the filters.
///
/// # Errors
/// Returns an error if a map can't be read, and any error of `each`.
pub(super) fn each(look: &Look<'_>, mut each: impl FnMut(&Flow) -> Result<()>) -> Result<Counts> {
    let selector = Selector::new(&look.options.filter, &look.names, look.maps)?;
    let all = Cell::new(0);
    let mut matching = 0;
    look.maps.for_each_flow(
        |tuple, half| {
            all.set(all.get() + 1);
            selector.may_pass(tuple, half)
        },
        |flow| {
            if selector.passes(flow) {
                matching += 1;
                each(flow)?;
            }
            Ok(())
        },
    )?;
    Ok(Counts {
        all: all.get(),
        matching,
    })
}
