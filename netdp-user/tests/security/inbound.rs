//! Inbound flows directly to pods: an outsider with very many of them does not end another's.

use crate::build::{self, SYN};
use crate::common::SOON;
use crate::common::clients::any;
use crate::flood::{Raw, Template, burst};
use crate::packet::Packet;
use crate::site::{Control, Site, Subject, Wrongs, both, end, ends};
use crate::talk::{Named, Pair, who};
use anyhow::{Context as _, Result};
use aya::maps::{HashMap, Map, MapData};
use netdp_common::layout::{Live, Tuple, pins};
use std::net::{IpAddr, SocketAddr};
use testbed::wait_for;

/// Number of tuples; each is sent twice, in each family.
const TUPLES: u32 = 150_000;

/// Number of connections that are opened and closed.
const CONNECTIONS: usize = 3000;

fn idle(site: &Site) -> Result<Vec<Pair>> {
    let open = |outsider: SocketAddr| {
        let to = end(site.good(), outsider.ip(), 5000)?;
        let mut pair = Pair::between(&site.near, site.good(), to)?;
        pair.goes_on().context("before the attack")?;
        Ok(pair)
    };
    ends(&site.near, 0).into_iter().map(open).collect()
}

/// Checks that the connections still work. The pod sends first: a packet from the client would
/// create the record again.
fn still_there(pairs: &mut [Pair]) -> Result<()> {
    let mut wrongs = Wrongs::default();
    for pair in pairs {
        let result = pair.server_speaks().and_then(|()| pair.goes_on());
        wrongs.note(pair.seen, result);
    }
    wrongs.none()
}

fn flooded(subject: Subject, packet: fn(IpAddr, IpAddr) -> Packet) -> Result<()> {
    let site = Site::start(subject, &[])?;
    let mut pairs = idle(&site)?;
    for outsider in ends(&site.near, 0) {
        let pod = end(site.evil(), outsider.ip(), 0)?.ip();
        let raw = Raw::towards(&site.near, pod)?;
        let template = Template::new(&packet(outsider.ip(), pod));
        burst(&raw, &template, 2 * TUPLES, |n, packet| {
            let n = n / 2;
            packet.sport(1024 + u16::try_from(n % 60_000).unwrap_or(0));
            packet.dport(1024 + u16::try_from(n / 60_000).unwrap_or(0));
        })?;
    }
    still_there(&mut pairs)
}

#[test]
fn syns_from_outside_do_not_end_an_idle_connection() -> Result<()> {
    both(Control::Holds, |subject| {
        flooded(subject, |outsider, pod| {
            build::tcp((outsider, 1), (pod, 1), SYN, (1, 0), b"")
        })
    })
}

#[test]
fn datagrams_from_outside_do_not_end_an_idle_connection() -> Result<()> {
    both(Control::Holds, |subject| {
        flooded(subject, |outsider, pod| {
            build::udp((outsider, 1), (pod, 1), b"x")
        })
    })
}

#[test]
fn short_connections_from_outside_do_not_end_an_idle_connection() -> Result<()> {
    both(Control::Holds, |subject| {
        let mut site = Site::start(subject, &[])?;
        let mut pairs = idle(&site)?;
        for to in ends(site.evil(), 5001) {
            let _pod = Named::tcp(site.evil(), to, "pod")?;
            for _ in 0..CONNECTIONS / 2 {
                who(&site.near, any(to), to)?.is("pod")?;
            }
        }
        if let Some(agent) = site.agent() {
            let map = MapData::from_pin(agent.bpffs().join(pins::INBOUND_LIVE))?;
            let map: HashMap<_, Tuple, Live> = Map::HashMap(map).try_into()?;
            wait_for(SOON, "closed connections to be forgotten", || {
                map.keys().count() == pairs.len()
            })?;
        }
        still_there(&mut pairs)
    })
}
