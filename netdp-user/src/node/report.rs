//! The report of `netdp status` about ports and protocols that are reserved for the node.

use super::ProtocolPeer;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Maximum number of port ranges of one protocol, and of protocols, named in a line.
const NAMED: usize = 12;

/// Ports and protocols that pods' flows can't use because the node itself receives them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeReport {
    /// Reserved ports, by protocol and origin.
    pub ports: Vec<PortsReport>,
    /// Reserved protocols without ports.
    pub protocols: Vec<ProtocolReport>,
    /// Origins with too many ports to be reserved.
    pub not_kept: Vec<String>,
    /// Places of possible further ports that could not be read, with the reason.
    pub unread: Vec<String>,
}

/// Ports of one protocol, with one origin.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PortsReport {
    /// `tcp`, `udp`, `sctp`, `udplite` or `dccp`.
    pub protocol: String,
    /// Ranges such as `80,8080-8081`.
    pub ports: String,
    /// Receiver of these ports.
    pub from: String,
}

/// A protocol without ports.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProtocolReport {
    /// Protocol name, or number.
    pub protocol: String,
    /// Peer: an address, `any (IPv4)` or `any (IPv6)`.
    pub peer: String,
    /// User of the protocol.
    pub from: String,
}

impl ProtocolReport {
    pub(super) fn new(peer: &ProtocolPeer, from: String) -> Self {
        let address = match (peer.peer.is_unspecified(), peer.peer.is_ipv4()) {
            (false, _) => peer.peer.to_string(),
            (true, true) => "any (IPv4)".into(),
            (true, false) => "any (IPv6)".into(),
        };
        Self {
            protocol: name(peer.protocol),
            peer: address,
            from,
        }
    }
}

impl NodeReport {
    /// Summarises the report in a line.
    #[must_use]
    pub fn line(&self) -> String {
        let mut by_protocol: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for found in &self.ports {
            let ports = by_protocol.entry(&found.protocol).or_default();
            ports.extend(found.ports.split(','));
        }
        let ports = by_protocol.into_iter().map(|(protocol, mut ports)| {
            let first = |text: &&str| -> u32 {
                let number = text.split('-').next().unwrap_or(text);
                number.parse().unwrap_or_default()
            };
            ports.sort_by_key(first);
            ports.dedup();
            format!("{protocol} {}", shortened(&ports, ","))
        });
        let mut parts: Vec<String> = ports.collect();
        let protocols: Vec<_> = self
            .protocols
            .iter()
            .map(|found| match found.peer.strip_prefix("any (") {
                Some(_) => found.protocol.clone(),
                None => format!("{} to {}", found.protocol, found.peer),
            })
            .collect();
        if !protocols.is_empty() {
            let mut protocols: Vec<_> = protocols.iter().map(String::as_str).collect();
            protocols.dedup();
            parts.push(format!("protocols {}", shortened(&protocols, ", ")));
        }
        if parts.is_empty() {
            return "none".into();
        }
        parts.join("; ")
    }
}

fn shortened(all: &[&str], separator: &str) -> String {
    let named = all.get(..NAMED.min(all.len())).unwrap_or_default();
    match all.len() - named.len() {
        0 => named.join(separator),
        more => format!("{} and {more} more", named.join(separator)),
    }
}

/// Returns a protocol's name, or its number.
fn name(protocol: u8) -> String {
    match protocol {
        2 => "igmp",
        4 => "ipip",
        41 => "ipv6",
        47 => "gre",
        50 => "esp",
        51 => "ah",
        88 => "eigrp",
        89 => "ospf",
        103 => "pim",
        108 => "ipcomp",
        112 => "vrrp",
        115 => "l2tp",
        137 => "mpls",
        other => return other.to_string(),
    }
    .into()
}
