//! Admission of new mappings: no pod uses up the tables that all share.

use super::evict::{Among, recycle};
use super::origin::{Origin, key_of, locate};
use super::scratch::Scratch;
use crate::env::Env;
use crate::layout::{DropReason, MAPPING_BY_INTERFACE, SHARE_TOTAL, origin_tag};
use crate::packet::Packet;
use crate::slot::{Key, share};

/// Chooses the bucket against which the mapping will count, and returns the drop reason if the
/// mapping is refused. Runs in steps, see [`super::allocate::allocate`].
///
/// While the tables are three quarters full, sources that are not known neighbours count together,
/// by the interface by which they arrive: thousands of forged sources get one share.
#[inline(always)]
pub(super) fn refusal<E: Env>(env: &E, scratch: &mut Scratch) -> Option<DropReason> {
    match assess(env, scratch) {
        Admission::Yes => None,
        Admission::IfOwn if recycle(env, &mut scratch.recycling) => None,
        Admission::IfOwn if env.limits().flows != 0 => Some(DropReason::PodLimit),
        Admission::IfOwn => Some(DropReason::TableFull),
        Admission::Tight => {
            // The insertion may fail now; a retry can still succeed.
            recycle(env, &mut scratch.recycling);
            None
        }
        Admission::No => Some(DropReason::PodLimit),
    }
}

/// The decision about a pod's request for another mapping.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
enum Admission {
    Yes,
    /// Only if a mapping of its own, or of a pod with many more, is evicted.
    IfOwn,
    /// Yes, but the tables are nearly full.
    Tight,
    No,
}

#[inline(never)]
fn assess<E: Env>(env: &E, scratch: &mut Scratch) -> Admission {
    let limits = env.limits();
    let Some(total) = env.lookup_share(SHARE_TOTAL) else {
        return Admission::Yes;
    };
    let (used, capacity) = (total.mappings(), limits.capacity);
    let ifindex = env.ingress_ifindex();
    let tag = origin_tag(ifindex);
    let by_interface = used >= capacity / 4 * 3
        && ifindex != 0
        && !matches!(
            locate(env, &scratch.pkt.tuple.src, scratch.pkt.family),
            Origin::Link
        );
    let (key, flags) = if by_interface {
        let key = Key::of_interface(env.secret(), tag.into());
        (key, tag | MAPPING_BY_INTERFACE)
    } else {
        (scratch.source, tag)
    };
    scratch.claim.set_bucket(key.bucket(), flags);
    let Some(share) = env.lookup_share(key.bucket()) else {
        return Admission::Yes;
    };
    if limits.rate != 0 && !share.take_token(env.now(), limits.rate, limits.burst) {
        return Admission::No;
    }
    let most = match limits.flows {
        0 => share::limit(capacity, used),
        // A configured limit applies unchanged.
        flows => flows,
    };
    let has = share.mappings();
    let full = has >= most;
    let among = if full { Among::Own } else { Among::All };
    scratch.recycling.begin(key.bucket(), among, most, has);
    if full {
        Admission::IfOwn
    } else if used >= capacity - capacity / 64 {
        Admission::Tight
    } else {
        Admission::Yes
    }
}

/// Counts the refusal of this packet, and reports whether it is answered with an ICMP error. Limited
/// to a number per interval, so that a flood does not cause another.
#[inline(never)]
pub fn refuse<E: Env>(env: &E, pkt: &Packet) -> bool {
    let bucket = key_of(env, &pkt.tuple.src).bucket();
    env.count_refusal(bucket);
    (env.lookup_share(bucket)).is_none_or(|share| share.take_answer(env.now()))
}
