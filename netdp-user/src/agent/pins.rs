//! Pins, without which the datapath ends with the agent, and unpinned programs of earlier agents.

use super::Agent;
use super::guard::CHECK_INTERVAL;

impl Agent {
    /// Restores missing pins. Without pins everything remains in force as long as the agent lives.
    pub(super) fn restore_pins(&mut self, unpinned: bool) {
        let Some(datapath) = self.engine.as_datapath() else {
            return;
        };
        let before = &self.guard.unpinned;
        let (pinned, why) = match (unpinned, datapath.unpinned()) {
            (false, None) => (0, None),
            _ => match datapath.pin() {
                Ok(pinned) => (pinned, None),
                Err(err) => (0, Some(format!("{err:#}"))),
            },
        };
        match &why {
            Some(why) if before.as_ref() != Some(why) => log::error!(
                "the datapath is not pinned in {} and will not outlive this agent: {why}; retried \
                 every {CHECK_INTERVAL:?}",
                self.options.bpffs.display()
            ),
            None if pinned > 0 => {
                log::warn!(
                    "pins were missing in {}: the datapath is pinned there again",
                    self.options.bpffs.display()
                );
                self.guard.repairs += 1;
            }
            _ => {}
        }
        if pinned > 0 || why != self.guard.unpinned {
            self.guard.unpinned = why;
            self.save_report();
        }
    }

    /// Logs that the pins end with the agent's mount namespace, if they do.
    pub(super) fn check_pins_persist(&mut self) {
        let ephemeral = self.engine.as_datapath().and_then(|it| it.ephemeral());
        let ephemeral = ephemeral.map(str::to_owned);
        if let Some(why) = &ephemeral {
            log::warn!("{why}");
        }
        self.guard.ephemeral = ephemeral;
    }

    /// Detaches programs of an earlier agent whose pins are out of reach, once our own are
    /// attached. They would go on with an old policy.
    pub(super) fn remove_orphans(&mut self) {
        let in_force = self.applied.policy.is_some() && !self.attached.is_empty();
        let Some(datapath) = self.engine.as_datapath().filter(|_| in_force) else {
            return;
        };
        match datapath.remove_orphans() {
            Ok(removed) => {
                for what in removed {
                    log::warn!("removed: {what}");
                }
            }
            Err(err) => log::info!("searching for programs whose pins are out of reach: {err:#}"),
        }
    }
}
