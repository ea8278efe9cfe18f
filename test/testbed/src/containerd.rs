//! containerd on a node, and containers with the settings that the kubelet would request.

use super::netns::Netns;
use super::process::{Running, output, wait_for};
use super::workdir::WorkDir;
use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Timeout for containerd or one of its containers to start or to exit.
const PATIENCE: Duration = Duration::from_secs(60);

/// Capabilities that containerd grants by default and Kubernetes' `drop: [ALL]` removes (containerd
/// 1.6, oci/spec.go).
const DEFAULT_CAPABILITIES: [&str; 14] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "NET_RAW",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

/// Disables snapshotters for file systems that the machine may lack, the opt plugin, and CRI, which
/// needs a network plugin.
const CONFIG: &str = "\
version = 2
disabled_plugins = [
  \"io.containerd.grpc.v1.cri\",
  \"io.containerd.internal.v1.opt\",
  \"io.containerd.snapshotter.v1.aufs\",
  \"io.containerd.snapshotter.v1.btrfs\",
  \"io.containerd.snapshotter.v1.devmapper\",
  \"io.containerd.snapshotter.v1.zfs\",
]
";

/// A containerd with directories of its own. The daemon and its containers are in the node's
/// network, as with `hostNetwork`. Dropping it ends them.
#[derive(Debug)]
pub struct Containerd {
    /// The clients that started containers, by container. Each copies its container's output and
    /// exits after it.
    clients: Mutex<BTreeMap<String, Running>>,
    // Dropped before the directories: the daemon must end before they go.
    running: Running,
    node: Netns,
    dir: WorkDir,
}

/// Privileges and environment of a container, in the terms of a pod spec.
#[derive(Debug, Clone, Default)]
pub struct ContainerOptions {
    /// Program and arguments, without a shell.
    pub command: Vec<String>,
    /// Environment variables added to the image's.
    pub env: Vec<(String, String)>,
    /// The container's `securityContext`.
    pub security: Value,
    /// Bind mounts: directories of the node and their paths in the container.
    pub mounts: Vec<(PathBuf, String)>,
}

impl Containerd {
    /// Starts containerd on a node and waits until it responds.
    pub fn start(node: &Netns) -> Result<Self> {
        let dir = WorkDir::new("containerd")?;
        let path = |name: &str| dir.path().join(name).display().to_string();
        let config = format!(
            "{CONFIG}root = {:?}\nstate = {:?}\n[grpc]\naddress = {:?}\n",
            path("root"),
            path("state"),
            path("socket")
        );
        fs::write(dir.path().join("config.toml"), config)?;
        let mut command = node.command("containerd");
        command.arg("--config").arg(dir.path().join("config.toml"));
        let started = Self {
            clients: Mutex::default(),
            running: Running::start(command)?,
            node: node.clone(),
            dir,
        };
        wait_for(PATIENCE, "containerd to answer", || {
            started.ctr(&["version"]).is_ok()
        })
        .with_context(|| format!("containerd wrote:{}", started.running.written()))?;
        Ok(started)
    }

    /// Imports an OCI image layout.
    pub fn import(&self, archive: &Path) -> Result<()> {
        let archive = archive.to_string_lossy();
        self.ctr(&["images", "import", "--snapshotter", "native", &archive])?;
        Ok(())
    }

    /// Runs a container without waiting. Its output is in [`log`](Self::log).
    pub fn run(&self, image: &str, id: &str, options: &ContainerOptions) -> Result<()> {
        // Not detached: of a container that exits at once, the shim may not write the log to its
        // end.
        let mut arguments: Vec<String> = words("run --snapshotter native --net-host");
        arguments.push(format!(
            "--runc-root={}",
            self.dir.path().join("runc").display()
        ));
        arguments.extend(security(&options.security)?);
        for (name, value) in &options.env {
            arguments.push(format!("--env={name}={value}"));
        }
        // ctr mounts a tmpfs at /run; the kubelet's containers have none.
        let run = self.dir.path().join(format!("run-{id}"));
        fs::create_dir_all(run.join("netdp"))?;
        fs::write(run.join("xtables.lock"), "")?;
        let read_only = options.security["readOnlyRootFilesystem"] == true;
        let rights = if read_only { "ro" } else { "rw" };
        arguments.push(format!(
            "--mount=type=bind,src={},dst=/run,options=rbind:{rights}",
            run.display()
        ));
        for (from, to) in &options.mounts {
            arguments.push(format!(
                "--mount=type=bind,src={},dst={to},options=rbind:rslave:rw",
                from.display()
            ));
        }
        arguments.extend([image.to_owned(), self.unique(id)]);
        arguments.extend(options.command.iter().cloned());
        let mut command = self.client();
        command.args(&arguments);
        self.clients()
            .insert(id.to_owned(), Running::start(command)?);
        let what = format!("the start of the container {id}");
        wait_for(PATIENCE, &what, || {
            self.has_ended(id) || matches!(self.pid(id), Ok(Some(_)))
        })
        .with_context(|| self.log(id))?;
        // Errors of the client itself.
        let log = self.log(id);
        ensure!(!log.lines().any(|line| line.starts_with("ctr: ")), "{log}");
        Ok(())
    }

    fn clients(&self) -> MutexGuard<'_, BTreeMap<String, Running>> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Reports whether the container has exited and its output is complete.
    fn has_ended(&self, id: &str) -> bool {
        let mut clients = self.clients();
        let client = clients.get_mut(id);
        client.is_none_or(|client| matches!(client.exit_status(), Ok(Some(_))))
    }

    /// Runs a program in a container and returns its standard output.
    pub fn exec(&self, id: &str, command: &[&str]) -> Result<String> {
        let id = self.unique(id);
        self.ctr(&[&["task", "exec", "--exec-id", "look", &id], command].concat())
    }

    /// Returns the process id of a container in this machine's numbering; `None` if it has exited.
    pub fn pid(&self, id: &str) -> Result<Option<u32>> {
        let id = self.unique(id);
        let tasks = self.ctr(&["task", "list"])?;
        let fields = tasks
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>());
        for task in fields {
            if let [name, pid, "RUNNING"] = task[..]
                && name == id
            {
                return Ok(Some(pid.parse()?));
            }
        }
        Ok(None)
    }

    /// Waits until a container has exited and its output is complete.
    pub fn wait_end(&self, id: &str) -> Result<()> {
        let what = format!("the end of the container {id}");
        wait_for(PATIENCE, &what, || self.has_ended(id)).with_context(|| self.log(id))
    }

    /// Stops a container with SIGTERM, as the kubelet does first, and removes it.
    pub fn stop(&self, id: &str) -> Result<()> {
        self.ctr(&["task", "kill", "--signal", "SIGTERM", &self.unique(id)])?;
        self.wait_end(id)?;
        self.remove(id)
    }

    /// Removes a container that has exited.
    pub fn remove(&self, id: &str) -> Result<()> {
        // The client has deleted the task.
        self.ctr(&["container", "delete", &self.unique(id)])?;
        Ok(())
    }

    /// Returns the output of a container.
    #[must_use]
    pub fn log(&self, id: &str) -> String {
        let clients = self.clients();
        clients.get(id).map_or_else(String::new, |client| {
            format!("{}{}", client.stdout(), client.stderr())
        })
    }

    fn ctr(&self, arguments: &[&str]) -> Result<String> {
        output(self.client().args(arguments))
    }

    fn client(&self) -> Command {
        let mut command = self.node.command("ctr");
        command.arg("--address").arg(self.dir.path().join("socket"));
        command
    }

    /// Returns the id of a container for runc and the cgroups, which are shared by the whole
    /// machine.
    fn unique(&self, id: &str) -> String {
        let own = self.dir.path().file_name().unwrap_or_default();
        format!("{}-{id}", own.display())
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        // The containers' shims outlive the daemon.
        for line in self
            .ctr(&["task", "list", "-q"])
            .unwrap_or_default()
            .lines()
        {
            let _ = self.ctr(&["task", "delete", "--force", line]);
        }
    }
}

/// Returns a `securityContext` as flags of ctr.
fn security(context: &Value) -> Result<Vec<String>> {
    let mut flags = Vec::new();
    if context["readOnlyRootFilesystem"] == true {
        flags.push("--read-only".into());
    }
    if context["allowPrivilegeEscalation"] != false {
        flags.push("--allow-new-privs".into());
    }
    if context["privileged"] == true {
        flags.push("--privileged".into());
    }
    match context["seccompProfile"]["type"].as_str() {
        Some("RuntimeDefault") => flags.push("--seccomp".into()),
        None | Some("Unconfined") => {}
        Some(other) => bail!("a seccomp profile of the type {other} is not supported here"),
    }
    let capabilities = |list: &str| -> Vec<&str> {
        let list = context["capabilities"][list].as_array();
        list.into_iter()
            .flatten()
            .filter_map(Value::as_str)
            .collect()
    };
    // A capability that is both dropped and added is kept; ctr would drop it.
    let added = capabilities("add");
    for dropped in capabilities("drop") {
        let each: &[&str] = if dropped == "ALL" {
            &DEFAULT_CAPABILITIES
        } else {
            &[dropped]
        };
        let gone = each.iter().filter(|name| !added.contains(name));
        flags.extend(gone.map(|name| format!("--cap-drop=CAP_{name}")));
    }
    flags.extend(added.iter().map(|name| format!("--cap-add=CAP_{name}")));
    Ok(flags)
}

fn words(line: &str) -> Vec<String> {
    line.split(' ').map(str::to_owned).collect()
}
