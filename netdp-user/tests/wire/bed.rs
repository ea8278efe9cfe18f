//! Test bed: two pods, a node, two uplinks. The far end of each of the node's wires is a raw socket
//! in a namespace without addresses: only the test answers.

use super::lever::WaitUp as _;
use super::socket::Socket;
use anyhow::{Context as _, Result};
use std::fmt::Write as _;
use std::fs;
use std::net::IpAddr;
use testbed::{Agent, Netns, WorkDir};

/// An address family: IPv4 or IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    V4,
    V6,
}

pub use Family::{V4, V6};

pub const BOTH: [Family; 2] = [V4, V6];

fn ip(family: Family, v4: &str, v6: &str, last: u8) -> IpAddr {
    let text = match family {
        V4 => format!("{v4}.{last}"),
        V6 => format!("{v6}::{last:x}"),
    };
    text.parse().unwrap_or(IpAddr::from([0; 4]))
}

/// Returns the address of pod 0 or 1.
pub fn pod(family: Family, n: usize) -> IpAddr {
    ip(family, "172.16.0", "fd00:172", if n == 0 { 2 } else { 3 })
}

/// Returns the node's address on its first (0) or second (1) uplink.
pub fn node(family: Family, uplink: usize) -> IpAddr {
    match uplink {
        0 => ip(family, "192.0.2", "2001:db8:1", 10),
        _ => ip(family, "203.0.113", "2001:db8:3", 10),
    }
}

/// Returns the node's address on the device below its first uplink ([`Medium::BothWithAddresses`]).
pub fn lower(family: Family) -> IpAddr {
    ip(family, "192.0.2", "2001:db8:1", 20)
}

/// Returns the address of a masqueraded server behind the first uplink.
pub fn server(family: Family, n: u8) -> IpAddr {
    ip(family, "198.51.100", "2001:db8:2", 10 + n)
}

/// Returns the address of a masqueraded server behind the second uplink.
pub fn far_server(family: Family) -> IpAddr {
    ip(family, "198.18.0", "2001:db8:4", 10)
}

/// Returns the address of the router on the first uplink.
pub fn router(family: Family) -> IpAddr {
    ip(family, "192.0.2", "2001:db8:1", 1)
}

/// Returns the address of a host that pods reach with their own address.
pub fn peer(family: Family) -> IpAddr {
    ip(family, "10.9.0", "fd00:9", 9)
}

/// Bypassed destinations, as non-masquerade CIDRs.
pub const NON_MASQUERADE: [&str; 4] = ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fd00::/8"];

/// Reports whether the address is a pod's.
pub fn is_pod(addr: IpAddr) -> bool {
    BOTH.iter().any(|&f| addr == pod(f, 0) || addr == pod(f, 1))
}

/// Reports whether pods' packets to the address must be masqueraded.
pub fn is_masqueraded(addr: IpAddr) -> bool {
    let within = |net: &str| {
        net.parse()
            .is_ok_and(|net: ipnet::IpNet| net.contains(&addr))
    };
    !addr.is_multicast() && !NON_MASQUERADE.iter().any(|net| within(net))
}

/// The translator under test.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Subject {
    Netdp,
    /// netdp in iptables mode.
    NetdpIptables,
    /// nftables' masquerade on the uplinks.
    Nft,
    /// ip-masq-agent's rules.
    IpMasqAgent,
    /// No translator: plain forwarding.
    Nobody,
}

/// Bed parameters of a case.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Additional arguments of `netdp run`.
    pub netdp: &'static [&'static str],
    /// `--to-ports`, for every subject that has it.
    pub to_ports: &'static str,
    /// MTU of pod 0's link at the node's end, in bytes.
    pub pod_mtu: u16,
    /// MTU of the first uplink at the node's end, in bytes.
    pub uplink_mtu: u16,
    /// Device type of the first uplink.
    pub medium: Medium,
}

/// Device type of the first uplink, `up0`. Its lower device, if it is a stacked one, is `low0`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Medium {
    /// A veth, directly on the wire.
    Wire,
    /// A tunnel device: its packets begin with the IP header.
    Tun,
    /// A bridge with the wire as a port. `--uplink` matches both by a glob.
    Bridge,
    /// A macvlan device on the wire. `--uplink` names only the macvlan.
    Macvlan,
    /// A macvlan device on the wire; `--uplink` matches both by a glob.
    Both,
    /// As [`Both`](Self::Both), and the lower device has an address of its own.
    BothWithAddresses,
}

impl Medium {
    /// Returns the device at the node's end of the wire.
    pub const fn port(self) -> &'static str {
        match self {
            Self::Wire | Self::Tun => "up0",
            _ => "low0",
        }
    }

    /// Returns the argument of `--uplink` for it.
    pub const fn uplink(self) -> &'static str {
        match self {
            Self::Wire | Self::Tun | Self::Macvlan => "up0",
            _ => "{up,low}0",
        }
    }
}

impl Options {
    pub const NONE: Self = Self {
        netdp: &[],
        to_ports: "",
        pod_mtu: 1500,
        uplink_mtu: 1500,
        medium: Medium::Wire,
    };

    /// Frames of up to 9000 bytes from end to end.
    pub const JUMBO: Self = Self {
        pod_mtu: 9000,
        uplink_mtu: 9000,
        ..Self::NONE
    };

    pub const fn medium(medium: Medium) -> Self {
        Self {
            medium,
            ..Self::NONE
        }
    }

    pub const fn netdp(netdp: &'static [&'static str]) -> Self {
        Self {
            netdp,
            ..Self::NONE
        }
    }

    pub const fn to_ports(to_ports: &'static str) -> Self {
        Self {
            to_ports,
            ..Self::NONE
        }
    }

    pub const fn pod_mtu(pod_mtu: u16) -> Self {
        Self {
            pod_mtu,
            ..Self::NONE
        }
    }

    pub const fn uplink_mtu(uplink_mtu: u16) -> Self {
        Self {
            uplink_mtu,
            ..Self::NONE
        }
    }
}

/// The far end of one of the node's wires.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum At {
    Uplink(usize),
    Pod(usize),
}

impl At {
    pub const ALL: [Self; 4] = [Self::Uplink(0), Self::Uplink(1), Self::Pod(0), Self::Pod(1)];

    pub const fn index(self) -> usize {
        match self {
            Self::Uplink(n) => n,
            Self::Pod(n) => 2 + n,
        }
    }

    fn name(self) -> String {
        match self {
            Self::Uplink(n) => format!("up{n}"),
            Self::Pod(n) => format!("pod{n}"),
        }
    }

    /// Returns the MAC address of the node's end (1) or the far end (2).
    pub fn mac(self, end: u8) -> [u8; 6] {
        [2, 0, 0, 0, self.index().to_le_bytes()[0], end]
    }

    fn mac_text(self, end: u8) -> String {
        self.mac(end).map(|byte| format!("{byte:02x}")).join(":")
    }
}

/// Namespaces, wires and the subject.
pub struct Bed {
    /// netdp with its datapath.
    pub agent: Option<Agent>,
    /// netdp in iptables mode: for the cases it is netfilter, like the controls.
    chains: Option<Agent>,
    pub node: Netns,
    pub far: Netns,
    pub sockets: Vec<Socket>,
    _dir: WorkDir,
}

impl Bed {
    pub fn new(subject: Subject, options: &Options) -> Result<Self> {
        let (node, far) = (Netns::new("node")?, Netns::new("far")?);
        let dir = WorkDir::new("wire")?;
        far.sysctl("net.ipv6.conf.default.disable_ipv6", "1")?;
        node.forward()?;
        for key in ["net.ipv4.icmp_ratelimit", "net.ipv6.icmp.ratelimit"] {
            node.sysctl(key, "0")?;
        }
        let file = |name: &str, text: &str| -> Result<String> {
            let path = dir.path().join(name);
            fs::write(&path, text)?;
            Ok(path.display().to_string())
        };
        let is_tun = options.medium == Medium::Tun;
        let mut tun = is_tun.then(|| Socket::tun(&node, "up0")).transpose()?;
        node.ip(&format!(
            "-batch {}",
            file("links", &wiring(&far, options))?
        ))?;
        let mut up = String::new();
        for at in At::ALL.iter().filter(|at| !is_tun || **at != At::Uplink(0)) {
            writeln!(up, "link set {} up", at.name())?;
        }
        far.ip(&format!("-batch {}", file("up", &up)?))?;
        for port in ["up0", options.medium.port(), "up1"] {
            // Otherwise the node's own packets would have partial checksums here.
            if !is_tun || port != "up0" {
                node.offloads(port, &["tx", "off"])?;
            }
        }
        // IPv6 addresses become usable only once the link is detected as up.
        for at in At::ALL {
            node.wait_up(&at.name())?;
        }
        node.ip(&format!(
            "-batch {}",
            file("net", &addressing(options.medium))?
        ))?;
        for uplink in 0..2 {
            node.wait_local(super::bed::node(V6, uplink))?;
        }
        let mut agent = subject.install(&node, dir.path(), options)?;
        let chains = agent.take_if(|_| subject == Subject::NetdpIptables);
        let sockets = At::ALL
            .iter()
            .map(|at| match (at, tun.take()) {
                (At::Uplink(0), Some(tun)) => Ok(tun),
                _ => Socket::open(&far, &at.name()),
            })
            .collect::<Result<_>>()?;
        Ok(Self {
            agent,
            chains,
            node,
            far,
            sockets,
            _dir: dir,
        })
    }

    /// Returns the agent; a case that needs one does not apply to the controls.
    pub fn agent(&mut self) -> Result<&mut Agent> {
        self.agent.as_mut().context(NotApplicable)
    }

    /// Returns the agent, in whatever mode.
    pub fn any_agent(&mut self) -> Result<&mut Agent> {
        let agent = self.agent.as_mut().or(self.chains.as_mut());
        agent.context(NotApplicable)
    }
}

/// Error of a case that needs a feature of netdp alone.
#[derive(Debug)]
pub struct NotApplicable;

impl std::fmt::Display for NotApplicable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("this needs netdp")
    }
}

impl std::error::Error for NotApplicable {}

fn wiring(far: &Netns, options: &Options) -> String {
    let mut lines = String::new();
    for at in At::ALL {
        let mtu = match at {
            At::Uplink(0) => options.uplink_mtu,
            At::Pod(0) => options.pod_mtu,
            _ => 1500,
        };
        let (name, medium) = match at {
            At::Uplink(0) => (options.medium.port().to_owned(), options.medium),
            _ => (at.name(), Medium::Wire),
        };
        let own = at.mac_text(if name == at.name() { 1 } else { 3 });
        if medium != Medium::Tun {
            lines += &format!(
                "link add {name} address {own} mtu {mtu} type veth \
                 peer name {} address {} mtu {} netns {}\n",
                at.name(),
                at.mac_text(2),
                mtu.max(1500),
                far.name()
            );
        }
        lines += &format!("link set {name} up\n");
        let upper = at.mac_text(1);
        match medium {
            Medium::Wire | Medium::Tun => continue,
            Medium::Bridge => {
                lines += &format!("link add up0 address {upper} type bridge mcast_snooping 0\n");
                lines += "link set low0 master up0\n";
            }
            _ => lines += &format!("link add link low0 name up0 address {upper} type macvlan\n"),
        }
        lines += "link set up0 up\n";
    }
    lines
}

pub fn addressing(medium: Medium) -> String {
    let mut lines = String::new();
    if medium == Medium::BothWithAddresses {
        for family in BOTH {
            let (len, flags) = match family {
                V4 => (32, ""),
                V6 => (128, " nodad"),
            };
            lines += &format!("addr add {}/{len} dev low0{flags}\n", lower(family));
        }
    }
    for (family, prefix, host) in [(V4, 24, 32), (V6, 64, 128)] {
        let neighbour = |addr: IpAddr, at: At| {
            let (name, mac) = (at.name(), at.mac_text(2));
            format!("neigh add {addr} lladdr {mac} dev {name} nud permanent\n")
        };
        let far = ip(family, "203.0.113", "2001:db8:3", 1);
        let dad = if family == V6 { " nodad" } else { "" };
        for n in 0..2 {
            lines += &format!("addr add {}/{prefix} dev up{n}{dad}\n", node(family, n));
            lines += &format!("route add {}/{host} dev pod{n}\n", pod(family, n));
        }
        for (addr, at) in [
            (router(family), At::Uplink(0)),
            (far, At::Uplink(1)),
            (pod(family, 0), At::Pod(0)),
            (pod(family, 1), At::Pod(1)),
        ] {
            if medium == Medium::Tun && at == At::Uplink(0) {
                continue;
            }
            lines += &neighbour(addr, at);
        }
        let (all, behind, marked) = match family {
            V4 => ("0.0.0.0/0", "198.18.0.0/15", "10.9.1.0/24"),
            V6 => ("::/0", "2001:db8:4::/48", "fd00:91::/64"),
        };
        lines += &format!("route add {all} via {}\n", router(family));
        lines += &format!("route add {behind} via {far}\nroute add {marked} via {far}\n");
    }
    lines
}
