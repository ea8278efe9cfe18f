//! Scene: a managed Redis in a small range inside a broad non-masquerade CIDR.

use super::clients::{expect_source, redis, source_by_curl};
use super::table::Seen;
use super::{TIME_OUT, narrate, show_mappings, start_agent};
use crate::shell;
use anyhow::{Context as _, Result, ensure};
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use testbed::{Bed, ConfigVolume, HttpServer, Netns, RedisServer, wait_some};

const BROAD: &str = "\
nonMasqueradeCIDRs:
- 10.0.0.0/8
";

const EXCEPTION: &str = "\
nonMasqueradeCIDRs:
- 10.0.0.0/8
masqueradeCIDRs:
- 10.0.0.0/29
";

const NEAR: &str = "http://10.1.0.20/health";

pub fn run(netdp: &Path) -> Result<()> {
    narrate(
        "A Redis server has 10.0.0.3 in 10.0.0.0/29. The cluster bypasses all of 10.0.0.0/8, but \
         the\nmanaged service has no route to pods.",
    );
    let bed = Bed::builder()
        .uplink("eth0", &["10.1.0.10/16"])
        .pods(1, &["172.16.0.0/16"])
        .build()?;
    let server = bed.server(0, &["10.0.0.3/29"])?;
    let near = bed.neighbour(0, &["10.1.0.20/16"])?;
    let _redis = RedisServer::start(&server, (server.v4()?, 6379))?;
    let _http = HttpServer::start(&near, (near.v4()?, 80))?;
    let pod = &bed.pods[0];
    let redis_ip = server.v4()?.into();
    let (pod_ip, node_ip) = (pod.v4()?.into(), bed.uplinks[0].v4()?.into());
    let mut seen = Seen::new();

    let mut config = ConfigVolume::new(BROAD)?;
    let agent = start_agent(netdp, &bed, &config, &[])?;
    shell::progress("before: redis-cli, which will time out after 2 s");
    redis(pod, redis_ip, &["info", "server"])?.expect_time_out("redis-cli info")?;
    let source = super::clients::half_open_source(&server)?;
    expect_source(source, pod_ip, "the pod's")?;
    seen.row(
        "before",
        "redis-cli -h 10.0.0.3 info",
        "timeout",
        source,
        "10.0.0.0/8 is a nonMasqueradeCIDR",
    );

    shell::progress("the configuration gets masqueradeCIDRs: [10.0.0.0/29]");
    config.write(EXCEPTION)?;
    let (version, source) = wait_some(TIME_OUT * 3, "redis-cli to get through", || {
        ask(pod, redis_ip).ok()
    })
    .with_context(|| format!("the agent's log:\n{}", agent.log()))?;
    expect_source(source, node_ip, "the node's")?;
    seen.row(
        "after",
        "redis-cli -h 10.0.0.3 info",
        &format!("Redis {version}"),
        source,
        "10.0.0.0/29 is the longer prefix",
    );
    let source = source_by_curl(pod, NEAR)?;
    expect_source(source, pod_ip, "the pod's own")?;
    seen.row(
        "after",
        "curl 10.1.0.20/health",
        "200",
        source,
        "only 10.0.0.0/8 matches",
    );
    narrate(&format!("\nThe configuration:\n{EXCEPTION}"));
    seen.print();
    show_mappings(&agent, pod)
}

/// Returns the server's version, and the client's address that the server sees.
fn ask(pod: &Netns, server: IpAddr) -> Result<(String, IpAddr)> {
    let answer = |command: &[&str]| redis(pod, server, command)?.expect_answer("redis-cli");
    let info = answer(&["info", "server"])?;
    let version = field(&info, "redis_version:").context("no version in redis-cli info")?;
    let client = answer(&["client", "info"])?;
    let source = field(&client, "addr=").context("no address in redis-cli client info")?;
    ensure!(!version.is_empty(), "an empty version in redis-cli info");
    let source: SocketAddr = source.parse().context("redis-cli client info")?;
    Ok((version.to_owned(), source.ip()))
}

fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.split_whitespace()
        .find_map(|word| word.strip_prefix(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_by_their_whole_name() {
        let client = "id=3 addr=10.1.0.10:40000 laddr=10.0.0.3:6379 fd=8";
        assert_eq!(field(client, "addr="), Some("10.1.0.10:40000"));
        assert_eq!(
            field("a:1\r\nredis_version:7.0.15\r\n", "redis_version:"),
            Some("7.0.15")
        );
        assert_eq!(field(client, "name="), None);
    }
}
