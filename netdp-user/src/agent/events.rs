//! Events for those who listen: the agent's own, and what the programs are told to report.

use super::Agent;
use super::modes::Engine;
use crate::events::{Sender, Service};
use std::path::Path;

/// The thread that passes events on, where the programs translate.
pub(super) struct Events(Option<Service>);

impl Events {
    /// Starts the thread. Without it everything else works.
    pub(super) fn start(engine: &Engine, bpffs: &Path, state_dir: &Path) -> Self {
        if engine.as_ebpf().is_none() {
            return Self(None);
        }
        let service = Service::start(bpffs, state_dir);
        let service = service.inspect_err(|err| log::warn!("netdp monitor has no events: {err:#}"));
        Self(service.ok())
    }

    /// Returns where to tell of events.
    pub(super) fn sender(&self) -> Option<&Sender> {
        self.0.as_ref().map(Service::sender)
    }

    /// Waits until the programs are to report other events. Cancel-safe.
    pub(super) async fn wanted(&mut self) -> u32 {
        match &mut self.0 {
            Some(service) => service.wanted().await,
            None => std::future::pending().await,
        }
    }

    /// Tells of a configuration that came into force, or was rejected.
    pub(super) fn config(&self, text: &str, is_fault: bool) {
        if let Some(sender) = self.sender() {
            sender.config(text, is_fault);
        }
    }

    /// Tells of a finding.
    pub(super) fn finding(&self, text: &str, is_fault: bool) {
        if let Some(sender) = self.sender() {
            sender.finding(text, is_fault);
        }
    }
}

impl Agent {
    /// Has the programs report what is wanted.
    pub(super) fn report_events(&mut self, setting: u32) {
        let Some(datapath) = self.engine.as_datapath() else {
            return;
        };
        match datapath.maps_mut().set_events(setting) {
            Ok(()) => {
                if let Some(service) = &self.events.0 {
                    service.set_applied(setting);
                }
            }
            Err(err) => log::warn!("events: {err:#}"),
        }
    }
}
