//! The expiry of flows that keep the pod's address.

use super::clock::{age, ticks32};
use super::timeouts::{CLOSED_SECONDS, INBOUND_SECONDS, asked_seconds, live_seconds};
use crate::layout::{Inbound, LIVE_FIN_IN, LIVE_FIN_OUT, Live};

/// Ticks for which a flow that has closed keeps the pod's address: its packets may be in flight.
pub const LINGER_TICKS: u32 = ticks32(CLOSED_SECONDS);

/// [`Inbound::limit`]: the timeout of [`asked_seconds`] applies.
pub const BY_PROTOCOL: u32 = u32::MAX;

/// Reports whether an unanswered flow is within its timeout.
#[inline(always)]
pub const fn is_asked_still(protocol: u32, asked: Inbound, now: u32) -> bool {
    age(now, asked.last_seen) < asked_ticks(protocol, asked)
}

/// Returns the silence in ticks that ends an unanswered flow. Records without a limit continue a
/// flow that was bypassed, or come from agents that did not distinguish answered flows.
#[inline(always)]
pub const fn asked_ticks(protocol: u32, asked: Inbound) -> u32 {
    match asked.limit {
        0 => ticks32(INBOUND_SECONDS),
        BY_PROTOCOL => ticks32(asked_seconds(protocol)),
        limit => limit,
    }
}

/// Reports whether a live flow is within its timeout.
#[inline(always)]
#[must_use]
pub const fn is_fresh(protocol: u32, live: &Live, now: u32) -> bool {
    let half_closed = live.seen & (LIVE_FIN_OUT | LIVE_FIN_IN) != 0;
    let limit = match live.limit {
        0 => ticks32(live_seconds(protocol, half_closed)),
        limit => limit,
    };
    age(now, live.last_seen) < limit
}
