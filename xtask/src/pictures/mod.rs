//! `pictures`: what netdp shows in a terminal, and Prometheus of it, drawn as SVG for the documentation.
//!
//! A node with pods has traffic; commands run in a real terminal, whose screen Rich draws.

mod exhaustion;

use crate::{build, setup, shell};
use anyhow::{Context as _, Result, ensure};
use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use testbed::{Agent, AgentOptions, Bed, ConfigVolume, HttpServer, Running, Terminal};

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
    let agent = Agent::start(&bed.node, AgentOptions::new(&netdp).config(config.path()))?;
    let _traffic = traffic(&bed, &server.ns, &near.ns)?;
    let directory = shell::root().join(DIRECTORY);
    fs::create_dir_all(&directory).with_context(|| format!("making {}", directory.display()))?;
    for picture in &PICTURES {
        shell::progress(picture.name);
        draw(picture, (&bed, &agent), config.path(), &directory)?;
    }
    shell::progress("exhaustion");
    exhaustion::draw(&netdp, &directory)?;
    Ok(())
}

/// Starts programs that send until they are dropped: a masqueraded stream, a bypassed one, and a
/// pod that opens connections all the time.
fn traffic(bed: &Bed, server: &testbed::Netns, near: &testbed::Netns) -> Result<Vec<Running>> {
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
