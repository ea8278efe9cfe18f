//! Latency from an edit of the ConfigMap to the datapath, and the cost of an idle agent, with a
//! real Kubernetes API server. `cargo xtask kube` runs it.

#![expect(
    clippy::print_stdout,
    reason = "what it measures goes to standard output"
)]

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::Api;
use kube::api::{Patch, PatchParams};
use netdp_user::datapath::Maps;
use serde_json::json;
use std::fmt::Write as _;
use std::fs;
use std::time::{Duration, Instant};
use testbed::{Agent, AgentOptions, ApiServer, Bed, WorkDir, wait_for};

const EDITS: usize = 100;
const PATIENCE: Duration = Duration::from_secs(60);
const ACCOUNT: &str =
    "apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: netdp, namespace: kube-system}\n";
const RBAC: &str = include_str!("../../deploy/kustomize/base/rbac.yaml");

/// Duration of the observation of the idle agent.
const REST: Duration = Duration::from_secs(20);

fn main() -> Result<()> {
    let bed = Bed::builder()
        .uplink("eth0", &["10.1.0.10/16"])
        .pods(1, &["172.16.0.0/24"])
        .build()?;
    let api = ApiServer::start(&bed.node)?;
    api.apply(ACCOUNT)?;
    api.apply(RBAC)?;
    api.apply("apiVersion: v1\nkind: Node\nmetadata: {name: node-a}\n")?;
    let kubeconfig =
        api.write_kubeconfig("agent", &api.url(), &api.token("kube-system", "netdp")?)?;
    let dir = WorkDir::new("bench")?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let write = |text: &str| -> Result<()> {
        let map = json!({"apiVersion": "v1", "kind": "ConfigMap",
            "metadata": {"name": "ip-masq-agent"}, "data": {"config": text}});
        bed.node.enter(|| {
            runtime.block_on(async {
                // A client can only be used on the thread that created its connection.
                let client =
                    netdp_user::sources::kube::connect(Some(&api.admin_kubeconfig())).await?;
                let maps: Api<ConfigMap> = Api::namespaced(client, "kube-system");
                let params = PatchParams::apply("bench").force();
                maps.patch("ip-masq-agent", &params, &Patch::Apply(&map))
                    .await?;
                Ok(())
            })
        })?
    };
    let start = || {
        let options = AgentOptions::new(env!("CARGO_BIN_EXE_netdp"))
            .config(&dir.path().join("none"))
            .arg("--kube=on")
            .arg("--kubeconfig")
            .arg(&kubeconfig)
            .arg("--node-name=node-a")
            .arg("--http-listen=127.0.0.1:10268");
        Agent::start(&bed.node, options)
    };
    write("nonMasqueradeCIDRs: [172.16.0.0/16]\n")?;
    let agent = start()?;
    edits(&agent, write)?;
    drop(agent);
    for cidrs in [1, 64, 50_000] {
        write(&many(cidrs))?;
        let agent = start()?;
        at_rest(&agent, cidrs)?;
    }
    Ok(())
}

fn edits(agent: &Agent, write: impl Fn(&str) -> Result<()>) -> Result<()> {
    let maps = Maps::open(&agent.bpffs())?;
    let mut took = Vec::new();
    for edit in 0..EDITS {
        let before = maps.settings()?.active_policy;
        let start = Instant::now();
        write(&format!(
            "nonMasqueradeCIDRs: [172.16.0.0/16, 192.0.2.{edit}/32]\n"
        ))?;
        let written = start.elapsed();
        while maps.settings()?.active_policy == before {
            ensure!(
                start.elapsed() < PATIENCE,
                "edit {edit} never came into force\n{}",
                agent.log()
            );
            std::thread::sleep(Duration::from_micros(200));
        }
        took.push((start.elapsed(), written));
    }
    let of = |pick: fn(&(Duration, Duration)) -> Duration| {
        let mut sorted: Vec<_> = took.iter().map(pick).collect();
        sorted.sort_unstable();
        let ms = |at: usize| sorted.get(at).map_or(0.0, |took| took.as_secs_f64() * 1e3);
        (ms(EDITS / 2), ms(EDITS - 1))
    };
    let (median, worst) = of(|took| took.0);
    println!(
        "{EDITS} edits, from sending the edit to the policy in force: median {median:.1} ms, worst {worst:.1} ms"
    );
    let (median, worst) = of(|took| took.1);
    println!(
        "  of which the API server took to answer the edit: median {median:.1} ms, worst {worst:.1} ms"
    );
    Ok(())
}

/// Returns a configuration with this many prefixes, none of which has any effect.
fn many(cidrs: u32) -> String {
    let mut text = format!("cidrLimit: {cidrs}\nnonMasqueradeCIDRs:\n");
    for number in 0..cidrs {
        let address = std::net::Ipv4Addr::from(0x1400_0000 + (number << 8));
        let _ = writeln!(text, "- {address}/24");
    }
    text
}

fn at_rest(agent: &Agent, cidrs: u32) -> Result<()> {
    let maps = Maps::open(&agent.bpffs())?;
    wait_for(PATIENCE, "the policy", || maps.settings().is_ok())?;
    // After the work at start-up.
    std::thread::sleep(Duration::from_secs(5));
    let before = cpu(agent.pid())?;
    std::thread::sleep(REST);
    let used = cpu(agent.pid())?.saturating_sub(before);
    println!(
        "{cidrs} CIDRs: {:.1} MiB resident (most: {:.1} MiB), {:.2} % of a CPU over {} s",
        memory(agent.pid(), "VmRSS")?,
        memory(agent.pid(), "VmHWM")?,
        used.as_secs_f64() / REST.as_secs_f64() * 100.0,
        REST.as_secs()
    );
    Ok(())
}

/// Returns a line of /proc/PID/status in MiB.
fn memory(pid: u32, line: &str) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let found = status
        .lines()
        .find_map(|l| l.strip_prefix(line)?.strip_prefix(':'));
    let kib = found.and_then(|text| text.split_whitespace().next());
    let kib: f64 = kib
        .with_context(|| format!("no {line} in status"))?
        .parse()?;
    Ok(kib / 1024.0)
}

/// Returns the CPU time of all threads of a process so far, from the nanoseconds in
/// /proc/PID/task/TID/schedstat.
fn cpu(pid: u32) -> Result<Duration> {
    let mut total = Duration::ZERO;
    for task in fs::read_dir(format!("/proc/{pid}/task"))? {
        let text = fs::read_to_string(task?.path().join("schedstat"))?;
        let nanos = text
            .split_whitespace()
            .next()
            .context("an empty schedstat")?;
        total += Duration::from_nanos(nanos.parse()?);
    }
    Ok(total)
}
