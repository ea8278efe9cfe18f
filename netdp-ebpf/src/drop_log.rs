//! Log messages about refusals, for the agent's log: source, destination and reason. At most one
//! message a second.

use aya_ebpf::btf_maps::Array;
use aya_ebpf::macros::btf_map;
use aya_ebpf::programs::TcContext;
use aya_log_ebpf::warn;
use netdp_common::env::Env;
use netdp_common::flow::age;
use netdp_common::layout::{DropReason, Family};
use netdp_common::packet::Packet;

/// The time of the last message, in ticks.
#[btf_map]
static LAST_REPORT: Array<u32, 1> = Array::new();

/// The minimum interval of messages, in ticks: a second.
const PAUSE: u32 = 15;

/// Logs a refused flow, unless one was logged within [`PAUSE`].
#[inline(never)]
pub fn log<E: Env>(ctx: &TcContext, env: &E, pkt: &Packet, reason: DropReason) -> bool {
    let Some(last) = LAST_REPORT.get_ptr_mut(0) else {
        return false;
    };
    let now = env.now();
    // SAFETY: a map value, one word. Two CPUs at once log two messages.
    unsafe {
        if age(now, *last) < PAUSE {
            return false;
        }
        *last = now;
    }
    let (src, dst) = (&pkt.tuple.src, &pkt.tuple.dst);
    let port = pkt.tuple.dst_id;
    match (reason, pkt.family) {
        (DropReason::NoFreePort, Family::V4) => warn!(
            ctx,
            "refused {:i} to {:i} port {}: every port towards it is taken",
            src.v4_octets(),
            dst.v4_octets(),
            port
        ),
        (DropReason::NoFreePort, Family::V6) => warn!(
            ctx,
            "refused {:i} to {:i} port {}: every port towards it is taken",
            *src.octets(),
            *dst.octets(),
            port
        ),
        (DropReason::TableFull, Family::V4) => warn!(
            ctx,
            "refused {:i} to {:i} port {}: the mapping tables are full (--max-flows)",
            src.v4_octets(),
            dst.v4_octets(),
            port
        ),
        (DropReason::TableFull, Family::V6) => warn!(
            ctx,
            "refused {:i} to {:i} port {}: the mapping tables are full (--max-flows)",
            *src.octets(),
            *dst.octets(),
            port
        ),
        (DropReason::PodLimit, Family::V4) => warn!(
            ctx,
            "refused {:i} to {:i} port {}: the pod has reached its limit (--pod-flows, --pod-new-flows)",
            src.v4_octets(),
            dst.v4_octets(),
            port
        ),
        (DropReason::PodLimit, Family::V6) => warn!(
            ctx,
            "refused {:i} to {:i} port {}: the pod has reached its limit (--pod-flows, --pod-new-flows)",
            *src.octets(),
            *dst.octets(),
            port
        ),
        (DropReason::NodeProtocol, Family::V4) => warn!(
            ctx,
            "refused {:i} to {:i}: the node itself uses this protocol with it",
            src.v4_octets(),
            dst.v4_octets()
        ),
        (DropReason::NodeProtocol, Family::V6) => warn!(
            ctx,
            "refused {:i} to {:i}: the node itself uses this protocol with it",
            *src.octets(),
            *dst.octets()
        ),
        (DropReason::IpsecPolicy, Family::V4) => warn!(
            ctx,
            "refused {:i} to {:i}: an IPsec policy covers it, and it would leave in clear text",
            src.v4_octets(),
            dst.v4_octets()
        ),
        (DropReason::IpsecPolicy, Family::V6) => warn!(
            ctx,
            "refused {:i} to {:i}: an IPsec policy covers it, and it would leave in clear text",
            *src.octets(),
            *dst.octets()
        ),
        (_, Family::V4) => warn!(
            ctx,
            "refused {:i} to {:i}: the uplink has no address",
            src.v4_octets(),
            dst.v4_octets()
        ),
        (_, Family::V6) => warn!(
            ctx,
            "refused {:i} to {:i}: the uplink has no address",
            *src.octets(),
            *dst.octets()
        ),
    }
    true
}
