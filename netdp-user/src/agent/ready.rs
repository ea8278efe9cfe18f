//! The ready file: exists while the node is ready.

use super::{Agent, RunOptions};
use crate::logging;
use crate::terminal;
use anyhow::{Context as _, Result};
use std::fs::Permissions;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;

impl Agent {
    /// Writes or removes the file, and prints a line on standard error once the node is ready.
    pub(super) fn update_ready(&mut self) {
        let ready = self.facts().is_ready();
        if ready == self.ready {
            return;
        }
        if let Err(err) = set(&self.options, ready) {
            log::error!("{err:#}");
            return;
        }
        self.ready = ready;
        if ready {
            let line = format!(
                "netdp: {} {}: config {} from {}, {} rules",
                self.engine.in_force(),
                terminal::line(&self.facts().places().join(", ")),
                self.in_force.policy.hash,
                terminal::line(&self.in_force.source_name),
                self.config.rules.len()
            );
            logging::announce(log::Level::Info, &line);
        }
    }
}

/// Writes or removes the file.
///
/// # Errors
/// Returns an error if the file cannot be written or removed.
pub(super) fn set(options: &RunOptions, ready: bool) -> Result<()> {
    let Some(path) = &options.ready_file else {
        return Ok(());
    };
    if ready {
        // Never into an existing file: opening another process's FIFO would block the agent.
        return crate::private::create(path)
            .and_then(|mut file| {
                file.set_permissions(Permissions::from_mode(0o644))?;
                file.write_all(b"ready\n")
            })
            .with_context(|| format!("writing the ready file {}", path.display()));
    }
    match std::fs::remove_file(path) {
        Err(err) if err.kind() != std::io::ErrorKind::NotFound => {
            Err(err).with_context(|| format!("removing the ready file {}", path.display()))
        }
        _ => Ok(()),
    }
}
