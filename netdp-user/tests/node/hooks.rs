//! Hooks shared with third parties, and both ways of attaching to them.

use crate::common::clients::{Tcp, any, tcp_source};
use crate::common::{
    ECHO, Echo, OURS, POLICY, SOON, World, filters, is_mounted, start_agent, status, tcx_programs,
    wait_tcx,
};
use anyhow::{Context as _, Result, ensure};
use aya::programs::tc::{NlOptions, SchedClassifierLink, TcAttachOptions};
use aya::programs::{LinkOrder, SchedClassifier, TcAttachType};
use aya::sys::{Stats, enable_stats};
use aya::{Ebpf, EbpfLoader};
use std::fs;
use std::mem::ManuallyDrop;
use std::net::SocketAddr;
use testbed::{Bed, ConfigVolume, Netns, wait_for};

/// Programs that are not netdp's: the same code over separate maps without an uplink, so that it
/// leaves every packet unmodified. Each is on the hook for which it was not made, so that its name
/// differs from netdp's.
struct Stranger {
    object: Ebpf,
    /// Never dropped: a filter's link would look for the filter in the namespace of the dropping
    /// thread. The filters are removed with the node.
    links: ManuallyDrop<Vec<SchedClassifierLink>>,
}

const HOOKS: [(TcAttachType, &str); 2] = [
    (TcAttachType::Ingress, "egress_snat"),
    (TcAttachType::Egress, "ingress_rev_snat"),
];

impl Stranger {
    /// Attaches to both hooks of the node's uplink.
    fn attach(node: &Netns, options: fn() -> TcAttachOptions) -> Result<Self> {
        static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/netdp-ebpf"));
        let mut loader = EbpfLoader::new();
        for map in ["SNAT", "REV_SNAT", "INBOUND"] {
            loader.map_max_entries(map, 1024);
        }
        let mut stranger = Self {
            object: loader.load(OBJECT)?,
            links: ManuallyDrop::default(),
        };
        for (hook, name) in HOOKS {
            let program = stranger.program(name)?;
            program.load()?;
            let id = node.enter(|| program.attach_with_options("eth0", hook, options()))??;
            let link = program.take_link(id)?;
            stranger.links.push(link);
        }
        Ok(stranger)
    }

    fn program(&mut self, name: &str) -> Result<&mut SchedClassifier> {
        let program = self.object.program_mut(name).context("no such program")?;
        Ok(program.try_into()?)
    }

    /// Returns the number of runs of each while statistics were enabled.
    fn runs(&mut self) -> Result<[u64; 2]> {
        let mut runs = [0; 2];
        for (count, (_, name)) in runs.iter_mut().zip(HOOKS) {
            *count = self.program(name)?.info()?.run_count();
        }
        Ok(runs)
    }
}

fn on_tcx() -> TcAttachOptions {
    TcAttachOptions::TcxOrder(LinkOrder::default())
}

fn on_clsact() -> TcAttachOptions {
    TcAttachOptions::Netlink(NlOptions {
        priority: 10,
        ..NlOptions::default()
    })
}

fn add_clsact(node: &Netns) -> Result<()> {
    node.run(&["tc", "qdisc", "add", "dev", "eth0", "clsact"])?;
    Ok(())
}

/// Programs that were attached before or after netdp's stay attached, and run.
#[test]
fn other_programs_are_let_be() -> Result<()> {
    let _statistics = enable_stats(Stats::RunTime)?;
    let bed = Bed::dual_stack()?;
    let node = &bed.node;
    let far = bed.server(0, &["10.2.0.1/24"])?;
    let _echo = Echo::start(&far)?;
    let to = SocketAddr::new(far.v4()?.into(), ECHO);
    add_clsact(node)?;
    let mut strangers = vec![
        Stranger::attach(node, on_tcx)?,
        Stranger::attach(node, on_clsact)?,
    ];
    let config = ConfigVolume::new(POLICY)?;
    let mut agent = start_agent(node, &config, &["--enable-ipv6"])?;
    strangers.push(Stranger::attach(node, on_tcx)?);
    let [ingress, egress] = tcx_programs(node, "eth0")?;
    let [ours_in, ours_out] = OURS;
    assert_eq!(
        ingress,
        [ours_in, ours_out, ours_out],
        "ours is nearest to the wire"
    );
    assert_eq!(
        egress,
        [ours_out, ours_in, ours_in],
        "ours comes first, as netfilter's translation does"
    );

    let mut open = Tcp::connect(&bed.pods[0], any(to), to)?;
    let seen = open.ask()?;
    assert_eq!(seen.ip(), bed.uplinks[0].v4()?);
    let mut ran = Vec::new();
    for stranger in &mut strangers {
        let runs = stranger.runs()?;
        ensure!(runs.iter().all(|count| *count >= 2), "{runs:?}");
        ran.push(runs);
    }

    agent.restart()?;
    assert_eq!(open.ask()?, seen);
    assert_eq!(tcx_programs(node, "eth0")?, [ingress, egress]);
    for (stranger, before) in strangers.iter_mut().zip(ran) {
        let runs = stranger.runs()?;
        ensure!(
            runs[0] > before[0] && runs[1] > before[1],
            "{before:?}, {runs:?}"
        );
    }
    agent.stop()?;
    agent.netdp(&["detach"])?;
    wait_tcx(node, "eth0", &[&[ours_out; 2], &[ours_in; 2]])?;
    for (text, (_, name)) in filters(node, "eth0")?.iter().zip(HOOKS) {
        ensure!(text.contains(name), "the other's filter is gone: {text:?}");
    }
    Ok(())
}

/// The fallback for kernels before 6.6.
#[test]
fn clsact_does_the_same() -> Result<()> {
    let mut world = World::with(POLICY, &["--enable-ipv6", "--attach", "clsact"])?;
    let node = world.bed.node.clone();
    let _other = Stranger::attach(&node, on_clsact)?;
    let _echo = Echo::start(&world.far)?;
    // Numbers of netdp's own and of the other programs, on both hooks.
    let present = || -> Result<[usize; 4]> {
        let [ingress, egress] = filters(&node, "eth0")?;
        let [(_, other_in), (_, other_out)] = HOOKS;
        let count = |text: &str, name| text.matches(&format!("{name} direct-action")).count();
        Ok([
            count(&ingress, other_out),
            count(&egress, other_in),
            count(&ingress, other_in),
            count(&egress, other_out),
        ])
    };
    assert_eq!(
        status(&world.agent)?["report"]["uplinks"][0]["attached"],
        "clsact"
    );
    ensure!(tcx_programs(&node, "eth0")?.iter().all(Vec::is_empty));
    assert_eq!(present()?, [1, 1, 1, 1]);
    let mut open = Vec::new();
    for to in crate::common::echoes(&world.far) {
        let mut client = Tcp::connect(world.pod(0), any(to), to)?;
        let source = client.ask()?;
        assert_eq!(source.ip(), world.node_address(to.ip())?);
        open.push((client, source));
    }

    world.agent.kill9()?;
    for (client, source) in &mut open {
        assert_eq!(client.ask()?, *source);
    }
    world.agent.restart()?;
    for (client, source) in &mut open {
        assert_eq!(client.ask()?, *source);
    }
    assert_eq!(present()?, [1, 1, 1, 1], "the restart replaced its filters");

    world.agent.stop()?;
    let told = world.agent.command(&["detach"]).output()?;
    let told = String::from_utf8_lossy(&told.stderr).into_owned();
    ensure!(told.contains("clsact Egress filter on eth0"), "{told}");
    assert_eq!(present()?, [0, 0, 1, 1], "the other's are none of ours");
    ensure!(!is_mounted(&world.agent.bpffs())?);
    Ok(())
}

/// A third party detaches netdp's programs; the next resync attaches them again.
#[test]
fn programs_that_were_taken_off_come_back() -> Result<()> {
    for mechanism in ["tcx", "clsact"] {
        let world = World::with(
            &format!("{POLICY}resyncInterval: 100ms\n"),
            &["--enable-ipv6", "--attach", mechanism],
        )?;
        let _echo = Echo::start(&world.far)?;
        let to = SocketAddr::new(world.far.v4()?.into(), ECHO);
        let seen = tcp_source(world.pod(0), to)?;
        if mechanism == "tcx" {
            for entry in fs::read_dir(world.agent.bpffs().join("links"))? {
                fs::remove_file(entry?.path())?;
            }
        } else {
            world
                .bed
                .node
                .run(&["tc", "qdisc", "del", "dev", "eth0", "clsact"])?;
        }
        wait_for(SOON, "the programs to be back", || {
            tcp_source(world.pod(0), to).is_ok_and(|source| source == seen)
        })?;
    }
    Ok(())
}
