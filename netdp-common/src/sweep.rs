//! Decisions of the sweep: which mappings end, and how many are evicted.

use crate::flow;
use crate::flow::Carried;
use crate::flow::Timeouts;
use crate::flow::age;
use crate::flow::ticks;
use crate::layout::Mapping;
use crate::layout::Tuple;

/// Disposition of one mapping: keep it, or end it for a reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disposition {
    /// It lives for at least so many ticks, unless a packet changes it; not computed exactly beyond
    /// the horizon.
    Keep(u64),
    /// It has timed out.
    Expired,
    /// The node has lost its external address.
    AddressGone,
    /// The policy would not create it any more.
    Retired,
}

/// State of a mapping's external address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExternalAddress {
    /// The node has it.
    Present,
    /// The node has lost it.
    Lost,
}

/// The conditions by which one pass of a sweep decides about mappings.
#[derive(Debug, Clone, Copy)]
pub struct Conditions {
    /// Time of the pass, in ticks.
    pub now: u32,
    /// Timeouts of idle mappings.
    pub timeouts: Timeouts,
    /// Idle ticks after which a mapping ends that the policy would not create any more; `None`:
    /// never.
    pub retire_after: Option<u64>,
    /// Ticks until the next full sweep.
    pub horizon: u64,
    /// Time before which created mappings are in the schedule, in ticks: a pass skips them.
    pub scheduled_before: Option<u32>,
    /// The mappings whose halves are compared.
    pub compared: Compared,
}

/// The mappings whose two halves a pass compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compared {
    /// Those that may end before the horizon.
    BeforeHorizon,
    /// All, to choose those that are evicted.
    All,
}

/// Ticks by which the recorded creation of a mapping may be too early: the programs' clock is up to
/// a jiffy late.
const CLOCK_SLACK: u32 = 2;

impl Conditions {
    /// Returns the disposition of a mapping. `would_bypass` queries whether the policy bypasses it
    /// now, `reply` its reply half; each is called only if it matters.
    ///
    /// # Errors
    /// Returns the error of `would_bypass`.
    pub fn disposition<E>(
        &self,
        tuple: &Tuple,
        original: &Mapping,
        external: ExternalAddress,
        would_bypass: impl FnOnce() -> Result<bool, E>,
        reply: impl FnOnce() -> Option<Mapping>,
    ) -> Result<Disposition, E> {
        if external == ExternalAddress::Lost {
            return Ok(Disposition::AddressGone);
        }
        let idle = u64::from(age(self.now, original.last_seen));
        if self.retire_after.is_some_and(|after| idle >= after) && would_bypass()? {
            return Ok(Disposition::Retired);
        }
        if idle < self.min_idle(tuple.proto) || self.is_scheduled(original) {
            return Ok(Disposition::Keep(u64::MAX));
        }
        Ok(match self.remaining(tuple, original, reply().as_ref()) {
            0 => Disposition::Expired,
            remaining => Disposition::Keep(remaining),
        })
    }

    /// Returns the idle time below which a mapping of this protocol lives beyond the horizon,
    /// whatever its state. Where full sweeps are frequent, halves are compared sooner than that, so
    /// that missing ones are found.
    #[must_use]
    pub fn min_idle(&self, protocol: u32) -> u64 {
        if self.compared == Compared::All {
            return 0;
        }
        let sooner = ticks(self.timeouts.shortest()).saturating_sub(self.horizon);
        if sooner > 0 {
            return sooner;
        }
        ticks(self.timeouts.shortest_of(protocol)).saturating_sub(self.horizon)
    }

    /// Returns the remaining lifetime of a mapping without further packets, in ticks; 0: it has
    /// timed out.
    #[must_use]
    pub fn remaining(&self, tuple: &Tuple, original: &Mapping, reply: Option<&Mapping>) -> u64 {
        let timeout = self.timeouts.of(&Carried::by(tuple, original, reply));
        let reply_seen = reply.unwrap_or(original).last_seen;
        flow::left(self.now, original.last_seen, reply_seen, timeout)
    }

    /// Reports whether an earlier pass has put the mapping into the schedule.
    fn is_scheduled(&self, original: &Mapping) -> bool {
        self.scheduled_before.is_some_and(|before| {
            let since = age(self.now, before).saturating_add(CLOCK_SLACK);
            age(self.now, original.created) > since
        })
    }
}

/// Usage of the tables, in percent, above which evictable mappings of all classes are evicted.
const PRESSURE_PERCENT: usize = 85;
/// Usage of the tables, in percent, down to which closed mappings are evicted then: where thousands
/// of connections end each second, evictions must not be needed all the time.
const CLOSED_PERCENT: usize = 50;
/// Usage of the tables, in percent, down to which unanswered mappings are evicted.
const UNANSWERED_PERCENT: usize = 75;

/// Tables with less than one part in this many free count as full.
const FULL: usize = 64;

/// Returns the number of mappings above which tables of this capacity are nearly full.
#[must_use]
pub const fn pressure_limit(capacity: usize) -> usize {
    capacity * PRESSURE_PERCENT / 100
}

/// Returns the number of mappings at which eviction is retried, after one that left `used` places in
/// use: when half of the free places are taken, but always if hardly any place is free.
#[must_use]
pub fn retry_threshold(used: usize, capacity: usize) -> usize {
    let half = used + capacity.saturating_sub(used) / 2;
    half.min((capacity - capacity / FULL).saturating_sub(1))
}

/// Targets of an eviction, as numbers of mappings that remain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EvictionTargets {
    /// Closed mappings are evicted while more remain than this.
    closed: usize,
    /// Unanswered mappings are evicted while more remain than this.
    unanswered: usize,
    /// Evictable mappings that may still have a packet in flight are evicted while more remain than
    /// this.
    others: usize,
}

impl EvictionTargets {
    /// Returns the targets for tables of this capacity, of which reservations take `reserved`.
    #[must_use]
    pub const fn new(capacity: usize, reserved: usize) -> Self {
        Self {
            closed: (capacity * CLOSED_PERCENT / 100).saturating_sub(reserved),
            unanswered: (capacity * UNANSWERED_PERCENT / 100).saturating_sub(reserved),
            others: pressure_limit(capacity).saturating_sub(reserved),
        }
    }

    /// Returns how many of `live` mappings to evict, where the first `closed` of the evictable ones
    /// are closed, and the first `unanswered` are closed or unanswered.
    #[must_use]
    pub fn count(&self, live: usize, closed: usize, unanswered: usize) -> usize {
        let surplus = |target| live.saturating_sub(target);
        let closed = closed.min(surplus(self.closed));
        let unanswered = unanswered.min(surplus(self.unanswered));
        closed.max(unanswered).max(surplus(self.others))
    }
}

#[cfg(test)]
mod tests {
    use super::{
        Compared, Conditions, Disposition, EvictionTargets, ExternalAddress, pressure_limit,
        retry_threshold,
    };
    use crate::flow::Timeouts;
    use crate::flow::ticks;
    use crate::flow::ticks32;
    use crate::layout::Addr;
    use crate::layout::Mapping;
    use crate::layout::Tuple;
    use crate::layout::proto;
    use core::convert::Infallible;

    const POD: Addr = Addr::from_v4([172, 16, 0, 2]);
    const NODE: Addr = Addr::from_v4([192, 0, 2, 10]);
    const SERVER: Addr = Addr::from_v4([198, 18, 0, 1]);

    /// Returns the conditions of a pass at tick 0, which is long after the halves' times.
    fn conditions() -> Conditions {
        Conditions {
            now: 0,
            timeouts: Timeouts::default(),
            retire_after: None,
            horizon: ticks(5),
            scheduled_before: None,
            compared: Compared::BeforeHorizon,
        }
    }

    /// Returns the original half of a UDP mapping that was created and last used so many seconds
    /// ago.
    fn half(created: u64, idle: u64) -> Mapping {
        Mapping {
            created: 0_u32.wrapping_sub(ticks32(created)),
            last_seen: 0_u32.wrapping_sub(ticks32(idle)),
            addr: NODE,
            id: 40_000,
            flags: 0,
            tcp_ack: 0,
            tcp_seen: 0,
            epoch: 0,
            uplink: 0,
            traffic: 1,
        }
    }

    fn decide(
        conditions: &Conditions,
        original: &Mapping,
        external: ExternalAddress,
        would_bypass: bool,
        reply: Option<Mapping>,
    ) -> Disposition {
        let tuple = Tuple::new(POD, SERVER, 40_000, 5_000, proto::UDP);
        let query = || Ok::<_, Infallible>(would_bypass);
        let decided = conditions.disposition(&tuple, original, external, query, || reply);
        decided.unwrap_or_else(|never| match never {})
    }

    #[test]
    fn a_mapping_ends_for_its_address_its_policy_or_its_silence() {
        use ExternalAddress::{Lost, Present};
        let now = conditions();
        let old = half(200, 200);
        assert_eq!(
            decide(&now, &half(1, 0), Lost, false, None),
            Disposition::AddressGone
        );
        assert_eq!(
            decide(&now, &old, Present, false, None),
            Disposition::Expired
        );
        // A reply is traffic, too.
        let reply = half(200, 1);
        assert!(matches!(
            decide(&now, &old, Present, false, Some(reply)),
            Disposition::Keep(left) if left > ticks(100)
        ));
        // Without a limit the policy does not matter, nor before the limit is reached.
        let young = half(10, 10);
        assert_eq!(
            decide(&now, &young, Present, true, None),
            Disposition::Keep(u64::MAX)
        );
        let drain = |seconds| Conditions {
            retire_after: Some(ticks(seconds)),
            ..now
        };
        assert_eq!(
            decide(&drain(30), &young, Present, true, None),
            Disposition::Keep(u64::MAX)
        );
        assert_eq!(
            decide(&drain(10), &young, Present, true, None),
            Disposition::Retired
        );
        assert_eq!(
            decide(&drain(10), &young, Present, false, None),
            Disposition::Keep(u64::MAX)
        );
    }

    #[test]
    fn a_scan_for_new_mappings_skips_those_in_the_schedule() {
        let scan = Conditions {
            scheduled_before: Some(0_u32.wrapping_sub(ticks32(150))),
            ..conditions()
        };
        let kept = Disposition::Keep(u64::MAX);
        let present = ExternalAddress::Present;
        assert_eq!(decide(&scan, &half(200, 140), present, false, None), kept);
        assert_eq!(
            decide(&scan, &half(140, 140), present, false, None),
            Disposition::Expired
        );
    }

    #[test]
    fn every_mapping_is_compared_for_an_eviction() {
        let pass = conditions();
        assert!(pass.min_idle(proto::UDP) > 0);
        let eviction = Conditions {
            compared: Compared::All,
            ..pass
        };
        assert_eq!(eviction.min_idle(proto::UDP), 0);
        assert!(matches!(
            decide(&eviction, &half(1, 1), ExternalAddress::Present, false, None),
            Disposition::Keep(left) if left < u64::MAX
        ));
    }

    #[test]
    fn closed_mappings_are_evicted_first_and_others_only_as_necessary() {
        let targets = EvictionTargets::new(100, 0);
        // All have been closed for a while.
        assert_eq!(targets.count(90, 90, 90), 40);
        // Few are closed, few have been unanswered for long.
        assert_eq!(targets.count(90, 3, 10), 10);
        assert_eq!(targets.count(90, 3, 60), 15);
        // Most live, the others are young: no more than necessary.
        assert_eq!(targets.count(86, 0, 0), 1);
        assert_eq!(targets.count(85, 0, 0), 0);
        // Reservations take places of mappings.
        assert_eq!(EvictionTargets::new(100, 10).count(90, 90, 90), 50);
    }

    #[test]
    fn an_insufficient_eviction_is_retried_before_the_tables_are_full() {
        assert_eq!(pressure_limit(1000), 850);
        assert_eq!(retry_threshold(900, 1000), 950);
        assert_eq!(retry_threshold(1000, 1000), 984);
        assert_eq!(retry_threshold(0, 0), 0);
    }
}
