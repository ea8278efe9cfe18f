//! The policy tries: an active and a standby trie and one index, so that each packet is judged by
//! the old policy or the new one, never by a mixture.

use super::batch;
use super::entries::{Entries, NO_RULE, Prefix};
use super::history::{self, History};
use super::maps::{Maps, Trie, ignore_missing};
use super::rule_counts::SHARED_INDEX;
use super::sweep::now;
use crate::reconcile::PolicyRule;
use anyhow::{Context as _, Result};
use aya::maps::lpm_trie::Key;
use aya::maps::{MapData, MapError};
use ipnet::{IpNet, Ipv4Net};
use netdp_common::layout::{Action, Addr, PolicyValue};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

/// Result of a policy change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PolicyChange {
    /// Number of entries in force, the roots included.
    pub entries: usize,
    /// Number of entries written to or removed from the standby trie.
    pub writes: usize,
}

impl Maps {
    /// Puts a whole policy in force. With [`History::Keep`] it retains the bypass decisions of
    /// earlier policies.
    ///
    /// # Errors
    /// Returns an error if the kernel refuses an entry; the old policy stays in force.
    pub fn set_policy(&mut self, rules: &[PolicyRule], history: History) -> Result<PolicyChange> {
        let before = self.active_policy()?;
        let (rules, next) = entries(rules).numbered_after(&before, self.next_rule());
        self.next_rule = Some(next);
        if history == History::Forget {
            return self.swap_policy(Arc::new(rules));
        }
        let wanted = history::with_history(&rules, &before);
        self.swap_policy(Arc::new(wanted)).or_else(|err| {
            // The history may not fit. The new policy takes precedence.
            log::warn!("{err:#}; retrying without regard to connections of the previous policy");
            self.swap_policy(Arc::new(rules))
        })
    }

    /// Returns the lowest number that no rule has had as long as the maps exist: whatever a number
    /// has counted belongs to one prefix.
    fn next_rule(&self) -> u32 {
        if let Some(next) = self.next_rule {
            return next;
        }
        match self.rule_counts() {
            Ok(counts) => counts
                .keys()
                .rfind(|index| **index != SHARED_INDEX)
                .map_or(0, |index| index + 1),
            Err(err) => {
                log::warn!("{err:#}: numbers of earlier rules may be used again");
                0
            }
        }
    }

    pub(super) fn expire_history(&mut self) -> Result<()> {
        let active = self.active_policy()?;
        let wanted = history::without_history(&active);
        if wanted != *active {
            self.swap_policy(Arc::new(wanted))?;
        }
        Ok(())
    }

    /// Writes the policy in force to the standby trie, so that little remains to be written at the
    /// next change. Returns the number of writes.
    ///
    /// # Errors
    /// Returns an error if the kernel refuses an entry; the policy in force is not affected.
    pub fn prepare_policy(&mut self) -> Result<usize> {
        if self.has_readers {
            return Ok(0);
        }
        let active = self.active_policy()?;
        self.write_standby(active)
    }

    /// Returns the entries of the policy in force.
    ///
    /// # Errors
    /// Returns an error if the maps can't be read.
    pub(super) fn active_policy(&self) -> Result<Arc<Entries>> {
        let active = usize::from(self.settings()?.active_policy != 0);
        match &self.policy_entries[active] {
            Some(entries) => Ok(Arc::clone(entries)),
            None => self
                .read_policy(active)
                .context("reading the policy in force"),
        }
    }

    fn read_policy(&self, index: usize) -> Result<Arc<Entries>> {
        let trie = self.policy[index].iter();
        let entry = |entry: Result<(Key<Addr>, _), _>| {
            entry.map(|(key, value)| ((key.prefix_len(), key.data()), value))
        };
        let entries = trie.map(entry).collect::<Result<Entries, MapError>>()?;
        Ok(Arc::new(entries))
    }

    /// Makes the standby trie equal to `wanted`. Returns the number of writes.
    fn write_standby(&mut self, wanted: Arc<Entries>) -> Result<usize> {
        let idle = usize::from(self.settings()?.active_policy == 0);
        // After a failed write the contents are unknown.
        let present = match self.policy_entries[idle].take() {
            Some(present) => present,
            None => self
                .read_policy(idle)
                .context("reading the standby policy trie")?,
        };
        let difference = Difference::between(&present, &wanted);
        let batches = self.batches.then_some(&self.policy_data[idle]);
        difference.write(&mut self.policy[idle], batches)?;
        self.policy_entries[idle] = Some(wanted);
        Ok(difference.len())
    }

    /// Makes the standby trie equal to `wanted` and switches the programs to it.
    fn swap_policy(&mut self, wanted: Arc<Entries>) -> Result<PolicyChange> {
        let entries = wanted.len();
        let writes = self.write_standby(wanted)?;
        // Existing mappings may have destinations that the new policy bypasses.
        self.disable_bypass_cache()?;
        let mut settings = self.settings()?;
        settings.active_policy = u32::from(settings.active_policy == 0);
        settings.generation = settings.generation.wrapping_add(1);
        self.set_settings(&settings)?;
        self.swapped_at = now(self).ok();
        self.next_epoch()?;
        self.has_readers = !wait_for_readers();
        Ok(PolicyChange { entries, writes })
    }

    /// Returns the action of the policy in force for new flows to `destination`.
    pub(super) fn action(&self, destination: &Addr) -> Result<Action> {
        let value = self.decision(destination)?;
        Ok(Action::from_raw(value.action))
    }

    /// Returns the entry of the policy in force for `destination`.
    pub(super) fn decision(&self, destination: &Addr) -> Result<PolicyValue> {
        let active = usize::from(self.settings()?.active_policy != 0);
        match self.policy[active].get(&Key::new(128, *destination), 0) {
            Ok(value) => Ok(value),
            Err(MapError::KeyNotFound) => Ok(history::UNCOVERED),
            Err(err) => Err(err).context("querying the policy in force"),
        }
    }

    /// Returns the policy in force, longest prefixes first.
    ///
    /// # Errors
    /// Returns an error if the map can't be read.
    pub fn policy(&self) -> Result<Vec<(IpNet, PolicyValue)>> {
        let active = self.active_policy()?;
        let mut rules: Vec<_> = history::without_history(&active)
            .iter()
            .map(|&((len, addr), value)| (to_net(len, addr), value))
            .collect();
        rules.sort_by_key(|(net, _)| (std::cmp::Reverse(net.prefix_len()), *net));
        Ok(rules)
    }
}

/// Returns the trie's entries for `rules`. The trie always holds IPv4's root, even if no rule names
/// it: an IPv6 `::/0` would cover it otherwise.
fn entries(rules: &[PolicyRule]) -> Entries {
    let root = IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0));
    let masquerade = PolicyValue {
        action: Action::Masquerade as u32,
        rule: NO_RULE,
    };
    let rules = (0..).zip(rules).map(|(index, rule)| {
        let value = PolicyValue {
            action: rule.action as u32,
            rule: index,
        };
        (prefix(&rule.prefix), value)
    });
    [(prefix(&root), masquerade)]
        .into_iter()
        .chain(rules)
        .collect()
}

/// Returns the key of a prefix: IPv4 lies below `::ffff:0:0/96`.
pub(super) fn prefix(net: &IpNet) -> Prefix {
    let len = u32::from(net.prefix_len());
    let len = match net {
        IpNet::V4(_) => len + 96,
        IpNet::V6(_) => len,
    };
    (len, Addr::from(net.network()))
}

/// Returns the prefix of a trie's key.
pub(super) fn to_net(len: u32, addr: Addr) -> IpNet {
    let ip = IpAddr::from(addr);
    let len = match ip {
        IpAddr::V4(_) => len.saturating_sub(96),
        IpAddr::V6(_) => len,
    };
    // netdp writes no length beyond the family's; such an entry is shown as a host.
    IpNet::new(ip, u8::try_from(len).unwrap_or(u8::MAX)).unwrap_or_else(|_| IpNet::from(ip))
}

/// Writes and removals that turn one trie's contents into another's.
struct Difference {
    gone: Vec<Key<Addr>>,
    changed: Vec<Key<Addr>>,
    /// Values of `changed`, in the same order.
    values: Vec<PolicyValue>,
}

impl Difference {
    fn between(present: &Entries, wanted: &Entries) -> Self {
        let mut difference = Self {
            gone: Vec::new(),
            changed: Vec::new(),
            values: Vec::new(),
        };
        for ((len, addr), is, wanted) in present.merge_join(wanted) {
            let key = Key::new(len, addr);
            match wanted {
                None => difference.gone.push(key),
                Some(value) if is != Some(value) => {
                    difference.changed.push(key);
                    difference.values.push(value);
                }
                Some(_) => {}
            }
        }
        difference
    }

    const fn len(&self) -> usize {
        self.gone.len() + self.changed.len()
    }

    /// Writes the difference, in batches if `map` (the same map as `trie`) is given.
    fn write(&self, trie: &mut Trie, map: Option<&MapData>) -> Result<()> {
        let mut done = 0;
        if let Some(map) = map {
            batch::remove(map, &self.gone).context("removing from the policy")?;
            // Where a batch stops, a single write returns the reason.
            done = batch::update(map, &self.changed, &self.values)?;
        } else {
            for key in &self.gone {
                ignore_missing(trie.remove(key))
                    .with_context(|| format!("removing {} from the policy", net_of(key)))?;
            }
        }
        for (key, value) in self.changed.iter().zip(&self.values).skip(done) {
            trie.insert(key, value, 0)
                .with_context(|| format!("adding {} to the policy", net_of(key)))?;
        }
        Ok(())
    }
}

fn net_of(key: &Key<Addr>) -> IpNet {
    to_net(key.prefix_len(), key.data())
}

/// Waits until no packet is in a program that began before the call: `MEMBARRIER_CMD_GLOBAL` is
/// `synchronize_rcu` (kernel/sched/membarrier.c, Linux 6.12). Then the trie that became the standby
/// one may be changed. Returns `false` where the kernel refuses it, as with `nohz_full`: then the
/// time until the next change has to suffice.
fn wait_for_readers() -> bool {
    const MEMBARRIER_CMD_GLOBAL: libc::c_int = 1;
    // SAFETY: membarrier(2) takes plain integers.
    unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) == 0 }
}

#[cfg(test)]
mod tests {
    use super::{entries, prefix, to_net};
    use crate::reconcile::PolicyRule;
    use netdp_common::layout::Action;

    #[test]
    fn prefixes_survive_the_way_through_the_trie() {
        for text in [
            "0.0.0.0/0",
            "10.0.0.0/8",
            "10.1.2.3/32",
            "::/0",
            "fe80::/10",
            "fd00::1/128",
        ] {
            let net = text.parse().unwrap();
            let (len, addr) = prefix(&net);
            assert_eq!(to_net(len, addr), net, "{text}");
        }
    }

    #[test]
    fn ipv4_has_a_root_of_its_own() {
        let all_v6 = PolicyRule {
            prefix: "::/0".parse().unwrap(),
            action: Action::Bypass,
        };
        let root = prefix(&"0.0.0.0/0".parse().unwrap());
        let root_action = |rule| {
            let trie = entries(&[rule]);
            let found = trie.iter().find(|(prefix, _)| *prefix == root);
            found.map(|(_, value)| value.action)
        };
        assert_eq!(root_action(all_v6), Some(Action::Masquerade as u32));
        let all_v4 = PolicyRule {
            prefix: "0.0.0.0/0".parse().unwrap(),
            action: Action::Bypass,
        };
        assert_eq!(root_action(all_v4), Some(Action::Bypass as u32));
    }
}
