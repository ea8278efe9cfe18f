//! `demo`: three real cases, each before and after; a configuration change under traffic; and netdp
//! in a cluster. Any deviation from the expected result is an error.

mod clients;
#[cfg(feature = "full")]
mod cluster;
mod dual_nic;
mod finale;
mod memorystore;
mod migrate;
mod peering;
mod table;

use crate::{build, shell};
use anyhow::{Context as _, Result, ensure};
use std::path::{Path, PathBuf};
use std::process::exit;
use std::time::{Duration, Instant};
use testbed::{Agent, AgentOptions, Bed, ConfigVolume, Host};

/// Client timeout of an attempt.
const TIME_OUT: Duration = Duration::from_secs(2);

/// Exit status by shell convention after Ctrl-C.
const INTERRUPTED: i32 = 130;

type Story = fn(&Path) -> Result<()>;

const STORIES: [(&str, Story); 4] = [
    (
        "1. peering: a network that has no route back to pods",
        peering::run,
    ),
    ("2. memorystore: the longest prefix wins", memorystore::run),
    (
        "3. dual-nic: the address of the NIC it leaves by",
        dual_nic::run,
    ),
    ("4. the configuration changes under traffic", finale::run),
];

/// Sets up, builds and plays all scenes.
pub fn run() -> Result<()> {
    let netdp = prepare()?;
    let start = Instant::now();
    for (title, run) in STORIES {
        scene(title, || run(&netdp))?;
    }
    end(start);
    Ok(())
}

/// Sets up, builds and shows the takeover of a live node.
pub fn migrate(rounds: usize) -> Result<()> {
    let netdp = prepare()?;
    let start = Instant::now();
    scene("from ip-masq-agent to netdp and back", || {
        migrate::run(&netdp, rounds)
    })?;
    end(start);
    Ok(())
}

#[cfg(feature = "full")]
pub use cluster::run as cluster;

fn prepare() -> Result<PathBuf> {
    check("cargo xtask demo")?;
    // NETDP_BIN selects a program that was built elsewhere.
    testbed::binary_from_env().or_else(|_| build::for_demo())
}

/// Returns an error if the demo cannot run on this machine; installs the Ctrl-C handler.
fn check(task: &str) -> Result<()> {
    testbed::require_root(task)?;
    for (path, mount) in [
        ("/proc/self/ns/net", "mount -t proc proc /proc"),
        ("/sys/kernel/btf/vmlinux", "mount -t sysfs sys /sys"),
    ] {
        ensure!(
            Path::new(path).exists(),
            "{path} is missing: in a chroot, run `{mount}`; elsewhere the kernel lacks it"
        );
    }
    // A process that a signal terminates drops nothing.
    ctrlc::set_handler(|| {
        testbed::remove_all();
        exit(INTERRUPTED);
    })?;
    Ok(())
}

fn scene(title: &str, run: impl FnOnce() -> Result<()>) -> Result<()> {
    println!("\n{title}\n{}", "─".repeat(title.chars().count()));
    run().with_context(|| format!("unexpected result: {title}"))
}

fn end(start: Instant) {
    println!(
        "\nAll checks passed in {:.0} s; cleaned up.",
        start.elapsed().as_secs_f32()
    );
}

/// Prints the introduction to a scene.
fn narrate(text: &str) {
    println!("{text}");
}

/// Starts the agent on the bed's node.
fn start_agent(netdp: &Path, bed: &Bed, config: &ConfigVolume, uplinks: &[&str]) -> Result<Agent> {
    shell::progress("starting netdp on the node");
    let options = AgentOptions::new(netdp).config(config.path());
    let options = uplinks
        .iter()
        .fold(options, |options, name| options.uplink(name));
    Agent::start(&bed.node, options)
}

/// Prints the output of `netdp flows` for a pod.
fn show_mappings(agent: &Agent, pod: &Host) -> Result<()> {
    const LINES: usize = 10;
    let flows = agent.netdp(&["flows"])?;
    let mut lines = flows.lines().skip_while(|line| !line.contains("PROTO"));
    let header = lines.next().unwrap_or_default();
    let source = format!(" {}:", pod.v4()?);
    let of_pod: Vec<&str> = lines.filter(|line| line.contains(&source)).collect();
    ensure!(
        !of_pod.is_empty(),
        "netdp flows lists no mapping of the pod:\n{flows}"
    );
    println!("The pod's live mappings (netdp flows):\n  {header}");
    for line in of_pod.iter().take(LINES) {
        println!("  {line}");
    }
    if let Some(more @ 1..) = of_pod.len().checked_sub(LINES) {
        println!("   … and {more} more");
    }
    Ok(())
}
