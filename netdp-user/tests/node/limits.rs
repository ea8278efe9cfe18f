//! Limits: too many addresses, too little memory. They are reported, and nothing wrong comes into
//! force.

use crate::common::{
    NETDP, POLICY_V4, SOON, packets, refused, start_agent, status, tcx_programs, wait_log,
};
use anyhow::{Context as _, Result, ensure};
use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use testbed::{Agent, AgentOptions, Bed, ConfigVolume, Netns, Running, WorkDir, output, wait_for};

/// Adds `count` addresses below 10.64.0.0/10, spread over several links.
fn add_addresses(node: &Netns, dir: &WorkDir, count: usize) -> Result<()> {
    let mut batch = String::new();
    for number in 0..count {
        if number % 1000 == 0 {
            writeln!(
                batch,
                "link add many{} type veth peer name peer{}",
                number / 1000,
                number / 1000
            )?;
        }
        let [_, _, high, low] = u32::try_from(number)?.to_be_bytes();
        let link = number / 1000;
        writeln!(batch, "addr add 10.64.{high}.{low}/32 dev many{link}")?;
    }
    let file = dir.path().join("batch");
    fs::write(&file, batch)?;
    node.ip(&format!("-batch {}", file.display()))?;
    Ok(())
}

#[test]
fn twenty_thousand_addresses_are_all_the_nodes_own() -> Result<()> {
    let bed = Bed::dual_stack()?;
    let dir = WorkDir::new("limits")?;
    let far = bed.server(0, &["10.2.0.1/24", "fd00:2::1/64"])?;
    add_addresses(&bed.node, &dir, 20_000)?;
    let config = ConfigVolume::new(POLICY_V4)?;
    let agent = start_agent(&bed.node, &config, &[])?;
    ensure!(!agent.log().contains("ERROR"), "{}", agent.log());
    // Pings from both ends of the list. None is answered, as there is no route back; none may leave
    // with another address.
    for source in ["10.64.0.0", "10.64.31.64", "10.64.64.0", "10.64.78.31"] {
        bed.node
            .run(&[
                "ping",
                "-c",
                "1",
                "-W",
                "0.01",
                "-I",
                source,
                &far.v4()?.to_string(),
            ])
            .unwrap_err();
    }
    ensure!(packets(&agent, "egress_masqueraded")? == 0);
    ensure!(packets(&agent, "egress_host")? >= 4);
    Ok(())
}

#[test]
fn with_more_addresses_than_the_map_holds_nothing_is_attached() -> Result<()> {
    let bed = Bed::dual_stack()?;
    let dir = WorkDir::new("limits")?;
    add_addresses(&bed.node, &dir, 100)?;
    let bpffs = dir.path().join("bpffs");
    fs::create_dir(&bpffs)?;
    let _unmount = Unmount(&dir);
    nix::mount::mount(
        Some("bpf"),
        &bpffs,
        Some("bpf"),
        nix::mount::MsFlags::empty(),
        None::<&str>,
    )?;
    // The map of an earlier version, which is too small.
    let mut create = Command::new("bpftool");
    create
        .args(["map", "create"])
        .arg(bpffs.join("local_addrs"));
    create.args([
        "type",
        "hash",
        "key",
        "16",
        "value",
        "4",
        "entries",
        "64",
        "name",
        "LOCAL_ADDRS",
    ]);
    output(&mut create)?;
    let mut agent = Running::start(limited(&bed.node, &dir, &["env"]))?;
    let words = [
        "the node has 1",
        "holds 64",
        "no further interface is attached",
        "netdp detach",
    ];
    wait_for(SOON, "a complaint", || {
        words.iter().all(|words| agent.stderr().contains(words))
    })
    .with_context(|| agent.written())?;
    // One more iteration of the agent's loop.
    bed.node.ip("addr add 10.64.99.99/32 dev many0")?;
    wait_for(SOON, "the next complaint", || {
        agent
            .stderr()
            .matches("no further interface is attached")
            .count()
            == 2
    })
    .with_context(|| agent.written())?;
    let attached = tcx_programs(&bed.node, "eth0")?;
    ensure!(attached.iter().all(Vec::is_empty), "{attached:?}");
    // Once there is room, the agent recovers.
    bed.node.ip("link del many0")?;
    wait_for(SOON, "the agent to be in force", || {
        agent.stderr().contains("netdp: in force")
    })
    .with_context(|| agent.written())?;
    ensure!(agent.terminate(SOON)?.success());
    Ok(())
}

#[test]
fn a_configuration_without_room_brings_the_defaults_and_says_why() -> Result<()> {
    let bed = Bed::dual_stack()?;
    let dir = WorkDir::new("limits")?;
    for part in 0..19_u32 {
        let mut text = String::from("cidrLimit: 100000\nnonMasqueradeCIDRs:\n");
        for number in part * 55_000..(part + 1) * 55_000 {
            let [_, a, b, c] = number.to_be_bytes();
            writeln!(text, "- 9.{b}.{c}.{a}/32")?;
        }
        let text = text.replace("- 9.", &format!("- {}.", 10 + part));
        ensure!(text.len() <= 1 << 20, "{}", text.len());
        fs::write(dir.path().join(format!("{part:02}.yaml")), text)?;
    }
    let mut agent = Agent::start(&bed.node, AgentOptions::new(NETDP).config(dir.path()))?;
    wait_log(
        &agent,
        "invalid configuration: the built-in defaults are in force",
    )?;
    wait_log(&agent, "more than the limit of 1000000")?;
    let report = &status(&agent)?["report"];
    ensure!(report["config"]["rules"].as_array().map(Vec::len) == Some(4));
    let check = agent.command(&[]);
    let mut command = Command::new(check.get_program());
    command.args(["config", "check"]).arg(dir.path());
    let told = refused(command)?;
    ensure!(told.contains("invalid configuration: 1 error"), "{told}");
    ensure!(agent.stop()?.success());
    Ok(())
}

/// Returns the command `netdp run`, started by a program that limits its resources.
fn limited(node: &Netns, dir: &WorkDir, by: &[&str]) -> Command {
    let mut command = node.command(by[0]);
    command
        .args(&by[1..])
        .arg(NETDP)
        .args(["run", "--mode=ebpf"]);
    for (flag, name) in [
        ("--bpffs", "bpffs"),
        ("--state-dir", "state"),
        ("--config", "config"),
    ] {
        command.arg(flag).arg(dir.path().join(name));
    }
    command.env_remove("NODE_IP");
    command
}

/// Guard that unmounts what a refused agent has left behind.
struct Unmount<'a>(&'a WorkDir);

impl Drop for Unmount<'_> {
    fn drop(&mut self) {
        let _ = nix::mount::umount(&self.0.path().join("bpffs"));
    }
}

#[test]
fn few_open_files_are_made_more_or_complained_of() -> Result<()> {
    let bed = Bed::dual_stack()?;
    let dir = WorkDir::new("limits")?;
    let _unmount = Unmount(&dir);
    let told = refused(limited(&bed.node, &dir, &["prlimit", "--nofile=48:48"]))?;
    ensure!(
        told.contains("RLIMIT_NOFILE") && told.contains("allow 256 or more"),
        "{told}"
    );
    let soft = limited(&bed.node, &dir, &["prlimit", "--nofile=64:4096"]);
    let mut agent = Running::start(soft)?;
    let mut ended = None;
    wait_for(SOON, "the agent to be in force", || {
        ended = agent.exit_status().ok().flatten();
        ended.is_some() || agent.stderr().contains("netdp: in force")
    })
    .with_context(|| agent.written())?;
    ensure!(ended.is_none(), "{}", agent.written());
    ensure!(agent.terminate(SOON)?.success());
    Ok(())
}

/// A control group with a memory limit, of whichever version is available.
struct Group(std::path::PathBuf);

impl Group {
    fn new(bytes: u64) -> Result<Self> {
        let first = Path::new("/sys/fs/cgroup/memory");
        let (root, file) = if first.is_dir() {
            (first, "memory.limit_in_bytes")
        } else {
            (Path::new("/sys/fs/cgroup"), "memory.max")
        };
        let group = Self(root.join(format!("netdp-test-{}", std::process::id())));
        fs::create_dir(&group.0).with_context(|| format!("creating {}", group.0.display()))?;
        fs::write(group.0.join(file), bytes.to_string())
            .with_context(|| format!("limiting {}", group.0.display()))?;
        Ok(group)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

#[test]
fn too_little_memory_is_told_with_what_is_needed() -> Result<()> {
    let bed = Bed::dual_stack()?;
    let dir = WorkDir::new("limits")?;
    let _unmount = Unmount(&dir);
    let group = Group::new(64 << 20)?;
    let join = format!(
        "echo $$ > {}/cgroup.procs && exec \"$@\"",
        group.0.display()
    );
    let told = refused(limited(&bed.node, &dir, &["sh", "-c", &join, "sh"]))?;
    for words in [
        "the memory limit of 64 MiB",
        "--max-flows 262144",
        // How many depends on the number of CPUs.
        " MiB at start",
    ] {
        ensure!(told.contains(words), "{words:?} is not in {told}");
    }
    let attached = tcx_programs(&bed.node, "eth0")?;
    ensure!(attached.iter().all(Vec::is_empty), "{attached:?}");
    Ok(())
}

#[test]
fn programs_of_the_search_path_are_not_run() -> Result<()> {
    let bed = Bed::dual_stack()?;
    let dir = WorkDir::new("limits")?;
    let ran = dir.path().join("ran");
    let bin = dir.path().join("bin");
    fs::create_dir(&bin)?;
    for name in [
        "nft",
        "iptables-nft",
        "iptables-nft-save",
        "iptables-nft-restore",
        "iptables-legacy-save",
        "ip6tables-nft-save",
    ] {
        let path = bin.join(name);
        fs::write(
            &path,
            format!("#!/bin/sh\necho {name} >> {}\n", ran.display()),
        )?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
    }
    let config = ConfigVolume::new("nonMasqueradeCIDRs: [172.16.0.0/16]\n")?;
    for mode in ["ebpf", "iptables"] {
        let path = format!("{}:{}", bin.display(), std::env::var("PATH")?);
        let options = AgentOptions::new(NETDP)
            .config(config.path())
            .arg(format!("--mode={mode}"))
            .env("PATH", path);
        let agent = Agent::start(&bed.node, options)?;
        agent.netdp(&["status"])?;
        ensure!(!ran.exists(), "{mode}: {}", fs::read_to_string(&ran)?);
    }
    Ok(())
}
