//! `netdp explain` finds the cause of what operators report, on nodes that really have it; what it
//! says to do is done, and the symptom is gone. docs/troubleshoot.md shows the transcripts.

use crate::common::clients::{Tcp, any, from_port, tcp_source};
use crate::common::wire::Capture;
use crate::common::{ECHO, Echo, NETDP, SOON, options};
use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use testbed::{Agent, Bed, ConfigVolume, Host, wait_for};

const DOCUMENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/troubleshoot.md");

const INTRODUCTION: &str = "\
# Troubleshooting by `netdp explain`

Each section is a report that operators have made of some NAT, reproduced on a node with its cause.
`cargo test -p netdp-user --test node explain::` runs the commands, does what the answer says, and checks
that the symptom is gone; the output below is that test's (`NETDP_REWRITE_DOCS=1` rewrites it). Codes
are explained in [codes.md](codes.md).
";

/// A node with a policy, pods, and hosts beyond its uplink.
struct World {
    agent: Agent,
    config: ConfigVolume,
    /// In the node's network, with a route to pods.
    near: Host,
    /// Behind a router, without a route to pods.
    far: Host,
    bed: Bed,
}

impl World {
    fn new(config: &str, arguments: &[&str]) -> Result<Self> {
        Self::on(Bed::dual_stack()?, config, arguments)
    }

    fn on(bed: Bed, config: &str, arguments: &[&str]) -> Result<Self> {
        let near = bed.neighbour(0, &["10.1.0.20/16", "fd00:1::20/64"])?;
        let far = bed.server(0, &["10.2.0.17/24", "fd00:2::17/64"])?;
        let config = ConfigVolume::new(config)?;
        let agent = Agent::start(&bed.node, options(&config, arguments))?;
        Ok(Self {
            agent,
            config,
            near,
            far,
            bed,
        })
    }

    fn pod(&self) -> &Host {
        &self.bed.pods[0]
    }

    /// Runs `netdp explain`; returns its standard output.
    fn explain(&self, arguments: &[&str]) -> Result<String> {
        self.agent.netdp(&[&["explain"], arguments].concat())
    }

    /// Returns the answers as JSON.
    fn answers(&self, arguments: &[&str]) -> Result<Value> {
        let all: Value =
            serde_json::from_str(&self.explain(&[arguments, &["-o", "json"]].concat())?)?;
        Ok(all["answers"].clone())
    }

    /// Returns the exit status of `netdp explain`.
    fn status(&self, arguments: &[&str]) -> Result<i32> {
        let mut command = self.agent.command(&[&["explain"], arguments].concat());
        command.output()?.status.code().context("killed")
    }

    /// Waits until the destination sees this source of the pod's TCP connections.
    fn wait_seen(&self, to: SocketAddr, source: &str) -> Result<()> {
        let source: IpAddr = source.parse()?;
        let mut seen = None;
        wait_for(SOON, &format!("{to} to see {source}"), || {
            seen = tcp_source(self.pod(), to).ok();
            seen == Some(source)
        })
        .with_context(|| format!("it saw {seen:?}"))
    }
}

/// libtest prints this for a failed test.
impl Drop for World {
    fn drop(&mut self) {
        eprintln!("the agent wrote:\n{}", self.agent.log());
    }
}

/// A report with its transcript.
struct Section {
    title: &'static str,
    symptom: &'static str,
    command: String,
    output: String,
    remedy: &'static str,
}

impl Section {
    /// Explains on `world`, and checks the first line.
    fn of(
        world: &World,
        title: &'static str,
        symptom: &'static str,
        arguments: &[&str],
        first_line: &str,
    ) -> Result<Self> {
        let output = world.explain(arguments)?;
        let path = world.config.path().display().to_string();
        let output = normalised(&output, &path);
        let told = output.lines().next().unwrap_or_default();
        ensure!(
            told == first_line,
            "{title}: {told:?}, not {first_line:?} in\n{output}"
        );
        Ok(Self {
            title,
            symptom,
            command: format!("netdp explain {}", arguments.join(" ")),
            output,
            remedy: "",
        })
    }

    fn solved_by(mut self, remedy: &'static str) -> Self {
        self.remedy = remedy;
        self
    }

    fn text(&self) -> String {
        let Self {
            title,
            symptom,
            command,
            output,
            remedy,
        } = self;
        format!("\n## {title}\n\n{symptom}\n\n```text\n$ {command}\n{output}```\n\n{remedy}\n")
    }
}

/// Replaces the directory of the configuration, whose length differs from run to run, by the usual one, and
/// puts the last column of the table where it then belongs.
fn normalised(output: &str, path: &str) -> String {
    const LAST: &str = "WHY";
    let usual = |text: &str| text.replace(path, "/etc/config");
    let is_row = |line: &&str| line.starts_with(' ');
    let head = output.lines().find(|line| line.trim_end().ends_with(LAST));
    let column = head.map_or(0, |line| line.chars().count() - LAST.len());
    let split = |line: &str| {
        let before: String = line.chars().take(column).collect();
        let last: String = line.chars().skip(column).collect();
        (usual(before.trim_end()), usual(&last))
    };
    let rows = output.lines().filter(is_row).map(split);
    let width = rows.map(|(before, _)| before.chars().count()).max();
    let width = width.unwrap_or_default() + 2;
    let lines = output.lines().map(|line| {
        if !is_row(&line) {
            return usual(line) + "\n";
        }
        let (before, last) = split(line);
        let blanks = " ".repeat(width - before.chars().count());
        format!("{before}{blanks}{last}").trim_end().to_owned() + "\n"
    });
    lines.collect()
}

fn at(host: &Host, v4: bool) -> Result<SocketAddr> {
    let address = if v4 {
        host.v4()?.into()
    } else {
        host.v6()?.into()
    };
    Ok(SocketAddr::new(address, ECHO))
}

/// Another program's rule stands before netdp.
fn translated_first() -> Result<Section> {
    let world = World::new("nonMasqueradeCIDRs: [10.0.0.0/8, 172.16.0.0/16]\n", &[])?;
    let _echo = Echo::start(&world.near)?;
    let to = at(&world.near, true)?;
    world.wait_seen(to, "172.16.0.2")?;
    let node = &world.bed.node;
    let iptables = |line: &str| {
        let words: Vec<_> = ["iptables-nft", "--wait", "60", "-t", "nat"]
            .into_iter()
            .chain(line.split(' '))
            .collect();
        node.run(&words)
    };
    // As flannel writes them.
    iptables("-N FLANNEL-POSTRTG")?;
    iptables("-A POSTROUTING -j FLANNEL-POSTRTG")?;
    iptables("-A FLANNEL-POSTRTG -s 172.16.0.0/16 -d 172.16.0.0/16 -j RETURN")?;
    iptables("-A FLANNEL-POSTRTG -s 172.16.0.0/16 ! -d 224.0.0.0/4 -j MASQUERADE")?;
    world.wait_seen(to, "10.1.0.10")?;
    let section = Section::of(
        &world,
        "A bypassed network sees the node",
        "10.0.0.0/8 is in `nonMasqueradeCIDRs`, and a database there still sees the node's address.",
        &["--from", "172.16.0.2", "10.1.0.20:7"],
        "10.1.0.20:7 sees 10.1.0.10, by eth0: netfilter translates it first, by a rule of flannel in \
         chain FLANNEL-POSTRTG  NDP401",
    )?;
    let (_, told) = section
        .output
        .split_once("then remove what is left: iptables-nft -t nat ")
        .context("no command")?;
    iptables(told.lines().next().unwrap_or_default())?;
    world.wait_seen(to, "172.16.0.2")?;
    let found = world.explain(&["--from", "172.16.0.2", "10.1.0.20:7", "--expect", "pod"])?;
    ensure!(found.contains("untouched"), "{found}");
    Ok(section.solved_by("After the rule is gone, the database sees the pod."))
}

/// An `ip rule` leads the packets to an interface without programs.
fn by_another_interface() -> Result<Section> {
    let bed = Bed::builder()
        .uplink("eth0", &["10.1.0.10/16", "fd00:1::10/64"])
        .uplink("eth1", &["10.9.0.10/16", "fd00:9::10/64"])
        .pods(1, &["172.16.0.0/24", "fd00:172::/64"])
        .build()?;
    let second = bed.on_link(1, &["10.9.0.20/16"])?;
    let router = bed.uplinks[1].router.clone();
    bed.node
        .ip("route add 10.3.0.0/16 dev eth1 via 10.9.255.254 table 100")?;
    bed.node
        .ip("rule add from 172.16.0.0/24 to 10.3.0.0/16 lookup 100 priority 1000")?;
    // One pod's own way.
    bed.node
        .ip("rule add from 172.16.0.9 to 10.1.0.64/26 lookup 101 priority 1001")?;
    bed.node
        .ip("route add default dev eth1 via 10.9.255.254 table 101")?;
    second.ip("address add 10.3.0.1/32 dev lo")?;
    router.ip("route add 10.3.0.1/32 via 10.9.0.20")?;
    let mut world = World::on(
        bed,
        "nonMasqueradeCIDRs: [172.16.0.0/16, 10.1.0.0/16]\n",
        &["--uplink=eth0"],
    )?;
    let to = SocketAddr::new("10.3.0.1".parse()?, ECHO);
    let _echo = testbed::EchoServer::start(&second, to)?;
    let wire = Capture::start(&second)?;
    ensure!(
        Tcp::connect(world.pod(), any(to), to).is_err(),
        "the pod's address has no way back"
    );
    let pod = IpAddr::from(world.pod().v4()?);
    ensure!(wire.packets()?.iter().any(|it| it.source == pod), "no leak");
    let section = Section::of(
        &world,
        "Masqueraded by the policy, and the pod's address leaves",
        "Connections to 10.3.0.1 time out, and a capture there shows packets with the pod's address.",
        &["--from", "172.16.0.2", "10.3.0.1:7"],
        "10.3.0.1:7 sees the pod's 172.16.0.2: it leaves by eth1, which is no uplink  NDP301",
    )?;
    ensure!(
        section
            .output
            .contains("10.3.0.0/16 in table 100, rule 1000 (from 172.16.0.0/24 to 10.3.0.0/16)"),
        "{}",
        section.output
    );
    let any = world.explain(&["10.1.0.65:7"])?;
    let of_one = "from 172.16.0.9: 10.1.0.65:7 sees the pod's 172.16.0.9: it leaves by eth1, which is no uplink";
    ensure!(
        any.lines().take(2).any(|line| line.starts_with(of_one)),
        "{any}"
    );
    let more = world.agent.options().clone().uplink("eth1");
    *world.agent.options() = more;
    world.agent.restart()?;
    world.wait_seen(to, "10.9.0.10")?;
    Ok(section.solved_by("With `--uplink eth0 --uplink eth1` it sees the node's address on eth1."))
}

/// The ports towards one destination are taken.
fn ports_taken() -> Result<Section> {
    let range = ["--to-ports=40000-40009"];
    let mut world = World::new("nonMasqueradeCIDRs: [172.16.0.0/16]\n", &range)?;
    let _echo = Echo::start(&world.far)?;
    let to = at(&world.far, true)?;
    let mut held = Vec::new();
    for port in 40_000..40_010 {
        let pod = &world.bed.pods[usize::from(port % 2)];
        let flow = Tcp::connect(pod, from_port(port, to), to);
        held.push(flow.with_context(|| format!("a connection from port {port}"))?);
    }
    ensure!(
        Tcp::connect(world.pod(), any(to), to).is_err(),
        "an eleventh port"
    );
    // For half a second after that, fewer ports are tried, and at random.
    crate::common::clock::advance(&world.agent, std::time::Duration::from_secs(1))?;
    let section = Section::of(
        &world,
        "Some connections to one endpoint fail",
        "New connections to one endpoint are refused, while others work and the mapping tables are \
         nearly empty. This node has ten ports (`--to-ports 40000-40009`).",
        &["--from", "172.16.0.2", "10.2.0.17:7"],
        "refused: every port of 10.1.0.10 towards 10.2.0.17:7 is taken (10 of 10)  NDP502",
    )?;
    ensure!(section.output.contains("172.16.0.3"), "{}", section.output);
    ensure!(world.status(&["--expect", "drop", "--from", "172.16.0.2", "10.2.0.17:7"])? == 0);
    // Another destination is not affected.
    ensure!(world.status(&["--expect", "node", "--from", "172.16.0.2", "10.2.0.17:8"])? == 0);
    let options = world.agent.options();
    options.replace("--to-ports=40000-40009", "--to-ports=40000-40099");
    world.agent.restart()?;
    world.wait_seen(to, "10.1.0.10")?;
    for connection in &mut held {
        connection.ask()?;
    }
    Ok(section
        .solved_by("With `--to-ports 40000-40099` new connections work; the ten of before go on."))
}

/// A client outside connects to the pod's own address.
fn began_outside() -> Result<Section> {
    let world = World::new("nonMasqueradeCIDRs: [172.16.0.0/16]\n", &[])?;
    let _echo = Echo::start(world.pod())?;
    let to = at(world.pod(), true)?;
    let mut client = Tcp::connect(&world.near, from_port(40_000, to), to)?;
    ensure!(client.ask()?.ip() == IpAddr::from(world.near.v4()?));
    let section = Section::of(
        &world,
        "Answers keep the pod's address, new connections do not",
        "10.1.0.20 is masqueraded. A client there that connects to the pod's own address gets answers from \
         it, while the pod's own connections come from the node.",
        &["--from", "172.16.0.2:7", "10.1.0.20:40000"],
        "10.1.0.20:40000 sees 10.1.0.10, by eth0: masqueraded by the default, because no entry covers \
             it; answers of the flow that began there keep 172.16.0.2  NDP601",
    )?;
    let line = "IP 172.16.0.2.7 > 10.1.0.20.40000: Flags [.], ack 1, length 0";
    let answers = world.answers(&["--packet", line, "--expect", "pod"])?;
    ensure!(answers[0]["outcome"] == "reply", "{answers}");
    ensure!(answers[0]["seen_as"] == "172.16.0.2", "{answers}");
    Ok(section
        .solved_by("Both are right: a peer expects answers from the address that it has asked."))
}

/// Nobody has excluded the destination but the built-in list.
fn default_list() -> Result<Section> {
    let mut world = World::new("resyncInterval: 5s\n", &[])?;
    let _echo = Echo::start(&world.near)?;
    let to = at(&world.near, true)?;
    world.wait_seen(to, "172.16.0.2")?;
    let section = Section::of(
        &world,
        "Not masqueraded, although nobody excluded it",
        "No document mentions 10.1.0.20, and it sees the pod's address.",
        &["--from", "172.16.0.2", "10.1.0.20:7"],
        "10.1.0.20:7 sees the pod's 172.16.0.2, by eth0: bypassed by the built-in default 10.0.0.0/8, \
         because no document has nonMasqueradeCIDRs  NDP103",
    )?;
    ensure!(
        section
            .output
            .contains("add \"10.1.0.20/32\" to masqueradeCIDRs"),
        "{}",
        section.output
    );
    let edited = "resyncInterval: 5s\nmasqueradeCIDRs: [\"10.1.0.20/32\"]\n";
    let candidate = ConfigVolume::new(edited)?;
    let file = candidate.file().display().to_string();
    let ahead = world.status(&["--with", &file, "--expect", "node", "10.1.0.20:7"])?;
    ensure!(ahead == 0, "with the edit: {ahead}");
    ensure!(world.status(&["--expect", "node", "10.1.0.20:7"])? == 1);
    world.config.write(edited)?;
    world.wait_seen(to, "10.1.0.10")?;
    // The report follows the policy.
    wait_for(SOON, "the entry to be named", || {
        let after = world.explain(&["--from", "172.16.0.2", "10.1.0.20:7"]);
        after.is_ok_and(|after| after.contains("NDP201") && after.contains("masked"))
    })?;
    Ok(section.solved_by(
        "With `masqueradeCIDRs: [\"10.1.0.20/32\"]` it sees the node. `netdp explain --with FILE` says so \
         before the edit is made.",
    ))
}

/// What was edited is rejected, and the policy from before is in force.
fn rejected() -> Result<Section> {
    let good = "nonMasqueradeCIDRs: [172.16.0.0/16]\nresyncInterval: 5s\n";
    let mut world = World::new(good, &[])?;
    let _echo = Echo::start(&world.near)?;
    let to = at(&world.near, true)?;
    world.wait_seen(to, "10.1.0.10")?;
    let edited = "\
nonMasqueradeCIDRs: [172.16.0.0/16, 10.1.0.0/24]
masqueradeCIDRs: [10.1.0.0/24]
resyncInterval: 5s
";
    world.config.write(edited)?;
    let case = ["--from", "172.16.0.2", "10.1.0.20:7"];
    wait_for(SOON, "the edit to be rejected", || {
        world
            .explain(&case)
            .is_ok_and(|told| told.contains("NDP101"))
    })?;
    let section = Section::of(
        &world,
        "An edit has no effect",
        "10.1.0.0/24 was added to `nonMasqueradeCIDRs`, and 10.1.0.20 still sees the node.",
        &case,
        "10.1.0.20:7 sees 10.1.0.10, by eth0: masqueraded by the default, because no entry covers it",
    )?;
    let told = &section.output;
    ensure!(told.contains("the newest configuration was rejected, this is by the one before it: "));
    ensure!(told.contains("first correct the configuration that was rejected"));
    for command in ["policy", "history"] {
        let text = world.agent.netdp(&[command])?;
        ensure!(
            text.contains("the newest configuration was rejected"),
            "{text}"
        );
    }
    world
        .config
        .write(&edited.replace("masqueradeCIDRs: [10.1.0.0/24]\n", ""))?;
    world.wait_seen(to, "172.16.0.2")?;
    Ok(section.solved_by(
        "Each prefix belongs in one list. One error rejects the whole configuration, and the one before it stays in \
         force. With the entry in one list, the server sees the pod.",
    ))
}

/// IPv6 is left alone.
fn one_family() -> Result<Section> {
    let mut world = World::new("nonMasqueradeCIDRs: [172.16.0.0/16]\n", &[])?;
    let _echo = Echo::start(&world.far)?;
    world.wait_seen(at(&world.far, true)?, "10.1.0.10")?;
    let to = at(&world.far, false)?;
    ensure!(
        Tcp::connect(world.pod(), any(to), to).is_err(),
        "IPv6 works"
    );
    let section = Section::of(
        &world,
        "IPv4 works, IPv6 times out",
        "The name of a server has addresses of both families. Pods reach it by IPv4 only.",
        &["--from", "fd00:172::2", "[fd00:2::17]:7"],
        "[fd00:2::17]:7 sees the pod's fd00:172::2, by eth0: IPv6 is not enabled (--enable-ipv6)  NDP205",
    )?;
    let more = world.agent.options().clone().arg("--enable-ipv6");
    *world.agent.options() = more;
    world.agent.restart()?;
    world.wait_seen(to, "fd00:1::10")?;
    Ok(section.solved_by("With `--enable-ipv6` it sees the node's IPv6 address."))
}

/// kube-proxy marks what goes to a service, and masquerades it itself.
fn marked_for_a_service() -> Result<Section> {
    let world = World::new("nonMasqueradeCIDRs: [10.0.0.0/8, 172.16.0.0/16]\n", &[])?;
    let _echo = Echo::start(&world.near)?;
    world.wait_seen(at(&world.near, true)?, "172.16.0.2")?;
    let node = &world.bed.node;
    // As kube-proxy writes them for a service without a selector, with --masquerade-all.
    let rules = |but: &str| {
        format!(
            "*nat
:KUBE-SERVICES - [0:0]
:KUBE-SVC-DB - [0:0]
:KUBE-SEP-DB - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-POSTROUTING - [0:0]
-A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A POSTROUTING -m comment --comment \"kubernetes postrouting rules\" -j KUBE-POSTROUTING
-A KUBE-SERVICES {but}-d 10.96.0.12/32 -p tcp -m comment --comment \"shop/db cluster IP\" -m tcp --dport 80 -j KUBE-MARK-MASQ
-A KUBE-SERVICES -d 10.96.0.12/32 -p tcp -m comment --comment \"shop/db cluster IP\" -m tcp --dport 80 -j KUBE-SVC-DB
-A KUBE-SVC-DB -m comment --comment \"shop/db\" -j KUBE-SEP-DB
-A KUBE-SEP-DB -p tcp -m comment --comment \"shop/db\" -m tcp -j DNAT --to-destination 10.1.0.20:7
-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000
-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN
-A KUBE-POSTROUTING -j MARK --xor-mark 0x4000
-A KUBE-POSTROUTING -j MASQUERADE
COMMIT
"
        )
    };
    let restore = |rules: String| {
        let script = format!("iptables-nft-restore --wait 60 <<'EOF'\n{rules}EOF");
        node.run(&["sh", "-c", &script])
    };
    restore(rules(""))?;
    let to = "10.96.0.12:80".parse()?;
    world.wait_seen(to, "10.1.0.10")?;
    let section = Section::of(
        &world,
        "Behind a Service, a bypassed network sees the node",
        "10.0.0.0/8 is in `nonMasqueradeCIDRs`, and a database there sees the pods, but not if they call it by \
         its Service.",
        &["--from", "172.16.0.2", "10.96.0.12:80"],
        "10.96.0.12:80 → 10.1.0.20:7 sees 10.1.0.10, by eth0: netfilter translates it first, by a rule of \
         kube-proxy in chain KUBE-POSTROUTING  NDP401",
    )?;
    ensure!(
        section
            .output
            .contains("kube-proxy without --masquerade-all")
    );
    let flush = ["iptables-nft", "--wait", "60", "-t", "nat", "-F"];
    node.run(&flush)?;
    restore(rules("! -s 172.16.0.0/16 "))?;
    world.wait_seen(to, "172.16.0.2")?;
    Ok(section.solved_by(
        "Without `--masquerade-all` kube-proxy marks only what comes from elsewhere than pods, and the \
         database sees them.",
    ))
}

#[test]
fn the_causes_of_what_operators_report_are_found() -> Result<()> {
    let puzzles = [
        translated_first,
        by_another_interface,
        ports_taken,
        began_outside,
        default_list,
        rejected,
        one_family,
        marked_for_a_service,
    ];
    let mut document = INTRODUCTION.to_owned();
    for puzzle in puzzles {
        document.write_str(&puzzle()?.text())?;
    }
    document.write_str(&crate::who_was_it::section()?)?;
    if std::env::var_os("NETDP_REWRITE_DOCS").is_some() {
        std::fs::write(DOCUMENT, &document)?;
    }
    let written = std::fs::read_to_string(DOCUMENT)?;
    ensure!(
        written == document,
        "docs/troubleshoot.md is out of date; NETDP_REWRITE_DOCS=1 rewrites it. It would be:\n{document}"
    );
    Ok(())
}

#[test]
fn it_works_without_an_agent_and_says_where_it_looked_for_maps() -> Result<()> {
    let mut world = World::new("nonMasqueradeCIDRs: [172.16.0.0/16]\n", &[])?;
    world.agent.kill9()?;
    let text = world.explain(&["10.2.0.17:443"])?;
    ensure!(text.contains("no agent runs"), "{text}");
    ensure!(
        text.starts_with("10.2.0.17:443 sees 10.1.0.10, by eth0: masqueraded"),
        "{text}"
    );
    let mut command = std::process::Command::new(NETDP);
    command.args(["explain", "10.2.0.17", "--bpffs", "/nowhere/netdp"]);
    let output = command.output()?;
    let told = String::from_utf8(output.stderr)?;
    ensure!(output.status.code() == Some(2), "{}", output.status);
    ensure!(told.contains("/nowhere/netdp"), "{told}");
    Ok(())
}

/// The shape of the JSON is that of docs/json.md.
#[test]
fn the_json_has_the_documented_fields() -> Result<()> {
    let world = World::new(
        "nonMasqueradeCIDRs: [10.0.0.0/8]\nmasqueradeCIDRs: [10.2.0.0/24]\n",
        &[],
    )?;
    let text = world.explain(&["--from", "172.16.0.2:44216", "10.2.0.17:443", "-o", "json"])?;
    let all: Value = serde_json::from_str(&text)?;
    ensure!(all["schema"] == 1 && all["agent_running"] == true, "{text}");
    let answer = &all["answers"][0];
    let of = |key: &str| answer[key].to_string();
    for (key, value) in [
        ("outcome", "\"masqueraded\""),
        ("is_certain", "true"),
        ("codes", "[\"NDP201\"]"),
        ("from", "\"172.16.0.2:44216\""),
        ("any_pod", "false"),
        ("came_by", "\"cni0\""),
        ("to", "\"10.2.0.17:443\""),
        ("protocol", "\"tcp\""),
        ("seen_as", "\"10.1.0.10\""),
        ("seen_port", "44216"),
        ("leaves_by", "\"eth0\""),
        (
            "remedies",
            "[\"to have it see the pod: add \\\"10.2.0.17/32\\\" to nonMasqueradeCIDRs\"]",
        ),
    ] {
        ensure!(of(key) == value, "{key}: {} in {text}", of(key));
    }
    let steps = answer["steps"].as_array().context("steps")?;
    let names: Vec<_> = steps
        .iter()
        .filter_map(|step| step["step"].as_str())
        .collect();
    let all_steps = [
        "route",
        "netfilter",
        "mapping",
        "policy",
        "source",
        "reply",
        "address",
        "port",
    ];
    ensure!(names == all_steps, "{names:?}");
    let policy = &steps[3];
    ensure!(policy["details"][0]["label"] == "masked", "{policy}");
    // A second address of the uplink.
    world.bed.node.ip("address add 10.5.0.1/16 dev eth0")?;
    let answers = world.answers(&["--from", "172.16.0.2:44216", "10.2.0.17:443"])?;
    ensure!(
        answers[0]["codes"].to_string().contains("NDP304"),
        "{answers}"
    );
    let others = answers.to_string();
    ensure!(
        others.contains(r#""what":"10.5.0.1","why":"not the first""#),
        "{answers}"
    );
    Ok(())
}
