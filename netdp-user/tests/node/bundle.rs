//! `netdp support-bundle`: what is in it, what never is, and what it hides.

use crate::common::clients::{Tcp, any};
use crate::common::{ECHO, Echo, NETDP, POLICY, World, wait_log};
use anyhow::{Context as _, Result, ensure};
use flate2::read::GzDecoder;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::fs;
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use testbed::WorkDir;

/// Planted wherever secrets lie on a node.
const SECRET: &str = "hunter2-planted";

/// Files of every bundle of a node with an agent.
const FILES: [&str; 15] = [
    "contents.txt",
    "status.txt",
    "status.json",
    "policy.txt",
    "policy.json",
    "history.json",
    "flows-by-pod.txt",
    "flows-by-destination.txt",
    "log.jsonl",
    "refusals.txt",
    "kernel.txt",
    "objects.json",
    "addresses.txt",
    "routes.txt",
    "counters.json",
];

/// A node with traffic, names of pods, and secrets.
struct Scene {
    world: World,
    dir: WorkDir,
    _flow: Tcp,
    _echo: Echo,
}

impl Scene {
    fn new() -> Result<Self> {
        let config = format!("# the database's password is {SECRET}\n{POLICY}");
        let world = World::with(&config, &["--enable-ipv6"])?;
        let dir = WorkDir::new("bundle")?;
        let echo = Echo::start(&world.far)?;
        let to = (world.far.v4()?, ECHO).into();
        let flow = Tcp::connect(&world.pod(0).ns, any(to), to)?;
        fs::write(world.config.path().join("password"), SECRET)?;
        fs::write(
            dir.path().join("kubeconfig"),
            format!("users: [{{name: a, user: {{token: {SECRET}}}}}]"),
        )?;
        let cni = dir.path().join("cni");
        fs::create_dir(&cni)?;
        let pod = json!({
            "kind": "cniCacheV1",
            "cniArgs": [["K8S_POD_NAMESPACE", "acme-shop"], ["K8S_POD_NAME", "acme-cart-5d9"]],
            "result": {"ips": [{"address": format!("{}/24", world.pod(0).v4()?)}]},
        });
        fs::write(cni.join("pod"), pod.to_string())?;
        wait_log(&world.agent, "attached to")?;
        Ok(Self {
            world,
            dir,
            _flow: flow,
            _echo: echo,
        })
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = self.world.agent.command(&["support-bundle"]);
        command
            .args(arguments)
            .arg("--cni-dir")
            .arg(self.dir.path().join("cni"))
            .env("PASSWORD", SECRET)
            .env("KUBECONFIG", self.dir.path().join("kubeconfig"))
            .current_dir(self.dir.path());
        command
    }

    /// Makes a bundle and returns its files.
    fn bundle(&self, name: &str, arguments: &[&str]) -> Result<BTreeMap<String, String>> {
        let path = self.dir.path().join(name);
        let made = self.command(arguments).arg("-o").arg(&path).output()?;
        let told = String::from_utf8_lossy(&made.stderr);
        ensure!(made.status.success(), "{told}");
        assert_eq!(fs::metadata(&path)?.permissions().mode() & 0o777, 0o600);
        unpack(&path)
    }
}

fn unpack(path: &Path) -> Result<BTreeMap<String, String>> {
    let mut archive = tar::Archive::new(GzDecoder::new(fs::File::open(path)?));
    let mut files = BTreeMap::new();
    for entry in archive.entries()? {
        let mut entry = entry?;
        let path = entry.path()?.into_owned();
        let name = path.strip_prefix("netdp-bundle")?.display().to_string();
        let mut text = String::new();
        entry.read_to_string(&mut text)?;
        files.insert(name, text);
    }
    Ok(files)
}

fn json_of(files: &BTreeMap<String, String>, name: &str) -> Result<Value> {
    let text = files.get(name).with_context(|| name.to_owned())?;
    serde_json::from_str(text).with_context(|| format!("{name}: {text}"))
}

#[test]
fn a_bundle_has_what_helps_and_no_secret() -> Result<()> {
    let scene = Scene::new()?;
    let files = scene.bundle("all.tar.gz", &["--flows"])?;
    for name in FILES.iter().chain(&["flows.txt"]) {
        let text = files.get(*name);
        ensure!(
            text.is_some_and(|it| !it.is_empty()),
            "{name}: {:?}",
            files.get("contents.txt")
        );
    }
    let state = fs::read(scene.world.agent.state_dir().join("secret"))?;
    for (name, text) in &files {
        ensure!(!text.contains(SECRET), "{name}: {text}");
        let holds = text.as_bytes().windows(state.len()).any(|it| it == state);
        ensure!(!holds, "{name} has the node's secret");
    }
    assert_eq!(json_of(&files, "status.json")?["agent"], "running");
    let counters = json_of(&files, "counters.json")?;
    ensure!(counters["seconds"].as_f64() >= Some(10.0), "{counters}");
    ensure!(
        counters["before"]["egress_masqueraded"].is_u64(),
        "{counters}"
    );
    let objects = json_of(&files, "objects.json")?;
    let has = |list: &str, key: &str, value: &str| {
        let list = objects[list].as_array().cloned().unwrap_or_default();
        list.iter().any(|it| it[key] == value)
    };
    ensure!(
        has("maps", "pin", "snat") && has("programs", "name", "egress_snat"),
        "{objects}"
    );
    let uplink = &scene.world.bed.uplinks[0].name;
    ensure!(
        files["addresses.txt"].contains(uplink.as_str()),
        "{}",
        files["addresses.txt"]
    );
    ensure!(
        files["routes.txt"].contains("default"),
        "{}",
        files["routes.txt"]
    );
    ensure!(
        files["rules.txt"].contains("32766"),
        "{}",
        files["rules.txt"]
    );
    ensure!(
        files["flows.txt"].contains("acme-shop/acme-cart-5d9"),
        "{}",
        files["flows.txt"]
    );
    ensure!(
        files["log.jsonl"].contains("attached to"),
        "{}",
        files["log.jsonl"]
    );
    // It is never written over another file.
    let again = scene.command(&["-o", "all.tar.gz"]).output()?;
    let told = String::from_utf8_lossy(&again.stderr);
    ensure!(
        !again.status.success() && told.contains("is there already"),
        "{told}"
    );
    Ok(())
}

#[test]
fn an_anonymous_bundle_hides_names_and_addresses_the_same_everywhere() -> Result<()> {
    let scene = Scene::new()?;
    let node = scene.world.bed.uplinks[0].addresses[0].addr().to_string();
    let hidden = [
        "acme-shop".to_owned(),
        "acme-cart-5d9".to_owned(),
        node,
        scene.world.pod(0).v4()?.to_string(),
        scene.world.far.v4()?.to_string(),
    ];
    let mut seen = Vec::new();
    for name in ["one", "two"] {
        let files = scene.bundle(name, &["--anonymous", "--flows"])?;
        for (file, text) in &files {
            for word in &hidden {
                let whole = text.match_indices(word.as_str()).any(|(at, _)| {
                    let next = text[at + word.len()..].chars().next();
                    let before = text[..at].chars().next_back();
                    let goes_on = |c: Option<char>| c.is_some_and(|c| c.is_ascii_digit());
                    !goes_on(next) && !goes_on(before)
                });
                ensure!(!whole, "{word} in {file}:\n{text}");
            }
        }
        ensure!(
            files["flows.txt"].contains("namespace-1/pod-1"),
            "{}",
            files["flows.txt"]
        );
        // One address stands for the node's in every file.
        let status = json_of(&files, "status.json")?;
        let uplinks = &status["report"]["uplinks"];
        let node = uplinks[0]["v4"].as_str().context("no address")?.to_owned();
        ensure!(node.starts_with("10."), "{node} is not private");
        for file in ["status.txt", "addresses.txt", "flows.txt", "routes.txt"] {
            ensure!(
                files[file].contains(&node),
                "{node} is not in {file}: {}",
                files[file]
            );
        }
        // The policy's networks still contain what they contained.
        ensure!(
            files["policy.txt"].contains("/16"),
            "{}",
            files["policy.txt"]
        );
        seen.push((node, files.into_keys().collect::<Vec<_>>()));
    }
    ensure!(
        seen[0].0 != seen[1].0,
        "two bundles have the same key: {seen:?}"
    );
    assert_eq!(seen[0].1, seen[1].1);
    Ok(())
}

#[test]
fn without_agent_and_datapath_it_has_the_rest_and_says_what_is_missing() -> Result<()> {
    let mut scene = Scene::new()?;
    scene.world.agent.kill9()?;
    let files = scene.bundle("killed", &[])?;
    assert_eq!(json_of(&files, "status.json")?["agent"], "not running");
    ensure!(
        files["status.txt"].contains("NDP701"),
        "{}",
        files["status.txt"]
    );
    ensure!(files.contains_key("flows-by-pod.txt") && files.contains_key("objects.json"));

    let dir = WorkDir::new("nothing")?;
    let path = dir.path().join("bundle");
    let mut command = scene.world.bed.node.command(NETDP);
    for flag in ["--bpffs", "--state-dir", "--cni-dir"] {
        command.arg(flag).arg(dir.path().join("none"));
    }
    let args = command
        .get_args()
        .map(ToOwned::to_owned)
        .collect::<Vec<_>>();
    let mut command = scene.world.bed.node.command(NETDP);
    command
        .arg("support-bundle")
        .args(args)
        .arg("-o")
        .arg(&path);
    let made = command.output()?;
    ensure!(
        made.status.success(),
        "{}",
        String::from_utf8_lossy(&made.stderr)
    );
    let files = unpack(&path)?;
    let contents = &files["contents.txt"];
    for name in ["objects.json", "counters.json", "log.jsonl"] {
        let line = contents.lines().find(|line| line.starts_with(name));
        ensure!(
            line.is_some_and(|it| it.contains("not there: ")),
            "{name}:\n{contents}"
        );
    }
    ensure!(
        files.contains_key("addresses.txt") && files.contains_key("kernel.txt"),
        "{contents}"
    );
    Ok(())
}

#[test]
fn a_preview_lists_the_files_and_writes_none() -> Result<()> {
    let scene = Scene::new()?;
    let before = fs::read_dir(scene.dir.path())?.count();
    let listed = scene.command(&["--preview"]).output()?;
    let told = String::from_utf8(listed.stdout)?;
    ensure!(listed.status.success(), "{told}");
    for name in FILES {
        ensure!(told.contains(name), "{name}:\n{told}");
    }
    assert_eq!(fs::read_dir(scene.dir.path())?.count(), before);
    // The bundle itself can be a pipe's.
    let piped = scene.command(&["-o", "-"]).output()?;
    ensure!(piped.stdout.starts_with(&[0x1f, 0x8b]), "no gzip");
    Ok(())
}
