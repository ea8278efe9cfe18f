//! Makes changes one by one. A failed change is rolled back in the reached state, so that the next
//! diff contains it again.

use super::{Change, State, diff};
use anyhow::{Error, Result};

/// Target of the changes: the kernel or a fake.
pub trait Backend {
    /// Makes a change.
    ///
    /// # Errors
    /// Returns an error if the change was not made, or only in part.
    fn apply(&mut self, change: &Change) -> Result<()>;
}

/// An attempted change and its result.
#[derive(Debug)]
pub struct Step {
    /// The change that was attempted.
    pub change: Change,
    /// The reason why it failed, if it did.
    pub error: Option<Error>,
}

/// Result of an execution.
#[derive(Debug)]
pub struct Execution {
    /// The state of the backend now, as far as it is known.
    pub reached: State,
    /// Every attempted change, in order.
    pub steps: Vec<Step>,
}

/// Moves the backend from `current` to `desired`, as far as it can.
///
/// A failed change does not prevent the others, with one exception: if no policy is in force and
/// none can be put in force, nothing is attached, because without a policy everything would be
/// masqueraded.
pub fn execute(current: &State, desired: &State, backend: &mut impl Backend) -> Execution {
    let mut reached = desired.clone();
    let mut steps = Vec::new();
    for change in diff(current, desired) {
        log::debug!("{change:?}");
        let error = backend.apply(&change).err();
        let has_failed = error.is_some();
        if has_failed {
            revert(&mut reached, current, &change);
        }
        let is_policy = matches!(change, Change::SetPolicy(_));
        steps.push(Step { change, error });
        if has_failed && is_policy && current.policy.is_none() {
            reached = current.clone();
            break;
        }
    }
    Execution { reached, steps }
}

/// Reverts in `reached` the effect of the failed `change`.
fn revert(reached: &mut State, current: &State, change: &Change) {
    match change {
        Change::SetPolicy(_) => reached.policy.clone_from(&current.policy),
        Change::AddLocal(ip) => drop(reached.local.remove(ip)),
        Change::RemoveLocal(ip) => drop(reached.local.insert(*ip)),
        Change::AddMac(mac) => drop(reached.macs.remove(mac)),
        Change::RemoveMac(mac) => drop(reached.macs.insert(*mac)),
        Change::SetSource(asked, _) | Change::RemoveSource(asked) => {
            reached.sources.remove(asked);
            let before = current.sources.get(asked);
            reached.sources.extend(before.map(|given| (*asked, *given)));
        }
        // It may be half done: it is made again, or detached, whatever the state was before.
        Change::SetUplink(link)
        | Change::Attach(link)
        | Change::SetObserved(link)
        | Change::Observe(link) => mark_unknown(reached, link.ifindex, &link.name),
        Change::Detach { ifindex, name } => mark_unknown(reached, *ifindex, name),
        Change::AttachPods { ifindex, .. } => drop(reached.pod_links.remove(ifindex)),
        Change::DetachPods { ifindex, name } => {
            // The interface is about to be attached to again under its new name.
            reached
                .pod_links
                .entry(*ifindex)
                .or_insert_with(|| name.clone());
        }
    }
}

fn mark_unknown(reached: &mut State, ifindex: u32, name: &str) {
    reached.uplinks.remove(&ifindex);
    reached.observed.remove(&ifindex);
    reached.unknown.insert(ifindex, name.to_owned());
}

#[cfg(test)]
mod tests {
    use super::super::PolicyRule;
    use super::super::tests::{desired, uplink};
    use super::{Backend, Change, State, execute};
    use crate::uplinks::{Mac, SourceChoice, SourceQuery, Uplink};
    use anyhow::{Result, bail};
    use std::collections::{BTreeMap, BTreeSet};
    use std::net::IpAddr;

    /// A fake kernel. One call fails, before or after it has taken effect.
    #[derive(Debug, Clone, Default, PartialEq)]
    struct Kernel {
        policy: Option<Vec<PolicyRule>>,
        local: BTreeSet<IpAddr>,
        macs: BTreeSet<Mac>,
        sources: BTreeMap<SourceQuery, SourceChoice>,
        /// Interface entries, and whether each is only observed.
        entries: BTreeMap<u32, (Uplink, bool)>,
        /// Interfaces with programs, and whether these only observe.
        attached: BTreeMap<u32, bool>,
        pods: BTreeMap<u32, String>,
    }

    struct Fake {
        kernel: Kernel,
        /// Number of calls before one fails; `None` once it has failed, or if none fails.
        fails_in: Option<usize>,
        after: bool,
    }

    impl Fake {
        fn well(kernel: Kernel) -> Self {
            Self {
                kernel,
                fails_in: None,
                after: false,
            }
        }

        fn make(&mut self, change: &Change) {
            let kernel = &mut self.kernel;
            match change.clone() {
                Change::SetPolicy(rules) => kernel.policy = Some(rules),
                Change::AddLocal(ip) => drop(kernel.local.insert(ip)),
                Change::RemoveLocal(ip) => drop(kernel.local.remove(&ip)),
                Change::AddMac(mac) => drop(kernel.macs.insert(mac)),
                Change::RemoveMac(mac) => drop(kernel.macs.remove(&mac)),
                Change::SetSource(asked, given) => drop(kernel.sources.insert(asked, given)),
                Change::RemoveSource(asked) => drop(kernel.sources.remove(&asked)),
                Change::SetUplink(link) => {
                    drop(kernel.entries.insert(link.ifindex, (link, false)));
                }
                Change::Attach(link) => drop(kernel.attached.insert(link.ifindex, false)),
                Change::SetObserved(link) => {
                    drop(kernel.entries.insert(link.ifindex, (link, true)));
                }
                Change::Observe(link) => drop(kernel.attached.insert(link.ifindex, true)),
                Change::Detach { ifindex, .. } => {
                    kernel.entries.remove(&ifindex);
                    kernel.attached.remove(&ifindex);
                }
                Change::AttachPods { ifindex, name } => drop(kernel.pods.insert(ifindex, name)),
                Change::DetachPods { ifindex, .. } => drop(kernel.pods.remove(&ifindex)),
            }
        }
    }

    /// Reports whether a change has several parts, so that the last one alone may have failed.
    const fn has_parts(change: &Change) -> bool {
        matches!(
            change,
            Change::Attach(_) | Change::Observe(_) | Change::Detach { .. }
        )
    }

    impl Backend for Fake {
        fn apply(&mut self, change: &Change) -> Result<()> {
            let fails = self.fails_in == Some(0);
            self.fails_in = self.fails_in.and_then(|left| left.checked_sub(1));
            if !fails || (self.after && has_parts(change)) {
                self.make(change);
            }
            assert!(
                self.kernel.policy.is_some() || self.kernel.attached.is_empty(),
                "attached without a policy"
            );
            if fails {
                bail!("as it was to");
            }
            Ok(())
        }
    }

    /// Returns the fake kernel after all of `state` has been applied.
    fn kernel_of(state: &State) -> Kernel {
        let mut fake = Fake::well(Kernel::default());
        let done = execute(&State::default(), state, &mut fake);
        assert!(done.steps.iter().all(|step| step.error.is_none()));
        assert_eq!(done.reached, *state);
        fake.kernel
    }

    /// Returns states that differ in every field.
    fn states() -> Vec<State> {
        let mut other = desired();
        other.policy = Some(Vec::new());
        other.local = [[10, 0, 0, 2].into()].into();
        other.macs = [Mac {
            link: 3,
            mac: [2, 0, 0, 0, 0, 1],
        }]
        .into();
        for given in other.sources.values_mut() {
            given.addr = [10, 0, 0, 2].into();
        }
        other.uplinks = [(3, uplink(3))].into();
        other.observed = [(2, uplink(2))].into();
        other.pod_links = [(7, "cali2".into()), (8, "cali8".into())].into();
        let mut moved = desired();
        moved.uplinks.get_mut(&2).unwrap().v4 = Some([10, 0, 0, 9].into());
        moved.observed = [(3, uplink(3))].into();
        let mut bare = desired();
        bare.uplinks.clear();
        bare.sources.clear();
        bare.pod_links.clear();
        vec![State::default(), desired(), other, moved, bare]
    }

    /// Checks that the next execution makes up for any failure between two states, also if the
    /// desired state has changed in the meantime.
    #[test]
    fn whatever_fails_is_made_up_for() {
        let all = states();
        let targets: Vec<_> = all.iter().filter(|state| state.policy.is_some()).collect();
        let mut failures = 0;
        for (is, desired) in all
            .iter()
            .flat_map(|is| targets.iter().map(move |to| (is, to)))
        {
            for (nth, after) in (0..).flat_map(|nth| [(nth, false), (nth, true)]) {
                let mut fake = Fake::well(kernel_of(is));
                (fake.fails_in, fake.after) = (Some(nth), after);
                let first = execute(is, desired, &mut fake);
                if first.steps.iter().all(|step| step.error.is_none()) {
                    assert_eq!(first.reached, **desired);
                    break;
                }
                failures += 1;
                for next in &targets {
                    let mut again = Fake::well(fake.kernel.clone());
                    let second = execute(&first.reached, next, &mut again);
                    assert_eq!(second.reached, **next);
                    assert_eq!(again.kernel, kernel_of(next), "after {:?}", first.steps);
                }
            }
        }
        assert!(failures > 100, "{failures}");
    }

    #[test]
    fn without_a_policy_nothing_is_attached() {
        let mut fake = Fake::well(Kernel::default());
        fake.fails_in = Some(0);
        let failed = execute(&State::default(), &desired(), &mut fake);
        assert_eq!(failed.steps.len(), 1);
        assert_eq!(failed.reached, State::default());
        assert_eq!(fake.kernel, Kernel::default());
    }

    #[test]
    fn with_an_earlier_policy_the_rest_is_made() {
        let mut other = desired();
        other.policy = Some(Vec::new());
        other.uplinks.insert(3, uplink(3));
        let mut fake = Fake::well(kernel_of(&desired()));
        fake.fails_in = Some(0);
        let failed = execute(&desired(), &other, &mut fake);
        assert_eq!(failed.reached.policy, desired().policy);
        assert_eq!(failed.reached.uplinks, other.uplinks);
        assert!(fake.kernel.attached.contains_key(&3));
    }
}
