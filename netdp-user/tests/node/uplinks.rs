//! Links, addresses and routes change while the agent runs.

use crate::common::clients::{Tcp, any, tcp_source, udp_source};
use crate::common::wire::Capture;
use crate::common::{
    ECHO, Echo, OURS, POLICY, POLICY_V4, SOON, World, echoes, options, start_agent, status,
    tcx_programs, wait_log, wait_tcx,
};
use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use std::net::{IpAddr, SocketAddr};
use testbed::{Agent, Bed, ConfigVolume, Host, Pings, last_host, wait_for, wait_some};

/// Waits until the status of an uplink satisfies `wanted`.
fn wait_uplink(agent: &Agent, name: &str, wanted: impl Fn(&Value) -> bool) -> Result<()> {
    let mut seen = Value::Null;
    wait_for(SOON, &format!("the uplink {name} to be as wanted"), || {
        seen = status(agent).map_or(Value::Null, |s| s["report"]["uplinks"].clone());
        let mut uplinks = seen.as_array().into_iter().flatten();
        uplinks.any(|uplink| uplink["name"] == name && wanted(uplink))
    })
    .with_context(|| format!("the uplinks are {seen:#}"))
}

/// Waits until new connections are seen with this source.
fn wait_source(pod: &Host, to: SocketAddr, source: IpAddr) -> Result<()> {
    let what = format!("connections to {to} to come from {source}");
    wait_for(SOON, &what, || {
        tcp_source(pod, to).is_ok_and(|seen| seen == source)
    })
}

/// A pattern that matches no interface is waited for too, but with a hint at the likely mistake.
#[test]
fn patterns_of_others_get_a_hint() -> Result<()> {
    let bed = Bed::dual_stack()?;
    let config = ConfigVolume::new(POLICY_V4)?;
    let flags = ["--uplink", "eth+", "--hairpin-interface", "CNI0"];
    let agent = Agent::spawn(&bed.node, options(&config, &flags))?;
    for (pattern, hint) in [
        (
            "--uplink eth+",
            "use * instead of iptables' +: write eth*, which matches eth0",
        ),
        (
            "--hairpin-interface CNI0",
            "letter case matters: there is cni0",
        ),
    ] {
        let line = format!("no interface matches {pattern} yet: waiting for it; {hint}");
        wait_log(&agent, &line)?;
        let shown = format!("hint       {pattern}: {hint}");
        wait_for(SOON, "the status to say so", || {
            agent
                .netdp(&["status"])
                .is_ok_and(|told| told.contains(&shown))
        })?;
    }
    // An interface that appears later is used all the same.
    bed.node.ip("link set eth0 down")?;
    bed.node.ip("link set eth0 name eth+")?;
    wait_tcx(&bed.node, "eth+", &[&OURS[..1], &OURS[1..]]).with_context(|| agent.log())?;
    wait_for(SOON, "the hint to be gone", || {
        let told = agent.netdp(&["status"]);
        told.is_ok_and(|told| !told.contains("hint       --uplink"))
    })
}

#[test]
fn an_uplink_that_does_not_exist_yet_is_waited_for() -> Result<()> {
    let bed = Bed::dual_stack()?;
    let far = bed.server(0, &["10.2.0.1/24"])?;
    let _echo = Echo::start(&far)?;
    let to = SocketAddr::new(far.v4()?.into(), ECHO);
    let config = ConfigVolume::new(POLICY_V4)?;
    let mut agent = Agent::spawn(&bed.node, options(&config, &["--uplink", "wan?"]))?;
    wait_log(
        &agent,
        "no interface matches --uplink wan? yet: waiting for it",
    )?;
    wait_for(SOON, "the status to say so", || {
        status(&agent).is_ok_and(|s| s["report"]["waiting_for"][0] == "wan?")
    })?;
    let told = agent.netdp(&["status"])?;
    ensure!(
        told.contains("waiting    for an interface that matches wan?"),
        "{told}"
    );
    ensure!(
        !agent.state_dir().with_file_name("ready").exists(),
        "ready with nothing attached"
    );
    assert_eq!(
        tcx_programs(&bed.node, "eth0")?,
        [vec![], Vec::<String>::new()]
    );

    let router = &bed.uplinks[0].router;
    router.plug("lan", "wan", &bed.node, "wan0")?;
    bed.node.address("wan0", "10.1.0.11/16".parse()?)?;
    let via = last_host("10.1.0.11/16".parse()?).addr();
    bed.node
        .ip(&format!("route replace 10.2.0.0/24 via {via} dev wan0"))?;
    agent.wait_ready(SOON)?;
    wait_source(&bed.pods[0], to, [10, 1, 0, 11].into())?;
    assert_eq!(
        status(&agent)?["report"]["waiting_for"],
        Value::Array(vec![])
    );
    Ok(())
}

#[test]
fn without_a_default_route_the_agent_waits_and_says_so() -> Result<()> {
    let bed = Bed::dual_stack()?;
    let config = ConfigVolume::new(POLICY_V4)?;
    bed.node.ip("route del default")?;
    let mut agent = Agent::spawn(&bed.node, options(&config, &[]))?;
    wait_log(&agent, "no uplink: no interface has an IPv4 default route")?;
    wait_for(SOON, "the status to say so", || {
        agent
            .netdp(&["status"])
            .is_ok_and(|told| told.contains("no interface has"))
    })?;
    bed.node.ip("route add default via 10.1.255.254")?;
    agent.wait_ready(SOON)?;
    let told = agent.netdp(&["status"])?;
    ensure!(!told.contains("waiting"), "{told}");
    Ok(())
}

#[test]
fn an_uplink_may_be_deleted_and_made_again() -> Result<()> {
    let world = World::start()?;
    let _echo = Echo::start(&world.far)?;
    let (node, uplink) = (&world.bed.node, &world.bed.uplinks[0]);
    let mut open = Vec::new();
    for to in echoes(&world.far) {
        let mut client = Tcp::connect(world.pod(0), any(to), to)?;
        let source = client.ask()?;
        open.push((client, source));
    }
    let first = status(&world.agent)?["report"]["uplinks"][0]["ifindex"].clone();
    node.ip("link del eth0")?;
    wait_for(SOON, "the uplink to be gone", || {
        status(&world.agent).is_ok_and(|s| s["report"]["uplinks"] == Value::Array(vec![]))
    })?;

    uplink.router.plug("lan", "node", node, "eth0")?;
    // The new link has another MAC address.
    uplink.router.ip("neigh flush all")?;
    for address in &uplink.addresses {
        node.address("eth0", *address)?;
        let default = match address.addr() {
            IpAddr::V4(_) => "0.0.0.0/0",
            IpAddr::V6(_) => "::/0",
        };
        node.route(default.parse()?, last_host(*address).addr())?;
    }
    wait_uplink(&world.agent, "eth0", |uplink| {
        uplink["ifindex"] != first && uplink["v4"] == "10.1.0.10" && uplink["v6"] == "fd00:1::10"
    })?;
    assert_eq!(
        tcx_programs(node, "eth0")?,
        OURS.map(|name| vec![name.to_owned()])
    );
    // Open connections continue.
    for (client, source) in &mut open {
        assert_eq!(client.ask()?, *source);
    }
    for to in echoes(&world.far) {
        let address = world.node_address(to.ip())?;
        assert_eq!(tcp_source(world.pod(1), to)?, address);
        assert_eq!(udp_source(world.pod(1), to)?, address);
    }
    Ok(())
}

/// A known uplink has its programs before a packet can leave by it, however it was selected.
#[test]
fn an_uplink_that_is_made_again_leaks_nothing_once_it_is_set_up() -> Result<()> {
    let world = World::start()?;
    let _echo = Echo::start(&world.far)?;
    let (node, uplink) = (&world.bed.node, &world.bed.uplinks[0]);
    let mut pings = Pings::default();
    for pod in &world.bed.pods {
        for net in &world.far.addresses {
            pings.start(pod, net.addr(), "0.005")?;
        }
    }
    for _ in 0..3 {
        node.ip("link del eth0")?;
        wait_for(SOON, "the uplink to be gone", || {
            status(&world.agent).is_ok_and(|s| s["report"]["uplinks"] == Value::Array(vec![]))
        })?;
        let wire = Capture::start(&uplink.router)?;
        uplink.router.plug("lan", "node", node, "eth0")?;
        uplink.router.ip("neigh flush all")?;
        // No address, no route: only the name identifies it.
        wait_for(SOON, "the programs to be attached", || {
            let ours = OURS.map(|name| vec![name.to_owned()]);
            tcx_programs(node, "eth0").is_ok_and(|programs| programs == ours)
        })?;
        for address in &uplink.addresses {
            node.address("eth0", *address)?;
            let default = match address.addr() {
                IpAddr::V4(_) => "0.0.0.0/0",
                IpAddr::V6(_) => "::/0",
            };
            node.route(default.parse()?, last_host(*address).addr())?;
        }
        for to in echoes(&world.far) {
            wait_source(world.pod(0), to, world.node_address(to.ip())?)?;
        }
        for packet in wire.packets()? {
            let pods = world.bed.pods.iter().flat_map(|pod| &pod.addresses);
            let mut pods = pods.map(ipnet::IpNet::addr);
            ensure!(!pods.any(|pod| pod == packet.source), "leaked {packet:?}");
        }
    }
    pings.end()?;
    Ok(())
}

/// Flows on an old address end when it is removed; new ones use the new address.
#[test]
fn new_flows_use_the_new_address() -> Result<()> {
    let world = World::start()?;
    let _echo = Echo::start(&world.far)?;
    let node = &world.bed.node;
    node.sysctl("net.ipv4.conf.eth0.promote_secondaries", "1")?;
    for (to, old, new) in [
        (echoes(&world.far)[0], "10.1.0.10/16", "10.1.0.11/16"),
        (echoes(&world.far)[1], "fd00:1::10/64", "fd00:1::11/64"),
    ] {
        let mut open = Tcp::connect(world.pod(0), any(to), to)?;
        assert_eq!(open.ask()?.ip(), world.node_address(to.ip())?);
        node.address("eth0", new.parse()?)?;
        // While both exist, no live flow may move.
        assert_eq!(open.ask()?.ip(), world.node_address(to.ip())?);
        node.ip(&format!("addr del {old} dev eth0"))?;
        let address = new.split('/').next().context("an address")?.parse()?;
        wait_source(world.pod(1), to, address)?;
        wait_for(SOON, "the mappings of the old address to end", || {
            crate::common::flows(&world.agent).is_ok_and(|flows| {
                let old = old.split('/').next().unwrap_or_default();
                flows.iter().all(|flow| flow["nat_address"] != old)
            })
        })?;
    }
    Ok(())
}

#[test]
fn the_default_route_may_move_to_another_interface() -> Result<()> {
    let bed = Bed::builder()
        .uplink("eth0", &["10.1.0.10/16"])
        .uplink("eth1", &["10.9.0.10/16"])
        .pods(2, &["172.16.0.0/24"])
        .build()?;
    let first = bed.server(0, &["10.2.0.1/24"])?;
    let second = bed.server(1, &["10.10.0.1/24"])?;
    let _echoes = [Echo::start(&first)?, Echo::start(&second)?];
    let config = ConfigVolume::new("nonMasqueradeCIDRs: [172.16.0.0/16]\n")?;
    // The node does not route anything masqueraded through it yet.
    bed.node.ip("route flush dev eth1")?;
    let agent = start_agent(&bed.node, &config, &[])?;
    let to_first = SocketAddr::new(first.v4()?.into(), ECHO);
    let to_second = SocketAddr::new(second.v4()?.into(), ECHO);
    bed.node
        .route("10.2.0.0/24".parse()?, "10.1.255.254".parse()?)?;
    let mut open = Tcp::connect(&bed.pods[0], any(to_first), to_first)?;
    let seen = open.ask()?;
    ensure!(
        tcx_programs(&bed.node, "eth1")?[1].is_empty(),
        "eth1 is no uplink yet"
    );

    bed.node.ip("route add 10.9.0.0/16 dev eth1")?;
    bed.node.ip("route replace default via 10.9.255.254")?;
    wait_uplink(&agent, "eth1", |uplink| uplink["v4"] == "10.9.0.10")?;
    wait_source(&bed.pods[0], to_second, [10, 9, 0, 10].into())?;
    assert_eq!(open.ask()?, seen, "flows by the first uplink go on");
    assert_eq!(
        tcp_source(&bed.pods[1], to_first)?,
        IpAddr::from([10, 1, 0, 10])
    );
    Ok(())
}

/// A default route that is temporarily absent (a DHCP client at work) does not end the role of an
/// uplink, however many resyncs there are.
#[test]
fn an_uplink_stays_one_without_its_default_route() -> Result<()> {
    let policy = format!("{POLICY}resyncInterval: 100ms\n");
    let world = World::with(&policy, &["--enable-ipv6", "--log-level", "debug"])?;
    let _echo = Echo::start(&world.far)?;
    let node = &world.bed.node;
    let to = SocketAddr::new(world.far.v4()?.into(), ECHO);
    node.route("10.2.0.0/24".parse()?, "10.1.255.254".parse()?)?;
    for family in ["-4", "-6"] {
        node.ip(&format!("{family} route del default"))?;
    }
    let resyncs = || world.agent.log().matches("reattaching: SetUplink").count();
    let before = resyncs();
    wait_for(SOON, "some resyncs", || resyncs() > before + 5)?;
    assert_eq!(
        status(&world.agent)?["report"]["uplinks"][0]["name"],
        "eth0"
    );
    assert_eq!(tcp_source(world.pod(0), to)?, world.node_address(to.ip())?);
    // It is still maintained.
    node.address("eth0", "10.1.0.11/16".parse()?)?;
    node.sysctl("net.ipv4.conf.eth0.promote_secondaries", "1")?;
    node.ip("addr del 10.1.0.10/16 dev eth0")?;
    node.ip("route replace 10.2.0.0/24 via 10.1.255.254")?;
    wait_source(world.pod(1), to, [10, 1, 0, 11].into())
}

#[test]
fn flows_outlive_a_link_that_goes_down_and_up() -> Result<()> {
    let world = World::start()?;
    let _echo = Echo::start(&world.far)?;
    let (node, router) = (&world.bed.node, &world.bed.uplinks[0].router);
    // Otherwise a link that is set down loses its IPv6 addresses.
    node.sysctl("net.ipv6.conf.eth0.keep_addr_on_down", "1")?;
    let mut open = Vec::new();
    for to in echoes(&world.far) {
        let mut client = Tcp::connect(world.pod(0), any(to), to)?;
        let source = client.ask()?;
        open.push((client, source));
    }
    // First the carrier, then the interface.
    router.ip("link set node down")?;
    wait_uplink(&world.agent, "eth0", |uplink| uplink["up"] == false)?;
    router.ip("link set node up")?;
    wait_uplink(&world.agent, "eth0", |uplink| uplink["up"] == true)?;
    for (client, source) in &mut open {
        assert_eq!(client.ask()?, *source);
    }
    node.ip("link set eth0 down")?;
    wait_uplink(&world.agent, "eth0", |uplink| uplink["up"] == false)?;
    node.ip("link set eth0 up")?;
    node.ip("-4 route add default via 10.1.255.254")?;
    wait_some(SOON, "IPv6 to route again", || {
        node.ip("-6 route replace default via fd00:1::fffe dev eth0")
            .ok()
    })?;
    wait_uplink(&world.agent, "eth0", |uplink| uplink["up"] == true)?;
    for (client, source) in &mut open {
        assert_eq!(client.ask()?, *source);
    }
    for to in echoes(&world.far) {
        assert_eq!(udp_source(world.pod(1), to)?, world.node_address(to.ip())?);
    }
    Ok(())
}
