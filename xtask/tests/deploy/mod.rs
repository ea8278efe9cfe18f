//! Objects of deploy/kustomize, as built by Kustomize.

#![allow(dead_code, reason = "each test uses a part of this")]

pub mod cluster;

use anyhow::{Context as _, Result};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use testbed::{WorkDir, output};

/// Builds a kustomization as a user writes it, on top of one of netdp's, with a component and
/// patches, both of which may be empty. Returns the objects.
pub fn objects(on: &str, component: &str, patches: &str) -> Result<Vec<Value>> {
    let dir = WorkDir::new("kustomization")?;
    let deploy = directory()?.join("kustomize");
    // Kustomize accepts only relative paths.
    let up = "../".repeat(dir.path().components().count() - 1);
    let relative = |path: PathBuf| format!("{up}{}", path.display().to_string().trim_matches('/'));
    let mut text = format!("resources:\n- {}\n", relative(deploy.join(on)));
    if !component.is_empty() {
        let component = relative(deploy.join("components").join(component));
        text += &format!("components:\n- {component}\n");
    }
    if !patches.is_empty() {
        text += &format!("patches:\n{patches}\n");
    }
    fs::write(dir.path().join("kustomization.yaml"), text)?;
    let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
    command.arg("kustomize").arg(dir.path());
    let mut built: Value = serde_json::from_str(&output(&mut command)?)?;
    serde_json::from_value(built["resources"].take()).context("Kustomize made no list")
}

/// Returns the path of deploy/ in the workspace.
pub fn directory() -> Result<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy");
    path.canonicalize()
        .with_context(|| format!("looking for {}", path.display()))
}

/// Returns a manifest patched by JSON patches that are YAML, as a user writes them.
pub fn patched(manifest: &Value, patch: &str) -> Result<Value> {
    let dir = WorkDir::new("patched")?;
    fs::write(dir.path().join("manifest.yaml"), manifest.to_string())?;
    fs::write(dir.path().join("patch.yaml"), patch)?;
    fs::write(
        dir.path().join("kustomization.yaml"),
        "resources: [manifest.yaml]\npatches: [{target: {kind: DaemonSet}, path: patch.yaml}]\n",
    )?;
    let mut command = Command::new(env!("CARGO_BIN_EXE_xtask"));
    command.arg("kustomize").arg(dir.path());
    let mut built: Value = serde_json::from_str(&output(&mut command)?)?;
    Ok(built["resources"][0].take())
}
