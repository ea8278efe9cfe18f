//! Compared variants, one line each.

use clap::ValueEnum;

/// Name of the program that does nothing, which [`Kind::Empty`] attaches.
pub const EMPTY_PROGRAM: &str = "bench_empty";

/// Treatment of pods' packets by a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Plain forwarding.
    Plain,
    /// Plain forwarding, with an empty TC program on both of netdp's hooks.
    Empty,
    /// The rules of ip-masq-agent, loaded with this program.
    MasqAgent(&'static [&'static str]),
    /// ip-masq-agent's policy as one nftables set.
    NftSet,
    /// netdp in ebpf mode.
    Netdp,
    /// netdp in iptables mode.
    NetdpIptables,
}

/// A column of the report.
#[derive(Debug, PartialEq, Eq)]
pub struct Variant {
    /// Name in `--variants` and in tables.
    pub name: &'static str,
    /// Description in the report.
    pub what: &'static str,
    pub kind: Kind,
    /// The node also tracks connections, as with kube-proxy.
    pub conntrack: bool,
    /// Maximum number of CIDRs that it can load in reasonable time.
    pub max_cidrs: u32,
}

impl Variant {
    /// Reports whether packets to destinations outside all CIDRs are masqueraded.
    pub fn masquerades(&self) -> bool {
        !matches!(self.kind, Kind::Plain | Kind::Empty)
    }

    /// Reports whether netdp's agent runs.
    pub fn has_agent(&self) -> bool {
        matches!(self.kind, Kind::Netdp | Kind::NetdpIptables)
    }

    pub fn named(name: &str) -> Option<&'static Self> {
        ALL.iter().find(|variant| variant.name == name)
    }
}

/// Base of the ratios.
pub const BASE: &str = "plain";
/// Base of the ratios of variants that also track connections.
pub const BASE_TRACKED: &str = "plain+ct";

/// Name of netdp with nothing else, the base of [`SEEN`].
pub const NETDP: &str = "netdp";
/// Name of netdp with a monitor of all events.
pub const MONITORED: &str = "netdp+monitor";
/// Name of netdp with everything on that shows what it does.
pub const SEEN: &str = "netdp+seen";

/// Name of the netdp given by `--before`.
pub const BEFORE: &str = "before";

const NO_LIMIT: u32 = u32::MAX;

/// All variants, in the order of columns.
pub const ALL: &[Variant] = &[
    Variant {
        name: BASE,
        what: "forwarding, no netfilter rule",
        kind: Kind::Plain,
        conntrack: false,
        max_cidrs: NO_LIMIT,
    },
    Variant {
        name: BASE_TRACKED,
        what: "forwarding with connection tracking, as on a node with kube-proxy",
        kind: Kind::Plain,
        conntrack: true,
        max_cidrs: NO_LIMIT,
    },
    Variant {
        name: "empty-tc",
        what: "forwarding, with an empty TC program where netdp has its own",
        kind: Kind::Empty,
        conntrack: false,
        max_cidrs: NO_LIMIT,
    },
    Variant {
        name: "masq-nft",
        what: "ip-masq-agent's rules, iptables-nft",
        kind: Kind::MasqAgent(&["iptables-nft-restore"]),
        conntrack: false,
        max_cidrs: 30_000,
    },
    Variant {
        name: "masq-legacy",
        what: "ip-masq-agent's rules, iptables-legacy",
        kind: Kind::MasqAgent(&["iptables-legacy-restore"]),
        conntrack: false,
        max_cidrs: 30_000,
    },
    Variant {
        name: "nft-set",
        what: "the same policy as an nftables set",
        kind: Kind::NftSet,
        conntrack: false,
        max_cidrs: NO_LIMIT,
    },
    Variant {
        name: NETDP,
        what: "netdp, no netfilter rule",
        kind: Kind::Netdp,
        conntrack: false,
        max_cidrs: NO_LIMIT,
    },
    Variant {
        name: MONITORED,
        what: "netdp with a monitor of all events",
        kind: Kind::Netdp,
        conntrack: false,
        max_cidrs: NO_LIMIT,
    },
    Variant {
        name: SEEN,
        what: "netdp with NAT log, metrics and a monitor",
        kind: Kind::Netdp,
        conntrack: false,
        max_cidrs: NO_LIMIT,
    },
    Variant {
        name: "netdp+ct",
        what: "netdp, with connection tracking as on a node with kube-proxy",
        kind: Kind::Netdp,
        conntrack: true,
        max_cidrs: NO_LIMIT,
    },
    Variant {
        name: "netdp-iptables",
        what: "netdp in iptables mode",
        kind: Kind::NetdpIptables,
        conntrack: false,
        max_cidrs: 10_000,
    },
    Variant {
        name: BEFORE,
        what: "netdp of another state of the sources, given with --before",
        kind: Kind::Netdp,
        conntrack: false,
        max_cidrs: NO_LIMIT,
    },
];

/// The subject of a measurement.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Measure {
    /// Packets per second, 64-byte UDP, one CPU.
    Packets,
    /// The same on two CPUs at once.
    Cpus,
    /// A TC program's own time for a packet, by the kernel's program statistics.
    Cost,
    /// TCP and UDP throughput, offloads on and off.
    Throughput,
    /// Connections per second: connect, one request, close.
    Connections,
    /// Latency percentiles under load.
    Latency,
    /// From the edit of a configuration to a policy in force.
    Reload,
    /// The cost of NAT log, metrics and monitor. Only if chosen.
    See,
    /// New flows alone, by rate and by own time. Part of `packets` and `cost` otherwise.
    New,
}
