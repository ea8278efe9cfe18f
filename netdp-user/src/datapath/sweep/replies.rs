//! Compact reply halves, so that a sweep joins the two tables without a system call for each
//! mapping: 24 bytes each while it runs.

use super::carried_over::CarriedOver;
use netdp_common::layout::{Half, Mapping, Tuple};
use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, BuildHasherDefault, Hasher};

/// The fields that decide a mapping's lifetime.
struct Lifetime {
    last_seen: u32,
    tcp_ack: u32,
    tcp_seen: u8,
    /// The half's part of [`netdp_common::flow::Closing`].
    epoch: u8,
    uplink: u16,
    /// As far as decisions distinguish them.
    packets: u32,
}

/// Reply halves by a hash of their tuple.
#[derive(Default)]
pub struct Replies {
    hash: RandomState,
    /// Tuples with the same hash are not distinguished: an entry must be looked up before a mapping
    /// is ended because of it.
    halves: HashMap<u64, Lifetime, BuildHasherDefault<Identity>>,
    /// The halves from which traffic was carried over, those of `snat` included.
    pub carried: CarriedOver,
    /// Reservations of the node's own flows that have timed out.
    pub expired_reservations: Vec<Tuple>,
    /// Number of live reservations of the node's own flows.
    pub reservations: usize,
}

impl Replies {
    /// Adds a reply half.
    pub fn insert(&mut self, wire: &Tuple, half: &Mapping) {
        let lifetime = Lifetime {
            last_seen: half.last_seen,
            tcp_ack: half.tcp_ack,
            tcp_seen: half.tcp_seen,
            epoch: half.epoch,
            uplink: half.uplink,
            packets: half.packets(Half::Reply),
        };
        self.halves.insert(self.hash.hash_one(wire), lifetime);
    }

    /// Takes the reply half of `original`, with the fields that affect a decision.
    pub fn take(&mut self, wire: &Tuple, original: &Mapping) -> Option<Mapping> {
        if self.halves.is_empty() {
            return None;
        }
        let lifetime = self.halves.remove(&self.hash.hash_one(wire))?;
        Some(Mapping {
            last_seen: lifetime.last_seen,
            tcp_ack: lifetime.tcp_ack,
            tcp_seen: lifetime.tcp_seen,
            epoch: lifetime.epoch,
            uplink: lifetime.uplink,
            // Without the flag for bytes: packets only.
            flags: 0,
            traffic: lifetime.packets,
            ..*original
        })
    }

    /// Reports whether a half was not taken.
    pub fn has(&self, wire: &Tuple) -> bool {
        self.halves.contains_key(&self.hash.hash_one(wire))
    }

    /// Reports whether every half was taken: none lacks its original half.
    pub fn is_empty(&self) -> bool {
        self.halves.is_empty()
    }
}

/// Identity hasher: the keys are hashes already.
#[derive(Default)]
struct Identity(u64);

impl Hasher for Identity {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(byte);
        }
    }

    fn write_u64(&mut self, hash: u64) {
        self.0 = hash;
    }
}
