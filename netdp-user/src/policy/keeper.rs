//! The agent's part: keeps the ledger in step with the policy, on the sweeper's thread.

use super::ledger::{Ledger, LiveMapping, MapsId, Source};
use crate::datapath::{Maps, NumberedPolicy, RuleCounts};
use crate::state_dir::StateDir;
use crate::time;
use anyhow::Result;
use netdp_common::flow::{TICK_SHIFT, age};
use std::path::Path;
use std::time::{Duration, Instant};

/// Interval between readings that find out which prefixes were hit.
const READ_EVERY: Duration = Duration::from_secs(60);

/// Keeper of the ledger.
pub(crate) struct Keeper {
    state_dir: StateDir,
    ledger: Option<Ledger>,
    read_at: Option<Instant>,
}

impl Keeper {
    /// Creates the keeper of the ledger in a state directory. To be called before programs are
    /// attached: over maps that are new (not `adopted`) the ledger begins here, so that it has the
    /// first packet too. Reading adopted ones may take long, and is left to [`keep`](Self::keep).
    ///
    /// # Errors
    /// Returns an error if maps can't be read, or the ledger can't be written.
    pub(crate) fn new(state_dir: &Path, maps: &Maps, adopted: bool) -> Result<Self> {
        let state_dir = StateDir::at(state_dir);
        let mut ledger = None;
        if !adopted {
            let (begun, _) = open(&state_dir, maps, &maps.numbered_policy()?, time::now())?;
            // Translation must not depend on a file of statistics.
            if let Err(err) = begun.save(&state_dir) {
                log::warn!("{err:#}");
            }
            ledger = Some(begun);
        }
        Ok(Self {
            state_dir,
            ledger,
            read_at: None,
        })
    }

    /// Follows the policy, and once a minute records which prefixes were hit. To be called before
    /// mappings end: what they have sent belongs to the rules of the policy that the ledger follows.
    ///
    /// # Errors
    /// Returns an error if maps can't be read, or the ledger can't be written.
    pub(crate) fn keep(&mut self, maps: &Maps, policy: &NumberedPolicy) -> Result<()> {
        let now = time::now();
        let mut changed = false;
        let ledger = match &mut self.ledger {
            Some(ledger) => ledger,
            empty @ None => {
                let (ledger, is_new) = open(&self.state_dir, maps, policy, now)?;
                changed = is_new;
                empty.insert(ledger)
            }
        };
        changed |= ledger.follow(policy, policy.since, maps, now)?;
        if changed || self.read_at.is_none_or(|at| at.elapsed() >= READ_EVERY) {
            let clock = Clock::read(maps, now)?;
            changed |= ledger.note_hits(&maps.rule_counts()?, |tick| clock.time(tick), now);
            self.read_at = Some(Instant::now());
        }
        if changed {
            ledger.save(&self.state_dir)?;
        }
        Ok(())
    }
}

/// Reads the ledger of an earlier agent, or begins one. Reports whether it is new.
fn open(
    state_dir: &StateDir,
    maps: &Maps,
    policy: &NumberedPolicy,
    now: u64,
) -> Result<(Ledger, bool)> {
    let id = MapsId::of(maps.counts_id()?)?;
    match Ledger::read(state_dir, &id) {
        Ok(Some(ledger)) => return Ok((ledger, false)),
        Ok(None) => {}
        Err(err) => log::info!("{err:#}: counts of prefixes begin anew"),
    }
    Ok((Ledger::begin(id, policy, maps, now)?, true))
}

/// Conversion of ticks to time.
pub(super) struct Clock {
    ticks: u32,
    /// The same moment, in seconds since 1970.
    now: u64,
}

impl Clock {
    /// Reads the datapath's clock at `now`, in seconds since 1970.
    ///
    /// # Errors
    /// Returns an error if the clock can't be read.
    pub(super) fn read(maps: &Maps, now: u64) -> Result<Self> {
        let ticks = maps.ticks()?;
        Ok(Self { ticks, now })
    }

    /// Returns the time of a tick, in seconds since 1970.
    pub(super) fn time(&self, tick: u32) -> u64 {
        let seconds = (u64::from(age(self.ticks, tick)) << TICK_SHIFT) / 1_000_000_000;
        self.now.saturating_sub(seconds)
    }
}

impl Source for Maps {
    fn counts(&self) -> Result<RuleCounts> {
        self.rule_counts()
    }

    fn for_each_live(&self, each: &mut dyn FnMut(&LiveMapping)) -> Result<()> {
        self.for_each_sent(|tuple, half, sent| {
            each(&LiveMapping {
                destination: tuple.dst,
                sent,
                created: half.created,
            });
        })
    }
}
