//! Optional kernel features: probed once, and shown.

use crate::common::clients::tcp_source;
use crate::common::{
    ECHO, Echo, NETDP, OURS, POLICY_V4, SOON, filters, status, tcx_programs, wait_log,
};
use anyhow::{Context as _, Result, ensure};
use nix::errno::Errno;
use serde_json::json;
use std::net::{IpAddr, SocketAddr};
use testbed::{Agent, AgentOptions, Bed, ConfigVolume, Host, wait_for};

/// Of `enum bpf_cmd`, include/uapi/linux/bpf.h.
const PROG_QUERY: u8 = 16;
const MAP_UPDATE_BATCH: u8 = 26;
const MAP_DELETE_BATCH: u8 = 27;
const LINK_CREATE: u8 = 28;

struct World {
    bed: Bed,
    config: ConfigVolume,
    far: Host,
    _echo: Echo,
}

impl World {
    fn new() -> Result<Self> {
        let bed = Bed::dual_stack()?;
        let far = bed.server(0, &["10.2.0.1/24"])?;
        Ok(Self {
            config: ConfigVolume::new(POLICY_V4)?,
            _echo: Echo::start(&far)?,
            far,
            bed,
        })
    }

    fn options(&self) -> AgentOptions {
        AgentOptions::new(NETDP).config(self.config.path())
    }

    fn is_masqueraded(&self) -> Result<bool> {
        let to = SocketAddr::new(self.far.v4()?.into(), ECHO);
        Ok(tcp_source(&self.bed.pods[0], to)? == IpAddr::from([10, 1, 0, 10]))
    }
}

fn shows(agent: &Agent, line: &str) -> Result<()> {
    let told = agent.netdp(&["status"])?;
    ensure!(told.contains(line), "{line:?} is not in {told}");
    Ok(())
}

#[test]
fn what_there_is_is_used_and_shown() -> Result<()> {
    let world = World::new()?;
    let agent = Agent::start(&world.bed.node, world.options())?;
    let kernel = status(&agent)?["report"]["kernel"].clone();
    // Present on every kernel of these tests except that of `cargo xtask kernels`.
    ensure!(kernel["trie_batches"] == true, "{kernel}");
    let tcx = kernel["tcx"] == true;
    shows(
        &agent,
        if tcx {
            "kernel     TCX, batches for tries"
        } else {
            "kernel     no TCX, batches"
        },
    )?;
    let attached = tcx_programs(&world.bed.node, "eth0")?;
    ensure!(tcx == (attached[1] == [OURS[1]]), "{attached:?}, {kernel}");
    ensure!(world.is_masqueraded()?);
    Ok(())
}

/// A kernel before 6.6, and one before 5.13.
#[test]
fn what_there_is_not_is_done_without() -> Result<()> {
    let mut world = World::new()?;
    let lacks = &[PROG_QUERY, LINK_CREATE, MAP_UPDATE_BATCH, MAP_DELETE_BATCH];
    let options = world.options().without_bpf(lacks, Errno::EINVAL);
    let agent = Agent::start(&world.bed.node, options)?;
    let kernel = status(&agent)?["report"]["kernel"].clone();
    ensure!(
        kernel == json!({"tcx": false, "trie_batches": false}),
        "{kernel}"
    );
    shows(&agent, "kernel     no TCX, no batches for tries")?;
    wait_log(&agent, "no TCX here, using clsact")?;
    ensure!(filters(&world.bed.node, "eth0")?[1].contains("egress_snat"));
    ensure!(world.is_masqueraded()?);
    // The policy is written without batches, and entries are removed.
    world
        .config
        .write("nonMasqueradeCIDRs: [172.16.0.0/16, 10.2.0.0/24]\n")?;
    wait_log(&agent, "policy in force: 3 rules")?;
    world.config.write(POLICY_V4)?;
    wait_for(SOON, "the policy before", || {
        world.is_masqueraded().is_ok_and(|is| is)
    })
    .with_context(|| agent.log())
}

/// A kernel that has TCX but refuses a link: this is reported, and there is no fallback.
#[test]
fn a_refusal_is_not_taken_for_a_lack() -> Result<()> {
    let world = World::new()?;
    let options = world.options().without_bpf(&[LINK_CREATE], Errno::EINVAL);
    let agent = Agent::spawn(&world.bed.node, options)?;
    wait_log(
        &agent,
        "attaching to uplink eth0: adding the ingress program by TCX: Invalid argument",
    )?;
    let off = || {
        let status = status(&agent).unwrap_or_default();
        status["report"]["off"]
            .to_string()
            .contains("Invalid argument")
    };
    wait_for(SOON, "the status to say so", off)?;
    ensure!(!agent.state_dir().with_file_name("ready").exists(), "ready");
    let filters = filters(&world.bed.node, "eth0")?;
    ensure!(filters.iter().all(String::is_empty), "{filters:?}");
    ensure!(!agent.log().contains("no TCX here"), "{}", agent.log());
    shows(&agent, "kernel     TCX, batches for tries")
}
