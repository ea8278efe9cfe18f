//! `bench`: netdp compared with plain forwarding and netfilter, interleaved in one run.

mod bed;
mod connections;
mod cost;
mod generator;
mod html;
mod latency;
mod load;
mod markdown;
mod measure;
mod plan;
mod policy;
mod reload;
mod result;
mod see;
mod table;
mod throughput;
mod tracking;
mod variant;

use crate::{setup, shell};
use anyhow::{Context as _, Result, ensure};
use bed::Bed;
use clap::Args;
use generator::Generator;
use measure::Lab;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Stdio, exit};
use std::time::{Duration, Instant};
use tracking::Tracking;
use variant::{Kind, Measure, Variant};

/// Number of CIDRs in an ordinary cluster.
const FEW: u32 = 12;

/// Arguments of `cargo xtask bench`.
#[derive(Debug, Args)]
pub struct Options {
    /// Take a few minutes instead of most of an hour: fewer rounds, sizes and seconds.
    #[arg(long)]
    quick: bool,
    /// Measure only these.
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Measure>,
    /// Compare only these.
    #[arg(long, value_delimiter = ',', value_parser = named)]
    variants: Vec<&'static Variant>,
    /// Numbers of CIDRs to measure with.
    #[arg(long, value_delimiter = ',')]
    cidrs: Vec<u32>,
    /// Capacity of netdp's tables in flows, unless more are measured.
    #[arg(long, value_name = "N", default_value_t = 262_144)]
    max_flows: u32,
    /// Number of rounds of each test bed.
    #[arg(long)]
    rounds: Option<usize>,
    /// netdp program of another state of the sources, compared as `before`.
    #[arg(long, value_name = "PROGRAM")]
    before: Option<PathBuf>,
    /// Programs built elsewhere: netdp, and the generator's object.
    #[arg(long, num_args = 2, value_names = ["NETDP", "GENERATOR"], hide = true)]
    built: Vec<PathBuf>,
    /// Directory for report.html, report.json and report.md.
    #[arg(long, default_value = "target/bench")]
    out: PathBuf,
}

fn named(name: &str) -> Result<&'static Variant, String> {
    Variant::named(name).ok_or_else(|| {
        let names: Vec<&str> = variant::ALL.iter().map(|variant| variant.name).collect();
        format!("known are {}", names.join(", "))
    })
}

/// Sets up, builds, measures and writes the reports.
pub fn run(options: &Options) -> Result<()> {
    testbed::require_root("cargo xtask bench")?;
    setup::run()?;
    let built = match &options.built[..] {
        [netdp, generator] => Built {
            netdp: netdp.clone(),
            generator: generator.clone(),
        },
        _ => build()?,
    };
    // A process that a signal terminates drops nothing.
    let tracking = Tracking::enlarge()?;
    let restore = tracking.restorer();
    ctrlc::set_handler(move || {
        restore();
        testbed::remove_all();
        exit(130);
    })?;
    let start = Instant::now();
    let plan = plan::Plan::new(options);
    let mut lab = Lab {
        beds: beds(&plan.variants, &built.netdp, options)?,
        generator: Generator::load(&built.generator)?,
        rounds: plan.rounds,
        slice: plan.slice,
        rows: Vec::new(),
        failed: Vec::new(),
        tracking,
    };
    let mut hooks = Vec::new();
    for bed in &lab.beds {
        if bed.variant.kind == Kind::Empty {
            let hook = lab.generator.attach_empty(bed);
            let hint = "Linux 6.6 or newer has TCX; leave empty-tc out with --variants";
            hooks.push(hook.with_context(|| format!("attaching an empty program: {hint}"))?);
        }
    }
    let own = own_rate(&mut lab)?;
    plan.carry_out(&mut lab)?;
    let names: Vec<&'static str> = plan.variants.iter().map(|variant| variant.name).collect();
    table::print_summary(&lab.rows, &names);
    let mut head = head(options, &own, start.elapsed());
    if !lab.failed.is_empty() {
        head.push(("FAILED".to_owned(), lab.failed.join("; ")));
    }
    report(&options.out, &lab, &names, &head)?;
    ensure!(
        lab.failed.is_empty(),
        "could not be measured:\n{}",
        lab.failed.join("\n")
    );
    Ok(())
}

fn beds(variants: &[&'static Variant], netdp: &Path, options: &Options) -> Result<Vec<Bed>> {
    shell::progress(&format!("making {} beds", variants.len()));
    variants
        .iter()
        .map(|variant| {
            let netdp = if variant.name == variant::BEFORE {
                let before = options.before.as_deref();
                before.context("--before names no program")?
            } else {
                netdp
            };
            Bed::new(variant, netdp, FEW, options.max_flows)
                .with_context(|| format!("the bed of {}", variant.name))
        })
        .collect()
}

/// Measures the generator alone, which must not be the bottleneck.
fn own_rate(lab: &mut Lab) -> Result<String> {
    const BURST: u32 = 500_000;
    let Lab {
        beds, generator, ..
    } = lab;
    let bed = beds.first().context("nothing to compare")?;
    let mut best: f64 = 0.0;
    for _ in 0..5 {
        best = best.max(generator.own_rate(bed, BURST)?.rate());
    }
    let text = format!(
        "{} packets/s over one wire into a sink",
        table::number(best)
    );
    println!("The generator alone: {text}");
    Ok(text)
}

fn head(options: &Options, own: &str, took: Duration) -> Vec<(String, String)> {
    let first_line = |path: &str| {
        let text = fs::read_to_string(path).unwrap_or_default();
        text.lines().next().unwrap_or_default().to_owned()
    };
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .map_or("", |value| value.trim_start_matches(['\t', ' ', ':']));
    let cpus = std::thread::available_parallelism().map_or(0, usize::from);
    let command: Vec<String> = std::env::args().skip(1).collect();
    [
        ("command", format!("cargo xtask {}", command.join(" "))),
        ("machine", format!("{cpus} CPUs, {model}")),
        (
            "kernel",
            format!("Linux {}", first_line("/proc/sys/kernel/osrelease")),
        ),
        ("load at the end", first_line("/proc/loadavg")),
        ("generator alone", own.to_owned()),
        ("took", format!("{} s", took.as_secs())),
        ("quick", options.quick.to_string()),
    ]
    .map(|(key, value)| (key.to_owned(), value))
    .into()
}

fn report(out: &Path, lab: &Lab, names: &[&str], head: &[(String, String)]) -> Result<()> {
    let out = shell::root().join(out);
    fs::create_dir_all(&out).with_context(|| out.display().to_string())?;
    let json = serde_json::json!({
        "about": head.iter().cloned().collect::<std::collections::BTreeMap<_, _>>(),
        "rows": lab.rows,
    });
    for (name, text) in [
        ("report.json", serde_json::to_string_pretty(&json)?),
        ("report.html", html::page(&lab.rows, head)?),
        ("report.md", markdown::page(&lab.rows, names, head)),
    ] {
        let path = out.join(name);
        fs::write(&path, text).with_context(|| path.display().to_string())?;
        println!("{}", path.canonicalize().unwrap_or(path).display());
    }
    Ok(())
}

struct Built {
    netdp: PathBuf,
    generator: PathBuf,
}

/// Builds netdp and, by the build script of bench-ebpf, the generator's programs.
fn build() -> Result<Built> {
    shell::progress("cargo build --release (two or three minutes the first time)");
    let out = shell::cargo()
        .args([
            "build",
            "--release",
            "--package",
            "netdp-user",
            "--package",
            "bench-ebpf",
            "--features",
            "bench-ebpf/object",
        ])
        .arg("--message-format=json-render-diagnostics")
        .stderr(Stdio::inherit())
        .output()
        .context("starting cargo")?;
    ensure!(out.status.success(), "cargo build: {}", out.status);
    let mut netdp = None;
    let mut generator = None;
    for line in String::from_utf8_lossy(&out.stdout).lines() {
        let Ok(message) = serde_json::from_str::<serde_json::Value>(line) else {
            continue;
        };
        let of_bench = message["package_id"]
            .as_str()
            .is_some_and(|id| id.contains("bench-ebpf"));
        if message["target"]["name"] == "netdp" {
            netdp = message["executable"].as_str().map(PathBuf::from).or(netdp);
        }
        if of_bench && message["reason"] == "build-script-executed" {
            generator = message["out_dir"]
                .as_str()
                .map(|dir| Path::new(dir).join("netdp-bench"));
        }
    }
    Ok(Built {
        netdp: netdp.context("cargo built no program of the name netdp")?,
        generator: generator.context("cargo ran no build script of bench-ebpf")?,
    })
}
