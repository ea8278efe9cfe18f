//! Order and number of the measurements.

use super::Options;
use super::bed::{Bed, Offloads};
use super::load::{Direction, Flows, Load, Servers};
use super::measure::Lab;
use super::throughput::Protocol;
use super::tracking::Buckets;
use super::variant::{self, Measure, Variant};
use crate::shell;
use anyhow::Result;
use std::time::Duration;

/// Maximum number of flows per bed for which the buckets of one node suffice.
const MAX_SHARED_BUCKETS: u32 = 4096;

/// 2^20 (about a million): the largest measured number of flows.
const MANY_FLOWS: u32 = 1 << 20;

/// Suffix of rows measured after very many flows have come and gone. In fresh tables the mappings
/// are in the order in which they are looked up here, and CPUs prefetch sequential accesses; on a
/// node they are anywhere among all entries that existed at the same time.
const USED: &str = ", in used tables";

/// Plan of one run of `cargo xtask bench`.
pub struct Plan {
    pub variants: Vec<&'static Variant>,
    pub rounds: usize,
    pub slice: Duration,
    only: Vec<Measure>,
    /// Capacity of netdp's tables in flows, unless more are measured.
    max_flows: u32,
    flows: &'static [u32],
    cidrs: Vec<u32>,
}

impl Plan {
    pub fn new(options: &Options) -> Self {
        let quick = options.quick;
        Self {
            variants: variants(options),
            rounds: options.rounds.unwrap_or(if quick { 3 } else { 7 }),
            slice: Duration::from_secs(if quick { 1 } else { 2 }),
            only: options.only.clone(),
            max_flows: options.max_flows,
            flows: if quick {
                &[1, 4096]
            } else {
                &[1, 64, 1024, 4096, 65_536, MANY_FLOWS]
            },
            cidrs: match (&options.cidrs[..], quick) {
                ([], true) => vec![10, 4_000],
                ([], false) => vec![10, 1_000, 4_000, 30_000, 100_000],
                (chosen, _) => {
                    // Above certain numbers some variants are left out.
                    let mut chosen = chosen.to_vec();
                    chosen.sort_unstable();
                    chosen.dedup();
                    chosen
                }
            },
        }
    }

    fn wants(&self, measure: Measure) -> bool {
        self.only.is_empty() || self.only.contains(&measure)
    }

    pub fn carry_out(&self, lab: &mut Lab) -> Result<()> {
        if self.wants(Measure::Packets) {
            self.packets(lab)?;
        }
        if self.wants(Measure::Cpus) {
            lab.resize(self.max_flows)?;
            let _sinks = lab.sinks()?;
            for load in [OUT_MANY, BYPASSED] {
                lab.packets(load, None, &[0, 1])?;
            }
        }
        if self.wants(Measure::Cost) {
            lab.resize(self.max_flows)?;
            let _sinks = lab.sinks()?;
            for load in [
                OUT_ONE,
                BACK_ONE,
                OUT_MANY,
                BACK_MANY,
                BYPASSED,
                BYPASSED_PAIRS,
                NEW,
            ] {
                lab.cost(load, "")?;
            }
            for load in [OUT_MANY, BACK_MANY] {
                lab.cost(load, USED)?;
            }
        }
        if self.only.contains(&Measure::New) {
            lab.resize(self.max_flows)?;
            let _sinks = lab.sinks()?;
            lab.packets(NEW, None, &[0])?;
            lab.cost(NEW, "")?;
        }
        if self.only.contains(&Measure::See) {
            lab.see(&[OUT_ONE, OUT_MANY, BYPASSED, NEW], self.max_flows)?;
        }
        forget_flows(lab)?;
        if self.wants(Measure::Throughput) {
            for offloads in [Offloads::On, Offloads::Off] {
                for protocol in [Protocol::Tcp, Protocol::Udp] {
                    lab.throughput(protocol, offloads)?;
                }
            }
        }
        if self.wants(Measure::Latency) {
            lab.latency()?;
        }
        self.by_cidrs(lab)
    }

    fn packets(&self, lab: &mut Lab) -> Result<()> {
        let _sinks = lab.sinks()?;
        for &flows in self.flows {
            lab.tracking.set_buckets(if flows > MAX_SHARED_BUCKETS {
                Buckets::Many
            } else {
                Buckets::Original
            })?;
            if flows > self.max_flows {
                lab.resize(flows)?;
            }
            let load = Load {
                flows: Flows::Live(flows),
                ..OUT_ONE
            };
            let curve = ("packets/s by live flows".to_owned(), f64::from(flows));
            lab.packets(load, Some(curve), &[0])?;
        }
        if self.flows.iter().any(|flows| *flows > self.max_flows) {
            lab.resize(self.max_flows)?;
        }
        forget_flows(lab)?;
        lab.tracking.set_buckets(Buckets::Original)?;
        for load in [BACK_ONE, BACK_MANY, BYPASSED, BYPASSED_PAIRS] {
            lab.packets(load, None, &[0])?;
        }
        forget_flows(lab)?;
        lab.packets(NEW, None, &[0])?;
        let what = format!("packets, {OUT_MANY}{USED}");
        lab.packets_as(what, OUT_MANY, None, &[0])?;
        forget_flows(lab)
    }

    fn by_cidrs(&self, lab: &mut Lab) -> Result<()> {
        for &cidrs in &self.cidrs {
            if ![Measure::Packets, Measure::Connections, Measure::Reload]
                .iter()
                .any(|measure| self.wants(*measure))
            {
                continue;
            }
            shell::progress(&format!("putting {cidrs} CIDRs in force"));
            lab.beds.retain(|bed| cidrs <= bed.variant.max_cidrs);
            for bed in &mut lab.beds {
                if bed.cidrs != cidrs {
                    bed.set_cidrs(cidrs)?;
                }
            }
            let curve = |name: &str| Some((format!("{name} by CIDRs"), f64::from(cidrs)));
            if self.wants(Measure::Packets) {
                // Fresh tables, so that each number starts from the same state.
                lab.resize(self.max_flows)?;
                let _sinks = lab.sinks()?;
                for load in [OUT_MANY, NEW] {
                    lab.packets(load, curve(&format!("packets/s, {load},")), &[0])?;
                }
                forget_flows(lab)?;
            }
            if self.wants(Measure::Connections) {
                lab.connections(curve("connections/s"))?;
            }
            if self.wants(Measure::Reload) {
                lab.one_line(cidrs)?;
                lab.all_lines(cidrs)?;
                lab.memory(cidrs)?;
            }
        }
        Ok(())
    }
}

fn variants(options: &Options) -> Vec<&'static Variant> {
    let chosen =
        |variant: &&Variant| options.variants.is_empty() || options.variants.contains(variant);
    let sees = options.only.contains(&Measure::See);
    let there = |variant: &&Variant| match variant.name {
        variant::BEFORE => options.before.is_some(),
        variant::MONITORED | variant::SEEN => sees || !options.variants.is_empty(),
        variant::NETDP => true,
        // `see` alone compares netdp with itself.
        _ => options.only != [Measure::See] || !options.variants.is_empty(),
    };
    variant::ALL.iter().filter(there).filter(chosen).collect()
}

fn forget_flows(lab: &Lab) -> Result<()> {
    lab.beds.iter().try_for_each(Bed::forget_flows)
}

const OUT_ONE: Load = Load {
    flows: Flows::Live(1),
    masqueraded: true,
    direction: Direction::Original,
    servers: Servers::Few,
};
const BACK_ONE: Load = Load {
    direction: Direction::Reply,
    ..OUT_ONE
};
const OUT_MANY: Load = Load {
    flows: Flows::Live(4096),
    ..OUT_ONE
};
const BACK_MANY: Load = Load {
    direction: Direction::Reply,
    ..OUT_MANY
};
const BYPASSED: Load = Load {
    masqueraded: false,
    ..OUT_MANY
};
const BYPASSED_PAIRS: Load = Load {
    servers: Servers::Each,
    ..BYPASSED
};
const NEW: Load = Load {
    flows: Flows::New,
    ..OUT_ONE
};
