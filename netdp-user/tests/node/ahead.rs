//! Third-party TC programs that end the processing at a hook: `TC_ACT_OK`, equal to `TCX_PASS`.
//! netdp's programs run before them if the order can be changed; otherwise netdp detects the effect
//! on packets.

use crate::common::clients::{Tcp, any, tcp_source, udp_source};
use crate::common::verdict::{EGRESS, FixedVerdict, INGRESS, NEXT, PASS};
use crate::common::wire::Capture;
use crate::common::{
    Echo, OURS, POLICY, SOON, World, echoes, filters, nft, options, same_family, status,
    tcx_programs, wait_log,
};
use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;
use testbed::{Agent, AgentOptions, Bed, ConfigVolume, Host, Pings, WorkDir, wait_for};

/// Time limit for the detection.
const NOTICED: Duration = SOON;

const PROBES: &str = "127.0.0.1:10269";

/// Returns a policy whose resync interval is an hour.
fn policy() -> String {
    format!("{POLICY}resyncInterval: 1h\n")
}

fn world(mechanism: &str) -> Result<(World, Echo)> {
    let listen = format!("--http-listen={PROBES}");
    let arguments = ["--enable-ipv6", "--attach", mechanism, &listen];
    let world = World::with(&policy(), &arguments)?;
    let echo = Echo::start(&world.far)?;
    Ok((world, echo))
}

/// Checks that new flows of pods are masqueraded and answered, and that nothing leaks.
fn is_translated(bed: &Bed, far: &Host) -> Result<()> {
    let wire = Capture::start(&bed.uplinks[0].router)?;
    for to in echoes(far) {
        let node = same_family(&bed.uplinks[0].addresses, to.ip())?;
        for pod in &bed.pods {
            ensure!(tcp_source(pod, to)? == node, "TCP to {to}");
            ensure!(udp_source(pod, to)? == node, "UDP to {to}");
        }
    }
    for packet in wire.packets()? {
        let pods = bed.pods.iter().flat_map(|pod| &pod.addresses);
        let mut pods = pods.map(ipnet::IpNet::addr);
        ensure!(!pods.any(|pod| pod == packet.source), "leaked {packet:?}");
    }
    Ok(())
}

fn ready(world: &World) -> Result<String> {
    let url = format!("http://{PROBES}/readyz");
    let ask = ["curl", "-s", "-m", "10", "-w", " %{http_code}", &url];
    world.bed.node.run(&ask)
}

fn ready_file(agent: &Agent) -> bool {
    agent.state_dir().with_file_name("ready").exists()
}

/// Waits until log, status, ready file and `/readyz` contain `words`.
fn wait_told(world: &World, words: &str) -> Result<()> {
    wait_for(NOTICED, &format!("{words:?} to be told"), || {
        let status = world.agent.netdp(&["status"]).unwrap_or_default();
        let mut lines = status.lines();
        let ready = ready(world).unwrap_or_default();
        lines.any(|line| line.starts_with("datapath   NOT IN FORCE") && line.contains(words))
            && !ready_file(&world.agent)
            && ready.contains(words)
            && ready.ends_with("503")
    })
    .with_context(|| format!("{:?}, {:?}", world.agent.netdp(&["status"]), ready(world)))?;
    wait_log(&world.agent, words)
}

fn wait_well(world: &World) -> Result<()> {
    wait_for(NOTICED, "the node to be ready", || {
        status(&world.agent).is_ok_and(|status| {
            status["datapath"] == "in force" && status["report"]["behind"] == Value::Array(vec![])
        }) && ready_file(&world.agent)
    })
    .with_context(|| format!("{:?}", status(&world.agent)))
}

/// A program attached before netdp's, or one that is appended, withholds no packet from netdp. Nor
/// from netfilter, which translates before TC egress and after TC ingress.
#[test]
fn a_program_that_passes_packets_keeps_none_from_ours() -> Result<()> {
    let bed = Bed::dual_stack()?;
    let far = bed.server(0, &["10.2.0.1/24", "fd00:2::1/64"])?;
    let _echo = Echo::start(&far)?;
    let (before, after) = (FixedVerdict::always(PASS)?, FixedVerdict::always(PASS)?);
    for hook in [EGRESS, INGRESS] {
        before.attach(&bed.node, "eth0", hook, true)?;
    }
    nft(
        &bed.node,
        "add table inet masq; add chain inet masq out { type nat hook postrouting priority 100; }; \
         add rule inet masq out oifname eth0 masquerade",
    )?;
    is_translated(&bed, &far).context("netfilter")?;
    nft(&bed.node, "delete table inet masq")?;
    let config = ConfigVolume::new(&policy())?;
    let agent = Agent::start(&bed.node, options(&config, &["--enable-ipv6"]))?;
    for hook in [EGRESS, INGRESS] {
        after.attach(&bed.node, "eth0", hook, false)?;
    }
    is_translated(&bed, &far)?;
    for (programs, ours) in tcx_programs(&bed.node, "eth0")?.iter().zip(OURS) {
        ensure!(*programs == [ours, "stranger", "stranger"], "{programs:?}");
    }
    let status = status(&agent)?;
    ensure!(status["report"]["behind"] == Value::Array(vec![]));
    Ok(())
}

/// netdp moves to the front again without an interruption: no packet is lost, none leaks.
#[test]
fn a_program_that_comes_before_ours_is_overtaken() -> Result<()> {
    let (mut world, _echo) = world("tcx")?;
    let mut open = Vec::new();
    for to in echoes(&world.far) {
        let mut client = Tcp::connect(world.pod(0), any(to), to)?;
        let seen = client.ask()?;
        open.push((client, seen));
    }
    // A program that returns "next" has no effect meanwhile.
    let stranger = FixedVerdict::always(NEXT)?;
    let mut pings = Pings::default();
    for to in echoes(&world.far) {
        pings.start(world.pod(1), to.ip(), "0.01")?;
    }
    let wire = Capture::start(&world.bed.uplinks[0].router)?;
    for hook in [EGRESS, INGRESS] {
        stranger.attach(&world.bed.node, "eth0", hook, true)?;
    }
    let first = |world: &World| -> Result<bool> {
        let programs = tcx_programs(&world.bed.node, "eth0")?;
        let mut pairs = programs.iter().zip(OURS);
        Ok(pairs.all(|(programs, ours)| *programs == [ours, "stranger"]))
    };
    wait_for(NOTICED, "ours to be first", || {
        first(&world).unwrap_or(false)
    })?;
    wait_log(
        &world.agent,
        "was attached before the egress program and could keep packets from it",
    )?;
    for (client, seen) in &mut open {
        ensure!(client.ask()? == *seen, "a mapping was lost");
    }
    for ping in pings.end()? {
        // One packet per hook may run both programs, or neither.
        ensure!(ping.alive && ping.lost <= 2, "{ping:?}");
    }
    for packet in wire.packets()? {
        let pods = world.bed.pods.iter().flat_map(|pod| &pod.addresses);
        let mut pods = pods.map(ipnet::IpNet::addr);
        ensure!(!pods.any(|pod| pod == packet.source), "leaked {packet:?}");
    }
    // A program that passes packets.
    let passing = FixedVerdict::always(PASS)?;
    for hook in [EGRESS, INGRESS] {
        passing.attach(&world.bed.node, "eth0", hook, true)?;
    }
    wait_for(NOTICED, "ours to be first", || {
        let programs = tcx_programs(&world.bed.node, "eth0").unwrap_or_default();
        let mut pairs = programs.iter().zip(OURS);
        pairs.all(|(programs, ours)| programs.first().is_some_and(|it| it == ours))
    })?;
    is_translated(&world.bed, &world.far)?;
    wait_well(&world)?;
    // The pins are those of the new links.
    world.agent.kill9()?;
    is_translated(&world.bed, &world.far)?;
    world.agent.restart()?;
    for (client, seen) in &mut open {
        ensure!(client.ask()? == *seen, "a mapping was lost");
    }
    let programs = tcx_programs(&world.bed.node, "eth0")?;
    ensure!(programs.iter().all(|hook| hook.len() == 3), "{programs:?}");
    world.agent.stop()?;
    world.agent.netdp(&["detach"])?;
    let left = tcx_programs(&world.bed.node, "eth0")?;
    let others = ["stranger", "stranger"];
    ensure!(left.iter().all(|hook| *hook == others), "{left:?}");
    Ok(())
}

/// A program that repeatedly moves to the front stays there. Its effect on packets is reported.
#[test]
fn nobody_is_fought_for_ever() -> Result<()> {
    let (world, _echo) = world("tcx")?;
    let node = &world.bed.node;
    let stranger = FixedVerdict::always(PASS)?;
    stranger.attach(node, "eth0", EGRESS, true)?;
    for _ in 0..3 {
        wait_for(NOTICED, "ours to be first", || {
            tcx_programs(node, "eth0").is_ok_and(|[_, egress]| egress[0] == OURS[1])
        })?;
        stranger.detach(node, "eth0", EGRESS)?;
        stranger.attach(node, "eth0", EGRESS, true)?;
    }
    let mut pings = Pings::default();
    for to in echoes(&world.far) {
        pings.start(world.pod(0), to.ip(), "0.05")?;
    }
    wait_told(&world, "packets leave by eth0 with pods' own addresses")?;
    stranger.detach(node, "eth0", EGRESS)?;
    wait_well(&world)?;
    is_translated(&world.bed, &world.far)
}

/// A clsact filter runs after all TCX programs.
#[test]
fn what_a_tcx_program_does_to_a_filters_packets_is_told() -> Result<()> {
    let (world, _echo) = world("clsact")?;
    let node = &world.bed.node;
    // It returns "next", so it is harmless.
    let harmless = FixedVerdict::always(NEXT)?;
    for hook in [EGRESS, INGRESS] {
        harmless.attach(node, "eth0", hook, true)?;
    }
    wait_log(&world.agent, "runs before the ingress program")?;
    is_translated(&world.bed, &world.far)?;
    let text = world.agent.netdp(&["status"])?;
    ensure!(
        text.contains("conflict   eth0: the TCX program") && text.contains("(stranger) runs"),
        "{text}"
    );
    ensure!(text.contains("datapath   in force"), "{text}");
    ensure!(ready(&world)?.ends_with("200"), "{}", ready(&world)?);
    let mut pings = Pings::default();
    for to in echoes(&world.far) {
        pings.start(world.pod(0), to.ip(), "0.05")?;
    }
    let passing = FixedVerdict::always(PASS)?;
    for (hook, words) in [
        (EGRESS, "packets leave by eth0 with pods' own addresses"),
        (INGRESS, "replies to pods that arrive by eth0 are lost"),
    ] {
        passing.attach(node, "eth0", hook, false)?;
        wait_told(&world, words)?;
        passing.detach(node, "eth0", hook)?;
        // The detected effect remains valid for a while, as long as other programs run first.
        harmless.detach(node, "eth0", hook)?;
        wait_for(NOTICED, "the node to be ready", || ready_file(&world.agent))?;
    }
    wait_well(&world)?;
    is_translated(&world.bed, &world.far)
}

/// Only a part of the packets may be affected.
#[test]
fn what_a_tcx_program_does_to_some_packets_is_told() -> Result<()> {
    for (v6, to) in [(false, 0), (true, 1)] {
        let (world, _echo) = world("clsact")?;
        let node = &world.bed.node;
        let udp = FixedVerdict::passes(17, v6)?;
        udp.attach(node, "eth0", EGRESS, false)?;
        wait_log(&world.agent, "runs before the egress program")?;
        let to = echoes(&world.far)[to];
        ensure!(tcp_source(world.pod(0), to)? == world.node_address(to.ip())?);
        ensure!(ready(&world)?.ends_with("200"), "{}", ready(&world)?);
        let _sent = crate::common::clients::Udp::connect(world.pod(0), any(to), to)?.ask();
        wait_told(&world, "packets leave by eth0 with pods' own addresses")?;
    }
    Ok(())
}

/// Filters of the same qdisc, with any preference.
#[test]
fn a_filter_that_comes_before_ours_is_overtaken() -> Result<()> {
    let (mut world, _echo) = world("clsact")?;
    let node = world.bed.node.clone();
    let passing = FixedVerdict::always(PASS)?;
    let pin = world.agent.bpffs().join("stranger");
    passing.pin(&pin)?;
    let pin = pin.display().to_string();
    for hook in ["egress", "ingress"] {
        // By default it would get a preference before all others.
        let add = ["tc", "filter", "add", "dev", "eth0", hook];
        node.run(&[&add[..], &["bpf", "da", "object-pinned", &pin]].concat())?;
        let first = ["pref", "1", "bpf", "da", "object-pinned", &pin];
        node.run(&[&add[..], &first].concat())?;
    }
    wait_for(NOTICED, "ours to be first", || {
        filters(&node, "eth0").is_ok_and(|hooks| {
            hooks.iter().all(|text| {
                let mut lines = text.lines().filter(|line| line.contains("handle"));
                lines.next().is_some_and(|line| line.contains("0x6e6"))
            })
        })
    })
    .with_context(|| format!("{:?}", filters(&node, "eth0")))?;
    is_translated(&world.bed, &world.far)?;
    wait_well(&world)?;
    for text in filters(&node, "eth0")? {
        ensure!(text.matches("handle 0x6e6").count() == 1, "{text}");
    }
    world.agent.restart()?;
    is_translated(&world.bed, &world.far)?;
    for text in filters(&node, "eth0")? {
        ensure!(text.matches("handle 0x6e6").count() == 1, "{text}");
    }
    world.agent.signal(Signal::SIGTERM)?;
    world.agent.stop()?;
    world.agent.netdp(&["detach"])?;
    for text in filters(&node, "eth0")? {
        ensure!(
            !text.contains("0x6e6") && text.contains("stranger"),
            "{text}"
        );
    }
    Ok(())
}

/// Another program with the same preference and handle as netdp's.
#[test]
fn a_filter_in_the_place_of_ours_is_replaced() -> Result<()> {
    let (world, _echo) = world("clsact")?;
    let node = &world.bed.node;
    let passing = FixedVerdict::always(PASS)?;
    let pin = world.agent.bpffs().join("stranger");
    passing.pin(&pin)?;
    let pin = pin.display().to_string();
    for hook in ["egress", "ingress"] {
        let change = ["tc", "filter", "change", "dev", "eth0", hook];
        let ours = ["pref", "1", "handle", "0x6e64", "bpf", "da"];
        node.run(&[&change[..], &ours, &["object-pinned", &pin]].concat())?;
        let told = format!("the {hook} program is not attached to eth0 (clsact)");
        wait_log(&world.agent, &told)?;
        // Waits until both are restored: a change to the other one in between would not be logged
        // separately.
        wait_well(&world)?;
    }
    wait_log(&world.agent, "all programs are attached again")?;
    wait_for(NOTICED, "ours to be back", || {
        is_translated(&world.bed, &world.far).is_ok()
    })?;
    wait_well(&world)
}

/// If an agent ended between the two steps of reordering, its old filter still exists.
#[test]
fn what_an_overtaking_that_was_cut_short_left_goes() -> Result<()> {
    let (mut world, _echo) = world("clsact")?;
    let node = world.bed.node.clone();
    world.agent.stop()?;
    let old = FixedVerdict::always(NEXT)?;
    let pin = world.agent.bpffs().join("old");
    old.pin(&pin)?;
    let pin = pin.display().to_string();
    for (hook, text) in ["egress", "ingress"].iter().zip(filters(&node, "eth0")?) {
        ensure!(text.contains("handle 0x6e64"), "{text}");
        let add = ["tc", "filter", "add", "dev", "eth0", hook, "pref", "2"];
        let what = ["handle", "0x6e65", "bpf", "da", "object-pinned", &pin];
        node.run(&[&add[..], &what].concat())?;
    }
    let ours = || -> Result<Vec<usize>> {
        let hooks = filters(&node, "eth0")?;
        Ok(hooks
            .map(|text| text.matches("handle 0x6e6").count())
            .to_vec())
    };
    ensure!(ours()? == [2, 2], "{:?}", filters(&node, "eth0")?);
    world.agent.restart()?;
    ensure!(ours()? == [1, 1], "{:?}", filters(&node, "eth0")?);
    is_translated(&world.bed, &world.far)?;
    Ok(())
}

/// Returns the capabilities of the shipped manifest, in the notation of `setpriv`.
fn shipped_capabilities() -> Result<Vec<String>> {
    let manifest = include_str!("../../../deploy/kustomize/base/daemonset.yaml");
    let unit = include_str!("../../../deploy/netdp.service");
    let line = |text: &'static str, start: &str| {
        let mut lines = text.lines().map(str::trim);
        lines.find_map(|line| line.strip_prefix(start))
    };
    let added = line(manifest, "add: [").context("no capabilities in the manifest")?;
    let added = added.trim_end_matches(']').split(", ");
    let added: BTreeSet<String> = added.map(str::to_lowercase).collect();
    let bounding = line(unit, "CapabilityBoundingSet=").context("none in the unit")?;
    let bounding = bounding.split(' ').filter_map(|it| it.strip_prefix("CAP_"));
    let bounding: BTreeSet<String> = bounding.map(str::to_lowercase).collect();
    ensure!(
        added == bounding,
        "{added:?} in the pod, {bounding:?} in the unit"
    );
    Ok(added.into_iter().collect())
}

/// Runs with the shipped capabilities rather than as full root, which no node gives to netdp.
#[test]
fn a_leak_is_seen_with_the_shipped_capabilities() -> Result<()> {
    let bed = Bed::dual_stack()?;
    let far = bed.server(0, &["10.2.0.1/24", "fd00:2::1/64"])?;
    let near = bed.neighbour(0, &["10.1.0.20/16", "fd00:1::20/64"])?;
    let config = ConfigVolume::new(&policy())?;
    let dir = WorkDir::new("capabilities")?;
    let netdp = dir.path().join("netdp");
    let granted: Vec<String> = (shipped_capabilities()?.iter())
        .map(|name| format!("+{name}"))
        .collect();
    let granted = granted.join(",");
    // The bpffs is already mounted, as on a node.
    let script = format!(
        "#!/bin/sh\nfor word; do\n\
         if [ \"$before\" = --bpffs ] && ! mountpoint -q \"$word\"; then\n\
         mkdir -p -m 700 \"$word\" && mount -t bpf -o mode=0700 bpf \"$word\" || exit 1\n\
         fi\nbefore=$word\ndone\n\
         exec setpriv --bounding-set=-all,{granted} --inh-caps=-all,{granted} {} \"$@\"\n",
        crate::common::NETDP
    );
    fs::write(&netdp, script)?;
    fs::set_permissions(&netdp, fs::Permissions::from_mode(0o755))?;
    let arguments = [
        "--enable-ipv6".to_owned(),
        "--attach=clsact".to_owned(),
        format!("--http-listen={PROBES}"),
    ];
    let options = AgentOptions::new(&netdp).config(config.path());
    let options = arguments.into_iter().fold(options, AgentOptions::arg);
    let world = World {
        agent: Agent::start(&bed.node, options)?,
        config,
        near,
        far,
        bed,
    };
    let _echo = Echo::start(&world.far)?;
    is_translated(&world.bed, &world.far)?;
    let passing = FixedVerdict::always(PASS)?;
    passing.attach(&world.bed.node, "eth0", EGRESS, false)?;
    let mut pings = Pings::default();
    for to in echoes(&world.far) {
        pings.start(world.pod(0), to.ip(), "0.05")?;
    }
    wait_told(&world, "packets leave by eth0 with pods' own addresses")?;
    passing.detach(&world.bed.node, "eth0", EGRESS)?;
    wait_well(&world)
}
