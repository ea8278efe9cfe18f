//! Changes and errors of the configuration of a running agent.

use crate::common::clients::{Tcp, any, tcp_source};
use crate::common::{ECHO, Echo, NETDP, SOON, World, start_agent, status, wait_log};
use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::Duration;
use testbed::{Agent, AgentOptions, Bed, ConfigVolume, Host, WorkDir, wait_for};

/// Time limit for a change to be in force on a machine that is busy with other tests; long before
/// the next resync a minute later. On an idle machine it takes some 30 ms.
const QUICKLY: Duration = Duration::from_secs(20);

/// Policy that masquerades traffic to the neighbour.
const EVERYTHING: &str = "nonMasqueradeCIDRs:\n- 172.16.0.0/16\n";

/// Policy that bypasses the neighbour.
const NOT_THE_NEIGHBOUR: &str = "nonMasqueradeCIDRs:\n- 172.16.0.0/16\n- 10.1.0.0/16\n";

/// A pod, and a neighbour with a route to it: the configuration decides whether it is masqueraded.
struct Street {
    bed: Bed,
    near: Host,
    _echo: Echo,
}

impl Street {
    fn new() -> Result<Self> {
        let bed = Bed::builder()
            .uplink("eth0", &["10.1.0.10/16"])
            .pods(1, &["172.16.0.0/24"])
            .build()?;
        let near = bed.neighbour(0, &["10.1.0.20/16"])?;
        let echo = Echo::start(&near)?;
        Ok(Self {
            bed,
            near,
            _echo: echo,
        })
    }

    fn to(&self) -> Result<SocketAddr> {
        Ok((self.near.v4()?, ECHO).into())
    }

    /// Waits until new connections are masqueraded or bypassed.
    fn wait_masqueraded(&self, masqueraded: bool) -> Result<()> {
        let to = self.to()?;
        wait_for(QUICKLY, &format!("masqueraded: {masqueraded}"), || {
            tcp_source(&self.bed.pods[0], to).is_ok_and(|source| {
                source
                    == IpAddr::from(if masqueraded {
                        [10, 1, 0, 10]
                    } else {
                        [172, 16, 0, 2]
                    })
            })
        })
    }

    fn is_masqueraded(&self) -> Result<bool> {
        Ok(tcp_source(&self.bed.pods[0], self.to()?)? == IpAddr::from([10, 1, 0, 10]))
    }

    /// Applies both policies in turn with `write`; every connection keeps the source with which it
    /// began.
    fn change(&self, mut write: impl FnMut(&str) -> Result<()>) -> Result<()> {
        let mut open = Vec::new();
        for (policy, masqueraded) in [
            (EVERYTHING, true),
            (NOT_THE_NEIGHBOUR, false),
            (EVERYTHING, true),
            (NOT_THE_NEIGHBOUR, false),
        ] {
            write(policy)?;
            self.wait_masqueraded(masqueraded)?;
            let to = self.to()?;
            let mut client = Tcp::connect(&self.bed.pods[0], any(to), to)?;
            let source = client.ask()?;
            open.push((client, source));
            for (client, before) in &mut open {
                let now = client.ask().context("an open connection was lost")?;
                ensure!(now == *before, "it moved from {before} to {now}");
            }
        }
        Ok(())
    }
}

/// Waits until a field of the configuration's status has the wanted value: the status is written
/// after the datapath has changed.
fn wait_config(agent: &Agent, field: &str, wanted: impl Fn(&Value) -> bool) -> Result<()> {
    let mut seen = Value::Null;
    wait_for(SOON, &format!("{field} to be as wanted"), || {
        seen = status(agent).map_or(Value::Null, |s| s["report"]["config"][field].clone());
        wanted(&seen)
    })
    .with_context(|| format!("{field} is {seen:#}"))
}

fn agent_on(street: &Street, path: &Path) -> Result<Agent> {
    Agent::start(&street.bed.node, AgentOptions::new(NETDP).config(path))
}

#[test]
fn a_file_is_edited_in_place() -> Result<()> {
    let street = Street::new()?;
    let dir = WorkDir::new("config")?;
    let file = dir.path().join("config.yaml");
    fs::write(&file, EVERYTHING)?;
    let _agent = agent_on(&street, &file)?;
    street.change(|text| Ok(fs::write(&file, text)?))
}

#[test]
fn a_file_is_replaced_by_another() -> Result<()> {
    let street = Street::new()?;
    let dir = WorkDir::new("config")?;
    let file = dir.path().join("config.yaml");
    fs::write(&file, EVERYTHING)?;
    let _agent = agent_on(&street, &file)?;
    street.change(|text| {
        let new = dir.path().join(".config.yaml.swp");
        fs::write(&new, text)?;
        Ok(fs::rename(new, &file)?)
    })
}

#[test]
fn a_volume_swaps_its_link() -> Result<()> {
    let street = Street::new()?;
    let mut volume = ConfigVolume::new(EVERYTHING)?;
    let _agent = agent_on(&street, volume.path())?;
    street.change(|text| volume.write(text))
}

/// Returns invalid files, each with its line number and a part of the error after file name and
/// line.
fn bad_files() -> Vec<(String, usize, &'static str)> {
    let long: String = (0..65).map(|n| format!("- 10.0.{n}.0/24\n")).collect();
    let bad = |text: &str, line, words| (text.to_owned(), line, words);
    vec![
        bad(
            "nonMasqueradeCIDRs:\n\t- 10.0.0.0/8\n",
            2,
            "not valid YAML or JSON",
        ),
        bad(
            "{\"nonMasqueradeCIDRs\": [\n\"10.0.0.0/8\"\n",
            2,
            "not valid YAML or JSON",
        ),
        bad("- 10.0.0.0/8\n", 1, "expected a mapping"),
        bad("\nnonMasqueradeCIDRs: 10.0.0.0/8\n", 2, "expected a list"),
        bad("nonMasqueradeCIDRs:\n", 1, "is null"),
        bad("masqLinkLocal: 1\n", 1, "expected true or false"),
        bad("resyncInterval: 60\n", 1, "expected a duration"),
        bad("cidrLimit: many\n", 1, "expected a whole number"),
        bad(
            "nonMasqueradeCIDRs:\n- 10.0.0.0/8\n- 10.0.0.1/8\n",
            3,
            "is not aligned",
        ),
        bad("masqueradeCIDRs:\n- 10.256.0.0/16\n", 2, "is not a CIDR"),
        bad(
            "masqueradeCIDRs:\n- \"::ffff:10.0.0.0/104\"\n",
            2,
            "IPv4-mapped",
        ),
        bad("masqueradeCIDRs:\n- fd00::/8\n", 2, "--enable-ipv6"),
        bad("cidrLimit: 1\ncidrLimit: 2\n", 2, "already set in line 1"),
        (
            format!("nonMasqueradeCIDRs:\n{long}"),
            1,
            "cidrLimit allows 64",
        ),
    ]
}

#[test]
fn a_bad_file_changes_nothing_and_is_named() -> Result<()> {
    let street = Street::new()?;
    let mut volume = ConfigVolume::new(EVERYTHING)?;
    let agent = agent_on(&street, volume.path())?;
    let hash = status(&agent)?["report"]["config"]["hash"].clone();
    for (turn, (text, line, words)) in bad_files().into_iter().enumerate() {
        let told = agent
            .log()
            .matches("the previous configuration stays in force")
            .count();
        volume.write(&text)?;
        wait_for(SOON, &format!("a word about {text:?}"), || {
            agent
                .log()
                .matches("the previous configuration stays in force")
                .count()
                > told
        })?;
        let place = format!("{}:{line}: ", volume.file().display());
        wait_config(&agent, "rejected", |rejected| {
            let first = rejected[0].as_str();
            first.is_some_and(|first| first.starts_with(&place))
        })?;
        let config = status(&agent)?["report"]["config"].clone();
        let rejected = config["rejected"][0].as_str().unwrap_or_default();
        ensure!(rejected.contains(words), "{words:?} is not in {rejected:?}");
        ensure!(agent.log().contains(rejected), "the log lacks {rejected:?}");
        let shown = agent.netdp(&["status"])?;
        ensure!(shown.contains(&format!("rejected   {rejected}")), "{shown}");
        assert_eq!(config["hash"], hash);
        assert_eq!(config["source"], "files");
        ensure!(street.is_masqueraded()?, "{text:?} came into force");

        let mended = agent
            .log()
            .matches("the configuration is valid again")
            .count();
        assert_eq!(mended, turn);
        volume.write(EVERYTHING)?;
        wait_for(SOON, "the recovery to be said", || {
            agent
                .log()
                .matches("the configuration is valid again")
                .count()
                > turn
        })?;
        wait_config(&agent, "rejected", |rejected| {
            *rejected == Value::Array(vec![])
        })?;
    }
    // A valid one still comes into force.
    volume.write(NOT_THE_NEIGHBOUR)?;
    street.wait_masqueraded(false)
}

#[test]
fn what_is_only_odd_is_warned_about() -> Result<()> {
    let street = Street::new()?;
    let mut volume = ConfigVolume::new(EVERYTHING)?;
    let agent = agent_on(&street, volume.path())?;
    volume.write("nonMasqueradeCIDR: [10.9.0.0/16]\nnonMasqueradeCIDRs:\n- 172.16.0.0/16\n- 10.1.0.0/16\n- 10.1.0.0/16\n")?;
    street.wait_masqueraded(false)?;
    wait_config(&agent, "warnings", |warnings| {
        *warnings != Value::Array(vec![])
    })?;
    let warnings = status(&agent)?["report"]["config"]["warnings"].clone();
    let warnings: Vec<String> = serde_json::from_value(warnings)?;
    let file = volume.file().display().to_string();
    for (line, words) in [(1, "nonMasqueradeCIDRs"), (5, "10.1.0.0/16")] {
        let place = format!("{file}:{line}: ");
        let named = |w: &&String| w.starts_with(&place) && w.contains(words);
        let found = warnings.iter().find(named);
        let found = found.with_context(|| format!("{place} {words} is not in {warnings:#?}"))?;
        ensure!(
            agent.log().contains(found.as_str()),
            "the log lacks {found}"
        );
        let shown = agent.netdp(&["status"])?;
        ensure!(shown.contains(found.as_str()), "{shown}");
    }
    Ok(())
}

/// Without an earlier policy the built-in rules come into force, with a prominent log message.
#[test]
fn a_bad_file_at_the_start_brings_the_defaults() -> Result<()> {
    let street = Street::new()?;
    let mut volume = ConfigVolume::new("nonMasqueradeCIDRs:\n- nonsense\n")?;
    let agent = agent_on(&street, volume.path())?;
    wait_log(
        &agent,
        "invalid configuration: the built-in defaults are in force",
    )?;
    let place = format!("{}:2: nonMasqueradeCIDRs[0]", volume.file().display());
    ensure!(agent.log().contains(&place), "{}", agent.log());
    let config = status(&agent)?["report"]["config"].clone();
    assert_eq!(config["source"], "defaults");
    let rejected = config["rejected"][0].as_str().unwrap_or_default();
    ensure!(rejected.starts_with(&place), "{rejected}");
    ensure!(!street.is_masqueraded()?, "10.0.0.0/8 is a default");
    volume.write(EVERYTHING)?;
    street.wait_masqueraded(true)?;
    wait_log(&agent, "the configuration is valid again")
}

/// A restarted agent finds an invalid file, while an earlier agent's policy is in force.
#[test]
fn a_bad_file_at_a_restart_keeps_the_last_good_one() -> Result<()> {
    let street = Street::new()?;
    let mut volume = ConfigVolume::new(EVERYTHING)?;
    let mut agent = agent_on(&street, volume.path())?;
    let hash = status(&agent)?["report"]["config"]["hash"].clone();
    agent.kill9()?;
    volume.write("nonMasqueradeCIDRs: 7\n")?;
    agent.restart()?;
    wait_log(
        &agent,
        "invalid configuration: the last good one stays in force",
    )?;
    let config = status(&agent)?["report"]["config"].clone();
    assert_eq!(config["source"], "last good");
    assert_eq!(config["hash"], hash);
    ensure!(street.is_masqueraded()?);
    volume.write(NOT_THE_NEIGHBOUR)?;
    street.wait_masqueraded(false)?;
    wait_config(&agent, "source", |source| source == "files")?;
    Ok(())
}

#[test]
fn without_a_file_the_defaults_are_in_force() -> Result<()> {
    let street = Street::new()?;
    let dir = WorkDir::new("config")?;
    let file = dir.path().join("config.yaml");
    let agent = agent_on(&street, &file)?;
    wait_log(
        &agent,
        "does not exist; it will be read as soon as it appears",
    )?;
    wait_config(&agent, "source", |source| source == "defaults (no file)")?;
    ensure!(!street.is_masqueraded()?);
    fs::write(&file, EVERYTHING)?;
    street.wait_masqueraded(true)?;
    // The file disappears and comes back.
    fs::remove_file(&file)?;
    street.wait_masqueraded(false)?;
    wait_config(&agent, "source", |source| source == "defaults (no file)")?;
    fs::write(&file, EVERYTHING)?;
    street.wait_masqueraded(true)?;
    // An empty file has no list: the built-in rules apply, too.
    fs::write(&file, "")?;
    street.wait_masqueraded(false)
}

#[test]
fn one_bad_file_of_a_directory_holds_up_all() -> Result<()> {
    let street = Street::new()?;
    let dir = WorkDir::new("config")?;
    let file = |name: &str| dir.path().join(name);
    fs::write(file("a.yaml"), EVERYTHING)?;
    let agent = agent_on(&street, dir.path())?;
    street.wait_masqueraded(true)?;
    fs::write(file("b.yaml"), "nonMasqueradeCIDRs:\n- 10.1.0.1/16\n")?;
    let place = format!("{}:2: nonMasqueradeCIDRs[0]", file("b.yaml").display());
    wait_log(&agent, &place)?;
    // Other changes have to wait.
    fs::write(file("a.yaml"), NOT_THE_NEIGHBOUR)?;
    wait_for(SOON, "the status to name the file", || {
        status(&agent).is_ok_and(|s| {
            s["report"]["config"]["rejected"]
                .to_string()
                .contains(&place)
        })
    })?;
    ensure!(street.is_masqueraded()?);
    // Files that are not configuration are ignored.
    fs::write(file(".hidden"), "{")?;
    fs::write(file("a.yaml~"), "{")?;
    fs::write(file("b.yaml"), "masqueradeCIDRs:\n- 10.1.0.20/32\n")?;
    wait_log(&agent, "the configuration is valid again")?;
    let wanted = [file("a.yaml"), file("b.yaml")].map(|f| f.display().to_string());
    wait_for(SOON, "both files to be in force", || {
        status(&agent).is_ok_and(|s| s["report"]["config"]["files"] == Value::from(wanted.to_vec()))
    })?;
    // The longer prefix in the other file takes precedence.
    street.wait_masqueraded(true)?;
    fs::remove_file(file("b.yaml"))?;
    street.wait_masqueraded(false)
}

/// Resyncs without changes log nothing; an interval of zero is invalid.
#[test]
fn the_interval_is_quiet_and_never_zero() -> Result<()> {
    let world = World::with(
        "nonMasqueradeCIDRs: [172.16.0.0/16]\nresyncInterval: 100ms\n",
        &["--log-level", "debug"],
    )?;
    let resyncs = || world.agent.log().matches("reattaching: Attach").count();
    wait_for(SOON, "resyncs", || resyncs() > 3)?;
    // Nothing changed, so nothing is logged at the default level.
    let spoken = |line: &&str| !line.contains("DEBUG");
    let before = world.agent.log().lines().filter(spoken).count();
    let more = resyncs() + 5;
    wait_for(SOON, "more resyncs", || resyncs() > more)?;
    assert_eq!(world.agent.log().lines().filter(spoken).count(), before);
    let config = ConfigVolume::new("resyncInterval: 0s\n")?;
    let bed = Bed::dual_stack()?;
    let agent = start_agent(&bed.node, &config, &[])?;
    let warnings = status(&agent)?["report"]["config"]["warnings"].to_string();
    ensure!(warnings.contains("resyncInterval"), "{warnings}");
    Ok(())
}
