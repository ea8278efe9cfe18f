//! A real terminal, in which programs run that draw screens: one of tmux, on a server of its own.

use super::process::{output, wait_for};
use anyhow::{Context as _, Result};
use std::process::Command;
use std::time::Duration;

/// Timeout for words to appear.
const PATIENCE: Duration = Duration::from_secs(40);

/// A terminal with a shell. Dropping it hangs up.
#[derive(Debug)]
pub struct Terminal {
    socket: String,
}

impl Terminal {
    /// Starts a shell in a terminal of this size. `role` makes its name unique in this process.
    ///
    /// # Errors
    /// Returns an error if tmux can't be started.
    pub fn start(role: &str, columns: u16, rows: u16) -> Result<Self> {
        let terminal = Self {
            socket: format!("netdp-{}-{role}", std::process::id()),
        };
        let (columns, rows) = (columns.to_string(), rows.to_string());
        terminal.tmux(&["new-session", "-d", "-x", &columns, "-y", &rows, "sh"])?;
        Ok(terminal)
    }

    /// Runs a command of tmux and returns what it prints.
    ///
    /// # Errors
    /// Returns an error if it fails.
    pub fn tmux(&self, arguments: &[&str]) -> Result<String> {
        let mut command = Command::new("tmux");
        command.env("LC_ALL", "C.UTF-8").env_remove("TMUX");
        command.args(["-u", "-f", "/dev/null", "-L", &self.socket]);
        output(command.args(arguments))
    }

    /// Returns the process that the terminal was started for, or whatever that has executed.
    ///
    /// # Errors
    /// Returns an error if tmux fails.
    pub fn pid(&self) -> Result<u32> {
        let pid = self.tmux(&["display", "-p", "#{pane_pid}"])?;
        pid.trim().parse().context("tmux names no process")
    }

    /// Types keys, by tmux's names.
    ///
    /// # Errors
    /// Returns an error if tmux fails.
    pub fn press(&self, keys: &[&str]) -> Result<()> {
        self.tmux(&[&["send-keys"], keys].concat()).map(drop)
    }

    /// Waits until the screen shows all of these words, and returns it.
    ///
    /// # Errors
    /// Returns an error with the screen if it does not.
    pub fn wait(&self, words: &[&str]) -> Result<String> {
        let mut screen = String::new();
        let shown = wait_for(PATIENCE, &format!("{words:?} on the screen"), || {
            screen = self.tmux(&["capture-pane", "-p"]).unwrap_or_default();
            words.iter().all(|word| screen.contains(word))
        });
        shown.with_context(|| format!("the screen is\n{screen}"))?;
        Ok(screen)
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // The server may have ended with its last shell.
        let _ = self.tmux(&["kill-server"]);
    }
}
