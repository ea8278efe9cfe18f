//! The way back to layout 1, and other ways through an upgrade.

use super::{End, Node, Version, files, layout_of};
use crate::common::{refused, status, wait_log};
use anyhow::{Result, ensure};
use netdp_common::layout::pins;
use nix::mount::{MsFlags, mount};

/// Operators who undo a rollout see why the old version refuses, and can go forward again.
#[test]
fn a_rolled_back_agent_refuses_and_nothing_is_lost() -> Result<()> {
    let mut node = Node::start("tcx")?;
    node.end(End::Terminated)?;
    node.run(Version::New)?;
    node.end(End::Terminated)?;
    // The second one has iptables to fall back to, and leaves the programs alone.
    for mode in ["--mode=ebpf", "--mode=auto"] {
        node.check_old_agent_refuses(mode)?;
    }
    let told = refused(node.agent.command(&["flows"]))?;
    ensure!(told.contains("have layout 2"), "{told}");
    node.select(Version::New)?;
    assert_eq!(status(&node.agent)?["datapath"], "in force");
    let counted = node.masqueraded()?;
    node.run(Version::New)?;
    node.goes_on("the way forward")?;
    node.check_upgraded()?;
    node.wait_for_more_counts(counted)?;
    node.finish()
}

/// The way back to layout 1, whichever version detaches, and up again.
#[test]
fn a_detached_datapath_begins_with_either_layout() -> Result<()> {
    let mut node = Node::start_quiet("tcx")?;
    for by in [Version::New, Version::Old] {
        node.run(Version::New)?;
        node.check_upgraded()?;
        node.end(End::Terminated)?;
        node.select(by)?;
        node.agent.netdp(&["detach"])?;
        if by == Version::New {
            let left = files(&node.agent.bpffs())?;
            ensure!(left.is_empty(), "{left:?} are left");
        }
        node.run(Version::Old)?;
        assert_eq!(layout_of(&node.agent)?, 1);
        node.end(End::Terminated)?;
    }
    node.run(Version::New)?;
    node.check_upgraded()?;
    let told = node.agent.netdp(&["detach"]);
    ensure!(told.is_err(), "an agent is running");
    node.end(End::Terminated)?;
    node.agent.netdp(&["detach"])?;
    let left = files(&node.agent.bpffs())?;
    ensure!(left.is_empty(), "{left:?} are left");
    Ok(())
}

/// The old agent's pins are below a bpffs that another one was mounted over.
#[test]
fn programs_of_the_old_layout_out_of_reach_are_adopted() -> Result<()> {
    let mut node = Node::start("tcx")?;
    let counted = node.masqueraded()?;
    node.end(End::Killed)?;
    let (bpffs, options) = (node.agent.bpffs(), Some("mode=0700"));
    mount(Some("bpf"), &bpffs, Some("bpf"), MsFlags::empty(), options)?;
    node.run(Version::New)?;
    wait_log(&node.agent, "had its pins out of reach")?;
    let pinned = files(&node.agent.bpffs())?;
    ensure!(pinned.contains(pins::EARLIER_COUNTERS), "{pinned:?}");
    node.goes_on("a second bpffs")?;
    node.check_upgraded()?;
    node.wait_for_more_counts(counted)?;
    node.finish()
}
