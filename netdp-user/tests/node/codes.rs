//! Codes of findings that commands, log and status show.

use crate::common::{NETDP, POLICY_V4, SOON, World, options, status};
use anyhow::{Context as _, Result, ensure};
use std::net::{SocketAddr, UdpSocket};
use std::process::Command;
use testbed::{Agent, Bed, ConfigVolume, wait_for};

/// Larger than the share of the tables above which sweeps make room, and small enough to be filled.
const FLOWS: u16 = 1000;

#[test]
fn warnings_about_the_configuration_have_codes() -> Result<()> {
    let config = "nonMasqueradeCIDRs: [10.9.0.0/16]\nmasqLinkLokal: true\n";
    let world = World::with(config, &["--pod-cidr=172.16.0.0/16"])?;
    let told = world.agent.netdp(&["status"])?;
    for (words, code) in [("masqLinkLokal", "NDP104"), ("the pod CIDR", "NDP204")] {
        let mut lines = told.lines().filter(|line| line.starts_with("warning"));
        let line = lines.find(|line| line.contains(words));
        let line = line.with_context(|| format!("{words}:\n{told}"))?;
        ensure!(line.ends_with(code), "{line}");
    }
    let file = world.config.file();
    let file = file.to_str().context("a path")?;
    let mut check = Command::new(NETDP);
    let checked = check
        .args(["config", "check", "-o", "json", file])
        .output()?;
    let checked: serde_json::Value = serde_json::from_slice(&checked.stdout)?;
    assert_eq!(checked["warnings"][0]["code"], "NDP104", "{checked}");
    Ok(())
}

#[test]
fn a_connection_in_mid_stream_is_told_apart() -> Result<()> {
    let world = World::with(POLICY_V4, &[])?;
    let pod = world.pod(0).v4()?;
    let far = world.far.v4()?;
    let codes = |flags: &str| -> Result<String> {
        let line = format!("IP {pod}.44216 > {far}.443: Flags [{flags}], ack 1, win 9, length 0");
        let told = world
            .agent
            .netdp(&["explain", "--packet", &line, "-o", "json"])?;
        let told: serde_json::Value = serde_json::from_str(&told)?;
        Ok(told["answers"][0]["codes"].to_string())
    };
    ensure!(codes(".")?.contains("NDP603"), "{}", codes(".")?);
    ensure!(!codes("S")?.contains("NDP603"), "{}", codes("S")?);
    Ok(())
}

#[test]
fn mappings_that_are_ended_for_room_are_reported() -> Result<()> {
    let bed = Bed::dual_stack()?;
    let far = bed.server(0, &["10.2.0.1/24"])?;
    let config = ConfigVolume::new(POLICY_V4)?;
    let agent = Agent::start(
        &bed.node,
        options(&config, &["--max-flows=1024", "--pod-flows=1024"]),
    )?;
    ensure!(!agent.netdp(&["status"])?.contains("NDP505"));
    let to: SocketAddr = (far.v4()?, 9).into();
    let mut round = 0;
    // Nobody answers: such mappings make room.
    wait_for(SOON * 2, "mappings to be ended for room", || {
        let sent = bed.pods[round % bed.pods.len()].enter(|| -> Result<()> {
            for _ in 0..FLOWS {
                UdpSocket::bind("0.0.0.0:0")?.send_to(b"x", to)?;
            }
            Ok(())
        });
        round += 1;
        sent.is_ok()
            && agent
                .netdp(&["status"])
                .is_ok_and(|it| it.contains("NDP505"))
    })
    .with_context(|| agent.log())?;
    let ended = status(&agent)?["report"]["ended_for_room"]["mappings"].clone();
    ensure!(ended.as_u64() > Some(0), "{ended}");
    ensure!(
        agent.log().contains("ended before their timeout"),
        "{}",
        agent.log()
    );
    Ok(())
}
