//! `pictures`: what netdp shows in a terminal and in a browser, and Prometheus of it, for the documentation.
//!
//! A node with pods has traffic; commands run in a real terminal, whose screen Rich draws as SVG, and
//! Chromium opens the agent's page.

mod exhaustion;

use crate::{build, setup, shell};
use anyhow::{Context as _, Result, ensure};
use std::fs;
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;
use testbed::{
    Agent, AgentOptions, Bed, Browser, ConfigVolume, HttpServer, Netns, Running, Terminal,
    Viewport, wait_for,
};

/// Directory of the pictures, relative to the workspace.
const DIRECTORY: &str = "docs/pictures";

/// Draws standard input, the screen of a terminal with its colours, to the file of the first
/// argument, as wide as the second argument says. The picture names no font of another host.
const DRAW: &str = r#"
import re, sys
from rich.console import Console
from rich.text import Text
path, width, title = sys.argv[1], int(sys.argv[2]), sys.argv[3]
console = Console(record=True, width=width, file=sys.stderr, force_terminal=True)
console.print(Text.from_ansi(sys.stdin.read()), overflow="crop", no_wrap=True)
svg = console.export_svg(title=title, unique_id="netdp")
svg = re.sub(r"@font-face \{.*?\}\s*", "", svg, flags=re.DOTALL)
svg = svg.replace("Fira Code", "monospace")
open(path, "w").write(svg)
"#;

const CONFIG: &str = "\
nonMasqueradeCIDRs:
- 172.16.0.0/16
- 10.0.0.0/8
masqueradeCIDRs:
- 10.0.0.0/29
- 10.2.0.0/24
";

/// A picture: its name, the command that is typed, and words on the screen once it is complete.
struct Picture {
    name: &'static str,
    command: &'static str,
    words: &'static [&'static str],
    size: (u16, u16),
}

const PICTURES: [Picture; 3] = [
    Picture {
        name: "explain",
        command: "explain --from 172.16.0.2 10.2.0.1:80",
        words: &["sees 10.1.0.10", "to have it see the pod"],
        size: (170, 30),
    },
    Picture {
        name: "policy",
        command: "policy",
        words: &["everything else", "masquerade"],
        size: (170, 20),
    },
    Picture {
        name: "top",
        command: "top --interval 1",
        words: &["172.16.0.4", "▇▇▇", "q quit"],
        size: (80, 24),
    },
];

/// Address of the page.
const PAGE: &str = "127.0.0.1:10268";

/// The past that the page's lines are to show.
const PAST: Duration = Duration::from_secs(200);

/// Pictures of the page: name, width, whether it is dark, and the most height, in pixels.
const VIEWS: [(&str, u32, bool, u32); 3] = [
    ("page-light", 1280, false, 2_400),
    ("page-dark", 1280, true, 2_400),
    ("page-narrow", 400, false, 2_400),
];

/// Draws all pictures.
pub fn run() -> Result<()> {
    testbed::require_root("cargo xtask pictures")?;
    setup::run()?;
    let netdp = build::for_demo()?;
    let bed = Bed::builder()
        .uplink("eth0", &["10.1.0.10/16"])
        .pods(3, &["172.16.0.0/16"])
        .build()?;
    let server = bed.server(0, &["10.2.0.1/16"])?;
    let near = bed.neighbour(0, &["10.1.0.20/16"])?;
    let _http = HttpServer::start(&server, (server.v4()?, 80))?;
    let config = ConfigVolume::new(CONFIG)?;
    let cni = tempfile::tempdir().context("making a directory for names of pods")?;
    for (pod, name) in bed
        .pods
        .iter()
        .zip(["cart-5d9", "video-7c4", "checkout-7f2"])
    {
        name_pod(cni.path(), name, pod.v4()?)?;
    }
    let options = AgentOptions::new(&netdp)
        .config(config.path())
        .arg(format!("--http-listen={PAGE}"))
        .arg("--cni-dir")
        .arg(cni.path());
    let agent = Agent::start(&bed.node, options)?;
    let begin = std::time::Instant::now();
    let _traffic = traffic(&bed, &server.ns, &near.ns)?;
    let directory = shell::root().join(DIRECTORY);
    fs::create_dir_all(&directory).with_context(|| format!("making {}", directory.display()))?;
    for picture in &PICTURES {
        shell::progress(picture.name);
        draw(picture, (&bed, &agent), config.path(), &directory)?;
    }
    shell::progress("page");
    wait_for(PAST * 2, "an hour's beginning", || begin.elapsed() >= PAST)?;
    photograph(&bed.node, config.path(), &directory)?;
    shell::progress("exhaustion");
    exhaustion::draw(&netdp, &directory)
}

/// Writes what libcni caches for a pod with this address.
fn name_pod(cni: &Path, name: &str, address: Ipv4Addr) -> Result<()> {
    let cached = format!(
        r#"{{"kind": "cniCacheV1", "ifName": "eth0", "cniArgs": [["K8S_POD_NAMESPACE", "shop"],
            ["K8S_POD_NAME", "{name}"], ["K8S_POD_UID", "{name}"]],
            "result": {{"cniVersion": "1.0.0", "ips": [{{"address": "{address}/16"}}]}}}}"#
    );
    fs::write(cni.join(format!("pods-{name}-eth0")), cached).context("naming a pod")
}

/// Opens the page in a browser and takes its pictures.
fn photograph(node: &Netns, config: &Path, directory: &Path) -> Result<()> {
    let mut browser = Browser::start(node)?;
    for (name, width, dark, height) in VIEWS {
        browser.open(&format!("http://{PAGE}/"), Viewport { width, dark })?;
        // As in a pod on a node.
        let (from, machine) = (config.display(), machine_name()?);
        browser.evaluate(&format!(
            "for (let it, all = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT); \
             it = all.nextNode();) it.data = it.data.replaceAll('{from}', '/etc/config').replace('{machine}', 'node-a')"
        ))?;
        let picture = browser.picture(height)?;
        let path = directory.join(format!("{name}.png"));
        fs::write(&path, picture).with_context(|| format!("writing {}", path.display()))?;
        println!("{}", path.display());
    }
    Ok(())
}

fn machine_name() -> Result<String> {
    let name = fs::read_to_string("/proc/sys/kernel/hostname").context("the machine's name")?;
    Ok(name.trim().to_owned())
}

/// Starts programs that send until they are dropped: a masqueraded stream, a bypassed one, and a
/// pod that opens connections all the time.
fn traffic(bed: &Bed, server: &Netns, near: &Netns) -> Result<Vec<Running>> {
    const PORT: u16 = 5201;
    let mut running = Vec::new();
    for host in [server, near] {
        running.push(host.spawn(&["iperf3", "--server"])?);
        host.wait_listening(PORT)?;
    }
    let [slow, fast, busy] = bed.pods.as_slice() else {
        anyhow::bail!("the bed has other pods");
    };
    let stream = |to: &str, rate: &str| {
        ["iperf3", "--client", to, "--time", "600", "--bitrate", rate].map(str::to_owned)
    };
    running.push(slow.spawn(&stream("10.2.0.1", "40M"))?);
    running.push(fast.spawn(&stream("10.1.0.20", "200M"))?);
    let connections = "while :; do curl -s -o /dev/null http://10.2.0.1/health; done";
    running.push(busy.spawn(&["sh", "-c", connections])?);
    Ok(running)
}

/// Runs the command in a terminal and draws what that shows.
fn draw(
    picture: &Picture,
    (bed, agent): (&Bed, &Agent),
    config: &Path,
    directory: &Path,
) -> Result<()> {
    let (columns, rows) = picture.size;
    let terminal = Terminal::start(picture.name, columns, rows)?;
    let words = picture.command.split(' ').collect::<Vec<_>>();
    let command = shell::line(&agent.command(&words));
    let node = bed.node.path();
    let line = format!("clear; nsenter --net={} {command}", node.display());
    terminal.press(&[&line, "Enter"])?;
    terminal.wait(picture.words)?;
    // As in a pod, and without the shell's prompt.
    let capture = |arguments: &[&str]| -> Result<String> {
        let screen = terminal.tmux(&[&["capture-pane", "-p"], arguments].concat())?;
        let screen = screen.replace(&config.display().to_string(), "/etc/config");
        let screen = screen.trim_end().trim_end_matches('#').trim_end();
        Ok(screen.to_owned())
    };
    let screen = capture(&["-e"])?;
    let width = capture(&[])?.lines().map(|line| line.chars().count()).max();
    let path = directory.join(format!("{}.svg", picture.name));
    // Debian's, which has Debian's packages.
    let mut rich = Command::new("/usr/bin/python3");
    rich.args(["-c", DRAW]).arg(&path);
    rich.arg(width.unwrap_or_default().to_string());
    rich.arg(format!("netdp {}", picture.command));
    let mut rich = rich
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("starting python3")?;
    let mut stdin = rich.stdin.take().context("python3 has no standard input")?;
    stdin.write_all(screen.as_bytes())?;
    drop(stdin);
    let done = rich.wait_with_output()?;
    ensure!(
        done.status.success(),
        "drawing {} failed: {}",
        path.display(),
        String::from_utf8_lossy(&done.stderr)
    );
    println!("{}", path.display());
    Ok(())
}
