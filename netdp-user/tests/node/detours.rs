//! Detours, paths past the TC hooks, are reported.

use crate::common::{SOON, World, status};
use anyhow::{Context as _, Result, ensure};
use std::io::Error;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use testbed::{Netns, wait_for};

/// `enum bpf_cmd`, `enum bpf_prog_type` and `enum bpf_attach_type` in
/// include/uapi/linux/bpf.h.
const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_LINK_CREATE: libc::c_int = 28;
const BPF_PROG_TYPE_XDP: u32 = 6;
const BPF_XDP: u32 = 37;

/// Calls bpf(2) with an attribute of 32-bit words.
fn bpf(command: libc::c_int, attr: &mut [u32]) -> Result<OwnedFd> {
    let (at, size) = (attr.as_mut_ptr(), size_of_val(attr));
    // SAFETY: the attribute has this size, and the memory it points to is live.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, command, at, size) };
    ensure!(fd >= 0, Error::last_os_error());
    // SAFETY: the kernel has just returned this descriptor, and nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(i32::try_from(fd)?) })
}

/// Attaches an XDP program that passes every packet until the descriptor is closed.
fn xdp(ns: &Netns, interface: &str) -> Result<OwnedFd> {
    // r0 = XDP_PASS; exit.
    let code: [u64; 2] = [0x0000_0002_0000_00b7, 0x95];
    let word = |value: u64, high: bool| {
        u32::try_from(if high {
            value >> 32
        } else {
            value & 0xffff_ffff
        })
    };
    let (code_at, license) = (code.as_ptr() as u64, c"GPL".as_ptr() as u64);
    let program = bpf(
        BPF_PROG_LOAD,
        &mut [
            BPF_PROG_TYPE_XDP,
            2,
            word(code_at, false)?,
            word(code_at, true)?,
            word(license, false)?,
            word(license, true)?,
        ],
    )
    .context("loading an XDP program")?;
    let shown = ns.ip(&format!("-o link show {interface}"))?;
    let (index, _) = shown.split_once(':').context("an index")?;
    let index = index.parse()?;
    ns.enter(|| {
        bpf(
            BPF_LINK_CREATE,
            &mut [u32::try_from(program.as_raw_fd())?, index, BPF_XDP, 0],
        )
    })?
    .context("attaching an XDP program")
}

#[test]
fn xdp_programs_are_told_of() -> Result<()> {
    let world = World::with("resyncInterval: 100ms\n", &["--enable-ipv6"])?;
    let node = &world.bed.node;
    let told = || {
        status(&world.agent).map_or_else(|_| String::new(), |s| s["report"]["detours"].to_string())
    };
    assert_eq!(told(), "[]");
    let on_uplink = xdp(node, "eth0")?;
    let on_pod = xdp(node, "pod0")?;
    let is_told = |words: &str| wait_for(SOON, words, || told().contains(words)).with_context(told);
    is_told("runs on eth0: packets that it sends back (XDP_TX) or redirects")?;
    is_told("runs on pod0: packets that it redirects to an uplink")?;
    ensure!(
        world
            .agent
            .log()
            .contains("WARN ] an XDP program runs on eth0")
    );
    let text = world.agent.netdp(&["status"])?;
    ensure!(
        text.contains("detour     an XDP program runs on pod0"),
        "{text}"
    );
    drop((on_uplink, on_pod));
    wait_for(SOON, "nothing to be told", || told() == "[]")
}
