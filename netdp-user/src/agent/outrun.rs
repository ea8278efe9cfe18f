//! Third-party programs that run before ours on an uplink's hook. Their return codes may keep
//! packets from ours: pods' packets then leave with their own addresses, or replies are lost. Ours
//! is moved to the front again; if that is not possible, packets on the wire are inspected
//! (docs/adr/0035).

use super::Agent;
use crate::datapath::{Ahead, Effect, Hook, NoLeak, Placed, Rules, Tap};
use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};
use tokio::time::sleep_until;

/// Limit of moves to the front within [`PERIOD`]: the other program may do the same.
const MOVES: usize = 3;
const PERIOD: Duration = Duration::from_secs(60);

/// Interval between inspections of packets while third-party programs run before ours.
const LOOK: Duration = Duration::from_millis(100);

/// Time for which an observation remains valid.
const COUNTS: Duration = Duration::from_secs(30);

type At = (u32, Hook);

/// State of third-party programs ahead of ours.
#[derive(Debug)]
pub(super) struct Outrun {
    /// Programs that run before ours, as long as this cannot be changed.
    behind: BTreeMap<At, Behind>,
    /// Times at which ours was moved to the front.
    moves: BTreeMap<At, Vec<Instant>>,
    /// Packet taps, by interface index.
    taps: BTreeMap<u32, Tap>,
    /// Time of the last inspection of packets.
    looked: tokio::time::Instant,
}

#[derive(Debug)]
struct Behind {
    placed: Placed,
    ahead: Ahead,
    /// Effect on packets, and when it was last observed.
    fault: Option<(String, Instant)>,
}

impl Outrun {
    pub(super) fn new() -> Self {
        Self {
            behind: BTreeMap::new(),
            moves: BTreeMap::new(),
            taps: BTreeMap::new(),
            looked: tokio::time::Instant::now(),
        }
    }

    /// Returns the observed effects on packets, one line each.
    pub(super) fn faults(&self) -> impl Iterator<Item = String> {
        let faults = self.behind.values().filter_map(|it| it.fault.as_ref());
        faults.map(|(fault, _)| fault.clone())
    }

    /// Returns the programs that run before ours, one line each.
    pub(super) fn lines(&self) -> Vec<String> {
        let behind = self.behind.values();
        behind.map(|it| it.placed.behind(&it.ahead)).collect()
    }

    /// Waits until the next inspection of packets is due; forever if no program runs before ours.
    pub(super) async fn due(&self) {
        if self.taps.is_empty() {
            return std::future::pending().await;
        }
        sleep_until(self.looked + LOOK).await;
    }

    /// Reports whether ours may be moved to the front once more.
    fn may_move(&mut self, at: At) -> bool {
        let moves = self.moves.entry(at).or_default();
        moves.retain(|moved| moved.elapsed() < PERIOD);
        moves.len() < MOVES
    }
}

/// Describes an observed effect in a sentence; `None` if the packets at this hook are not affected.
fn describe(placed: &Placed, ahead: &Ahead, effect: Effect) -> Option<String> {
    const REMEDY: &str = "remove it, or have it return TC_ACT_UNSPEC";
    let (interface, who) = (&placed.interface, ahead.subject());
    match (placed.hook, effect) {
        (
            Hook::Egress,
            Effect {
                leaked: Some((from, to)),
                ..
            },
        ) => Some(format!(
            "packets leave by {interface} with pods' own addresses ({from} to {to}): {who} before the \
             egress program, and keeps them from it: {REMEDY}"
        )),
        (
            Hook::Ingress,
            Effect {
                lost: Some(from), ..
            },
        ) => Some(format!(
            "answers to pods that come in by {interface} are lost (from {from}): {who} before the \
             ingress program, and keeps them from it: {REMEDY}"
        )),
        _ => None,
    }
}

impl Agent {
    /// Handles third-party programs found before ours: moves ours to the front, or starts to
    /// inspect packets.
    pub(super) fn look_ahead(&mut self, found: Vec<(Placed, Ahead)>) {
        let before = self.guard.outrun.lines();
        let had_faults = self.guard.outrun.faults().next().is_some();
        let mut behind = BTreeMap::new();
        for (placed, ahead) in found {
            let at = (placed.ifindex, placed.hook);
            if ahead.can_move && self.guard.outrun.may_move(at) && self.overtake(&placed, &ahead) {
                continue;
            }
            let known = self.guard.outrun.behind.remove(&at);
            let it = Behind {
                placed,
                ahead,
                fault: known.and_then(|it| it.fault),
            };
            behind.insert(at, it);
        }
        let outrun = &mut self.guard.outrun;
        outrun.behind = behind;
        let watched: BTreeSet<u32> = outrun.behind.keys().map(|at| at.0).collect();
        outrun.taps.retain(|ifindex, _| watched.contains(ifindex));
        let mut blind = None;
        for ifindex in watched {
            if outrun.taps.contains_key(&ifindex) {
                continue;
            }
            match Tap::open(&self.options.bpffs, ifindex) {
                Ok(tap) => drop(outrun.taps.insert(ifindex, tap)),
                Err(err) => blind = Some(format!("{err:#}")),
            }
        }
        let lines = outrun.lines();
        for line in lines.iter().filter(|line| !before.contains(line)) {
            log::warn!(
                "{line}: its return code may keep packets from netdp; {}",
                match &blind {
                    Some(why) => format!("whether it does can't be checked: {why}"),
                    None => "packets are checked for that".into(),
                }
            );
        }
        if before != lines || had_faults {
            self.tell_faults();
        }
    }

    /// Moves a program to the front. Returns whether that succeeded.
    fn overtake(&mut self, placed: &Placed, ahead: &Ahead) -> bool {
        let at = (placed.ifindex, placed.hook);
        let Some(datapath) = self.engine.as_datapath() else {
            return false;
        };
        let moved = datapath.overtake(placed);
        let moves = self.guard.outrun.moves.entry(at).or_default();
        moves.push(Instant::now());
        let (who, interface) = (ahead.who.join(" and "), &placed.interface);
        let hook = placed.hook.name();
        match moved {
            Ok(()) => {
                log::warn!(
                    "{interface}: {who} was attached before the {hook} program and could keep \
                     packets from it: netdp is first again"
                );
                self.guard.repairs += 1;
                self.tell_faults();
                true
            }
            Err(err) => {
                log::error!("putting the {hook} program before {who}: {err:#}");
                false
            }
        }
    }

    /// Inspects packets where third-party programs run before ours.
    pub(super) fn look_at_packets(&mut self) {
        let Some(datapath) = self.engine.as_datapath() else {
            return;
        };
        let rules = Rules {
            local: &self.applied.local,
            any_ip: &self.snapshot.any_ip,
            macs: &self.applied.macs,
            enable_ipv6: self.options.config_options.enable_ipv6,
            no_leak: self.options.setup.no_leak == NoLeak::Drop,
        };
        let outrun = &mut self.guard.outrun;
        outrun.looked = tokio::time::Instant::now();
        let mut seen = BTreeMap::new();
        outrun.taps.retain(|ifindex, tap| {
            match tap.look(datapath.maps(), &rules) {
                Ok(effect) => drop(seen.insert(*ifindex, effect)),
                // The next check of the hooks opens a new tap.
                Err(err) => {
                    log::debug!("{err:#}");
                    return false;
                }
            }
            true
        });
        let mut changed = false;
        for ((ifindex, _), behind) in &mut outrun.behind {
            let effect = seen.get(ifindex).copied().unwrap_or_default();
            if let Some(fault) = describe(&behind.placed, &behind.ahead, effect) {
                let known = behind.fault.take();
                let fault = known.map_or_else(
                    || {
                        log::error!("{fault}");
                        self.guard.losses += 1;
                        self.guard.last_loss.clone_from(&fault);
                        changed = true;
                        fault
                    },
                    |(known, _)| known,
                );
                behind.fault = Some((fault, Instant::now()));
            }
            if let Some((fault, _)) = behind.fault.take_if(|(_, at)| at.elapsed() >= COUNTS) {
                log::info!("not seen for {} s: {fault}", COUNTS.as_secs());
                changed = true;
            }
        }
        if changed {
            self.tell_faults();
        }
    }
}
