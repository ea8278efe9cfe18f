//! What the datapath tells of mappings: which live, and which have ended.

use super::ended::{EndedBy, EndedMapping, Identity};
use super::maps::Maps;
use super::self_check;
use super::{batch, bpffs};
use anyhow::{Context as _, Result};
use aya::maps::{Map, MapData, PerCpuArray, RingBuf};
use netdp_common::flow::age;
use netdp_common::layout::{Ended, Half, Mapping, Traffic, Tuple, pins};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// The mappings that a pass of the sweep tells the log about.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Watch {
    /// Time before which mappings that began are in the log, in ticks; `None`: none is.
    pub since: Option<u32>,
    /// Interval at which living ones are told about, in ticks; 0: never.
    pub alive: u32,
}

/// Ticks by which a mapping may have begun earlier than its time says: programs' clocks are up to a
/// jiffy late, and those of CPUs differ.
const SLACK: u32 = 4;

impl Watch {
    /// Reports whether a mapping that began at a time may not be in the log yet.
    pub(crate) const fn is_new(&self, now: u32, created: u32) -> bool {
        match self.since {
            Some(since) => age(now, created) <= age(now, since).saturating_add(SLACK),
            None => true,
        }
    }

    /// Reports whether a mapping has reached another multiple of the interval since the last pass.
    const fn is_alive_due(&self, now: u32, created: u32) -> bool {
        match (self.since, self.alive) {
            (None, _) | (_, 0) => false,
            (Some(since), alive) => age(now, created) / alive > age(since, created) / alive,
        }
    }

    /// Reports whether the log wants to know of a living mapping.
    pub(crate) const fn wants(&self, now: u32, created: u32) -> bool {
        self.is_new(now, created) || self.is_alive_due(now, created)
    }
}

/// Whoever is told of mappings. It must not block.
pub(crate) trait MappingLog: Send {
    /// Returns the living mappings that it wants to know of; `None`: none.
    fn watch(&self) -> Option<Watch>;
    /// Reports whether it wants to know of mappings that end.
    fn wants_ends(&self) -> bool;
    /// Mappings are about to be removed, and will be told about once they are.
    fn removing(&mut self);
    /// Mappings of which it wants to know live at `now`, in ticks, and others have ended.
    fn tell(&mut self, now: u32, live: &[Identity], ended: &[EndedMapping]);
    /// Of mappings that were about to be removed, at most `most` in number, it is not known which have been.
    fn lost_track(&mut self, most: usize);
    /// A pass that began at a time, in ticks, has seen every mapping.
    fn passed(&mut self, begun: u32);
}

/// A log that several threads tell.
pub(crate) type SharedLog = Arc<Mutex<dyn MappingLog>>;

/// Locks what several threads tell.
pub(crate) fn lock<L: ?Sized>(log: &Mutex<L>) -> MutexGuard<'_, L> {
    // A thread that panicked with the lock ended the agent.
    log.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One thread's reports to a log, collected for a batch of mappings.
#[derive(Default)]
pub(super) struct Teller {
    log: Option<SharedLog>,
    watch: Option<Watch>,
    wants_ends: bool,
    live: Vec<Identity>,
    ended: Vec<EndedMapping>,
}

impl Teller {
    /// Creates one for a log, if there is one.
    pub(super) fn new(log: Option<&SharedLog>) -> Self {
        let locked = log.map(|log| lock(log));
        let (watch, wants_ends) = locked.map_or((None, false), |it| (it.watch(), it.wants_ends()));
        Self {
            log: log.cloned(),
            watch,
            wants_ends,
            ..Self::default()
        }
    }

    /// Notes a living mapping if the log wants to know of it.
    pub(super) fn lives(&mut self, now: u32, tuple: &Tuple, half: &Mapping) {
        let is_wanted = self.watch.is_some_and(|it| it.wants(now, half.created));
        if is_wanted && !is_test(tuple) {
            self.live.push(Identity::of(tuple, half));
        }
    }

    /// Reports whether the log wants to know of mappings that end.
    pub(super) const fn wants_ends(&self) -> bool {
        self.wants_ends
    }

    /// Notes a mapping that is about to be removed.
    pub(super) fn ends(&mut self, ended: &EndedMapping) {
        if self.wants_ends && !is_test(&ended.mapping.tuple) {
            self.ended.push(*ended);
        }
    }

    /// To be called before what was noted as ending is removed.
    pub(super) fn removing(&self) {
        if let Some(log) = &self.log
            && !self.ended.is_empty()
        {
            lock(log).removing();
        }
    }

    /// Tells the log, at a time in ticks, what was noted. `removed`: what was to end has ended; else nobody
    /// knows which of it has.
    ///
    /// # Errors
    /// Returns an error if the time is not known: then nobody knows when it ended either.
    pub(super) fn tell(&mut self, now: Result<u32>, removed: bool) -> Result<()> {
        let Some(log) = &self.log else {
            return Ok(());
        };
        if self.live.is_empty() && self.ended.is_empty() {
            return Ok(());
        }
        let mut log = lock(log);
        let told = match (now, removed) {
            (Ok(now), true) => {
                for ended in &mut self.ended {
                    ended.at = now;
                }
                log.tell(now, &self.live, &self.ended);
                Ok(())
            }
            (now, _) => {
                if !self.ended.is_empty() {
                    log.lost_track(self.ended.len());
                }
                now.map(drop)
            }
        };
        self.live.clear();
        self.ended.clear();
        told
    }
}

/// Reports whether a mapping is one of the self-check's, which exists for a moment.
fn is_test(tuple: &Tuple) -> bool {
    self_check::is_test(&tuple.src)
}

impl Maps {
    /// Calls `each` for every mapping that lives, by its original half.
    ///
    /// # Errors
    /// Returns an error if the map can't be read.
    pub(crate) fn for_each_identity(&self, mut each: impl FnMut(&Identity)) -> Result<()> {
        batch::for_each::<Tuple, Mapping>(&self.snat_data, |tuple, half| {
            if !is_test(tuple) {
                each(&Identity::of(tuple, half));
            }
        })
        .context("reading the snat map")
    }
}

/// Reports of mappings that programs have ended. They have one reader.
pub(crate) trait Reports: Send {
    /// Takes up to `most` reports.
    fn take(&mut self, most: usize) -> Vec<EndedMapping>;
    /// Returns the number of mappings for whose report there was no room, since the maps exist.
    ///
    /// # Errors
    /// Returns an error if the map can't be read.
    fn lost(&self) -> Result<u64>;
    /// Returns the datapath's clock, in ticks.
    ///
    /// # Errors
    /// Returns an error if the clock can't be read.
    fn now(&self) -> Result<u32>;
}

/// The reports in the ring buffer `ended`.
pub(crate) struct EndedReports {
    ring: RingBuf<MapData>,
    lost: PerCpuArray<MapData, u64>,
    maps: Maps,
}

impl EndedReports {
    /// Opens the maps pinned below `bpffs`.
    ///
    /// # Errors
    /// Returns an error if a map is missing or has another type or size.
    pub(crate) fn open(bpffs: &Path) -> Result<Self> {
        let pinned = |file: &str| bpffs::open_map(bpffs, file);
        Ok(Self {
            ring: Map::RingBuf(pinned(pins::ENDED)?).try_into()?,
            lost: Map::PerCpuArray(pinned(pins::ENDED_LOST)?).try_into()?,
            maps: Maps::open(bpffs)?,
        })
    }
}

impl Reports for EndedReports {
    fn take(&mut self, most: usize) -> Vec<EndedMapping> {
        let mut taken = Vec::new();
        while taken.len() < most
            && let Some(item) = self.ring.next()
        {
            let Some(ended) = read(&item) else {
                continue;
            };
            drop(item);
            if is_test(&ended.tuple) {
                continue;
            }
            let [carried_out, carried_back] = &ended.carried;
            let (out, bytes_out) = total(Half::Original, &ended.original, carried_out);
            let (back, bytes_back) = total(Half::Reply, &ended.reply, carried_back);
            taken.push(EndedMapping {
                mapping: Identity::of(&ended.tuple, &ended.original),
                at: ended.at,
                why: EndedBy::reported(ended.why),
                packets: [out, back],
                bytes: [bytes_out, bytes_back],
            });
        }
        taken
    }

    fn lost(&self) -> Result<u64> {
        let per_cpu = self.lost.get(&0, 0).context("reading the ended_lost map")?;
        Ok(per_cpu.iter().sum())
    }

    fn now(&self) -> Result<u32> {
        self.maps.ticks()
    }
}

/// Returns the packets of a half, and their bytes if it counts them.
fn total(half: Half, mapping: &Mapping, carried: &Traffic) -> (u64, Option<u64>) {
    let mut traffic = mapping.uncarried(half);
    traffic.add(carried);
    let counts_bytes = mapping.flags & half.counted() != 0;
    (traffic.packets, counts_bytes.then_some(traffic.bytes))
}

/// Reads a report; `None` if it has another size, as of another version.
fn read(bytes: &[u8]) -> Option<Ended> {
    if bytes.len() < size_of::<Ended>() {
        return None;
    }
    // SAFETY: the bytes suffice, and any bytes are a valid value.
    Some(unsafe { std::ptr::read_unaligned(bytes.as_ptr().cast()) })
}

#[cfg(test)]
mod tests {
    use super::{EndedMapping, Identity, MappingLog, SLACK, Teller, Watch};
    use crate::datapath::EndedBy;
    use anyhow::anyhow;
    use netdp_common::layout::{Addr, Tuple};
    use std::net::IpAddr;
    use std::sync::{Arc, Mutex};

    /// A log that writes down what it is told.
    #[derive(Default)]
    struct Told(Vec<String>);

    impl MappingLog for Told {
        fn watch(&self) -> Option<Watch> {
            None
        }

        fn wants_ends(&self) -> bool {
            true
        }

        fn removing(&mut self) {
            self.0.push("removing".into());
        }

        fn tell(&mut self, now: u32, live: &[Identity], ended: &[EndedMapping]) {
            let at: Vec<_> = ended.iter().map(|it| it.at).collect();
            self.0
                .push(format!("{now}: {} live, ended {at:?}", live.len()));
        }

        fn lost_track(&mut self, most: usize) {
            self.0.push(format!("lost track of {most}"));
        }

        fn passed(&mut self, _: u32) {}
    }

    #[test]
    fn what_may_not_have_been_removed_is_not_told_as_ended() {
        let log = Arc::new(Mutex::new(Told::default()));
        let shared: super::SharedLog = Arc::clone(&log) as _;
        let mut teller = Teller::new(Some(&shared));
        let address = |text: &str| Addr::from(text.parse::<IpAddr>().unwrap());
        let (pod, to) = (address("172.16.0.2"), address("10.2.0.1"));
        let ended = EndedMapping {
            mapping: Identity {
                tuple: Tuple::new(pod, to, 1, 2, 6),
                addr: address("10.1.0.10"),
                id: 1,
                created: 0,
            },
            at: 0,
            why: EndedBy::Timeout,
            packets: [0; 2],
            bytes: [None; 2],
        };
        for (now, removed) in [
            (Ok(7), true),
            (Ok(8), false),
            (Err(anyhow!("no clock")), true),
        ] {
            teller.ends(&ended);
            teller.removing();
            let is_known = now.is_ok();
            assert_eq!(teller.tell(now, removed).is_ok(), is_known);
        }
        assert!(teller.tell(Ok(9), true).is_ok(), "nothing is left");
        let told = &log.lock().unwrap().0;
        let lost = "lost track of 1";
        assert_eq!(
            *told,
            [
                "removing",
                "7: 0 live, ended [7]",
                "removing",
                lost,
                "removing",
                lost
            ]
        );
    }

    #[test]
    fn a_mapping_is_new_until_a_pass_has_seen_it() {
        let watch = Watch {
            since: Some(1_000),
            alive: 0,
        };
        assert!(watch.is_new(1_100, 1_050));
        assert!(watch.is_new(1_100, 1_000 - SLACK));
        assert!(!watch.is_new(1_100, 1_000 - SLACK - 1));
        assert!(Watch::default().is_new(1_100, 0));
    }

    #[test]
    fn a_living_mapping_is_told_about_once_in_the_interval() {
        let at = |since| Watch {
            since: Some(since),
            alive: 100,
        };
        let began: u32 = u32::MAX - 20;
        let told = (0..50).filter(|pass| {
            let since = began.wrapping_add(pass * 10);
            at(since).is_alive_due(since.wrapping_add(10), began)
        });
        assert_eq!(told.count(), 5);
        assert!(!Watch::default().is_alive_due(1_000, 0));
    }
}
