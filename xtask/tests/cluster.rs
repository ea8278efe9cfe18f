//! netdp in a cluster of one node with a real kubelet: from the installation to an uninstallation
//! that leaves nothing behind, and as a replacement of ip-masq-agent.
//!
//! The cluster is started once, and the steps build on each other.

use anyhow::{Context as _, Result, ensure};
use serde_json::json;
use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};
use testbed::migration::Load;
use testbed::{Host, kube_programs, output, wait_for};
use xtask::cluster::{Cluster, NODE_IP, ip_masq_agent};
use xtask::image;

/// Timeout of any step on a busy machine.
const PATIENCE: Duration = Duration::from_secs(120);

/// Pods and the node's network are bypassed; the peered network is masqueraded.
const CONFIG: &str = "nonMasqueradeCIDRs: [172.16.0.0/16, 10.1.0.0/16]";

/// Path of the program that contains Helm.
const XTASK: &str = env!("CARGO_BIN_EXE_xtask");

#[test]
fn netdp_lives_in_a_cluster_and_leaves_nothing() -> Result<()> {
    let mut stage = Stage::start()?;
    stage.step("install by the chart", |stage| stage.install())?;
    stage.step("create the ConfigMap", |stage| stage.configure())?;
    stage.step("kubectl netdp", |stage| stage.plugin())?;
    stage.step("restarts under load", |stage| stage.restarts_under_load())?;
    stage.step("uninstall", |stage| stage.uninstall())?;
    stage.step("in the place of ip-masq-agent", |stage| stage.drop_in())
}

/// The cluster with two pods.
struct Stage {
    /// The program of the image, which is statically linked.
    program: PathBuf,
    pods: [Host; 2],
    cluster: Cluster,
    config: PathBuf,
}

impl Stage {
    fn start() -> Result<Self> {
        let start = Instant::now();
        let image = image::make(image::NAME, &image::target_dir()?)?;
        eprintln!("image: {:.1?}", start.elapsed());
        let start = Instant::now();
        let cluster = Cluster::start(&[&image.archive])?;
        let config = cluster.dir().join("config");
        fs::write(&config, CONFIG)?;
        let stage = Self {
            program: image.program,
            pods: cluster.pods(["one", "two"])?,
            cluster,
            config,
        };
        eprintln!("cluster: {:.1?}", start.elapsed());
        Ok(stage)
    }

    fn step(&mut self, what: &str, step: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        let start = Instant::now();
        step(self).with_context(|| what.to_owned())?;
        eprintln!("{what}: {:.1?}", start.elapsed());
        Ok(())
    }

    /// Installs netdp as documented; the built-in rules bypass the peered network.
    fn install(&mut self) -> Result<()> {
        self.cluster.install(Path::new(XTASK), &json!({}))?;
        ensure!(self.ask(0).is_err(), "a pod has reached the peered network");
        Ok(())
    }

    fn configure(&mut self) -> Result<()> {
        self.create_config_map()?;
        self.wait_told("netdp status", "10.1.0.0/16")?;
        let node: IpAddr = NODE_IP.parse()?;
        for pod in 0..2 {
            self.ask(pod)?;
            assert_eq!(self.cluster.peered.last_seen(), Some(node));
        }
        self.pods[0].run(&["curl", "-sfm", "30", &self.cluster.near.url()])?;
        let pod = self.pods[0].v4()?.into();
        assert_eq!(self.cluster.near.last_seen(), Some(pod));
        for (ask, told) in [
            ("-n kube-system get events", "configmap/ip-masq-agent"),
            ("-n netdp-fleet get leases", "netdp-node-a"),
            ("-n kube-system logs daemonset/netdp", "policy in force"),
        ] {
            wait_for(PATIENCE, &format!("{told} in kubectl {ask}"), || {
                self.cluster.kubectl(ask).is_ok_and(|it| it.contains(told))
            })?;
        }
        Ok(())
    }

    /// Asks the agent by the plugin: kubectl finds the pod, its node and the agent's pod, and runs netdp
    /// there.
    fn plugin(&mut self) -> Result<()> {
        let bin = self.cluster.dir().join("plugin");
        fs::create_dir(&bin)?;
        symlink(&self.program, bin.join("kubectl-netdp"))?;
        let kubectl = kube_programs::find("kubectl")?;
        symlink(&kubectl, bin.join("kubectl"))?;
        let run = |line: &str| -> Result<String> {
            let mut command = self.cluster.node().command(&kubectl);
            command
                .arg("netdp")
                .args(line.split(' '))
                .current_dir(&bin)
                .env("PATH", format!("{}:/usr/bin:/bin", bin.display()))
                .env("HOME", &bin)
                .env("KUBECONFIG", self.cluster.api().admin_kubeconfig());
            output(&mut command)
        };
        let answer = run("explain -n default one 10.2.0.1:80")?;
        let first = answer.lines().next().unwrap_or_default();
        ensure!(
            first.starts_with(&format!(
                "10.2.0.1:80 sees {NODE_IP}, by eth0: masqueraded by"
            )),
            "{answer}"
        );
        ensure!(answer.contains("default/one"), "{answer}");
        let selected = run("explain -n default pod/two 10.1.0.20:80 --expect pod")?;
        ensure!(selected.contains("bypassed by"), "{selected}");
        // The exit status is netdp's.
        let unexpected = run("explain -n default one 10.2.0.1:80 --expect pod");
        ensure!(unexpected.is_err(), "{unexpected:?}");
        self.ask(0)?;
        let flows = run("flows one --summary=destination")?;
        ensure!(flows.contains("10.2.0.1"), "{flows}");
        for line in [
            "status",
            "policy --node node-a",
            "top --node node-a -- --once",
        ] {
            let told = run(line)?;
            ensure!(!told.is_empty(), "{line}");
        }
        run("support-bundle one -o bundle.tar.gz --anonymous")?;
        let listed = output(
            Command::new("tar")
                .arg("-tzf")
                .arg(bin.join("bundle.tar.gz")),
        )?;
        ensure!(listed.contains("netdp-bundle/status.json"), "{listed}");
        Ok(())
    }

    /// Restarts components under load. No connection may be affected: busy, idle or new.
    fn restarts_under_load(&mut self) -> Result<()> {
        let target = self.cluster.peered.echo();
        let load = Load::start(&self.pods, &[target], &[NODE_IP.parse()?])?;
        let mut step = |what: &str, step: fn(&mut Self) -> Result<()>| {
            let start = Instant::now();
            step(self).with_context(|| what.to_owned())?;
            load.step().with_context(|| format!("after: {what}"))?;
            let (opened, lost) = load.tally().connections();
            eprintln!(
                "   {what}: {:.1?}, {opened} connections so far, {lost} lost",
                start.elapsed()
            );
            anyhow::Ok(())
        };
        step("edit of the ConfigMap", |stage| stage.edit())?;
        step("rolling update", |stage| stage.update())?;
        step("kill of the agent", |stage| stage.cluster.kill_agent())?;
        step("restart of containerd", |stage| {
            stage.cluster.restart_containerd()
        })?;
        step("restart of the kubelet", |stage| {
            stage.cluster.restart_kubelet()
        })?;
        let tally = load.end()?;
        eprintln!("{tally}");
        ensure!(
            tally.connections().1 == 0,
            "connections were lost:\n{tally}"
        );
        Ok(())
    }

    fn edit(&mut self) -> Result<()> {
        let patch =
            json!({"data": {"config": format!("{}, 10.9.0.0/16]", CONFIG.trim_end_matches(']'))}});
        self.cluster.kubectl(&format!(
            "-n kube-system patch configmap ip-masq-agent --type=merge --patch={}",
            // kubectl() splits its argument at white space.
            patch.to_string().replace(' ', "\\u0020")
        ))?;
        self.wait_told("netdp status", "10.9.0.0/16")
    }

    fn update(&mut self) -> Result<()> {
        let before = self.cluster.agent(".metadata.name")?;
        let values = json!({"podAnnotations": {"example.com/round": "2"}});
        self.cluster.upgrade(Path::new(XTASK), &values)?;
        let after = self.cluster.agent(".metadata.name")?;
        ensure!(before != after, "{before} is still there");
        self.wait_told("netdp status", "10.9.0.0/16")
    }

    /// Uninstalls netdp as documented; nothing may remain.
    fn uninstall(&mut self) -> Result<()> {
        let datapath = self.cluster.datapath()?;
        let before = self.cluster.remains(&datapath)?;
        ensure!(
            before
                .empty()
                .iter()
                .all(|what| *what == "chains and rules"),
            "before the uninstallation it does not see everything:\n{before}"
        );
        self.cluster.kubectl(
            "-n kube-system patch daemonset netdp --type json --patch \
             [{\"op\":\"add\",\"path\":\"/spec/template/spec/containers/0/args/-\",\
             \"value\":\"--on-exit=detach\"}]",
        )?;
        self.cluster.wait_rollout("netdp")?;
        self.cluster.uninstall(Path::new(XTASK))?;
        self.cluster
            .kubectl("-n kube-system delete configmap ip-masq-agent")?;
        let mut left = None;
        wait_for(PATIENCE, "nothing to be left", || {
            left = Some(self.cluster.remains(&datapath));
            matches!(&left, Some(Ok(left)) if left.is_nothing())
        })
        .with_context(|| match &left {
            Some(Ok(left)) => format!("left is:\n{left}"),
            other => format!("{other:?}"),
        })?;
        eprintln!("{}", self.cluster.remains(&datapath)?);
        ensure!(self.ask(0).is_err(), "a pod has reached the peered network");
        Ok(())
    }

    /// Runs ip-masq-agent's own manifest with only the image replaced: netdp does what the
    /// manifest's privileges allow and names what eBPF needs in addition.
    fn drop_in(&mut self) -> Result<()> {
        let manifest = ip_masq_agent(image::NAME);
        self.cluster.api().apply(&manifest.to_string())?;
        self.create_config_map()?;
        self.cluster.wait_rollout("ip-masq-agent")?;
        wait_for(PATIENCE, "the pod's requests to be masqueraded", || {
            self.ask(0).is_ok()
        })?;
        assert_eq!(self.cluster.peered.last_seen(), Some(NODE_IP.parse()?));
        let log = self
            .cluster
            .kubectl("-n kube-system logs daemonset/ip-masq-agent")?;
        for words in [
            "--mode auto: iptables, because eBPF does not work here: CAP_BPF and CAP_PERFMON are missing",
            "containers[0].securityContext.capabilities.add: [BPF, PERFMON]",
        ] {
            ensure!(log.contains(words), "{words:?} is not in\n{log}");
        }
        Ok(())
    }

    fn create_config_map(&self) -> Result<()> {
        let file = self.config.display();
        let create = format!("create configmap ip-masq-agent --from-file={file} -n kube-system");
        self.cluster.kubectl(&create).map(drop)
    }

    /// Sends a request from a pod to the server in the peered network.
    fn ask(&self, pod: usize) -> Result<String> {
        self.pods[pod].run(&["curl", "-sfm", "2", &self.cluster.peered.url()])
    }

    /// Waits until the output of a command in the agent's container contains `wanted`.
    fn wait_told(&self, command: &str, wanted: &str) -> Result<()> {
        let exec = format!("-n kube-system exec daemonset/netdp -- {command}");
        let mut told = None;
        wait_for(PATIENCE, &format!("{wanted} in {command}"), || {
            told = Some(self.cluster.kubectl(&exec));
            matches!(&told, Some(Ok(told)) if told.contains(wanted))
        })
        .with_context(|| format!("{told:?}"))
    }
}
