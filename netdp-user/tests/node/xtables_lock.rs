//! The agent while another program holds the lock of iptables: writing its chain, a takeover, and
//! shutdown.

use crate::common::clients::tcp_source;
use crate::common::{ECHO, Echo, SOON, options, status, wait_log};
use anyhow::{Context as _, Result, ensure};
use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::Signal;
use serde_json::Value;
use std::fs::{self, File};
use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::time::Duration;
use testbed::{Agent, AgentOptions, Bed, ConfigVolume, WorkDir, wait_for};

const BEFORE: &str = "nonMasqueradeCIDRs: [172.16.0.0/16]\n";
const AFTER: &str = "nonMasqueradeCIDRs: [172.16.0.0/16, 10.77.0.0/16]\n";
const BAD: &str = "nonMasqueradeCIDRs: [10.77.0.0/99]\n";

/// Message of iptables after its wait for the lock timed out.
const BUSY: &str = "Another app is currently holding the xtables lock";

/// A node with iptables-legacy, which has the lock.
struct Node {
    bed: Bed,
    config: ConfigVolume,
    dir: WorkDir,
}

impl Node {
    fn new() -> Result<Self> {
        let bed = Bed::dual_stack()?;
        let node = Self {
            bed,
            config: ConfigVolume::new(BEFORE)?,
            dir: WorkDir::new("lock")?,
        };
        for family in ["iptables-legacy", "ip6tables-legacy"] {
            let mut hint = node.bed.node.command(family);
            hint.env("XTABLES_LOCKFILE", node.file());
            hint.args(["-t", "mangle", "-N", "KUBE-IPTABLES-HINT"]);
            testbed::output(&mut hint)?;
        }
        Ok(node)
    }

    /// Returns a lock file of its own: the usual one is shared by the whole machine, other tests
    /// included.
    fn file(&self) -> PathBuf {
        self.dir.path().join("xtables.lock")
    }

    fn options(&self) -> AgentOptions {
        options(&self.config, &["--mode=iptables"]).env("XTABLES_LOCKFILE", self.file())
    }

    fn hold(&self) -> Result<Flock<File>> {
        let file = File::create(self.file())?;
        Flock::lock(file, FlockArg::LockExclusiveNonblock)
            .map_err(|(_, error)| error)
            .context("taking the lock")
    }

    /// Returns the chain with its counters; reading needs no lock.
    fn rules(&self) -> Result<Vec<String>> {
        let all = self
            .bed
            .node
            .run(&["iptables-legacy-save", "-c", "-t", "nat"])?;
        let ours = all.lines().filter(|line| line.contains("IP-MASQ-AGENT"));
        Ok(ours.map(str::to_owned).collect())
    }

    fn wait_rules(&self, words: &str) -> Result<()> {
        wait_for(SOON, &format!("{words} in the chain"), || {
            self.rules()
                .is_ok_and(|rules| rules.iter().any(|rule| rule.contains(words)))
        })
    }
}

/// Reports whether any thread of the agent runs a program that writes rules.
fn is_writing(agent: &Agent) -> bool {
    let tasks = fs::read_dir(format!("/proc/{}/task", agent.pid()));
    let tasks = tasks.into_iter().flatten().flatten();
    let children: String = tasks
        .map(|task| fs::read_to_string(task.path().join("children")).unwrap_or_default())
        .collect();
    children.split_whitespace().any(|pid| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line);
        let program = line.split('\0').next().unwrap_or_default();
        program.ends_with("/iptables-legacy-restore") && line.contains("--wait\0")
    })
}

/// Reports whether a process is a zombie.
fn has_ended(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"));
    stat.map_or(true, |stat| stat.contains(") Z "))
}

fn error(agent: &Agent) -> Result<Value> {
    Ok(status(agent)?["report"]["chains"][0]["error"].clone())
}

/// The agent waits for the lock and writes the chain once it is free.
#[test]
fn a_lock_that_is_given_back_is_waited_for() -> Result<()> {
    let mut node = Node::new()?;
    let agent = Agent::start(&node.bed.node, node.options())?;
    let before = node.rules()?;
    ensure!(!before.is_empty(), "no chain");

    let lock = node.hold()?;
    node.config.write(AFTER)?;
    wait_for(SOON, "the agent to write", || is_writing(&agent))?;
    ensure!(node.rules()? == before, "written without the lock");
    drop(lock);
    node.wait_rules("-d 10.77.0.0/16")?;
    ensure!(error(&agent)?.is_null(), "{}", agent.log());
    Ok(())
}

/// Only the chain waits for the lock: an invalid configuration is reported meanwhile and does not
/// affect the one that is being written.
#[test]
fn the_agent_goes_on_while_a_chain_waits_for_the_lock() -> Result<()> {
    let mut node = Node::new()?;
    let agent = Agent::start(&node.bed.node, node.options())?;
    let before = node.rules()?;
    let lock = node.hold()?;
    node.config.write(AFTER)?;
    wait_for(SOON, "the agent to write", || is_writing(&agent))?;
    node.config.write(BAD)?;
    let words = "invalid configuration: the previous configuration stays in force";
    wait_log(&agent, words)?;
    let log = agent.log();
    let reported = log.find(words).context("no line")?;
    // It logs the timeout.
    let is_first = log.find(BUSY).is_none_or(|busy| reported < busy);
    ensure!(is_first, "the lock was waited for first: {log}");
    ensure!(node.rules()? == before, "written without the lock");

    drop(lock);
    node.wait_rules("-d 10.77.0.0/16")?;
    wait_for(SOON, "the status to have both", || {
        status(&agent).is_ok_and(|status| {
            let config = &status["report"]["config"];
            let has = |key: &str, words: &str| config[key].to_string().contains(words);
            has("rules", "10.77.0.0/16") && has("rejected", "10.77.0.0/99")
        })
    })
    .with_context(|| agent.log())
}

/// The wait is bounded: the failure is reported, the rules in force stay, and the chain is written
/// once the lock is free, even without any other event.
#[test]
fn a_lock_that_is_kept_is_told_of_and_tried_again() -> Result<()> {
    let mut node = Node::new()?;
    let far = node.bed.server(0, &["10.2.0.1/24"])?;
    let _echo = Echo::start(&far)?;
    let agent = Agent::start(&node.bed.node, node.options())?;
    let before = node.rules()?;

    let lock = node.hold()?;
    node.config.write(AFTER)?;
    wait_log(&agent, BUSY)?;
    ensure!(node.rules()? == before, "written without the lock");
    wait_for(SOON, "the status to say so", || {
        error(&agent).is_ok_and(|error| error.to_string().contains(BUSY))
    })?;
    let log = agent.log();
    let line = log
        .lines()
        .find(|line| line.contains(BUSY))
        .context("no line")?;
    for words in ["ERROR", "IPv4", "iptables-legacy-restore", "--wait 5"] {
        ensure!(line.contains(words), "{words:?} is not in {line}");
    }
    let text = agent.netdp(&["status"])?;
    ensure!(text.contains(BUSY), "{text}");
    let to = (far.v4()?, ECHO).into();
    ensure!(tcp_source(&node.bed.pods[0], to)? == IpAddr::from([10, 1, 0, 10]));

    drop(lock);
    node.wait_rules("-d 10.77.0.0/16")?;
    wait_for(SOON, "the status to be well", || {
        error(&agent).is_ok_and(|error| error.is_null())
    })
}

/// An agent that starts while the lock is held becomes ready once it is free.
#[test]
fn an_agent_that_starts_meanwhile_gets_there_afterwards() -> Result<()> {
    let node = Node::new()?;
    let lock = node.hold()?;
    let mut agent = Agent::spawn(&node.bed.node, node.options())?;
    wait_log(&agent, BUSY)?;
    let ready = agent.state_dir().with_file_name("ready");
    ensure!(!ready.exists(), "ready without a chain");
    ensure!(node.rules()?.is_empty(), "written without the lock");
    drop(lock);
    agent.wait_ready(SOON)?;
    node.wait_rules("-j MASQUERADE")
}

/// A takeover waits while the lock is held, reports that, and proceeds once it is free.
#[test]
fn a_takeover_is_tried_again() -> Result<()> {
    let node = Node::new()?;
    let far = node.bed.server(0, &["10.2.0.1/24"])?;
    let _echo = Echo::start(&far)?;
    let mut agent = Agent::start(&node.bed.node, node.options())?;
    node.wait_rules("-j MASQUERADE")?;
    agent.stop()?;
    agent.options().replace("--mode=iptables", "--mode=ebpf");
    let lock = node.hold()?;
    agent.restart()?;
    let log = agent.log();
    let line = log
        .lines()
        .find(|line| line.contains(BUSY))
        .context("no line")?;
    for words in [
        "ERROR",
        "taking over chain IP-MASQ-AGENT (IPv4, legacy)",
        "netdp retries",
    ] {
        ensure!(line.contains(words), "{words:?} is not in {line}");
    }
    let failed = || Ok::<_, anyhow::Error>(status(&agent)?["report"]["not_taken_over"].clone());
    ensure!(failed()?.to_string().contains(BUSY), "{}", failed()?);
    let text = agent.netdp(&["status"])?;
    ensure!(
        text.contains("takeover   will be retried: chain IP-MASQ-AGENT"),
        "{text}"
    );
    ensure!(!node.rules()?.is_empty(), "taken over without the lock");
    // Both translate identically meanwhile.
    let to = (far.v4()?, ECHO).into();
    ensure!(tcp_source(&node.bed.pods[0], to)? == IpAddr::from([10, 1, 0, 10]));

    drop(lock);
    wait_for(SOON, "the chain to be gone", || {
        node.rules().is_ok_and(|rules| rules.is_empty())
    })
    .with_context(|| agent.log())?;
    wait_for(SOON, "the status to be well", || {
        failed().is_ok_and(|failed| failed == Value::Array(vec![]))
    })?;
    ensure!(tcp_source(&node.bed.pods[0], to)? == IpAddr::from([10, 1, 0, 10]));
    Ok(())
}

/// An agent that is stopped no longer waits for the lock, whatever it was about to write, and
/// writes nothing.
#[test]
fn an_agent_that_is_to_end_waits_no_more() -> Result<()> {
    let mut node = Node::new()?;
    let mut agent = Agent::start(&node.bed.node, node.options())?;
    let before = node.rules()?;
    let lock = node.hold()?;
    node.config.write(AFTER)?;
    wait_for(SOON, "the agent to write", || is_writing(&agent))?;
    let ended = agent.stop()?;
    ensure!(ended.success(), "{ended}");
    // A wait that times out is logged.
    ensure!(!agent.log().contains(BUSY), "{}", agent.log());
    ensure!(node.rules()? == before, "written without the lock");

    agent.options().replace("--mode=iptables", "--mode=ebpf");
    // Not waited for: it may become ready before or after its takeover.
    let restarted = agent.options().clone();
    drop(agent);
    let mut agent = Agent::spawn(&node.bed.node, restarted)?;
    wait_for(SOON, "the agent to take over", || is_writing(&agent))?;
    let ended = agent.stop()?;
    ensure!(ended.success(), "{ended}");
    ensure!(!agent.log().contains(BUSY), "{}", agent.log());
    ensure!(node.rules()? == before, "taken over without the lock");
    drop(lock);
    Ok(())
}

/// Also where its first chain waits: with `--on-exit detach` one that was there is removed, and else the
/// memory names it.
#[test]
fn an_agent_that_is_to_end_before_its_first_chain_leaves_none() -> Result<()> {
    let mut node = Node::new()?;
    let mut agent = Agent::start(&node.bed.node, node.options())?;
    agent.stop()?;
    ensure!(!node.rules()?.is_empty(), "no chain");
    // Else there is nothing to write.
    node.config.write(AFTER)?;
    let start = |on_exit: &str| -> Result<Agent> {
        let agent = Agent::spawn(&node.bed.node, node.options().arg(on_exit))?;
        wait_for(SOON, "the agent to write", || is_writing(&agent))?;
        Ok(agent)
    };

    let lock = node.hold()?;
    let mut keeps = start("--on-exit=keep")?;
    let memory = fs::read_to_string(keeps.state_dir().join("memory.json"))?;
    ensure!(memory.contains("IP-MASQ-AGENT"), "{memory}");
    keeps.stop()?;
    ensure!(!node.rules()?.is_empty(), "removed");

    let mut detaches = start("--on-exit=detach")?;
    detaches.signal(Signal::SIGTERM)?;
    drop(lock);
    detaches.stop()?;
    ensure!(node.rules()?.is_empty(), "{:?}", node.rules()?);
    ensure!(!detaches.state_dir().join("memory.json").exists());
    Ok(())
}

/// Nor does it wait for any other program, even one that does not end.
#[test]
fn an_agent_that_is_to_end_ends_what_it_runs() -> Result<()> {
    let node = Node::new()?;
    // Owned by root, as are the directories above.
    let dir = tempfile::tempdir_in("/run")?;
    let (nft, pid) = (dir.path().join("nft"), dir.path().join("pid"));
    fs::write(
        &nft,
        format!("#!/bin/sh\necho $$ >{}\nexec sleep 1000\n", pid.display()),
    )?;
    fs::set_permissions(&nft, fs::Permissions::from_mode(0o755))?;
    let options = options(&node.config, &[]).arg("--tool-dir").arg(dir.path());
    let agent = Agent::start(&node.bed.node, options)?;
    let running = || {
        let pid = fs::read_to_string(&pid).unwrap_or_default();
        pid.trim().parse().is_ok_and(|pid| !has_ended(pid))
    };
    wait_for(SOON, "the agent to ask nft", running)?;
    agent.signal(Signal::SIGTERM)?;
    // Shorter than the program's run time.
    wait_for(Duration::from_secs(10), "the agent to end", || {
        has_ended(agent.pid())
    })?;
    ensure!(!running(), "it has left a program behind");
    Ok(())
}
