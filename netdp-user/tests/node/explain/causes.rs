//! Causes of what operators report, each on a node of its own.

use super::transcript::Section;
use super::{World, at};
use crate::common::clients::{Tcp, any, from_port};
use crate::common::wire::Capture;
use crate::common::{ECHO, Echo, SOON};
use anyhow::{Context as _, Result, ensure};
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};
use testbed::{Bed, ConfigVolume, wait_for};

const DOCUMENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/troubleshoot.md");

const INTRODUCTION: &str = "\
# Troubleshooting by `netdp explain`

Each section is a report that operators have made of some NAT, reproduced on a node with its cause.
`cargo test -p netdp-user --test node explain::` runs the commands, does what the answer says, and checks
that the symptom is gone; the output below is that test's (`NETDP_REWRITE_DOCS=1` rewrites it). Codes
are explained in [codes.md](codes.md).
";
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

/// An edit is rejected, and the policy from before is in force.
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
