//! Fragments: only the first has the L4 header that identifies its flow. Its verdict is stored for
//! the others.
//!
//! On egress, a fragment that overtook the first one gets the uplink's address too. On ingress its
//! flow is unknown: it is queued.

use super::{Work, choose_source};
use crate::abi::{Action, FRAGMENT_DROP, FRAGMENT_PASS, FRAGMENT_REWRITE, Fragment};
use crate::addr::Family;
use crate::conntrack::{age, ticks};
use crate::packet::{KEEP_IP_ID, Packet};
use crate::port_map::fold;
use crate::share::{Key, Role};
use crate::tables::Tables;
use crate::tuple::Tuple;
use crate::verdict::{DropReason, Verdict};

/// Seconds for which the verdict of a datagram is stored (Linux reassembles for 30 s in IPv4 and 60
/// s in IPv6; RFC 6146 3.5 requires 2 s at least).
const SECONDS: u64 = 60;

/// Returns the map key of a datagram's fragments.
#[inline(always)]
#[must_use]
pub const fn key(pkt: &Packet) -> Tuple {
    let id = pkt.fragment_id;
    Tuple::new(
        pkt.tuple.src,
        pkt.tuple.dst,
        (id >> 16) as u16,
        (id & 0xffff) as u16,
        pkt.tuple.proto,
    )
}

#[inline(always)]
fn known<T: Tables>(tables: &T, key: &Tuple, leaving: bool) -> Option<Fragment> {
    tables
        .fragment(key, leaving)
        .filter(|f| (age(tables.now(), f.last_seen) as u64) < ticks(SECONDS))
}

/// Stores the verdict of the first fragment, and gives it the identification of the other
/// fragments.
#[inline(never)]
pub fn first_egress<T: Tables>(tables: &T, work: &mut Work, verdict: Verdict) -> bool {
    let pkt = &mut work.pkt;
    let key = key(pkt);
    let fragment = match verdict {
        Verdict::Rewrite | Verdict::RewriteError => {
            pkt.new_ip_id = match (pkt.family, known(tables, &key, true)) {
                (Family::V4, Some(earlier)) => earlier.new_ip_id,
                (Family::V4, None) => new_ip_id(tables, pkt),
                // The 32 random bits of IPv6 need no change.
                (Family::V6, _) => KEEP_IP_ID,
            };
            fragment(tables, pkt, FRAGMENT_REWRITE)
        }
        Verdict::Drop(_) => fragment(tables, pkt, FRAGMENT_DROP),
        _ => fragment(tables, pkt, FRAGMENT_PASS),
    };
    remember(tables, pkt, &key, &fragment)
}

/// Stores the verdict of a datagram that leaves, unless the pod has sent too many in this interval:
/// they would displace those of other pods.
#[inline(always)]
fn remember<T: Tables>(tables: &T, pkt: &Packet, key: &Tuple, fragment: &Fragment) -> bool {
    let bucket = Key::of(tables.secret(), &pkt.tuple.src, Role::Pod).bucket();
    let may = (tables.share(bucket)).is_none_or(|share| share.take_fragment(tables.now()));
    if may {
        tables.insert_fragment(key, fragment, true);
    }
    may
}

/// Returns an identification for a datagram's fragments: each pair of addresses counts separately
/// (RFC 6864 5.3.1), from an unpredictable start.
#[inline(always)]
fn new_ip_id<T: Tables>(tables: &T, pkt: &Packet) -> u32 {
    let key = Tuple::new(pkt.new.addr, pkt.tuple.dst, 0, 0, pkt.tuple.proto);
    let hash = key.keyed_hash(tables.secret());
    (tables.next_ip_id(fold(hash)).wrapping_add(fold(hash >> 32))) & 0xffff
}

/// Stores the verdict of the first fragment.
#[inline(never)]
pub fn first_ingress<T: Tables>(tables: &T, work: &mut Work, verdict: Verdict) -> bool {
    let verdict = match verdict {
        Verdict::Rewrite | Verdict::RewriteError => FRAGMENT_REWRITE,
        Verdict::Drop(_) => FRAGMENT_DROP,
        _ => FRAGMENT_PASS,
    };
    let fragment = fragment(tables, &work.pkt, verdict);
    tables.insert_fragment(&key(&work.pkt), &fragment, false);
    true
}

/// Decides about a leaving fragment without L4 header. `None` if it is a pod's and precedes its
/// first fragment.
#[inline(never)]
pub(super) fn known_egress<T: Tables>(tables: &T, work: &mut Work) -> Option<Verdict> {
    let pkt = &mut work.pkt;
    let key = key(pkt);
    if let Some(known) = known(tables, &key, true) {
        return Some(follow(tables, pkt, &known, true));
    }
    let action = tables.action(&pkt.tuple.dst);
    if let Action::Bypass = action {
        tables.count(|c| &mut c.egress_bypassed);
        return Some(Verdict::Pass);
    }
    if tables.is_local(&pkt.tuple.src) {
        tables.count(|c| &mut c.egress_host);
        return Some(Verdict::Pass);
    }
    match action {
        Action::Withhold => Some(Verdict::Drop(DropReason::IpsecPolicy)),
        _ => None,
    }
}

/// Decides about a pod's fragment without L4 header that overtook the first one.
#[inline(always)]
pub(super) fn early_egress<T: Tables>(tables: &T, work: &mut Work) -> Verdict {
    // Not called from `begin_early`, whose stack frame would be live during the lookup.
    if !choose_source(tables, &mut work.pkt) {
        return Verdict::Drop(DropReason::NoSourceAddress);
    }
    begin_early(tables, work)
}

#[inline(never)]
fn begin_early<T: Tables>(tables: &T, work: &mut Work) -> Verdict {
    let pkt = &mut work.pkt;
    let key = key(pkt);
    pkt.new_ip_id = match pkt.family {
        Family::V4 => new_ip_id(tables, pkt),
        Family::V6 => KEEP_IP_ID,
    };
    let fragment = fragment(tables, pkt, FRAGMENT_REWRITE);
    if !remember(tables, pkt, &key, &fragment) {
        return Verdict::Drop(DropReason::PodLimit);
    }
    tables.count(|c| &mut c.egress_masqueraded);
    Verdict::Rewrite
}

/// Decides about an arriving fragment without L4 header.
#[inline(never)]
pub fn later_ingress<T: Tables>(tables: &T, work: &mut Work) -> Verdict {
    let pkt = &mut work.pkt;
    match known(tables, &key(pkt), false) {
        Some(known) => follow(tables, pkt, &known, false),
        None if tables.is_local(&pkt.tuple.dst) => Verdict::Hold,
        None => {
            tables.count(|c| &mut c.ingress_passed);
            Verdict::Pass
        }
    }
}

#[inline(always)]
fn follow<T: Tables>(tables: &T, pkt: &mut Packet, known: &Fragment, leaving: bool) -> Verdict {
    match known.verdict {
        FRAGMENT_REWRITE => {
            pkt.new.addr = known.addr;
            pkt.new_ip_id = known.new_ip_id;
            tables.count(|c| {
                if leaving {
                    &mut c.egress_masqueraded
                } else {
                    &mut c.ingress_translated
                }
            });
            Verdict::Rewrite
        }
        FRAGMENT_DROP => Verdict::Drop(DropReason::FragmentOfDropped),
        _ => Verdict::Pass,
    }
}

#[inline(always)]
fn fragment<T: Tables>(tables: &T, pkt: &Packet, verdict: u32) -> Fragment {
    Fragment {
        addr: pkt.new.addr,
        verdict,
        new_ip_id: pkt.new_ip_id,
        last_seen: tables.now(),
        pad: 0,
    }
}
