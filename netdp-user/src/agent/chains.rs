//! iptables mode: results of the background tasks that write the chains.

use super::Agent;
use super::modes::{Event, Iptables, IptablesEvent};
use crate::datapath;
use crate::iptables::ChainReport;
use anyhow::{Context as _, Result};

impl Agent {
    /// Handles the result of a background task.
    pub(super) fn on_iptables(&mut self, event: IptablesEvent) {
        match event {
            IptablesEvent::Written(written) => {
                self.foreign.record_duration(written.took);
                // Otherwise the chains of a newer configuration are being written already.
                if !(self.engine.as_iptables()).is_some_and(Iptables::is_writing) {
                    self.accept_deferred();
                }
                self.accept_chains(written.reports);
            }
            IptablesEvent::Checked => {}
            IptablesEvent::Failed(err) => {
                log::error!("iptables: {err}");
                self.save_report();
                self.update_ready();
            }
        }
    }

    /// At the start: hands the mappings of an earlier agent's programs over to netfilter. Returns
    /// whether such programs were attached.
    ///
    /// # Errors
    /// Returns an error if programs of an earlier agent are in force and their mappings cannot be
    /// handed over.
    pub(super) fn begin_rollback(&mut self) -> Result<bool> {
        let options = &self.options;
        let Some(iptables) = self.engine.as_iptables_mut() else {
            return Ok(false);
        };
        if !datapath::is_pinned(&options.bpffs) {
            return Ok(false);
        }
        let reports = iptables
            .begin_rollback(&options.bpffs, &self.config, options.grace)
            .context("handing the mappings over to netfilter")?;
        self.accept_chains(reports);
        self.finish_rollback();
        Ok(true)
    }

    /// At the start, before the first write: records the chains for `netdp detach` and the next agent,
    /// however this agent ends.
    pub(super) fn save_planned_chains(&mut self) {
        let Some(iptables) = self.engine.as_iptables() else {
            return;
        };
        let mut memory = self.memory.clone();
        memory.expect_chains(iptables.planned());
        match memory.save(&self.state_dir) {
            Ok(()) => self.memory = memory,
            Err(err) => log::warn!("{err:#}"),
        }
    }

    /// At the start: waits until the chains have been written for the first time.
    pub(super) async fn await_first_chains(&mut self) {
        while (self.engine.as_iptables()).is_some_and(Iptables::is_writing) {
            if let Ok(Event::Iptables(event)) = self.engine.next().await {
                self.on_iptables(event);
            }
        }
    }

    fn accept_chains(&mut self, reports: Vec<ChainReport>) {
        let Some(iptables) = self.engine.as_iptables_mut() else {
            return;
        };
        for report in &reports {
            if let Some(error) = &report.error
                && !iptables.reports().contains(report)
            {
                log::error!("{}: {error}", report.family);
            }
        }
        iptables.set_reports(reports);
        self.check_addresses();
        self.save_report();
        self.update_ready();
    }

    /// Writes the chains again if one of them failed: the cause may be gone.
    pub(super) fn retry_chains(&mut self) {
        let iptables = self.engine.as_iptables();
        if iptables.is_some_and(|it| !it.is_writing() && !it.is_in_force()) {
            self.reconcile();
        }
    }

    /// Detaches the programs of an earlier agent once nothing needs them any more.
    pub(super) fn finish_rollback(&mut self) {
        if let Some(iptables) = self.engine.as_iptables_mut() {
            iptables.finish_rollback();
        }
    }
}
