//! Choice of the mappings that are evicted.

use netdp_common::flow::Carried;
use netdp_common::flow::EvictionClass;
use netdp_common::flow::eviction_class;
use netdp_common::layout::Tuple;
use netdp_common::sweep::EvictionTargets;
use std::cmp::Reverse;

/// An evictable mapping.
#[derive(Debug, Clone, Copy)]
pub struct Candidate {
    pub class: EvictionClass,
    idle: u32,
    pub tuple: Tuple,
    pub wire: Tuple,
}

/// The evictable mappings of a pass.
#[derive(Debug, Default)]
pub struct Candidates(Vec<Candidate>);

impl Candidates {
    /// Adds a mapping if it may be evicted.
    pub fn add(&mut self, carried: &Carried, idle: u32, tuple: &Tuple, wire: &Tuple) {
        if let Some(class) = eviction_class(carried, idle)
            && class != EvictionClass::LastAck
        {
            self.0.push(Candidate {
                class,
                idle,
                tuple: *tuple,
                wire: *wire,
            });
        }
    }

    /// Returns those to evict of `live` mappings, in their order: by class, the longest idle first.
    pub fn choose(self, live: usize, targets: &EvictionTargets) -> Vec<Candidate> {
        let mut all = self.0;
        all.sort_unstable_by_key(|it| (it.class, Reverse(it.idle)));
        let up_to = |class| all.partition_point(|it| it.class <= class);
        let (closed, unanswered) = (
            up_to(EvictionClass::Closed),
            up_to(EvictionClass::Unanswered),
        );
        all.truncate(targets.count(live, closed, unanswered));
        all
    }
}

#[cfg(test)]
mod tests {
    use super::Candidates;
    use netdp_common::flow::Carried;
    use netdp_common::flow::SEEN_RST;
    use netdp_common::flow::SEEN_SYN;
    use netdp_common::flow::ticks;
    use netdp_common::layout::Addr;
    use netdp_common::layout::Tuple;
    use netdp_common::layout::proto;
    use netdp_common::sweep::EvictionTargets;

    fn carried(original: u32) -> Carried {
        Carried {
            protocol: proto::TCP,
            peer_port: 443,
            acknowledged: false,
            original,
            reply: 0,
            packets: 1,
            replies: 0,
            lasted: 0,
        }
    }

    #[test]
    fn closed_ones_go_first_and_of_those_the_longest_idle() {
        let addr = Addr::from_v4([10, 0, 0, 1]);
        let tuple = |id| Tuple::new(addr, addr, id, 443, proto::TCP);
        let seconds = |seconds| u32::try_from(ticks(seconds)).unwrap();
        let mut candidates = Candidates::default();
        let (closed, opening) = (SEEN_SYN | SEEN_RST, SEEN_SYN);
        for (id, seen, idle) in [
            (1, opening, seconds(60)),
            (2, closed, seconds(10)),
            (3, closed, seconds(20)),
            (4, opening, 0),
        ] {
            candidates.add(&carried(seen), idle, &tuple(id), &tuple(id));
        }
        let chosen = candidates.choose(78, &EvictionTargets::new(100, 0));
        let ids: Vec<_> = chosen.iter().map(|it| it.tuple.src_id).collect();
        assert_eq!(ids, [3, 2, 1]);
    }
}
