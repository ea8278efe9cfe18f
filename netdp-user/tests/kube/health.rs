//! Tests of `/livez` and `/readyz`.

use crate::cluster::{Cluster, EVERYTHING, PROBES, RECOVERY};
use crate::common::{NETDP, flows, mappings};
use anyhow::Result;
use nix::sys::signal::Signal;
use std::fs;
use testbed::{Agent, AgentOptions, Bed, WorkDir, wait_for};

/// Probes do not require Kubernetes.
#[test]
fn they_answer_on_a_bare_node() -> Result<()> {
    let bed = Bed::builder()
        .uplink("eth0", &["10.1.0.10/16", "fd00:1::10/64"])
        .pods(1, &["172.16.0.0/24", "fd00:172::/64"])
        .build()?;
    let dir = WorkDir::new("config")?;
    let file = dir.path().join("config.yaml");
    fs::write(&file, "nonMasqueradeCIDRs: [172.16.0.0/16]\n")?;
    let options = AgentOptions::new(NETDP)
        .config(&file)
        .arg("--enable-ipv6")
        .arg(format!("--http-listen={PROBES}"));
    let agent = Agent::start(&bed.node, options)?;
    let ask = |path: &str| {
        let url = format!("http://{PROBES}{path}");
        bed.node
            .run(&["curl", "-s", "-m", "10", "-w", " %{http_code}", &url])
    };
    assert!(ask("/livez")?.ends_with("200"));
    let ready = ask("/readyz")?;
    assert!(
        ready.starts_with("ok: config ") && ready.ends_with("200"),
        "{ready}"
    );
    assert!(ask("/elsewhere")?.ends_with("404"));
    let post = [
        "curl",
        "-s",
        "-m",
        "10",
        "-w",
        " %{http_code}",
        "-X",
        "POST",
    ];
    let url = format!("http://{PROBES}/readyz");
    assert!(
        bed.node
            .run(&[&post[..], &[&url]].concat())?
            .ends_with("405")
    );
    // The packets of the self-check created mappings and removed them again.
    assert!(crate::common::packets(&agent, "mappings_created")? >= 2);
    assert_eq!(mappings(&agent)?, 0, "{:?}", flows(&agent)?);
    // Without an uplink the node is not ready, and `/readyz` names the reason.
    bed.node.ip("link delete eth0")?;
    wait_for(crate::common::SOON, "no readiness", || {
        ask("/readyz")
            .is_ok_and(|text| text.contains("no program is attached") && text.ends_with("503"))
    })
}

/// The policy is removed behind the programs' back: they run but decide differently.
#[test]
fn a_datapath_that_does_otherwise_is_not_ready() -> Result<()> {
    let cluster = Cluster::start()?;
    cluster.configure(&format!("resyncInterval: 200ms\n{EVERYTHING}"))?;
    let agent = cluster.agent()?;
    cluster.wait_probe(&agent, "200", "ok")?;
    for policy in ["policy_0", "policy_1"] {
        let pin = agent.bpffs().join(policy);
        let mut map = aya::maps::LpmTrie::<_, [u8; 16], [u8; 8]>::try_from(
            aya::maps::Map::LpmTrie(aya::maps::MapData::from_pin(pin)?),
        )?;
        let keys: Vec<_> = map.keys().collect::<Result<_, _>>()?;
        for key in keys {
            map.remove(&key)?;
        }
    }
    cluster.wait_probe(&agent, "503", "self-check on eth0")?;
    wait_for(RECOVERY, "the code in netdp status", || {
        let told = agent.netdp(&["status"]);
        told.is_ok_and(|it| it.lines().any(|line| line.ends_with("NDP702")))
    })
}

#[test]
fn a_loop_that_stands_still_is_not_answered_for() -> Result<()> {
    let cluster = Cluster::start()?;
    let agent = cluster.agent()?;
    cluster.wait_probe(&agent, "200", "ok")?;
    agent.signal(Signal::SIGSTOP)?;
    let url = format!("http://{PROBES}/livez");
    let silent = cluster.bed.node.run(&["curl", "-s", "-m", "2", &url]);
    agent.signal(Signal::SIGCONT)?;
    assert!(silent.is_err(), "{silent:?}");
    cluster.wait_probe(&agent, "200", "ok")
}
