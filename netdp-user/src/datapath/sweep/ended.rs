//! Ended mappings, for those who listen to events.

use crate::datapath::maps::Maps;
use crate::datapath::seconds;
use crate::events::{Ended, EndedBy, Ends, Kind, Sender, What, end};
use netdp_common::flow::age;
use netdp_common::layout::{Half, Mapping, Tuple};

/// Mappings that are about to end, while somebody listens.
#[derive(Default)]
pub struct EndedMappings {
    /// Where they are told; `None` if nobody listens.
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

    /// Adds a mapping that ends, at the tick `now`.
    pub(super) fn add(
        &mut self,
        maps: &Maps,
        (tuple, wire): (&Tuple, &Tuple),
        half: &Mapping,
        reply: Option<&Mapping>,
        why: EndedBy,
        now: u32,
    ) {
        if self.sender.is_none() {
            return;
        }
        let (out, bytes_out) = maps.traffic(Half::Original, tuple, half);
        let traffic_in = reply.map(|reply| maps.traffic(Half::Reply, wire, reply));
        let (into, bytes_in) = traffic_in.unwrap_or_default();
        self.waiting.push(Ended {
            ends: Ends {
                protocol: tuple.proto,
                pod: end(tuple.src, tuple.src_id),
                to: end(tuple.dst, tuple.dst_id),
                seen_as: end(half.addr, half.id),
            },
            why,
            age: seconds(age(now, half.created)),
            packets: [out, into],
            bytes: [bytes_out, bytes_in],
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
