//! An uplink loses its address: pods' packets are dropped, and log, status and `/readyz` report it,
//! for each family, with one uplink and with two, and in iptables mode.

use crate::common::{SOON, start_agent, wait_log};
use anyhow::{Context as _, Result, ensure};
use testbed::{Agent, Bed, ConfigVolume, Netns, wait_for};

const PROBES: &str = "127.0.0.1:10268";
const POLICY: &str = "nonMasqueradeCIDRs: [172.16.0.0/16, 'fd00:172::/64']\n";
const OWN: [(&str, &str); 2] = [("IPv4", "10.1.0.10/16"), ("IPv6", "fd00:1::10/64")];

struct Node {
    agent: Agent,
    _config: ConfigVolume,
    bed: Bed,
}

impl Node {
    fn start(uplinks: usize, flags: &[&str]) -> Result<Self> {
        let mut bed = Bed::builder();
        for (name, addresses) in [
            ("eth0", ["10.1.0.10/16", "fd00:1::10/64"]),
            ("eth1", ["10.9.0.10/16", "fd00:9::10/64"]),
        ]
        .iter()
        .take(uplinks)
        {
            bed = bed.uplink(name, addresses);
        }
        let bed = bed.pods(1, &["172.16.0.0/24", "fd00:172::/64"]).build()?;
        let config = ConfigVolume::new(POLICY)?;
        let listen = format!("--http-listen={PROBES}");
        let flags = [&["--enable-ipv6", &listen], flags].concat();
        let agent = start_agent(&bed.node, &config, &flags)?;
        let node = Self {
            agent,
            _config: config,
            bed,
        };
        node.wait_ready("200", "ok: config ")?;
        Ok(node)
    }

    fn net(&self) -> &Netns {
        &self.bed.node
    }

    fn wait_ready(&self, code: &str, words: &str) -> Result<()> {
        let url = format!("http://{PROBES}/readyz");
        let ask = ["curl", "-s", "-m", "10", "-w", "\n%{http_code}", &url];
        let mut seen = None;
        wait_for(SOON, &format!("/readyz: {code}, {words}"), || {
            seen = self.net().run(&ask).ok();
            let is_so = |text: &String| text.ends_with(code) && text.contains(words);
            seen.as_ref().is_some_and(is_so)
        })
        .with_context(|| format!("it is {seen:?}; the agent wrote:\n{}", self.agent.log()))
    }

    fn lines(&self, level: &str, words: &str) -> usize {
        let log = self.agent.log();
        let found = |line: &&str| line.contains(level) && line.contains(words);
        log.lines().filter(found).count()
    }
}

/// Each family is lost and comes back; the other is not mentioned.
#[test]
fn the_only_uplink_makes_the_node_unready() -> Result<()> {
    for flags in [&[][..], &["--mode=iptables"]] {
        let mut node = Node::start(1, flags)?;
        for (family, own) in OWN {
            node.net().ip(&format!("address delete {own} dev eth0"))?;
            let words = format!("eth0 has no {family} address any more");
            node.wait_ready("503", &words)?;
            ensure!(node.lines("ERROR", &words) == 1, "{}", node.agent.log());
            let status = node.agent.netdp(&["status"])?;
            ensure!(status.contains(&format!("no address {words}")), "{status}");
            ensure!(status.matches("any more").count() == 2, "{status}");
            // The next agent detects that an address which existed is gone.
            node.agent.restart()?;
            node.wait_ready("503", &words)?;
            let nodad = if family == "IPv6" { "nodad" } else { "" };
            node.net()
                .ip(&format!("address add {own} dev eth0 {nodad}"))?;
            node.wait_ready("200", "ok: config ")?;
            wait_log(&node.agent, &format!("eth0 has an {family} address again"))?;
            let status = node.agent.netdp(&["status"])?;
            ensure!(!status.contains("no address"), "{status}");
        }
    }
    Ok(())
}

/// With two uplinks the node stays ready, unless routes still lead through the one without an
/// address.
#[test]
fn one_of_two_uplinks_is_warned_of() -> Result<()> {
    let node = Node::start(2, &["--uplink=eth0", "--uplink=eth1"])?;
    node.net().ip("address delete 10.9.0.10/16 dev eth1")?;
    let words = "eth1 has no IPv4 address any more: no IPv4 route leads there";
    wait_log(&node.agent, words)?;
    ensure!(node.lines("WARN", words) == 1, "{}", node.agent.log());
    node.wait_ready("200", "ok: config ")?;
    node.net().ip("-6 route add fd00:5::/64 dev eth1")?;
    node.net().ip("address delete fd00:9::10/64 dev eth1")?;
    let words = "eth1 has no IPv6 address any more: pods' IPv6 packets";
    node.wait_ready("503", words)?;
    ensure!(node.lines("ERROR", words) == 1, "{}", node.agent.log());
    node.net().ip("-6 route delete fd00:5::/64 dev eth1")?;
    node.wait_ready("200", "ok: config ")?;
    Ok(())
}

/// An IPv4-only node is ready with `--enable-ipv6`.
#[test]
fn a_family_that_was_never_there_is_not_missed() -> Result<()> {
    let bed = Bed::builder()
        .uplink("eth0", &["10.1.0.10/16"])
        .pods(1, &["172.16.0.0/24"])
        .build()?;
    let config = ConfigVolume::new(POLICY)?;
    let agent = start_agent(&bed.node, &config, &["--enable-ipv6"])?;
    bed.node.ip("address delete 10.1.0.10/16 dev eth0")?;
    wait_log(&agent, "eth0 has no IPv4 address any more")?;
    ensure!(!agent.log().contains("no IPv6 address"), "{}", agent.log());
    Ok(())
}
