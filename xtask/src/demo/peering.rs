//! Scene: pods can't reach a peered network that has no route back to them, and netdp names the
//! missing line.

use super::clients::{curl, expect_source, half_open_source, source_by_curl};
use super::table::Seen;
use super::{TIME_OUT, narrate, show_mappings, start_agent};
use crate::shell;
use anyhow::{Context as _, Result, ensure};
use std::path::Path;
use testbed::{Agent, Bed, ConfigVolume, HttpServer, Netns, output, wait_some};

const CONFIG: &str = "\
nonMasqueradeCIDRs:
- 172.16.0.0/16
- 10.0.0.0/8
";

const PEERED: &str = "http://10.2.0.1/health";
const NEAR: &str = "http://10.1.0.20/health";

/// Clients that try at the same time: enough for netdp to tell (20 attempts; a SYN that is repeated counts again).
const CLIENTS: usize = 16;

pub fn run(netdp: &Path) -> Result<()> {
    narrate(
        "Pods are in 172.16.0.0/16, their node is 10.1.0.10 in 10.1.0.0/16. The peered network \
         10.2.0.0/16\nhas a route to the node, and none to pods; the list of non-masquerade CIDRs \
         has all of 10.0.0.0/8.",
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

    let mut config = ConfigVolume::new(CONFIG)?;
    let agent = start_agent(netdp, &bed, &config, &[])?;
    shell::progress("before: curl, which will time out after 2 s");
    time_out(pod)?;
    let source = half_open_source(&server)?;
    expect_source(source, pod_ip, "the pod's")?;
    seen.row(
        "before",
        "curl 10.2.0.1/health",
        "timeout",
        source,
        "no route back to the pod",
    );
    curl(&bed.node, PEERED)?.expect_answer("curl on the node")?;

    let document = suggestion(netdp, &bed, &agent)?;
    shell::progress("the configuration gets what netdp suggests");
    config.write(&format!("{CONFIG}{document}"))?;
    let source = wait_some(TIME_OUT * 3, "curl to get through", || {
        source_by_curl(pod, PEERED).ok()
    })
    .with_context(|| format!("the agent's log:\n{}", agent.log()))?;
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
        "10.0.0.0/8 is a nonMasqueradeCIDR",
    );
    narrate(&format!("\nThe configuration:\n{CONFIG}{document}"));
    seen.print();
    show_mappings(&agent, pod)
}

/// Has clients in the pod try until they time out.
fn time_out(pod: &Netns) -> Result<()> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..CLIENTS)
            .map(|_| scope.spawn(|| curl(pod, PEERED)))
            .collect();
        for thread in threads {
            let outcome = thread.join().map_err(|_| anyhow::anyhow!("curl"))??;
            outcome.expect_time_out(PEERED)?;
        }
        Ok(())
    })
}

/// Has the node try too, prints what `netdp suggest` says, and returns its document.
fn suggestion(netdp: &Path, bed: &Bed, agent: &Agent) -> Result<String> {
    let mut probe = bed.node.command(netdp);
    output(probe.args(["probe", "-n", "3", "10.2.0.1:80"]))?;
    let text = agent.netdp(&["suggest"])?;
    ensure!(
        text.contains("no way back to pods"),
        "netdp suggest should name the network:\n{text}"
    );
    narrate(&format!(
        "netdp probe -n 3 10.2.0.1:80, on the node, is answered. netdp suggest:\n\n{text}"
    ));
    agent.netdp(&["suggest", "-o", "yaml"])
}
