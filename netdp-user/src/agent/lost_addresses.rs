//! Addresses that the node has just lost. They are often back within a second (networkd restarts, a
//! DHCP lease is renewed): until the loss is certain, their mappings rest and do not end. The
//! programs let no packet leave with such an address in the meantime.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;
use tokio::time::Instant;

/// Time that mappings of a lost address are kept.
const GRACE: Duration = Duration::from_secs(15);

/// Lost addresses, and since when.
#[derive(Debug, Default)]
pub(super) struct LostAddresses(BTreeMap<IpAddr, Instant>);

impl LostAddresses {
    /// Records addresses that the node has lost or gained.
    pub(super) fn update(
        &mut self,
        before: &BTreeSet<IpAddr>,
        after: &BTreeSet<IpAddr>,
        now: Instant,
    ) {
        self.0.retain(|address, _| !after.contains(address));
        for address in before.difference(after) {
            self.0.insert(*address, now);
        }
    }

    /// Returns the addresses whose mappings are alive or at rest.
    pub(super) fn with(&self, local: &BTreeSet<IpAddr>) -> BTreeSet<IpAddr> {
        local.iter().chain(self.0.keys()).copied().collect()
    }

    /// Removes the addresses that have been gone for too long, and returns whether there were any:
    /// their mappings are to end.
    pub(super) fn expire(&mut self, now: Instant) -> bool {
        let before = self.0.len();
        self.0
            .retain(|_, since| now.saturating_duration_since(*since) < GRACE);
        self.0.len() < before
    }
}

#[cfg(test)]
mod tests {
    use super::{GRACE, LostAddresses};
    use std::collections::BTreeSet;
    use std::net::IpAddr;
    use tokio::time::Instant;

    #[test]
    fn an_address_that_comes_back_is_not_lost() {
        let [one, two] = ["192.0.2.1", "fd00::1"].map(|ip| ip.parse::<IpAddr>().unwrap());
        let (both, left) = (BTreeSet::from([one, two]), BTreeSet::from([one]));
        let now = Instant::now();
        let mut lost = LostAddresses::default();
        lost.update(&both, &left, now);
        assert_eq!(lost.with(&left), both);
        assert!(!lost.expire(now + GRACE / 2));
        lost.update(&left, &both, now + GRACE / 2);
        assert!(!lost.expire(now + GRACE), "it is back");
        lost.update(&both, &left, now + GRACE);
        assert!(lost.expire(now + GRACE * 2));
        assert_eq!(lost.with(&left), left);
    }
}
