//! Measurements on all beds in interleaved rounds.

use super::bed::{Bed, Offloads};
use super::connections;
use super::cost::Cost;
use super::generator::{Generator, Sink};
use super::latency;
use super::load::{Direction, Flows, Load};
use super::result::{Cell, Row};
use super::throughput::{self, Protocol};
use super::tracking::Tracking;
use crate::shell;
use anyhow::{Context as _, Result, ensure};
use std::time::Duration;

/// Packets per burst; more if there are more flows than that.
const BURST: u32 = 100_000;

/// Packets of the first burst, which estimates how many new flows a bed can handle.
const FIRST: u32 = 2_000;
/// Approximate duration of the following measurement of new flows, in seconds, up to [`BURST`]
/// flows.
const NEW_SECONDS: f64 = 0.3;

/// The beds and the measuring programs.
pub struct Lab {
    pub beds: Vec<Bed>,
    pub generator: Generator,
    pub rounds: usize,
    /// Duration of a run of iperf3 and similar programs.
    pub slice: Duration,
    pub rows: Vec<Row>,
    /// Failed measurements and their errors.
    pub failed: Vec<String>,
    pub tracking: Tracking,
}

/// Name and unit of a row, and how to present it.
pub struct About {
    pub what: String,
    pub unit: &'static str,
    pub curve: Option<(String, f64)>,
    pub higher_is_better: bool,
}

impl Lab {
    /// Measures all beds in turn, starting each round with another bed.
    pub fn interleave(
        &mut self,
        about: About,
        mut measure: impl FnMut(&mut Bed, &mut Generator) -> Result<Option<f64>>,
    ) -> Result<()> {
        shell::progress(&format!("{}, {} rounds", about.what, self.rounds));
        let mut cells: Vec<Cell> = self.beds.iter().map(|bed| Cell::new(bed.variant)).collect();
        let count = self.beds.len();
        let mut failed = vec![false; count];
        for round in 0..self.rounds {
            for index in (0..count).map(|n| (n + round) % count) {
                let bed = &mut self.beds[index];
                if failed[index] {
                    continue;
                }
                match measure(bed, &mut self.generator) {
                    Ok(sample) => cells[index].samples.extend(sample),
                    // The error must not discard an hour of other results.
                    Err(err) => {
                        let what = format!("{}: {}: {err:#}", bed.variant.name, about.what);
                        shell::progress(&format!("FAILED: {what}"));
                        self.failed.push(what);
                        failed[index] = true;
                        cells[index].samples.clear();
                    }
                }
            }
        }
        cells.retain(|cell| !cell.samples.is_empty());
        let row = Row {
            what: about.what,
            unit: about.unit,
            cidrs: self.beds.first().map_or(0, |bed| bed.cidrs),
            curve: about.curve,
            higher_is_better: about.higher_is_better,
            cells,
        };
        super::table::print_row(&row);
        self.rows.push(row);
        Ok(())
    }

    /// Replaces netdp's tables by ones with room for this many flows.
    pub fn resize(&mut self, max_flows: u32) -> Result<()> {
        shell::progress(&format!("netdp's tables: {max_flows} flows"));
        self.beds
            .iter_mut()
            .try_for_each(|bed| bed.resize(max_flows))
    }

    /// Attaches sinks at both ends of every bed.
    pub fn sinks(&mut self) -> Result<Vec<Sink>> {
        let mut sinks = Vec::new();
        for bed in &self.beds {
            sinks.push(self.generator.sink(&bed.client, "eth0")?);
            sinks.push(self.generator.sink(&bed.server, "eth0")?);
        }
        Ok(sinks)
    }

    /// Measures packets per second.
    pub fn packets(
        &mut self,
        load: Load,
        curve: Option<(String, f64)>,
        cpus: &[usize],
    ) -> Result<()> {
        let what = match cpus.len() {
            1 => format!("packets, {load}"),
            cpus => format!("packets, {load}, {cpus} CPUs"),
        };
        self.packets_as(what, load, curve, cpus)
    }

    /// Measures packets per second under another row name.
    pub fn packets_as(
        &mut self,
        what: String,
        load: Load,
        curve: Option<(String, f64)>,
        cpus: &[usize],
    ) -> Result<()> {
        self.warm_up(load, cpus)?;
        let about = About {
            what,
            unit: "packets/s",
            curve,
            higher_is_better: true,
        };
        self.interleave(about, |bed, generator| {
            if !bed.bears(load) {
                return Ok(None);
            }
            burst(bed, generator, load, cpus).map(Some)
        })
    }

    /// Measures the run time of the TC programs. `tables` describes the tables in the name of the
    /// row.
    pub fn cost(&mut self, load: Load, tables: &str) -> Result<()> {
        self.warm_up(load, &[0])?;
        let about = About {
            what: format!("the program's own time, {load}{tables}"),
            unit: "ns/packet",
            curve: None,
            higher_is_better: false,
        };
        let cost = Cost::enable()?;
        self.interleave(about, |bed, generator| {
            let Some((pid, program)) = bed.program(load.direction) else {
                return Ok(None);
            };
            let before = cost.of(pid, program)?;
            burst(bed, generator, load, &[0])?;
            Ok(Some(cost.of(pid, program)?.since(before)))
        })
    }

    fn warm_up(&mut self, load: Load, cpus: &[usize]) -> Result<()> {
        let first = Load {
            direction: Direction::Original,
            ..load
        };
        for index in 0..self.beds.len() {
            let Self {
                beds, generator, ..
            } = self;
            let bed = &mut beds[index];
            for load in [first, load] {
                if bed.bears(load) {
                    burst(bed, generator, load, cpus)?;
                }
            }
        }
        Ok(())
    }

    pub fn throughput(&mut self, protocol: Protocol, offloads: Offloads) -> Result<()> {
        let servers = self.each(throughput::serve)?;
        for bed in &self.beds {
            bed.set_offloads(offloads)?;
        }
        let (kind, state) = (protocol.name(), offloads.name());
        let about = About {
            what: format!("{kind} throughput, offloads {state}"),
            unit: "Gbit/s",
            curve: None,
            higher_is_better: true,
        };
        let slice = self.slice;
        let mut cpu: Vec<Cell> = self.beds.iter().map(|bed| Cell::new(bed.variant)).collect();
        self.interleave(about, |bed, _| {
            let run = throughput::run(bed, protocol, slice)?;
            let cell = cpu.iter_mut().find(|cell| cell.variant == bed.variant.name);
            cell.context("no such test bed")?
                .samples
                .push(run.cpu_per_gigabyte);
            Ok(Some(run.gigabits))
        })?;
        drop(servers);
        self.retain_measured(&mut cpu);
        self.rows.push(Row {
            what: format!("CPU for {kind}, offloads {state}"),
            unit: "s/GB",
            cidrs: self.beds.first().map_or(0, |bed| bed.cidrs),
            curve: None,
            higher_is_better: false,
            cells: cpu,
        });
        for bed in &self.beds {
            bed.set_offloads(Offloads::On)?;
        }
        Ok(())
    }

    pub fn latency(&mut self) -> Result<()> {
        let servers = self.each(latency::serve)?;
        let slice = self.slice;
        let mut rest: Vec<Vec<Cell>> = Vec::new();
        for _ in latency::PERCENTILES {
            rest.push(self.beds.iter().map(|bed| Cell::new(bed.variant)).collect());
        }
        let about = About {
            what: format!("latency, percentile {}", latency::FIRST),
            unit: "µs",
            curve: None,
            higher_is_better: false,
        };
        self.interleave(about, |bed, _| {
            let found = latency::run(bed, slice)?;
            for (cells, value) in rest.iter_mut().zip(&found.others) {
                let cell = cells
                    .iter_mut()
                    .find(|cell| cell.variant == bed.variant.name);
                cell.context("no such test bed")?.samples.push(*value);
            }
            Ok(Some(found.first))
        })?;
        drop(servers);
        for (percentile, mut cells) in latency::PERCENTILES.iter().zip(rest) {
            self.retain_measured(&mut cells);
            let row = Row {
                what: format!("latency, percentile {percentile}"),
                unit: "µs",
                cidrs: self.beds.first().map_or(0, |bed| bed.cidrs),
                curve: None,
                higher_is_better: false,
                cells,
            };
            super::table::print_row(&row);
            self.rows.push(row);
        }
        Ok(())
    }

    pub fn connections(&mut self, curve: Option<(String, f64)>) -> Result<()> {
        let servers = self.each(connections::serve)?;
        let slice = self.slice;
        let about = About {
            what: "connections".into(),
            unit: "1/s",
            curve,
            higher_is_better: true,
        };
        self.interleave(about, |bed, _| connections::run(bed, slice).map(Some))?;
        drop(servers);
        for bed in &self.beds {
            bed.forget_flows()?;
        }
        Ok(())
    }

    /// Removes the cells of variants without a result in the last row: they failed.
    fn retain_measured(&self, cells: &mut Vec<Cell>) {
        let last = self.rows.last();
        cells.retain(|cell| last.is_some_and(|row| row.cell(cell.variant).is_some()));
    }

    fn each<T>(&self, start: impl Fn(&Bed) -> Result<T>) -> Result<Vec<T>> {
        self.beds.iter().map(start).collect()
    }
}

/// Sends one burst and returns its packets per second.
pub fn burst(bed: &Bed, generator: &mut Generator, load: Load, cpus: &[usize]) -> Result<f64> {
    let count = match load.flows {
        Flows::Live(flows) => BURST.max(flows),
        // Long chains of rules make each new flow expensive.
        Flows::New => {
            let rate = one_burst(bed, generator, load, FIRST, cpus)?;
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "casts of floats saturate"
            )]
            let room = (rate * NEW_SECONDS) as u32;
            room.clamp(FIRST, BURST)
        }
    };
    one_burst(bed, generator, load, count, cpus)
}

fn one_burst(
    bed: &Bed,
    generator: &mut Generator,
    load: Load,
    count: u32,
    cpus: &[usize],
) -> Result<f64> {
    let burst = generator.send(bed, load, count, cpus)?;
    ensure!(burst.received > 0, "no packet arrived");
    generator.check(bed, load)?;
    if load.flows == Flows::New {
        bed.forget_flows()?;
    }
    Ok(burst.rate())
}
