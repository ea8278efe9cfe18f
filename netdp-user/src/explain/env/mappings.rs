//! The mapping tables, and the flows that keep the pod's address.

use super::LiveEnv;
use crate::explain::question::Question;
use netdp_common::env::{Accounting, InboundFlows, InsertError, Mappings, Reaching};
use netdp_common::layout::{
    Addr, Inbound, Live, Mapping, RECENT, Reach, RecentAt, SHARE_TOTAL, Share, ShareEnded, Traffic,
    Tuple,
};
use netdp_common::slot::{AskedSlot, LiveSlot, ReachSlot, ShareSlot, Slot};

impl Mappings for LiveEnv<'_> {
    fn lookup_snat(&self, tuple: &Tuple) -> Option<Slot> {
        let slot = self.snat.slot(tuple, || self.read_snat(tuple));
        // SAFETY: valid for as long as the environment; one thread.
        let found = slot.map(|slot| unsafe { *slot });
        self.note(Question::Mapping {
            tuple: *tuple,
            found,
        });
        // SAFETY: as above.
        slot.map(|slot| unsafe { Slot::new(slot) })
    }

    fn lookup_rev_snat(&self, tuple: &Tuple) -> Option<Slot> {
        let slot = self.rev_snat.slot(tuple, || self.read_rev_snat(tuple));
        // SAFETY: as above.
        let found = slot.map(|slot| unsafe { *slot });
        self.note(Question::Owner {
            wire: *tuple,
            found,
        });
        // SAFETY: as above.
        slot.map(|slot| unsafe { Slot::new(slot) })
    }

    fn insert_snat(&self, tuple: &Tuple, mapping: &Mapping) -> Result<(), InsertError> {
        let result = match self.snat.get(tuple, || self.read_snat(tuple)) {
            Some(_) => Err(InsertError::Exists),
            None => self.room(),
        };
        if result.is_ok() {
            self.snat.set(tuple, *mapping);
        }
        self.note(Question::Begins {
            tuple: *tuple,
            result,
        });
        result
    }

    fn insert_rev_snat(&self, tuple: &Tuple, mapping: &Mapping) -> Result<(), InsertError> {
        let result = match self.rev_snat.get(tuple, || self.read_rev_snat(tuple)) {
            Some(_) => Err(InsertError::Exists),
            None => self.room(),
        };
        if result.is_ok() {
            self.rev_snat.set(tuple, *mapping);
        }
        self.note(Question::Claim {
            wire: *tuple,
            result,
        });
        result
    }

    /// Nothing ends: that of the overlay is not for the log.
    fn report_end(&self, _: &Tuple, _: &Tuple, _: u32) -> bool {
        false
    }

    fn remove_snat(&self, tuple: &Tuple) -> bool {
        let removed = self.snat.remove(tuple, || self.read_snat(tuple));
        if removed {
            self.note(Question::Ends { tuple: *tuple });
        }
        removed
    }

    fn remove_rev_snat(&self, tuple: &Tuple) {
        self.rev_snat.remove(tuple, || self.read_rev_snat(tuple));
    }

    fn push_recent(&self, tuple: &Tuple) {
        let at = self.read_recent_at();
        self.recent.set(&(at.put & (RECENT - 1)), *tuple);
        let mut after = RecentAt {
            put: at.put.wrapping_add(1),
            ..at
        };
        if at.put.wrapping_sub(at.taken) >= RECENT {
            after.taken = at.put.wrapping_sub(RECENT - 1);
        }
        self.recent_at.set(&(), after);
    }

    fn pop_recent(&self, tuple: &mut Tuple) -> bool {
        let at = self.read_recent_at();
        if at.taken == at.put {
            return false;
        }
        let index = at.taken & (RECENT - 1);
        self.recent_at.set(
            &(),
            RecentAt {
                taken: at.taken.wrapping_add(1),
                ..at
            },
        );
        let read = || self.entry(&self.maps.recent, index, "recent");
        match self.recent.get(&index, read) {
            Some(oldest) => {
                *tuple = oldest;
                true
            }
            None => false,
        }
    }

    fn lookup_share(&self, bucket: u32) -> Option<ShareSlot> {
        let slot = self.share(bucket)?;
        self.note(Question::Share {
            bucket,
            mappings: slot.mappings(),
            inbound: slot.inbound(),
        });
        Some(slot)
    }
}

impl LiveEnv<'_> {
    fn read_snat(&self, tuple: &Tuple) -> Option<Mapping> {
        self.found(self.maps.snat.get(tuple, 0), "snat")
    }

    fn read_rev_snat(&self, tuple: &Tuple) -> Option<Mapping> {
        self.found(self.maps.rev_snat.get(tuple, 0), "rev_snat")
    }

    fn read_recent_at(&self) -> RecentAt {
        let read = || self.entry(&self.maps.recent_at, 0, "recent_at");
        self.recent_at.get(&(), read).unwrap_or_default()
    }

    fn share(&self, bucket: u32) -> Option<ShareSlot> {
        let share = self.shares.slot(&bucket, || {
            self.entry::<Share>(&self.maps.shares, bucket, "shares")
        })?;
        let ended = self.shares_ended.slot(&bucket, || {
            self.entry::<ShareEnded>(&self.maps.shares_ended, bucket, "shares_ended")
        })?;
        // SAFETY: both are valid for as long as the environment.
        Some(unsafe { ShareSlot::new(share, ended) })
    }

    /// Reports whether the mapping tables have room. Their entries are counted in the total, of which
    /// a walk alone would know better; reservations are not.
    fn room(&self) -> Result<(), InsertError> {
        match self.share(SHARE_TOTAL) {
            Some(total) if total.mappings() >= self.limits.capacity => Err(InsertError::Full),
            _ => Ok(()),
        }
    }

    /// Reports whether any flow that keeps the pod's address was ever recorded.
    fn inbound_is_used(&self) -> bool {
        let read = || self.entry(&self.maps.inbound_used, 0, "inbound_used");
        self.inbound_used.get(&(), read).is_some_and(|it| it != 0)
    }

    fn read_live(&self, tuple: &Tuple) -> Option<Live> {
        self.found(self.maps.inbound_live.get(tuple, 0), "inbound_live")
    }

    fn read_asked(&self, tuple: &Tuple) -> Option<Inbound> {
        self.found(self.maps.inbound.get(tuple, 0), "inbound")
    }
}

impl Accounting for LiveEnv<'_> {
    fn add_traffic(&self, key: &Tuple, traffic: &Traffic) -> bool {
        let read = || self.found(self.maps.traffic.get(key, 0), "traffic");
        match self.traffic.get(key, read) {
            Some(mut sum) => {
                sum.add(traffic);
                self.traffic.set(key, sum);
                true
            }
            None => false,
        }
    }

    fn insert_traffic(&self, key: &Tuple, traffic: &Traffic) -> bool {
        self.traffic.set(key, *traffic);
        true
    }

    fn remove_traffic(&self, key: &Tuple) {
        self.traffic.remove(key, || None);
    }

    /// Counts nothing: no decision depends on it, and the policy's answer names the rule.
    fn add_rule_hits(&self, _: u32, _: &Traffic, _: u64) {}
}

/// The counts decide nothing, and what explains must not be counted.
impl Reaching for LiveEnv<'_> {
    fn lookup_reach(&self, _network: &Addr) -> Option<ReachSlot> {
        None
    }

    fn insert_reach(&self, _network: &Addr, _reach: &Reach) {}
}

impl InboundFlows for LiveEnv<'_> {
    fn lookup_live(&self, tuple: &Tuple) -> Option<LiveSlot> {
        if !self.inbound_is_used() {
            return None;
        }
        let slot = self.inbound_live.slot(tuple, || self.read_live(tuple));
        // SAFETY: valid for as long as the environment; one thread.
        let found = slot.map(|slot| unsafe { *slot });
        self.note(Question::InboundLive {
            tuple: *tuple,
            found,
        });
        // SAFETY: as above.
        slot.map(|slot| unsafe { LiveSlot::new(slot) })
    }

    fn insert_live(&self, tuple: &Tuple, live: &Live) -> bool {
        self.inbound_used.set(&(), 1);
        let is_new = (self.inbound_live.get(tuple, || self.read_live(tuple))).is_none();
        if is_new {
            self.inbound_live.set(tuple, *live);
        }
        is_new
    }

    fn remove_live(&self, tuple: &Tuple) -> bool {
        self.inbound_live.remove(tuple, || self.read_live(tuple))
    }

    fn lookup_asked(&self, tuple: &Tuple) -> Option<AskedSlot> {
        if !self.inbound_is_used() {
            return None;
        }
        let slot = self.inbound.slot(tuple, || self.read_asked(tuple));
        // SAFETY: valid for as long as the environment; one thread.
        let found = slot.map(|slot| unsafe { *slot });
        self.note(Question::InboundAsked {
            tuple: *tuple,
            found,
        });
        // SAFETY: as above.
        slot.map(|slot| unsafe { AskedSlot::new(slot) })
    }

    fn insert_asked(&self, tuple: &Tuple, inbound: &Inbound) {
        self.inbound_used.set(&(), 1);
        self.inbound.set(tuple, *inbound);
    }

    fn remove_asked(&self, tuple: &Tuple) {
        if self.inbound_is_used() {
            self.inbound.remove(tuple, || self.read_asked(tuple));
        }
    }
}
