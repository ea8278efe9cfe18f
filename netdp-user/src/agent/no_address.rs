//! Uplinks that have lost their address: pods' packets are dropped, which the operator has to see.

use super::Agent;
use super::modes::Engine;
use crate::codes::Code;
use crate::uplinks::{FormerFamilies, MissingAddress, Uplink, missing_addresses, select};
use netdp_common::layout::Family;
use std::time::{Duration, Instant};

/// Time that an address may be missing before this is reported. A restart of networkd or a renewed
/// DHCP lease takes less; probes at intervals of seconds would not notice it either.
const GRACE: Duration = Duration::from_secs(2);

/// State of missing addresses.
#[derive(Debug, Default)]
pub(super) struct NoAddress {
    pub(super) had: FormerFamilies,
    /// Families that uplinks have addresses of now.
    has: FormerFamilies,
    /// Addresses missing now, and since when; `None` for those an earlier agent reported.
    missing: Vec<(MissingAddress, Option<Instant>)>,
    /// Missing addresses that have been reported.
    pub(super) reported: Vec<MissingAddress>,
    /// Missing addresses that an earlier agent reported, until this one has checked.
    recalled: Option<Vec<MissingAddress>>,
}

impl NoAddress {
    /// Continues the state of an earlier agent: its uplinks may have lost addresses while no agent
    /// ran, and the losses it reported remain reported.
    pub(super) fn after(had: FormerFamilies, reported: Vec<MissingAddress>) -> Self {
        Self {
            missing: reported.iter().map(|it| (it.clone(), None)).collect(),
            recalled: Some(reported),
            // This agent has not logged them.
            reported: Vec::new(),
            had,
            has: FormerFamilies::new(),
        }
    }

    /// Returns what the next agent is to take for reported.
    pub(super) fn to_recall(&self) -> &[MissingAddress] {
        self.recalled.as_ref().unwrap_or(&self.reported)
    }

    /// Records the addresses missing now.
    fn set_missing(&mut self, now_missing: Vec<MissingAddress>, now: Instant) {
        self.recalled = None;
        let before = std::mem::take(&mut self.missing);
        let since = |it: &MissingAddress| {
            let same = before.iter().find(|(old, _)| is_same(old, it));
            same.map_or(Some(now), |(_, since)| *since)
        };
        self.missing = now_missing
            .into_iter()
            .map(|it| (since(&it), it))
            .map(|(since, it)| (it, since))
            .collect();
    }

    /// Returns the addresses that have been missing for long enough to be reported.
    fn due(&self, now: Instant) -> Vec<MissingAddress> {
        let is_due = |since: &Option<Instant>| since.is_none_or(|since| now >= since + GRACE);
        let due = self.missing.iter().filter(|(_, since)| is_due(since));
        due.map(|(it, _)| it.clone()).collect()
    }
}

/// Reports whether both concern one family of one uplink.
fn is_same(one: &MissingAddress, other: &MissingAddress) -> bool {
    one.uplink == other.uplink && one.family == other.family
}

impl Agent {
    /// Checks for missing addresses after a change of links, addresses or routes.
    pub(super) fn check_addresses(&mut self) {
        let uplinks: Vec<Uplink> = match &self.engine {
            Engine::Ebpf(_) => self.applied.uplinks.values().cloned().collect(),
            Engine::Iptables(_) => {
                // An uplink that loses its address also loses the routes by which it is selected:
                // only this record still names it.
                let mut selection = self.selection.clone();
                selection.names.extend(self.no_address.had.keys().cloned());
                select(&self.snapshot, &selection).uplinks
            }
            Engine::Shadow(_) => return,
        };
        let has = (uplinks.iter()).map(|uplink| {
            let families = uplink.addresses().map(Family::of);
            (uplink.name.clone(), families.collect())
        });
        self.no_address.has = has.collect();
        for (name, has) in &self.no_address.has {
            let had = self.no_address.had.entry(name.clone()).or_default();
            had.extend(has);
        }
        let had = &self.no_address.had;
        let missing = missing_addresses(&self.snapshot, &self.selection, &uplinks, had);
        self.no_address.set_missing(missing, Instant::now());
        self.report_missing_addresses();
    }

    /// Reports addresses that have been missing for long enough, and those that are back.
    pub(super) fn report_missing_addresses(&mut self) {
        let due = self.no_address.due(Instant::now());
        if due == self.no_address.reported {
            return;
        }
        let by_netfilter = self.engine.as_iptables().is_some();
        let before = std::mem::replace(&mut self.no_address.reported, due);
        for it in &self.no_address.reported {
            if before.contains(it) {
                continue;
            }
            let level = if it.severe {
                log::Level::Error
            } else {
                log::Level::Warn
            };
            let (uplink, code) = (&it.uplink, Code::NoAddress);
            log::log!(level, uplink, code:%; "{}", it.describe(by_netfilter));
        }
        let now = &self.no_address.reported;
        for it in before {
            if !now.iter().any(|now| is_same(now, &it)) {
                let (name, family) = (&it.uplink, it.family);
                let has = self.no_address.has.get(name);
                if has.is_some_and(|has| has.contains(&family)) {
                    log::info!(uplink = name; "{name} has an {family} address again");
                } else {
                    log::info!(uplink = name; "{name}: an {family} address is no longer needed");
                }
            }
        }
        self.publish_status();
        self.save_report();
    }
}

#[cfg(test)]
mod tests {
    use super::{GRACE, NoAddress};
    use crate::uplinks::{FormerFamilies, MissingAddress};
    use netdp_common::layout::Family;
    use std::time::Instant;

    fn lost(severe: bool) -> MissingAddress {
        MissingAddress {
            uplink: "eth0".into(),
            family: Family::V4,
            lost: true,
            routed: false,
            severe,
        }
    }

    #[test]
    fn an_address_that_is_back_at_once_is_not_missed() {
        let start = Instant::now();
        let mut addresses = NoAddress::default();
        addresses.set_missing(vec![lost(true)], start);
        assert!(addresses.due(start + GRACE / 2).is_empty());
        // Counted from the first moment, whatever else changes.
        addresses.set_missing(vec![lost(false)], start + GRACE / 2);
        assert_eq!(addresses.due(start + GRACE), [lost(false)]);
        addresses.set_missing(Vec::new(), start + GRACE);
        addresses.set_missing(vec![lost(true)], start + GRACE);
        assert!(addresses.due(start + GRACE).is_empty());
    }

    #[test]
    fn addresses_that_an_earlier_agent_reported_are_due_at_once() {
        let had = FormerFamilies::from([("eth0".into(), [Family::V4].into())]);
        let start = Instant::now();
        let mut addresses = NoAddress::after(had, vec![lost(true)]);
        addresses.set_missing(vec![lost(true)], start);
        assert_eq!(addresses.due(start), [lost(true)]);
    }

    #[test]
    fn addresses_that_an_earlier_agent_reported_are_recalled_until_this_one_has_checked() {
        let mut addresses = NoAddress::after(FormerFamilies::new(), vec![lost(true)]);
        assert_eq!(addresses.reported, []);
        assert_eq!(addresses.to_recall(), [lost(true)]);
        addresses.set_missing(Vec::new(), Instant::now());
        assert_eq!(addresses.to_recall(), []);
    }
}
