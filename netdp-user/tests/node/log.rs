//! The log as JSON lines, its limit, and the latest messages in the state directory.

use crate::common::clients::from_port;
use crate::common::{ECHO, Echo, NETDP, POLICY, SOON, World, wait_log};
use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use std::net::{SocketAddr, UdpSocket};
use std::process::Command;
use testbed::wait_for;

/// Parses a log of which every line is an object with time, level and message.
fn parsed(log: &str) -> Result<Vec<Value>> {
    let lines = log.lines().map(|line| -> Result<Value> {
        let value: Value = serde_json::from_str(line).with_context(|| line.to_owned())?;
        let time = value["time"].as_str().context("no time")?;
        ensure!(time.len() == "2026-12-02T08:45:12.123Z".len(), "{line}");
        ensure!(time.ends_with('Z'), "{line}");
        let level = value["level"].as_str().context("no level")?;
        ensure!(["error", "warn", "info"].contains(&level), "{line}");
        ensure!(
            value["msg"].as_str().is_some_and(|it| !it.is_empty()),
            "{line}"
        );
        Ok(value)
    });
    lines.collect()
}

/// Returns the line with these words.
fn line(log: &[Value], words: &str) -> Result<Value> {
    let mut found = log.iter();
    let found = found.find(|it| it["msg"].as_str().is_some_and(|it| it.contains(words)));
    found
        .cloned()
        .with_context(|| format!("{words:?}: {log:#?}"))
}

#[test]
fn every_message_is_one_json_object() -> Result<()> {
    let mut world = World::with(
        POLICY,
        &["--enable-ipv6", "--log-format=json", "--to-ports=40000"],
    )?;
    let _echo = Echo::start(&world.far)?;
    let uplink = world.bed.uplinks[0].name.clone();
    wait_log(&world.agent, "attached to")?;
    // There is one port for each destination: the second flow is refused.
    let to: SocketAddr = (world.far.v4()?, ECHO).into();
    let pod = world.pod(0).v4()?;
    wait_for(SOON, "a refusal in the log", || {
        let sent = world.pod(0).enter(|| -> Result<()> {
            for port in [5001, 5002] {
                UdpSocket::bind(from_port(port, to))?.send_to(b"x", to)?;
            }
            Ok(())
        });
        sent.is_ok() && world.agent.log().contains("refused ")
    })?;
    world.config.write("nonMasqueradeCIDRs: [10.0.0.0/33]\n")?;
    wait_log(&world.agent, "the previous configuration stays")?;
    world
        .config
        .write("nonMasqueradeCIDRs: [10.0.0.0/8]\nmasqLinkLokal: 1\n")?;
    wait_log(&world.agent, "masqLinkLokal")?;
    let kept = world.agent.state_dir().join("log.jsonl");
    wait_for(SOON, "the message to be kept", || {
        std::fs::read_to_string(&kept).is_ok_and(|it| it.contains("masqLinkLokal"))
    })?;
    world.agent.stop()?;
    let log = parsed(&world.agent.log())?;
    assert_eq!(line(&log, "attached to")?["uplink"], uplink.as_str());
    let refusal = line(&log, "refused ")?;
    assert_eq!(refusal["code"], "NDP502", "{refusal}");
    assert_eq!(refusal["pod"], pod.to_string(), "{refusal}");
    assert_eq!(refusal["level"], "warn");
    let rejected = line(&log, "10.0.0.0/33")?;
    assert_eq!(rejected["code"], "NDP101");
    let place = rejected["object"].as_str().unwrap_or_default();
    ensure!(place.ends_with("/ip-masq-agent:1"), "{rejected}");
    assert_eq!(line(&log, "masqLinkLokal")?["code"], "NDP104");
    line(&log, "exiting; the datapath stays in force")?;
    // Kept in the same form, also after the end.
    let kept = parsed(&std::fs::read_to_string(&kept)?)?;
    assert_eq!(line(&kept, "refused ")?, refusal);
    Ok(())
}

#[test]
fn the_error_that_ends_the_agent_is_an_object_too() -> Result<()> {
    let world = World::with(POLICY, &["--enable-ipv6"])?;
    let mut second = world.agent.command(&["run", "--log-format", "json"]);
    let ended = second.output()?;
    ensure!(!ended.status.success());
    let log = parsed(&String::from_utf8(ended.stderr)?)?;
    let error = line(&log, "another agent")?;
    assert_eq!(error["level"], "error");
    let mut misspelt = Command::new(NETDP);
    let ended = misspelt
        .args(["run", "--log-format=json", "--uplnk=eth0"])
        .output()?;
    assert_eq!(ended.status.code(), Some(2));
    let log = parsed(&String::from_utf8(ended.stderr)?)?;
    line(&log, "--uplnk")?;
    // Text is what it was.
    let ended = Command::new(NETDP).args(["run", "--uplnk=eth0"]).output()?;
    let told = String::from_utf8(ended.stderr)?;
    ensure!(told.starts_with("error: unexpected argument"), "{told}");
    Ok(())
}

#[test]
fn edits_without_end_do_not_fill_the_log() -> Result<()> {
    let mut world = World::with(POLICY, &["--enable-ipv6", "--log-format=json"])?;
    let mut edits = 0;
    wait_for(SOON * 3, "messages to be left out", || {
        edits += 1;
        // Twenty warnings each time.
        let mut text = format!("nonMasqueradeCIDRs: [10.{}.0.0/16]\n", edits % 250);
        for key in 0..20 {
            text += &format!("unknown{edits}x{key}: 1\n");
        }
        let _ = world.config.write(&text);
        let seen = format!("unknown{edits}x");
        // The edit is seen, or its warnings were left out.
        let _ = wait_for(SOON / 20, "the edit", || world.agent.log().contains(&seen));
        world.agent.log().contains("NDP704")
    })?;
    let log = parsed(&world.agent.log())?;
    let told = line(&log, "messages were left out")?;
    assert_eq!(told["code"], "NDP704");
    let warnings = log.iter().filter(|it| it["code"] == "NDP104").count();
    ensure!(
        warnings < 20 * edits,
        "{warnings} warnings of {edits} edits"
    );
    Ok(())
}
