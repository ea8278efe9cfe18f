//! Each pod's share of the tables that all pods use.
//!
//! Pods are counted in buckets chosen by a keyed hash of their address, as in stochastic fair
//! queueing (McKenney, 1990): memory is bounded no matter which addresses are forged, and no pod
//! can choose to share a bucket with another.

use crate::flow::age;
use crate::layout::{
    Addr, MAPPING_BY_INTERFACE, MAPPING_ORIGIN, SHARE_BUCKETS, Secret, Share, ShareEnded,
};
use crate::packet::{low32, siphash};

/// The key by which a pod, or a peer, is counted: a hash under the node's secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(transparent)]
pub struct Key(u64);

/// The role in which an address is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// A pod, which begins mappings and receives inbound flows.
    Pod = 1,
    /// A peer of inbound flows.
    Peer = 2,
    /// All sources behind one interface that cannot be distinguished; not an address.
    Interface = 3,
}

impl Key {
    /// Returns the key of `addr` under the node's secret.
    #[inline(always)]
    #[must_use]
    pub const fn of(secret: Secret, addr: &Addr, role: Role) -> Self {
        let [a, b, c, d] = addr.words();
        let words = [
            (a as u64) << 32 | b as u64,
            (c as u64) << 32 | d as u64,
            role as u64,
        ];
        Self(siphash::hash(secret, words))
    }

    /// The key of no address.
    pub const NONE: Self = Self(0);

    /// Returns the bucket, below [`SHARE_BUCKETS`].
    #[inline(always)]
    #[must_use]
    pub const fn bucket(self) -> u32 {
        low32(self.0) & (SHARE_BUCKETS - 1)
    }

    /// Returns a tag that distinguishes most pods of one bucket.
    #[inline(always)]
    #[must_use]
    pub const fn tag(self) -> u32 {
        low32(self.0 >> 32)
    }

    /// Returns the key of an interface, by its tag ([`crate::layout::origin_tag`]).
    #[inline(always)]
    #[must_use]
    pub const fn of_interface(secret: Secret, tag: u32) -> Self {
        let addr = Addr::from_words([0, 0, 0, tag]);
        Self::of(secret, &addr, Role::Interface)
    }
}

/// Returns the bucket against which a mapping counts, by its pod and the flags of its original
/// half.
#[inline(always)]
#[must_use]
pub const fn bucket_of_mapping(secret: Secret, pod: &Addr, flags: u16) -> u32 {
    if flags & MAPPING_BY_INTERFACE != 0 {
        Key::of_interface(secret, (flags & MAPPING_ORIGIN) as u32).bucket()
    } else {
        Key::of(secret, pod, Role::Pod).bucket()
    }
}

/// Verdicts of datagrams that one bucket may store in a tick (67 ms): 30,000 a second, at which
/// rate the map is replaced completely in half a second.
pub const FRAGMENTS_PER_TICK: u32 = 2048;

/// Possibly forged flows that one interface may have recorded in a tick: 60 a second, so that they
/// never hold most ports towards a destination.
pub const NOTES_PER_TICK: u32 = 4;

/// Refusals of one bucket that are answered with an ICMP error in a tick: 120 a second.
pub const ANSWERS_PER_TICK: u32 = 8;

/// Returns how many of `capacity` entries a bucket may have while all together have `used`: three
/// eighths, and no more than twice the free entries (dynamic thresholds: Choudhury and Hahne,
/// 1998). A pod has one bucket in each family, so a quarter always remains; of that, a second pod
/// leaves a quarter to others, and so on.
#[inline(always)]
#[must_use]
pub const fn limit(capacity: u32, used: u32) -> u32 {
    let most = capacity / 8 * 3;
    let left = capacity.saturating_sub(used).saturating_mul(2);
    if left < most { left } else { most }
}

/// Returns the difference of two wrapping counters; 0 if the agent was ahead.
#[inline(always)]
#[must_use]
#[expect(clippy::cast_possible_truncation, reason = "compared before")]
pub const fn count(opened: u64, ended: u64) -> u32 {
    let count = opened.wrapping_sub(ended);
    if count > u32::MAX as u64 {
        0
    } else {
        count as u32
    }
}

/// Counts one event in a tick, and returns the number of events in that tick.
///
/// # Safety
/// Both pointers must be readable and writable.
#[inline(always)]
const unsafe fn count_in_tick(count: *mut u32, tick: *mut u32, now: u32) -> u32 {
    // SAFETY: both are readable and writable by the contract.
    unsafe {
        if *tick != now {
            *tick = now;
            *count = 0;
        }
        *count = (*count).saturating_add(1);
        *count
    }
}

/// A [`Share`] in place with its [`ShareEnded`], shared with other CPUs.
#[derive(Clone, Copy)]
pub struct ShareSlot {
    share: *mut Share,
    ended: *const ShareEnded,
}

impl ShareSlot {
    /// # Safety
    /// Both pointers must stay readable, `share` also writable, for as long as the slot is used
    /// (map values inside one program run).
    #[inline(always)]
    #[must_use]
    pub const unsafe fn new(share: *mut Share, ended: *const ShareEnded) -> Self {
        Self { share, ended }
    }

    /// Returns the number of live mappings.
    #[inline(always)]
    #[must_use]
    pub fn mappings(self) -> u32 {
        // SAFETY: valid by the contract of `new`.
        unsafe { count((*self.share).opened, (*self.ended).mappings) }
    }

    /// Returns the number of live inbound flows.
    #[inline(always)]
    #[must_use]
    pub fn inbound(self) -> u32 {
        // SAFETY: valid by the contract of `new`.
        unsafe { count((*self.share).inbound, (*self.ended).inbound) }
    }

    /// Adds `by` mappings; `u64::MAX` subtracts one. Two CPUs at the same time may count one for
    /// two: the target has no atomic addition, and the agent recounts with each full sweep.
    #[inline(always)]
    pub fn add_mappings(self, by: u64) {
        // SAFETY: valid by the contract of `new`.
        unsafe { (*self.share).opened = (*self.share).opened.wrapping_add(by) }
    }

    /// Adds `by` inbound flows; `u64::MAX` subtracts one. Races as in [`Self::add_mappings`].
    #[inline(always)]
    pub fn add_inbound(self, by: u64) {
        // SAFETY: valid by the contract of `new`.
        unsafe { (*self.share).inbound = (*self.share).inbound.wrapping_add(by) }
    }

    /// Takes a token of `rate` a second with a burst; returns `false` if there is none. Two CPUs at
    /// the same time may take one token for two.
    #[inline(always)]
    pub fn take_token(self, now: u32, rate: u32, burst: u32) -> bool {
        // A second has 14.9 ticks.
        const TICKS_PER_SECOND: u64 = 15;
        // SAFETY: valid by the contract of `new`.
        unsafe {
            let share = self.share;
            let idle = now.wrapping_sub((*share).filled_at);
            let mut tokens = (*share).tokens;
            if idle != 0 {
                let more = u64::from(idle) * u64::from(rate) / TICKS_PER_SECOND;
                // Slow rates accumulate until there is a whole token.
                if more > 0 {
                    let full = u64::from(tokens) + more;
                    tokens = u32::try_from(full).map_or(burst, |full| full.min(burst));
                    (*share).filled_at = now;
                }
            }
            let taken = tokens > 0;
            (*share).tokens = if taken { tokens - 1 } else { 0 };
            taken
        }
    }

    /// Counts a stored verdict of a datagram; returns `false` if there were too many in this tick.
    #[inline(always)]
    pub fn take_fragment(self, now: u32) -> bool {
        // SAFETY: valid by the contract of `new`.
        unsafe {
            let (count, tick) = (
                &raw mut (*self.share).fragments,
                &raw mut (*self.share).fragments_at,
            );
            count_in_tick(count, tick, now) <= FRAGMENTS_PER_TICK
        }
    }

    /// Counts a record of a flow that may be forged; returns `false` if there were too many in this
    /// tick.
    #[inline(always)]
    pub fn take_note(self, now: u32) -> bool {
        // SAFETY: valid by the contract of `new`.
        unsafe {
            let (count, tick) = (
                &raw mut (*self.share).notes,
                &raw mut (*self.share).notes_at,
            );
            count_in_tick(count, tick, now) <= NOTES_PER_TICK
        }
    }

    /// Counts an answered refusal; returns `false` if there were too many in this tick.
    #[inline(always)]
    pub fn take_answer(self, now: u32) -> bool {
        // SAFETY: valid by the contract of `new`.
        unsafe {
            let (count, tick) = (
                &raw mut (*self.share).answered,
                &raw mut (*self.share).answered_at,
            );
            count_in_tick(count, tick, now) <= ANSWERS_PER_TICK
        }
    }

    /// Reports whether a flow found no port less than `within` ticks ago; of the total.
    #[inline(always)]
    #[must_use]
    pub fn has_refused(self, now: u32, within: u32) -> bool {
        // SAFETY: valid by the contract of `new`.
        unsafe { age(now, (*self.share).refused_at) < within }
    }

    /// Records that a flow found no port; in the total.
    #[inline(always)]
    pub fn set_refused(self, now: u32) {
        // SAFETY: valid by the contract of `new`.
        unsafe { (*self.share).refused_at = now }
    }

    /// Reports whether the pod with this tag was found behind the interface in this epoch.
    #[inline(always)]
    #[must_use]
    pub fn is_behind(self, tag: u32, ifindex: u32, epoch: u32) -> bool {
        // SAFETY: valid by the contract of `new`.
        unsafe {
            let share = self.share;
            (*share).ifindex == ifindex && (*share).tag == tag && (*share).epoch == epoch
        }
    }

    /// Records that the pod with this tag was found behind the interface in this epoch.
    #[inline(always)]
    pub fn set_behind(self, tag: u32, ifindex: u32, epoch: u32) {
        // SAFETY: valid by the contract of `new`. If two CPUs write at the same time, words of two
        // pods may mix: then neither is found.
        unsafe {
            let share = self.share;
            (*share).tag = tag;
            (*share).ifindex = ifindex;
            (*share).epoch = epoch;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Key, Role, ShareSlot, limit};
    use crate::layout::{Addr, Share, ShareEnded};

    #[test]
    fn something_is_left_whoever_takes_how_much() {
        const CAPACITY: u32 = 262_144;
        for (greedy, left) in [(1, 163_840), (2, 65_536), (4, 7_281)] {
            let mut has = vec![0u32; greedy];
            // One pod after the other, each as much as it can get.
            loop {
                let used: u32 = has.iter().sum();
                let Some(pod) = has.iter_mut().find(|has| **has < limit(CAPACITY, used)) else {
                    break;
                };
                *pod += 1;
            }
            let used: u32 = has.iter().sum();
            let free = CAPACITY - used;
            assert!(free.abs_diff(left) < 3, "{greedy}: {free}");
            assert!(0 < limit(CAPACITY, used), "one more gets in");
        }
    }

    #[test]
    fn tokens_come_at_their_rate() {
        let mut share = Share {
            filled_at: 100,
            ..Share::default()
        };
        let ended = ShareEnded::default();
        // SAFETY: both outlive the slot.
        let slot = unsafe { ShareSlot::new(&raw mut share, &raw const ended) };
        assert!(!slot.take_token(100, 30, 60), "none yet");
        let taken = |now| (0..1000).filter(|_| slot.take_token(now, 30, 60)).count();
        assert_eq!(taken(101), 2);
        assert_eq!(taken(116), 30);
        assert_eq!(taken(10_000), 60, "the burst");
        assert_eq!(
            (10_001..10_016)
                .filter(|t| slot.take_token(*t, 1, 1))
                .count(),
            1
        );
    }

    #[test]
    fn a_refusal_counts_for_a_while_whichever_cpu_is_ahead() {
        let mut share = Share::default();
        let ended = ShareEnded::default();
        // SAFETY: both outlive the slot.
        let slot = unsafe { ShareSlot::new(&raw mut share, &raw const ended) };
        slot.set_refused(100);
        for (now, counts) in [(100, true), (99, true), (109, true), (110, false)] {
            assert_eq!(slot.has_refused(now, 10), counts, "{now}");
        }
    }

    #[test]
    fn addresses_spread_under_each_secret_in_another_way() {
        let addr = |n: u32| Addr::from_v4(n.to_be_bytes());
        let buckets: std::collections::HashSet<_> = (0..1000)
            .map(|n| Key::of([1, 2], &addr(n), Role::Pod).bucket())
            .collect();
        assert!(buckets.len() > 900, "{}", buckets.len());
        let moved = (0..1000).filter(|n| {
            Key::of([1, 2], &addr(*n), Role::Pod) != Key::of([1, 3], &addr(*n), Role::Pod)
        });
        assert_eq!(moved.count(), 1000);
    }
}
