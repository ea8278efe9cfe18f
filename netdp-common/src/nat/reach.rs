//! Counting of connections to bypassed destinations, and of their answers. It decides nothing.

use crate::env::Env;
use crate::layout::{Addr, Reach, network_of};
use crate::packet::{ACK, L4, RST, SYN};
use crate::slot::ReachField;

/// Whose connection it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Whose {
    Pods,
    Nodes,
}

/// Reports whether a packet begins what has to be answered: a TCP connection, or an ICMP query.
#[inline(always)]
pub(super) const fn is_begin(l4: &L4) -> bool {
    matches!(l4, L4::Query) || l4.is_bare_syn()
}

/// Reports whether a packet answers such a packet: the way back exists, whether the peer accepts or not.
/// A reset that answers a SYN acknowledges it and has the sequence number 0 (RFC 9293 3.5.2).
#[inline(always)]
pub(super) const fn is_answer(l4: &L4) -> bool {
    match l4 {
        L4::QueryReply => true,
        L4::Tcp(segment) => match segment.flags & (SYN | ACK | RST) {
            flags if flags == SYN | ACK => true,
            flags if flags == RST | ACK => segment.seq == 0 && segment.bad_checksum == 0,
            _ => false,
        },
        _ => false,
    }
}

/// Counts that a connection was begun towards a bypassed destination. Returns `true`.
#[inline(never)]
pub(super) fn count_begin<E: Env>(env: &E, dst: &Addr, whose: Whose) -> bool {
    let network = network_of(dst);
    if let Some(slot) = env.lookup_reach(&network) {
        slot.add(match whose {
            Whose::Pods => ReachField::PodNew,
            Whose::Nodes => ReachField::NodeNew,
        });
        return true;
    }
    let first = Reach {
        pod_new: (whose == Whose::Pods).into(),
        node_new: (whose == Whose::Nodes).into(),
        ..Reach::default()
    };
    env.insert_reach(&network, &first);
    true
}

/// Counts an answer from a network, if connections towards it are counted. Returns `true`.
#[inline(never)]
pub(super) fn count_answer<E: Env>(env: &E, src: &Addr, whose: Whose) -> bool {
    if let Some(slot) = env.lookup_reach(&network_of(src)) {
        slot.add(match whose {
            Whose::Pods => ReachField::PodAnswered,
            Whose::Nodes => ReachField::NodeAnswered,
        });
    }
    true
}
