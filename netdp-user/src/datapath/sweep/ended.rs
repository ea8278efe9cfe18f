//! Ended mappings, for those who listen to events.

use crate::datapath::{EndedMapping, Identity, seconds};
use crate::events::{Ended, Ends, Kind, Sender, What, end};
use netdp_common::flow::age;

/// Mappings that are about to end, while somebody listens.
#[derive(Default)]
pub struct EndedMappings {
    /// Sender of events about them; `None` if nobody listens.
    sender: Option<Sender>,
    waiting: Vec<Ended>,
}

impl EndedMappings {
    /// Collects mappings for `sender`, if somebody listens to it.
    pub(super) fn for_listeners(sender: Option<&Sender>) -> Self {
        let sender = sender.filter(|sender| sender.is_wanted(Kind::End));
        Self {
            sender: sender.cloned(),
            waiting: Vec::new(),
        }
    }

    /// Reports whether anyone listens.
    pub(super) const fn is_wanted(&self) -> bool {
        self.sender.is_some()
    }

    /// Adds a mapping that ends.
    pub(super) fn add(&mut self, ended: &EndedMapping) {
        if self.sender.is_none() {
            return;
        }
        let Identity {
            tuple,
            addr,
            id,
            created,
        } = ended.mapping;
        self.waiting.push(Ended {
            ends: Ends {
                protocol: tuple.proto,
                pod: end(tuple.src, tuple.src_id),
                to: end(tuple.dst, tuple.dst_id),
                seen_as: end(addr, id),
            },
            why: ended.why,
            age: seconds(age(ended.at, created)),
            packets: ended.packets,
            bytes: ended.bytes,
        });
    }

    /// Tells of those that have been removed.
    pub(super) fn send(&mut self) {
        let Some(sender) = &self.sender else {
            return;
        };
        for ended in self.waiting.drain(..) {
            sender.send(What::End(ended));
        }
    }
}
