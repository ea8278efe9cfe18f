//! `kernels`: tests in a virtual machine with Debian 12's own kernel, which is older than many and
//! has modules that small kernels lack. It is emulated and needs no hardware support, but is about
//! fifty times slower.

use crate::setup::apt;
use crate::{setup, shell};
use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use testbed::{kube_programs, output};

/// Tests that are run if none are named.
const TESTS: [&str; 1] = ["stacked"];

/// The package (PyPI) that boots the machine on the host's files.
const VIRTME: &str = "virtme-ng==1.42";

/// Timeout of the machine in seconds.
const PATIENCE: &str = "1500";

/// Sets up, builds the tests and runs them on the other kernel; their output goes to standard
/// output.
pub fn run(tests: &[String]) -> Result<()> {
    testbed::require_root("cargo xtask kernels")?;
    setup::run()?;
    apt::install(&missing(&[
        ("qemu-system-x86_64", "qemu-system-x86"),
        ("depmod", "kmod"),
        // Initial root file system of the machine.
        ("busybox", "busybox-static"),
    ]))?;
    let cache = kube_programs::cache()?.with_file_name("kernels");
    fs::create_dir_all(&cache).with_context(|| format!("making {}", cache.display()))?;
    let image = kernel(&cache)?;
    let bin = virtme(&cache)?;
    let names: Vec<&str> = match tests {
        [] => TESTS.to_vec(),
        named => named.iter().map(String::as_str).collect(),
    };
    let runs = build(&names)?;
    if names.iter().any(|name| name.starts_with("node")) {
        // It can't be built in there.
        testbed::netdp_of_layout_1()?;
    }
    boot(&cache, &image, &bin, &runs)
}

fn missing(wanted: &[(&str, &'static str)]) -> Vec<&'static str> {
    let there = |program: &str| {
        let dirs = ["/usr/bin", "/usr/sbin", "/bin", "/sbin"].map(Path::new);
        dirs.iter().any(|dir| dir.join(program).exists())
    };
    let absent = wanted.iter().filter(|(program, _)| !there(program));
    absent.map(|(_, package)| *package).collect()
}

/// Unpacks the kernel and indexes its modules; returns the path of its image.
fn kernel(cache: &Path) -> Result<PathBuf> {
    let meta = output(Command::new("apt-cache").args(["depends", "linux-image-amd64"]))?;
    let package = meta
        .lines()
        .find_map(|line| line.trim().strip_prefix("Depends: "))
        .context("apt lists no dependencies of linux-image-amd64")?;
    let version = package.trim_start_matches("linux-image-");
    let dir = cache.join(version);
    let image = dir.join("boot").join(format!("vmlinuz-{version}"));
    let modules = dir.join("lib/modules").join(version);
    if !modules.join("modules.dep.bin").exists() {
        if dir.exists() {
            fs::remove_dir_all(&dir)?;
        }
        fs::create_dir_all(&dir)?;
        apt::unpack(package, &dir)?;
        let depmod = Command::new("/sbin/depmod")
            .arg("-b")
            .arg(&dir)
            .arg(version)
            .status();
        ensure!(depmod?.success(), "depmod failed in {}", dir.display());
    }
    Ok(image)
}

/// Installs virtme-ng into its own virtual environment; returns the directory of its programs.
fn virtme(cache: &Path) -> Result<PathBuf> {
    let bin = cache.join("virtme/bin");
    if !bin.join("vng").exists() {
        shell::progress(&format!("installing {VIRTME}"));
        let venv = cache.join("virtme");
        shell::run_as_progress(Command::new("python3").args(["-m", "venv"]).arg(&venv))?;
        shell::run_as_progress(Command::new(bin.join("pip")).args(["install", "-q", VIRTME]))?;
    }
    Ok(bin)
}

/// A test program and a filter: only tests whose names contain it are run.
struct Run<'a> {
    program: PathBuf,
    filter: &'a str,
}

/// Builds integration tests of netdp-user; `node::takeover` is one topic of the program `node`.
fn build<'a>(names: &[&'a str]) -> Result<Vec<Run<'a>>> {
    let names: Vec<(&str, &str)> = names
        .iter()
        .map(|name| name.split_once("::").unwrap_or((name, "")))
        .collect();
    let mut command = shell::cargo();
    command.args([
        "test",
        "-p",
        "netdp-user",
        "--no-run",
        "--message-format=json",
    ]);
    for (program, _) in &names {
        command.args(["--test", program]);
    }
    let messages = command.stderr(Stdio::inherit()).output()?;
    ensure!(messages.status.success(), "building the tests failed");
    let messages = String::from_utf8_lossy(&messages.stdout).into_owned();
    let messages: Vec<Value> = messages
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect();
    let program = |name: &str| {
        let of = |message: &&Value| {
            message["profile"]["test"] == true && message["target"]["name"] == name
        };
        let built = messages.iter().find(of)?;
        built["executable"].as_str().map(PathBuf::from)
    };
    names
        .iter()
        .map(|(name, filter)| {
            let program = program(name).with_context(|| format!("{name} is no test"))?;
            Ok(Run { program, filter })
        })
        .collect()
}

/// Runs the test programs in the machine.
fn boot(cache: &Path, image: &Path, bin: &Path, runs: &[Run<'_>]) -> Result<()> {
    let told = cache.join("told");
    let script = cache.join("run");
    let target = runs
        .first()
        .and_then(|run| run.program.ancestors().nth(3))
        .context("no tests")?;
    let mut text = format!(
        "#!/bin/sh\nexport PATH=/usr/sbin:/usr/bin:/sbin:/bin NETDP_TEST_SLOWNESS=10\n\
         exec >{} 2>&1\nuname -r\nsysctl -w net.core.bpf_jit_enable=1\n",
        told.display()
    );
    for Run { program, filter } in runs {
        text += &format!(
            "{} --test-threads 1 {filter} || failed=yes\n",
            program.display()
        );
    }
    // The exit status of the machine carries no result.
    text += "[ \"$failed\" ] || echo all passed\n";
    fs::write(&script, text)?;
    output(Command::new("chmod").arg("+x").arg(&script))?;
    let _ = fs::remove_file(&told);
    let path = std::env::var("PATH").unwrap_or_default();
    let mut command = Command::new("timeout");
    command
        .args([PATIENCE, "vng", "--run"])
        .arg(image)
        .args([
            "--disable-kvm",
            "--verbose",
            "--cpus",
            "2",
            "--memory",
            "2G",
        ])
        .arg(format!("--rwdir={}", cache.display()))
        .arg(format!("--rwdir={}", target.display()))
        .arg("--")
        .arg(&script)
        .env("PATH", format!("{}:{path}", bin.display()))
        .stderr(Stdio::null());
    let ended = shell::run_with_clock(&mut command, "in the machine");
    let told = fs::read_to_string(&told).context("the machine ran nothing")?;
    println!("{told}");
    ensure!(
        told.contains("all passed"),
        "tests failed on the other kernel ({ended:?})"
    );
    Ok(())
}
