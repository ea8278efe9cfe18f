//! Which pod it was that a destination reports, after its address has gone to another pod.

use crate::common::clients::{Tcp, from_port};
use crate::common::{ECHO, Echo, POLICY_V4, SOON, World};
use crate::flows::next_ticks;
use crate::nat_log::{cache, records, who};
use anyhow::{Context as _, Result, ensure};
use jiff::civil::{DateTime, Time};
use serde_json::Value;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use testbed::{WorkDir, wait_some};

/// Port of both pods' connections.
const PORT: u16 = 44_216;

fn wait_record(log: &Path, event: &str, name: &str) -> Result<Value> {
    wait_some(SOON, &format!("the {event} of {name} in the log"), || {
        let mut all = records(log).ok()?.into_iter();
        all.find(|it| it["event"] == event && it["name"] == name)
    })
}

/// Returns the pod that the only line of an answer names, and what follows the destination.
fn split(answer: &str, to: SocketAddr) -> Result<(&str, &str)> {
    let line = answer.strip_suffix('\n').unwrap_or(answer);
    ensure!(!line.contains('\n'), "more than one line: {answer}");
    line.split_once(&format!(", tcp to {to}, "))
        .with_context(|| format!("no connection to {to}: {answer}"))
}

/// Checks that a text is a time as `netdp who` prints it.
fn check_time(text: &str) -> Result<()> {
    let is_time = text.parse::<Time>().is_ok() || text.parse::<DateTime>().is_ok();
    ensure!(is_time, "{text:?} is no time");
    Ok(())
}

/// Has two pods with one address, one after the other, connect from one port, and asks for both.
///
/// Returns the section of the document.
pub fn section() -> Result<String> {
    let dir = WorkDir::new("explain-who")?;
    let (log, cni) = (dir.path().join("nat.log"), dir.path().join("cni"));
    fs::create_dir(&cni)?;
    let world = World::with(
        POLICY_V4,
        &[
            "--nat-log",
            &log.display().to_string(),
            "--nat-log-destinations",
            "--cni-dir",
            &cni.display().to_string(),
            "--timeout=tcp-closing=1s",
        ],
    )?;
    let _echo = Echo::start(&world.far)?;
    let pod = world.pod(0);
    let address = IpAddr::from(pod.v4()?);
    let to = SocketAddr::new(world.far.v4()?.into(), ECHO);
    let connect = |name: &str| -> Result<(Tcp, SocketAddr)> {
        cache(&cni, name, address)?;
        next_ticks()?;
        let mut flow = Tcp::connect(pod, from_port(PORT, to), to)?;
        let seen = flow.ask()?;
        Ok((flow, seen))
    };

    let (flow, seen) = connect("cart-5d9")?;
    let reported = wait_record(&log, "begin", "cart-5d9")?;
    flow.reset()?;
    wait_record(&log, "end", "cart-5d9")?;
    fs::remove_file(cni.join("cart-5d9"))?;
    next_ticks()?;
    let (_flow, again) = connect("billing-7c2")?;
    ensure!(again == seen, "{again}, not {seen}: nothing was reused");
    wait_record(&log, "begin", "billing-7c2")?;

    let at = reported["begin"].as_str().context("no begin")?;
    let (seen, destination) = (seen.to_string(), to.to_string());
    let (code, then) = who(&world.agent, &[&seen, "--to", &destination, "--at", at])?;
    ensure!(code == Some(0), "{code:?}: {then}");
    let (named, rest) = split(&then, to)?;
    ensure!(
        named == format!("shop/cart-5d9 ({address}:{PORT}, uid uid-cart-5d9)"),
        "{then}"
    );
    let (times, number) = rest.split_once(", log ").context("no record")?;
    let (begin, end) = times.split_once(" to ").context("no end")?;
    check_time(begin)?;
    check_time(end)?;
    let _: u64 = number.parse()?;

    let (code, now) = who(&world.agent, &[&seen, "--to", &destination])?;
    ensure!(code == Some(0), "{code:?}: {now}");
    let (named_now, rest) = split(&now, to)?;
    ensure!(named_now.starts_with("shop/billing-7c2 ("), "{now}");
    let since = rest.strip_prefix("since ").context("not live")?;
    check_time(since.split_once(", log ").map_or(since, |it| it.0))?;
    Ok(format!(
        "
## Who was it?

The operator of {to} reports an address, a port and a time. That is the node's address; the pod behind it is gone, and another pod
has its address by now, and even the same port. The agent runs with `--nat-log FILE --nat-log-destinations`
([nat-log.md](nat-log.md)). Only times and the record's number are examples; the rest is output.

```text
$ netdp who {seen} --to {to} --at 10:15:30
{named}, tcp to {to}, 10:15:02 to 10:21:40, log 90211
$ netdp who {seen} --to {to}
{named_now}, tcp to {to}, since 10:40:11
```

With the time it is the pod of then, from the log; without, the one that has the port now, from the maps.
"
    ))
}
