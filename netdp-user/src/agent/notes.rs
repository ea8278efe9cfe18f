//! Conditions that need the operator's attention, for Events and the Lease.

use super::facts::Facts;
use super::readiness::LINES;
use crate::control::Note;
use crate::sources::kube::ConfigMapRef;

impl Facts<'_> {
    /// Returns the ongoing conditions, except those that the API itself causes.
    pub(super) fn notes(&self) -> Vec<Note> {
        let list = |lines: &[String]| lines.to_vec();
        let conflicts = self.foreign.rules.iter().filter(|found| found.conflict);
        let no_address = self.no_address.iter();
        let back =
            |what: &String| format!("{what} was created again: another program still writes it");
        // Warnings about a ConfigMap are published as Events on that ConfigMap.
        let maps: Vec<_> = self.maps.iter().map(ConfigMapRef::prefix).collect();
        let is_elsewhere = |line: &&String| !maps.iter().any(|map| line.starts_with(map));
        let warnings = self.config.warnings.iter().filter(is_elsewhere);
        let found: [(&'static str, Vec<String>); 12] = [
            ("NotInForce", self.not_in_force()),
            (
                "NoAddress",
                no_address
                    .map(|it| it.describe(self.by_netfilter()))
                    .collect(),
            ),
            ("Leak", list(&self.network.leaks)),
            (
                "TooManyAddresses",
                self.network.no_room.iter().cloned().collect(),
            ),
            ("SelfCheckFailed", self.fault.into_iter().cloned().collect()),
            ("ConfigWarning", warnings.cloned().collect()),
            (
                "Conflict",
                (self.behind.iter().cloned())
                    .chain(conflicts.map(ToString::to_string))
                    .chain(self.recreated_chains.iter().map(back))
                    .collect(),
            ),
            ("TakeoverFailed", list(self.not_taken_over)),
            ("Detour", list(&self.network.detours)),
            ("IpsecPolicy", list(&self.network.ipsec)),
            (
                "NotPinned",
                self.unpinned
                    .into_iter()
                    .chain(self.ephemeral)
                    .cloned()
                    .collect(),
            ),
            (
                "NodePortsUnprotected",
                self.node.map_or_else(Vec::new, |it| list(&it.not_kept)),
            ),
        ];
        let notes = found.into_iter().flat_map(|(reason, lines)| {
            let lines = lines.into_iter().take(LINES);
            lines.map(move |text| Note { reason, text })
        });
        notes.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::{State, lost};
    use super::LINES;

    #[test]
    fn a_note_has_the_reason_of_what_it_is_about() {
        let mut state = State::well();
        assert_eq!(state.facts().notes(), []);
        state.no_address = vec![lost(false)];
        state.recreated_chains = vec!["chain X".into()];
        state.network.leaks = (0..=LINES).map(|n| format!("leak {n}")).collect();
        let notes = state.facts().notes();
        let of = |reason: &str| notes.iter().filter(|note| note.reason == reason).count();
        assert_eq!((of("NoAddress"), of("Conflict"), of("Leak")), (1, 1, LINES));
        assert_eq!(notes.len(), LINES + 2);
    }
}
