//! Bill of materials (CycloneDX): the crates compiled into the program and its eBPF programs, as
//! cargo-cyclonedx lists them, and Debian's packages.

use super::workspace;
use crate::shell;
use anyhow::{Context as _, Result};
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Cargo package of the program.
const PROGRAM: &str = "netdp-user";

/// Cargo package of the eBPF programs. To cargo it is only a dependency of a build script.
const KERNEL: &str = "netdp-ebpf";

/// Name of cargo-cyclonedx's output files, which it writes beside each Cargo.toml.
const NAME: &str = "image.cdx";

/// Returns the document for a program compiled for `target`. It has no serial number and no
/// timestamp: the same Cargo.lock and packages give the same document.
///
/// # Errors
/// Returns an error if cargo-cyclonedx fails or its output cannot be parsed.
pub fn document(target: &str, packages: Vec<Value>) -> Result<Value> {
    let [mut document, kernel] = cyclonedx(target)?;
    document["metadata"]["component"]["name"] = "netdp".into();
    add_kernel(&mut document, kernel)?;
    list(&mut document, "components")?.extend(packages);
    Ok(document)
}

/// Returns the documents of the two packages. cargo-cyclonedx writes beside each Cargo.toml, and a
/// temporary file there would trigger a rebuild of the eBPF programs: it runs on a copy of the
/// sources.
fn cyclonedx(target: &str) -> Result<[Value; 2]> {
    let workspace = workspace::metadata()?;
    let copy = tempfile::tempdir().context("making a directory for a copy of the sources")?;
    copy_sources(&workspace, copy.path())?;
    shell::run_as_progress(
        shell::cargo()
            .current_dir(copy.path())
            .env("SOURCE_DATE_EPOCH", "0")
            .args(["cyclonedx", "-qq", "--format", "json"])
            .args(["--spec-version", "1.5", "--no-build-deps"])
            .args(["--override-filename", NAME, "--target", target]),
    )
    .context("cargo-cyclonedx lists the crates; `cargo xtask setup` installs it")?;
    let here = format!("path+file://{}", copy.path().display());
    let read = |package: &str| -> Result<Value> {
        let path = copy.path().join(package).join(format!("{NAME}.json"));
        let text =
            fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?;
        // The same workspace path as the one given to the compiler.
        serde_json::from_str(&text.replace(&here, "path+file:///netdp"))
            .with_context(|| format!("reading {}", path.display()))
    };
    Ok([read(PROGRAM)?, read(KERNEL)?])
}

/// Copies the files of the workspace that cargo reads.
fn copy_sources(workspace: &Value, to: &Path) -> Result<()> {
    let root = workspace["workspace_root"]
        .as_str()
        .context("cargo metadata names no workspace")?;
    let mut cp = Command::new("cp");
    cp.current_dir(root).args(["--recursive", "--parents"]);
    cp.args(["Cargo.toml", "Cargo.lock"]);
    for member in members(workspace)? {
        cp.arg(member.strip_prefix(root)?);
    }
    shell::run_as_progress(cp.arg(to))
}

/// Returns the directories of the workspace's packages.
fn members(workspace: &Value) -> Result<Vec<PathBuf>> {
    workspace["packages"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|package| {
            let manifest = package["manifest_path"].as_str().map(Path::new);
            let directory = manifest.and_then(Path::parent).map(Path::to_owned);
            directory.context("cargo metadata names no Cargo.toml of a package")
        })
        .collect()
}

/// Adds the package of the eBPF programs and its crates, each once.
fn add_kernel(document: &mut Value, mut kernel: Value) -> Result<()> {
    let root = kernel["metadata"]["component"].take();
    let reference = root["bom-ref"].clone();
    let component = json!({
        "type": "application",
        "bom-ref": reference,
        "name": root["name"],
        "version": root["version"],
        "licenses": root["licenses"],
        "purl": root["purl"],
    });
    add_absent(document, "components", "bom-ref", vec![component])?;
    for (key, by) in [("components", "bom-ref"), ("dependencies", "ref")] {
        let more = std::mem::take(list(&mut kernel, key)?);
        add_absent(document, key, by, more)?;
    }
    let program = document["metadata"]["component"]["bom-ref"].clone();
    let program = list(document, "dependencies")?
        .iter_mut()
        .find(|dependency| dependency["ref"] == program)
        .context("cargo-cyclonedx lists no dependencies of the program")?;
    list(program, "dependsOn")?.push(reference);
    Ok(())
}

/// Adds to a list the entries that it lacks, compared by the value of a key.
fn add_absent(document: &mut Value, key: &str, by: &str, more: Vec<Value>) -> Result<()> {
    let list = list(document, key)?;
    let known: BTreeSet<_> = list.iter().map(|entry| entry[by].to_string()).collect();
    list.extend(
        more.into_iter()
            .filter(|entry| !known.contains(&entry[by].to_string())),
    );
    Ok(())
}

fn list<'a>(value: &'a mut Value, key: &str) -> Result<&'a mut Vec<Value>> {
    value[key]
        .as_array_mut()
        .with_context(|| format!("cargo-cyclonedx wrote no list {key:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn made() -> Value {
        document("x86_64-unknown-linux-musl", Vec::new()).unwrap()
    }

    #[test]
    fn it_lists_what_is_compiled_in_and_nothing_else() {
        let document = made();
        let names: BTreeSet<_> = document["components"]
            .as_array()
            .unwrap()
            .iter()
            .chain([&document["metadata"]["component"]])
            .map(|component| component["name"].as_str().unwrap())
            .collect();
        for shipped in [
            "netdp",
            "netdp-ebpf",
            "netdp-common",
            "aya",
            "aya-ebpf",
            "tokio",
        ] {
            assert!(names.contains(shipped), "{shipped} is missing");
        }
        // Dependencies of the tests, of the build, and of another platform.
        for not_shipped in ["proptest", "testbed", "xtask", "aya-build", "windows-sys"] {
            assert!(!names.contains(not_shipped), "{not_shipped} is in");
        }
    }

    #[test]
    fn every_reference_is_a_component() {
        let document = made();
        let mut known: Vec<_> = document["components"]
            .as_array()
            .unwrap()
            .iter()
            .chain([&document["metadata"]["component"]])
            .map(|component| component["bom-ref"].to_string())
            .collect();
        let all = known.len();
        known.sort_unstable();
        known.dedup();
        assert_eq!(known.len(), all, "a component is listed twice");
        for dependency in document["dependencies"].as_array().unwrap() {
            for on in dependency["dependsOn"].as_array().into_iter().flatten() {
                assert!(known.contains(&on.to_string()), "{on}");
            }
        }
    }

    #[test]
    fn nothing_in_it_depends_on_the_machine_or_the_time() {
        let text = made().to_string();
        assert!(!text.contains(&std::env::temp_dir().display().to_string()));
        assert!(!text.contains("serialNumber"));
        assert_eq!(text, made().to_string());
    }

    /// A build script watches its directory, so a changed file there would trigger a rebuild.
    #[test]
    fn the_sources_stay_as_they_are() {
        let changed = || -> Vec<_> {
            members(&workspace::metadata().unwrap())
                .unwrap()
                .iter()
                .map(|member| fs::metadata(member).unwrap().modified().unwrap())
                .collect()
        };
        let before = changed();
        made();
        assert_eq!(changed(), before);
    }
}
