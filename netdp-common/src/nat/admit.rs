//! Admission of new mappings: no pod uses up the tables that all share.

use super::Work;
use super::evict::recycle;
use crate::abi::{MAPPING_BY_INTERFACE, origin_tag};
use crate::share::{self, Key};
use crate::tables::{Origin, Tables};
use crate::verdict::DropReason;

/// Chooses the bucket against which the mapping will count, and returns the drop reason if the
/// mapping is refused. Runs in steps, see [`super::open::open`].
///
/// While the tables are three quarters full, sources that are not known neighbours count together,
/// by the interface by which they arrive: thousands of forged sources get one share.
#[inline(always)]
pub(super) fn refusal<T: Tables>(tables: &T, work: &mut Work) -> Option<DropReason> {
    match ask(tables, work) {
        Answer::Yes => None,
        Answer::IfOwn if recycle(tables, work) => None,
        Answer::IfOwn if tables.limits().flows != 0 => Some(DropReason::PodLimit),
        Answer::IfOwn => Some(DropReason::TableFull),
        Answer::Tight => {
            // The insertion may fail now; a retry can still succeed.
            recycle(tables, work);
            None
        }
        Answer::No => Some(DropReason::PodLimit),
    }
}

/// The decision about a pod's request for another mapping.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
enum Answer {
    Yes,
    /// Only if a mapping of its own, or of a pod with many more, is evicted.
    IfOwn,
    /// Yes, but the tables are nearly full.
    Tight,
    No,
}

#[inline(never)]
fn ask<T: Tables>(tables: &T, work: &mut Work) -> Answer {
    let limits = tables.limits();
    let Some(total) = tables.share(share::TOTAL) else {
        return Answer::Yes;
    };
    let (used, capacity) = (total.mappings(), limits.capacity);
    let ifindex = tables.ingress_ifindex();
    let tag = origin_tag(ifindex);
    let by_interface = used >= capacity / 4 * 3
        && ifindex != 0
        && !matches!(
            tables.origin(&work.pkt.tuple.src, work.pkt.family),
            Origin::Link
        );
    let (key, flags) = if by_interface {
        let key = Key::of_interface(tables.secret(), tag.into());
        (key, tag | MAPPING_BY_INTERFACE)
    } else {
        (work.source, tag)
    };
    work.claim.set_bucket(key.bucket(), flags);
    let Some(share) = tables.share(key.bucket()) else {
        return Answer::Yes;
    };
    if limits.rate != 0 && !share.take_token(tables.now(), limits.rate, limits.burst) {
        return Answer::No;
    }
    let most = match limits.flows {
        0 => share::limit(capacity, used),
        // A configured limit applies unchanged.
        flows => flows,
    };
    let has = share.mappings();
    let own = has >= most;
    work.recycling.begin(key.bucket(), own, most, has);
    if own {
        Answer::IfOwn
    } else if used >= capacity - capacity / 64 {
        Answer::Tight
    } else {
        Answer::Yes
    }
}
