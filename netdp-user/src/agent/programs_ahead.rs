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
const MAX_MOVES: usize = 3;
const PERIOD: Duration = Duration::from_secs(60);

/// Interval between inspections of packets while third-party programs run before ours.
const INSPECT_INTERVAL: Duration = Duration::from_millis(100);

/// Time for which an observation remains valid.
const VALIDITY: Duration = Duration::from_secs(30);

type At = (u32, Hook);

/// State of third-party programs ahead of ours.
#[derive(Debug)]
pub(super) struct ProgramsAhead {
    /// Programs that run before ours, as long as this cannot be changed.
    behind: BTreeMap<At, Preceded>,
    /// Times at which ours was moved to the front.
    moves: BTreeMap<At, Vec<Instant>>,
    /// Packet taps, by interface index.
    taps: BTreeMap<u32, Tap>,
    /// Time of the last inspection of packets.
    inspected_at: tokio::time::Instant,
}

#[derive(Debug)]
struct Preceded {
    placed: Placed,
    ahead: Ahead,
    /// Effect on packets, and when it was last observed.
    fault: Option<(String, Instant)>,
}

impl ProgramsAhead {
    pub(super) fn new() -> Self {
        Self {
            behind: BTreeMap::new(),
            moves: BTreeMap::new(),
            taps: BTreeMap::new(),
            inspected_at: tokio::time::Instant::now(),
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
        sleep_until(self.inspected_at + INSPECT_INTERVAL).await;
    }

    /// Reports whether ours may be moved to the front once more.
    fn may_move(&mut self, at: At) -> bool {
        let moves = self.moves.entry(at).or_default();
        moves.retain(|moved| moved.elapsed() < PERIOD);
        moves.len() < MAX_MOVES
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
            "replies to pods that arrive by {interface} are lost (from {from}): {who} before the \
             ingress program, and keeps them from it: {REMEDY}"
        )),
        _ => None,
    }
}

impl Agent {
    /// Handles third-party programs found before ours: moves ours to the front, or starts to
    /// inspect packets.
    pub(super) fn on_programs_ahead(&mut self, found: Vec<(Placed, Ahead)>) {
        let before = self.guard.ahead.lines();
        let had_faults = self.guard.ahead.faults().next().is_some();
        let mut behind = BTreeMap::new();
        for (placed, ahead) in found {
            let at = (placed.ifindex, placed.hook);
            if ahead.can_move && self.guard.ahead.may_move(at) && self.overtake(&placed, &ahead) {
                continue;
            }
            let known = self.guard.ahead.behind.remove(&at);
            let it = Preceded {
                placed,
                ahead,
                fault: known.and_then(|it| it.fault),
            };
            behind.insert(at, it);
        }
        let programs = &mut self.guard.ahead;
        programs.behind = behind;
        let watched: BTreeSet<u32> = programs.behind.keys().map(|at| at.0).collect();
        programs.taps.retain(|ifindex, _| watched.contains(ifindex));
        let mut tap_error = None;
        for ifindex in watched {
            if programs.taps.contains_key(&ifindex) {
                continue;
            }
            match Tap::open(&self.options.bpffs, ifindex) {
                Ok(tap) => drop(programs.taps.insert(ifindex, tap)),
                Err(err) => tap_error = Some(format!("{err:#}")),
            }
        }
        let lines = programs.lines();
        for line in lines.iter().filter(|line| !before.contains(line)) {
            log::warn!(
                "{line}: its return code may keep packets from netdp; {}",
                match &tap_error {
                    Some(why) => format!("whether it does can't be checked: {why}"),
                    None => "packets are checked for that".into(),
                }
            );
        }
        if before != lines || had_faults {
            self.publish_faults();
        }
    }

    /// Moves a program to the front. Returns whether that succeeded.
    fn overtake(&mut self, placed: &Placed, ahead: &Ahead) -> bool {
        let at = (placed.ifindex, placed.hook);
        let Some(datapath) = self.engine.as_datapath() else {
            return false;
        };
        let moved = datapath.overtake(placed);
        let moves = self.guard.ahead.moves.entry(at).or_default();
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
                self.publish_faults();
                true
            }
            Err(err) => {
                log::error!("putting the {hook} program before {who}: {err:#}");
                false
            }
        }
    }

    /// Inspects packets where third-party programs run before ours.
    pub(super) fn inspect_packets(&mut self) {
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
        let programs = &mut self.guard.ahead;
        programs.inspected_at = tokio::time::Instant::now();
        let mut seen = BTreeMap::new();
        programs.taps.retain(|ifindex, tap| {
            match tap.inspect(datapath.maps(), &rules) {
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
        for ((ifindex, _), behind) in &mut programs.behind {
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
            if let Some((fault, _)) = behind.fault.take_if(|(_, at)| at.elapsed() >= VALIDITY) {
                log::info!("not seen for {} s: {fault}", VALIDITY.as_secs());
                changed = true;
            }
        }
        if changed {
            self.publish_faults();
        }
    }
}
