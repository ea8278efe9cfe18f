//! A flooding pod and its effect on another pod: netdp compared with ip-masq-agent's rules. Then
//! the maximum time for one packet where nearly all ports of a destination are used. The agents'
//! logs go to standard error. To be run manually, as root: `cargo bench -p netdp-user --bench
//! hostile -- [SECONDS [PACKETS A SECOND]]`.
#![allow(
    clippy::print_stdout,
    reason = "figures go to standard output, for whoever asked"
)]

#[path = "../tests/wire/build.rs"]
#[allow(dead_code, unused_imports, reason = "the tests have the rest")]
mod build;
#[path = "../tests/wire/checksum.rs"]
#[allow(dead_code, unused_imports, reason = "the tests have the rest")]
mod checksum;
#[path = "../tests/common/mod.rs"]
#[allow(dead_code, unused_imports, reason = "the tests have the rest")]
mod common;
#[path = "../tests/security/flood.rs"]
#[allow(dead_code, unused_imports, reason = "the tests have the rest")]
mod flood;
#[path = "../tests/security/good.rs"]
#[allow(dead_code, unused_imports, reason = "the tests have the rest")]
mod good;
#[path = "../tests/security/kinds.rs"]
#[allow(dead_code, unused_imports, reason = "the tests have the rest")]
mod kinds;
#[path = "../tests/wire/octets.rs"]
#[allow(dead_code, unused_imports, reason = "the tests have the rest")]
mod octets;
#[path = "../tests/wire/packet.rs"]
#[allow(dead_code, unused_imports, reason = "the tests have the rest")]
mod packet;
#[path = "../tests/security/site.rs"]
#[allow(dead_code, unused_imports, reason = "the tests have the rest")]
mod site;
#[path = "../tests/security/talk.rs"]
#[allow(dead_code, unused_imports, reason = "the tests have the rest")]
mod talk;

use anyhow::{Context as _, Result, ensure};
use aya::programs::SchedClassifier;
use build::udp;
use common::{Echo, echoes};
use good::{Clients, Figures, Old};
use kinds::Kind;
use netdp_user::datapath::{Datapath, Hook, Mechanism, NoLeak, OnReload, PortMode, Setup, detach};
use netdp_user::reconcile::Change;
use netdp_user::uplinks::{LinkLayer, Uplink};
use nix::sched::{CloneFlags, unshare};
use site::{Site, Subject, ends};
use std::collections::BTreeSet;
use std::net::IpAddr;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::time::Duration;
use testbed::{WorkDir, require_root};

/// Defaults: seconds, and packets per second of each family.
const LONG: u64 = 20;
const RATE: u32 = 50_000;

const NODE: [u8; 4] = [192, 0, 2, 10];

/// Packets per degree of use.
const RUNS: u16 = 100;

/// Number of ports available to mappings, without the NodePort range.
const CLASS: usize = 65_536 - 1024 - 2768;

fn main() -> Result<()> {
    require_root("this benchmark")?;
    // cargo bench adds arguments of its own.
    let mut numbers = std::env::args().filter_map(|argument| argument.parse().ok());
    let long = Duration::from_secs(numbers.next().unwrap_or(LONG));
    let rate = numbers.next().map_or(Ok(RATE), u32::try_from)?;
    println!(
        "{:<18} {:<12} {:>9} {:>9} {:>8} {:>10} {:>10}  old connections",
        "flood", "translator", "packets", "attempts", "success", "p50", "p99"
    );
    for kind in Kind::ALL {
        for subject in [Subject::Netdp, Subject::IpMasqAgent] {
            beside(subject, kind, long, rate)?;
        }
    }
    worst_packets()
}

fn beside(subject: Subject, kind: Kind, long: Duration, rate: u32) -> Result<()> {
    let site = Site::start(subject, &[])?;
    let _echo = Echo::start(&site.other)?;
    let _accomplice = kind.accomplice(&site)?;
    let mut old = Old::open(site.good(), &site.other, &ends(&site.other, 4000))?;
    old.go_on()?;
    let flood = kind.flood(&site, rate)?;
    let clients = Clients::start(site.good(), &echoes(&site.other));
    std::thread::sleep(long);
    let figures = Figures::of(&clients.end()?);
    let sent = 2 * u64::from(flood.end()?);
    let broken = match old.go_on() {
        Ok(()) => "go on".to_owned(),
        Err(error) => format!("broken: {error:#}"),
    };
    println!(
        "{:<18} {:<12} {sent:>9} {:>9} {:>6.2} % {:>10.1?} {:>10.1?}  {broken}",
        format!("{kind:?}"),
        format!("{subject:?}"),
        figures.attempts,
        figures.percent,
        figures.p50,
        figures.p99
    );
    Ok(())
}

/// Measures single packets, run by the kernel (`BPF_PROG_TEST_RUN`) in a namespace of its own.
fn worst_packets() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNET).context("a network namespace")?;
    let dir = WorkDir::new("hostile")?;
    let bpffs = dir.path().join("bpffs");
    let mut datapath = Datapath::load(&bpffs, &setup())?;
    datapath.apply(&Change::SetUplink(uplink()))?;
    datapath.apply(&Change::AddLocal(NODE.into()))?;
    datapath.apply(&Change::SetPolicy(Vec::new()))?;
    let from = |pod: u8, port| Run {
        pod: [172, 16, 0, pod].into(),
        port,
    };
    let class = || (1024..=u16::MAX).filter(|port| !(30_000..=32_767).contains(port));
    println!("\nworst time of one packet of a new flow to one destination");
    // The next port to fill, and the number of used ones.
    let (mut ports, mut used) = (class(), 0);
    for percent in [0, 50, 90, 99, 100] {
        let program = datapath.program(Hook::Egress)?;
        let wanted = CLASS * usize::from(percent) / 100;
        while used < wanted
            && let Some(port) = ports.next()
        {
            let (verdict, _) = from(2, port).run(program)?;
            used += usize::from(verdict != DROPPED);
        }
        // From ports that another pod uses, one after the other.
        let (mut worst, mut sum, mut passed) = (Duration::ZERO, Duration::ZERO, 0);
        for n in 0..RUNS {
            // The exhaustion record of the destination has expired by then.
            if percent == 100 && n % 10 == 0 {
                std::thread::sleep(Duration::from_millis(600));
            }
            let (verdict, took) = from(3 + percent, 1024 + n).run(program)?;
            passed += usize::from(verdict != DROPPED);
            worst = worst.max(took);
            sum += took;
        }
        println!(
            "{percent:>3} % of {CLASS} ports used ({used}): worst {worst:.1?}, mean {:.1?}, {passed} of {RUNS} got a port",
            sum / u32::from(RUNS)
        );
        used += passed;
    }
    drop(datapath);
    detach(&bpffs)?;
    Ok(())
}

/// A datagram of a new flow.
struct Run {
    pod: IpAddr,
    port: u16,
}

/// Return value of a program that drops the packet: `TC_ACT_SHOT`.
const DROPPED: u32 = 2;

/// The `test` member of `union bpf_attr`.
#[repr(C)]
#[derive(Default)]
struct Attr {
    prog_fd: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    rest: [u64; 6],
}

impl Run {
    /// Returns the program's return value and run time.
    fn run(&self, program: &SchedClassifier) -> Result<(u32, Duration)> {
        const BPF_PROG_TEST_RUN: libc::c_int = 10;
        let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0];
        let to = ([198, 51, 100, 7].into(), 443);
        frame.extend(udp((self.pod, self.port), to, b"x").bytes());
        let mut out = vec![0_u8; frame.len() + 64];
        let mut attr = Attr {
            prog_fd: u32::try_from(program.fd()?.as_fd().as_raw_fd())?,
            data_size_in: u32::try_from(frame.len())?,
            data_size_out: u32::try_from(out.len())?,
            data_in: frame.as_ptr() as u64,
            data_out: out.as_mut_ptr() as u64,
            repeat: 1,
            ..Attr::default()
        };
        // SAFETY: the pointers are to live buffers of the given sizes.
        let status = unsafe {
            libc::syscall(
                libc::SYS_bpf,
                BPF_PROG_TEST_RUN,
                &raw mut attr,
                size_of::<Attr>(),
            )
        };
        ensure!(
            status == 0,
            "a test run: {}",
            std::io::Error::last_os_error()
        );
        Ok((attr.retval, Duration::from_nanos(attr.duration.into())))
    }
}

fn uplink() -> Uplink {
    Uplink {
        ifindex: 1,
        name: "lo".into(),
        link_layer: LinkLayer::Ethernet,
        v4: Some(NODE.into()),
        v6: None,
        up: true,
        untagged: false,
        only_v4: false,
        only_v6: false,
    }
}

fn setup() -> Setup {
    Setup {
        enable_ipv6: true,
        max_flows: 262_144,
        to_ports: Vec::new(),
        port_mode: PortMode::Keep,
        udp_endpoints: false,
        no_leak: NoLeak::Drop,
        on_reload: OnReload::Sticky,
        hairpin: false,
        log_ends: false,
        pod_flows: u32::MAX,
        pod_new_flows: 0,
        secret: [1, 2],
        reserved_ports: (30_000..=32_767).collect::<BTreeSet<u16>>(),
        mechanism: Mechanism::Auto,
    }
}
