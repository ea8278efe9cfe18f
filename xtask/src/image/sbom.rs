//! What the program is made of, as a CycloneDX document: every crate of
//! Cargo.lock that is compiled into it or into its eBPF programs.

use crate::shell;
use anyhow::{Context as _, Result};
use cargo_metadata::{DependencyKind, Metadata, MetadataCommand, Package, PackageId};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};

/// The packages whose code is in the image.
const SHIPPED: [&str; 2] = ["netdp-user", "netdp-ebpf"];

/// What cargo knows of the workspace, as compiled for `target`.
///
/// # Errors
/// `cargo metadata` failed, for example because Cargo.lock is out of date.
pub fn metadata(target: &str) -> Result<Metadata> {
    MetadataCommand::new()
        .manifest_path(shell::root().join("Cargo.toml"))
        .other_options(["--locked".into(), format!("--filter-platform={target}")])
        .exec()
        .context("asking cargo for the dependencies")
}

/// The document, as JSON. It has no serial number and no time: the same
/// Cargo.lock gives the same document.
///
/// # Errors
/// Cargo's answer is incomplete.
pub fn document(metadata: &Metadata) -> Result<Value> {
    let resolve = metadata
        .resolve
        .as_ref()
        .context("cargo resolved no dependencies")?;
    let edges: BTreeMap<&PackageId, Vec<&PackageId>> = resolve
        .nodes
        .iter()
        .map(|node| {
            let shipped = node.deps.iter().filter(|dep| {
                dep.dep_kinds
                    .iter()
                    .any(|kind| kind.kind == DependencyKind::Normal)
            });
            (&node.id, shipped.map(|dep| &dep.pkg).collect())
        })
        .collect();
    let mut reached = BTreeSet::new();
    let mut next: Vec<&PackageId> = metadata
        .packages
        .iter()
        .filter(|package| SHIPPED.contains(&package.name.as_str()))
        .map(|package| &package.id)
        .collect();
    while let Some(id) = next.pop() {
        if reached.insert(id) {
            next.extend(edges.get(id).into_iter().flatten());
        }
    }
    let packages: Vec<&Package> = metadata
        .packages
        .iter()
        .filter(|package| reached.contains(&package.id))
        .collect();
    let depends = |package: &&Package| {
        let on: BTreeSet<_> = packages
            .iter()
            .filter(|other| edges[&package.id].contains(&&other.id))
            .map(|other| purl(other))
            .collect();
        json!({ "ref": purl(package), "dependsOn": on })
    };
    Ok(json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": { "component": {
            "type": "application",
            "name": "netdp",
            "version": env!("CARGO_PKG_VERSION"),
            "bom-ref": "netdp",
            "licenses": [{ "expression": "Apache-2.0 OR MIT" }],
        }},
        "components": packages.iter().map(|package| component(package)).collect::<Vec<_>>(),
        "dependencies": packages.iter().map(depends).collect::<Vec<_>>(),
    }))
}

/// Adds components that are no crates.
pub fn add(document: &mut Value, components: Vec<Value>) {
    if let Some(list) = document["components"].as_array_mut() {
        list.extend(components);
    }
}

fn component(package: &Package) -> Value {
    let mut component = json!({
        "type": "library",
        "name": package.name.as_str(),
        "version": package.version.to_string(),
        "bom-ref": purl(package),
        "purl": purl(package),
    });
    if let Some(licence) = &package.license {
        // Crates from before SPDX expressions put a slash for "or".
        let expression = licence.replace('/', " OR ");
        component["licenses"] = json!([{ "expression": expression }]);
    }
    component
}

fn purl(package: &Package) -> String {
    format!("pkg:cargo/{}@{}", package.name, package.version)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_lists_what_is_compiled_in_and_nothing_else() {
        let document = document(&metadata("x86_64-unknown-linux-musl").unwrap()).unwrap();
        let names: BTreeSet<_> = document["components"]
            .as_array()
            .unwrap()
            .iter()
            .map(|component| component["name"].as_str().unwrap())
            .collect();
        for shipped in [
            "netdp-user",
            "netdp-ebpf",
            "netdp-common",
            "aya",
            "aya-ebpf",
            "tokio",
        ] {
            assert!(names.contains(shipped), "{shipped} is missing");
        }
        // Of the tests, of the build, of another platform.
        for not_shipped in ["proptest", "testbed", "xtask", "aya-build", "windows-sys"] {
            assert!(!names.contains(not_shipped), "{not_shipped} is in");
        }
    }

    #[test]
    fn every_reference_is_a_component() {
        let document = document(&metadata("x86_64-unknown-linux-musl").unwrap()).unwrap();
        let known: BTreeSet<_> = document["components"]
            .as_array()
            .unwrap()
            .iter()
            .map(|component| &component["bom-ref"])
            .map(Value::to_string)
            .collect();
        for dependency in document["dependencies"].as_array().unwrap() {
            for on in dependency["dependsOn"].as_array().unwrap() {
                assert!(known.contains(&on.to_string()), "{on}");
            }
        }
    }
}
