//! 6.1: ICMP queries other than echo.

use crate::bed::{V4, pod, server};
use crate::build::query;
use crate::driver::Wire;
use crate::flow::Flow;
use anyhow::{Result, ensure};

/// Three timestamps (RFC 792).
const TIMES: [u8; 12] = [0, 1, 2, 3, 0, 0, 0, 0, 0, 0, 0, 0];

pub fn r6_1_timestamp_queries(w: &mut Wire) -> Result<()> {
    let outside = server(V4, 0);
    let ask = |n| query(pod(V4, n), outside, 13, 7777, &TIMES);
    let mut flows = Vec::new();
    for n in 0..2 {
        flows.push(Flow {
            pod: n,
            inside: (pod(V4, n), 7777),
            outside: (outside, 0),
            wire: w.out(n, &ask(n))?,
        });
    }
    ensure!(flows[0].wire.1 == 7777, "a free identifier is kept");
    ensure!(flows[1].wire.1 != 7777, "one identifier for two");
    for flow in flows.iter().rev() {
        let answer = query(outside, flow.wire.0, 14, flow.wire.1, &TIMES);
        w.back(flow, &answer)?;
        w.same(flow, &ask(flow.pod))?;
        w.back(flow, &answer)?;
    }
    // An unsolicited reply is the node's.
    let (addr, id) = flows[0].wire;
    let stray = query(outside, addr, 14, id ^ 0x4000, &TIMES);
    w.not_back(0, &stray)?;
    // A pod's unsolicited reply does not leave either.
    w.refused(0, &query(pod(V4, 0), outside, 14, 9, &TIMES))
}
