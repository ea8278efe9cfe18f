//! The question: from whom, to whom, by which packet.

use super::names::PodNames;
use super::service::Via;
use crate::explain::packet::{Description, Kind, PacketBytes};
use anyhow::{Context as _, Result, bail, ensure};
use netdp_common::layout::proto;
use netdp_common::packet::{Packet, Parsed, parse};
use std::net::{IpAddr, ToSocketAddrs as _};

/// The pod's port where none was given: none that services or the node's sockets use by default.
pub(crate) const ANY_PORT: u16 = 50_000;

/// The destination's port where none was given.
const DEFAULT_PORT: u16 = 443;

/// How destinations begin that name a Service of Kubernetes, after which `NAMESPACE/NAME` or `NAME` follows.
pub(crate) const KINDS: [&str; 3] = ["svc/", "service/", "services/"];

/// What to do about the name of a Service.
const BY_KUBECTL: &str = "Services are looked up by `kubectl netdp explain`; here, give the Service's address or those of its \
     endpoints";

/// An end of a flow on the command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct End {
    /// An address, a host name, or `namespace/pod`.
    pub(crate) name: String,
    /// The port, if one was given.
    pub(crate) port: Option<u16>,
}

impl End {
    /// Parses `ADDRESS`, `ADDRESS:PORT`, `[ADDRESS]:PORT`, and the same with a name.
    ///
    /// # Errors
    /// Returns an error for anything else.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let end = |name: &str, port| Self {
            name: name.to_owned(),
            port,
        };
        let port = |port: &str| {
            let port = port.parse::<u16>();
            port.map_err(|_| "the port is no number up to 65535".to_owned())
        };
        if text.is_empty() {
            return Err("it is empty".to_owned());
        }
        if let Some(rest) = text.strip_prefix('[') {
            let (name, rest) = rest.split_once(']').ok_or("no `]` after the address")?;
            return match rest.strip_prefix(':') {
                Some(number) => Ok(end(name, Some(port(number)?))),
                None if rest.is_empty() => Ok(end(name, None)),
                None => Err("something other than a port follows `]`".to_owned()),
            };
        }
        if text.parse::<IpAddr>().is_ok() {
            return Ok(end(text, None));
        }
        match text.rsplit_once(':') {
            Some((name, _)) if name.contains(':') => {
                Err("an IPv6 address with a port is written in brackets".to_owned())
            }
            Some((name, number)) => Ok(end(name, Some(port(number)?))),
            None => Ok(end(text, None)),
        }
    }

    /// Returns the addresses of the end, in the resolver's order.
    ///
    /// # Errors
    /// Returns an error if the name has none.
    fn addresses(&self) -> Result<Vec<IpAddr>> {
        if let Ok(address) = self.name.parse() {
            return Ok(vec![address]);
        }
        let name = self.name.as_str();
        ensure!(
            !KINDS.iter().any(|kind| name.starts_with(kind)),
            "{name}: {BY_KUBECTL}"
        );
        let found = (name, 0).to_socket_addrs();
        let found = found.with_context(|| match name.split('.').nth(2) {
            Some("svc") => format!("resolving {name}: {BY_KUBECTL}"),
            _ => format!("resolving {name}"),
        })?;
        let mut addresses: Vec<IpAddr> = Vec::new();
        for end in found {
            if !addresses.contains(&end.ip()) {
                addresses.push(end.ip());
            }
        }
        ensure!(!addresses.is_empty(), "{} has no address", self.name);
        Ok(addresses)
    }
}

/// One packet to explain.
#[derive(Debug, Clone)]
pub(crate) struct Case {
    /// Source address; `None`: any pod's.
    pub(crate) src: Option<IpAddr>,
    /// Name of the pod, if it was given by name.
    pub(crate) pod: Option<String>,
    /// Source port, if it is known.
    pub(crate) src_port: Option<u16>,
    /// Destination address.
    pub(crate) dst: IpAddr,
    /// Destination port; 0 for protocols without ports.
    pub(crate) dst_port: u16,
    /// True if the destination's port was assumed.
    pub(crate) is_port_assumed: bool,
    /// IP protocol number.
    pub(crate) protocol: u8,
    /// The packet, if it was given.
    pub(crate) packet: Option<PacketBytes>,
    /// The service whose rules have given it this destination.
    pub(super) service: Option<Via>,
}

impl Case {
    /// Returns the cases that the ends stand for: one for each address of each destination. `from` has the addresses
    /// of one pod, or is empty for any pod.
    ///
    /// # Errors
    /// Returns an error if a name can't be resolved, or no address of the destination is of the
    /// family of the source.
    pub(crate) fn of(
        from: &[End],
        to: &[End],
        protocol: u8,
        names: &dyn PodNames,
    ) -> Result<Vec<Self>> {
        let mut sources: Vec<(IpAddr, &End)> = Vec::new();
        let mut pod = None;
        for from in from {
            if let Ok(address) = from.name.parse() {
                sources.push((address, from));
                continue;
            }
            pod = Some(from.name.clone());
            let all = names.addresses_of(&from.name)?;
            sources.extend(all.into_iter().map(|address| (address, from)));
        }
        let has_ports = has_ports(protocol);
        let mut cases = Vec::new();
        let mut ends = Vec::new();
        for to in to {
            let addresses = to.addresses()?;
            ends.extend(addresses.into_iter().map(|address| (address, to.port)));
        }
        for (dst, port) in ends {
            let same = |(src, _): &&(IpAddr, &End)| src.is_ipv4() == dst.is_ipv4();
            let (src, end) = sources.iter().find(same).copied().unzip();
            if !from.is_empty() && src.is_none() {
                continue;
            }
            cases.push(Self {
                src,
                pod: pod.clone().or_else(|| names.name_of(src?)),
                src_port: end.and_then(|end| end.port).filter(|_| has_ports),
                dst,
                dst_port: match port {
                    _ if !has_ports => 0,
                    Some(port) => port,
                    None => DEFAULT_PORT,
                },
                is_port_assumed: has_ports && port.is_none(),
                protocol: match (protocol, dst) {
                    (1 | 58, IpAddr::V4(_)) => 1,
                    (1 | 58, IpAddr::V6(_)) => 58,
                    (other, _) => other,
                },
                packet: None,
                service: None,
            });
        }
        ensure!(
            !cases.is_empty(),
            "{} has no address of the family of {}",
            to.first().map_or("", |to| &to.name),
            from.first().map_or("", |from| &from.name)
        );
        Ok(cases)
    }

    /// Returns the case of a packet.
    ///
    /// # Errors
    /// Returns an error if it has no addresses.
    pub(crate) fn of_packet(packet: PacketBytes, names: &dyn PodNames) -> Result<Self> {
        let mut parsed = Packet::EMPTY;
        if parse(packet.ip(), packet.ethertype(), 0, &mut parsed) != Parsed::Ip {
            bail!("the packet is not IP, or shorter than its header");
        }
        let tuple = parsed.tuple;
        let src = IpAddr::from(tuple.src);
        let protocol = u8::try_from(tuple.proto).context("the packet's protocol")?;
        Ok(Self {
            src: Some(src),
            pod: names.name_of(src),
            src_port: (tuple.src_id != 0).then_some(tuple.src_id),
            dst: tuple.dst.into(),
            dst_port: tuple.dst_id,
            is_port_assumed: false,
            protocol,
            packet: Some(packet),
            service: None,
        })
    }

    /// Returns the packet to decide about: that which was given, or the first one of a flow from
    /// `src`.
    ///
    /// # Errors
    /// Returns an error if the addresses are of two families.
    pub(crate) fn packet(&self, src: IpAddr) -> Result<PacketBytes> {
        match &self.packet {
            Some(packet) if self.src == Some(src) => Ok(packet.clone()),
            _ => self.describe(src, Kind::first_of(self.protocol)).build(),
        }
    }

    /// Reports whether it is a packet that opens a TCP connection.
    pub(super) fn is_syn(&self) -> bool {
        let Some(packet) = &self.packet else {
            return u32::from(self.protocol) == proto::TCP;
        };
        let mut parsed = Packet::EMPTY;
        parse(packet.ip(), packet.ethertype(), 0, &mut parsed);
        parsed.l4.is_bare_syn()
    }

    /// Returns a later packet of a TCP connection, which may be an answer; `None` for other protocols.
    pub(crate) fn later(&self, src: IpAddr) -> Option<Result<PacketBytes>> {
        use netdp_common::packet::ACK;
        let kind = Kind::Tcp {
            flags: ACK,
            seq: 2,
            ack: 2,
        };
        let is_known = self.src_port.is_some() && self.packet.is_none();
        let is_tcp = u32::from(self.protocol) == proto::TCP && is_known;
        is_tcp.then(|| self.describe(src, kind).build())
    }

    fn describe(&self, src: IpAddr, kind: Kind) -> Description {
        Description {
            src,
            src_id: self.src_port.unwrap_or(ANY_PORT),
            dst: self.dst,
            dst_id: self.dst_port,
            kind,
        }
    }

    /// Returns the destination as text.
    pub(crate) fn to(&self) -> String {
        endpoint(self.dst, Some(self.dst_port).filter(|port| *port != 0))
    }
}

/// Reports whether a protocol has ports.
fn has_ports(protocol: u8) -> bool {
    matches!(
        u32::from(protocol),
        proto::TCP | proto::UDP | proto::SCTP | proto::UDP_LITE | proto::DCCP
    )
}

/// Formats an address with a port.
pub(crate) fn endpoint(address: IpAddr, port: Option<u16>) -> String {
    match (address, port) {
        (_, None) => address.to_string(),
        (IpAddr::V4(v4), Some(port)) => format!("{v4}:{port}"),
        (IpAddr::V6(v6), Some(port)) => format!("[{v6}]:{port}"),
    }
}

/// Parses a protocol: a name or a number.
///
/// # Errors
/// Returns an error for anything else.
pub(crate) fn protocol(text: &str) -> Result<u8, String> {
    match text.to_ascii_lowercase().as_str() {
        "tcp" => Ok(6),
        "udp" => Ok(17),
        "icmp" | "icmpv6" => Ok(1),
        "sctp" => Ok(132),
        number => number
            .parse()
            .map_err(|_| "neither tcp, udp, icmp, sctp nor a protocol's number".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::{Case, End, endpoint, protocol};
    use crate::pods::Names;

    #[test]
    fn ends_are_addresses_or_names_with_or_without_a_port() {
        for (text, name, port) in [
            ("10.2.0.17", "10.2.0.17", None),
            ("10.2.0.17:443", "10.2.0.17", Some(443)),
            ("fd00::1", "fd00::1", None),
            ("[fd00::1]", "fd00::1", None),
            ("[fd00::1]:443", "fd00::1", Some(443)),
            ("db.example:5432", "db.example", Some(5432)),
            ("shop/cart-5d9", "shop/cart-5d9", None),
        ] {
            let end = End::parse(text).unwrap();
            assert_eq!((end.name.as_str(), end.port), (name, port), "{text}");
        }
        for text in [
            "",
            "10.2.0.17:x",
            "10.2.0.17:70000",
            "fd00::1:x",
            "[fd00::1",
            "[::1]x",
        ] {
            assert!(End::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn ends_of_two_families_have_no_case() {
        let end = |text| End::parse(text).unwrap();
        let from = end("172.16.0.2:40000");
        let from = [from];
        let of = |to| Case::of(&from, &[end(to)], 6, &Names::default());
        assert!(of("[fd00::1]:443").is_err());
        for service in ["svc/db:80", "service/shop/db"] {
            let told = of(service).unwrap_err().to_string();
            assert!(told.contains("kubectl netdp explain"), "{told}");
        }
        let cases = of("10.2.0.17").unwrap();
        let [case] = cases.as_slice() else {
            panic!("{cases:?}")
        };
        assert_eq!(case.to(), "10.2.0.17:443");
        assert!(case.is_port_assumed);
        // Of several, those of the family are explained.
        let mixed = [end("fd00::1"), end("10.2.0.18")];
        let cases = Case::of(&from, &mixed, 6, &Names::default()).unwrap();
        assert_eq!(
            (cases.len(), cases[0].to()),
            (1, "10.2.0.18:443".to_owned())
        );
        let both = [end("172.16.0.2:40000"), end("fd00:172::2")];
        let v6 = Case::of(&both, &[end("fd00::1")], 6, &Names::default()).unwrap();
        assert_eq!(
            (v6[0].src, v6[0].src_port),
            ("fd00:172::2".parse().ok(), None)
        );
        let ping = Case::of(&[], &[end("fd00::1")], 1, &Names::default()).unwrap();
        assert_eq!((ping[0].protocol, ping[0].to()), (58, "fd00::1".to_owned()));
        let by_name = Case::of(
            &[end("shop/cart")],
            &[end("10.2.0.17")],
            6,
            &Names::default(),
        );
        assert!(by_name.unwrap_err().to_string().contains("shop/cart"));
    }

    #[test]
    fn protocols_are_names_or_numbers() {
        assert_eq!(protocol("UDP"), Ok(17));
        assert_eq!(protocol("47"), Ok(47));
        assert!(protocol("300").is_err() && protocol("gre").is_err());
        assert_eq!(endpoint("fd00::1".parse().unwrap(), Some(7)), "[fd00::1]:7");
    }
}
