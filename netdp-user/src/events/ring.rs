//! The ring buffer of the programs' events, which one process at a time reads.

use super::{Begun, Dropped, Ends, Event, Headers, Kind, LOCK, Lost, PerKind, What, end};
use crate::datapath;
use crate::datapath::is_test;
use crate::private;
use anyhow::{Context as _, Result};
use aya::maps::{Map, MapData, PerCpuArray, RingBuf};
use netdp_common::layout::{
    BeginEvent, DropEvent, EVENT_BEGIN, EVENT_DROP, EVENT_IN, EVENT_REFUSED, EventCount, Tuple,
    pins,
};
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::time::{ClockId, clock_gettime};
use std::fs::File;
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::path::Path;

/// The kinds that the programs report, with their index in `event_counts`.
const REPORTED: [(Kind, u32); 3] = [
    (Kind::Begin, EVENT_BEGIN),
    (Kind::Refused, EVENT_REFUSED),
    (Kind::Drop, EVENT_DROP),
];

/// The ring buffer, with the lock of its reader.
pub(crate) struct Ring {
    ring: RingBuf<MapData>,
    reported: Reported,
    /// Events of the self-check's packets, which are left out, since [`Self::take_tests`].
    tests: PerKind<u64>,
    _lock: Flock<File>,
}

/// Another process reads the ring buffer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Locked {
    /// Its id, as it has written it.
    pub pid: String,
}

impl Ring {
    /// Opens the ring buffer below `bpffs`, and takes the lock in `state_dir`. What is in it from
    /// earlier is discarded, but its events of the self-check are counted.
    ///
    /// # Errors
    /// Returns an error if there is no such map, the lock can't be written, or the
    /// clocks can't be read.
    pub(crate) fn open(bpffs: &Path, state_dir: &Path) -> Result<Result<Self, Locked>> {
        let path = state_dir.join(LOCK);
        let file = private::open_own(&path)
            .with_context(|| format!("opening the lock file {}", path.display()))?;
        let mut lock = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => lock,
            Err((mut file, Errno::EWOULDBLOCK)) => {
                let mut pid = String::new();
                // Only for the message.
                let _ = (&mut file).take(32).read_to_string(&mut pid);
                let pid = pid.trim().to_owned();
                return Ok(Err(Locked { pid }));
            }
            Err((_, err)) => {
                return Err(err).with_context(|| format!("locking {}", path.display()));
            }
        };
        lock.set_len(0)?;
        writeln!(lock, "{}", std::process::id())
            .with_context(|| format!("writing {}", path.display()))?;
        let ring = Map::RingBuf(datapath::open_map(bpffs, pins::EVENTS)?);
        let mut ring = Self {
            ring: ring.try_into().context("mapping the events map")?,
            reported: Reported::open(bpffs)?,
            tests: PerKind::default(),
            _lock: lock,
        };
        ring.discard()?;
        Ok(Ok(ring))
    }

    /// Takes up to `most` events, and calls `each` with them, except those of the self-check. Returns how many
    /// there were.
    ///
    /// # Errors
    /// Returns an error if the clocks can't be read.
    pub(crate) fn take(&mut self, most: usize, mut each: impl FnMut(Event)) -> Result<usize> {
        let since_1970 = boot_time()?;
        let mut taken = 0;
        while taken < most
            && let Some(record) = self.ring.next()
        {
            taken += 1;
            let Some(event) = decode(&record, since_1970) else {
                continue;
            };
            if is_of_test(&event) {
                self.tests[event.kind()] += 1;
            } else {
                each(event);
            }
        }
        Ok(taken)
    }

    /// Discards what is there; events of the self-check are counted.
    ///
    /// # Errors
    /// Returns an error if the clocks can't be read.
    pub(super) fn discard(&mut self) -> Result<()> {
        const AT_ONCE: usize = 1024;
        while self.take(AT_ONCE, drop)? == AT_ONCE {}
        Ok(())
    }

    /// Takes the numbers of events of the self-check's packets.
    pub(super) fn take_tests(&mut self) -> PerKind<u64> {
        std::mem::take(&mut self.tests)
    }

    /// Returns what the programs have left out, by kind, since the maps were made.
    ///
    /// # Errors
    /// Returns an error if the map can't be read.
    pub(crate) fn lost(&self) -> Result<PerKind<Lost>> {
        let mut all = PerKind::default();
        for (kind, _) in REPORTED {
            if let Some((_, lost)) = self.reported.of(kind)? {
                all[kind] = lost;
            }
        }
        Ok(all)
    }
}

/// Numbers of events that the programs have counted since the maps were made.
pub(super) struct Reported(PerCpuArray<MapData, EventCount>);

impl Reported {
    /// Opens the map below `bpffs`.
    ///
    /// # Errors
    /// Returns an error if there is no such map.
    pub(super) fn open(bpffs: &Path) -> Result<Self> {
        let counts = Map::PerCpuArray(datapath::open_map(bpffs, pins::EVENT_COUNTS)?);
        Ok(Self(counts.try_into()?))
    }

    /// Returns how many events of a kind the programs have seen, and how many of them they have left
    /// out; `None` if they do not report the kind.
    ///
    /// # Errors
    /// Returns an error if the map can't be read.
    pub(super) fn of(&self, kind: Kind) -> Result<Option<(u64, Lost)>> {
        let Some((_, index)) = REPORTED.iter().find(|(it, _)| *it == kind) else {
            return Ok(None);
        };
        let per_cpu = self.0.get(index, 0);
        let per_cpu = per_cpu.context("reading the event_counts map")?;
        let (mut seen, mut lost) = (0, Lost::default());
        for cpu in per_cpu.iter() {
            seen += cpu.seen;
            lost.limited += cpu.limited;
            lost.full += cpu.full;
        }
        Ok(Some((seen, lost)))
    }
}

impl AsRawFd for Ring {
    fn as_raw_fd(&self) -> RawFd {
        self.ring.as_raw_fd()
    }
}

impl AsFd for Ring {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.ring.as_fd()
    }
}

/// Returns the time at which the monotonic clock was 0, in nanoseconds since 1970.
fn boot_time() -> Result<u64> {
    let nanos = |clock| -> Result<i128> {
        let time = clock_gettime(clock).context("reading the clock")?;
        Ok(i128::from(time.tv_sec()) * 1_000_000_000 + i128::from(time.tv_nsec()))
    };
    let difference = nanos(ClockId::CLOCK_REALTIME)? - nanos(ClockId::CLOCK_MONOTONIC)?;
    // A clock that was never set may be before that.
    Ok(u64::try_from(difference).unwrap_or(0))
}

/// Reads a record; `None` if it is of a kind that this version does not know.
fn decode(record: &[u8], since_1970: u64) -> Option<Event> {
    let (kind, _) = record.split_first_chunk()?;
    match u32::from_ne_bytes(*kind) {
        EVENT_BEGIN => read::<BeginEvent>(record).map(|event| begun(&event, since_1970)),
        EVENT_REFUSED | EVENT_DROP => {
            read::<DropEvent>(record).map(|event| dropped(&event, since_1970))
        }
        _ => None,
    }
}

/// Reports whether an event is about one of the self-check's packets.
fn is_of_test(event: &Event) -> bool {
    let source = match &event.what {
        What::Begin(begun) => Some(begun.ends.pod),
        What::Refused(dropped) | What::Drop(dropped) => Headers::of(dropped).map(|it| it.source),
        _ => None,
    };
    source.is_some_and(|source| is_test(&source.ip().into()))
}

fn read<T: aya::Pod>(record: &[u8]) -> Option<T> {
    if record.len() < size_of::<T>() {
        return None;
    }
    // SAFETY: it has the size, and every value of the bytes is one of a plain type.
    Some(unsafe { record.as_ptr().cast::<T>().read_unaligned() })
}

fn begun(event: &BeginEvent, since_1970: u64) -> Event {
    let begun = Begun {
        ends: ends(&event.tuple, end(event.addr, low(event.id))),
        ifindex: event.ifindex,
        rule: event.rule,
    };
    Event {
        time: since_1970.saturating_add(event.at),
        what: What::Begin(begun),
    }
}

/// Returns the ends of a mapping.
pub(super) fn ends(tuple: &Tuple, seen_as: std::net::SocketAddr) -> Ends {
    Ends {
        protocol: tuple.proto,
        pod: end(tuple.src, tuple.src_id),
        to: end(tuple.dst, tuple.dst_id),
        seen_as,
    }
}

fn dropped(event: &DropEvent, since_1970: u64) -> Event {
    let captured = usize::try_from(event.captured).unwrap_or(0);
    let packet = event.packet.get(..captured).unwrap_or(&event.packet);
    let dropped = Dropped {
        reason: event.reason,
        ifindex: event.ifindex,
        arriving: event.direction == EVENT_IN,
        length: event.length,
        l2_len: event.l2_len,
        packet: packet.to_vec(),
        id: None,
    };
    let what = match event.kind {
        EVENT_REFUSED => What::Refused(dropped),
        _ => What::Drop(dropped),
    };
    Event {
        time: since_1970.saturating_add(event.at),
        what,
    }
}

/// Returns the lower 16 bits: an L4 id.
const fn low(id: u32) -> u16 {
    (id & 0xffff) as u16
}
