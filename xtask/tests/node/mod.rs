//! A node that runs containers of pods with the settings that the kubelet would request.

#![allow(dead_code, reason = "each test uses a part of this")]

use anyhow::{Context as _, Result};
use serde_json::Value;
use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;
use testbed::{Bed, ContainerOptions, Containerd, Host, HttpServer, WorkDir, output, wait_for};
use xtask::image::{self, Image};

/// Timeout for the agent to become ready on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// Directory of the ServiceAccount's token in a pod.
const SECRETS: &str = "/var/run/secrets/kubernetes.io/serviceaccount";

/// File for a container's termination message (default of `terminationMessagePath`).
const TERMINATION_LOG: &str = "/dev/termination-log";

/// Name of the agent's container.
pub const AGENT: &str = "netdp";

/// A node with a pod, a distant server, and containerd.
pub struct Node {
    pub containerd: Containerd,
    http: HttpServer,
    server: Host,
    pub bed: Bed,
    pub address: IpAddr,
    pub dir: WorkDir,
}

impl Node {
    /// Starts a node that has a bpffs.
    pub fn start() -> Result<Self> {
        let node = Self::without_bpffs()?;
        let bpffs = node.dir.path().join("bpffs");
        output(Command::new("mount").args(["-t", "bpf", "bpf"]).arg(bpffs))?;
        Ok(node)
    }

    pub fn without_bpffs() -> Result<Self> {
        let bed = Bed::builder()
            .uplink("eth0", &["10.1.0.10/16"])
            .pods(1, &["172.16.0.0/24"])
            .build()?;
        let server = bed.server(0, &["198.51.100.7/24"])?;
        let http = HttpServer::start(&server, (server.v4()?, 80))?;
        let containerd = Containerd::start(&bed.node)?;
        containerd.import(&image()?.archive)?;
        let dir = WorkDir::new("node")?;
        for name in ["bpffs", "state", "secrets", "config", "cfg", "cni-results"] {
            fs::create_dir(dir.path().join(name))?;
        }
        fs::write(dir.path().join("xtables-lock"), "")?;
        Ok(Self {
            address: bed.uplinks[0].v4()?.into(),
            containerd,
            http,
            server,
            bed,
            dir,
        })
    }

    /// Returns the node's path behind a volume with this name.
    pub fn volume(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Runs a container of a pod, with this node's directories in place of a real host's. If
    /// `command` and `args` are absent, the image's apply.
    pub fn run(&self, id: &str, container: &Value) -> Result<()> {
        let words = |key: &str| -> Vec<String> {
            let words = container[key].as_array().into_iter().flatten();
            words.filter_map(Value::as_str).map(str::to_owned).collect()
        };
        let (mut command, arguments) = (words("command"), words("args"));
        if command.is_empty() && !arguments.is_empty() {
            command = image::ENTRYPOINT.map(str::to_owned).to_vec();
        }
        command.extend(arguments);
        let last_words = self.last_words_file(id);
        fs::write(&last_words, "")?;
        let mut mounts = vec![
            (self.volume("secrets"), SECRETS.into()),
            (last_words, TERMINATION_LOG.into()),
        ];
        for mount in container["volumeMounts"].as_array().into_iter().flatten() {
            let name = mount["name"].as_str().context("a mount without a name")?;
            let path = mount["mountPath"]
                .as_str()
                .context("a mount without a path")?;
            mounts.push((self.volume(name), path.to_owned()));
        }
        let options = ContainerOptions {
            command,
            env: self.environment(container)?,
            security: container["securityContext"].clone(),
            mounts,
        };
        let image = container["image"].as_str().context("no image")?;
        self.containerd.run(image, id, &options)
    }

    fn environment(&self, container: &Value) -> Result<Vec<(String, String)>> {
        let variables = container["env"].as_array().into_iter().flatten();
        let value = |variable: &Value| {
            let field = variable["valueFrom"]["fieldRef"]["fieldPath"].as_str();
            match (variable["value"].as_str(), field) {
                (Some(value), None) => Ok(value.to_owned()),
                (None, Some("spec.nodeName")) => Ok("node".into()),
                (None, Some("status.hostIP")) => Ok(self.address.to_string()),
                (None, Some("metadata.namespace")) => Ok("kube-system".into()),
                _ => anyhow::bail!("what is {variable}?"),
            }
        };
        // The kubelet sets the API server's address in every container.
        let mut all = vec![("KUBERNETES_SERVICE_HOST".to_owned(), "127.0.0.1".to_owned())];
        for variable in variables {
            let name = variable["name"].as_str().context("no name")?;
            all.push((name.to_owned(), value(variable)?));
        }
        Ok(all)
    }

    pub fn wait_in_force(&self, id: &str) -> Result<()> {
        self.wait_log(id, "netdp: in force on ")
    }

    pub fn wait_log(&self, id: &str, words: &str) -> Result<()> {
        wait_for(PATIENCE, &format!("{id} to say {words:?}"), || {
            self.containerd.log(id).contains(words)
        })
        .with_context(|| format!("it wrote:\n{}", self.containerd.log(id)))
    }

    /// Waits until a container has exited; returns its output and its termination message.
    pub fn wait_end(&self, id: &str) -> Result<(String, String)> {
        self.containerd.wait_end(id)?;
        let last_words = fs::read_to_string(self.last_words_file(id))?;
        Ok((self.containerd.log(id), last_words))
    }

    fn last_words_file(&self, id: &str) -> PathBuf {
        self.dir.path().join(format!("last-words-{id}"))
    }

    /// Returns the source that the server sees for a request from the pod.
    pub fn source_seen(&self) -> Result<IpAddr> {
        let url = format!("http://{}/health", self.server.v4()?);
        self.bed.pods[0].run(&["curl", "-sf", "-m", "30", &url])?;
        let seen = self.http.seen().last().copied();
        seen.context("the server saw nobody")
    }

    /// Runs a probe as the kubelet does, from the node's network.
    pub fn probe(&self, probe: &Value) -> Result<String> {
        let get = &probe["httpGet"];
        let [host, path] = [&get["host"], &get["path"]].map(|it| it.as_str().unwrap_or_default());
        let url = format!("http://{host}:{}{path}", get["port"]);
        self.bed.node.run(&["curl", "-sf", "-m", "30", &url])
    }

    pub fn process_status(&self, id: &str) -> Result<String> {
        let pid = self.containerd.pid(id)?.context("it does not run")?;
        Ok(fs::read_to_string(format!("/proc/{pid}/status"))?)
    }

    pub fn root_is_read_only(&self, id: &str) -> Result<bool> {
        let pid = self.containerd.pid(id)?.context("it does not run")?;
        let mounts = fs::read_to_string(format!("/proc/{pid}/mounts"))?;
        let root = mounts
            .lines()
            .find(|line| line.split(' ').nth(1) == Some("/"));
        let options = root.and_then(|line| line.split(' ').nth(3));
        Ok(options.context("no root")?.split(',').any(|it| it == "ro"))
    }
}

/// Returns the release image, built once.
fn image() -> Result<Image> {
    type Made = Result<Image, String>;
    static IMAGE: OnceLock<Made> = OnceLock::new();
    let made = IMAGE.get_or_init(|| {
        image::target_dir()
            .and_then(|directory| image::make(image::NAME, &directory))
            .map_err(|error| format!("{error:#}"))
    });
    made.clone()
        .map_err(|error| anyhow::anyhow!("making the image: {error}"))
}
