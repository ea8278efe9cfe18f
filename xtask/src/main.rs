//! `cargo xtask`: sets the machine up, builds, tests, and shows netdp.
#![allow(
    clippy::print_stdout,
    reason = "what a task is asked for goes to standard output, progress to standard error"
)]

#[cfg(feature = "full")]
mod bench;
mod build;
mod demo;
mod go_libraries;
#[cfg(feature = "full")]
mod go_library;
mod kernels;
mod kube;
mod lint;
mod make_image;
#[cfg(feature = "full")]
mod pictures;
mod release;
mod scale;
mod setup;
#[cfg(feature = "full")]
mod test;

#[cfg(not(feature = "full"))]
mod rest;

use anyhow::Result;
use clap::{Parser, Subcommand};
#[cfg(not(feature = "full"))]
use std::ffi::OsString;
use std::process::ExitCode;
use xtask::shell;

/// netdp's development tasks.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
#[cfg_attr(not(feature = "full"), command(after_help = rest::HELP))]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Install the tools for building, testing and the demo (Debian 12; as root).
    Setup,
    /// Set up, then build target/release/netdp.
    Build,
    /// Set up, build, and demonstrate netdp in network namespaces (as root).
    Demo {
        #[command(subcommand)]
        story: Option<Story>,
    },
    /// Set up, then run every test (as root).
    #[cfg(feature = "full")]
    Test {
        /// Arguments for `cargo test`, for example `-p netdp-common` or a test's name.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
    /// Set up, then measure memory and sweeps with a million mappings (as root).
    Scale {
        /// Number of mappings.
        #[arg(default_value_t = 1_000_000)]
        mappings: u32,
    },
    /// Set up, then run tests on Debian 12's own kernel, in an emulated machine
    /// (as root).
    Kernels {
        /// Integration tests of netdp-user, as `program` or `node::takeover`; `stacked` if none is
        /// named.
        tests: Vec<String>,
    },
    /// Set up, then build the OCI image of netdp, with buildah.
    Image(make_image::Arguments),
    /// Set up, then build what a release publishes, with checksums; publishes nothing.
    Release(release::Arguments),
    /// Print the objects of a kustomization as JSON, using Kustomize itself.
    #[cfg(feature = "full")]
    Kustomize {
        /// A directory with a kustomization.yaml.
        directory: std::path::PathBuf,
    },
    /// Install the chart into a cluster, lint or package it, using Helm itself, and print the result.
    #[cfg(feature = "full")]
    Helm(go_library::Helm),
    /// Set up, then measure with a real Kubernetes API server: from an edit to the datapath, and the
    /// agent at rest (as root).
    Kube,
    /// Set up, then run against a faulty, hostile Kubernetes API server (as root).
    Soak {
        /// Duration in minutes.
        #[arg(default_value_t = 10)]
        minutes: u32,
    },
    /// Set up, then compare netdp with plain forwarding and netfilter (as root).
    #[cfg(feature = "full")]
    Bench(bench::Options),
    /// Set up, then draw the documentation's pictures anew (as root).
    #[cfg(feature = "full")]
    Pictures,
    /// Check format, lints, documentation, spelling, and licences and known vulnerabilities of
    /// dependencies.
    Lint {
        /// Fail, rather than warn, if the database of vulnerabilities can't be fetched.
        #[arg(long)]
        advisories: bool,
    },
    /// A task that is built on demand.
    #[cfg(not(feature = "full"))]
    #[command(external_subcommand)]
    Rest(Vec<OsString>),
}

#[derive(Debug, Subcommand)]
enum Story {
    /// Migrate a live node from ip-masq-agent's rules to eBPF and back, under load.
    Migrate {
        /// Number of rounds.
        #[arg(long, default_value_t = 1)]
        rounds: usize,
    },
    /// Use netdp in a real cluster of one node, through kubectl.
    Cluster,
}

fn main() -> ExitCode {
    match run(Cli::parse().task) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // The chain of causes is complete; a backtrace would scroll it off the screen.
            eprintln!("error: {error}");
            for cause in error.chain().skip(1) {
                eprintln!("  because: {cause}");
            }
            ExitCode::FAILURE
        }
    }
}

fn run(task: Task) -> Result<()> {
    match task {
        Task::Setup => setup::run(),
        Task::Build => build::run().map(|_| ()),
        Task::Demo { story: None } => demo::run(),
        Task::Demo {
            story: Some(Story::Migrate { rounds }),
        } => demo::migrate(rounds),
        #[cfg(feature = "full")]
        Task::Demo {
            story: Some(Story::Cluster),
        } => demo::cluster(),
        #[cfg(not(feature = "full"))]
        Task::Demo {
            story: Some(Story::Cluster),
        } => rest::run(&["demo".into(), "cluster".into()]),
        #[cfg(feature = "full")]
        Task::Test { arguments } => test::run(&arguments),
        Task::Scale { mappings } => scale::run(mappings),
        Task::Kernels { tests } => kernels::run(&tests),
        Task::Image(arguments) => make_image::run(&arguments),
        Task::Release(arguments) => release::run(&arguments),
        #[cfg(feature = "full")]
        Task::Kustomize { directory } => go_library::kustomize(&directory),
        #[cfg(feature = "full")]
        Task::Helm(helm) => go_library::helm(&helm),
        Task::Kube => kube::measure(),
        Task::Soak { minutes } => kube::soak(minutes),
        #[cfg(feature = "full")]
        Task::Bench(options) => bench::run(&options),
        #[cfg(feature = "full")]
        Task::Pictures => pictures::run(),
        Task::Lint { advisories } => lint::run(advisories),
        #[cfg(not(feature = "full"))]
        Task::Rest(arguments) => rest::run(&arguments),
    }
}
