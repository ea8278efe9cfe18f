//! A node with one uplink and no wire: 192.0.2.10 and fd00::10.

use crate::build::{Build, Kind};
pub use crate::test_run::Seen;
use crate::test_run::{CHECKSUM_COMPLETE, On, kernel_keeps_complete_checksums, test_run};
use aya::maps::{Array, HashMap, Map, MapData};
use ipnet::IpNet;
use netdp_common::flow::{Timeouts, ticks};
use netdp_common::layout::{Action, Counters, Mapping, Settings, Tuple, pins, proto};
use netdp_user::datapath::{
    self, Datapath, FlowRecord, Hook, Mechanism, NoLeak, OnReload, PortMode, Setup, SweepRules,
    SweepStats, Sweeper,
};
use netdp_user::reconcile::{Change, PolicyRule};
use netdp_user::uplinks::{LinkLayer, Uplink};
use nix::sched::{CloneFlags, unshare};
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use tempfile::TempDir;

pub const V4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 10);
pub const V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0x10);

pub struct Node {
    dir: TempDir,
    pub setup: Setup,
    /// `None` while no agent runs.
    datapath: Option<Datapath>,
}

fn uplink(v4: Option<Ipv4Addr>, v6: Option<Ipv6Addr>, untagged: bool) -> Uplink {
    Uplink {
        ifindex: 1,
        name: "lo".into(),
        link_layer: LinkLayer::Ethernet,
        v4,
        v6,
        up: true,
        untagged,
        only_v4: false,
        only_v6: false,
    }
}

impl Node {
    pub fn new() -> Self {
        Self::with(|_| {})
    }

    /// Returns a node that masquerades everything, with a changed setup.
    pub fn with(change: impl FnOnce(&mut Setup)) -> Self {
        assert!(
            nix::unistd::geteuid().is_root(),
            "this test loads eBPF programs, mounts a bpffs and makes a network namespace: run it as root"
        );
        unshare(CloneFlags::CLONE_NEWNET)
            .expect("this test makes a network namespace: it needs CAP_SYS_ADMIN");
        let mut setup = Setup {
            enable_ipv6: true,
            max_flows: 1_000,
            to_ports: Vec::new(),
            port_mode: PortMode::Keep,
            udp_endpoints: false,
            no_leak: NoLeak::Drop,
            on_reload: OnReload::Sticky,
            hairpin: false,
            log_ends: false,
            pod_flows: u32::MAX,
            pod_new_flows: 0,
            secret: [1, 2],
            reserved_ports: BTreeSet::new(),
            mechanism: Mechanism::Auto,
        };
        change(&mut setup);
        let mut node = Self {
            dir: tempfile::tempdir().expect("a temporary directory"),
            setup,
            datapath: None,
        };
        node.start().expect("loading the datapath");
        node.uplink(Some(V4), Some(V6));
        node.apply(&Change::AddLocal(V4.into()));
        node.apply(&Change::AddLocal(V6.into()));
        node.policy(&[]);
        node
    }

    pub fn bpffs(&self) -> PathBuf {
        self.dir.path().join("bpffs")
    }

    /// Starts the agent's part of the datapath on the pinned objects.
    pub fn start(&mut self) -> anyhow::Result<()> {
        self.datapath = Some(Datapath::load(&self.bpffs(), &self.setup)?);
        Ok(())
    }

    /// Drops the agent's part; pins stay.
    pub fn stop(&mut self) {
        self.datapath = None;
    }

    pub fn datapath(&mut self) -> &mut Datapath {
        self.datapath.as_mut().expect("a started datapath")
    }

    pub fn apply(&mut self, change: &Change) {
        self.datapath().apply(change).expect("a change");
    }

    /// Makes the loopback device an uplink. In test runs packets are on it, as it is the only
    /// interface of the namespace.
    pub fn uplink(&mut self, v4: Option<Ipv4Addr>, v6: Option<Ipv6Addr>) {
        self.set_uplink(v4, v6, false);
    }

    /// Makes it an uplink below a VLAN device that is also one.
    pub fn uplink_below_a_vlan(&mut self) {
        self.set_uplink(Some(V4), Some(V6), true);
    }

    fn set_uplink(&mut self, v4: Option<Ipv4Addr>, v6: Option<Ipv6Addr>, untagged: bool) {
        self.apply(&Change::SetUplink(uplink(v4, v6, untagged)));
    }

    /// Says in which families, IPv4 and IPv6, the uplink's address is the only source there.
    pub fn set_only_sources(&mut self, [only_v4, only_v6]: [bool; 2]) {
        self.apply(&Change::SetUplink(Uplink {
            only_v4,
            only_v6,
            ..uplink(Some(V4), Some(V6), false)
        }));
    }

    /// Detaches the programs from the uplink.
    pub fn detach(&mut self) {
        self.apply(&Change::Detach {
            ifindex: 1,
            name: "lo".into(),
        });
        self.uplink(Some(V4), Some(V6));
    }

    /// Attaches the programs to the uplink.
    pub fn attach(&mut self) {
        self.apply(&Change::Attach(uplink(Some(V4), Some(V6), false)));
    }

    /// Bypasses these prefixes and masquerades everything else.
    pub fn policy(&mut self, bypass: &[&str]) {
        let rule = |prefix: &&str| PolicyRule {
            prefix: prefix.parse::<IpNet>().expect("a prefix"),
            action: Action::Bypass,
        };
        let rules = bypass.iter().map(rule).collect();
        self.apply(&Change::SetPolicy(rules));
    }

    /// Sets the clock to `seconds` after the start of the test.
    pub fn at(&mut self, seconds: u64) {
        let offset = u32::try_from(ticks(seconds)).expect("a time within the clock");
        self.datapath().set_clock_offset(offset).expect("settings");
    }

    pub fn local() -> BTreeSet<IpAddr> {
        [V4.into(), V6.into()].into()
    }

    /// Runs a sweep while the node has these addresses.
    pub fn sweep(&mut self, local: &BTreeSet<IpAddr>) -> SweepStats {
        let mut sweeper = self.sweeper();
        let swept = sweeper.run_full(&Self::rules(local)).expect("a sweep");
        self.datapath()
            .enable_bypass_cache(&swept)
            .expect("settings");
        swept
    }

    pub fn sweeper(&self) -> Sweeper {
        Sweeper::open(&self.bpffs()).expect("the pinned maps")
    }

    /// Returns the default timeouts, for a node with these addresses.
    pub fn rules(local: &BTreeSet<IpAddr>) -> SweepRules {
        SweepRules {
            timeouts: Timeouts::default(),
            local: local.clone(),
            retire_after: None,
            stop: Arc::default(),
            local_addrs_stale: Arc::default(),
        }
    }

    pub fn counters(&mut self) -> Counters {
        self.datapath().maps().counters().expect("the counters")
    }

    pub fn flows(&mut self) -> Vec<FlowRecord> {
        self.datapath().maps().flows().expect("the flows")
    }

    /// Removes the mapping of `packet` with the external endpoint `wire`.
    pub fn forget(&self, packet: &Build, wire: &str) {
        self.lose_reply_half(packet, wire);
        let mut snat = self.mappings(pins::SNAT);
        snat.remove(&tuple_of(packet)).expect("an original half");
    }

    /// Removes the rev-SNAT half of that mapping.
    pub fn lose_reply_half(&self, packet: &Build, wire: &str) {
        let mut rev_snat = self.mappings(pins::REV_SNAT);
        let key = tuple_of(&packet.from(wire)).reversed();
        rev_snat.remove(&key).expect("a reply half");
    }

    /// Returns all halves of mappings: SNAT, rev-SNAT.
    pub fn halves(&self) -> [Vec<(Tuple, Mapping)>; 2] {
        [pins::SNAT, pins::REV_SNAT].map(|pin| {
            let map = self.mappings(pin);
            let entries = map.iter().map(|entry| entry.expect("an entry"));
            entries.collect()
        })
    }

    fn mappings(&self, pin: &str) -> HashMap<MapData, Tuple, Mapping> {
        let map = MapData::from_pin(self.bpffs().join(pin)).expect("a pinned map");
        Map::HashMap(map).try_into().expect("a map of mappings")
    }

    /// Writes the settings map behind the datapath's back.
    pub fn write_settings(&self, settings: &Settings) {
        let map = MapData::from_pin(self.bpffs().join(pins::SETTINGS)).expect("a pinned map");
        let mut map: Array<_, Settings> = Map::Array(map).try_into().expect("the settings");
        map.set(0, settings, 0).expect("writing the settings");
    }

    /// Runs the packet through the egress program.
    pub fn out(&mut self, packet: &Build) -> Seen {
        self.run(Hook::Egress, &frame(packet))
    }

    /// Runs the packet through the ingress program.
    pub fn back(&mut self, packet: &Build) -> Seen {
        self.run(Hook::Ingress, &frame(packet))
    }

    /// Runs a hook's program on a frame twice: without a checksum from the device, and at TC
    /// ingress with one over the whole packet (`CHECKSUM_COMPLETE`), which the kernel then compares
    /// with the resulting packet. Egress packets have been forwarded, which invalidates such a
    /// checksum.
    pub fn run(&mut self, hook: Hook, frame: &[u8]) -> Seen {
        let on = self.interfaces(hook, frame, 1);
        let program = self.datapath().program(hook).expect("the program");
        let first = test_run(program, frame, 0, on);
        if hook == Hook::Egress || !kernel_keeps_complete_checksums() {
            assert_eq!(first, test_run(program, frame, 0, on), "{frame:02x?}");
            return first;
        }
        let again = test_run(program, frame, CHECKSUM_COMPLETE, on);
        assert_eq!(first, again, "with a complete checksum: {frame:02x?}");
        first
    }

    /// Runs a hook's program on a frame once.
    pub fn run_once(&mut self, hook: Hook, frame: &[u8]) -> Seen {
        self.run_on(hook, frame, 1)
    }

    /// Runs a hook's program on a frame as if on an interface other than the loopback device.
    pub fn run_on(&mut self, hook: Hook, frame: &[u8], ifindex: u32) -> Seen {
        let on = self.interfaces(hook, frame, ifindex);
        self.run_from(hook, frame, on)
    }

    /// Runs a hook's program on a frame on these interfaces.
    pub fn run_from(&mut self, hook: Hook, frame: &[u8], on: On) -> Seen {
        let program = self.datapath().program(hook).expect("the program");
        test_run(program, frame, 0, on)
    }

    /// Returns the interfaces of a frame: what leaves with another address than the node's came by
    /// the loopback device, and the rest begins or arrives here.
    fn interfaces(&mut self, hook: Hook, frame: &[u8], ifindex: u32) -> On {
        let source = match frame.get(12..14) {
            Some([0x08, 0x00]) => frame.get(26..30).map(|ip| {
                let ip: [u8; 4] = ip.try_into().expect("four bytes");
                IpAddr::from(ip)
            }),
            Some([0x86, 0xdd]) => frame.get(22..38).map(|ip| {
                let ip: [u8; 16] = ip.try_into().expect("16 bytes");
                IpAddr::from(ip)
            }),
            _ => None,
        };
        let forwarded = hook == Hook::Egress
            && source.is_some_and(|source| !self.local_addresses().contains(&source));
        On {
            ifindex,
            came_by: forwarded.into(),
        }
    }

    /// Creates another uplink with these addresses and returns its interface index.
    pub fn second_uplink(&mut self, v4: Ipv4Addr, v6: Ipv6Addr) -> u32 {
        self.another_uplink("up1", v4, v6)
    }

    /// Creates an uplink with this name.
    pub fn another_uplink(&mut self, name: &str, v4: Ipv4Addr, v6: Ipv6Addr) -> u32 {
        let far = format!("{name}far");
        ip(&["link", "add", name, "type", "veth", "peer", "name", &far]);
        let ifindex = nix::net::if_::if_nametoindex(name).expect("the veth");
        let mut second = uplink(Some(v4), Some(v6), false);
        (second.ifindex, second.name) = (ifindex, name.into());
        self.apply(&Change::SetUplink(second));
        self.apply(&Change::AddLocal(v4.into()));
        self.apply(&Change::AddLocal(v6.into()));
        ifindex
    }

    /// Returns the addresses that the programs consider the node's.
    pub fn local_addresses(&mut self) -> BTreeSet<IpAddr> {
        let local = self.datapath().maps().local_addresses();
        local.expect("the addresses")
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.datapath = None;
        let gone = datapath::detach(&self.bpffs());
        if !std::thread::panicking() {
            gone.expect("removing the pins and the bpffs");
        }
    }
}

/// Returns the tuple of a TCP or UDP packet.
pub fn tuple_of(packet: &Build) -> Tuple {
    let protocol = match packet.kind {
        Kind::Tcp { .. } => proto::TCP,
        _ => proto::UDP,
    };
    Tuple::new(
        packet.src.ip().into(),
        packet.dst.ip().into(),
        packet.src.port(),
        packet.dst.port(),
        protocol,
    )
}

/// Returns the packet behind an Ethernet header.
pub fn frame(packet: &Build) -> Vec<u8> {
    let mut out = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    out.extend(packet.ethertype().to_be_bytes());
    out.extend(packet.bytes());
    out
}

/// Returns the verdict "next program, with `packet`", all of its checksums right.
pub fn becomes(packet: &Build) -> Seen {
    Seen::Next(frame(packet))
}

/// Adds these addresses to the namespace's loopback.
pub fn addresses(addrs: &[&str]) {
    ip(&["link", "set", "lo", "up"]);
    for addr in addrs {
        // IPv6 performs duplicate address detection even here, and no socket can bind to the
        // address meanwhile.
        let dad = addr.contains(':').then_some("nodad");
        let add: Vec<_> = ["addr", "add", addr, "dev", "lo"]
            .into_iter()
            .chain(dad)
            .collect();
        ip(&add);
    }
}

/// Runs `ip` in the test's network namespace.
pub fn ip(args: &[&str]) {
    let status = Command::new("ip").args(args).status();
    let status = status.expect("this test needs ip (Debian package iproute2)");
    assert!(status.success(), "ip {args:?}");
}
