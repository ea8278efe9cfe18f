//! The environment of the decisions over the maps of a live datapath: it reads them, keeps what a
//! decision writes to itself, and records each question with its answer.

mod config;
mod look;
mod mappings;
mod maps;
mod overlay;
mod policy;
mod ports;
mod routes;

pub use maps::LiveMaps;

use super::question::{NotAsked, Question};
use super::{At, Kernel};
use crate::time::ticks;
use anyhow::{Context as _, Error, Result};
use aya::maps::{Array, MapData, MapError};
use netdp_common::env::EgressRoute;
use netdp_common::layout::{
    Addr, Counters, Endpoint, Fragment, Inbound, Limits, Live, Mapping, NodeFlow, NodeFlowPorts,
    Pair, PortMapBits, PortMapOwner, RecentAt, Settings, Share, ShareEnded, Traffic, Tuple, Uplink,
};
use overlay::Overlay;
use std::cell::{Cell, OnceCell, RefCell};

/// Seed of the random numbers: the same question gets the same answer.
const SEED: u32 = 0x9e37_79b9;

/// The maps for one packet.
pub(super) struct LiveEnv<'a> {
    maps: &'a LiveMaps,
    kernel: &'a RefCell<Kernel>,
    /// The place of the packet.
    at: At,
    /// Its length from the IP header on, in bytes.
    l3_len: u32,
    /// Source address of its Ethernet header.
    mac: Option<[u8; 6]>,
    /// DSCP and ECN of its IP header.
    tos: u8,
    settings: Settings,
    limits: Limits,
    uplink: Uplink,
    /// The time, in ticks.
    now: u32,
    random: Cell<u32>,
    counters: RefCell<Counters>,
    questions: RefCell<Vec<Question>>,
    /// The first error of a look-up.
    error: RefCell<Option<Error>>,
    routes: Overlay<Tuple, EgressRoute>,
    snat: Overlay<Tuple, Mapping>,
    rev_snat: Overlay<Tuple, Mapping>,
    traffic: Overlay<Tuple, Traffic>,
    shares: Overlay<u32, Share>,
    shares_ended: Overlay<u32, ShareEnded>,
    recent: Overlay<u32, Tuple>,
    recent_at: Overlay<(), RecentAt>,
    inbound: Overlay<Tuple, Inbound>,
    inbound_live: Overlay<Tuple, Live>,
    inbound_used: Overlay<(), u32>,
    node_flows: Overlay<Tuple, NodeFlow>,
    stamps: Overlay<u16, u8>,
    /// The stamps of all ports, once one was asked for.
    all_stamps: OnceCell<Box<NodeFlowPorts>>,
    port_map_owners: Overlay<u32, PortMapOwner>,
    port_maps: Overlay<u32, PortMapBits>,
    exhausted: Overlay<Tuple, u32>,
    endpoints: Overlay<Tuple, u32>,
    wire_endpoints: Overlay<Tuple, Endpoint>,
    fragments: [Overlay<Tuple, Fragment>; 2],
    pairs: Overlay<u32, Pair>,
}

impl<'a> LiveEnv<'a> {
    /// Returns the environment at an interface; `None` if it has no programs that translate.
    ///
    /// # Errors
    /// Returns an error if a map or the clock can't be read.
    pub(super) fn new(
        maps: &'a LiveMaps,
        kernel: &'a RefCell<Kernel>,
        at: At,
        packet: &Facts,
    ) -> Result<Option<Self>> {
        let settings: Settings = maps
            .settings
            .get(&0, 0)
            .context("reading the settings map")?;
        let Some(uplink) = maps.uplink(at.ifindex)? else {
            return Ok(None);
        };
        Ok(Some(Self {
            maps,
            kernel,
            at,
            l3_len: packet.len.saturating_sub(uplink.l2_len),
            mac: packet.mac.filter(|_| uplink.l2_len != 0),
            tos: packet.tos,
            limits: maps.limits.get(&0, 0).context("reading the limits map")?,
            now: now(maps)?,
            settings,
            uplink,
            random: Cell::new(SEED),
            counters: RefCell::default(),
            questions: RefCell::default(),
            error: RefCell::default(),
            routes: Overlay::default(),
            snat: Overlay::default(),
            rev_snat: Overlay::default(),
            traffic: Overlay::default(),
            shares: Overlay::default(),
            shares_ended: Overlay::default(),
            recent: Overlay::default(),
            recent_at: Overlay::default(),
            inbound: Overlay::default(),
            inbound_live: Overlay::default(),
            inbound_used: Overlay::default(),
            node_flows: Overlay::default(),
            stamps: Overlay::default(),
            all_stamps: OnceCell::new(),
            port_map_owners: Overlay::default(),
            port_maps: Overlay::default(),
            exhausted: Overlay::default(),
            endpoints: Overlay::default(),
            wire_endpoints: Overlay::default(),
            fragments: Default::default(),
            pairs: Overlay::default(),
        }))
    }

    /// Returns the time of the decision, in ticks.
    pub(super) const fn time(&self) -> u32 {
        self.now
    }

    /// Returns what would be counted, and the questions in order.
    ///
    /// # Errors
    /// Returns the first error of a look-up.
    pub(super) fn finish(self) -> Result<(Counters, Vec<Question>)> {
        match self.error.into_inner() {
            Some(error) => Err(error),
            None => Ok((self.counters.into_inner(), self.questions.into_inner())),
        }
    }

    fn note(&self, question: Question) {
        self.questions.borrow_mut().push(question);
    }

    /// Notes that something could not be asked: once.
    fn note_not_asked(&self, what: NotAsked) {
        let question = Question::NotAsked(what);
        let mut questions = self.questions.borrow_mut();
        if !questions.contains(&question) {
            questions.push(question);
        }
    }

    /// Returns what a look-up has found. Its error ends the explanation, not the decision.
    fn found<V>(&self, result: Result<V, MapError>, map: &'static str) -> Option<V> {
        match result {
            Ok(value) => Some(value),
            Err(MapError::KeyNotFound) => None,
            Err(err) => {
                self.fail(Error::new(err).context(format!("reading the {map} map")));
                None
            }
        }
    }

    /// Returns an entry of an array.
    fn entry<V: aya::Pod>(
        &self,
        map: &Array<MapData, V>,
        index: u32,
        name: &'static str,
    ) -> Option<V> {
        self.found(map.get(&index, 0), name)
    }

    fn fail(&self, error: Error) {
        self.error.borrow_mut().get_or_insert(error);
    }
}

/// Facts about a packet that its tuple does not tell.
pub(super) struct Facts {
    /// Its whole length, in bytes.
    pub(super) len: u32,
    /// Source address of its Ethernet header, if it may have one.
    pub(super) mac: Option<[u8; 6]>,
    /// DSCP and ECN of its IP header.
    pub(super) tos: u8,
}

/// Returns the time of the programs, in ticks.
///
/// # Errors
/// Returns an error if the settings or the clock can't be read.
pub(super) fn now(maps: &LiveMaps) -> Result<u32> {
    Ok(ticks()?.wrapping_add(maps.settings()?.clock_offset))
}

/// The pair of no addresses, which no cache holds.
const NO_PAIR: Pair = Pair {
    pod: NO_ADDR,
    peer: NO_ADDR,
    epoch: 0,
    rule: 0,
    hits: Traffic {
        packets: 0,
        bytes: 0,
    },
    earlier: 0,
};

const NO_ADDR: Addr = Addr::from_words([0; 4]);
