//! Kinds of floods with which a pod may use up what other pods need.

use crate::build::{self, SYN};
use crate::flood::{Flood, Raw, Template};
use crate::packet::{Packet, Part};
use crate::site::{Site, end, ends};
use anyhow::Result;
use std::net::IpAddr;
use testbed::UdpEchoServer;

/// Ports on which the accomplice answers.
const ANSWERED: std::ops::Range<u16> = 5001..5006;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    SynsToOne,
    SynsToMany,
    DatagramsToMany,
    AnsweredDatagrams,
    FirstFragments,
    LaterFragments,
}

impl Kind {
    pub const ALL: [Self; 6] = [
        Self::SynsToOne,
        Self::SynsToMany,
        Self::DatagramsToMany,
        Self::AnsweredDatagrams,
        Self::FirstFragments,
        Self::LaterFragments,
    ];

    /// Returns the packet to vary. `nobody` does not answer.
    fn packet(self, pod: IpAddr, nobody: IpAddr, accomplice: IpAddr) -> Packet {
        let (pod, nobody) = ((pod, 1), (nobody, 443));
        match self {
            Self::SynsToOne | Self::SynsToMany => build::tcp(pod, nobody, SYN, (1, 0), b""),
            Self::DatagramsToMany => build::udp(pod, nobody, b"x"),
            Self::AnsweredDatagrams => build::udp(pod, (accomplice, ANSWERED.start), b"x"),
            Self::FirstFragments | Self::LaterFragments => {
                let mut packet = build::udp(pod, nobody, &[0; 64]);
                packet.part = Some(Part {
                    offset: if self == Self::LaterFragments { 72 } else { 0 },
                    more: self == Self::FirstFragments,
                    id: 0x5eed_0000,
                });
                packet
            }
        }
    }

    /// Derives packet `n`, which opens a new flow.
    fn vary(self, n: u32, packet: &mut Template) {
        let [_, upper, ..] = n.to_be_bytes();
        let low = u16::try_from(n & 0xffff).unwrap_or(0);
        let port = 1024 + u16::try_from(n % 60_000).unwrap_or(0);
        match self {
            Self::SynsToOne => packet.sport(port),
            Self::SynsToMany | Self::DatagramsToMany => {
                packet.sport(20_000 + u16::from(upper));
                packet.destination(low);
            }
            Self::AnsweredDatagrams => {
                packet.sport(port);
                let to = u16::try_from(n / 60_000).unwrap_or(0);
                packet.dport(ANSWERED.start + to % 5);
            }
            Self::FirstFragments => {
                packet.id(low);
                packet.sport(20_000 + u16::from(upper));
                packet.destination(low);
            }
            Self::LaterFragments => {
                packet.id(low);
                packet.destination(low);
            }
        }
    }

    /// Starts the flood of the third pod, `rate` packets per second in each family.
    pub fn flood(self, site: &Site, rate: u32) -> Result<Flood> {
        let mut templates = Vec::new();
        for nobody in ["10.66.0.0", "fd00:66::"] {
            let nobody: IpAddr = nobody.parse()?;
            let pod = end(site.evil(), nobody, 0)?.ip();
            let accomplice = end(&site.far, nobody, 0)?.ip();
            templates.push(Template::new(&self.packet(pod, nobody, accomplice)));
        }
        let raw = Raw::towards(site.evil(), "10.66.0.0".parse()?)?;
        let vary = move |n, template: &mut Template| self.vary(n, template);
        Ok(Flood::start(raw, templates, rate, vary))
    }

    /// Starts the servers that answer the flood.
    pub fn accomplice(self, site: &Site) -> Result<Vec<UdpEchoServer>> {
        if self != Self::AnsweredDatagrams {
            return Ok(Vec::new());
        }
        let ends = ANSWERED.flat_map(|port| ends(&site.far, port));
        ends.map(|at| UdpEchoServer::start(&site.far, at)).collect()
    }
}
