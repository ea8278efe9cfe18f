//! Scene: pods reach a peered network that has no route back to them.

use super::clients::{curl, expect_source, half_open_source, source_by_curl};
use super::table::Seen;
use super::{narrate, show_mappings, start_agent};
use crate::shell;
use anyhow::Result;
use std::path::Path;
use testbed::{Bed, ConfigVolume, HttpServer};

const CONFIG: &str = "\
nonMasqueradeCIDRs:
- 172.16.0.0/16
- 10.1.0.0/16
";

const PEERED: &str = "http://10.2.0.1/health";
const NEAR: &str = "http://10.1.0.20/health";

pub fn run(netdp: &Path) -> Result<()> {
    narrate(
        "Pods are in 172.16.0.0/16, their node is 10.1.0.10 in 10.1.0.0/16. The peered network \
         10.2.0.0/16\nhas a route to the node, and none to pods.",
    );
    let bed = Bed::builder()
        .uplink("eth0", &["10.1.0.10/16"])
        .pods(1, &["172.16.0.0/16"])
        .build()?;
    let server = bed.server(0, &["10.2.0.1/16"])?;
    let near = bed.neighbour(0, &["10.1.0.20/16"])?;
    let _server_http = HttpServer::start(&server, (server.v4()?, 80))?;
    let _near_http = HttpServer::start(&near, (near.v4()?, 80))?;
    let pod = &bed.pods[0];
    let (pod_ip, node_ip) = (pod.v4()?.into(), bed.uplinks[0].v4()?.into());
    let mut seen = Seen::new();

    shell::progress("before: curl, which will time out after 2 s");
    curl(pod, PEERED)?.expect_time_out(PEERED)?;
    let source = half_open_source(&server)?;
    expect_source(source, pod_ip, "the pod's")?;
    seen.row(
        "before",
        "curl 10.2.0.1/health",
        "timeout",
        source,
        "no route back to the pod",
    );

    let config = ConfigVolume::new(CONFIG)?;
    let agent = start_agent(netdp, &bed, &config, &[])?;
    let source = source_by_curl(pod, PEERED)?;
    expect_source(source, node_ip, "the node's")?;
    seen.row(
        "after",
        "curl 10.2.0.1/health",
        "200",
        source,
        "masqueraded: the reply goes to the node",
    );
    let source = source_by_curl(pod, NEAR)?;
    expect_source(source, pod_ip, "the pod's own")?;
    seen.row(
        "after",
        "curl 10.1.0.20/health",
        "200",
        source,
        "10.1.0.0/16 is a nonMasqueradeCIDR",
    );
    narrate(&format!("\nThe configuration:\n{CONFIG}"));
    seen.print();
    show_mappings(&agent, pod)
}
