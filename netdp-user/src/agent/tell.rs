//! What the agent says of itself to the API and to probes.

use super::Agent;
use super::configuration::Source;
use crate::control::{Note, REFUSALS, Told};
use crate::sources::kube::MapRef;
use crate::status::UplinkReport;
use std::time::{Duration, Instant};

/// Counting a million mappings takes a moment: not at each sweep.
const COUNT_EVERY: Duration = Duration::from_secs(30);

/// Findings that are passed on.
const LINES: usize = 20;

/// What has been told.
#[derive(Debug)]
pub(super) struct Telling {
    /// Somebody listens.
    on: bool,
    serial: u64,
    /// Documents of the configuration before that are gone.
    gone: Vec<String>,
    /// The uplinks that were checked last: index and addresses.
    checked: Vec<UplinkReport>,
    /// What the last self-check found wrong.
    fault: Option<String>,
    mappings: usize,
    counted: Option<Instant>,
}

impl Telling {
    pub(super) fn new(on: bool) -> Self {
        Self {
            on,
            serial: 0,
            gone: Vec::new(),
            checked: Vec::new(),
            fault: None,
            mappings: 0,
            counted: None,
        }
    }

    /// A configuration was taken or rejected.
    pub(super) fn another_config(&mut self, gone: Vec<String>) {
        self.serial += 1;
        self.gone = gone;
    }

    /// Whether these are not the uplinks that were checked last.
    pub(super) fn uplinks_changed(&self, uplinks: &[UplinkReport]) -> bool {
        self.checked != uplinks
    }
}

impl Agent {
    /// The loop turns.
    pub(super) fn turned(&self) {
        if let Some(control) = &self.control {
            control.beat();
        }
    }

    /// Sends packets of our own through the programs: what they do is what the configuration says,
    /// or the node is not ready.
    pub(super) fn check_datapath(&mut self) {
        if !self.told.on || self.applied.policy.is_none() {
            return;
        }
        self.told.checked.clone_from(&self.report.uplinks);
        let families: &[bool] = if self.options.config_options.enable_ipv6 {
            &[true, false]
        } else {
            &[true]
        };
        let Some(datapath) = self.engine.as_datapath() else {
            return;
        };
        let checked = datapath.check_hooks().and_then(|()| {
            datapath.self_check(
                &self.config,
                self.applied.uplinks.values(),
                &self.applied.local,
                families,
            )
        });
        let fault = checked.err().map(|err| format!("{err:#}"));
        if fault != self.told.fault {
            match &fault {
                Some(fault) => log::error!("{fault}"),
                None => log::info!("the self-check is well again"),
            }
        }
        self.told.fault = fault;
    }

    /// Why nothing is in force.
    fn not_in_force(&self) -> Vec<String> {
        let mut reasons = Vec::new();
        if self.engine.as_chains().is_some() {
            let errors = self.report.chains.iter().filter_map(|c| c.error.clone());
            reasons.extend(errors);
            return reasons;
        }
        if self.applied.policy.is_none() {
            reasons.push("no policy is in force".to_owned());
        }
        if self.report.uplinks.is_empty() {
            let why = self.report.no_uplink.as_deref();
            reasons.push(format!(
                "programs are attached nowhere: {}",
                why.unwrap_or("see the log")
            ));
        }
        reasons.extend(self.report.off.iter().cloned());
        reasons
    }

    fn unready(&self) -> Vec<String> {
        let mut reasons = self.not_in_force();
        reasons.extend(self.report.no_room.clone());
        let by_netfilter = self.engine.as_chains().is_some();
        let no_address = self.report.no_address.iter().filter(|it| it.severe);
        reasons.extend(no_address.map(|it| it.describe(by_netfilter)));
        reasons.extend(self.report.leaks.iter().take(LINES).cloned());
        if self.source != Source::Sources {
            let rejected = self.report.config.rejected.iter().take(LINES);
            let rejected: Vec<_> = rejected.map(String::as_str).collect();
            reasons.push(format!(
                "the configuration was bad from the start, {} in force: {}",
                match self.source {
                    Source::LastGood => "the last good one is",
                    _ => "the defaults are",
                },
                rejected.join("; ")
            ));
        }
        let required = self.options.kube.as_ref().is_some_and(|kube| kube.required);
        reasons.extend(self.api.unready(required, self.file_documents()));
        reasons.extend(self.told.fault.clone());
        reasons
    }

    /// What is not as it should be, for Events and the Lease. Not what the API itself is to blame for.
    fn notes(&self) -> Vec<Note> {
        let report = &self.report;
        let list = |lines: &[String]| lines.to_vec();
        let conflicts = report.foreign.rules.iter().filter(|found| found.conflict);
        let by_netfilter = self.engine.as_chains().is_some();
        let no_address = report.no_address.iter();
        let back = |what: &String| format!("{what} is back: somebody still writes it");
        // Warnings about a ConfigMap are told of that.
        let maps: Vec<_> = self.api.maps().iter().map(MapRef::prefix).collect();
        let is_elsewhere = |line: &&String| !maps.iter().any(|map| line.starts_with(map));
        let warnings = report.config.warnings.iter().filter(is_elsewhere);
        let found: [(&'static str, Vec<String>); 12] = [
            ("NotInForce", self.not_in_force()),
            (
                "NoAddress",
                no_address.map(|it| it.describe(by_netfilter)).collect(),
            ),
            ("Leak", list(&report.leaks)),
            ("NoRoom", report.no_room.iter().cloned().collect()),
            ("SelfCheckFailed", self.told.fault.iter().cloned().collect()),
            ("LookAtThis", warnings.cloned().collect()),
            (
                "InConflict",
                (report.behind.iter().cloned())
                    .chain(conflicts.map(ToString::to_string))
                    .chain(report.chains_back.iter().map(back))
                    .collect(),
            ),
            ("NotTakenOver", list(&report.not_taken_over)),
            ("Detour", list(&report.detours)),
            ("IpsecPolicy", list(&report.ipsec)),
            (
                "NotPinned",
                report
                    .unpinned
                    .iter()
                    .chain(&report.fleeting)
                    .cloned()
                    .collect(),
            ),
            (
                "PortsNotKept",
                report
                    .node
                    .as_ref()
                    .map_or_else(Vec::new, |it| list(&it.not_kept)),
            ),
        ];
        let notes = found.into_iter().flat_map(|(reason, lines)| {
            let lines = lines.into_iter().take(LINES);
            lines.map(move |text| Note { reason, text })
        });
        notes.collect()
    }

    /// Says how things are.
    pub(super) fn tell(&mut self) {
        if !self.told.on {
            return;
        }
        let unready = self.unready();
        let changed = unready != self.report.unready;
        self.report.unready.clone_from(&unready);
        if self
            .told
            .counted
            .is_none_or(|at| at.elapsed() >= COUNT_EVERY)
        {
            self.told.counted = Some(Instant::now());
            self.told.mappings = self.mappings();
        }
        let counters = self.engine.counters();
        let config = &self.report.config;
        let some = |lines: &[String]| lines.iter().take(LINES).cloned().collect::<Vec<_>>();
        let told = Told {
            version: self.report.version.clone(),
            mode: self.report.mode.clone(),
            no_ebpf: self.report.no_ebpf.clone(),
            serial: self.told.serial,
            hash: config.hash.clone(),
            generation: config.generation,
            applied_at: config.applied_at,
            source: config.source.clone(),
            rules: config.rules.len(),
            warnings: some(&config.warnings),
            rejected: some(&config.rejected),
            maps: self.api.maps(),
            uplinks: self.report.uplinks.iter().map(|u| u.name.clone()).collect(),
            mappings: self.told.mappings,
            refused: REFUSALS
                .map(|(drop, reason, _)| (reason, counters.drops.get(drop)))
                .into(),
            notes: self.notes(),
            gone: some(&self.told.gone),
            unready,
            losses: self.guard.losses,
            last_loss: self.guard.last_loss.clone(),
        };
        if let Some(control) = &self.control {
            control.tell(told);
        }
        if changed {
            self.save_report();
        }
    }
}
