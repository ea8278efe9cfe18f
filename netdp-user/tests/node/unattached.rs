//! A third party detaches the programs or removes their pins: the agent reports it and repairs it
//! within about a second, whatever its resync interval.

use crate::common::clients::{Tcp, any, tcp_source};
use crate::common::wire::Capture;
use crate::common::{
    ECHO, Echo, OURS, POLICY, SOON, World, filters, is_mounted, mappings, status, tcx_programs,
    wait_log, wait_tcx,
};
use anyhow::{Context as _, Result, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::Signal;
use serde_json::Value;
use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};
use testbed::{output, wait_for};

/// Time limit for a detached program to be attached again; far below the resync interval.
const HEALED: Duration = SOON;

const PROBES: &str = "127.0.0.1:10268";

/// A world whose agent resyncs once an hour, and a server.
struct Street {
    world: World,
    to: SocketAddr,
    _echo: Echo,
}

impl Street {
    fn start(mechanism: &str) -> Result<Self> {
        let policy = format!("{POLICY}resyncInterval: 1h\n");
        let listen = format!("--http-listen={PROBES}");
        let world = World::with(&policy, &["--enable-ipv6", "--attach", mechanism, &listen])?;
        let echo = Echo::start(&world.far)?;
        let to = SocketAddr::new(world.far.v4()?.into(), ECHO);
        let street = Self {
            world,
            to,
            _echo: echo,
        };
        street.is_translated()?;
        Ok(street)
    }

    fn is_translated(&self) -> Result<()> {
        let seen = tcp_source(self.world.pod(0), self.to)?;
        ensure!(seen == self.world.node_address(self.to.ip())?, "{seen}");
        Ok(())
    }

    fn bpffs(&self) -> PathBuf {
        self.world.agent.bpffs()
    }

    fn ready_file(&self) -> PathBuf {
        self.world.agent.state_dir().with_file_name("ready")
    }

    fn status(&self) -> Result<Value> {
        status(&self.world.agent)
    }

    fn ready(&self) -> Result<String> {
        let url = format!("http://{PROBES}/readyz");
        let ask = ["curl", "-s", "-m", "10", "-w", " %{http_code}", &url];
        self.world.bed.node.run(&ask)
    }

    /// Waits for this number of repairs, and until everything is in force.
    fn wait_healed(&self, repairs: u64) -> Result<()> {
        let start = Instant::now();
        wait_for(HEALED, &format!("{repairs} repairs"), || {
            self.status().is_ok_and(|status| {
                status["report"]["repairs"].as_u64() >= Some(repairs)
                    && status["datapath"] == "in force"
            }) && self.ready_file().exists()
                && self.ready().is_ok_and(|ready| ready.ends_with("200"))
        })
        .with_context(|| format!("{:?}, {:?}", self.status(), self.ready()))?;
        eprintln!("healed after {:?}", start.elapsed());
        Ok(())
    }

    /// Checks that no packet leaves with a pod's address any more.
    fn leaks_nothing(&self) -> Result<()> {
        let wire = Capture::start(&self.world.bed.uplinks[0].router)?;
        for _ in 0..20 {
            self.is_translated()?;
        }
        for packet in wire.packets()? {
            let pods = self.world.bed.pods.iter().flat_map(|pod| &pod.addresses);
            let mut pods = pods.map(ipnet::IpNet::addr);
            ensure!(
                !pods.any(|pod| pod == packet.source),
                "a pod's packet left: {packet:?}"
            );
        }
        Ok(())
    }

    /// Checks the log messages about detached programs.
    fn was_told(&self, hook: &str) -> Result<()> {
        let gone = format!("the {hook} program is not attached to eth0");
        wait_log(&self.world.agent, &gone)?;
        wait_log(&self.world.agent, "all programs are attached again, after")?;
        let log = self.world.agent.log();
        ensure!(log.matches("attaching it again").count() == 1, "{log}");
        // It was unready in between.
        ensure!(log.matches("netdp: in force on eth0").count() == 2, "{log}");
        Ok(())
    }

    /// Checks that a new agent adopts what the repaired one had.
    fn survives_a_restart(&mut self) -> Result<()> {
        let mut open = Tcp::connect(self.world.pod(1), any(self.to), self.to)?;
        let seen = open.ask()?;
        let before = mappings(&self.world.agent)?;
        self.world.agent.kill9()?;
        ensure!(open.ask()? == seen, "the datapath ended with the agent");
        self.is_translated()?;
        self.world.agent.restart()?;
        ensure!(open.ask()? == seen, "a mapping was lost");
        ensure!(mappings(&self.world.agent)? >= before);
        self.leaks_nothing()
    }
}

/// Returns the id of a pinned link.
fn link(street: &Street, hook: &str) -> Result<String> {
    let mut links = fs::read_dir(street.bpffs().join("links"))?;
    let pin = links.find_map(|entry| {
        let path = entry.ok()?.path();
        let name = path.file_name()?.to_str()?;
        name.starts_with(hook).then_some(path)
    });
    let pin = pin.context("no such link")?;
    let mut show = Command::new("bpftool");
    let shown = output(show.args(["-j", "link", "show", "pinned"]).arg(pin))?;
    let shown: Value = serde_json::from_str(&shown)?;
    Ok(shown["id"].to_string())
}

fn detach_link(id: &str) -> Result<()> {
    output(Command::new("bpftool").args(["link", "detach", "id", id]))?;
    Ok(())
}

/// Runs `bpftool link detach` on the pinned link.
fn detach(street: &Street, hook: &str) -> Result<()> {
    detach_link(&link(street, hook)?)
}

#[test]
fn a_detached_egress_link_is_attached_again() -> Result<()> {
    let mut street = Street::start("tcx")?;
    detach(&street, "egress")?;
    street.wait_healed(1)?;
    street.was_told("egress")?;
    street.leaks_nothing()?;
    street.survives_a_restart()
}

#[test]
fn a_detached_ingress_link_is_attached_again() -> Result<()> {
    let mut street = Street::start("tcx")?;
    detach(&street, "ingress")?;
    street.wait_healed(1)?;
    street.was_told("ingress")?;
    street.leaks_nothing()?;
    street.survives_a_restart()
}

/// The agent is stopped: the status queries the kernel, not the last report.
#[test]
fn the_status_looks_at_the_hooks_itself() -> Result<()> {
    let street = Street::start("tcx")?;
    street.world.agent.signal(Signal::SIGSTOP)?;
    detach(&street, "egress")?;
    let text = street.world.agent.netdp(&["status"])?;
    let json = street.status()?;
    street.world.agent.signal(Signal::SIGCONT)?;
    let words = "NOT IN FORCE: the egress program is not attached to eth0 (tcx)";
    ensure!(
        text.lines().take(3).any(|line| line.contains(words)),
        "{text}"
    );
    ensure!(!text.contains("datapath   in force"), "{text}");
    ensure!(json["datapath"] == "not in force", "{json}");
    street.wait_healed(1)
}

/// Interfaces towards pods are watched like uplinks.
#[test]
fn a_detached_hairpin_program_is_attached_again() -> Result<()> {
    for mechanism in ["tcx", "clsact"] {
        let flags = [
            "--enable-ipv6",
            "--hairpin-interface",
            "cni0",
            "--attach",
            mechanism,
        ];
        let world = World::with(&format!("{POLICY}resyncInterval: 1h\n"), &flags)?;
        let node = &world.bed.node;
        if mechanism == "tcx" {
            let mut links = fs::read_dir(world.agent.bpffs().join("links"))?;
            let pin = links.find_map(|entry| {
                let path = entry.ok()?.path();
                path.to_string_lossy().contains("hairpin_").then_some(path)
            });
            let mut detach = Command::new("bpftool");
            detach.args(["link", "detach", "pinned"]);
            output(detach.arg(pin.context("no hairpin link")?))?;
        } else {
            node.run(&["tc", "filter", "del", "dev", "cni0", "ingress"])?;
        }
        wait_log(&world.agent, "the hairpin program is not attached to cni0")?;
        wait_log(&world.agent, "all programs are attached again")?;
        let text = [
            tcx_programs(node, "cni0")?[0].join(" "),
            filters(node, "cni0")?[0].clone(),
        ];
        ensure!(text.concat().contains("pod_hairpin"), "{text:?}");
    }
    Ok(())
}

/// The link's program is replaced by another.
#[test]
fn a_program_that_was_replaced_is_put_back() -> Result<()> {
    let street = Street::start("tcx")?;
    let bpffs = street.bpffs();
    let links = fs::read_dir(bpffs.join("links"))?;
    let names: Vec<_> = links
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_>>()?;
    let egress = names
        .iter()
        .find(|path| path.to_string_lossy().contains("egress_"));
    // The ingress program, which passes egress packets.
    crate::common::links::update_to_stranger(egress.context("no link")?)?;
    street.wait_healed(1)?;
    street.was_told("egress")?;
    let programs = tcx_programs(&street.world.bed.node, "eth0")?;
    assert_eq!(programs, OURS.map(|name| vec![name.to_owned()]));
    street.leaks_nothing()
}

#[test]
fn a_removed_filter_is_added_again() -> Result<()> {
    for hook in ["egress", "ingress"] {
        let mut street = Street::start("clsact")?;
        let node = street.world.bed.node.clone();
        node.run(&["tc", "filter", "del", "dev", "eth0", hook])?;
        street.wait_healed(1)?;
        street.was_told(hook)?;
        street.leaks_nothing()?;
        street.survives_a_restart()?;
    }
    Ok(())
}

#[test]
fn a_removed_qdisc_is_made_again() -> Result<()> {
    let mut street = Street::start("clsact")?;
    let node = street.world.bed.node.clone();
    node.run(&["tc", "qdisc", "del", "dev", "eth0", "clsact"])?;
    street.wait_healed(2)?;
    let log = street.world.agent.log();
    ensure!(log.matches("attaching it again").count() == 2, "{log}");
    ensure!(
        filters(&node, "eth0")?
            .iter()
            .all(|text| text.contains("handle 0x6e64"))
    );
    street.leaks_nothing()?;
    street.survives_a_restart()
}

/// A persistent failure is reported as long as it lasts, and repaired once that is possible.
#[test]
fn a_hook_that_can_not_be_had_makes_unready() -> Result<()> {
    let street = Street::start("clsact")?;
    let node = street.world.bed.node.clone();
    // Both cannot exist together, and this one has no egress. Replaced while the agent is stopped,
    // which must not act in between.
    street.world.agent.signal(Signal::SIGSTOP)?;
    node.run(&["tc", "qdisc", "del", "dev", "eth0", "clsact"])?;
    node.run(&["tc", "qdisc", "add", "dev", "eth0", "ingress"])?;
    street.world.agent.signal(Signal::SIGCONT)?;
    wait_for(HEALED, "the ready file to go", || {
        !street.ready_file().exists()
    })?;
    let ready = street.ready()?;
    // No egress filter remains where it would run at ingress.
    ensure!(
        !filters(&node, "eth0")?
            .iter()
            .any(|text| text.contains("egress_snat"))
    );
    ensure!(
        ready.contains("the egress program is not attached to eth0") && ready.ends_with("503"),
        "{ready}"
    );
    let text = street.world.agent.netdp(&["status"])?;
    let third = text.lines().nth(2).unwrap_or_default();
    ensure!(third.starts_with("datapath   NOT IN FORCE: "), "{text}");
    let looks = || {
        street
            .world
            .agent
            .log()
            .matches("eth0 has a qdisc ingress, where clsact would be")
            .count()
    };
    ensure!(looks() == 1, "said once: {}", street.world.agent.log());
    node.run(&["tc", "qdisc", "del", "dev", "eth0", "ingress"])?;
    street.wait_healed(1)?;
    street.leaks_nothing()
}

/// Pins are one of two references to the programs.
#[test]
fn an_unmounted_bpffs_takes_nothing_with_it() -> Result<()> {
    for (mechanism, flags) in [
        ("tcx", MntFlags::empty()),
        ("tcx", MntFlags::MNT_DETACH),
        ("clsact", MntFlags::MNT_DETACH),
    ] {
        let mut street = Street::start(mechanism)?;
        let mut open = Tcp::connect(street.world.pod(0), any(street.to), street.to)?;
        let seen = open.ask()?;
        let wire = Capture::start(&street.world.bed.uplinks[0].router)?;
        umount2(&street.bpffs(), flags)?;
        ensure!(open.ask()? == seen);
        wait_for(HEALED, "the bpffs to be mounted again", || {
            is_mounted(&street.bpffs()).unwrap_or(false)
        })?;
        street.wait_healed(1)?;
        wait_log(&street.world.agent, "pinned there again")?;
        ensure!(open.ask()? == seen);
        street.is_translated()?;
        for packet in wire.packets()? {
            let pods = street.world.bed.pods.iter().flat_map(|pod| &pod.addresses);
            let mut pods = pods.map(ipnet::IpNet::addr);
            ensure!(!pods.any(|pod| pod == packet.source), "{packet:?}");
        }
        street.survives_a_restart()?;
    }
    Ok(())
}

#[test]
fn removed_pins_are_made_again() -> Result<()> {
    for mechanism in ["tcx", "clsact"] {
        let mut street = Street::start(mechanism)?;
        output(
            Command::new("sh")
                .args([
                    "-c",
                    "find \"$0\" -type f -uid 0 -not -name \"*.debug\" -delete; rmdir \"$0\"/links",
                ])
                .arg(street.bpffs()),
        )?;
        street.wait_healed(1)?;
        let links = fs::read_dir(street.bpffs().join("links"))?.count();
        assert_eq!(links, if mechanism == "tcx" { 2 } else { 0 });
        street.leaks_nothing()?;
        street.survives_a_restart()?;
    }
    Ok(())
}

/// If nothing can be pinned, programs are attached all the same, and this is reported.
#[test]
fn a_bpffs_that_can_not_be_written_stops_nothing() -> Result<()> {
    let mut street = Street::start("tcx")?;
    detach(&street, "ingress")?;
    street.wait_healed(1)?;
    let read_only = |flags| {
        mount(
            None::<&str>,
            &street.bpffs(),
            None::<&str>,
            MsFlags::MS_REMOUNT | flags,
            None::<&str>,
        )
    };
    let egress = link(&street, "egress")?;
    read_only(MsFlags::MS_RDONLY)?;
    detach_link(&egress)?;
    street.wait_healed(2)?;
    street.leaks_nothing()?;
    let unpinned = |street: &Street| -> Result<Option<String>> {
        let said = street.world.agent.netdp(&["status"])?;
        let line = said.lines().find(|line| line.starts_with("unpinned "));
        Ok(line.map(str::to_owned))
    };
    wait_for(HEALED, "the status to say so", || {
        let said = unpinned(&street).ok().flatten();
        said.is_some_and(|line| line.contains("will not outlive") && line.contains("egress_"))
    })?;
    wait_log(&street.world.agent, "will not outlive this agent")?;
    read_only(MsFlags::empty())?;
    wait_for(HEALED, "it to be pinned", || {
        unpinned(&street).is_ok_and(|line| line.is_none())
    })?;
    street.survives_a_restart()
}

/// References held by the agent are released.
#[test]
fn what_is_not_pinned_is_detached_too() -> Result<()> {
    for mechanism in ["tcx", "clsact"] {
        let arguments = ["--attach", mechanism, "--on-exit", "detach"];
        let mut world = World::with(POLICY, &[&["--enable-ipv6"][..], &arguments].concat())?;
        let node = world.bed.node.clone();
        world.agent.signal(Signal::SIGSTOP)?;
        umount2(&world.agent.bpffs(), MntFlags::MNT_DETACH)?;
        // It exits before it polls: the signal is pending when it continues.
        world.agent.signal(Signal::SIGTERM)?;
        world.agent.signal(Signal::SIGCONT)?;
        world.agent.stop()?;
        wait_tcx(&node, "eth0", &[&[], &[]])?;
        let left = filters(&node, "eth0")?;
        ensure!(left.iter().all(String::is_empty), "{left:?}");
    }
    // Filters of a dead agent, whose maps are not pinned anywhere.
    let mut world = World::with(POLICY, &["--enable-ipv6", "--attach", "clsact"])?;
    let node = world.bed.node.clone();
    world.agent.kill9()?;
    umount2(&world.agent.bpffs(), MntFlags::MNT_DETACH)?;
    ensure!(status(&world.agent)?["datapath"] == "in force");
    world.agent.netdp(&["detach"])?;
    let left = filters(&node, "eth0")?;
    ensure!(left.iter().all(String::is_empty), "{left:?}");
    Ok(())
}

/// A deleted interface is not a fault.
#[test]
fn a_deleted_uplink_is_not_called_detached() -> Result<()> {
    let street = Street::start("tcx")?;
    street.world.bed.node.ip("link delete eth0")?;
    wait_for(SOON, "the uplink to be forgotten", || {
        street
            .status()
            .is_ok_and(|status| status["report"]["uplinks"] == Value::Array(Vec::new()))
    })?;
    let log = street.world.agent.log();
    ensure!(!log.contains("is not attached"), "{log}");
    Ok(())
}
