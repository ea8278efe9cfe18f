//! The agent's environment: signals, and a kernel without notifications or BTF.

use crate::common::clients::tcp_source;
use crate::common::{ECHO, Echo, NETDP, SOON, status};
use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;
use std::fs::{self, File};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd as _;
use std::process::Command;
use testbed::{Agent, AgentOptions, Bed, output, wait_for};

const BEFORE: &str = "nonMasqueradeCIDRs: [172.16.0.0/16, 10.9.0.0/24]\n";
const AFTER: &str = "nonMasqueradeCIDRs: [172.16.0.0/16, 10.2.0.0/24]\n";

/// Overwrites the start of a file through a memory mapping, which inotify does not report
/// (inotify(7)).
fn overwrite_silently(file: &File, text: &str) -> Result<()> {
    let len = text.len();
    ensure!(usize::try_from(file.metadata()?.len())? == len);
    // SAFETY: a new shared mapping of an open file that is `len` bytes long; nothing else has its
    // address, and it is unmapped after the copy.
    unsafe {
        let at = libc::mmap(
            std::ptr::null_mut(),
            len,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED,
            file.as_raw_fd(),
            0,
        );
        ensure!(at != libc::MAP_FAILED, std::io::Error::last_os_error());
        std::ptr::copy_nonoverlapping(text.as_ptr(), at.cast::<u8>(), len);
        ensure!(libc::munmap(at, len) == 0, std::io::Error::last_os_error());
    }
    Ok(())
}

#[test]
fn sighup_has_the_configuration_read_again() -> Result<()> {
    let bed = Bed::dual_stack()?;
    let far = bed.server(0, &["10.2.0.1/24"])?;
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("config.yaml");
    fs::write(&path, BEFORE)?;
    // Opened before the agent's watch and closed after it: inotify reports nothing.
    let file = File::options().read(true).write(true).open(&path)?;
    let agent = Agent::start(&bed.node, AgentOptions::new(NETDP).config(&path))?;
    let _echo = Echo::start(&far)?;
    let to = SocketAddr::new(far.v4()?.into(), ECHO);
    let in_force = |text: &str| {
        status(&agent).is_ok_and(|status| {
            status["report"]["config"]["rules"]
                .to_string()
                .contains(text)
        })
    };

    overwrite_silently(&file, AFTER)?;
    ensure!(fs::read_to_string(&path)? == AFTER);
    assert_eq!(tcp_source(&bed.pods[0], to)?, IpAddr::from([10, 1, 0, 10]));
    ensure!(
        in_force("10.9.0.0/24"),
        "the change was noticed without a signal"
    );

    agent.signal(Signal::SIGHUP)?;
    wait_for(SOON, "the new configuration", || in_force("10.2.0.0/24"))
        .with_context(|| format!("the agent wrote:\n{}", agent.log()))?;
    // The far side has no route back: bypassed connections get no reply.
    ensure!(!in_force("10.9.0.0/24"), "the old one is in force too");
    Ok(())
}

/// The programs do not read kernel structures, so kernel BTF is not needed.
#[test]
fn a_kernel_without_btf_will_do() -> Result<()> {
    let bed = Bed::dual_stack()?;
    let far = bed.server(0, &["10.2.0.1/24"])?;
    let dir = tempfile::tempdir()?;
    let path = dir.path().join("config.yaml");
    fs::write(&path, BEFORE)?;
    let (text, hiding) = (
        dir.path().join("text"),
        dir.path().join("netdp-without-btf"),
    );
    fs::write(
        &text,
        format!(
            "#!/bin/sh\nexec unshare --mount sh -c 'mount -t tmpfs none /sys/kernel/btf && \
             ! test -e /sys/kernel/btf/vmlinux && exec {NETDP} \"$@\"' netdp \"$@\"\n"
        ),
    )?;
    // Not written by this process: a child that another test is starting would have it open for
    // writing, and then exec fails (ETXTBSY).
    let mut install = Command::new("install");
    output(install.args(["-m", "755"]).arg(&text).arg(&hiding))?;
    let _agent = Agent::start(&bed.node, AgentOptions::new(&hiding).config(&path))?;
    let _echo = Echo::start(&far)?;
    let to = SocketAddr::new(far.v4()?.into(), ECHO);
    assert_eq!(tcp_source(&bed.pods[0], to)?, IpAddr::from([10, 1, 0, 10]));
    Ok(())
}
