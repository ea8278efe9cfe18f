//! Ends mappings whose time has come, and lists those that live.
//!
//! A mapping's time is the later of what its two halves saw. Whatever is swept
//! had been silent for its whole timeout: no live flow is ever collected.

use super::batch;
use super::maps::Maps;
use super::replies::Replies;
use super::schedule::{Next, Schedule};
use super::sticky::Sticky;
use crate::config::{Action, Config};
use anyhow::{Context as _, Result};
use aya::maps::{HashMap, MapData};
use netdp_common::abi::{MAPPING_HOST, Mapping};
use netdp_common::addr::Addr;
use netdp_common::conntrack::{TICK_SHIFT, TcpState, Timeouts, age, tcp_state, ticks};
use netdp_common::tuple::{Tuple, proto};
use serde::Serialize;
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::os::fd::AsFd as _;
use std::time::Duration;

/// What a sweep found and did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Swept {
    /// Mappings that live on.
    pub live: usize,
    /// Mappings that ended by time.
    pub expired: usize,
    /// Mappings that ended because their node address is gone.
    pub address_gone: usize,
    /// Mappings that ended because the policy would not make them any more.
    pub retired: usize,
    /// Mappings that ended to make room.
    pub made_room: usize,
    /// Whether the tables were nearly full.
    pub pressure: bool,
    /// Mappings of which one half was missing and was made again.
    pub repaired: usize,
    /// Tuples that are reserved for the node's own flows.
    pub host: usize,
}

/// A live mapping.
#[derive(Debug, Clone, Serialize)]
pub struct FlowRecord {
    /// Protocol name, or number.
    pub protocol: String,
    /// The pod's address.
    pub source: IpAddr,
    /// The pod's port or ICMP identifier.
    pub source_id: u16,
    /// The destination.
    pub destination: IpAddr,
    /// The destination's port.
    pub destination_id: u16,
    /// The node's address that the destination sees.
    pub nat_address: IpAddr,
    /// The port or identifier that the destination sees.
    pub nat_id: u16,
    /// TCP state, `replied` or `unreplied`.
    pub state: String,
    /// Seconds since it began.
    pub age_seconds: u64,
    /// Seconds since its last packet in either direction.
    pub idle_seconds: u64,
    /// Packets out.
    pub packets_out: u32,
    /// Packets back.
    pub packets_in: u32,
}

/// The datapath's clock now, in ticks.
pub(super) fn now(maps: &Maps) -> Result<u32> {
    let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC)
        .context("reading the monotonic clock")?;
    let nanos = i128::from(time.tv_sec()) * 1_000_000_000 + i128::from(time.tv_nsec());
    // Ticks wrap by design.
    let ticks = (nanos >> TICK_SHIFT) & i128::from(u32::MAX);
    Ok(u32::try_from(ticks)?.wrapping_add(maps.settings()?.clock_offset))
}

/// CPU time of this thread so far.
fn cpu_time() -> Result<Duration> {
    let time = nix::time::clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID)
        .context("reading the thread's CPU time")?;
    Ok(Duration::from(time))
}

/// What ends a mapping.
#[derive(Debug)]
pub struct SweepRules<'a> {
    /// Idle times.
    pub timeouts: &'a Timeouts,
    /// The node's addresses: a mapping to another one is over.
    pub local: &'a BTreeSet<IpAddr>,
    /// The policy in force.
    pub config: &'a Config,
    /// Idle time after which mappings that the policy would not make any more
    /// end; `None` lets them live.
    pub retire: Option<Duration>,
}

/// How full the tables may get, in percent, before closing and unanswered
/// mappings make room.
const PRESSURE_PERCENT: usize = 85;

/// How many mappings are removed by one system call.
const REMOVED_AT_ONCE: usize = 256;

/// One mapping: whether and why it ends.
enum Fate {
    /// For so many ticks at least, unless a packet changes it; not looked into
    /// further where that is longer than the horizon.
    Lives(u64),
    Expired,
    AddressGone,
    Retired,
}

/// Goes through all mappings, or through those that may have ended since, as
/// the schedule says. See [`super::Datapath::sweep_some`].
pub fn some(maps: &mut Maps, rules: &SweepRules<'_>, schedule: &mut Schedule) -> Result<Swept> {
    let now = now(maps)?;
    let due = match schedule.next(now) {
        Next::Due(due) if !crowded(maps, schedule)? => due,
        _ => return all(maps, rules, schedule),
    };
    let mut sweep = Sweep::new(now, rules, false, u64::from(u32::MAX));
    let mut again = Vec::new();
    for tuple in due {
        let Ok(half) = maps.snat.get(&tuple, 0) else {
            continue;
        };
        let wire = tuple.reply_to(half.addr, half.id);
        let fate = sweep.fate(&tuple, &half, || maps.rev_snat.get(&wire, 0).ok());
        if let Fate::Lives(left) = fate {
            again.push((u32::try_from(left).unwrap_or(u32::MAX), tuple));
        }
        sweep.note(&fate, &tuple, &wire);
    }
    schedule.again(now, again);
    sweep.end(maps, &[])
}

/// Whether the tables may have become nearly full since the last full sweep.
fn crowded(maps: &Maps, schedule: &Schedule) -> Result<bool> {
    let (live, created) = schedule.population();
    let more = maps.counters()?.mappings_created.saturating_sub(created);
    Ok(live + usize::try_from(more)? > limit(maps)?)
}

fn limit(maps: &Maps) -> Result<usize> {
    Ok(maps.capacity()? * PRESSURE_PERCENT / 100)
}

/// Goes once through all mappings. See [`super::Datapath::sweep`].
pub fn all(maps: &mut Maps, rules: &SweepRules<'_>, schedule: &mut Schedule) -> Result<Swept> {
    let start = cpu_time()?;
    let created = maps.counters()?.mappings_created;
    let limit = limit(maps)?;
    let interval = schedule.interval(rules.timeouts.shortest());
    let mut sweep = Sweep::new(now(maps)?, rules, false, ticks(interval));
    sweep.sticky = Sticky::look(maps.settings()?.flags);
    let mut replies = sweep.replies(maps)?;
    sweep.originals(maps, &mut replies)?;
    if sweep.swept.live > limit {
        // Once more, looking at both halves of every mapping.
        sweep = Sweep::new(sweep.now, rules, true, ticks(interval));
        sweep.sticky = Sticky::look(maps.settings()?.flags);
        replies = sweep.replies(maps)?;
        sweep.originals(maps, &mut replies)?;
        sweep.relieve(limit);
    }
    let mut over = std::mem::take(&mut replies.over);
    if !replies.is_empty() {
        over.extend(sweep.orphans(maps, &replies)?);
    }
    sweep.swept.host = replies.host;
    let (now, due) = (sweep.now, std::mem::take(&mut sweep.due));
    let sticky = std::mem::take(&mut sweep.sticky);
    let ours = sweep.local.clone();
    let swept = sweep.end(maps, &over)?;
    sticky.tell(maps, &ours)?;
    schedule.swept(now, cpu_time()?.saturating_sub(start), interval, due);
    schedule.populate(swept.live, created);
    Ok(swept)
}

struct Sweep<'a> {
    now: u32,
    local: BTreeSet<Addr>,
    rules: &'a SweepRules<'a>,
    /// Look for mappings that may make room.
    pressed: bool,
    swept: Swept,
    ended: Vec<(Tuple, Tuple)>,
    /// Original halves without reply half.
    torn: Vec<(Tuple, Tuple, Mapping)>,
    /// Living mappings that may end before the horizon: in how many ticks.
    due: Vec<(u32, Tuple)>,
    /// Ticks until the next full sweep.
    horizon: u64,
    /// Whether mappings are older than the policy.
    sticky: Sticky,
    /// Mappings that may make room: how willingly (less first), how long idle.
    spare: Vec<(u8, u32, Tuple, Tuple)>,
}

impl<'a> Sweep<'a> {
    fn new(now: u32, rules: &'a SweepRules<'a>, pressed: bool, horizon: u64) -> Self {
        Self {
            now,
            local: rules.local.iter().copied().map(Addr::from).collect(),
            rules,
            pressed,
            swept: Swept::default(),
            ended: Vec::new(),
            torn: Vec::new(),
            due: Vec::new(),
            horizon,
            sticky: Sticky::default(),
            spare: Vec::new(),
        }
    }

    /// Below this idle time a mapping lives beyond the horizon, whatever else
    /// is known of it.
    fn young(&self) -> u64 {
        ticks(self.rules.timeouts.shortest()).saturating_sub(self.horizon)
    }

    /// The reply halves that decide something, read in one go.
    fn replies(&self, maps: &Maps) -> Result<Replies> {
        let mut replies = Replies::default();
        let young = self.young();
        batch::for_each::<Tuple, Mapping>(maps.rev_snat_data.fd().as_fd(), |wire, half| {
            let idle = u64::from(age(self.now, half.last_seen));
            if half.flags & MAPPING_HOST != 0 {
                if left(self.now, self.rules.timeouts, wire, half, Some(half)) == 0 {
                    replies.over.push(*wire);
                } else {
                    replies.host += 1;
                }
            } else if idle >= young {
                replies.insert(wire, half);
            }
        })
        .context("reading the rev_snat map")?;
        Ok(replies)
    }

    fn originals(&mut self, maps: &Maps, replies: &mut Replies) -> Result<()> {
        batch::for_each::<Tuple, Mapping>(maps.snat_data.fd().as_fd(), |tuple, half| {
            let wire = tuple.reply_to(half.addr, half.id);
            let read = replies.take(&wire, half);
            let mut asked = None;
            let mut fate = self.fate(tuple, half, || {
                read.or_else(|| *asked.insert(maps.rev_snat.get(&wire, 0).ok()))
            });
            if let (Fate::Expired, Some(_)) = (&fate, read) {
                // A packet may have come since it was read.
                fate = self.fate(tuple, half, || maps.rev_snat.get(&wire, 0).ok());
            }
            self.note(&fate, tuple, &wire);
            let Fate::Lives(left) = fate else {
                return;
            };
            if left <= self.horizon {
                let left = u32::try_from(left).unwrap_or(u32::MAX);
                self.due.push((left, *tuple));
            }
            if let Some(None) = asked {
                self.torn.push((*tuple, wire, *half));
            }
            if self.pressed
                && let Some(reply) = read.or_else(|| maps.rev_snat.get(&wire, 0).ok())
                && let Some(willing) = spare(tuple, half, &reply)
            {
                let idle = age(self.now, half.last_seen);
                self.spare.push((willing, u32::MAX - idle, *tuple, wire));
            }
        })
        .context("reading the snat map")
    }

    /// Counts a mapping, and remembers it if it ends.
    fn note(&mut self, fate: &Fate, tuple: &Tuple, wire: &Tuple) {
        match fate {
            Fate::Lives(_) => {
                self.swept.live += 1;
                self.sticky.note(tuple.dst);
                return;
            }
            Fate::Expired => self.swept.expired += 1,
            Fate::AddressGone => self.swept.address_gone += 1,
            Fate::Retired => self.swept.retired += 1,
        }
        self.ended.push((*tuple, *wire));
    }

    fn fate(&self, tuple: &Tuple, half: &Mapping, reply: impl FnOnce() -> Option<Mapping>) -> Fate {
        if !self.local.contains(&half.addr) {
            return Fate::AddressGone;
        }
        let idle = u64::from(age(self.now, half.last_seen));
        if let Some(after) = self.rules.retire
            && idle >= ticks(after.as_secs())
            // Hairpin does not ask the policy.
            && !self.local.contains(&tuple.dst)
            && self.rules.config.decide(tuple.dst.into()).action == Action::Bypass
        {
            return Fate::Retired;
        }
        if idle < self.young() {
            return Fate::Lives(u64::MAX);
        }
        match left(self.now, self.rules.timeouts, tuple, half, reply().as_ref()) {
            0 => Fate::Expired,
            left => Fate::Lives(left),
        }
    }

    /// Reply halves without original half.
    fn orphans(&self, maps: &Maps, replies: &Replies) -> Result<Vec<Tuple>> {
        let mut orphans = Vec::new();
        let shortest = ticks(self.rules.timeouts.shortest());
        batch::for_each::<Tuple, Mapping>(maps.rev_snat_data.fd().as_fd(), |wire, half| {
            let idle = u64::from(age(self.now, half.last_seen));
            if idle >= shortest && half.flags & MAPPING_HOST == 0 && replies.has(wire) {
                let original = Tuple::new(half.addr, wire.src, half.id, wire.src_id, wire.proto);
                if maps.snat.get(&original, 0).is_err() {
                    orphans.push(*wire);
                }
            }
        })
        .context("reading the rev_snat map")?;
        Ok(orphans)
    }

    /// Does what was decided.
    fn end(self, maps: &mut Maps, orphans: &[Tuple]) -> Result<Swept> {
        let mut swept = self.swept;
        for (tuple, wire, half) in self.torn {
            swept.repaired += usize::from(repair(&mut maps.rev_snat, &tuple, &wire, &half)?);
        }
        // Both halves of a mapping within a moment: what comes between finds one.
        for ended in self.ended.chunks(REMOVED_AT_ONCE) {
            let (tuples, wires): (Vec<_>, Vec<_>) = ended.iter().copied().unzip();
            batch::remove(maps.snat_data.fd().as_fd(), &tuples).context("in the snat map")?;
            batch::remove(maps.rev_snat_data.fd().as_fd(), &wires)
                .context("in the rev_snat map")?;
        }
        batch::remove(maps.rev_snat_data.fd().as_fd(), orphans).context("in the rev_snat map")?;
        Ok(swept)
    }

    /// Where the tables are nearly full, ends closing mappings, then unanswered
    /// ones, the longest idle first. Established ones are never touched.
    fn relieve(&mut self, limit: usize) {
        let surplus = self.swept.live.saturating_sub(limit);
        self.spare
            .sort_unstable_by_key(|(willing, idle, ..)| (*willing, *idle));
        for (_, _, tuple, wire) in self.spare.iter().take(surplus) {
            self.ended.push((*tuple, *wire));
            self.swept.live -= 1;
            self.swept.made_room += 1;
        }
        self.swept.pressure = true;
    }
}

/// How willingly a live mapping makes room; `None`: never.
fn spare(tuple: &Tuple, original: &Mapping, reply: &Mapping) -> Option<u8> {
    if tuple.proto == proto::TCP {
        return match tcp_state(original.tcp_seen, reply.tcp_seen) {
            TcpState::Closed | TcpState::TimeWait => Some(0),
            TcpState::SynSent | TcpState::Unreplied => Some(1),
            TcpState::SynReceived | TcpState::Established | TcpState::HalfClosed => None,
        };
    }
    (reply.packets == 0).then_some(1)
}

/// How many ticks a mapping has left if no packet comes; 0: it is over.
fn left(
    now: u32,
    timeouts: &Timeouts,
    tuple: &Tuple,
    original: &Mapping,
    reply: Option<&Mapping>,
) -> u64 {
    let (seen, replied, reply_seen) = match reply {
        Some(reply) => (reply.tcp_seen, reply.packets > 0, reply.last_seen),
        None => (0, false, original.last_seen),
    };
    let timeout = timeouts.of(tuple.proto, original.tcp_seen, seen, replied);
    let idle = age(now, original.last_seen).min(age(now, reply_seen));
    ticks(timeout).saturating_sub(u64::from(idle))
}

/// Makes a missing reply half again; false if another mapping has the tuple.
fn repair(
    rev_snat: &mut HashMap<MapData, Tuple, Mapping>,
    tuple: &Tuple,
    wire: &Tuple,
    half: &Mapping,
) -> Result<bool> {
    const BPF_NOEXIST: u64 = 1;
    let reply = Mapping {
        addr: tuple.src,
        id: tuple.src_id,
        tcp_ack: 0,
        tcp_seen: 0,
        packets: 0,
        ..*half
    };
    Ok(rev_snat.insert(wire, reply, BPF_NOEXIST).is_ok())
}

impl Maps {
    /// Every live mapping.
    ///
    /// # Errors
    /// A map could not be read.
    pub fn flows(&self) -> Result<Vec<FlowRecord>> {
        let now = now(self)?;
        let mut flows = Vec::new();
        batch::for_each::<Tuple, Mapping>(self.snat_data.fd().as_fd(), |tuple, half| {
            let reply = self.rev_snat.get(&tuple.reply_to(half.addr, half.id), 0);
            flows.push(record(now, tuple, half, reply.ok().as_ref()));
        })
        .context("reading the snat map")?;
        flows.sort_by_key(|flow| (flow.source, flow.destination, flow.source_id));
        Ok(flows)
    }

    /// How many mappings there are.
    ///
    /// # Errors
    /// The map could not be read.
    pub fn flow_count(&self) -> Result<usize> {
        let mut count = 0;
        batch::for_each::<Tuple, Mapping>(self.snat_data.fd().as_fd(), |_, _| count += 1)
            .context("reading the snat map")?;
        Ok(count)
    }
}

fn record(now: u32, tuple: &Tuple, half: &Mapping, reply: Option<&Mapping>) -> FlowRecord {
    let packets_in = reply.map_or(0, |reply| reply.packets);
    let seen = reply.map_or(0, |reply| reply.tcp_seen);
    let idle = age(now, half.last_seen).min(reply.map_or(u32::MAX, |r| age(now, r.last_seen)));
    let state = match tuple.proto {
        proto::TCP => format!("{:?}", tcp_state(half.tcp_seen, seen)),
        _ if packets_in > 0 => "replied".into(),
        _ => "unreplied".into(),
    };
    FlowRecord {
        protocol: crate::status::protocol(tuple.proto),
        source: tuple.src.into(),
        source_id: tuple.src_id,
        destination: tuple.dst.into(),
        destination_id: tuple.dst_id,
        nat_address: half.addr.into(),
        nat_id: half.id,
        state,
        age_seconds: seconds(age(now, half.created)),
        idle_seconds: seconds(idle),
        packets_out: half.packets,
        packets_in,
    }
}

fn seconds(ticks: u32) -> u64 {
    (u64::from(ticks) << TICK_SHIFT) / 1_000_000_000
}
