//! Events on the agent, the node and the uplink that must not end live mappings. Ports are random
//! here: a mapping that was lost and created again would show by its new port.

use crate::common::clients::{Tcp, Udp, any, tcp_source};
use crate::common::wire::Capture;
use crate::common::{Echo, POLICY, SOON, World, clock, echoes, nft, start_agent, status};
use anyhow::{Context as _, Result, bail, ensure};
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;
use testbed::{Agent, Bed, ConfigVolume, Host, Netns, Pings, last_host, wait_for, wait_some};

/// Longer than the interval between two sweeps.
const SWEEP: Duration = Duration::from_secs(60);

const RANDOM: [&str; 3] = ["--enable-ipv6", "--port-mode", "random"];

/// A client that stays open, and the source that its server saw first.
struct Flow {
    client: Client,
    to: SocketAddr,
    seen: SocketAddr,
}

enum Client {
    Tcp(Tcp),
    Udp(Udp),
}

impl Client {
    fn ask(&mut self) -> Result<SocketAddr> {
        match self {
            Self::Tcp(tcp) => tcp.ask(),
            Self::Udp(udp) => udp.ask(),
        }
    }
}

impl Flow {
    fn new(mut client: Client, to: SocketAddr) -> Result<Self> {
        let seen = client.ask()?;
        Ok(Self { client, to, seen })
    }
}

/// Opens TCP and UDP flows to each echo server of the host.
fn open(pod: &Host, host: &Host) -> Result<Vec<Flow>> {
    let mut flows = Vec::new();
    for to in echoes(host) {
        let tcp = Tcp::connect(pod, any(to), to)?;
        flows.push(Flow::new(Client::Tcp(tcp), to)?);
        let udp = Udp::connect(pod, any(to), to)?;
        flows.push(Flow::new(Client::Udp(udp), to)?);
    }
    Ok(flows)
}

/// Checks that every flow continues with its mapping.
fn resume(flows: &mut [Flow], after: &str) -> Result<()> {
    for Flow { client, to, seen } in flows {
        let now = client
            .ask()
            .with_context(|| format!("the flow to {to}, after {after}"))?;
        ensure!(now == *seen, "{after}: {to} saw {seen}, now {now}");
    }
    Ok(())
}

/// Returns the number of flows whose mapping exists.
fn living(agent: &Agent, flows: &[Flow]) -> Result<usize> {
    let listed = crate::common::flows(agent)?;
    let lives = |flow: &&Flow| {
        listed.iter().any(|f| {
            f["nat_address"] == flow.seen.ip().to_string()
                && f["nat_id"] == flow.seen.port()
                && f["destination"] == flow.to.ip().to_string()
        })
    };
    Ok(flows.iter().filter(lives).count())
}

/// Starts a continuous ping from the pod to each address of the host.
fn pings(pod: &Host, host: &Host) -> Result<Pings> {
    let mut pings = Pings::default();
    for address in &host.addresses {
        pings.start(pod, address.addr(), "0.02")?;
    }
    Ok(pings)
}

/// Ends the pings; all must be answered.
fn check_pings(pings: Pings) -> Result<()> {
    for ping in pings.end()? {
        ensure!(ping.alive && ping.lost == 0, "{ping:?}");
    }
    Ok(())
}

fn wait_rules(agent: &Agent, prefix: &str, there: bool) -> Result<()> {
    wait_for(SOON, &format!("the rule {prefix} to be {there}"), || {
        status(agent).is_ok_and(|s| s.to_string().contains(&format!("\"{prefix}\"")) == there)
    })
}

/// Adds rules with conntrack states, as kube-proxy and others do.
fn judge_by_conntrack(node: &Netns) -> Result<()> {
    nft(
        node,
        "add table inet judge; \
         add chain inet judge forward { type filter hook forward priority 0; }; \
         add rule inet judge forward ct state invalid counter drop; \
         add rule inet judge forward ct state established,related,new accept",
    )
}

#[test]
fn flows_survive_agent_reload_address_and_conntrack() -> Result<()> {
    let mut world = World::with(POLICY, &RANDOM)?;
    let _echo = Echo::start(&world.far)?;
    judge_by_conntrack(&world.bed.node)?;
    let mut flows = open(world.pod(0), &world.far)?;
    let pings = pings(world.pod(0), &world.far)?;

    world.agent.restart()?;
    resume(&mut flows, "a crash of the agent")?;
    world.agent.stop()?;
    resume(&mut flows, "the end of the agent")?;
    world.agent.restart()?;
    resume(&mut flows, "its new start")?;

    let bypassed = format!("{POLICY}- 10.2.0.0/24\n- fd00:2::/64\n");
    world.config.write(&bypassed)?;
    wait_rules(&world.agent, "fd00:2::/64", true)?;
    resume(&mut flows, "a policy that bypasses them")?;
    world.agent.restart()?;
    resume(&mut flows, "a restart under that policy")?;
    world.config.write(POLICY)?;
    wait_rules(&world.agent, "fd00:2::/64", false)?;
    resume(&mut flows, "the old policy")?;

    for address in ["10.1.0.77/16", "fd00:1::77/64"] {
        world.bed.node.address("eth0", address.parse()?)?;
    }
    resume(&mut flows, "an added address")?;
    world.bed.node.run(&["conntrack", "-F"])?;
    resume(&mut flows, "conntrack -F")?;
    check_pings(pings)?;
    ensure!(living(&world.agent, &flows)? == flows.len());
    Ok(())
}

#[test]
fn flows_survive_a_link_that_goes_down_and_a_new_name() -> Result<()> {
    let mut world = World::with(POLICY, &RANDOM)?;
    let _echo = Echo::start(&world.far)?;
    let node = world.bed.node.clone();
    let router = world.bed.uplinks[0].router.clone();
    node.sysctl("net.ipv6.conf.eth0.keep_addr_on_down", "1")?;
    let mut flows = open(world.pod(0), &world.far)?;

    router.ip("link set node down")?;
    wait_uplink(&world.agent, "\"up\":false")?;
    router.ip("link set node up")?;
    wait_uplink(&world.agent, "\"up\":true")?;
    resume(&mut flows, "the cable was out")?;

    node.ip("link set eth0 down")?;
    wait_uplink(&world.agent, "\"up\":false")?;
    node.ip("link set eth0 name wan0")?;
    node.ip("link set wan0 up")?;
    restore_routes(&world)?;
    wait_uplink(&world.agent, "\"up\":true")?;
    wait_uplink(&world.agent, "\"wan0\"")?;
    resume(&mut flows, "the link was down and got another name")?;
    for to in echoes(&world.far) {
        ensure!(tcp_source(world.pod(1), to)? == world.node_address(to.ip())?);
    }
    world.agent.restart()?;
    resume(&mut flows, "a restart under the new name")
}

fn restore_routes(world: &World) -> Result<()> {
    let node = &world.bed.node;
    for address in &world.bed.uplinks[0].addresses {
        let (family, via) = (family(address.addr()), last_host(*address).addr());
        wait_some(SOON, "the default route to be taken", || {
            node.ip(&format!("{family} route replace default via {via}"))
                .ok()
        })?;
    }
    Ok(())
}

const fn family(ip: IpAddr) -> &'static str {
    match ip {
        IpAddr::V4(_) => "-4",
        IpAddr::V6(_) => "-6",
    }
}

fn wait_uplink(agent: &Agent, words: &str) -> Result<()> {
    wait_for(SOON, &format!("an uplink with {words}"), || {
        status(agent).is_ok_and(|s| s["report"]["uplinks"].to_string().contains(words))
    })
}

/// A router temporarily reports that the server is unreachable.
#[test]
fn icmp_errors_end_nothing() -> Result<()> {
    let world = World::with(POLICY, &RANDOM)?;
    let _echo = Echo::start(&world.far)?;
    let router = &world.bed.uplinks[0].router;
    // A datagram is sent only once: its error must not be rate-limited.
    router.sysctl("net.ipv4.icmp_ratemask", "0")?;
    router.sysctl("net.ipv6.icmp.ratelimit", "0")?;
    for Flow { client, to, seen } in open(world.pod(0), &world.far)? {
        let (target, family) = (to.ip(), family(to.ip()));
        router.ip(&format!("{family} route add unreachable {target}"))?;
        let again = || router.ip(&format!("{family} route del unreachable {target}"));
        let now = match client {
            Client::Tcp(mut tcp) => std::thread::scope(|scope| {
                let asking = scope.spawn(move || tcp.ask());
                wait_error(&world.agent, || Ok(()))?;
                again()?;
                match asking.join() {
                    Ok(seen) => seen,
                    Err(_) => bail!("the client panicked"),
                }
            })?,
            Client::Udp(mut udp) => {
                wait_error(&world.agent, || {
                    udp.socket.send(b"lost")?;
                    Ok(())
                })?;
                again()?;
                // IPv4 reports the error to the socket with a delay.
                wait_some(SOON, "an answer again", || udp.ask().ok())?
            }
        };
        ensure!(now == seen, "{to} saw {seen}, now {now}");
    }
    Ok(())
}

/// Waits until one more ICMP error is translated.
fn wait_error(agent: &Agent, cause: impl FnOnce() -> Result<()>) -> Result<()> {
    let errors = || crate::common::packets(agent, "errors_translated");
    let before = errors()?;
    cause()?;
    wait_for(SOON, "an ICMP error", || {
        errors().is_ok_and(|now| now > before)
    })
}

/// Two servers; the policy later bypasses the first.
struct Reload {
    world: World,
    bypassed: Vec<Flow>,
    others: Vec<Flow>,
    _echoes: [Echo; 2],
}

impl Reload {
    fn start(mode: &str) -> Result<Self> {
        let world = World::with(POLICY, &[&RANDOM[..], &["--on-reload", mode]].concat())?;
        let other = world.bed.server(0, &["10.4.0.1/24", "fd00:4::1/64"])?;
        let echoes = [Echo::start(&world.far)?, Echo::start(&other)?];
        let bypassed = open(world.pod(0), &world.far)?;
        let others = open(world.pod(0), &other)?;
        let mut reload = Self {
            world,
            bypassed,
            others,
            _echoes: echoes,
        };
        let policy = format!("{POLICY}- 10.2.0.0/24\n- fd00:2::/64\n");
        reload.world.config.write(&policy)?;
        wait_rules(&reload.world.agent, "fd00:2::/64", true)?;
        Ok(reload)
    }

    /// Waits until exactly `count` of the first server's flows have a mapping.
    fn wait_living(&self, flows: &[Flow], count: usize) -> Result<()> {
        wait_for(SWEEP, &format!("{count} flows to live on"), || {
            living(&self.world.agent, flows).is_ok_and(|living| living == count)
        })
    }
}

#[test]
fn cutover_ends_what_the_policy_bypasses_and_nothing_else() -> Result<()> {
    let mut reload = Reload::start("cutover")?;
    reload.wait_living(&reload.bypassed, 0)?;
    reload.wait_living(&reload.others, reload.others.len())?;
    resume(&mut reload.others, "a reload that is not about them")
}

#[test]
fn drain_ends_bypassed_flows_once_they_are_idle() -> Result<()> {
    let mut reload = Reload::start("drain")?;
    let idle = reload.bypassed.split_off(2);
    resume(&mut reload.bypassed, "a reload that drains")?;
    clock::advance(&reload.world.agent, Duration::from_secs(20))?;
    resume(&mut reload.bypassed, "20 s")?;
    clock::advance(&reload.world.agent, Duration::from_secs(12))?;
    reload.wait_living(&idle, 0)?;
    resume(&mut reload.bypassed, "32 s")?;
    resume(&mut reload.others, "a reload that is not about them")
}

#[test]
fn an_address_takes_its_flows_with_it_and_no_others() -> Result<()> {
    let bed = Bed::builder()
        .uplink("eth0", &["10.1.0.10/16", "fd00:1::10/64"])
        .uplink("eth1", &["10.9.0.10/16", "fd00:9::10/64"])
        .pods(1, &["172.16.0.0/24", "fd00:172::/64"])
        .build()?;
    let first = bed.server(0, &["10.2.0.1/24", "fd00:2::1/64"])?;
    let second = bed.server(1, &["10.10.0.1/24", "fd00:10::1/64"])?;
    let _echoes = [Echo::start(&first)?, Echo::start(&second)?];
    let config = ConfigVolume::new("nonMasqueradeCIDRs: [172.16.0.0/24]\n")?;
    let uplinks = ["--uplink", "eth0", "--uplink", "eth1"];
    let agent = start_agent(&bed.node, &config, &[&RANDOM[..], &uplinks].concat())?;
    let (mut stays, goes) = (open(&bed.pods[0], &first)?, open(&bed.pods[0], &second)?);
    let wire = Capture::start(&bed.uplinks[1].router)?;

    for address in &bed.uplinks[1].addresses {
        bed.node.ip(&format!("addr del {address} dev eth1"))?;
    }
    wait_for(SOON, "the flows of the address to end", || {
        living(&agent, &goes).is_ok_and(|living| living == 0)
    })?;
    resume(&mut stays, "another uplink's address went")?;

    for (new, server) in ["10.9.0.11/16", "fd00:9::11/64"]
        .iter()
        .zip(&second.addresses)
    {
        let new: ipnet::IpNet = new.parse()?;
        bed.node.address("eth1", new)?;
        let via = last_host(new).addr();
        bed.node
            .ip(&format!("route replace {} via {via}", server.trunc()))?;
        let to = SocketAddr::new(server.addr(), crate::common::ECHO);
        let seen = wait_some(SOON, "a connection by the new address", || {
            tcp_source(&bed.pods[0], to).ok()
        })?;
        ensure!(seen == new.addr(), "seen as {seen}, not {new}");
    }
    resume(&mut stays, "another uplink got an address")?;
    for packet in wire.packets()? {
        let pods = bed.pods[0].addresses.iter();
        let leaked = pods.clone().any(|pod| pod.addr() == packet.source);
        ensure!(!leaked, "a pod's packet left: {packet:?}");
    }
    Ok(())
}

#[test]
fn a_preferred_source_is_used_while_it_is_there() -> Result<()> {
    let world = World::with(POLICY, &RANDOM)?;
    let node = &world.bed.node;
    let special = world.bed.server(0, &["10.4.0.1/24", "fd00:4::1/64"])?;
    let _echoes = [Echo::start(&world.far)?, Echo::start(&special)?];
    let mut stays = open(world.pod(0), &world.far)?;
    let preferred = ["10.1.0.77/16", "fd00:1::77/64"];
    for ((source, uplink), server) in preferred
        .iter()
        .zip(&world.bed.uplinks[0].addresses)
        .zip(&special.addresses)
    {
        let source: ipnet::IpNet = source.parse()?;
        node.address("eth0", source)?;
        let (to, via) = (server.trunc(), last_host(*uplink).addr());
        node.ip(&format!("route add {to} via {via} src {}", source.addr()))?;
        wait_for(SOON, "the address to be known", || {
            let to = SocketAddr::new(server.addr(), crate::common::ECHO);
            tcp_source(world.pod(0), to).is_ok_and(|seen| seen == source.addr())
        })?;
    }
    resume(&mut stays, "addresses were added")?;
    let goes = open(world.pod(0), &special)?;
    for (flow, source) in goes.iter().zip(preferred.iter().flat_map(|p| [p, p])) {
        ensure!(
            source.starts_with(&format!("{}/", flow.seen.ip())),
            "{}",
            flow.seen
        );
    }
    for address in preferred {
        node.ip(&format!("addr del {address} dev eth0"))?;
    }
    wait_for(SOON, "the flows of the address to end", || {
        living(&world.agent, &goes).is_ok_and(|living| living == 0)
    })?;
    resume(&mut stays, "another address went")?;
    for to in echoes(&special) {
        ensure!(tcp_source(world.pod(0), to)? == world.node_address(to.ip())?);
    }
    Ok(())
}
