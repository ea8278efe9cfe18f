//! Destinations on the command line of `kubectl netdp explain` that may be Services.

use crate::explain::answer::{End, KINDS};
use anyhow::{Result, bail, ensure};
use std::net::IpAddr;

/// A port as it was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum PortName {
    Number(u16),
    /// Name of a port of a Service.
    Name(String),
}

/// A destination.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Destination {
    /// A Service by its name.
    Service(Named),
    /// An address, which may be a Service's.
    Address(IpAddr, Option<u16>),
    /// Something that the node is to resolve.
    Other,
}

/// The name of a Service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Named {
    /// `None`: that of the context.
    pub(super) namespace: Option<String>,
    pub(super) name: String,
    /// Name of one of a headless Service's endpoints.
    pub(super) endpoint: Option<String>,
    pub(super) port: Option<PortName>,
}

impl Destination {
    /// Reads a destination: `svc/NAME` or `svc/NAMESPACE/NAME`, a name `NAME.NAMESPACE.svc` of the cluster's DNS, or an
    /// address, each with a port or without.
    ///
    /// # Errors
    /// Returns an error if it begins like a Service and can't be one.
    pub(super) fn parse(word: &str) -> Result<Self> {
        if let Some(rest) = KINDS.iter().find_map(|kind| word.strip_prefix(kind)) {
            let (name, port) = with_port(rest)?;
            let parts: Vec<_> = name.split('/').collect();
            let (namespace, name) = match *parts.as_slice() {
                [name] => (None, name),
                [namespace, name] => (Some(namespace), name),
                _ => bail!("{word}: write svc/NAME:PORT, or svc/NAMESPACE/NAME:PORT"),
            };
            ensure!(
                !name.is_empty() && namespace != Some(""),
                "{word}: no name follows the slash"
            );
            return Ok(Self::Service(Named {
                namespace: namespace.map(str::to_owned),
                name: name.to_owned(),
                endpoint: None,
                port,
            }));
        }
        // What is no end at all is left to netdp on the node, which says what is wrong with it.
        if let Ok(end) = End::parse(word)
            && let Ok(address) = end.name.parse()
        {
            return Ok(Self::Address(address, end.port));
        }
        match with_port(word) {
            Ok((name, port)) => Ok(of_dns(name, port).map_or(Self::Other, Self::Service)),
            Err(_) => Ok(Self::Other),
        }
    }
}

/// Reads a name of the cluster's DNS: `[ENDPOINT.]NAME.NAMESPACE.svc[.cluster.local][.]`.
pub(super) fn of_dns(name: &str, port: Option<PortName>) -> Option<Named> {
    let name = name.strip_suffix('.').unwrap_or(name);
    let name = name.strip_suffix(".cluster.local").unwrap_or(name);
    let parts: Vec<_> = name.strip_suffix(".svc")?.split('.').collect();
    if parts.contains(&"") {
        return None;
    }
    let (endpoint, name, namespace) = match *parts.as_slice() {
        [name, namespace] => (None, name, namespace),
        [endpoint, name, namespace] => (Some(endpoint.to_owned()), name, namespace),
        _ => return None,
    };
    Some(Named {
        namespace: Some(namespace.to_owned()),
        name: name.to_owned(),
        endpoint,
        port,
    })
}

/// Splits a name from its port.
fn with_port(text: &str) -> Result<(&str, Option<PortName>)> {
    let Some((name, port)) = text.rsplit_once(':') else {
        return Ok((text, None));
    };
    let of_name = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    let is_number = port.bytes().all(|b| b.is_ascii_digit());
    let port = match port.parse() {
        Ok(number) if number != 0 => PortName::Number(number),
        _ if !is_number && port.bytes().all(of_name) => PortName::Name(port.to_owned()),
        _ => bail!("{text}: the port is neither a number from 1 to 65535 nor a port's name"),
    };
    Ok((name, Some(port)))
}

#[cfg(test)]
mod tests {
    use super::{Destination, PortName};

    fn told(word: &str) -> String {
        match Destination::parse(word).unwrap() {
            Destination::Service(it) => {
                let port = match it.port {
                    Some(PortName::Number(number)) => number.to_string(),
                    Some(PortName::Name(name)) => name,
                    None => "-".to_owned(),
                };
                let or = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
                let (namespace, endpoint) = (or(it.namespace), or(it.endpoint));
                format!("{namespace} {} {endpoint} {port}", it.name)
            }
            Destination::Address(address, port) => format!("{address} {port:?}"),
            Destination::Other => "other".to_owned(),
        }
    }

    #[test]
    fn services_are_named_in_kubectls_way_or_in_that_of_dns() {
        for (word, expected) in [
            ("svc/db", "- db - -"),
            ("svc/db:5432", "- db - 5432"),
            ("service/shop/db:sql", "shop db - sql"),
            ("services/shop/db", "shop db - -"),
            ("db.shop.svc", "shop db - -"),
            ("db.shop.svc:sql", "shop db - sql"),
            ("db.shop.svc.cluster.local.:80", "shop db - 80"),
            ("db-0.db.shop.svc.cluster.local", "shop db db-0 -"),
            ("10.96.0.12:80", "10.96.0.12 Some(80)"),
            ("[fd00:96::12]:80", "fd00:96::12 Some(80)"),
            ("fd00:96::12", "fd00:96::12 None"),
            ("db.example:5432", "other"),
            ("shop.svc", "other"),
            ("a.b.svc.example.com:443", "other"),
            ("..svc", "other"),
            ("fd00::1:x", "other"),
        ] {
            assert_eq!(told(word), expected, "{word}");
        }
        for wrong in [
            "svc/",
            "svc//db",
            "svc/a/b/c",
            "svc/db:0",
            "svc/db:70000",
            "svc/db:",
        ] {
            assert!(Destination::parse(wrong).is_err(), "{wrong}");
        }
    }
}
