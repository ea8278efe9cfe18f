//! `cargo xtask` on a machine where nothing is built: it reports at once what it builds, and the
//! first build is small.

use anyhow::{Context as _, Result, ensure};
use std::path::Path;
use std::process::Command;

/// Returns the command behind the alias `cargo xtask`.
fn alias() -> Result<Vec<String>> {
    let config = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.cargo/config.toml");
    let config = std::fs::read_to_string(config)?;
    let line = config
        .lines()
        .find_map(|line| line.strip_prefix("xtask = "));
    let line = line.context("no alias")?.trim_matches('"');
    Ok(line.split(' ').map(str::to_owned).collect())
}

#[test]
fn cargo_says_what_it_compiles() -> Result<()> {
    let alias = alias()?;
    ensure!(
        !alias.iter().any(|word| word == "--quiet" || word == "-q"),
        "{alias:?}"
    );
    Ok(())
}

/// Dependencies that take long to build are built only for the tasks that need them.
#[test]
fn the_first_build_is_a_small_one() -> Result<()> {
    let alias = alias()?;
    let [run, options @ .., separator] = alias.as_slice() else {
        anyhow::bail!("{alias:?}");
    };
    ensure!(run == "run" && separator == "--", "{alias:?}");
    let tree = Command::new(env!("CARGO"))
        .args([
            "tree",
            "--offline",
            "--edges",
            "normal,build",
            "--prefix",
            "none",
        ])
        .args(options)
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .output()?;
    ensure!(
        tree.status.success(),
        "{}",
        String::from_utf8_lossy(&tree.stderr)
    );
    let tree = String::from_utf8_lossy(&tree.stdout);
    let has = |name: &str| {
        tree.lines()
            .any(|line| line.split(' ').next() == Some(name))
    };
    ensure!(has("clap") && has("anyhow"), "{tree}");
    for large in ["aya", "plotters", "rcgen", "ring", "libloading"] {
        ensure!(!has(large), "{large} is built for every task");
    }
    Ok(())
}
