//! The clock, the counters, the configuration and the interface of a packet.

use super::LiveEnv;
use crate::explain::question::{NotAsked, Question};
use netdp_common::env::{BoundedLoop, Clock, Config, Counting, Events, Interface};
use netdp_common::layout::{
    Counters, DropReason, Family, Limits, MacKey, Settings, Traffic, Tuple, UPLINK_OBSERVED, Uplink,
};

impl Clock for LiveEnv<'_> {
    fn now(&self) -> u32 {
        self.now
    }

    /// Returns the next value of a linear congruential generator: the same sequence each time.
    fn random(&self) -> u32 {
        let next = self.random.get().wrapping_mul(1_664_525);
        self.random.set(next.wrapping_add(1_013_904_223));
        self.random.get()
    }
}

impl Counting for LiveEnv<'_> {
    fn count(&self, counter: impl FnOnce(&mut Counters) -> &mut u64) {
        *counter(&mut self.counters.borrow_mut()) += 1;
    }

    fn count_traffic(&self, counter: impl FnOnce(&mut Counters) -> &mut Traffic, more: &Traffic) {
        counter(&mut self.counters.borrow_mut()).add(more);
    }

    fn count_drop(&self, reason: DropReason) {
        *self.counters.borrow_mut().drops.get_mut(reason) += 1;
    }

    /// Counts nothing, as for the other counts of packets that are not sent.
    fn count_refusal(&self, _: u32) {}

    fn count_search(&self, _: u32) {}

    fn count_protocol(&self, _: u32) {}
}

impl Config for LiveEnv<'_> {
    fn settings(&self) -> &Settings {
        &self.settings
    }

    fn epoch(&self) -> u32 {
        self.settings.epoch
    }

    fn uplink(&self) -> &Uplink {
        &self.uplink
    }

    fn is_uplink(&self, ifindex: u32) -> bool {
        let uplink = self.found(self.maps.uplinks.get(&ifindex, 0), "uplinks");
        let yes = uplink.is_some_and(|uplink| uplink.flags & UPLINK_OBSERVED == 0);
        self.note(Question::Uplink { ifindex, yes });
        yes
    }

    fn limits(&self) -> &Limits {
        &self.limits
    }
}

impl Interface for LiveEnv<'_> {
    fn ifindex(&self) -> u32 {
        self.at.ifindex
    }

    fn l3_len(&self) -> u32 {
        self.l3_len
    }

    fn ingress_ifindex(&self) -> u32 {
        self.at.came_by
    }

    fn is_bridged(&self, tuple: &Tuple, family: Family) -> bool {
        let yes = self
            .foreign_mac()
            .is_some_and(|mac| !self.sends_as(tuple, family, mac));
        self.note(Question::Bridged { yes });
        yes
    }

    fn has_foreign_mac(&self) -> bool {
        let yes = self.foreign_mac().is_some();
        self.note(Question::Bridged { yes });
        yes
    }

    fn is_sent_by_socket(&self) -> bool {
        self.at.by_socket
    }
}

impl LiveEnv<'_> {
    /// Returns the source hardware address of the packet if the agent has recorded those by which
    /// the node sends at this interface, and it is none of them.
    fn foreign_mac(&self) -> Option<[u8; 6]> {
        let mac = self.mac?;
        let Some(macs) = &self.maps.unpinned.macs else {
            self.note_not_asked(NotAsked::HardwareAddresses);
            return None;
        };
        let has = |mac: [u8; 6]| {
            let key = MacKey {
                link: self.at.ifindex,
                mac,
                pad: 0,
            };
            self.found(macs.get(&key, 0), "MACS").is_some()
        };
        (!has(mac) && has([0; 6])).then_some(mac)
    }
}

impl Events for LiveEnv<'_> {
    /// Reports nothing: no mapping begins here.
    fn report_begin(&self, _: &Tuple, _: &Tuple, _: u32) -> bool {
        false
    }
}

impl BoundedLoop for LiveEnv<'_> {
    fn bounded_loop<S, F>(&self, n: u32, state: &mut S, step: F)
    where
        F: Fn(&Self, u32, &mut S) -> bool,
    {
        for i in 0..n {
            if !step(self, i, state) {
                return;
            }
        }
    }
}
