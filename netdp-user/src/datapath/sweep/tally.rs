//! Counts for metrics, which passes make from the mappings that they read anyway.

use crate::datapath::EndedMapping;
use crate::datapath::maps::Maps;
use crate::datapath::usage::{ByProtocol, Destination, TOLD_APART, Usage, destination};
use netdp_common::flow::age;
use netdp_common::layout::{Half, Mapping, Tuple};
use std::collections::HashMap;
use std::net::IpAddr;

/// Changes to the mappings of a pod.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PodChange {
    /// Mappings that began.
    pub began: u64,
    /// Bytes that the pod had sent over mappings that have ended.
    pub bytes_out: u64,
    /// Bytes that were sent to the pod over these.
    pub bytes_in: u64,
}

/// The mappings as a full pass left them.
#[derive(Debug, Clone, Default)]
pub struct Census {
    /// Mappings and their traffic, by pod and by destination.
    pub usage: Usage,
    /// Of these, mappings with a packet from the peer, by protocol.
    pub replied: ByProtocol,
    /// Reservations for the node's own flows.
    pub reservations: usize,
    /// Halves from which traffic was carried over.
    pub carried: usize,
}

/// Mappings by destination, of the protocols that have ports, as a pass has found them before it ended
/// any: the most since the pass before, except for what has ended in between.
pub type Peaks = HashMap<Destination, u64>;

/// The mappings that a pass looks at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// Both halves of all of them.
    Full,
    /// The original halves of all of them.
    Originals,
    /// Those that are due.
    Due,
}

/// The counts of one pass.
#[derive(Debug)]
pub struct Tally {
    scope: Scope,
    /// Ticks from the begin of the last scan of all originals to that of this pass; `None` if new
    /// mappings are not counted.
    window: Option<u32>,
    /// Time of this pass, in ticks.
    begun: u32,
    pub census: Census,
    pub changes: HashMap<IpAddr, PodChange>,
    /// Mappings that are not in the census: those that ended, and of a scan those that stayed.
    seen: Peaks,
}

impl Tally {
    /// Returns the counts of a pass that begins at `begun`, where all originals were last scanned at
    /// `since`, in ticks.
    pub fn new(scope: Scope, since: u32, begun: u32) -> Self {
        Self {
            scope,
            window: (scope != Scope::Due).then(|| age(begun, since)),
            begun,
            census: Census::default(),
            changes: HashMap::new(),
            seen: Peaks::new(),
        }
    }

    /// Begins to count anew what lives, before all mappings are scanned again.
    pub fn restart(self) -> Self {
        Self {
            // Those in the window were counted.
            window: None,
            census: Census::default(),
            ..self
        }
    }

    /// Counts a reply half.
    pub fn add_reply(&mut self, maps: &Maps, wire: &Tuple, half: &Mapping) {
        self.census.usage.add_reply(maps, wire, half);
        if half.packets(Half::Reply) > 0 {
            *self.census.replied.of(wire.proto) += 1;
        }
    }

    /// Counts a mapping that was scanned, by its original half, if it is new.
    pub fn scanned(&mut self, tuple: &Tuple, half: &Mapping) {
        let old = age(self.begun, half.created);
        // Of the first and the last tick one belongs to this pass, and the other to the next.
        if self
            .window
            .is_some_and(|window| (1..=window).contains(&old))
        {
            self.change(tuple, |change| change.began += 1);
        }
    }

    /// Counts a mapping that stays.
    pub fn kept(&mut self, maps: &Maps, tuple: &Tuple, half: &Mapping) {
        match self.scope {
            Scope::Full => {
                self.census.usage.add_original(maps, tuple, half, false);
            }
            Scope::Originals => self.see(tuple, half),
            Scope::Due => {}
        }
    }

    /// Counts a mapping that ends. `was_kept`: it was counted as staying before.
    pub fn ended(
        &mut self,
        ended: &EndedMapping,
        half: &Mapping,
        reply: Option<&Mapping>,
        was_kept: bool,
    ) {
        let tuple = &ended.mapping.tuple;
        let [bytes_out, bytes_in] = ended.bytes;
        self.change(tuple, |change| {
            change.bytes_out += bytes_out.unwrap_or(0);
            change.bytes_in += bytes_in.unwrap_or(0);
        });
        if self.scope != Scope::Due {
            self.see(tuple, half);
        }
        if self.scope != Scope::Full {
            return;
        }
        let usage = &mut self.census.usage;
        usage.subtract(tuple, half, (was_kept, bytes_out), bytes_in);
        if reply.is_some_and(|reply| reply.packets(Half::Reply) > 0) {
            let replied = self.census.replied.of(tuple.proto);
            *replied = replied.saturating_sub(1);
        }
    }

    /// Counts a mapping that is not in the census for its destination.
    fn see(&mut self, tuple: &Tuple, half: &Mapping) {
        let destination = destination(tuple.proto, tuple.dst, tuple.dst_id, half.addr);
        let is_full = self.seen.len() >= TOLD_APART;
        match self.seen.get_mut(&destination) {
            Some(seen) => *seen += 1,
            None if is_full || !destination.has_ports() => {}
            None => *self.seen.entry(destination).or_default() += 1,
        }
    }

    /// Returns the mappings that the pass has seen, by destination.
    fn peaks(&mut self) -> Peaks {
        let mut peaks = std::mem::take(&mut self.seen);
        for (destination, used) in &self.census.usage.destinations {
            if destination.has_ports() {
                *peaks.entry(*destination).or_default() += used.mappings;
            }
        }
        peaks
    }

    fn change(&mut self, tuple: &Tuple, change: impl FnOnce(&mut PodChange)) {
        let is_full = self.changes.len() >= TOLD_APART;
        let pod = IpAddr::from(tuple.src);
        match self.changes.get_mut(&pod) {
            Some(known) => change(known),
            None if is_full => {}
            None => change(self.changes.entry(pod).or_default()),
        }
    }
}

/// Counts of the passes of a sweeper since it was last asked.
#[derive(Debug)]
pub struct Meter {
    /// Time of the last scan of all originals, in ticks.
    since: u32,
    /// Changes to mappings, by pod.
    changes: HashMap<IpAddr, PodChange>,
    /// The result of the last full pass.
    census: Option<Census>,
    /// The highest numbers that full passes and scans have seen.
    peaks: Option<Peaks>,
}

impl Meter {
    /// Begins to count at a time in ticks: earlier mappings are not new.
    pub fn new(now: u32) -> Self {
        Self {
            since: now,
            changes: HashMap::new(),
            census: None,
            peaks: None,
        }
    }

    /// Returns the counts of a pass that begins now.
    pub fn tally(&self, scope: Scope, begun: u32) -> Tally {
        Tally::new(scope, self.since, begun)
    }

    /// Takes in the counts of a pass. `is_whole`: it has seen all mappings of its scope.
    pub fn take_in(&mut self, mut tally: Tally, is_whole: bool) {
        if is_whole && tally.scope != Scope::Due {
            let peaks = self.peaks.get_or_insert_default();
            for (destination, seen) in tally.peaks() {
                let is_full = peaks.len() >= 2 * TOLD_APART;
                match peaks.get_mut(&destination) {
                    Some(peak) => *peak = seen.max(*peak),
                    None if is_full => {}
                    None => _ = peaks.insert(destination, seen),
                }
            }
        }
        for (pod, mut change) in tally.changes {
            if !is_whole {
                // The next pass counts them.
                change.began = 0;
            }
            let sum = self.changes.entry(pod).or_default();
            sum.began += change.began;
            sum.bytes_out += change.bytes_out;
            sum.bytes_in += change.bytes_in;
        }
        if is_whole && tally.scope != Scope::Due {
            self.since = tally.begun;
        }
        if is_whole && tally.scope == Scope::Full {
            self.census = Some(tally.census);
        }
    }

    /// Takes the result of a full pass, if one has ended, and what has happened since the one
    /// before.
    pub fn take(&mut self) -> Option<(Census, HashMap<IpAddr, PodChange>)> {
        let census = self.census.take()?;
        Some((census, std::mem::take(&mut self.changes)))
    }

    /// Takes the highest numbers that passes have seen, if one has ended since the last time.
    pub fn take_peaks(&mut self) -> Option<Peaks> {
        self.peaks.take()
    }
}

#[cfg(test)]
mod tests {
    use super::{Meter, Peaks, PodChange, Scope, Tally, destination};
    use crate::datapath::{Destination, EndedBy, EndedMapping, Identity, Use};
    use netdp_common::layout::{Addr, Mapping, Tuple, proto};
    use std::net::IpAddr;

    fn tuple() -> Tuple {
        let pod = Addr::from_v4([172, 16, 0, 2]);
        Tuple::new(pod, Addr::from_v4([192, 0, 2, 1]), 40_000, 443, proto::TCP)
    }

    fn half(created: u32) -> Mapping {
        Mapping {
            addr: Addr::from_v4([192, 0, 2, 9]),
            id: 40_000,
            flags: 0,
            created,
            last_seen: created,
            tcp_ack: 0,
            tcp_seen: 0,
            epoch: 0,
            uplink: 0,
            traffic: 0,
        }
    }

    fn scan(tally: &mut Tally, created: u32) {
        tally.scanned(&tuple(), &half(created));
    }

    fn target() -> Destination {
        let tuple = tuple();
        destination(tuple.proto, tuple.dst, tuple.dst_id, half(0).addr)
    }

    /// Has a pass find mappings that stay, and others that end. `was_kept`: they were counted as
    /// staying before.
    fn find(tally: &mut Tally, stay: u64, end: u64, was_kept: bool) {
        let used = Use {
            mappings: stay,
            ..Use::default()
        };
        let (tuple, half) = (tuple(), half(0));
        tally.census.usage.destinations.insert(target(), used);
        let ended = EndedMapping {
            mapping: Identity {
                tuple,
                addr: half.addr,
                id: half.id,
                created: half.created,
            },
            at: 0,
            why: EndedBy::Timeout,
            packets: [0; 2],
            bytes: [Some(0); 2],
        };
        for _ in 0..end {
            tally.ended(&ended, &half, None, was_kept);
        }
    }

    fn peak(meter: &mut Meter) -> Option<u64> {
        meter.take_peaks()?.get(&target()).copied()
    }

    fn began(meter: &mut Meter) -> u64 {
        let (_, changes) = meter.take().unwrap();
        let pod = IpAddr::from(tuple().src);
        changes.get(&pod).copied().unwrap_or_default().began
    }

    #[test]
    fn each_mapping_is_new_in_one_pass() {
        let start = u32::MAX - 10;
        let mut meter = Meter::new(start);
        let mut seen = 0;
        let created: Vec<u32> = (0..40).map(|at| start.wrapping_add(at)).collect();
        for begun in [5, 9, 10, 30, 50].map(|at| start.wrapping_add(at)) {
            let mut tally = meter.tally(Scope::Full, begun);
            for created in &created {
                scan(&mut tally, *created);
            }
            scan(&mut tally, start.wrapping_sub(1));
            meter.take_in(tally, true);
            seen += began(&mut meter);
        }
        assert_eq!(seen, 40);
    }

    #[test]
    fn a_pass_that_was_stopped_leaves_the_new_mappings_to_the_next() {
        let mut meter = Meter::new(100);
        let mut tally = meter.tally(Scope::Originals, 200);
        scan(&mut tally, 150);
        let pod = IpAddr::from(tuple().src);
        tally.changes.entry(pod).or_default().bytes_out = 7;
        meter.take_in(tally, false);
        assert!(meter.take().is_none(), "no full pass has ended");
        let mut tally = meter.tally(Scope::Full, 300);
        scan(&mut tally, 150);
        let mut tally = tally.restart();
        scan(&mut tally, 150);
        meter.take_in(tally, true);
        let (_, changes) = meter.take().unwrap();
        let expected = PodChange {
            began: 1,
            bytes_out: 7,
            bytes_in: 0,
        };
        assert_eq!(changes[&pod], expected);
    }

    #[test]
    fn a_pass_has_seen_what_it_ended_at_its_destination() {
        let mut meter = Meter::new(0);
        let mut tally = meter.tally(Scope::Full, 10);
        find(&mut tally, 3, 4, false);
        meter.take_in(tally, true);
        assert_eq!(peak(&mut meter), Some(7));
        assert_eq!(meter.take_peaks(), None, "taken");
        let (census, _) = meter.take().unwrap();
        assert_eq!(census.usage.destinations[&target()].mappings, 3);
        // One that evicts scans twice: what the first scan ended is not there at the second.
        let mut tally = meter.tally(Scope::Full, 20);
        find(&mut tally, 9, 2, false);
        let mut tally = tally.restart();
        find(&mut tally, 9, 5, true);
        meter.take_in(tally, true);
        assert_eq!(peak(&mut meter), Some(11));
        let (census, _) = meter.take().unwrap();
        assert_eq!(census.usage.destinations[&target()].mappings, 4);
    }

    #[test]
    fn the_most_of_several_passes_counts_and_nothing_of_one_that_was_stopped() {
        let mut meter = Meter::new(0);
        for (scope, stay, end, is_whole) in [
            (Scope::Full, 2, 0, true),
            (Scope::Originals, 0, 5, true),
            (Scope::Full, 4, 0, true),
            (Scope::Full, 90, 9, false),
            (Scope::Due, 0, 80, true),
        ] {
            let mut tally = meter.tally(scope, 10);
            find(&mut tally, stay, end, false);
            meter.take_in(tally, is_whole);
        }
        assert_eq!(peak(&mut meter), Some(5));
    }

    #[test]
    fn protocols_without_ports_have_no_peaks() {
        let mut tally = Tally::new(Scope::Originals, 0, 10);
        let mut tuple = tuple();
        for protocol in [proto::ICMP, proto::UDP, 47] {
            tuple.proto = protocol;
            tally.see(&tuple, &half(0));
        }
        let protocols: Vec<_> = tally.peaks().into_keys().map(|it| it.protocol).collect();
        assert_eq!(protocols, [proto::UDP]);
        assert_eq!(tally.peaks(), Peaks::new(), "taken");
    }
}
