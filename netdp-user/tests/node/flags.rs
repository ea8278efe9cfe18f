//! Flags and environments with which the agent cannot work: each is refused with the remedy.

use crate::common::{NETDP, POLICY_V4, refused};
use anyhow::{Context as _, Result, ensure};
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use testbed::{Bed, ConfigVolume, Netns, WorkDir};

/// A node on which the agent must refuse to start.
struct Place {
    node: Netns,
    bed: Bed,
    config: ConfigVolume,
    dir: WorkDir,
}

impl Place {
    fn new() -> Result<Self> {
        let bed = Bed::dual_stack()?;
        Ok(Self {
            node: bed.node.clone(),
            bed,
            config: ConfigVolume::new(POLICY_V4)?,
            dir: WorkDir::new("flags")?,
        })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Returns the command `netdp run` with directories of its own.
    fn run(&self) -> Command {
        let mut command = self.node.command(NETDP);
        self.arguments(&mut command, &self.path("bpffs"), &self.path("state"));
        command
    }

    fn arguments(&self, command: &mut Command, bpffs: &Path, state: &Path) {
        command.env_remove("NODE_IP");
        command.args(["run", "--mode=ebpf", "--config"]);
        command.arg(self.config.path());
        command.arg("--bpffs").arg(bpffs);
        command.arg("--state-dir").arg(state);
    }

    /// Checks that nothing is attached to the uplink.
    fn untouched(&self) -> Result<()> {
        let programs = crate::common::tcx_programs(&self.bed.node, "eth0")?;
        ensure!(programs.iter().all(Vec::is_empty), "{programs:?}");
        Ok(())
    }
}

fn has(told: &str, words: &[&str]) -> Result<()> {
    for words in words {
        ensure!(told.contains(words), "{words:?} is not in\n{told}");
    }
    Ok(())
}

#[test]
fn bad_flags_are_named() -> Result<()> {
    let place = Place::new()?;
    for (flags, words) in [
        (
            &["--uplink", "eth["][..],
            &["--uplink", "\"eth[\"", "glob such as ens*"][..],
        ),
        (
            &["--reserved-ports", "70000"],
            &["--reserved-ports", "\"70000\" is not a port"],
        ),
        (
            &["--reserved-ports", "9-5"],
            &["--reserved-ports", "ends before it begins"],
        ),
        (
            &["--enable-ipv6=maybe"],
            &["--enable-ipv6", "maybe", "true or false"],
        ),
        (&["--max-flows", "7"], &["--max-flows", "1024..=16777216"]),
        (
            &["--attach", "xdp"],
            &["--attach", "xdp", "auto, tcx, clsact"],
        ),
        (&["--on-exit", "leave"], &["--on-exit", "keep, detach"]),
        (&["--node-ip", "10.1.0"], &["--node-ip", "10.1.0"]),
        (&["--log-level", "loud"], &["--log-level", "trace"]),
        (&["--uplnk", "eth0"], &["--uplnk", "'--uplink'"]),
        (&["eth0"], &["unexpected argument 'eth0'"]),
    ] {
        let mut run = place.run();
        run.args(flags);
        let told = refused(run)?;
        has(&told, words).with_context(|| format!("{flags:?}"))?;
    }
    place.untouched()
}

#[test]
fn a_bad_command_is_named() -> Result<()> {
    let mut detatch = Command::new(NETDP);
    detatch.arg("detatch");
    has(&refused(detatch)?, &["detatch", "'detach'"])?;
    let told = refused(Command::new(NETDP))?;
    has(&told, &["Usage", "run", "status", "flows", "detach"])
}

/// Copies the program to a place where every user can run it. Not copied by this process: a child
/// that another test starts meanwhile would inherit the descriptor, and a file open for writing
/// cannot be executed.
fn public_copy(place: &Place) -> Result<PathBuf> {
    let copy = place.path("netdp");
    let mut install = Command::new("install");
    testbed::output(install.args(["-m", "755", NETDP]).arg(&copy))?;
    Ok(copy)
}

/// Returns the command `netdp run` as another user, or without some capability.
fn with_privileges(place: &Place, setpriv: &[&str], bpffs: &Path) -> Result<Command> {
    let copy = public_copy(place)?;
    let state = place.path("state");
    fs::create_dir_all(&state)?;
    fs::set_permissions(&state, fs::Permissions::from_mode(0o777))?;
    let mut command = place.node.command("setpriv");
    command.args(setpriv).arg(copy);
    place.arguments(&mut command, bpffs, &state);
    Ok(command)
}

const NOBODY: [&str; 3] = ["--reuid=65534", "--regid=65534", "--clear-groups"];

#[test]
fn an_ordinary_user_learns_what_is_missing() -> Result<()> {
    let place = Place::new()?;
    // The agent may create this directory for pins, so that only mounting fails.
    let open = place.path("open");
    fs::create_dir(&open)?;
    fs::set_permissions(&open, fs::Permissions::from_mode(0o777))?;
    let told = refused(with_privileges(&place, &NOBODY, &open.join("bpffs"))?)?;
    has(
        &told,
        &[
            "mounting a bpffs",
            "CAP_SYS_ADMIN",
            "--bpffs",
            "not permitted",
        ],
    )?;
    place.untouched()
}

/// The bpffs is already mounted; only a privilege for bpf(2) is missing.
#[test]
fn each_capability_that_is_missing_is_named() -> Result<()> {
    let place = Place::new()?;
    let bpffs = place.path("bpffs");
    fs::create_dir(&bpffs)?;
    let mut mount = Command::new("mount");
    testbed::output(mount.args(["-t", "bpf", "bpf"]).arg(&bpffs))?;
    for (dropped, named) in [
        (
            "-bpf,-perfmon,-net_admin",
            "CAP_BPF and CAP_NET_ADMIN and CAP_PERFMON are",
        ),
        ("-bpf", "CAP_BPF is"),
        ("-net_admin", "CAP_NET_ADMIN is"),
        ("-perfmon", "CAP_PERFMON is"),
    ] {
        let dropped = format!("-sys_admin,{dropped}");
        let bounding = format!("--bounding-set={dropped}");
        let inheritable = format!("--inh-caps={dropped}");
        let rights = [bounding.as_str(), inheritable.as_str()];
        let told = refused(with_privileges(&place, &rights, &bpffs)?)?;
        let named = format!("{named} missing");
        has(
            &told,
            &[&named, "securityContext.capabilities.add: [", "or root"],
        )?;
        // The verifier's log would blame the programs.
        for words in ["prohibited", "processed", "R1"] {
            ensure!(!told.contains(words), "{words} in\n{told}");
        }
        ensure!(told.lines().count() < 6, "{told}");
    }
    place.untouched()
}

#[test]
fn a_state_directory_that_cannot_be_made_is_named() -> Result<()> {
    let place = Place::new()?;
    let file = place.path("file");
    fs::write(&file, "")?;
    for state in [file.clone(), file.join("below")] {
        let mut command = place.node.command(NETDP);
        place.arguments(&mut command, &place.path("bpffs"), &state);
        let told = refused(command)?;
        has(
            &told,
            &[
                "state directory",
                &state.display().to_string(),
                "--state-dir",
            ],
        )?;
    }
    // A bpffs that an ordinary user cannot write to.
    let copy = public_copy(&place)?;
    let mut command = place.node.command("setpriv");
    command.args(NOBODY).arg(copy);
    let state = place.path("roots");
    fs::create_dir(&state)?;
    place.arguments(&mut command, &place.path("bpffs"), &state);
    let told = refused(command)?;
    has(&told, &[&state.display().to_string(), "ermission denied"])?;
    place.untouched()
}

#[test]
fn a_bpffs_that_cannot_be_mounted_is_named() -> Result<()> {
    let place = Place::new()?;
    let file = place.path("file");
    fs::write(&file, "")?;
    for bpffs in [
        file.clone(),
        file.join("below"),
        PathBuf::from("/proc/netdp"),
    ] {
        let mut command = place.node.command(NETDP);
        place.arguments(&mut command, &bpffs, &place.path("state"));
        let told = refused(command)?;
        has(&told, &[&bpffs.display().to_string(), "--bpffs"])?;
    }
    place.untouched()
}

/// Inspection commands without a datapath.
#[test]
fn without_a_datapath_there_is_nothing_to_show() -> Result<()> {
    let place = Place::new()?;
    let places = |command: &mut Command| {
        command.arg("--bpffs").arg(place.path("none"));
        command.arg("--state-dir").arg(place.path("none"));
    };
    let mut status = Command::new(NETDP);
    places(status.arg("status"));
    let told = testbed::output(&mut status)?;
    has(
        &told,
        &["agent      not running", "datapath   none", "mappings   0"],
    )?;
    let mut flows = Command::new(NETDP);
    places(flows.arg("flows"));
    let told = refused(flows)?;
    has(&told, &["no datapath", "--bpffs", "is the agent running"])
}
