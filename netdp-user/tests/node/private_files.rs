//! Things that other users of the node must not be able to do to the agent: read or lock its files,
//! replace them, occupy all connections of its probes, or control the terminal of a person who
//! inspects it.

use crate::common::{POLICY_V4, SOON, World, options, refused, start_agent, status, wait_log};
use anyhow::{Context as _, Result, ensure};
use nix::fcntl::{Flock, FlockArg};
use nix::sys::stat::Mode;
use nix::unistd::{Uid, chown, mkfifo};
use std::fs::{self, File, Permissions};
use std::io::Write as _;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};
use testbed::{Agent, AgentOptions, Bed, ConfigVolume, Running, wait_for};

/// User id of nobody.
const NOBODY: u32 = 65_534;

fn mode(path: &Path) -> Result<u32> {
    Ok(fs::symlink_metadata(path)?.mode() & 0o7777)
}

fn set_mode(path: &Path, mode: u32) -> Result<()> {
    fs::set_permissions(path, Permissions::from_mode(mode))
        .with_context(|| format!("{}", path.display()))
}

/// Checks the permissions of the state directory and of everything in it.
fn are_private(dir: &Path) -> Result<()> {
    ensure!(mode(dir)? == 0o700, "{:o}", mode(dir)?);
    let mut files = 0;
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        ensure!(
            mode(&path)? == 0o600,
            "{}: {:o}",
            path.display(),
            mode(&path)?
        );
        files += 1;
    }
    ensure!(files >= 4, "{files} files");
    Ok(())
}

#[test]
fn files_are_the_agents_own_whatever_the_umask() -> Result<()> {
    let bed = Bed::dual_stack()?;
    let config = ConfigVolume::new(POLICY_V4)?;
    let dir = testbed::WorkDir::new("umask")?;
    let wrapper = dir.path().join("netdp");
    let script = |umask| {
        format!(
            "#!/bin/sh\numask {umask}\nexec {} \"$@\"\n",
            crate::common::NETDP
        )
    };
    fs::write(&wrapper, script("0277"))?;
    set_mode(&wrapper, 0o755)?;
    let start = || Agent::start(&bed.node, AgentOptions::new(&wrapper).config(config.path()));
    let agent = start()?;
    are_private(&agent.state_dir())?;
    drop(agent);
    fs::write(&wrapper, script("0"))?;
    let mut agent = start()?;
    are_private(&agent.state_dir())?;
    ensure!(mode(&agent.bpffs())? & 0o777 == 0o700);
    // As an earlier version left them.
    agent.stop()?;
    for entry in fs::read_dir(agent.state_dir())? {
        set_mode(&entry?.path(), 0o644)?;
    }
    set_mode(&agent.state_dir(), 0o755)?;
    set_mode(&agent.bpffs(), 0o755)?;
    agent.restart()?;
    ensure!(mode(&agent.bpffs())? & 0o777 == 0o700);
    are_private(&agent.state_dir())
}

#[test]
fn directories_that_others_could_swap_are_refused() -> Result<()> {
    let bed = Bed::dual_stack()?;
    let config = ConfigVolume::new(POLICY_V4)?;
    let mut agent = start_agent(&bed.node, &config, &[])?;
    agent.stop()?;
    let refusal = |agent: &mut Agent, words: &[&str]| -> Result<()> {
        let told = format!("{:#}", agent.restart().unwrap_err());
        for words in words {
            ensure!(told.contains(words), "{words:?} is not in {told}");
        }
        Ok(())
    };
    let (state, bpffs) = (agent.state_dir(), agent.bpffs());
    let name = state.display().to_string();
    // The agent corrects its own files.
    for mode in [0o777, 0o770] {
        set_mode(&state, mode)?;
        agent.restart()?;
        ensure!(state.metadata()?.mode() & 0o777 == 0o700, "still open");
        agent.stop()?;
    }
    chown(&state, Some(Uid::from_raw(NOBODY)), None)?;
    refusal(&mut agent, &[&name, "uid 65534", "chown root"])?;
    chown(&state, Some(Uid::from_raw(0)), None)?;
    let parent = state.parent().context("no parent")?.to_owned();
    set_mode(&parent, 0o777)?;
    refusal(
        &mut agent,
        &["can be replaced by others", "mode 0777", "--state-dir"],
    )?;
    set_mode(&parent, 0o1777)?;
    agent.restart()?;
    agent.stop()?;
    set_mode(&bpffs, 0o777)?;
    agent.restart()?;
    ensure!(bpffs.metadata()?.mode() & 0o777 == 0o700, "still open");
    Ok(())
}

/// Starts a process of another user that holds a file's lock until it is dropped. It opened the
/// file earlier, while that was readable by everyone.
fn stranger(path: &Path) -> Result<Running> {
    let mut command = Command::new("sh");
    let script = "exec 9<\"$0\"; flock -n 9 || exit 1; echo held; exec sleep 600";
    command
        .args(["-c", script])
        .arg(path)
        .uid(NOBODY)
        .gid(NOBODY);
    let running = Running::start(command)?;
    wait_for(SOON, "the stranger to hold the lock", || {
        running.stdout().contains("held")
    })?;
    Ok(running)
}

#[test]
fn a_lock_of_another_user_stops_no_agent() -> Result<()> {
    let mut world = World::with(POLICY_V4, &[])?;
    world.agent.stop()?;
    let state = world.agent.state_dir();
    let lock = state.join("lock");
    set_mode(&state, 0o755)?;
    set_mode(&lock, 0o644)?;
    let _stranger = stranger(&lock)?;
    ensure!(status(&world.agent)?["agent"] == "not running");
    world.agent.restart()?;
    ensure!(status(&world.agent)?["agent"] == "running");
    wait_log(&world.agent, "state/lock: replacing it")?;
    // The new lock is effective.
    let mut second = world.agent.command(&["run"]);
    second.arg("--config").arg(world.config.path());
    let told = refused(second)?;
    ensure!(told.contains("another agent"), "{told}");
    Ok(())
}

#[test]
fn a_lock_that_a_killed_agent_has_left_to_a_child_is_waited_for() -> Result<()> {
    let mut world = World::start()?;
    let lock = world.agent.state_dir().join("lock");
    world.agent.kill9()?;
    // As a child does whose parent was killed before it executed its program: the lock belongs to a
    // process that has ended.
    let left = "exec 9>>\"$0\"; flock -n 9 && exec sleep 1 >/dev/null 2>&1 &";
    let path = lock.to_str().context("a path")?;
    testbed::output(Command::new("sh").args(["-c", &format!("({left})"), path]))?;
    let inode = fs::metadata(&lock)?.ino();
    world.agent.restart()?;
    ensure!(fs::metadata(&lock)?.ino() == inode, "the lock was replaced");
    Ok(())
}

/// An agent of an earlier version does no more than this.
#[test]
fn a_lock_of_our_own_user_is_an_agents() -> Result<()> {
    let mut world = World::with(POLICY_V4, &[])?;
    world.agent.stop()?;
    let lock = world.agent.state_dir().join("lock");
    set_mode(&lock, 0o644)?;
    let held = Flock::lock(File::open(&lock)?, FlockArg::LockExclusiveNonblock);
    let held = held.map_err(|(_, err)| err)?;
    let mut second = world.agent.command(&["run"]);
    second.arg("--config").arg(world.config.path());
    let told = refused(second)?;
    ensure!(told.contains("another agent"), "{told}");
    drop(held);
    world.agent.restart()
}

/// FIFOs do not block the agent, and symlinks are not followed.
#[test]
fn only_regular_files_are_read() -> Result<()> {
    let mut world = World::with(POLICY_V4, &[])?;
    world.agent.stop()?;
    let state = world.agent.state_dir();
    let victim = state.with_file_name("victim");
    fs::write(&victim, "untouched")?;
    for name in [
        "status.json",
        "memory.json",
        "last-good.json",
        "fallback.json",
        ".status.json.new",
    ] {
        let path = state.join(name);
        fs::remove_file(&path).or_else(|err| match err.kind() {
            std::io::ErrorKind::NotFound => Ok(()),
            _ => Err(err),
        })?;
        if name.starts_with('.') {
            symlink(&victim, &path)?;
        } else {
            mkfifo(&path, Mode::S_IRUSR | Mode::S_IWUSR)?;
        }
    }
    let mut asked = Running::start(world.agent.command(&["status"]))?;
    ensure!(asked.wait(SOON)?.success(), "{}", asked.stderr());
    world.agent.restart()?;
    are_private(&state)?;
    assert_eq!(fs::read_to_string(&victim)?, "untouched");
    // A lock file that is a symlink is refused, and its target stays unchanged.
    world.agent.stop()?;
    fs::remove_file(state.join("lock"))?;
    symlink(&victim, state.join("lock"))?;
    let told = format!("{:#}", world.agent.restart().unwrap_err());
    ensure!(told.contains("symbolic link"), "{told}");
    assert_eq!(fs::read_to_string(&victim)?, "untouched");
    // A FIFO in the configuration directory does not block either.
    fs::remove_file(state.join("lock"))?;
    let fifo = state.with_file_name("fifo.yaml");
    mkfifo(&fifo, Mode::S_IRUSR)?;
    world.agent.options().replace(
        &world.config.path().display().to_string(),
        &fifo.display().to_string(),
    );
    world.agent.restart()?;
    wait_log(&world.agent, "neither a regular file nor a directory")
}

/// A thousand connections from one address that send nothing, or one byte at a time.
#[test]
fn probes_are_answered_beside_a_thousand_idle_connections() -> Result<()> {
    let bed = Bed::dual_stack()?;
    let config = ConfigVolume::new(POLICY_V4)?;
    let at: SocketAddr = "10.1.0.10:10268".parse()?;
    let agent = Agent::start(
        &bed.node,
        options(&config, &[&format!("--http-listen={at}")]),
    )?;
    let near = bed.neighbour(0, &["10.1.0.20/16", "fd00:1::20/64"])?;
    let probe = |ns: &testbed::Netns| -> Result<Duration> {
        let start = Instant::now();
        let url = format!("http://{at}/livez");
        let told = ns.run(&["curl", "-sS", "-m", "5", "-w", " %{http_code}", &url])?;
        ensure!(told.ends_with(" 200"), "{told}");
        Ok(start.elapsed())
    };
    let descriptors =
        || -> Result<usize> { Ok(fs::read_dir(format!("/proc/{}/fd", agent.pid()))?.count()) };
    let before = descriptors()?;
    let open = |ns: &testbed::Netns| -> Result<Vec<TcpStream>> {
        let open = ns.enter(|| {
            (0..1000)
                .map(|_| TcpStream::connect_timeout(&at, Duration::from_secs(10)))
                .collect::<std::io::Result<Vec<_>>>()
        })?;
        Ok(open?)
    };
    let mut idle = open(&near)?;
    for (index, stream) in idle.iter_mut().enumerate() {
        if index % 2 == 0 {
            // Closed connections refuse it.
            let _ = stream.write_all(b"GET /livez");
        }
    }
    for ns in [&bed.node, &near] {
        let took = probe(ns)?;
        ensure!(took < Duration::from_secs(1), "{took:?}");
    }
    let held = descriptors()?;
    ensure!(held <= before + 40, "{before} descriptors, then {held}");
    Ok(())
}

/// Names chosen by others are shown without control sequences.
#[test]
fn names_steer_no_terminal() -> Result<()> {
    let world = World::with(POLICY_V4, &["--uplink", "eth0", "--uplink", "e\x1b*"])?;
    let node = &world.bed.node;
    node.run(&[
        "ip",
        "link",
        "add",
        "e\x1b[31mx",
        "type",
        "veth",
        "peer",
        "name",
        "other",
    ])?;
    node.run(&["ip", "link", "set", "e\x1b[31mx", "up"])?;
    node.run(&["ip", "addr", "add", "10.77.0.1/24", "dev", "e\x1b[31mx"])?;
    wait_log(&world.agent, "attached to e\\u{1b}[31mx")?;
    let text = world.agent.netdp(&["status"])?;
    ensure!(text.contains("e\\u{1b}[31mx"), "{text}");
    ensure!(!text.contains('\x1b'), "{text:?}");
    ensure!(
        !world.agent.log().contains('\x1b'),
        "{:?}",
        world.agent.log()
    );
    // A file name that looks like a line of the status.
    let dir = testbed::WorkDir::new("names")?;
    let file = dir.path().join("a\ndatapath   in force\x1b[2J.yaml");
    fs::write(file, "nonMasqueradeCIDRs: [172.16.0.0/16]\nunknownKey: 1\n")?;
    let mut check = node.command(crate::common::NETDP);
    check.args(["config", "check"]).arg(dir.path());
    let told = testbed::output(&mut check)?;
    ensure!(
        !told.contains('\x1b') && told.contains("\\u{1b}[2J"),
        "{told:?}"
    );
    // The uplink goes away with the bed.
    let (bed, config) = (Bed::dual_stack()?, ConfigVolume::new(POLICY_V4)?);
    let agent = start_agent(
        &bed.node,
        &config,
        &["--config", &dir.path().display().to_string()],
    )?;
    wait_log(&agent, "unknown key")?;
    let text = agent.netdp(&["status"])?;
    ensure!(
        !agent.log().contains('\x1b') && !text.contains('\x1b'),
        "{text:?}"
    );
    let lines = text
        .lines()
        .filter(|line| line.starts_with("datapath   in force"));
    ensure!(lines.count() == 1, "{text}");
    Ok(())
}
