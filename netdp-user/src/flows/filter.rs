//! Which flows are shown: the filters of the command line, and what they are compared with.

use super::Timed;
use crate::config::parse_duration;
use crate::datapath::{Flow, FlowState, Kept, Maps, seconds};
use crate::prefixes::Prefixes;
use anyhow::{Context as _, Result, bail, ensure};
use ipnet::IpNet;
use netdp_common::layout::{Mapping, Tuple, proto};
use std::collections::HashSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

/// A network or an address, and a port or an ICMP identifier where one was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Endpoint {
    net: IpNet,
    id: Option<u16>,
}

impl FromStr for Endpoint {
    type Err = anyhow::Error;

    /// Parses `10.2.0.0/16`, `10.2.0.17:443`, `10.2.0.0/16:443`, `fd00::/64`, `[fd00::1]:443` and
    /// `[fd00::/64]:443`.
    fn from_str(text: &str) -> Result<Self> {
        let (net, port) = if let Some(inside) = text.strip_prefix('[') {
            let (net, rest) = inside.split_once(']').context("`]` is missing")?;
            let port = match rest {
                "" => None,
                rest => Some(rest.strip_prefix(':').context("after `]` a `:` belongs")?),
            };
            (net, port)
        } else {
            match text.split_once(':') {
                Some((net, port)) if !port.contains(':') => (net, Some(port)),
                _ => (text, None),
            }
        };
        let net = parse_net(net)?;
        let id = port.map(|port| port.parse().with_context(|| format!("the port {port:?}")));
        Ok(Self {
            net,
            id: id.transpose()?,
        })
    }
}

impl Endpoint {
    /// Reports whether an address with an L4 id is in it.
    pub(crate) fn has(&self, address: impl Into<IpAddr>, id: u16) -> bool {
        self.net.contains(&address.into()) && self.id.is_none_or(|wanted| wanted == id)
    }
}

/// Parses a CIDR or an address, which stands for itself alone.
fn parse_net(text: &str) -> Result<IpNet> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(address.into());
    }
    let net: IpNet = text
        .parse()
        .with_context(|| format!("{text:?} is neither an address nor a CIDR"))?;
    Ok(net.trunc())
}

/// A pod: by its address, or by its name, for which the namespace may be left out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum PodFilter {
    Address(Endpoint),
    Name(Option<String>, String),
}

impl FromStr for PodFilter {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        if let Ok(endpoint) = text.parse() {
            return Ok(Self::Address(endpoint));
        }
        let (namespace, name) = match text.split_once('/') {
            Some((namespace, name)) => (Some(namespace.to_owned()), name),
            None => (None, text),
        };
        ensure!(
            !name.is_empty() && !name.contains(['/', ':', '[']),
            "{text:?} is neither an address nor the name of a pod, such as shop/cart-5d9"
        );
        Ok(Self::Name(namespace, name.to_owned()))
    }
}

impl PodFilter {
    /// Reports whether a pod has the wanted name.
    pub(crate) fn has_name(&self, namespace: &str, name: &str) -> bool {
        match self {
            Self::Address(_) => false,
            Self::Name(wanted, wanted_name) => {
                wanted.as_ref().is_none_or(|wanted| wanted == namespace) && wanted_name == name
            }
        }
    }
}

/// A limit of the time since the last packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Idle {
    is_longer: bool,
    seconds: u64,
}

impl FromStr for Idle {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (is_longer, duration) = match (text.strip_prefix('>'), text.strip_prefix('<')) {
            (Some(duration), _) => (true, duration),
            (_, Some(duration)) => (false, duration),
            _ => bail!("{text:?} begins with neither > nor <, as in '>1h'"),
        };
        let duration = parse_duration(duration.trim());
        Ok(Self {
            is_longer,
            seconds: duration.map_err(anyhow::Error::msg)?.as_secs(),
        })
    }
}

impl Idle {
    const fn has(self, seconds: u64) -> bool {
        if self.is_longer {
            seconds > self.seconds
        } else {
            seconds < self.seconds
        }
    }
}

/// Parses the name or the number of an IP protocol.
///
/// # Errors
/// Returns an error if it is neither.
pub(crate) fn parse_protocol(text: &str) -> Result<u32> {
    Ok(match text.to_ascii_lowercase().as_str() {
        "tcp" => proto::TCP,
        "udp" => proto::UDP,
        "icmp" => proto::ICMP,
        "icmpv6" => proto::ICMPV6,
        "sctp" => proto::SCTP,
        "dccp" => proto::DCCP,
        "udp-lite" | "udplite" => proto::UDP_LITE,
        number => u32::from(number.parse::<u8>().with_context(|| {
            format!(
                "{text:?} is no protocol: tcp, udp, icmp, icmpv6, sctp, dccp, udp-lite, or a number"
            )
        })?),
    })
}

/// The filters of the command line; a flow is shown if it passes all.
#[derive(Debug, Clone, Default)]
pub(crate) struct Filter {
    pub pod: Option<PodFilter>,
    pub to: Option<Endpoint>,
    pub seen_as: Option<Endpoint>,
    /// The prefix of the rule that decides about the destination.
    pub prefix: Option<IpNet>,
    pub protocol: Option<u32>,
    pub states: Vec<FlowState>,
    pub idle: Option<Idle>,
}

impl Filter {
    /// Reports whether it lets every flow pass.
    pub(crate) fn is_empty(&self) -> bool {
        let has_ends = self.pod.is_some() || self.to.is_some() || self.seen_as.is_some();
        let has_others = self.prefix.is_some() || self.protocol.is_some() || self.idle.is_some();
        !has_ends && !has_others && self.states.is_empty()
    }
}

/// The prefixes of the policy in force.
pub(super) struct Policy {
    list: Vec<IpNet>,
    prefixes: Prefixes,
}

impl Policy {
    /// Reads the policy in force.
    ///
    /// # Errors
    /// Returns an error if the map can't be read.
    pub(super) fn read(maps: &Maps) -> Result<Self> {
        let rules = maps.policy().context("reading the policy in force")?;
        Ok(Self::new(rules.into_iter().map(|(net, _)| net)))
    }

    pub(super) fn new(list: impl IntoIterator<Item = IpNet>) -> Self {
        let list: Vec<_> = list.into_iter().collect();
        let prefixes = Prefixes::new(list.iter().copied());
        Self { list, prefixes }
    }

    /// Returns the prefix of the rule that decides about a destination; `0.0.0.0/0` or `::/0` where no
    /// rule does.
    pub(super) fn deciding(&self, destination: IpAddr) -> IpNet {
        let mut covering = self.prefixes.covering(destination.into());
        let longest = covering.next().and_then(|at| self.list.get(at).copied());
        longest.unwrap_or_else(|| everything(destination))
    }

    /// Checks that a rule with this prefix can decide about a destination.
    fn check(&self, prefix: IpNet) -> Result<()> {
        ensure!(
            self.list.contains(&prefix) || prefix == everything(prefix.addr()),
            "no rule in force has the prefix {prefix}; `netdp status` lists them"
        );
        Ok(())
    }
}

/// Returns the prefix of all addresses of a family.
fn everything(like: IpAddr) -> IpNet {
    let any = match like {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    IpNet::new_assert(any, 0)
}

/// Filters, with all that they are compared with.
pub(super) struct Selector<'a> {
    filter: &'a Filter,
    names: Timed<'a>,
    policy: Option<Policy>,
    /// The addresses that a pod of the wanted name has or had.
    addresses: HashSet<IpAddr>,
}

impl<'a> Selector<'a> {
    /// Reads what the filters need.
    ///
    /// # Errors
    /// Returns an error if the policy can't be read, or if no pod or rule is as wanted.
    pub(super) fn new(filter: &'a Filter, names: &Timed<'a>, maps: &Maps) -> Result<Self> {
        let policy = match filter.prefix {
            Some(prefix) => {
                let policy = Policy::read(maps)?;
                policy.check(prefix)?;
                Some(policy)
            }
            None => None,
        };
        let mut addresses = HashSet::new();
        if let Some(pod @ PodFilter::Name(_, name)) = &filter.pod {
            let claims = names.names.claims();
            let of_pod = claims.filter(|claim| pod.has_name(&claim.namespace, &claim.name));
            addresses.extend(of_pod.map(|claim| claim.address));
            ensure!(
                !addresses.is_empty(),
                "no pod {name:?} is known on this node; give its address, or see --cni-dir"
            );
        }
        Ok(Self {
            filter,
            names: *names,
            policy,
            addresses,
        })
    }

    /// Reports whether a mapping may pass, by what the original half tells.
    pub(super) fn may_pass(&self, tuple: &Tuple, half: &Mapping) -> bool {
        let seen_as = self.filter.seen_as;
        self.has_ends(tuple) && seen_as.is_none_or(|wanted| wanted.has(half.addr, half.id))
    }

    /// Reports whether a mapping passes that may.
    pub(super) fn passes(&self, flow: &Flow) -> bool {
        let filter = self.filter;
        (filter.states.is_empty() || filter.states.contains(&flow.state))
            && filter.idle.is_none_or(|idle| idle.has(seconds(flow.idle)))
            && self.has_pod(&flow.tuple, flow.age)
    }

    /// Reports whether a flow passes that keeps the pod's address. Of its begin nothing is known but
    /// that it was before its last packet.
    pub(super) fn passes_kept(&self, kept: &Kept) -> bool {
        self.has_ends(&kept.tuple)
            && self
                .filter
                .idle
                .is_none_or(|idle| idle.has(seconds(kept.idle)))
            && self.has_pod(&kept.tuple, kept.idle)
    }

    fn has_ends(&self, tuple: &Tuple) -> bool {
        let filter = self.filter;
        let has_pod = match &filter.pod {
            Some(PodFilter::Address(wanted)) => wanted.has(tuple.src, tuple.src_id),
            Some(PodFilter::Name(..)) => self.addresses.contains(&tuple.src.into()),
            None => true,
        };
        let destination = IpAddr::from(tuple.dst);
        has_pod
            && filter.protocol.is_none_or(|wanted| wanted == tuple.proto)
            && filter
                .to
                .is_none_or(|wanted| wanted.has(destination, tuple.dst_id))
            && (self.policy.as_ref())
                .is_none_or(|policy| Some(policy.deciding(destination)) == filter.prefix)
    }

    /// Reports whether the pod of the wanted name had the source address so many ticks ago.
    fn has_pod(&self, tuple: &Tuple, ago: u32) -> bool {
        let Some(pod @ PodFilter::Name(..)) = &self.filter.pod else {
            return true;
        };
        let owner = self.names.owner(tuple, ago);
        owner.is_some_and(|owner| pod.has_name(&owner.claim.namespace, &owner.claim.name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(text: &str) -> Endpoint {
        text.parse().unwrap()
    }

    #[test]
    fn endpoints_have_a_network_and_maybe_a_port() {
        for (text, net, id) in [
            ("10.2.0.17", "10.2.0.17/32", None),
            ("10.2.0.17:443", "10.2.0.17/32", Some(443)),
            ("10.2.3.4/16", "10.2.0.0/16", None),
            ("10.2.0.0/16:443", "10.2.0.0/16", Some(443)),
            ("fd00::1", "fd00::1/128", None),
            ("fd00::/64", "fd00::/64", None),
            ("[fd00::1]:443", "fd00::1/128", Some(443)),
            ("[fd00::/64]:443", "fd00::/64", Some(443)),
            ("[fd00::1]", "fd00::1/128", None),
        ] {
            let net = net.parse().unwrap();
            assert_eq!(endpoint(text), Endpoint { net, id }, "{text}");
        }
        for text in [
            "",
            "10.2.0",
            "10.2.0.1:x",
            "10.2.0.1:65536",
            "[fd00::1",
            "[::]443",
            "a:1",
        ] {
            assert!(text.parse::<Endpoint>().is_err(), "{text}");
        }
        let to = endpoint("10.2.0.0/16:443");
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        assert!(to.has(address("10.2.9.9"), 443));
        assert!(!to.has(address("10.2.9.9"), 80) && !to.has(address("10.3.0.1"), 443));
    }

    #[test]
    fn pods_are_addresses_or_names() {
        let pod = |text: &str| text.parse::<PodFilter>();
        assert_eq!(
            pod("172.16.0.2").unwrap(),
            PodFilter::Address(endpoint("172.16.0.2"))
        );
        let cart = pod("shop/cart").unwrap();
        assert!(cart.has_name("shop", "cart") && !cart.has_name("other", "cart"));
        let any = pod("cart").unwrap();
        assert!(any.has_name("shop", "cart") && !any.has_name("shop", "cart-2"));
        for text in ["", "shop/", "a/b/c", "a:b"] {
            assert!(pod(text).is_err(), "{text}");
        }
    }

    #[test]
    fn idle_times_are_longer_or_shorter() {
        let idle = |text: &str| text.parse::<Idle>();
        let longer = idle(">1h").unwrap();
        assert!(longer.has(3601) && !longer.has(3600));
        let shorter = idle("< 90s").unwrap();
        assert!(shorter.has(89) && !shorter.has(90));
        for text in ["1h", ">", ">x", "=1h"] {
            assert!(idle(text).is_err(), "{text}");
        }
    }

    #[test]
    fn protocols_have_names_and_numbers() {
        assert_eq!(parse_protocol("TCP").unwrap(), 6);
        assert_eq!(parse_protocol("47").unwrap(), 47);
        assert!(parse_protocol("256").is_err() && parse_protocol("tpc").is_err());
    }

    #[test]
    fn the_longest_prefix_decides() {
        let list = ["10.0.0.0/8", "10.2.0.0/24"].map(|net| net.parse().unwrap());
        let policy = Policy::new(list);
        let deciding = |text: &str| policy.deciding(text.parse().unwrap()).to_string();
        assert_eq!(deciding("10.2.0.17"), "10.2.0.0/24");
        assert_eq!(deciding("10.9.0.1"), "10.0.0.0/8");
        assert_eq!(deciding("192.0.2.1"), "0.0.0.0/0");
        assert_eq!(deciding("fd00::1"), "::/0");
        for (prefix, is_there) in [
            ("10.0.0.0/8", true),
            ("0.0.0.0/0", true),
            ("10.0.0.0/9", false),
        ] {
            let checked = policy.check(prefix.parse().unwrap());
            assert_eq!(checked.is_ok(), is_there, "{prefix}");
        }
    }
}
