//! A flow moves to another uplink, and the uplink's address is removed and comes back.

use crate::common::clients::{Udp, any, from_port, tcp_stream};
use crate::common::{ECHO, Echo, NETDP, SOON};
use crate::site::{Control, Subject, both, ends, ip_masq_agent};
use crate::talk::Pair;
use anyhow::{Context as _, Result, ensure};
use netdp_user::datapath::Maps;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use testbed::{
    Agent, AgentOptions, Bed, ConfigVolume, Host, WorkDir, last_host, wait_for, wait_some,
};

const POLICY: &str = "nonMasqueradeCIDRs: [172.16.0.0/16, 'fd00:172::/64']\n";
const PORT: u16 = 45_000;

/// A server reached by the first of two uplinks, and by the second after a failover.
struct Pairs {
    agent: Option<Agent>,
    _config: ConfigVolume,
    _dir: WorkDir,
    /// One server behind each uplink, both with the same addresses.
    servers: [Host; 2],
    bed: Bed,
}

impl Pairs {
    fn start(subject: Subject) -> Result<Self> {
        let bed = Bed::builder()
            .uplink("eth0", &["10.1.0.10/16", "fd00:1::10/64"])
            .uplink("eth1", &["10.9.0.10/16", "fd00:9::10/64"])
            .pods(1, &["172.16.0.0/24", "fd00:172::/64"])
            .build()?;
        let addresses = ["10.2.0.1/24", "fd00:2::1/64"];
        let servers = [bed.server(0, &addresses)?, bed.server(1, &addresses)?];
        let (config, dir) = (ConfigVolume::new(POLICY)?, WorkDir::new("rules")?);
        let agent = match subject {
            Subject::Netdp => {
                let options = AgentOptions::new(NETDP)
                    .config(config.path())
                    .arg("--enable-ipv6")
                    .uplink("eth0")
                    .uplink("eth1");
                Some(Agent::start(&bed.node, options)?)
            }
            Subject::IpMasqAgent => {
                ip_masq_agent(&bed.node, &dir)?;
                None
            }
        };
        let pairs = Self {
            agent,
            _config: config,
            _dir: dir,
            servers,
            bed,
        };
        pairs.lead(0)?;
        Ok(pairs)
    }

    /// Routes packets for the server through one of the uplinks.
    fn lead(&self, uplink: usize) -> Result<()> {
        for net in &self.servers[0].addresses {
            let via = last_host(self.net(uplink, net.addr())?).addr();
            let (family, net) = (family(net.addr()), net.trunc());
            self.bed
                .node
                .ip(&format!("{family} route replace {net} via {via}"))?;
        }
        Ok(())
    }

    /// Returns the node's address on an uplink in the family of `like`.
    fn net(&self, uplink: usize, like: IpAddr) -> Result<ipnet::IpNet> {
        let addresses = self.bed.uplinks[uplink].addresses.iter();
        let mut found = addresses.filter(|net| net.addr().is_ipv4() == like.is_ipv4());
        found.next().copied().context("no address")
    }

    /// Waits until the programs' maps contain, or no longer contain, this address of the node.
    fn wait_known(&self, address: IpAddr, there: bool) -> Result<()> {
        let agent = self.agent.as_ref().context("netdp is the subject")?;
        let maps = Maps::open(&agent.bpffs())?;
        wait_for(SOON, &format!("{address}: {there}"), || {
            let local = maps.local_addresses();
            local.is_ok_and(|local| local.contains(&address) == there)
        })
    }

    fn pod(&self) -> &Host {
        &self.bed.pods[0]
    }
}

const fn family(ip: IpAddr) -> &'static str {
    if ip.is_ipv4() { "-4" } else { "-6" }
}

fn datagrams(subject: Subject) -> Result<()> {
    let pairs = Pairs::start(subject)?;
    let _echoes = [
        Echo::start(&pairs.servers[0])?,
        Echo::start(&pairs.servers[1])?,
    ];
    for to in ends(&pairs.servers[0], ECHO) {
        pairs.lead(0)?;
        let mut flow = Udp::connect(pairs.pod(), from_port(PORT, to), to)?;
        flow.socket
            .set_read_timeout(Some(Duration::from_millis(300)))?;
        let seen = wait_some(SOON, "the first answer", || flow.ask().ok())?;
        ensure!(seen.ip() == pairs.net(0, to.ip())?.addr(), "seen as {seen}");
        pairs.lead(1)?;
        let seen = wait_some(SOON, "an answer after the failover", || flow.ask().ok())?;
        ensure!(seen.ip() == pairs.net(1, to.ip())?.addr(), "seen as {seen}");
    }
    Ok(())
}

#[test]
fn datagrams_leave_with_the_address_of_the_uplink_that_they_move_to() -> Result<()> {
    both(Control::Holds, datagrams)
}

/// Continuous pings across a failover.
fn pings(subject: Subject) -> Result<()> {
    let pairs = Pairs::start(subject)?;
    for to in ends(&pairs.servers[0], 0) {
        pairs.lead(0)?;
        let to = to.ip().to_string();
        let ping = pairs.pod().spawn(&["ping", "-i", "0.2", &to])?;
        let answers = || ping.stdout().matches("bytes from").count();
        wait_for(SOON, "answers to pings", || answers() > 3)?;
        pairs.lead(1)?;
        let before = answers();
        wait_for(SOON, "answers after the failover", || {
            answers() > before + 3
        })?;
    }
    Ok(())
}

#[test]
fn a_ping_goes_on_by_the_uplink_that_it_moves_to() -> Result<()> {
    both(Control::Holds, pings)
}

/// A client closes, the route moves, and the client connects again from the same port.
fn connections(subject: Subject) -> Result<()> {
    let pairs = Pairs::start(subject)?;
    let _echoes = [
        Echo::start(&pairs.servers[0])?,
        Echo::start(&pairs.servers[1])?,
    ];
    for to in ends(&pairs.servers[0], ECHO) {
        pairs.lead(0)?;
        let first = tcp_stream(pairs.pod(), from_port(PORT, to), to)?;
        // Avoids TIME-WAIT in the pod.
        socket2::SockRef::from(&first).set_linger(Some(Duration::ZERO))?;
        pairs.lead(1)?;
        drop(first);
        let mut again = wait_some(SOON, "the second connection", || {
            crate::common::clients::Tcp::connect(pairs.pod(), from_port(PORT, to), to).ok()
        })?;
        let seen = again.ask()?;
        ensure!(seen.ip() == pairs.net(1, to.ip())?.addr(), "seen as {seen}");
    }
    Ok(())
}

#[test]
fn a_client_that_connects_again_gets_the_address_of_the_new_uplink() -> Result<()> {
    both(Control::Holds, connections)
}

/// The uplink's address is removed and comes back, and the server sends first, meanwhile and after
/// it.
#[test]
fn connections_outlive_an_address_that_comes_back() -> Result<()> {
    let pairs = Pairs::start(Subject::Netdp)?;
    for to in ends(&pairs.servers[0], 8080) {
        let mut pair = Pair::between(pairs.pod(), &pairs.servers[0], to)?;
        pair.goes_on()?;
        let own = pairs.net(0, to.ip())?;
        let node = &pairs.bed.node;
        node.ip(&format!("address delete {own} dev eth0"))?;
        pairs.wait_known(own.addr(), false)?;
        pair.server.write_all(b"meanwhile")?;
        let nodad = if to.is_ipv6() { "nodad" } else { "" };
        node.ip(&format!("address add {own} dev eth0 {nodad}"))?;
        pairs.lead(0)?;
        let mut heard = [0; 9];
        pair.client
            .read_exact(&mut heard)
            .context("what the server sent meanwhile")?;
        ensure!(&heard == b"meanwhile", "{heard:?}");
        pair.goes_on()?;
    }
    Ok(())
}

/// If the address does not come back, its connections end: a new one gets another address.
#[test]
fn an_address_that_does_not_come_back_takes_its_connections_along() -> Result<()> {
    let pairs = Pairs::start(Subject::Netdp)?;
    let _echo = Echo::start(&pairs.servers[0])?;
    let node = &pairs.bed.node;
    let to = ends(&pairs.servers[0], ECHO)[0];
    let mut flow = Udp::connect(pairs.pod(), any(to), to)?;
    flow.socket
        .set_read_timeout(Some(Duration::from_millis(300)))?;
    flow.ask()?;
    let mut pair = Pair::between(pairs.pod(), &pairs.servers[0], (to.ip(), 8080).into())?;
    pair.goes_on()?;
    node.ip("address add 10.1.0.11/16 dev eth0")?;
    node.sysctl("net.ipv4.conf.eth0.promote_secondaries", "1")?;
    node.ip("address delete 10.1.0.10/16 dev eth0")?;
    pairs.lead(0)?;
    let wanted: IpAddr = [10, 1, 0, 11].into();
    let mut seen = None;
    wait_for(SOON, "the other address", || {
        seen = flow.ask().ok();
        seen.is_some_and(|seen: SocketAddr| seen.ip() == wanted)
    })
    .with_context(|| format!("seen as {seen:?}"))?;
    // A connection stalls while its address may come back; then its server resets it.
    wait_for(SOON, "the connection to be reset", || {
        let sent = pair.client.write_all(b"anyone?");
        sent.is_err_and(|error| error.kind() == ErrorKind::ConnectionReset)
    })?;
    Ok(())
}
