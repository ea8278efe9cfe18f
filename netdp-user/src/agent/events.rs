//! Events for those who listen: the agent's own, and what the programs are told to report.

use super::Agent;
use super::modes::Engine;
use crate::codes::{Code, Severity};
use crate::events::{Note, Recent, Sender, Service, What};
use crate::nat_log::NatLog;
use crate::report::Finding;
use crate::state_dir::StateDir;
use std::collections::BTreeSet;
use std::path::Path;

/// The newest events, and the thread that passes them on, where the programs translate.
pub(super) struct Events {
    recent: Recent,
    service: Option<Service>,
    /// The codes of the last report.
    codes: BTreeSet<Code>,
}

impl Events {
    /// Starts the thread. Without it everything else works.
    pub(super) fn start(
        engine: &mut Engine,
        bpffs: &Path,
        state_dir: &Path,
        recent: Recent,
    ) -> Self {
        let started = engine.as_ebpf_mut().map(|ebpf| {
            let notices = ebpf.nat_log.as_mut().and_then(NatLog::take_notices);
            Service::start(bpffs, state_dir, &recent, &ebpf.ends, notices)
        });
        let service = started.and_then(|started| {
            started
                .inspect_err(|err| log::warn!("netdp monitor has no events, and collectors get no notices of refusals: {err:#}"))
                .ok()
        });
        Self {
            recent,
            service,
            codes: BTreeSet::new(),
        }
    }

    /// Returns where to tell of events.
    pub(super) fn sender(&self) -> Option<&Sender> {
        self.service.as_ref().map(Service::sender)
    }

    /// Waits until the programs are to report other events. Cancel-safe.
    pub(super) async fn wanted(&mut self) -> u32 {
        match &mut self.service {
            Some(service) => service.wanted().await,
            None => std::future::pending().await,
        }
    }

    /// Tells of a configuration that came into force, or was rejected.
    pub(super) fn config(&self, text: &str, is_fault: bool) {
        self.tell(What::Config(note(text, is_fault)));
    }

    /// Tells of a finding.
    pub(super) fn finding(&self, text: &str, is_fault: bool) {
        self.tell(What::Finding(note(text, is_fault)));
    }

    /// Tells of the codes that a report has and the one before had not, and the other way round.
    pub(super) fn compare(&mut self, findings: &[Finding]) {
        let codes: BTreeSet<_> = findings.iter().filter_map(|it| it.code).collect();
        let before = std::mem::replace(&mut self.codes, codes);
        for (text, is_fault) in changes(findings, &before) {
            self.finding(&text, is_fault);
        }
    }

    /// Tells of what the agent does.
    pub(super) fn agent(&self, text: &str, is_fault: bool) {
        self.tell(What::Agent(note(text, is_fault)));
    }

    /// Leaves the agent's events to the next agent.
    pub(super) fn save(&self, state_dir: &StateDir) {
        if let Err(err) = self.recent.save(state_dir) {
            log::warn!("the next agent does not show the events of this one: {err:#}");
        }
    }

    fn tell(&self, what: What) {
        if let Some(sender) = self.sender() {
            sender.send(what.clone());
        }
        self.recent.note(what);
    }
}

/// Returns what events say of findings, given the codes before. Some are told of where they are found, in
/// other words, when they appear, or when they go, or both.
fn changes(findings: &[Finding], before: &BTreeSet<Code>) -> Vec<(String, bool)> {
    let mut told = Vec::new();
    let mut seen = BTreeSet::new();
    for finding in findings {
        let Some(code) = finding.code else {
            continue;
        };
        let is_told = matches!(code, Code::Rejected | Code::NoUplink | Code::Detour);
        if seen.insert(code) && !is_told && !before.contains(&code) {
            let is_fault = finding.severity != Severity::Info;
            told.push((format!("{} {code}", finding.text), is_fault));
        }
    }
    for code in before.difference(&seen) {
        if !matches!(code, Code::Rejected | Code::NoUplink) {
            told.push((format!("no more {code}: {}", code.text()), false));
        }
    }
    told
}

fn note(text: &str, is_fault: bool) -> Note {
    Note {
        text: text.to_owned(),
        is_fault,
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
                if let Some(service) = &self.events.service {
                    service.set_applied(setting);
                }
            }
            Err(err) => log::warn!("events: {err:#}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::changes;
    use crate::codes::{Code, Severity};
    use crate::report::Finding;
    use std::collections::BTreeSet;

    #[test]
    fn findings_are_told_when_they_appear_and_when_they_go() {
        let found = |code: Code| Finding {
            severity: code.severity(),
            code: Some(code),
            text: "it".into(),
        };
        let plain = Finding {
            severity: Severity::Error,
            code: None,
            text: "plain".into(),
        };
        let now = [
            plain,
            found(Code::OtherNat),
            found(Code::OtherNat),
            found(Code::NoUplink),
        ];
        let none = BTreeSet::new();
        let appeared = format!("it {}", Code::OtherNat);
        assert_eq!(changes(&now, &none), [(appeared, true)]);
        let all = BTreeSet::from([Code::OtherNat, Code::NoUplink]);
        assert_eq!(changes(&now, &all), []);
        let gone = format!("no more {}: {}", Code::OtherNat, Code::OtherNat.text());
        assert_eq!(changes(&[], &all), [(gone, false)]);
    }
}
