//! Test bed of one variant: client, node and server in a row, with no other traffic on the links.
//! Every variant has its own bed, so that rounds can be interleaved.
//!
//! ```text
//! client eth0 ── pod0 node eth0 ── eth0 server, to which 198.18.0.0/15 and
//! 172.16.0.2          10.1.0.10    10.1.0.20    10.200.0.0/16 are routed
//! ```

use super::load::{Direction, Load};
use super::policy;
use super::see;
use super::variant::{EMPTY_PROGRAM, Kind, MONITORED, SEEN, Variant};
use anyhow::{Context as _, Result};
use aya::maps::{Array, HashMap, Map, MapData};
use netdp_common::layout::{Mapping, SHARE_TOTAL, Settings, Share, ShareEnded, Tuple, pins};
use std::fs;
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use testbed::{Agent, AgentOptions, Netns, WorkDir, wait_for};

pub const CLIENT: Ipv4Addr = Ipv4Addr::new(172, 16, 0, 2);
pub const NODE: Ipv4Addr = Ipv4Addr::new(10, 1, 0, 10);
/// First of the masqueraded destinations, all of them the server's.
pub const FAR: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 0);
/// First of the bypassed destinations.
pub const NEAR: Ipv4Addr = Ipv4Addr::new(10, 200, 0, 0);

/// MAC addresses of the generator's frames.
pub const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
pub const POD_SIDE_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];
pub const NODE_MAC: [u8; 6] = [2, 0, 0, 0, 0, 3];
pub const SERVER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 4];

/// Time without CPU use after which an agent is considered idle.
const REST: Duration = Duration::from_millis(250);

/// Timeout for a policy to be in force.
const PATIENCE: Duration = Duration::from_secs(120);

/// Segmentation and receive offloads of interfaces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offloads {
    On,
    Off,
}

impl Offloads {
    pub const fn name(self) -> &'static str {
        match self {
            Self::On => "on",
            Self::Off => "off",
        }
    }
}

/// A table of mappings.
pub type Mappings = HashMap<MapData, Tuple, Mapping>;

pub struct Bed {
    pub variant: &'static Variant,
    pub client: Netns,
    pub node: Netns,
    pub server: Netns,
    pub cidrs: u32,
    netdp: Option<Netdp>,
}

struct Netdp {
    // Dropped first: the agent must end before its configuration goes.
    agent: Agent,
    options: AgentOptions,
    config: Config,
    /// Names of pods and the NAT log.
    files: WorkDir,
}

impl Bed {
    /// Creates the bed and puts a policy of `cidrs` CIDRs in force. netdp's tables have room for
    /// `max_flows`.
    pub fn new(
        variant: &'static Variant,
        binary: &Path,
        cidrs: u32,
        max_flows: u32,
    ) -> Result<Self> {
        let (client, node, server) = wires()?;
        if variant.conntrack {
            feed(&node, &["nft", "-f", "-"], policy::TRACK)?;
        }
        let mut bed = Self {
            variant,
            client,
            node,
            server,
            cidrs,
            netdp: None,
        };
        if variant.has_agent() {
            let config = Config::new(&policy::netdp(cidrs))?;
            let files = WorkDir::new("bench-files")?;
            let mut options = AgentOptions::new(binary)
                .config(&config.path())
                .uplink("eth0")
                .arg("--mode")
                .arg(match variant.kind {
                    Kind::NetdpIptables => "iptables",
                    _ => "ebpf",
                });
            if bed.is_seen() {
                options = see::everything_on(options, files.path())?;
            }
            let agent = Agent::start(&bed.node, sized(&options, max_flows))?;
            bed.netdp = Some(Netdp {
                agent,
                options,
                config,
                files,
            });
        } else {
            bed.set_rules(cidrs)?;
        }
        Ok(bed)
    }

    /// Replaces netdp's tables by empty ones with room for this many flows.
    pub fn resize(&mut self, max_flows: u32) -> Result<()> {
        if self.variant.kind != Kind::Netdp {
            return Ok(());
        }
        let Some(old) = self.netdp.take() else {
            return Ok(());
        };
        let Netdp {
            agent,
            options,
            config,
            files,
        } = old;
        drop(agent);
        let agent = Agent::start(&self.node, sized(&options, max_flows))?;
        self.netdp = Some(Netdp {
            agent,
            options,
            config,
            files,
        });
        Ok(())
    }

    /// Changes the number of CIDRs; returns the time from the edit until they are in force.
    pub fn set_cidrs(&mut self, cidrs: u32) -> Result<Duration> {
        self.cidrs = cidrs;
        if self.netdp.is_some() {
            return self.edit(&policy::netdp(cidrs));
        }
        let start = Instant::now();
        self.set_rules(cidrs)?;
        Ok(start.elapsed())
    }

    /// Replaces netdp's configuration by these files, whose content must differ from the current
    /// one.
    pub fn edit(&mut self, files: &[String]) -> Result<Duration> {
        let before = self.generation()?;
        let netdp = self.netdp.as_mut().context("no netdp here")?;
        netdp.config.prepare(files)?;
        at_rest(netdp.agent.pid())?;
        let start = Instant::now();
        netdp.config.swap()?;
        wait_for(PATIENCE, "a changed policy in force", || {
            self.generation().is_ok_and(|now| now != before)
        })?;
        Ok(start.elapsed())
    }

    /// Returns the number of policies that have been in force.
    fn generation(&self) -> Result<u32> {
        if self.variant.kind == Kind::NetdpIptables {
            let written = self.agent()?.log().matches("IP-MASQ-AGENT written").count();
            return Ok(u32::try_from(written)?);
        }
        let settings: Array<_, Settings> = Map::Array(self.pinned(pins::SETTINGS)?).try_into()?;
        Ok(settings.get(&0, 0)?.generation)
    }

    fn pinned(&self, name: &str) -> Result<MapData> {
        let path = self.agent()?.bpffs().join(name);
        MapData::from_pin(&path).with_context(|| path.display().to_string())
    }

    fn agent(&self) -> Result<&Agent> {
        let netdp = self.netdp.as_ref().context("no netdp here")?;
        Ok(&netdp.agent)
    }

    /// Reports whether netdp runs with everything on that shows what it does.
    pub fn is_seen(&self) -> bool {
        self.variant.name == SEEN
    }

    /// Reports whether a monitor listens to netdp's events.
    pub fn is_monitored(&self) -> bool {
        [MONITORED, SEEN].contains(&self.variant.name)
    }

    /// Returns a command that runs a subcommand of netdp on the agent.
    pub fn netdp(&self, arguments: &[&str]) -> Result<Command> {
        Ok(self.agent()?.command(arguments))
    }

    /// Returns the process id of the agent, if there is one.
    pub fn agent_pid(&self) -> Option<u32> {
        self.netdp.as_ref().map(|netdp| netdp.agent.pid())
    }

    /// Returns the process that holds the TC programs, if any, and the name of the program that
    /// packets of this direction meet.
    pub fn program(&self, direction: Direction) -> Option<(u32, &'static str)> {
        match (self.variant.kind, direction) {
            (Kind::Empty, _) => Some((std::process::id(), EMPTY_PROGRAM)),
            (Kind::Netdp, Direction::Original) => Some((self.agent_pid()?, "egress_snat")),
            (Kind::Netdp, Direction::Reply) => Some((self.agent_pid()?, "ingress_rev_snat")),
            _ => None,
        }
    }

    /// Reports whether this load can be sent. Replies need a predictable port, and those of
    /// iptables mode are random.
    pub fn bears(&self, load: Load) -> bool {
        !(load.direction == Direction::Reply && self.variant.kind == Kind::NetdpIptables)
    }

    /// Replaces one of `cidrs` CIDRs, each turn by another one; returns the time until the change
    /// is in force.
    pub fn change_one(&mut self, cidrs: u32, turn: u32) -> Result<Option<Duration>> {
        if self.netdp.is_some() {
            let files = policy::netdp(cidrs);
            let files: Vec<_> = files.iter().map(|f| policy::another(f, turn)).collect();
            return self.edit(&files).map(Some);
        }
        let Some((argv, text)) = self.rules(cidrs) else {
            return Ok(None);
        };
        let text = policy::another(&text, turn);
        let start = Instant::now();
        feed(&self.node, argv, &text)?;
        Ok(Some(start.elapsed()))
    }

    fn set_rules(&self, cidrs: u32) -> Result<()> {
        match self.rules(cidrs) {
            Some((argv, text)) => feed(&self.node, argv, &text),
            None => Ok(()),
        }
    }

    /// Returns a netfilter policy: the program and its input.
    fn rules(&self, cidrs: u32) -> Option<(&'static [&'static str], String)> {
        match self.variant.kind {
            Kind::Plain | Kind::Empty | Kind::Netdp | Kind::NetdpIptables => None,
            Kind::MasqAgent(restore) => Some((restore, policy::masq_agent(cidrs))),
            Kind::NftSet => {
                let replace = format!(
                    "table ip bench_masq {{}}\ndelete table ip bench_masq\n{}",
                    policy::nft_set(cidrs)
                );
                Some((&["nft", "-f", "-"], replace))
            }
        }
    }

    /// Returns netdp's tables of mappings.
    pub fn mappings(&self) -> Result<(Mappings, Mappings)> {
        let open = |name| -> Result<Mappings> { Ok(Map::HashMap(self.pinned(name)?).try_into()?) };
        Ok((open(pins::SNAT)?, open(pins::REV_SNAT)?))
    }

    /// Removes all flows from netfilter's and netdp's tables.
    pub fn forget_flows(&self) -> Result<()> {
        if self.tracks() {
            // Its result goes to standard error; standard output is empty.
            self.node.run(&["conntrack", "-F"])?;
        }
        if self.variant.kind == Kind::Netdp {
            let (snat, rev_snat) = self.mappings()?;
            for mut map in [snat, rev_snat] {
                let keys: Vec<Tuple> = map.keys().filter_map(Result::ok).collect();
                for key in keys {
                    // The sweep may have removed it first.
                    let _ = map.remove(&key);
                }
            }
            self.forget_shares()?;
        }
        Ok(())
    }

    /// Counts all mappings as ended, as netdp's next full sweep would. Until then its tables would
    /// seem to fill, and the pod to have used up its share.
    fn forget_shares(&self) -> Result<()> {
        let shares: Array<_, Share> = Map::Array(self.pinned(pins::SHARES)?).try_into()?;
        let mut ended: Array<_, ShareEnded> =
            Map::Array(self.pinned(pins::SHARES_ENDED)?).try_into()?;
        for bucket in 0..=SHARE_TOTAL {
            let opened = shares.get(&bucket, 0)?.opened;
            let mut end = ended.get(&bucket, 0)?;
            if end.mappings != opened {
                end.mappings = opened;
                ended.set(bucket, end, 0)?;
            }
        }
        Ok(())
    }

    fn tracks(&self) -> bool {
        use Kind::{Empty, Netdp, Plain};
        self.variant.conntrack || !matches!(self.variant.kind, Plain | Empty | Netdp)
    }

    /// Sets segmentation and receive offloads of all interfaces.
    pub fn set_offloads(&self, offloads: Offloads) -> Result<()> {
        let state = offloads.name();
        let settings = ["tso", "gso", "gro", "tx", "sg"]
            .map(|name| [name, state])
            .concat();
        for (ns, interface) in [
            (&self.client, "eth0"),
            (&self.node, "pod0"),
            (&self.node, "eth0"),
            (&self.server, "eth0"),
        ] {
            ns.offloads(interface, &settings)?;
        }
        Ok(())
    }
}

/// Returns options for tables of this many flows, all of which may belong to one pod, if this netdp
/// supports such limits.
fn sized(options: &AgentOptions, max_flows: u32) -> AgentOptions {
    const LIMIT: &str = "--pod-flows";
    let sized = (options.clone())
        .arg("--max-flows")
        .arg(max_flows.to_string());
    let help = Command::new(sized.program())
        .args(["run", "--help"])
        .output();
    match help {
        Ok(help) if String::from_utf8_lossy(&help.stdout).contains(LIMIT) => {
            sized.arg(LIMIT).arg(max_flows.to_string())
        }
        _ => sized,
    }
}

/// Waits until a process is idle, so that work caused by the last edit is not part of the next
/// measurement.
fn at_rest(pid: u32) -> Result<()> {
    let path = format!("/proc/{pid}/schedstat");
    let mut before = String::new();
    wait_for(PATIENCE, "the agent at rest", || {
        std::thread::sleep(REST);
        let now = fs::read_to_string(&path).unwrap_or_default();
        std::mem::replace(&mut before, now.clone()) == now
    })
}

/// Runs a program with `text` as its standard input.
fn feed(ns: &Netns, argv: &[&str], text: &str) -> Result<()> {
    let (program, arguments) = argv.split_first().context("an empty command line")?;
    let mut child = ns
        .command(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .with_context(|| format!("starting {program}"))?;
    let mut stdin = child.stdin.take().context("no standard input")?;
    let written = stdin.write_all(text.as_bytes());
    drop(stdin);
    let status = child.wait()?;
    anyhow::ensure!(status.success(), "{program} in {}: {status}", ns.name());
    Ok(written?)
}

fn wires() -> Result<(Netns, Netns, Netns)> {
    let (client, node, server) = (
        Netns::new("client")?,
        Netns::new("node")?,
        Netns::new("server")?,
    );
    wire(&client, "eth0", &node, "pod0")?;
    wire(&node, "eth0", &server, "eth0")?;
    end(&client, "eth0", CLIENT_MAC, "172.16.0.2/24")?;
    // A host route per pod, as with network plugins. An interface with a network of its own could
    // lead out of the cluster and would be observed.
    end(&node, "pod0", POD_SIDE_MAC, "172.16.0.1/32")?;
    node.ip("route add 172.16.0.2/32 dev pod0")?;
    end(&node, "eth0", NODE_MAC, "10.1.0.10/16")?;
    end(&server, "eth0", SERVER_MAC, "10.1.0.20/16")?;
    node.forward()?;
    // Static neighbour entries: only measured packets on the links.
    client.ip("neigh replace 172.16.0.1 lladdr 02:00:00:00:00:02 dev eth0")?;
    node.ip("neigh replace 172.16.0.2 lladdr 02:00:00:00:00:01 dev pod0")?;
    node.ip("neigh replace 10.1.0.20 lladdr 02:00:00:00:00:04 dev eth0")?;
    server.ip("neigh replace 10.1.0.10 lladdr 02:00:00:00:00:03 dev eth0")?;
    client.ip("route add default via 172.16.0.1")?;
    for network in ["198.18.0.0/15", "10.200.0.0/16"] {
        node.ip(&format!("route add {network} via 10.1.0.20"))?;
        server.ip(&format!("route add local {network} dev lo"))?;
    }
    server.ip("route add 172.16.0.0/16 via 10.1.0.10")?;
    for ns in [&client, &server] {
        ns.sysctl("net.ipv4.tcp_tw_reuse", "1")?;
        ns.sysctl("net.ipv4.ip_local_port_range", "1024 65535")?;
        ns.sysctl("net.core.somaxconn", "8192")?;
    }
    Ok((client, node, server))
}

fn wire(a: &Netns, a_name: &str, b: &Netns, b_name: &str) -> Result<()> {
    a.ip(&format!(
        "link add {a_name} numrxqueues 2 numtxqueues 2 type veth peer name {b_name} \
         numrxqueues 2 numtxqueues 2 netns {}",
        b.name()
    ))?;
    Ok(())
}

fn end(ns: &Netns, interface: &str, mac: [u8; 6], address: &str) -> Result<()> {
    let mac = mac.map(|byte| format!("{byte:02x}")).join(":");
    ns.sysctl(&format!("net.ipv6.conf.{interface}.disable_ipv6"), "1")?;
    ns.ip(&format!("link set {interface} address {mac}"))?;
    ns.ip(&format!("link set {interface} up"))?;
    ns.ip(&format!("addr add {address} dev {interface}"))?;
    // XDP frames need NAPI on the receiving veth, which GRO enables.
    ns.offloads(interface, &["gro", "on"])
}

/// A configuration directory of netdp that is replaced as a whole.
struct Config {
    dir: WorkDir,
    version: u32,
}

impl Config {
    fn new(files: &[String]) -> Result<Self> {
        let mut config = Self {
            dir: WorkDir::new("bench-config")?,
            version: 0,
        };
        config.prepare(files)?;
        config.swap()?;
        Ok(config)
    }

    /// Returns the path for `--config`.
    fn path(&self) -> PathBuf {
        self.dir.path().join("current")
    }

    fn version(&self, version: u32) -> PathBuf {
        self.dir.path().join(format!("version-{version}"))
    }

    fn prepare(&mut self, files: &[String]) -> Result<()> {
        self.version += 1;
        let dir = self.version(self.version);
        fs::create_dir(&dir)?;
        for (n, text) in files.iter().enumerate() {
            fs::write(dir.join(format!("{n:03}.yaml")), text)?;
        }
        Ok(())
    }

    fn swap(&mut self) -> Result<()> {
        let link = self.dir.path().join("next");
        symlink(self.version(self.version), &link)?;
        fs::rename(&link, self.path())?;
        if self.version > 1 {
            fs::remove_dir_all(self.version(self.version - 1))?;
        }
        Ok(())
    }
}
