//! Upgrades from netdp of layout 1, as this repository's history has it, under traffic of which
//! nothing may be lost.

mod rollback;
mod steps;
mod traffic;

use crate::common::{
    NETDP, OURS, POLICY, SOON, filters, number, options, packets, refused, status, tcx_programs,
};
use anyhow::{Context as _, Result, ensure};
use aya::maps::{Array, Map, MapData};
use netdp_common::layout::{LAYOUT, NodeFlowPorts, pins};
use netdp_user::datapath::Maps;
use std::collections::BTreeSet;
use std::path::Path;
use testbed::{Agent, Bed, ConfigVolume, Host, Leaks, netdp_of_layout_1, wait_for};
use traffic::Traffic;

/// The version of the agent on a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Version {
    /// The last one of layout 1.
    Old,
    /// The program under test.
    New,
}

/// The end of the old agent.
#[derive(Debug, Clone, Copy)]
enum End {
    Terminated,
    Killed,
}

/// A node on which the old agent begins.
struct Node {
    agent: Agent,
    /// `None` on a node whose traffic does not matter.
    traffic: Option<Traffic>,
    mechanism: &'static str,
    _config: ConfigVolume,
    _far: Host,
    bed: Bed,
}

impl Node {
    /// Starts the old agent, and traffic that it translates.
    fn start(mechanism: &'static str) -> Result<Self> {
        Self::start_with(mechanism, |bed, far| {
            let leaks = traffic::watch(bed, far)?;
            Ok(Some(leaks))
        })
    }

    /// Starts the old agent without traffic.
    fn start_quiet(mechanism: &'static str) -> Result<Self> {
        Self::start_with(mechanism, |_, _| Ok(None))
    }

    fn start_with(
        mechanism: &'static str,
        watch: fn(&Bed, &Host) -> Result<Option<Leaks>>,
    ) -> Result<Self> {
        let bed = Bed::dual_stack()?;
        let far = bed.server(0, &["10.2.0.1/24", "fd00:2::1/64"])?;
        let config = ConfigVolume::new(POLICY)?;
        let leaks = watch(&bed, &far)?;
        let mut options = options(&config, &["--enable-ipv6", "--attach", mechanism]);
        options.set_program(netdp_of_layout_1()?);
        let agent = Agent::start(&bed.node, options)?;
        ensure!(layout_of(&agent)? == 1, "the old agent has another layout");
        Ok(Self {
            agent,
            traffic: match leaks {
                Some(leaks) => Some(Traffic::start(&bed, &far, leaks)?),
                None => None,
            },
            mechanism,
            _config: config,
            _far: far,
            bed,
        })
    }

    /// Selects the version that the next start of the agent runs.
    fn select(&mut self, version: Version) -> Result<()> {
        let program = match version {
            Version::Old => netdp_of_layout_1()?,
            Version::New => NETDP.into(),
        };
        self.agent.options().set_program(program);
        Ok(())
    }

    /// Starts an agent of this version, which must get ready.
    fn run(&mut self, version: Version) -> Result<()> {
        self.select(version)?;
        self.agent.restart()
    }

    /// Checks that the old agent refuses the maps, says what to do, and changes nothing.
    fn check_old_agent_refuses(&mut self, mode: &str) -> Result<()> {
        self.select(Version::Old)?;
        let before = files(&self.agent.bpffs())?;
        let told = refused(self.agent.command(&["run", mode]))?;
        for words in ["have layout 2, this netdp uses 1", "netdp detach --bpffs"] {
            ensure!(told.contains(words), "{words:?} is not in {told}");
        }
        let after = files(&self.agent.bpffs())?;
        ensure!(after == before, "{before:?} became {after:?}");
        self.goes_on("a refused start of the old agent")
    }

    /// Ends the agent.
    fn end(&mut self, how: End) -> Result<()> {
        match how {
            End::Terminated => ensure!(self.agent.stop()?.success(), "{}", self.agent.log()),
            End::Killed => self.agent.kill9()?,
        }
        Ok(())
    }

    /// Checks that the new agent's programs, and nothing else, are in force, over maps of this
    /// layout.
    fn check_upgraded(&self) -> Result<()> {
        assert_eq!(layout_of(&self.agent)?, LAYOUT);
        // Programs of layout 1 have recorded flows of the node without saying on which ports.
        let stamps = MapData::from_pin(self.agent.bpffs().join(pins::NODE_FLOW_PORTS))?;
        let stamps: Array<_, NodeFlowPorts> = Map::Array(stamps).try_into()?;
        assert!(!stamps.get(&0, 0)?.0.contains(&0), "a port was not stamped");
        match self.mechanism {
            "tcx" => {
                let programs = tcx_programs(&self.bed.node, "eth0")?;
                assert_eq!(programs, OURS.map(|name| vec![name.to_owned()]));
                assert_eq!(files(&self.agent.bpffs().join("links"))?.len(), 2);
            }
            _ => {
                for filter in filters(&self.bed.node, "eth0")? {
                    ensure!(filter.matches("handle 0x6e6").count() == 1, "{filter}");
                }
                assert_eq!(files(&self.agent.bpffs().join("links"))?.len(), 0);
            }
        }
        let maps = pins::ALL.iter().chain(pins::EARLIER);
        let maps = maps.map(|(file, _)| (*file).to_owned());
        let found = files(&self.agent.bpffs())?;
        let known: BTreeSet<_> = maps.chain(OTHER_FILES.map(str::to_owned)).collect();
        let strange: Vec<_> = found.difference(&known).collect();
        ensure!(strange.is_empty(), "{strange:?} are pinned");
        Ok(())
    }

    /// Returns the number of packets that were masqueraded.
    fn masqueraded(&self) -> Result<u64> {
        packets(&self.agent, "egress_masqueraded")
    }

    /// Waits until packets that are masqueraded from here on are counted.
    fn wait_for_more_counts(&self, at_least: u64) -> Result<()> {
        let now = self.masqueraded()?;
        ensure!(
            now >= at_least,
            "{at_least} packets were counted, now {now}"
        );
        wait_for(SOON, "more packets to be counted", || {
            self.masqueraded().is_ok_and(|later| later > now)
        })
    }

    /// Checks that traffic of all kinds goes on, and that nothing leaked.
    fn goes_on(&mut self, after: &str) -> Result<()> {
        let log = self.agent.log();
        let traffic = self.traffic.as_mut().context("no traffic")?;
        traffic.goes_on(after).context(log)
    }

    /// Ends the traffic, of which nothing may have been lost.
    fn finish(self) -> Result<()> {
        let log = self.agent.log();
        self.traffic.context("no traffic")?.finish().context(log)
    }
}

/// Files beside the maps of this layout: the directory of links, and two that the kernel makes in a
/// fresh bpffs (kernel/bpf/preload).
const OTHER_FILES: [&str; 3] = ["links", "maps.debug", "progs.debug"];

/// Returns the layout of the pinned maps.
fn layout_of(agent: &Agent) -> Result<u32> {
    Ok(Maps::open(&agent.bpffs())?.settings()?.layout)
}

/// Returns the names of the files in a directory.
fn files(directory: &Path) -> Result<BTreeSet<String>> {
    let entries =
        std::fs::read_dir(directory).with_context(|| format!("reading {}", directory.display()))?;
    let name = |entry: std::io::Result<std::fs::DirEntry>| {
        Ok(entry?.file_name().to_string_lossy().into_owned())
    };
    entries.map(name).collect()
}

/// Upgrades a node under traffic after the old agent's end.
fn upgrade(mechanism: &'static str, end: End) -> Result<()> {
    let mut node = Node::start(mechanism)?;
    let live = number(&status(&node.agent)?["mappings"])?;
    ensure!(live > 0, "no mappings");
    node.end(end)?;
    node.goes_on("the end of the old agent")?;
    let counted = node.masqueraded()?;
    node.run(Version::New)?;
    node.goes_on("the upgrade")?;
    node.check_upgraded()?;
    node.wait_for_more_counts(counted)?;
    let log = node.agent.log();
    ensure!(log.contains("from layout 1 to 2"), "{log}");
    // A restart of the new version is no upgrade, and as harmless.
    node.agent.stop()?;
    node.run(Version::New)?;
    node.goes_on("a restart of the new agent")?;
    node.check_upgraded()?;
    node.wait_for_more_counts(counted)?;
    node.finish()
}

#[test]
fn nothing_is_lost_with_tcx() -> Result<()> {
    upgrade("tcx", End::Terminated)
}

#[test]
fn nothing_is_lost_with_clsact() -> Result<()> {
    upgrade("clsact", End::Terminated)
}

#[test]
fn nothing_is_lost_after_a_crash_with_tcx() -> Result<()> {
    upgrade("tcx", End::Killed)
}

#[test]
fn nothing_is_lost_after_a_crash_with_clsact() -> Result<()> {
    upgrade("clsact", End::Killed)
}
