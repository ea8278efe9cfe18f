//! The hash that selects a packet's queue, for a packet that has none. Otherwise the kernel would
//! parse the packet's headers once more (`skb_get_hash`, net/core/flow_dissector.c, Linux 6.12).

use crate::layout::{Addr, Tuple};
use crate::packet::{Packet, queue_hash, tuple_hash};
use crate::skb::Linear;

/// Sets the hash of a parsed packet. Fragments keep theirs, which is the same for all of a
/// datagram.
#[inline(always)]
pub(super) fn hash_packet<S: Linear>(skb: &S, pkt: &Packet) {
    if pkt.is_fragment == 0 {
        hash_tuple(skb, &pkt.tuple);
    }
}

/// Sets the hash of an unfragmented packet with this tuple.
#[inline(always)]
pub(super) fn hash_tuple<S: Linear>(skb: &S, tuple: &Tuple) {
    hash_by(skb, || Some(tuple_hash(tuple)));
}

/// Sets the hash of an unmodified packet between these addresses, if it can be read from the first
/// words alone.
#[inline(always)]
pub(super) fn hash_passed<S: Linear>(skb: &S, l2_len: u32, src: &Addr, dst: &Addr) {
    hash_by(skb, || queue_hash(skb, skb.ethertype(), l2_len, src, dst));
}

#[inline(always)]
fn hash_by<S: Linear>(skb: &S, hash: impl FnOnce() -> Option<u32>) {
    if !skb.has_hash()
        && let Some(hash) = hash()
    {
        skb.set_hash(hash);
    }
}
