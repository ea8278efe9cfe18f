//! Tasks with dependencies that take long to build: they are built and run only on demand.

use crate::shell;
use anyhow::{Context as _, Result, bail};
use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;

/// Description of these tasks in `--help`.
pub const HELP: &str = "\
Further tasks, built on demand:
  test       Set up, then run every test (as root)
  kustomize  Print the objects of a kustomization as JSON, using Kustomize itself
  helm       Install the chart into a cluster, lint or package it, using Helm itself
  bench      Set up, then compare netdp with plain forwarding and netfilter (as root)";

/// Replaces this process by an xtask with all tasks.
pub fn run(arguments: &[OsString]) -> Result<()> {
    const TASKS: [&str; 5] = ["demo", "test", "kustomize", "helm", "bench"];
    let task = arguments.first().context("no task")?.to_string_lossy();
    if !TASKS.contains(&task.as_ref()) {
        bail!("unknown task {task:?}: see cargo xtask --help");
    }
    shell::progress(&format!("building the rest of xtask, which {task} needs"));
    let mut cargo = shell::cargo();
    cargo
        .args(["run", "--package", "xtask", "--"])
        .args(arguments);
    let line = shell::line(&cargo);
    Err(cargo.exec()).with_context(|| format!("starting `{line}`"))
}
