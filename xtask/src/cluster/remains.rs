//! Remains of netdp in the cluster: on the node, in its kernel, and in the API.

use super::Cluster;
use anyhow::{Context as _, Result};
use aya::maps::loaded_maps;
use aya::programs::{ProgramInfo, SchedClassifier, TcAttachType, loaded_links, loaded_programs};
use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::path::Path;

/// Kinds of objects in netdp's manifests or created by agents.
const KINDS: &str = "namespaces,serviceaccounts,roles,rolebindings,clusterroles,\
                     clusterrolebindings,configmaps,daemonsets,controllerrevisions,pods,leases";

/// Remains of netdp: named lists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Remains(pub Vec<(&'static str, Vec<String>)>);

impl Remains {
    /// Reports whether all lists are empty.
    #[must_use]
    pub fn is_nothing(&self) -> bool {
        self.0.iter().all(|(_, found)| found.is_empty())
    }

    /// Returns the names of the empty lists.
    #[must_use]
    pub fn empty(&self) -> Vec<&'static str> {
        let lists = self.0.iter().filter(|(_, found)| found.is_empty());
        lists.map(|(what, _)| *what).collect()
    }
}

impl fmt::Display for Remains {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (what, found) in &self.0 {
            writeln!(f, "{what}: {}", found.len())?;
            for one in found {
                writeln!(f, "   {one}")?;
            }
        }
        Ok(())
    }
}

/// Ids of programs, links and maps in the kernel, which are never reused.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KernelObjects {
    programs: BTreeSet<u32>,
    links: BTreeSet<u32>,
    maps: BTreeSet<u32>,
}

impl KernelObjects {
    /// Returns those that still exist.
    fn still_there(&self) -> Result<Self> {
        let programs: BTreeSet<_> = loaded_programs().flatten().map(|it| it.id()).collect();
        let links: BTreeSet<_> = loaded_links().flatten().map(|it| it.id()).collect();
        let maps: BTreeSet<_> = loaded_maps().flatten().map(|it| it.id()).collect();
        Ok(Self {
            programs: self.programs.intersection(&programs).copied().collect(),
            links: self.links.intersection(&links).copied().collect(),
            maps: self.maps.intersection(&maps).copied().collect(),
        })
    }
}

impl Cluster {
    /// Returns the programs attached on the node (TCX), with their links and maps.
    pub fn datapath(&self) -> Result<KernelObjects> {
        let mut objects = KernelObjects::default();
        for (_, program) in self.attached()? {
            objects.programs.insert(program.id());
            objects
                .maps
                .extend(program.map_ids()?.into_iter().flatten());
        }
        let links = loaded_links().flatten();
        let ours = links.filter(|link| objects.programs.contains(&link.program_id()));
        objects.links = ours.map(|link| link.id()).collect();
        Ok(objects)
    }

    /// Returns the current remains of netdp and those of `known` that still exist.
    pub fn remains(&self, known: &KernelObjects) -> Result<Remains> {
        let attached = self.attached()?.into_iter();
        let left = known.still_there()?;
        let numbers = |of: &BTreeSet<u32>| of.iter().map(u32::to_string).collect();
        Ok(Remains(vec![
            (
                "programs on interfaces",
                attached.map(|(hook, _)| hook).collect(),
            ),
            ("programs in the kernel", numbers(&left.programs)),
            ("links in the kernel", numbers(&left.links)),
            ("maps in the kernel", numbers(&left.maps)),
            ("pins", self.pins()?),
            ("chains and rules", self.rules()?),
            ("files", self.files()?),
            ("objects in the API", self.objects()?),
        ]))
    }

    /// Returns the programs on each interface of the node.
    fn attached(&self) -> Result<Vec<(String, ProgramInfo)>> {
        let links = self.bed.node.ip("-o link show")?;
        let names = links.lines().filter_map(|line| line.split(": ").nth(1));
        let mut all = Vec::new();
        for name in names.filter_map(|name| name.split('@').next()) {
            for (hook, output) in [
                (TcAttachType::Ingress, "ingress"),
                (TcAttachType::Egress, "egress"),
            ] {
                let (_, programs) = self
                    .bed
                    .node
                    .enter(|| SchedClassifier::query_tcx(name, hook))?
                    .with_context(|| format!("querying the programs of {name}"))?;
                let output = |program: &ProgramInfo| {
                    let program = program.name_as_str().unwrap_or_default();
                    format!("{program} at {name}'s {output}")
                };
                all.extend(programs.into_iter().map(|it| (output(&it), it)));
            }
        }
        Ok(all)
    }

    /// Returns the netfilter rules that netdp or ip-masq-agent has written.
    fn rules(&self) -> Result<Vec<String>> {
        let mut found = Vec::new();
        for list in ["iptables-save", "ip6tables-save", "nft list ruleset"] {
            let rules = self.on_node(list)?;
            let ours = rules.lines().filter(|line| {
                let line = line.to_lowercase();
                line.contains("netdp") || line.contains("ip-masq")
            });
            found.extend(ours.map(|line| format!("{list}: {}", line.trim())));
        }
        Ok(found)
    }

    /// Returns the entries of the node's bpffs, without the kernel's own.
    fn pins(&self) -> Result<Vec<String>> {
        let mut pins = below(&self.path("/sys/fs/bpf"))?;
        pins.retain(|name| !name.ends_with(".debug"));
        Ok(pins)
    }

    /// Returns netdp's files on the node. An empty directory does not count: the kubelet creates it
    /// for the pod and nothing removes it.
    fn files(&self) -> Result<Vec<String>> {
        let mut found = Vec::new();
        for directory in ["/run", "/var/lib"] {
            for entry in fs::read_dir(self.path(directory))? {
                let entry = entry?;
                let name = entry.file_name();
                let name = name.to_string_lossy();
                if !name.contains("netdp") {
                    continue;
                }
                if entry.file_type()?.is_dir() {
                    let below = below(&entry.path())?.into_iter();
                    found.extend(below.map(|file| format!("{directory}/{name}: {file}")));
                } else {
                    found.push(format!("{directory}/{name}"));
                }
            }
        }
        Ok(found)
    }

    fn objects(&self) -> Result<Vec<String>> {
        let mut found = Vec::new();
        for ask in [
            format!("get {KINDS} -A -o name -l app.kubernetes.io/name=netdp"),
            "get leases -n netdp-fleet -o name".to_owned(),
            "get secrets -A -o name -l owner=helm".to_owned(),
        ] {
            found.extend(self.kubectl(&ask)?.lines().map(str::to_owned));
        }
        Ok(found)
    }
}

/// Returns everything below a directory, at any depth.
fn below(directory: &Path) -> Result<Vec<String>> {
    let mut found = Vec::new();
    let entries = fs::read_dir(directory);
    for entry in entries.with_context(|| format!("listing {}", directory.display()))? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            found.extend(below(&entry.path())?);
        }
        found.push(entry.file_name().to_string_lossy().into_owned());
    }
    Ok(found)
}
