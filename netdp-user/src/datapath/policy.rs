//! The policy tries: two of them and one index, so that a packet sees the old
//! policy or the new one, never a mixture.

use super::history::{self, History};
use super::maps::{Maps, Trie, ignore_missing};
use crate::reconcile::PolicyRule;
use anyhow::{Context as _, Result};
use aya::maps::MapError;
use aya::maps::lpm_trie::Key;
use ipnet::{IpNet, Ipv4Net};
use netdp_common::abi::{Action, PolicyValue};
use netdp_common::addr::Addr;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

/// What a change of the policy did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PolicyChange {
    /// Entries in force now, the roots included.
    pub entries: usize,
    /// Entries written or removed in the trie that was idle.
    pub writes: usize,
}

/// Length and address of a trie's key; IPv4 lies below `::ffff:0:0/96`.
pub(super) type Prefix = (u32, Addr);

/// What a trie holds.
pub(super) type Entries = BTreeMap<Prefix, PolicyValue>;

impl Maps {
    /// Puts a policy in force, whole. With [`History::Keep`] it remembers what
    /// those before it bypassed.
    ///
    /// # Errors
    /// The kernel refused an entry; the old policy stays in force.
    pub fn set_policy(&mut self, rules: &[PolicyRule], history: History) -> Result<PolicyChange> {
        let rules = entries(rules);
        if history == History::Forget {
            return self.swap_policy(&rules);
        }
        let wanted = history::joined(&rules, &self.active_policy()?);
        self.swap_policy(&wanted).or_else(|err| {
            // Possibly no room for what is of the past. The present comes first.
            log::warn!("{err:#}; trying without regard to connections of the policy before");
            self.swap_policy(&rules)
        })
    }

    pub(super) fn forget_earlier_policies(&mut self) -> Result<()> {
        let active = self.active_policy()?;
        let wanted = history::forgotten(&active);
        if wanted != active {
            self.swap_policy(&wanted)?;
        }
        Ok(())
    }

    fn active_policy(&self) -> Result<Entries> {
        let active = usize::from(self.settings()?.active_policy != 0);
        match &self.policy_entries[active] {
            Some(entries) => Ok(entries.clone()),
            None => read(&self.policy[active]).context("reading the policy in force"),
        }
    }

    /// Makes the idle trie hold `wanted`, and packets ask it.
    fn swap_policy(&mut self, wanted: &Entries) -> Result<PolicyChange> {
        let idle = usize::from(self.settings()?.active_policy == 0);
        // Where a write fails, nobody knows what it holds.
        let present = match self.policy_entries[idle].take() {
            Some(present) => present,
            None => read(&self.policy[idle]).context("reading the idle policy trie")?,
        };
        let writes = rewrite(&mut self.policy[idle], &present, wanted)?;
        self.policy_entries[idle] = Some(wanted.clone());
        // Mappings made until now may go where the new policy bypasses.
        self.set_none_sticky(false)?;
        let mut settings = self.settings()?;
        settings.active_policy = u32::from(settings.active_policy == 0);
        settings.generation = settings.generation.wrapping_add(1);
        self.set_settings(&settings)?;
        self.next_epoch()?;
        wait_for_readers();
        Ok(PolicyChange {
            entries: wanted.len(),
            writes,
        })
    }

    /// What the policy in force does with new flows to `destination`.
    pub(super) fn action(&self, destination: &Addr) -> Result<Action> {
        let active = usize::from(self.settings()?.active_policy != 0);
        match self.policy[active].get(&Key::new(128, *destination), 0) {
            Ok(value) => Ok(Action::from_raw(value.action)),
            Err(MapError::KeyNotFound) => Ok(Action::Masquerade),
            Err(err) => Err(err).context("asking the policy in force"),
        }
    }

    /// The policy in force, longest prefixes first.
    ///
    /// # Errors
    /// The map could not be read.
    pub fn policy(&self) -> Result<Vec<(IpNet, PolicyValue)>> {
        let mut rules: Vec<_> = history::forgotten(&self.active_policy()?)
            .into_iter()
            .map(|((len, addr), value)| (to_net(len, addr), value))
            .collect();
        rules.sort_by_key(|(net, _)| (std::cmp::Reverse(net.prefix_len()), *net));
        Ok(rules)
    }
}

/// The trie's entries for `rules`. IPv4's root stands in the trie even where no
/// rule names it: an IPv6 `::/0` would otherwise cover it.
fn entries(rules: &[PolicyRule]) -> Entries {
    let mut wanted = BTreeMap::new();
    let root = IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0));
    let masquerade = PolicyValue {
        action: Action::Masquerade as u32,
        rule: u32::MAX,
    };
    wanted.insert(prefix(&root), masquerade);
    for (index, rule) in (0..).zip(rules) {
        let value = PolicyValue {
            action: rule.action as u32,
            rule: index,
        };
        wanted.insert(prefix(&rule.prefix), value);
    }
    wanted
}

/// The key of a prefix: IPv4 lies below `::ffff:0:0/96`.
fn prefix(net: &IpNet) -> Prefix {
    let len = u32::from(net.prefix_len());
    let len = match net {
        IpNet::V4(_) => len + 96,
        IpNet::V6(_) => len,
    };
    (len, Addr::from(net.network()))
}

fn to_net(len: u32, addr: Addr) -> IpNet {
    let ip = IpAddr::from(addr);
    let len = match ip {
        IpAddr::V4(_) => len.saturating_sub(96),
        IpAddr::V6(_) => len,
    };
    // A length over the family's is not written by us; it shows as a host.
    IpNet::new(ip, u8::try_from(len).unwrap_or(u8::MAX)).unwrap_or_else(|_| IpNet::from(ip))
}

fn read(trie: &Trie) -> Result<Entries> {
    let mut present = BTreeMap::new();
    for entry in trie.iter() {
        let (key, value) = entry?;
        present.insert((key.prefix_len(), key.data()), value);
    }
    Ok(present)
}

/// Makes `trie` hold exactly `wanted`; gives the number of writes.
fn rewrite(trie: &mut Trie, present: &Entries, wanted: &Entries) -> Result<usize> {
    let mut writes = 0;
    for &(len, addr) in present.keys() {
        if !wanted.contains_key(&(len, addr)) {
            ignore_missing(trie.remove(&Key::new(len, addr)))
                .with_context(|| format!("removing {} from the policy", to_net(len, addr)))?;
            writes += 1;
        }
    }
    for (&(len, addr), value) in wanted {
        if present.get(&(len, addr)) != Some(value) {
            trie.insert(&Key::new(len, addr), value, 0)
                .with_context(|| format!("adding {} to the policy", to_net(len, addr)))?;
            writes += 1;
        }
    }
    Ok(writes)
}

/// Returns once no packet is in a program that began before the call:
/// `MEMBARRIER_CMD_GLOBAL` is `synchronize_rcu` (kernel/sched/membarrier.c,
/// Linux 6.12). Then the trie that went idle may be changed.
fn wait_for_readers() {
    const MEMBARRIER_CMD_GLOBAL: libc::c_int = 1;
    // SAFETY: membarrier(2) takes plain integers. It fails only where the
    // kernel lacks it; then the time until the next change has to do.
    let _ = unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) };
}

#[cfg(test)]
mod tests {
    use super::{entries, prefix, to_net};
    use crate::reconcile::PolicyRule;
    use netdp_common::abi::Action;

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
        let trie = entries(&[all_v6]);
        assert_eq!(trie[&root].action, Action::Masquerade as u32);
        let all_v4 = PolicyRule {
            prefix: "0.0.0.0/0".parse().unwrap(),
            action: Action::Bypass,
        };
        assert_eq!(entries(&[all_v4])[&root].action, Action::Bypass as u32);
    }
}
