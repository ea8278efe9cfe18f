//! Checks of the testbed itself: namespaces are connected, and are removed.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;
use testbed::{
    Bed, EchoClient, EchoServer, HttpServer, Netns, RedisServer, UdpEchoServer, WorkDir, sweep,
    udp_ask, veth,
};

const SOON: Duration = Duration::from_secs(30);

/// Returns an unused process id: that of a reaped child.
fn dead_pid() -> std::io::Result<u32> {
    let mut child = Command::new("true").spawn()?;
    child.wait()?;
    Ok(child.id())
}

#[test]
fn a_ping_crosses_a_wire_in_both_families() {
    let (a, b) = (Netns::new("a").unwrap(), Netns::new("b").unwrap());
    veth(&a, "eth0", &b, "eth0").unwrap();
    for (ns, v4, v6) in [
        (&a, "192.0.2.1/24", "fd00::1/64"),
        (&b, "192.0.2.2/24", "fd00::2/64"),
    ] {
        ns.address("eth0", v4.parse().unwrap()).unwrap();
        ns.address("eth0", v6.parse().unwrap()).unwrap();
    }
    for target in ["192.0.2.2", "fd00::2"] {
        a.run(&["ping", "-c1", "-W30", target]).unwrap();
    }
}

#[test]
fn dropping_removes_the_namespace_and_its_processes() {
    let ns = Netns::new("gone").unwrap();
    let (name, path) = (ns.name().to_owned(), ns.path());
    let mut sleeper = ns.command("sleep").arg("600").spawn().unwrap();
    assert!(path.exists());
    drop(ns);
    assert!(!path.exists(), "{name} is still there");
    assert!(!sleeper.wait().unwrap().success(), "it should be killed");
}

#[test]
fn a_sweep_takes_what_the_dead_left_and_nothing_else() {
    let living = Netns::new("living").unwrap();
    let dir = WorkDir::new("living").unwrap();
    let left = format!("netdp-{}-0-left", dead_pid().unwrap());
    let other = format!("other-{}-0-left", std::process::id());
    let left_dir = std::env::temp_dir().join(&left);
    fs::create_dir(&left_dir).unwrap();
    for name in [&left, &other] {
        let added = Command::new("ip").args(["netns", "add", name]).status();
        assert!(added.unwrap().success());
    }

    sweep();

    let exists = |name: &str| Path::new("/run/netns").join(name).exists();
    let other_stayed = exists(&other);
    Command::new("ip")
        .args(["netns", "delete", &other])
        .status()
        .unwrap();
    assert!(!exists(&left));
    assert!(!left_dir.exists());
    assert!(other_stayed, "a foreign namespace was removed");
    assert!(exists(living.name()));
    assert!(dir.path().exists());
}

#[test]
fn an_error_names_namespace_command_and_words() {
    let ns = Netns::new("error").unwrap();
    let error = format!("{:#}", ns.ip("link show nosuch").unwrap_err());
    for part in [ns.name(), "ip link show nosuch", "does not exist"] {
        assert!(error.contains(part), "no {part:?} in {error:?}");
    }
}

#[test]
fn sysctls_are_the_namespaces_own() {
    let (a, b) = (Netns::new("a").unwrap(), Netns::new("b").unwrap());
    a.forward().unwrap();
    let read = |ns: &Netns| {
        ns.enter(|| fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap())
            .unwrap()
    };
    assert_eq!((read(&a).trim(), read(&b).trim()), ("1", "0"));
}

/// Checks the source addresses that each kind of host sees without netdp, and that hosts without a
/// route to pods cannot answer.
#[test]
fn without_netdp_only_a_neighbour_answers_pods() {
    let bed = Bed::dual_stack().unwrap();
    let near = bed
        .neighbour(0, &["10.1.0.20/16", "fd00:1::20/64"])
        .unwrap();
    let far = bed.server(0, &["10.2.0.1/24", "fd00:2::1/64"]).unwrap();
    let stranger = bed.on_link(0, &["10.1.0.30/16"]).unwrap();
    let pod = &bed.pods[0];

    let http = HttpServer::start(&near, (near.v4().unwrap(), 80)).unwrap();
    let _http6 = HttpServer::start(&near, (near.v6().unwrap(), 80)).unwrap();
    let body = |url: &str| pod.run(&["curl", "-sf", "--max-time", "30", url]);
    assert_eq!(body("http://10.1.0.20/health").unwrap(), "172.16.0.2\n");
    assert_eq!(body("http://[fd00:1::20]/health").unwrap(), "fd00:172::2\n");
    assert_eq!(body("http://10.1.0.20/bytes/70000").unwrap().len(), 70000);
    assert!(body("http://10.1.0.20/nothing").is_err());
    assert_eq!(http.seen().len(), 3);

    // The node itself reaches every host.
    for target in ["10.2.0.1", "fd00:2::1", "10.1.0.30"] {
        bed.node.run(&["ping", "-c1", "-W30", target]).unwrap();
    }
    for (host, target) in [(&far, "10.2.0.1"), (&stranger, "10.1.0.30")] {
        assert!(
            pod.run(&["ping", "-c1", "-W1", target]).is_err(),
            "{} answered a pod",
            host.name()
        );
    }
    bed.pods[1]
        .run(&["ping", "-c1", "-W30", "172.16.0.2"])
        .unwrap();
}

#[test]
fn a_second_uplink_leads_to_its_own_servers() {
    let bed = Bed::builder()
        .uplink("eth0", &["10.1.0.10/16"])
        .uplink("eth1", &["10.9.0.10/16"])
        .pods(1, &["172.16.0.0/24"])
        .build()
        .unwrap();
    let far = bed.server(1, &["10.10.0.1/24"]).unwrap();
    let http = HttpServer::start(&far, (far.v4().unwrap(), 80)).unwrap();
    bed.node
        .run(&["curl", "-sf", "--max-time", "30", "http://10.10.0.1/health"])
        .unwrap();
    assert_eq!(http.seen(), [bed.uplinks[1].v4().unwrap()]);
}

#[test]
fn echo_servers_say_whom_they_see() {
    let bed = Bed::dual_stack().unwrap();
    let near = bed
        .neighbour(0, &["10.1.0.20/16", "fd00:1::20/64"])
        .unwrap();
    let (v4, v6) = (near.v4().unwrap(), near.v6().unwrap());
    let _tcp = EchoServer::start(&near, (v4, 7)).unwrap();
    let _udp = UdpEchoServer::start(&near, (v6, 7)).unwrap();
    let pod = &bed.pods[1];
    let mut client = EchoClient::connect(pod, (v4, 7), SOON).unwrap();
    let first = client.ask().unwrap();
    assert_eq!(first.ip(), pod.v4().unwrap());
    assert_eq!(client.ask().unwrap(), first);
    let seen = udp_ask(pod, 5353, (v6, 7), SOON).unwrap();
    assert_eq!(seen, (pod.v6().unwrap(), 5353).into());
}

#[test]
fn redis_runs_in_a_namespace() {
    let ns = Netns::new("redis").unwrap();
    let _redis = RedisServer::start(&ns, ([127, 0, 0, 1], 6379)).unwrap();
    let info = ns.run(&["redis-cli", "info", "server"]).unwrap();
    assert!(info.contains("redis_version"), "{info}");
}

#[test]
fn a_guard_keeps_the_words_and_kills() {
    let ns = Netns::new("guard").unwrap();
    let done = ns.spawn(&["sh", "-c", "echo out; echo err >&2"]).unwrap();
    assert_eq!(done.finish(SOON).unwrap(), "out\n");

    let bad = ns.spawn(&["sh", "-c", "echo why >&2; exit 3"]).unwrap();
    let error = format!("{:#}", bad.finish(SOON).unwrap_err());
    assert!(error.contains("why") && error.contains('3'), "{error}");

    let guard = ns.spawn(&["sleep", "600"]).unwrap();
    let proc = Path::new("/proc").join(guard.pid().to_string());
    assert!(proc.exists());
    drop(guard);
    assert!(!proc.exists());
}
