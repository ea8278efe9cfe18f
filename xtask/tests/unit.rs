//! The systemd unit: systemd accepts it, and its exposure score is low.

use anyhow::{Context as _, Result, ensure};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use testbed::{WorkDir, output};

/// Program of the unit, which need not be installed here.
const PROGRAM: &str = "/usr/local/bin/netdp";

/// Maximum exposure (of 10), times 10. The unit runs as root in the host's network with
/// CAP_NET_ADMIN and CAP_BPF, which alone score 1.9.
const EXPOSURE: u32 = 24;

/// Maximum exposure with the drop-in for iptables, times 10.
const EXPOSURE_WITH_IPTABLES: u32 = 25;

fn deploy(name: &str) -> Result<String> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../deploy")
        .join(name);
    fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
}

/// Writes the unit with a program that exists, and returns its path.
fn unit(dir: &WorkDir, drop_in: &str) -> Result<PathBuf> {
    let text = deploy("netdp.service")?;
    ensure!(text.contains(PROGRAM), "{text}");
    let text = text.replace(PROGRAM, "/bin/true");
    let (start, install) = text.split_once("[Install]").context("no [Install]")?;
    let path = dir.path().join("netdp.service");
    fs::write(&path, format!("{start}\n{drop_in}\n[Install]{install}"))?;
    Ok(path)
}

fn check(drop_in: &str, exposure: u32) -> Result<()> {
    let dir = WorkDir::new("unit")?;
    let path = unit(&dir, drop_in)?;
    let mut verify = Command::new("systemd-analyze");
    verify.args(["verify", "--man=no"]).arg(&path);
    let verified = verify.output().context("running systemd-analyze")?;
    let told = String::from_utf8_lossy(&verified.stderr);
    ensure!(verified.status.success() && told.is_empty(), "{told}");
    let mut security = Command::new("systemd-analyze");
    security.args(["security", "--offline=true", "--no-pager"]);
    security.arg(format!("--threshold={exposure}")).arg(&path);
    output(&mut security)?;
    Ok(())
}

#[test]
fn systemd_finds_nothing_wrong_and_little_to_deny() -> Result<()> {
    check("", EXPOSURE)
}

#[test]
fn nor_with_what_iptables_needs() -> Result<()> {
    check(
        &deploy("netdp.service.d/iptables.conf")?,
        EXPOSURE_WITH_IPTABLES,
    )
}
