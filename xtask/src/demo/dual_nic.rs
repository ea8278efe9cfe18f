//! Scene: a node with a default route on one NIC and a private network on another.

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
";

pub fn run(netdp: &Path) -> Result<()> {
    narrate(
        "The node has 10.1.0.10 on eth0, with the default route, and 192.168.50.10 on eth1, which \
         leads to the\nprivate network 192.168.60.0/24. Nobody out there knows the way to pods.",
    );
    let bed = Bed::builder()
        .uplink("eth0", &["10.1.0.10/16"])
        .uplink("eth1", &["192.168.50.10/24"])
        .pods(1, &["172.16.0.0/16"])
        .build()?;
    let public = bed.server(0, &["203.0.113.10/24"])?;
    let private = bed.server(1, &["192.168.60.10/24"])?;
    let _public_http = HttpServer::start(&public, (public.v4()?, 80))?;
    let _private_http = HttpServer::start(&private, (private.v4()?, 80))?;
    let pod = &bed.pods[0];
    let pod_ip = pod.v4()?.into();
    let mut seen = Seen::new();
    let ways = [(&public, &bed.uplinks[0]), (&private, &bed.uplinks[1])];

    shell::progress("before: curl, twice, each of which will time out after 2 s");
    for (server, uplink) in ways {
        let url = format!("http://{}/health", server.v4()?);
        curl(pod, &url)?.expect_time_out(&url)?;
        let source = half_open_source(server)?;
        expect_source(source, pod_ip, "the pod's")?;
        seen.row(
            "before",
            &format!("curl {}/health", server.v4()?),
            "timeout",
            source,
            &format!("left by {} with the pod's address", uplink.name),
        );
    }

    let config = ConfigVolume::new(CONFIG)?;
    let agent = start_agent(netdp, &bed, &config, &["eth0", "eth1"])?;
    for (server, uplink) in ways {
        let source = source_by_curl(pod, &format!("http://{}/health", server.v4()?))?;
        expect_source(source, uplink.v4()?.into(), "the uplink's")?;
        seen.row(
            "after",
            &format!("curl {}/health", server.v4()?),
            "200",
            source,
            &format!("the node's address on {}", uplink.name),
        );
    }
    narrate(&format!("\nThe configuration:\n{CONFIG}"));
    seen.print();
    show_mappings(&agent, pod)
}
