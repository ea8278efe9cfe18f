//! A real Redis server.

use super::netns::Netns;
use super::process::Running;
use super::workdir::WorkDir;
use anyhow::{Context as _, Result};
use std::net::SocketAddr;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;

/// A redis-server in a namespace, without persistence.
#[derive(Debug)]
pub struct RedisServer {
    _running: Running,
    _dir: WorkDir,
}

impl RedisServer {
    /// Starts the server and waits until it listens.
    pub fn start(ns: &Netns, at: impl Into<SocketAddr>) -> Result<Self> {
        let at = at.into();
        let dir = WorkDir::new("redis")?;
        let program =
            program().context("redis-server is not installed: run `cargo xtask setup`")?;
        let mut command = ns.command(program);
        // All of Redis's tools are one program, which selects the tool by its own name.
        command.arg0("redis-server");
        command
            .args(["--bind", &at.ip().to_string()])
            .args(["--port", &at.port().to_string()])
            .args(["--protected-mode", "no", "--save", "", "--dir"])
            .arg(dir.path());
        let running = Running::start(command)?;
        ns.wait_listening(at.port())
            .with_context(|| format!("redis-server wrote:{}", running.written()))?;
        Ok(Self {
            _running: running,
            _dir: dir,
        })
    }
}

/// Returns the path of the Redis server. Debian's redis-tools contains it as redis-check-rdb; the
/// package redis-server would add a service to the host.
#[must_use]
fn program() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    ["redis-server", "redis-check-rdb"].iter().find_map(|name| {
        std::env::split_paths(&path)
            .map(|dir| dir.join(name))
            .find(|file| file.is_file())
    })
}
