//! The node's own traffic.

use super::Work;
use super::open::mapping;
use crate::abi::MAPPING_HOST;
use crate::conntrack::{ACK, FIN, RST, SYN};
use crate::packet::L4;
use crate::tables::Tables;
use crate::tuple::proto;

/// Whether a packet of the node's own needs a mapping: a pod's holds its wire
/// tuple, towards a bypassed destination too, for the mapping may be older than
/// the policy. All others are left alone.
#[inline(never)]
pub(super) fn needs_mapping<T: Tables>(tables: &T, work: &mut Work, bypass: bool) -> bool {
    let pkt = &work.pkt;
    tables.count(|c| &mut c.egress_host);
    let opens = match pkt.l4 {
        L4::Udp | L4::Query | L4::Address => true,
        L4::Tcp(segment) => segment.flags & (SYN | ACK | RST | FIN) == SYN,
        _ => return false,
    };
    let wire = pkt.tuple.reversed();
    match tables.rev_snat(&wire) {
        Some(slot) if slot.may_leave() => {
            slot.record(&pkt.l4, tables.now());
            false
        }
        Some(_) => {
            work.pkt.new.addr = work.pkt.tuple.src;
            true
        }
        // Sockets are looked up when a port is given away. What a lookup does
        // not find (pings, what netfilter translated to a node address) is
        // remembered here.
        None => {
            let found_by_lookup = matches!(pkt.tuple.proto, proto::TCP | proto::UDP);
            if opens && !bypass && !(found_by_lookup && tables.sent_by_socket()) {
                let now = tables.now();
                let marker = mapping(&wire.dst, wire.dst_id, MAPPING_HOST, now);
                // A full table only costs this flow its protection.
                let _ = tables.insert_rev_snat(&wire, &marker);
            }
            false
        }
    }
}
