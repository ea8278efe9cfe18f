//! netdp in place of ip-masq-agent and k8s-custom-iptables, with their command lines and files
//! only.

use crate::common::clients::tcp_source;
use crate::common::{ECHO, Echo, NETDP, POLICY_V4, SOON, refused};
use anyhow::{Result, ensure};
use serde_json::Value;
use std::fs;
use std::net::IpAddr;
use std::os::unix::fs::symlink;
use std::process::Command;
use testbed::{Bed, Host, Running, WorkDir, output, wait_for};

/// A node without an agent, and two servers: `near` has a route to pods, `far` has none.
struct Cluster {
    // Dropped first: the process must end before its directories go.
    running: Option<Running>,
    dir: WorkDir,
    near: Host,
    far: Host,
    _echoes: [Echo; 2],
    bed: Bed,
}

impl Cluster {
    fn new() -> Result<Self> {
        let bed = Bed::dual_stack()?;
        let near = bed.neighbour(0, &["10.1.0.20/16", "fd00:1::20/64"])?;
        let far = bed.server(0, &["10.2.0.1/24", "fd00:2::1/64"])?;
        let echoes = [Echo::start(&near)?, Echo::start(&far)?];
        Ok(Self {
            running: None,
            dir: WorkDir::new("drop-in")?,
            near,
            far,
            _echoes: echoes,
            bed,
        })
    }

    fn write(&self, name: &str, text: &str) -> Result<()> {
        Ok(fs::write(self.dir.path().join(name), text)?)
    }

    /// Starts `program` with `arguments` and the test's directories; waits until it is ready.
    fn start(&mut self, program: impl AsRef<std::ffi::OsStr>, arguments: &[&str]) -> Result<()> {
        let ready = self.dir.path().join("ready");
        let mut command = self.bed.node.command(program);
        command.env_remove("NODE_IP").args(arguments);
        command.arg("-config").arg(self.dir.path().join("config"));
        command.arg("--bpffs").arg(self.dir.path().join("bpffs"));
        command
            .arg("--state-dir")
            .arg(self.dir.path().join("state"));
        command.arg("--ready-file").arg(&ready);
        let running = self.running.insert(Running::start(command)?);
        let waited = wait_for(SOON, "the agent to be in force", || ready.exists());
        ensure!(waited.is_ok(), "{waited:?}: {}", running.stderr());
        Ok(())
    }

    fn log(&self) -> String {
        self.running
            .as_ref()
            .map_or_else(String::new, Running::stderr)
    }

    /// Returns the source of a pod's connection that `server` sees.
    fn seen_by(&self, server: &Host) -> Result<IpAddr> {
        tcp_source(&self.bed.pods[0], (server.v4()?, ECHO).into())
    }
}

const NODE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 1, 0, 10));
const POD: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(172, 16, 0, 2));

#[test]
fn a_command_line_of_ip_masq_agent_works() -> Result<()> {
    let mut cluster = Cluster::new()?;
    fs::create_dir(cluster.dir.path().join("config"))?;
    cluster.write("config/ip-masq-agent", POLICY_V4)?;
    let program = cluster.dir.path().join("ip-masq-agent");
    symlink(NETDP, &program)?;
    cluster.start(
        program,
        &[
            "--masq-chain=IP-MASQ-AGENT",
            "--nomasq-all-reserved-ranges",
            "-random-fully=true",
            "--to-ports=1024-29999,32768-65535",
            "--enable-ipv6=F",
            "--v",
            "2",
            "--logtostderr=true",
            "-stderrthreshold=2",
            "--vmodule=masq=4",
        ],
    )?;
    ensure!(cluster.seen_by(&cluster.far)? == NODE, "{}", cluster.log());
    ensure!(cluster.seen_by(&cluster.near)? == POD, "{}", cluster.log());
    let log = cluster.log();
    let said = "--stderrthreshold, --vmodule: accepted for compatibility and ignored";
    ensure!(log.matches(said).count() == 1, "{log}");
    Ok(())
}

#[test]
fn custom_iptables_targets_alone_leave_the_rest() -> Result<()> {
    let mut cluster = Cluster::new()?;
    fs::create_dir(cluster.dir.path().join("config"))?;
    // With the space that broke the script.
    cluster.write("config/nat.rules", "192.0.2.0/24, 10.1.0.20 \n")?;
    cluster.start(NETDP, &["--default-action=bypass"])?;
    // `near` is masqueraded because it is listed; `far` is not, and has no route back.
    ensure!(cluster.seen_by(&cluster.near)? == NODE, "{}", cluster.log());
    let answered = cluster.seen_by(&cluster.far);
    ensure!(answered.is_err(), "{answered:?}: {}", cluster.log());
    Ok(())
}

#[test]
fn targets_beat_the_other_list() -> Result<()> {
    let mut cluster = Cluster::new()?;
    fs::create_dir(cluster.dir.path().join("config"))?;
    cluster.write("config/config", POLICY_V4)?;
    cluster.start(NETDP, &["--targets=10.1.0.0/16"])?;
    ensure!(cluster.seen_by(&cluster.near)? == NODE, "{}", cluster.log());
    ensure!(cluster.seen_by(&cluster.far)? == NODE, "{}", cluster.log());
    Ok(())
}

/// The check and the agent report the same warnings; the agent's log omits those beyond a limit.
#[test]
fn the_agent_warns_as_the_check_does() -> Result<()> {
    let mut cluster = Cluster::new()?;
    let config = cluster.dir.path().join("config");
    fs::create_dir(&config)?;
    cluster.write("config/config", POLICY_V4)?;
    let inside: String = (0..30).map(|n| format!("10.9.{n}.0/24\n")).collect();
    cluster.write("config/nat.rules", &format!("10.9.0.0/16\n{inside}"))?;
    let flags = ["--pod-cidr=172.16.0.0/15", "--targets=10.9.30.0/24"];
    cluster.start(NETDP, &flags)?;
    let mut check = Command::new(NETDP);
    check.args(["config", "check", "-o", "json"]).args(flags);
    let verdict: Value = serde_json::from_str(&output(check.arg(&config))?)?;
    let warnings: Vec<String> = verdict["warnings"]
        .as_array()
        .map_or_else(Vec::new, |found| {
            let text = |w: &Value, field: &str| w[field].to_string().trim_matches('"').to_owned();
            let place = |w: &Value| match w["line"].as_u64() {
                Some(line) => format!("{}:{line}", text(w, "file")),
                None => text(w, "file"),
            };
            found
                .iter()
                .map(|w| {
                    let code = w["code"].as_str();
                    let code = code.map_or_else(String::new, |code| format!(" {code}"));
                    format!("{}: {}{code}", place(w), text(w, "message"))
                })
                .collect()
        });
    ensure!(warnings.len() == 32, "{warnings:#?}");
    let status = fs::read(cluster.dir.path().join("state/status.json"))?;
    let status: Value = serde_json::from_slice(&status)?;
    let told: Vec<String> = serde_json::from_value(status["config"]["warnings"].clone())?;
    ensure!(told == warnings, "{told:#?}\n{warnings:#?}");
    let log = cluster.log();
    ensure!(log.contains(warnings[0].as_str()), "{log}");
    ensure!(log.contains("12 more warnings"), "{log}");
    ensure!(!log.contains("10.9.29.0/24 changes nothing"), "{log}");
    Ok(())
}

#[test]
fn flags_that_contradict_each_other_are_refused() -> Result<()> {
    let mut command = Command::new(NETDP);
    command.args(["-random-fully", "--port-mode=keep"]);
    let told = refused(command)?;
    ensure!(
        told.contains("--random-fully") && told.contains("--port-mode"),
        "{told}"
    );
    Ok(())
}
