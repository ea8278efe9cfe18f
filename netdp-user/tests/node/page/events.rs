//! The newest events, on the page and as JSON.

use super::{LISTEN, get};
use crate::common::clients::{Tcp, from_port};
use crate::common::{Echo, POLICY, SOON, World, echoes};
use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use testbed::{Running, wait_for, wait_some};

/// Returns the newest events, the newest first.
fn events(world: &World) -> Result<Value> {
    let answer = get(world, "/api/v1/events")?;
    ensure!(answer.status == 200, "{answer:?}");
    Ok(serde_json::from_str(&answer.body)?)
}

#[test]
fn events_are_on_the_page_those_of_flows_while_somebody_listens() -> Result<()> {
    let mut world = World::with(POLICY, &LISTEN)?;
    let _echo = Echo::start(&world.far)?;
    let to = *echoes(&world.far).first().context("no echo")?;
    let mut tcp = Tcp::connect(world.pod(0), from_port(40_001, to), to)?;
    tcp.ask()?;
    let before = events(&world)?;
    assert_eq!(
        (&before["schema"], &before["listening"]),
        (&json!(1), &json!([]))
    );
    let has = |events: &Value, kind: &str, text: &str| {
        let all = events["events"].as_array().into_iter().flatten();
        let mut of_kind = all.filter(|it| it["event"] == kind);
        of_kind.any(|it| it.to_string().contains(text))
    };
    ensure!(has(&before, "agent", "attached to eth0"), "{before:#}");
    ensure!(has(&before, "config", "generation 1"), "{before:#}");
    ensure!(!has(&before, "begin", ""), "{before:#}");

    let monitor = world.agent.command(&["monitor", "-o", "jsonl"]);
    let mut monitor = Running::start(monitor)?;
    wait_for(SOON, "the monitor to listen", || {
        monitor.stderr().contains("netdp: listening")
    })
    .with_context(|| monitor.written())?;
    let mut tcp = Tcp::connect(world.pod(0), from_port(40_002, to), to)?;
    tcp.ask()?;
    wait_for(SOON, "the begin of a mapping", || {
        events(&world).is_ok_and(|it| has(&it, "begin", "\"source_id\":40002"))
    })?;
    let during = events(&world)?;
    assert_eq!(
        during["listening"],
        json!(["begin", "end", "refused", "drop"])
    );
    let page = get(&world, "/")?.body;
    for words in ["It listens now, to begin", ":40002 → ", "rule "] {
        ensure!(page.contains(words), "{words}: {page}");
    }
    monitor.signal(Signal::SIGINT)?;
    ensure!(monitor.wait(SOON)?.success(), "{}", monitor.written());
    wait_for(SOON, "nobody to listen", || {
        events(&world).is_ok_and(|it| it["listening"] == json!([]))
    })?;
    ensure!(has(&events(&world)?, "begin", "40002"));

    // A rejected configuration, with a name that is no markup.
    let rejected = format!("{POLICY}- 10.9.0.0/<b>\n");
    world.config.write(&rejected)?;
    wait_for(SOON, "the rejection", || {
        events(&world).is_ok_and(|it| has(&it, "config", "rejected: "))
    })?;
    let page = get(&world, "/")?.body;
    ensure!(page.contains("10.9.0.0/&lt;b&gt;"), "{page}");
    ensure!(!page.contains("<b>"), "{page}");

    // The next agent has the events of this one, but for those of flows.
    world.agent.stop()?;
    world.agent.restart()?;
    let after = wait_some(SOON, "the next agent", || events(&world).ok())?;
    ensure!(has(&after, "config", "rejected: "), "{after:#}");
    ensure!(has(&after, "agent", "the agent ends"), "{after:#}");
    ensure!(!has(&after, "begin", ""), "{after:#}");
    Ok(())
}
