//! Whether a pod may begin another mapping: no pod takes what all need.

use super::Work;
use super::evict::recycle;
use crate::abi::{MAPPING_BY_INTERFACE, origin_tag};
use crate::share::{self, Key};
use crate::tables::{Origin, Tables};
use crate::verdict::DropReason;

/// Notes where the mapping will count; why there must be none, if so. Step by step, see
/// [`super::open::open`].
///
/// While tables are three quarters full, sources that are no known neighbour's count
/// together, as of the interface by which they come: whoever forges thousands of them has
/// one share.
#[inline(always)]
pub(super) fn refusal<T: Tables>(tables: &T, work: &mut Work) -> Option<DropReason> {
    match ask(tables, work) {
        Answer::Yes => None,
        Answer::IfOwn if recycle(tables, work) => None,
        Answer::IfOwn if tables.limits().flows != 0 => Some(DropReason::PodLimit),
        Answer::IfOwn => Some(DropReason::TableFull),
        Answer::Tight => {
            // What can't be had now may still fit.
            recycle(tables, work);
            None
        }
        Answer::No => Some(DropReason::PodLimit),
    }
}

/// What becomes of a pod's wish for another mapping.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
enum Answer {
    Yes,
    /// If one of its own, or of somebody with many more, makes room.
    IfOwn,
    /// There is hardly room.
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
        // Who sets a limit has thought of it.
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
