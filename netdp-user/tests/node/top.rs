//! `netdp top` in a real terminal, and `netdp top --once`.

use crate::common::clients::{Tcp, Udp, any, from_port};
use crate::common::{Echo, SOON, World, echoes, refused};
use anyhow::{Context as _, Result, ensure};
use std::process::Command;
use testbed::{Terminal, output, wait_for};

/// Returns the command line that runs `netdp top` for this agent.
fn top(world: &World) -> String {
    let command = world.agent.command(&["top", "--interval", "1"]);
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    let words: Vec<_> = words.map(|word| word.to_string_lossy()).collect();
    words.join(" ")
}

#[test]
fn the_screen_follows_keys_sizes_and_traffic_and_leaves_the_terminal_clean() -> Result<()> {
    let world = World::start()?;
    let _echo = Echo::start(&world.far)?;
    let terminal = Terminal::start("top", 80, 24)?;
    terminal.press(&[&top(&world), "Enter"])?;
    terminal.wait(&["no pod has a mapping", "[1] pods", "q quit"])?;

    let pod = world.pod(0);
    let to = *echoes(&world.far).first().context("no echo")?;
    let mut tcp = Tcp::connect(pod, from_port(40_000, to), to)?;
    tcp.ask()?;
    let address = pod.v4()?.to_string();
    terminal.wait(&[&address, "mappings 1 of", "tcp 1"])?;
    terminal.press(&["2"])?;
    terminal.wait(&["DESTINATION", &format!("tcp {to}"), "10.1.0.10"])?;
    terminal.press(&["/", "nothing", "Enter"])?;
    terminal.wait(&["no row has these words", "only nothing"])?;
    terminal.press(&["Escape"])?;
    terminal.wait(&[&format!("tcp {to}")])?;
    terminal.press(&["3"])?;
    terminal.wait(&["PREFIX", "everything else", "masquerade"])?;
    terminal.press(&["5"])?;
    terminal.wait(&["UPLINK", "eth0"])?;
    terminal.press(&["c"])?;
    terminal.wait(&["ns per packet"])?;
    terminal.press(&["?"])?;
    terminal.wait(&["scroll"])?;
    // Escape right before another key would be that key with Alt.
    terminal.press(&["Escape"])?;
    terminal.wait(&["UPLINK"])?;
    terminal.press(&["1"])?;
    terminal.tmux(&["resize-window", "-x", "40", "-y", "15"])?;
    terminal.wait(&["1 pods 2 dests", &address])?;
    terminal.press(&["p"])?;
    terminal.wait(&["PAUSED"])?;

    terminal.press(&["C-c"])?;
    // What is typed before goes to netdp.
    wait_for(SOON, "the shell's screen", || {
        let alternate = terminal.tmux(&["display", "-p", "#{alternate_on}"]);
        alternate.is_ok_and(|on| on.trim() == "0")
    })?;
    terminal.press(&[
        "echo exit=$?; stty -a | grep -qw icanon && echo BACK",
        "Enter",
    ])?;
    // The line that is typed has the last word, too.
    let screen = terminal.wait(&["exit=0", "BACK"])?;
    let is_back = !screen.contains("PAUSED");
    ensure!(is_back, "the shell's screen is back: {screen}");
    let modes = terminal.tmux(&["display", "-p", "#{cursor_flag} #{alternate_on}"])?;
    assert_eq!(
        modes.trim(),
        "1 0",
        "the cursor shows, the alternate screen is left"
    );
    Ok(())
}

#[test]
fn a_terminated_screen_leaves_the_terminal_clean() -> Result<()> {
    let world = World::start()?;
    let terminal = Terminal::start("top-term", 80, 24)?;
    terminal.press(&[&format!("{}; echo OVER", top(&world)), "Enter"])?;
    terminal.wait(&["[1] pods"])?;
    // The shell's only child.
    let shell = terminal.pid()?;
    let child = std::fs::read_to_string(format!("/proc/{shell}/task/{shell}/children"))?;
    output(Command::new("kill").args(["-TERM", child.trim()]))?;
    terminal.wait(&["OVER"])?;
    let modes = terminal.tmux(&["display", "-p", "#{cursor_flag} #{alternate_on}"])?;
    assert_eq!(modes.trim(), "1 0");
    Ok(())
}

#[test]
fn a_screen_whose_terminal_is_gone_ends() -> Result<()> {
    let world = World::start()?;
    let terminal = Terminal::start("top-gone", 80, 24)?;
    // The shell gets the signal of the hangup, and does not pass it on.
    terminal.press(&[&format!("trap '' HUP; exec {}", top(&world)), "Enter"])?;
    terminal.wait(&["[1] pods"])?;
    let process = format!("/proc/{}", terminal.pid()?);
    drop(terminal);
    wait_for(SOON, "the end of netdp top", || {
        !std::path::Path::new(&process).exists()
    })
}

#[test]
fn without_a_terminal_it_says_what_to_do() -> Result<()> {
    let world = World::start()?;
    let told = refused(world.agent.command(&["top"]))?;
    ensure!(told.contains("netdp top --once"), "{told}");
    Ok(())
}

#[test]
fn one_frame_is_printed_without_a_terminal_and_without_an_agent() -> Result<()> {
    let mut world = World::start()?;
    let _echo = Echo::start(&world.far)?;
    let to = *echoes(&world.far).last().context("no echo")?;
    let mut udp = Udp::connect(world.pod(0), any(to), to)?;
    udp.ask()?;
    world.agent.kill9()?;
    let arguments = ["top", "--once", "--interval", "1", "--tab", "2"];
    let frame = world.agent.netdp(&arguments)?;
    for words in ["no agent is running", "udp 1", &format!("udp {to}")] {
        ensure!(frame.contains(words), "{words}: {frame}");
    }
    ensure!(!frame.contains('\u{1b}'), "{frame:?}");

    let mut elsewhere = world.bed.node.command(env!("CARGO_BIN_EXE_netdp"));
    elsewhere.args(["top", "--once", "--bpffs", "/sys/fs/bpf/there-is-none"]);
    let told = refused(elsewhere)?;
    ensure!(told.contains("/sys/fs/bpf/there-is-none"), "{told}");
    Ok(())
}
