//! `netdp status` and `netdp flows`.

mod nat;

use crate::datapath::{Attached, FlowRecord, Found, Kernel, Maps, Mechanism, Placed};
use crate::foreign;
use crate::iptables::ChainReport;
use crate::node::NodeReport;
use crate::pod::{self, NoEbpf};
use crate::state_dir::StateDir;
use crate::terminal;
use crate::uplinks::Lacking;
use anyhow::{Context as _, Result};
use comfy_table::{Table, presets};
use nat::LiveRules;
use netdp_common::abi::Counters;
use netdp_common::tuple::proto;
use netdp_common::verdict::DropReason;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt::{self, Write as _};
use std::io::Write as _;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// What the agent writes down about itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    /// netdp's version.
    pub version: String,
    /// `ebpf`, `iptables` or `shadow`.
    pub mode: String,
    /// Why it is not `ebpf`, where that was wanted most.
    #[serde(default)]
    pub no_ebpf: Option<NoEbpf>,
    /// What the kernel was found to have, in eBPF mode.
    #[serde(default)]
    pub kernel: Option<Kernel>,
    /// The configuration in force.
    pub config: ConfigReport,
    /// What is attached.
    pub uplinks: Vec<UplinkReport>,
    /// `--uplink` patterns that match no interface yet.
    pub waiting_for: Vec<String>,
    /// `--hairpin` patterns that match no interface yet.
    #[serde(default)]
    pub waiting_for_pods: Vec<String>,
    /// What may have been meant by some of those.
    #[serde(default)]
    pub hints: Vec<String>,
    /// Why there is no uplink at all, if so.
    pub no_uplink: Option<String>,
    /// Why not all addresses of the node count, if so.
    #[serde(default)]
    pub no_room: Option<String>,
    /// What `--uplink` names and can't be an uplink.
    #[serde(default)]
    pub left_out: Vec<String>,
    /// Uplinks without an address of a family that pods use.
    #[serde(default)]
    pub no_address: Vec<Lacking>,
    /// What was decided about uplinks that stand on each other.
    #[serde(default)]
    pub stacked: Vec<String>,
    /// Interfaces that the node routes masqueraded destinations by and that are no uplinks: packets
    /// leave there untranslated.
    #[serde(default)]
    pub leaks: Vec<String>,
    /// Interfaces towards guests of the node that the policy masquerades, and netdp does not.
    #[serde(default)]
    pub guests: Vec<String>,
    /// IPsec policies that cover what pods send once it has the node's address.
    #[serde(default)]
    pub ipsec: Vec<String>,
    /// Ways for packets past the uplinks' hooks.
    #[serde(default)]
    pub detours: Vec<String>,
    /// Chains that were taken over and that somebody has put back.
    #[serde(default)]
    pub chains_back: Vec<String>,
    /// Chains and rules that were to be taken over and could not be yet, and why.
    #[serde(default)]
    pub not_taken_over: Vec<String>,
    /// The chains, in iptables mode.
    #[serde(default)]
    pub chains: Vec<ChainReport>,
    /// Other rules that translate sources.
    #[serde(default)]
    pub foreign: foreign::Seen,
    /// What is kept from pods' flows because the node itself receives it, in eBPF mode.
    #[serde(default)]
    pub node: Option<NodeReport>,
    /// How it stands with the Kubernetes API, if that is followed.
    #[serde(default)]
    pub api: Option<String>,
    /// Why the node is not ready; nothing if it is, or if nobody asks.
    #[serde(default)]
    pub unready: Vec<String>,
    /// Where programs are to be.
    #[serde(default)]
    pub placed: Vec<Placed>,
    /// Where programs were to be and are not, as the agent last knew.
    #[serde(default)]
    pub off: Vec<String>,
    /// The file that exists while the node is ready.
    #[serde(default)]
    pub ready_file: Option<PathBuf>,
    /// Others' programs that come before ours on an uplink.
    #[serde(default)]
    pub behind: Vec<String>,
    /// Why the datapath is not pinned, if so: it ends with the agent.
    #[serde(default)]
    pub unpinned: Option<String>,
    /// Why the pins end with the agent's mount namespace, if they do.
    #[serde(default)]
    pub fleeting: Option<String>,
    /// How often the agent has put back programs or pins that were gone.
    #[serde(default)]
    pub repairs: u64,
}

/// The report's name in the state directory.
const FILE: &str = "status.json";

impl Report {
    /// Writes it for `netdp status`.
    ///
    /// # Errors
    /// The file can't be written.
    pub fn save(&self, state_dir: &StateDir) -> Result<()> {
        state_dir.write_json(FILE, self)
    }

    /// Reads what an agent wrote last.
    ///
    /// # Errors
    /// There is none, or it is not one.
    fn read(state_dir: &StateDir) -> Result<Self> {
        state_dir.read_json(FILE)
    }
}

/// The configuration in force.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigReport {
    /// `files`, `defaults` or `last good`.
    pub source: String,
    /// The files that were read.
    pub files: Vec<String>,
    /// Hash of the policy.
    pub hash: String,
    /// How many policies have been in force here, this one included.
    #[serde(default)]
    pub generation: u64,
    /// When it came into force, in seconds since 1970.
    pub applied_at: u64,
    /// Rules in force, each `prefix action origin`.
    pub rules: Vec<RuleReport>,
    /// Warnings about it.
    pub warnings: Vec<String>,
    /// Why the files that are there now were not taken.
    pub rejected: Vec<String>,
}

/// One rule.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleReport {
    /// Destinations.
    pub prefix: String,
    /// `bypass` or `masquerade`.
    pub action: String,
    /// Who says so.
    pub origin: String,
}

/// One uplink.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UplinkReport {
    /// Interface.
    pub name: String,
    /// Its index.
    pub ifindex: u32,
    /// `tcx` or `clsact`; `no` in shadow mode.
    pub attached: String,
    /// Address for IPv4.
    pub v4: Option<Ipv4Addr>,
    /// Address for IPv6.
    pub v6: Option<Ipv6Addr>,
    /// Whether it is up.
    pub up: bool,
}

impl UplinkReport {
    /// From an attached uplink and its addresses.
    pub fn new(attached: &Attached, uplink: &crate::uplinks::Uplink) -> Self {
        Self {
            // An interface may get another name after it was attached to.
            name: uplink.name.clone(),
            ifindex: attached.ifindex,
            attached: match attached.mechanism {
                Mechanism::Clsact => "clsact".into(),
                Mechanism::Auto | Mechanism::Tcx => "tcx".into(),
            },
            v4: uplink.v4,
            v6: uplink.v6,
            up: uplink.up,
        }
    }

    /// An uplink that nothing is attached to.
    pub fn watched(uplink: &crate::uplinks::Uplink) -> Self {
        Self {
            name: uplink.name.clone(),
            ifindex: uplink.ifindex,
            attached: "no".into(),
            v4: uplink.v4,
            v6: uplink.v6,
            up: uplink.up,
        }
    }
}

/// Everything that `netdp status -o json` prints.
#[derive(Debug, Serialize)]
struct Status {
    /// `running`, or `not running`.
    agent: &'static str,
    pid: Option<u32>,
    /// `in force`, `not in force` or `none`.
    datapath: &'static str,
    /// Why it is not in force.
    off: Vec<String>,
    /// Others' programs that come before ours on an uplink.
    behind: Vec<String>,
    /// Why the maps could not be read, if so: then there are no counts.
    unread: Option<String>,
    mappings: usize,
    /// How many mappings fit.
    max_mappings: usize,
    report: Option<Report>,
    /// The chains' rules as they are now, in iptables mode.
    rules: Vec<LiveRules>,
    packets: BTreeMap<&'static str, u64>,
    drops: BTreeMap<&'static str, u64>,
}

impl Status {
    fn gather(bpffs: &Path, state_dir: &Path) -> Result<Self> {
        let dir = StateDir::at(state_dir);
        let pid = dir.owner();
        let pinned = bpffs.join(netdp_common::abi::pins::SETTINGS).exists();
        let read = if pinned {
            read_maps(bpffs)
        } else {
            Ok((0, 0, Counters::default(), false))
        };
        let unread = read.as_ref().err().map(|err| format!("{err:#}"));
        let (mappings, max_mappings, counters, attached) = read.unwrap_or_default();
        let report = Report::read(&dir).ok();
        let Looked { off, there, behind } = looked(report.as_ref(), pid.is_some());
        Ok(Self {
            rules: nat::live(report.as_ref()),
            agent: if pid.is_some() {
                "running"
            } else {
                "not running"
            },
            pid,
            datapath: match (off.is_empty(), attached || there) {
                (false, _) => "not in force",
                (true, true) => "in force",
                (true, false) => "none",
            },
            off,
            behind,
            unread,
            mappings,
            max_mappings,
            report,
            packets: packets(&counters),
            drops: DropReason::ALL
                .iter()
                .map(|reason| (reason.name(), counters.drops.get(*reason)))
                .collect(),
        })
    }

    fn text(&self) -> Result<String> {
        let mut out = String::new();
        match self.pid {
            Some(pid) => writeln!(out, "agent      running, pid {pid}")?,
            None => writeln!(out, "agent      not running")?,
        }
        let report = self.report.as_ref().map(terminal::each).transpose()?;
        if let Some(report) = &report {
            writeln!(out, "mode       {}", report.mode)?;
            if let Some(no_ebpf) = &report.no_ebpf {
                writeln!(out, "no eBPF    {}", no_ebpf.why)?;
                for line in &no_ebpf.add {
                    writeln!(out, "to add     {line}")?;
                }
                if !no_ebpf.add.is_empty() {
                    writeln!(out, "           ({})", pod::BELOW)?;
                }
            }
        }
        match self.off.as_slice() {
            [] => writeln!(out, "datapath   {}", self.datapath)?,
            reasons => {
                for reason in reasons {
                    let reason = terminal::line(reason);
                    writeln!(out, "datapath   NOT IN FORCE: {reason}")?;
                }
            }
        }
        if let Some(kernel) = report.as_ref().and_then(|report| report.kernel.as_ref()) {
            writeln!(out, "kernel     {kernel}")?;
        }
        for what in &self.behind {
            writeln!(out, "conflict   {}", terminal::line(what))?;
        }
        if let Some(report) = &report {
            if let Some(why) = &report.unpinned {
                writeln!(
                    out,
                    "unpinned   the datapath will not outlive the agent: {why}"
                )?;
            }
            if let Some(why) = &report.fleeting {
                writeln!(out, "unpinned   {why}")?;
            }
            if report.repairs > 0 {
                writeln!(
                    out,
                    "repairs    {} (programs or pins that somebody took away)",
                    report.repairs
                )?;
            }
        }
        let (used, max) = (self.mappings, self.max_mappings);
        let percent = (used * 100).checked_div(max).unwrap_or(0);
        match &self.unread {
            None => writeln!(out, "mappings   {used} of {max} ({percent} %)")?,
            Some(why) => writeln!(out, "mappings   not known: {}", terminal::line(why))?,
        }
        if let Some(report) = &report {
            describe(&mut out, report)?;
            nat::rules(&mut out, &self.rules)?;
            nat::foreign(&mut out, &report.foreign)?;
        }
        let shown: Vec<_> = self
            .packets
            .iter()
            .filter(|(_, count)| **count > 0)
            .map(|(name, count)| format!("{name} {count}"))
            .collect();
        writeln!(out, "packets    {}", or_none(&shown, ", "))?;
        let drops: Vec<_> = self
            .drops
            .iter()
            .filter(|(_, count)| **count > 0)
            .map(|(name, count)| format!("{name} {count}"))
            .collect();
        writeln!(out, "dropped    {}", or_none(&drops, ", "))?;
        Ok(out)
    }
}

/// Mappings, how many fit, counters, and whether there are uplinks.
fn read_maps(bpffs: &Path) -> Result<(usize, usize, Counters, bool)> {
    let maps = Maps::open(bpffs)?;
    let attached = !maps.uplinks()?.is_empty();
    Ok((
        maps.flow_count()?,
        maps.capacity()?,
        maps.counters()?,
        attached,
    ))
}

/// What the kernel has on the hooks.
#[derive(Debug, Default)]
struct Looked {
    /// What is not attached.
    off: Vec<String>,
    /// Whether anything is.
    there: bool,
    /// What others have before it.
    behind: Vec<String>,
}

/// Looks at the hooks. What could not be attached at all, and what others' programs do to packets, only
/// a living agent knows.
fn looked(report: Option<&Report>, alive: bool) -> Looked {
    let mut looked = Looked::default();
    let Some(report) = report else {
        return looked;
    };
    for placed in &report.placed {
        match placed.look() {
            Ok(Found::There) => looked.there = true,
            Ok(Found::Behind(ahead)) => {
                looked.there = true;
                looked.behind.push(placed.behind(&ahead));
            }
            Ok(Found::Missing) => looked.off.push(placed.to_string()),
            Ok(Found::NoInterface) => {}
            Err(err) => looked.off.push(format!("not known: {err:#}")),
        }
    }
    let known: Vec<_> = report.placed.iter().map(ToString::to_string).collect();
    let refused = report.off.iter().filter(|why| !known.contains(why));
    looked.off.extend(refused.filter(|_| alive).cloned());
    looked
}

fn describe(out: &mut String, report: &Report) -> Result<()> {
    let config = &report.config;
    let age = now().saturating_sub(config.applied_at);
    let files = match config.files.as_slice() {
        [] => String::new(),
        files => format!(" ({})", files.join(", ")),
    };
    writeln!(
        out,
        "config     {} from {}{files}, in force for {}",
        config.hash,
        config.source,
        pretty(age)
    )?;
    for problem in &config.rejected {
        writeln!(out, "rejected   {problem}")?;
    }
    for warning in &config.warnings {
        writeln!(out, "warning    {warning}")?;
    }
    if let Some(api) = &report.api {
        writeln!(out, "api        {api}")?;
    }
    for reason in &report.unready {
        writeln!(out, "not ready  {reason}")?;
    }
    for name in &report.waiting_for {
        writeln!(out, "waiting    for an interface that matches {name}")?;
    }
    for name in &report.waiting_for_pods {
        writeln!(
            out,
            "waiting    for an interface towards pods that matches {name}"
        )?;
    }
    for hint in &report.hints {
        writeln!(out, "hint       {hint}")?;
    }
    if let Some(reason) = &report.no_uplink
        && report.waiting_for.is_empty()
    {
        writeln!(out, "waiting    {reason}")?;
    }
    // Without any uplink it is the reason.
    for what in report
        .left_out
        .iter()
        .filter(|what| report.no_uplink.as_ref() != Some(*what))
    {
        writeln!(out, "left out   {what}")?;
    }
    for what in &report.stacked {
        writeln!(out, "stacked    {what}")?;
    }
    for what in &report.no_address {
        let what = what.describe(report.mode == "iptables");
        writeln!(out, "no address {what}")?;
    }
    for what in &report.leaks {
        writeln!(out, "leak       {what}")?;
    }
    if !report.guests.is_empty() {
        let guests = report.guests.join(", ");
        writeln!(
            out,
            "guests     {guests}: what goes there is not masqueraded"
        )?;
    }
    for what in &report.chains_back {
        writeln!(out, "conflict   {what} is back: somebody still writes it")?;
    }
    for what in &report.not_taken_over {
        writeln!(out, "takeover   to be tried again: {what}")?;
    }
    for what in &report.ipsec {
        writeln!(out, "ipsec      {what}")?;
    }
    for what in &report.detours {
        writeln!(out, "detour     {what}")?;
    }
    if let Some(node) = &report.node {
        writeln!(out, "node ports {}", node.line())?;
        for what in &node.not_kept {
            writeln!(out, "not kept   {what}")?;
        }
        for problem in &node.unread {
            writeln!(
                out,
                "not kept   hostPorts and services, as far as NAT rules cannot be read: {problem}"
            )?;
        }
    }
    if !report.chains.is_empty() {
        let mut chains = table(&["CHAIN", "FAMILY", "BACKEND", "RULES", "PROBLEM"]);
        for chain in &report.chains {
            chains.add_row([
                chain.chain.clone(),
                chain.family.clone(),
                chain.backend.clone(),
                chain.rules.to_string(),
                chain.error.clone().unwrap_or_else(|| "-".into()),
            ]);
        }
        writeln!(out, "\n{chains}\n")?;
        return policy(out, config);
    }
    let mut uplinks = table(&["UPLINK", "INDEX", "ATTACHED", "IPV4", "IPV6", "LINK"]);
    for uplink in &report.uplinks {
        uplinks.add_row([
            uplink.name.clone(),
            uplink.ifindex.to_string(),
            uplink.attached.clone(),
            uplink.v4.map_or_else(|| "-".into(), |ip| ip.to_string()),
            uplink.v6.map_or_else(|| "-".into(), |ip| ip.to_string()),
            if uplink.up { "up" } else { "down" }.into(),
        ]);
    }
    writeln!(out, "\n{uplinks}\n")?;
    policy(out, config)
}

fn policy(out: &mut String, config: &ConfigReport) -> Result<()> {
    let mut policy = table(&["DESTINATION", "ACTION", "FROM"]);
    const SHOWN: usize = 20;
    for rule in config.rules.iter().take(SHOWN) {
        policy.add_row([&rule.prefix, &rule.action, &rule.origin]);
    }
    if config.rules.len() > SHOWN {
        let more = format!("… {} more", config.rules.len() - SHOWN);
        policy.add_row([more.as_str(), "", "-o json shows all"]);
    }
    // A default action is a rule for everything.
    if !config.rules.iter().any(|rule| rule.prefix == "0.0.0.0/0") {
        policy.add_row(["everything else", "masquerade", "built-in"]);
    }
    writeln!(out, "{policy}\n")?;
    Ok(())
}

fn packets(counters: &Counters) -> BTreeMap<&'static str, u64> {
    BTreeMap::from([
        ("egress_masqueraded", counters.egress_masqueraded),
        ("egress_bypassed", counters.egress_bypassed),
        ("egress_host", counters.egress_host),
        ("egress_replies", counters.egress_replies),
        ("egress_untouched", counters.egress_untouched),
        ("ingress_translated", counters.ingress_translated),
        ("ingress_passed", counters.ingress_passed),
        ("egress_let_out", counters.egress_let_out),
        ("errors_translated", counters.errors_translated),
        ("fragments_held", counters.fragments_held),
        ("mappings_created", counters.mappings_created),
        ("ports_changed", counters.ports_changed),
    ])
}

/// Prints the status.
///
/// # Errors
/// The maps can't be read.
pub fn print(bpffs: &Path, state_dir: &Path, json: bool) -> Result<()> {
    let status = Status::gather(bpffs, state_dir)?;
    let text = if json {
        serde_json::to_string_pretty(&status)? + "\n"
    } else {
        status.text()?
    };
    write_out(&text, json)
}

/// Prints the live mappings.
///
/// # Errors
/// The maps can't be read, or there are none.
pub fn print_flows(bpffs: &Path, json: bool) -> Result<()> {
    let flows = Maps::open(bpffs)
        .context("no datapath to look at; is the agent running, and with this --bpffs?")?
        .flows()?;
    let text = if json {
        serde_json::to_string_pretty(&flows)? + "\n"
    } else {
        flow_table(&flows)
    };
    write_out(&text, json)
}

fn flow_table(flows: &[FlowRecord]) -> String {
    let mut rows = table(&[
        "PROTO",
        "POD",
        "DESTINATION",
        "SEEN AS",
        "STATE",
        "AGE",
        "IDLE",
        "OUT",
        "IN",
    ]);
    for flow in flows {
        rows.add_row([
            flow.protocol.clone(),
            endpoint(flow.source, flow.source_id),
            endpoint(flow.destination, flow.destination_id),
            endpoint(flow.nat_address, flow.nat_id),
            flow.state.clone(),
            pretty(flow.age_seconds),
            pretty(flow.idle_seconds),
            flow.packets_out.to_string(),
            flow.packets_in.to_string(),
        ]);
    }
    let mappings = if flows.len() == 1 {
        "mapping"
    } else {
        "mappings"
    };
    format!("{rows}\n{} {mappings}\n", flows.len())
}

fn endpoint(ip: std::net::IpAddr, id: u16) -> String {
    std::net::SocketAddr::new(ip, id).to_string()
}

/// A table in the style of all commands.
pub(crate) fn table(header: &[&str]) -> Rows {
    let mut table = Table::new();
    table
        .load_style(presets::NOTHING)
        .set_header(header.to_vec());
    Rows(table)
}

/// A table, whose cells are shown as [`terminal::line`].
pub(crate) struct Rows(Table);

impl Rows {
    pub(crate) fn add_row<T: AsRef<str>>(&mut self, cells: impl IntoIterator<Item = T>) {
        let shown = |cell: T| terminal::line(cell.as_ref()).into_owned();
        self.0.add_row(cells.into_iter().map(shown));
    }
}

impl fmt::Display for Rows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

fn or_none(list: &[String], separator: &str) -> String {
    if list.is_empty() {
        "none".into()
    } else {
        list.join(separator)
    }
}

/// Seconds in the two units that say most.
pub(crate) fn pretty(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{}s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{}h{}m", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{}d{}h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or(Duration::ZERO)
        .as_secs()
}

/// A protocol's name, or its number.
pub(crate) fn protocol(number: u32) -> String {
    match number {
        proto::TCP => "tcp".into(),
        proto::UDP => "udp".into(),
        proto::ICMP => "icmp".into(),
        proto::ICMPV6 => "icmpv6".into(),
        other => other.to_string(),
    }
}

/// Writes a result to standard output; one for people as [`terminal::lines`]. A reader that goes away
/// (`| head`) is no error.
pub(crate) fn write_out(text: &str, json: bool) -> Result<()> {
    let shown = if json {
        text.into()
    } else {
        terminal::lines(text)
    };
    match std::io::stdout().write_all(shown.as_bytes()) {
        Err(err) if err.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => other.context("writing to standard output"),
    }
}
