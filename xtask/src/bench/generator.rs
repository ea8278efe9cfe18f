//! Loading, attaching and running the packet generator, the sink and the empty program.

use super::bed::{Bed, CLIENT, CLIENT_MAC, FAR, NEAR, NODE, NODE_MAC, POD_SIDE_MAC, SERVER_MAC};
use super::load::{Direction, Flows, Load, Servers};
use super::variant::EMPTY_PROGRAM;
use anyhow::{Context as _, Result, bail, ensure};
use aya::maps::{Array, PerCpuArray, PerCpuValues};
use aya::programs::links::LinkOrder;
use aya::programs::tc::{SchedClassifierLink, TcAttachOptions};
use aya::programs::xdp::{XdpLink, XdpMode};
use aya::programs::{Program, ProgramError, SchedClassifier, TcAttachType, TestRun as _, Xdp};
use aya::util::nr_cpus;
use aya::{Ebpf, TestRunAttrs, TestRunOptions};
use bench_ebpf::{FRAME, PORT, PORT_BITS, Seen, Stream};
use netdp_common::packet::checksum;
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use std::net::Ipv4Addr;
use std::path::Path;
use std::time::{Duration, Instant};
use testbed::Netns;

/// Frames per batch of the kernel (its own limit is 256).
const BATCH: u32 = 64;

/// Timeout for packets in flight.
const UNDER_WAY: Duration = Duration::from_millis(50);

/// Polling interval while packets are in flight.
const PAUSE: Duration = Duration::from_micros(50);

/// Newtypes that implement `aya::Pod`, for use as map values.
#[derive(Clone, Copy)]
#[repr(transparent)]
struct StreamValue(Stream);
#[derive(Clone, Copy)]
#[repr(transparent)]
struct SeenValue(Seen);
// SAFETY: repr(C), integers only, no padding (22 words).
unsafe impl aya::Pod for StreamValue {}
// SAFETY: repr(C), integers only, no padding (two words between double words).
unsafe impl aya::Pod for SeenValue {}

/// Result of a burst through a bed. The first packet is timed at the generator and the last at the
/// sink, so the start-up and end of the generator, about a tick, are not included.
#[derive(Debug, Clone, Copy)]
pub struct Burst {
    /// Number of packets that arrived.
    pub received: u64,
    /// Time from the first packet to the last.
    pub time: Duration,
}

impl Burst {
    /// Returns the rate in packets per second.
    pub fn rate(&self) -> f64 {
        self.received as f64 / self.time.as_secs_f64()
    }
}

/// The loaded programs: generator, sink and empty program.
pub struct Generator(Ebpf);

/// Attachment of the empty program to a hook.
pub struct Hook(#[expect(dead_code, reason = "detaches when dropped")] SchedClassifierLink);

/// Attachment of a sink.
pub struct Sink(#[expect(dead_code, reason = "detaches when dropped")] XdpLink);

impl Generator {
    pub fn load(object: &Path) -> Result<Self> {
        let mut ebpf =
            Ebpf::load_file(object).with_context(|| format!("loading {}", object.display()))?;
        for name in ["bench_generate", "bench_sink"] {
            program::<Xdp>(&mut ebpf, name)?.load()?;
        }
        program::<SchedClassifier>(&mut ebpf, EMPTY_PROGRAM)?.load()?;
        Ok(Self(ebpf))
    }

    /// Attaches the empty program to the hooks that netdp uses.
    pub fn attach_empty(&mut self, bed: &Bed) -> Result<[Hook; 2]> {
        let empty: &mut SchedClassifier = program(&mut self.0, EMPTY_PROGRAM)?;
        let mut attach = |hook| {
            let link = bed.node.enter(|| {
                let order = TcAttachOptions::TcxOrder(LinkOrder::default());
                let id = empty.attach_with_options("eth0", hook, order)?;
                empty.take_link(id)
            })??;
            anyhow::Ok(Hook(link))
        };
        Ok([
            attach(TcAttachType::Egress)?,
            attach(TcAttachType::Ingress)?,
        ])
    }

    /// Attaches a sink to an interface, which drops and counts the generator's packets.
    pub fn sink(&mut self, ns: &Netns, interface: &str) -> Result<Sink> {
        let index = interface_index(ns, interface)?;
        let sink: &mut Xdp = program(&mut self.0, "bench_sink")?;
        let link = ns.enter(|| {
            let id = sink.attach_to_if_index(index, XdpMode::Driver)?;
            sink.take_link(id)
        })??;
        Ok(Sink(link))
    }

    /// Sends `count` packets on each of these CPUs and waits until they arrive.
    pub fn send(&mut self, bed: &Bed, load: Load, count: u32, cpus: &[usize]) -> Result<Burst> {
        let ns = match load.direction {
            Direction::Original => &bed.client,
            Direction::Reply => &bed.server,
        };
        self.send_from(ns, &stream(bed, load), count, cpus)
    }

    /// Sends TCP resets from the client to a masqueraded destination, none of which is to arrive;
    /// returns how long that took.
    pub fn send_resets(&mut self, bed: &Bed, count: u32) -> Result<Duration> {
        let index = interface_index(&bed.client, "eth0")?;
        let mut streams: Array<_, StreamValue> = self
            .0
            .map_mut("STREAM")
            .context("no map STREAM")?
            .try_into()?;
        streams.set(0, StreamValue(resets(bed)), 0)?;
        let programs = &self.0;
        std::thread::scope(|scope| {
            // A thread of its own, which keeps its CPU and priority.
            let sender = scope.spawn(|| bed.client.enter(|| timed(programs, index, count)));
            match sender.join() {
                Ok(result) => result?,
                Err(_) => bail!("the generator ended"),
            }
        })
    }

    fn send_from(
        &mut self,
        ns: &Netns,
        stream: &Stream,
        count: u32,
        cpus: &[usize],
    ) -> Result<Burst> {
        let index = interface_index(ns, "eth0")?;
        let mut streams: Array<_, StreamValue> = self
            .0
            .map_mut("STREAM")
            .context("no map STREAM")?
            .try_into()?;
        streams.set(0, StreamValue(*stream), 0)?;
        self.reset_counters()?;
        let programs = &self.0;
        std::thread::scope(|scope| {
            let threads: Vec<_> = cpus
                .iter()
                .map(|cpu| scope.spawn(|| ns.enter(|| run(programs, index, count, *cpu))))
                .collect();
            threads
                .into_iter()
                .try_for_each(|thread| match thread.join() {
                    Ok(result) => result?,
                    Err(_) => bail!("a generator ended"),
                })
        })?;
        self.arrived(u64::from(count) * cpus.len() as u64)
    }

    /// Waits for the packets in flight; those that take too long are lost, because rings are short.
    fn arrived(&self, sent: u64) -> Result<Burst> {
        let mut seen = self.seen()?;
        let mut since = Instant::now();
        while seen.packets < sent && since.elapsed() < UNDER_WAY {
            // The kernel thread that processes them may need this CPU.
            std::thread::sleep(PAUSE);
            let now = self.seen()?;
            if now.packets != seen.packets {
                (seen, since) = (now, Instant::now());
            }
        }
        Ok(Burst {
            received: seen.packets,
            time: Duration::from_nanos(seen.last.saturating_sub(seen.first)),
        })
    }

    /// Measures the generator alone: over one veth pair into a sink.
    pub fn own_rate(&mut self, bed: &Bed, count: u32) -> Result<Burst> {
        let _sink = self.sink(&bed.node, "pod0")?;
        let load = Load {
            flows: Flows::Live(1),
            masqueraded: true,
            direction: Direction::Original,
            servers: Servers::Few,
        };
        self.send(bed, load, count, &[0])
    }

    /// Checks that the last packets to arrive were translated correctly.
    pub fn check(&self, bed: &Bed, load: Load) -> Result<()> {
        let seen = self.seen()?;
        let translated = bed.variant.masquerades() && load.masqueraded;
        let (got, wanted) = match (load.direction, translated) {
            (Direction::Reply, _) => (seen.destination, CLIENT),
            (Direction::Original, true) => (seen.source, NODE),
            (Direction::Original, false) => (seen.source, CLIENT),
        };
        ensure!(
            got == wanted,
            "{}: {load:?}: packets arrived with {got} where {wanted} should be",
            bed.variant.name
        );
        Ok(())
    }

    fn seen(&self) -> Result<Total> {
        let map: PerCpuArray<_, SeenValue> =
            self.0.map("SEEN").context("no map SEEN")?.try_into()?;
        let seen: PerCpuValues<SeenValue> = map.get(&0, 0)?;
        let mut total = Total {
            packets: 0,
            source: Ipv4Addr::UNSPECIFIED,
            destination: Ipv4Addr::UNSPECIFIED,
            first: 0,
            last: 0,
        };
        for SeenValue(seen) in seen.iter() {
            total.packets += seen.packets;
            total.last = total.last.max(seen.last);
            if seen.first != 0 && (total.first == 0 || seen.first < total.first) {
                total.first = seen.first;
            }
            if seen.source != 0 {
                total.source = seen.source.to_ne_bytes().into();
                total.destination = seen.destination.to_ne_bytes().into();
            }
        }
        Ok(total)
    }

    /// Resets the sink's counters of earlier bursts.
    fn reset_counters(&mut self) -> Result<()> {
        let nothing = SeenValue(Seen {
            packets: 0,
            source: 0,
            destination: 0,
            first: 0,
            last: 0,
        });
        let cpus = nr_cpus().map_err(|(what, error)| anyhow::anyhow!("{what}: {error}"))?;
        let mut map: PerCpuArray<_, SeenValue> =
            self.0.map_mut("SEEN").context("no map SEEN")?.try_into()?;
        Ok(map.set(0, PerCpuValues::try_from(vec![nothing; cpus])?, 0)?)
    }
}

struct Total {
    packets: u64,
    source: Ipv4Addr,
    destination: Ipv4Addr,
    first: u64,
    last: u64,
}

fn program<'a, T>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut T>
where
    &'a mut T: TryFrom<&'a mut Program, Error = ProgramError>,
{
    let program = ebpf.program_mut(name);
    let program = program.with_context(|| format!("no program {name}"))?;
    Ok(program.try_into()?)
}

/// Runs the generator in the current namespace.
fn run(programs: &Ebpf, index: u32, count: u32, cpu: usize) -> Result<()> {
    have_to_itself(cpu)?;
    let generate: &Xdp = programs
        .program("bench_generate")
        .context("no program bench_generate")?
        .try_into()?;
    // struct xdp_md: data, data_end, data_meta, ingress_ifindex, rx_queue_index,
    // egress_ifindex (include/uapi/linux/bpf.h).
    let context = [0, u32::try_from(FRAME)?, 0, index, 0, 0]
        .map(u32::to_ne_bytes)
        .concat();
    generate.test_run(TestRunOptions {
        data_in: Some(&[0; FRAME]),
        ctx_in: Some(&context),
        repeat: count,
        attrs: TestRunAttrs::new().xdp_live_frames(BATCH),
        ..TestRunOptions::default()
    })?;
    Ok(())
}

fn timed(programs: &Ebpf, index: u32, count: u32) -> Result<Duration> {
    let start = Instant::now();
    run(programs, index, count, 0)?;
    Ok(start.elapsed())
}

/// Pins this thread to a CPU with real-time priority, which reduces the influence of other load.
/// The kernel processes the packets in the thread that sends them (`local_bh_enable`).
fn have_to_itself(cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu)?;
    sched_setaffinity(Pid::from_raw(0), &set)?;
    let priority = libc::sched_param { sched_priority: 1 };
    // SAFETY: the parameter is a live sched_param.
    let done = unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const priority) };
    ensure!(
        done == 0,
        "real-time priority: {}",
        std::io::Error::last_os_error()
    );
    Ok(())
}

fn interface_index(ns: &Netns, interface: &str) -> Result<u32> {
    let index = ns.enter(|| nix::net::if_::if_nametoindex(interface))?;
    index.with_context(|| format!("{interface} in {}", ns.name()))
}

/// Returns the frame of flow 0 and the checksums of its constant fields.
fn stream(bed: &Bed, load: Load) -> Stream {
    let server = if load.masqueraded { FAR } else { NEAR };
    let translated = bed.variant.masquerades() && load.masqueraded;
    let (source, destination) = match (load.direction, translated) {
        (Direction::Original, _) => (CLIENT, Ipv4Addr::UNSPECIFIED),
        (Direction::Reply, true) => (Ipv4Addr::UNSPECIFIED, NODE),
        (Direction::Reply, false) => (Ipv4Addr::UNSPECIFIED, CLIENT),
    };
    let (macs, port_at) = match load.direction {
        Direction::Original => ([POD_SIDE_MAC, CLIENT_MAC], 36),
        Direction::Reply => ([NODE_MAC, SERVER_MAC], 34),
    };
    let payload = FRAME - 14;
    let [high, low] = u16::try_from(payload).unwrap_or(u16::MAX).to_be_bytes();
    let [udp_high, udp_low] = u16::try_from(payload - 20)
        .unwrap_or(u16::MAX)
        .to_be_bytes();
    let mut frame = [0; FRAME];
    frame[..6].copy_from_slice(&macs[0]);
    frame[6..12].copy_from_slice(&macs[1]);
    frame[12..24].copy_from_slice(&[8, 0, 0x45, 0, high, low, 0, 0, 0x40, 0, 64, 17]);
    frame[26..30].copy_from_slice(&source.octets());
    frame[30..34].copy_from_slice(&destination.octets());
    frame[port_at..port_at + 2].copy_from_slice(&PORT.to_be_bytes());
    frame[38..40].copy_from_slice(&[udp_high, udp_low]);
    let ip_sum = sum(&frame[14..34]);
    let pseudo = [0, 17, udp_high, udp_low];
    let udp_sum = checksum::add(checksum::add(sum(&frame[26..]), sum(&pseudo)), 0);
    let mut words = [0; FRAME / 4];
    for (word, bytes) in words.iter_mut().zip(frame.chunks_exact(4)) {
        *word = u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    }
    Stream {
        frame: words,
        ip_sum,
        udp_sum,
        server: server.into(),
        mask: match load.flows {
            Flows::Live(flows) => flows - 1,
            Flows::New => u32::MAX >> 1,
        },
        reply: u32::from(load.direction == Direction::Reply),
        port_bits: match load.servers {
            Servers::Few => PORT_BITS,
            Servers::Each => 0,
        },
    }
}

/// Returns the frames of 4,096 TCP resets. What the generator writes as a checksum of UDP becomes part
/// of their sequence number; their own checksum is wrong, which netdp does not verify.
fn resets(bed: &Bed) -> Stream {
    const HEADER_WORDS: u8 = 5 << 4;
    const RST: u8 = 4;
    let load = Load {
        flows: Flows::Live(4096),
        masqueraded: true,
        direction: Direction::Original,
        servers: Servers::Few,
    };
    let mut stream = stream(bed, load);
    let mut frame = stream.frame.map(u32::to_ne_bytes).concat();
    frame[23] = 6;
    frame[38..42].fill(0);
    frame[46..48].copy_from_slice(&[HEADER_WORDS, RST]);
    for (word, bytes) in stream.frame.iter_mut().zip(frame.chunks_exact(4)) {
        *word = u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    }
    stream.ip_sum = sum(&frame[14..34]);
    stream
}

/// Returns the ones' complement sum of 16-bit words in memory order.
fn sum(bytes: &[u8]) -> u32 {
    bytes.chunks_exact(2).fold(0, |sum, pair| {
        checksum::add(sum, u16::from_ne_bytes([pair[0], pair[1]]).into())
    })
}
