//! Endpoints of Services, by the caller's kubeconfig: whatever proxy the nodes have, it sends a connection
//! to one of them.

use super::destination::{Destination, Named, PortName, of_dns};
use super::find::List;
use super::run::Kubectl;
use crate::explain::answer;
use anyhow::{Context as _, Result, bail, ensure};
use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointPort};
use serde::Deserialize;
use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::{IpAddr, SocketAddr};

/// The most endpoints of one family that are explained.
const EXPLAINED: usize = 32;

/// The most names that lead to one another.
const MAX_NAMES: usize = 8;

/// What is asked besides the destination.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ask<'a> {
    /// Namespace of a Service that is named without one; `None`: that of the context.
    pub(crate) namespace: Option<&'a str>,
    /// The protocol, as `netdp explain` takes it, if it was given.
    pub(crate) protocol: Option<&'a str>,
    /// Node of the source.
    pub(crate) node: &'a str,
}

/// What stands for a destination in the arguments of `netdp explain`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Found {
    /// Its destinations.
    pub(crate) destinations: Vec<String>,
    /// Values of `--service`.
    pub(crate) services: Vec<String>,
    /// The protocol of the Service's port.
    pub(crate) protocol: Option<String>,
    /// What the caller should know, each a line.
    pub(crate) notes: Vec<String>,
}

/// An EndpointSlice, of `discovery.k8s.io/v1` or `v1beta1`, which Kubernetes 1.20 has: what is read is the
/// same in both.
#[derive(Debug, Deserialize)]
struct Slice {
    endpoints: Option<Vec<Endpoint>>,
    ports: Option<Vec<EndpointPort>>,
}

/// Returns what a destination stands for; `None` if it is no Service, as far as that can be told.
///
/// # Errors
/// Returns an error if it is a Service that does not exist, can't be read, or has no endpoint that is ready.
pub(crate) fn find(kubectl: &Kubectl, word: &str, ask: &Ask<'_>) -> Result<Option<Found>> {
    match Destination::parse(word)? {
        Destination::Service(named) => by_name(kubectl, named, ask).map(Some),
        Destination::Address(address, port) => by_address(kubectl, address, port, ask),
        Destination::Other => Ok(None),
    }
}

fn by_name(kubectl: &Kubectl, named: Named, ask: &Ask<'_>) -> Result<Found> {
    let mut notes = Vec::new();
    let mut named = named;
    for _ in 0..MAX_NAMES {
        let namespace = named.namespace.as_deref().or(ask.namespace);
        let place = namespace.map_or_else(Vec::new, |it| vec!["--namespace", it]);
        let get = [&["service", &named.name], place.as_slice()].concat();
        let service: Service = kubectl.get(&get)?;
        let known = Known::of(&service)?;
        let Some(external) = known.spec.external_name.as_deref() else {
            let mut found = known.explained(kubectl, &named, None, ask)?;
            notes.append(&mut found.notes);
            return Ok(Found { notes, ..found });
        };
        notes.push(format!(
            "{}: an ExternalName Service, whose name stands for {external}",
            known.name
        ));
        let port = known.external_port(named.port)?;
        let Some(next) = of_dns(external, port.map(PortName::Number)) else {
            let external = external.trim_end_matches('.');
            let to = port.map_or_else(|| external.to_owned(), |port| format!("{external}:{port}"));
            return Ok(Found {
                destinations: vec![to],
                notes,
                ..Found::default()
            });
        };
        named = next;
    }
    bail!(
        "{}: ExternalName Services that name one another",
        named.name
    )
}

fn by_address(
    kubectl: &Kubectl,
    address: IpAddr,
    port: Option<u16>,
    ask: &Ask<'_>,
) -> Result<Option<Found>> {
    let services: Result<List<Service>> = kubectl.get(&["services", "--all-namespaces"]);
    let services = match services {
        Ok(services) => services.items,
        Err(err) => {
            // It may well be no Service's.
            eprintln!("netdp: cannot tell whether {address} is a Service's: {err:#}");
            return Ok(None);
        }
    };
    let mut owners = Vec::new();
    for service in services
        .iter()
        .filter(|it| addresses(it).contains(&address))
    {
        owners.push(Known::of(service)?);
    }
    let port = port.map(PortName::Number);
    let has_port = |it: &&Known<'_>| it.port(port.as_ref(), ask.protocol).is_ok();
    // Others answer on other ports of an address that is not the Service's own.
    let is_its_own = |it: &&Known<'_>| cluster_addresses(it.spec).contains(&address);
    let Some(known) = owners
        .iter()
        .find(has_port)
        .or_else(|| owners.iter().find(is_its_own))
    else {
        return Ok(None);
    };
    let named = Named {
        namespace: Some(known.namespace.to_owned()),
        name: known.short.to_owned(),
        endpoint: None,
        port,
    };
    known
        .explained(kubectl, &named, Some(address), ask)
        .map(Some)
}

/// Returns the addresses of a Service at which a proxy answers.
fn addresses(service: &Service) -> BTreeSet<IpAddr> {
    let spec = service.spec.as_ref();
    let of_cluster = spec.into_iter().flat_map(cluster_addresses);
    let external = spec.and_then(|spec| spec.external_ips.as_ref());
    let status = service.status.as_ref();
    let balancer = status.and_then(|status| status.load_balancer.as_ref()?.ingress.as_ref());
    let balancer = balancer
        .into_iter()
        .flatten()
        .filter_map(|it| it.ip.as_ref());
    let others = external.into_iter().flatten().chain(balancer);
    of_cluster
        .chain(others.filter_map(|it| it.parse().ok()))
        .collect()
}

/// Returns a Service's own addresses, the first one first; none of a headless one.
fn cluster_addresses(spec: &ServiceSpec) -> Vec<IpAddr> {
    let first = spec.cluster_ip.iter();
    let all = first.chain(spec.cluster_ips.iter().flatten());
    let mut found: Vec<IpAddr> = Vec::new();
    for address in all.filter_map(|it| it.parse().ok()) {
        if !found.contains(&address) {
            found.push(address);
        }
    }
    found
}

/// A Service that was read.
#[derive(Debug)]
struct Known<'a> {
    namespace: &'a str,
    /// Its name alone.
    short: &'a str,
    /// Namespace and name.
    name: String,
    spec: &'a ServiceSpec,
}

impl<'a> Known<'a> {
    fn of(service: &'a Service) -> Result<Self> {
        let namespace = service.metadata.namespace.as_deref();
        let short = service.metadata.name.as_deref();
        let (namespace, short) = namespace.zip(short).context("a Service without a name")?;
        let name = format!("{namespace}/{short}");
        let spec = service.spec.as_ref();
        let spec = spec.with_context(|| format!("the Service {name} has no spec"))?;
        Ok(Self {
            namespace,
            short,
            name,
            spec,
        })
    }

    fn ports(&self) -> &'a [ServicePort] {
        self.spec.ports.as_deref().unwrap_or_default()
    }

    fn is_headless(&self) -> bool {
        self.spec.cluster_ip.as_deref() == Some("None")
    }

    /// Reads the endpoints, and returns what the Service stands for; at `address` alone, if it is given.
    fn explained(
        &self,
        kubectl: &Kubectl,
        named: &Named,
        address: Option<IpAddr>,
        ask: &Ask<'_>,
    ) -> Result<Found> {
        let selector = format!("kubernetes.io/service-name={}", self.short);
        let slices: Result<List<Slice>> = kubectl.get(&[
            "endpointslices.discovery.k8s.io",
            "--namespace",
            self.namespace,
            "--selector",
            &selector,
        ]);
        let slices = slices.with_context(|| {
            let (name, namespace) = (&self.name, self.namespace);
            format!("{name}: its endpoints are read from the EndpointSlices of {namespace}")
        })?;
        self.stands_for(named, address, &slices.items, ask)
    }

    /// Returns what the Service stands for, by its EndpointSlices.
    fn stands_for(
        &self,
        named: &Named,
        address: Option<IpAddr>,
        slices: &[Slice],
        ask: &Ask<'_>,
    ) -> Result<Found> {
        let name = &self.name;
        if let Some(endpoint) = &named.endpoint {
            ensure!(
                self.is_headless(),
                "{name} is not headless, so that DNS knows no {endpoint} of it"
            );
        }
        let port = self.port(named.port.as_ref(), ask.protocol)?;
        let mut endpoints = self.endpoints(named, address, port.as_ref(), slices, ask)?;
        let mut found = Found::default();
        if self.is_headless() {
            found.notes.push(format!(
                "{name}: a headless Service, whose name stands for the addresses of its endpoints"
            ));
        } else {
            let at = address.map_or_else(|| cluster_addresses(self.spec), |it| vec![it]);
            let (of_port, number) = match &port {
                Some(port) => (
                    port.name
                        .as_ref()
                        .map_or_else(String::new, |name| format!(":{name}")),
                    port.number,
                ),
                None => bail!("{name} has no ports"),
            };
            for address in &at {
                let at = SocketAddr::new(*address, number);
                found.services.push(format!("{name}{of_port}={at}"));
            }
            let is_served = |end: &SocketAddr| at.iter().any(|at| at.is_ipv4() == end.is_ipv4());
            endpoints.retain(is_served);
            ensure!(
                !endpoints.is_empty(),
                "{name} has no endpoint of the family of {}",
                at.first()
                    .map_or_else(|| "an address".to_owned(), IpAddr::to_string)
            );
        }
        for is_v4 in [true, false] {
            let of_family = endpoints.iter().filter(|end| end.is_ipv4() == is_v4);
            let all = of_family.clone().count();
            let taken = of_family.take(EXPLAINED).map(SocketAddr::to_string);
            found.destinations.extend(taken);
            if all > EXPLAINED {
                let note =
                    format!("{name}: the first {EXPLAINED} of its {all} endpoints are explained");
                found.notes.push(note);
            }
        }
        found.protocol = port.map(|port| port.protocol);
        Ok(found)
    }

    /// Returns the endpoints that are ready, or, as kube-proxy does for each family without any, those that still
    /// serve while they terminate, and that connections from the node can get.
    fn endpoints(
        &self,
        named: &Named,
        address: Option<IpAddr>,
        port: Option<&Port>,
        slices: &[Slice],
        ask: &Ask<'_>,
    ) -> Result<BTreeSet<SocketAddr>> {
        let name = &self.name;
        let own = cluster_addresses(self.spec);
        let is_local = self.spec.internal_traffic_policy.as_deref() == Some("Local")
            && address.map_or(!own.is_empty(), |address| own.contains(&address));
        let (mut not_ready, mut elsewhere) = (0, 0);
        let (mut found, mut terminating) = (BTreeSet::new(), BTreeSet::new());
        for slice in slices {
            let Some(number) = self.target(named, port, slice) else {
                continue;
            };
            for endpoint in slice.endpoints.iter().flatten() {
                // Proxies look at the first address only.
                let first = endpoint.addresses.first();
                let Some(address) = first.and_then(|it| it.parse::<IpAddr>().ok()) else {
                    continue;
                };
                if named.endpoint.is_some() && endpoint.hostname != named.endpoint {
                    continue;
                }
                let conditions = endpoint.conditions.as_ref();
                let on_another = |node: &String| node != ask.node;
                let is_ready = conditions.and_then(|it| it.ready) != Some(false);
                // DNS, of which headless Services have only the addresses, knows no such.
                let serves = !self.is_headless()
                    && conditions.is_some_and(|it| {
                        it.terminating == Some(true) && it.serving != Some(false)
                    });
                if !is_ready && !serves {
                    not_ready += 1;
                } else if is_local && endpoint.node_name.as_ref().is_some_and(on_another) {
                    elsewhere += 1;
                } else if !is_ready {
                    terminating.insert(SocketAddr::new(address, number));
                } else {
                    found.insert(SocketAddr::new(address, number));
                }
            }
        }
        for is_v4 in [true, false] {
            if !found.iter().any(|it| it.is_ipv4() == is_v4) {
                let of_family = terminating.iter().filter(|it| it.is_ipv4() == is_v4);
                found.extend(of_family);
            }
        }
        if !found.is_empty() {
            return Ok(found);
        }
        let mut why = match &named.endpoint {
            Some(endpoint) => format!("{name} has no endpoint {endpoint} that is ready"),
            None => format!("{name} has no endpoint that is ready"),
        };
        if not_ready > 0 {
            let _ = write!(why, "; {not_ready} are not ready");
        }
        if elsewhere > 0 {
            let _ = write!(
                why,
                " on {}; {elsewhere} are on other nodes, which internalTrafficPolicy: Local excludes",
                ask.node
            );
        }
        bail!(
            "{why}: what pods send to it gets nowhere (kubectl -n {} get endpointslices)",
            self.namespace
        )
    }

    /// Returns the port of the endpoints of a slice.
    fn target(&self, named: &Named, port: Option<&Port>, slice: &Slice) -> Option<u16> {
        let asked = match named.port {
            Some(PortName::Number(number)) => Some(number),
            _ => None,
        };
        if self.is_headless() && asked.is_some() {
            // Nothing replaces it.
            return asked;
        }
        let port = port?;
        let empty_is_none = |name: Option<&String>| name.filter(|it| !it.is_empty()).cloned();
        let mut ports = slice.ports.iter().flatten();
        let target = ports.find(|it| {
            let protocol = it.protocol.as_deref().unwrap_or("TCP");
            empty_is_none(it.name.as_ref()) == port.name
                && protocol.eq_ignore_ascii_case(&port.protocol)
        })?;
        match target.port {
            Some(number) => u16::try_from(number).ok(),
            // Every port.
            None => Some(port.number),
        }
    }

    /// Returns the port that is asked for; `None` if a headless Service has no such port, which does not
    /// matter to it.
    fn port(&self, asked: Option<&PortName>, protocol: Option<&str>) -> Result<Option<Port>> {
        let name = &self.name;
        let protocol = protocol.map(protocol_name).transpose()?;
        let all: Vec<_> = self.ports().iter().filter_map(Port::of).collect();
        let is_asked = |port: &&Port| match asked {
            None => true,
            Some(PortName::Number(number)) => port.number == *number,
            Some(PortName::Name(name)) => port.name.as_ref() == Some(name),
        };
        let of_protocol = |port: &&Port| {
            protocol
                .as_ref()
                .is_none_or(|protocol| port.protocol == *protocol)
        };
        let mut found: Vec<_> = all.iter().filter(is_asked).filter(of_protocol).collect();
        if found.len() > 1 && protocol.is_none() && found.iter().any(|it| it.protocol == "tcp") {
            // As with any destination.
            found.retain(|it| it.protocol == "tcp");
        }
        let listed = || {
            all.iter()
                .map(Port::to_string)
                .collect::<Vec<_>>()
                .join(", ")
        };
        match (found.as_slice(), asked) {
            ([one], _) => Ok(Some((*one).clone())),
            ([], Some(PortName::Number(_))) if self.is_headless() => Ok(None),
            ([], _) if all.is_empty() => {
                bail!("{name} has no ports: give the endpoints' as its port")
            }
            ([], _) => {
                let asked = match asked {
                    None => String::new(),
                    Some(PortName::Number(number)) => format!(" {number}"),
                    Some(PortName::Name(name)) => format!(" {name}"),
                };
                let of = protocol.map_or_else(String::new, |protocol| format!(" of {protocol}"));
                bail!("{name} has no port{asked}{of}, but {}", listed())
            }
            _ => bail!(
                "{name} has several ports: write {name}:PORT with one of {}",
                listed()
            ),
        }
    }

    /// Returns the number of the port of an ExternalName Service, which DNS does not know.
    fn external_port(&self, asked: Option<PortName>) -> Result<Option<u16>> {
        match asked {
            None => Ok(None),
            Some(PortName::Number(number)) => Ok(Some(number)),
            Some(asked) => Ok(self.port(Some(&asked), None)?.map(|port| port.number)),
        }
    }
}

/// A port of a Service.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Port {
    name: Option<String>,
    number: u16,
    /// `tcp`, `udp` or `sctp`.
    protocol: String,
}

impl Port {
    fn of(port: &ServicePort) -> Option<Self> {
        Some(Self {
            name: port.name.clone().filter(|name| !name.is_empty()),
            number: u16::try_from(port.port).ok()?,
            protocol: port.protocol.as_deref().unwrap_or("TCP").to_lowercase(),
        })
    }
}

impl std::fmt::Display for Port {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(name) = &self.name {
            write!(f, "{name} ")?;
        }
        write!(f, "{}/{}", self.number, self.protocol)
    }
}

/// Returns the name that Services have for a protocol of `netdp explain`.
fn protocol_name(text: &str) -> Result<String> {
    let number = answer::protocol(text).map_err(|why| anyhow::anyhow!("-p {text}: {why}"))?;
    let name = match number {
        6 => "tcp",
        17 => "udp",
        132 => "sctp",
        _ => bail!("-p {text}: Services have ports of tcp, udp and sctp only"),
    };
    Ok(name.to_owned())
}

#[cfg(test)]
mod tests;
