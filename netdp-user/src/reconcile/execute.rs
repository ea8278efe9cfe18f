//! Changes are made one by one; what fails is taken back from what counts as reached, so that the next
//! difference has it again.

use super::{Change, State, diff};
use anyhow::{Error, Result};

/// What changes are made to.
pub trait Backend {
    /// Makes a change.
    ///
    /// # Errors
    /// It was not made, or in part.
    fn apply(&mut self, change: &Change) -> Result<()>;
}

/// A change that was made, or why not.
#[derive(Debug)]
pub struct Step {
    /// The change.
    pub change: Change,
    /// Why it failed, if so.
    pub error: Option<Error>,
}

/// What an execution has come to.
#[derive(Debug)]
pub struct Execution {
    /// What the backend looks like now, as far as is known.
    pub reached: State,
    /// Each change that was tried, in order.
    pub steps: Vec<Step>,
}

/// Makes of `is` what is `wanted`, as far as the backend can.
///
/// A change that fails keeps no other from being made, with one exception: where no policy is in force
/// and none can be put in force, nothing is attached, since without one everything would be
/// masqueraded.
pub fn execute(is: &State, wanted: &State, backend: &mut impl Backend) -> Execution {
    let mut reached = wanted.clone();
    let mut steps = Vec::new();
    for change in diff(is, wanted) {
        log::debug!("{change:?}");
        let error = backend.apply(&change).err();
        let has_failed = error.is_some();
        if has_failed {
            take_back(&mut reached, is, &change);
        }
        let is_policy = matches!(change, Change::SetPolicy(_));
        steps.push(Step { change, error });
        if has_failed && is_policy && is.policy.is_none() {
            reached = is.clone();
            break;
        }
    }
    Execution { reached, steps }
}

/// Takes back from `reached` what `change` was to bring about.
fn take_back(reached: &mut State, is: &State, change: &Change) {
    match change {
        Change::SetPolicy(_) => reached.policy.clone_from(&is.policy),
        Change::AddLocal(ip) => drop(reached.local.remove(ip)),
        Change::RemoveLocal(ip) => drop(reached.local.insert(*ip)),
        Change::AddMac(mac) => drop(reached.macs.remove(mac)),
        Change::RemoveMac(mac) => drop(reached.macs.insert(*mac)),
        Change::SetSource(asked, _) | Change::RemoveSource(asked) => {
            reached.sources.remove(asked);
            let before = is.sources.get(asked);
            reached.sources.extend(before.map(|given| (*asked, *given)));
        }
        // Half of it may be there: it is made again, or taken off, whatever was there before.
        Change::SetUplink(link)
        | Change::Attach(link)
        | Change::SetObserved(link)
        | Change::Observe(link) => lose(reached, link.ifindex, &link.name),
        Change::Detach { ifindex, name } => lose(reached, *ifindex, name),
        Change::AttachPods { ifindex, .. } => drop(reached.pod_links.remove(ifindex)),
        Change::DetachPods { ifindex, name } => {
            // Under its new name it is about to be attached to again.
            reached
                .pod_links
                .entry(*ifindex)
                .or_insert_with(|| name.clone());
        }
    }
}

fn lose(reached: &mut State, ifindex: u32, name: &str) {
    reached.uplinks.remove(&ifindex);
    reached.observed.remove(&ifindex);
    reached.unknown.insert(ifindex, name.to_owned());
}

#[cfg(test)]
mod tests {
    use super::super::PolicyRule;
    use super::super::tests::{uplink, wanted};
    use super::{Backend, Change, State, execute};
    use crate::uplinks::{Asked, Given, Mac, Uplink};
    use anyhow::{Result, bail};
    use std::collections::{BTreeMap, BTreeSet};
    use std::net::IpAddr;

    /// What a kernel would have. One call fails, before it has done anything or after.
    #[derive(Debug, Clone, Default, PartialEq)]
    struct Kernel {
        policy: Option<Vec<PolicyRule>>,
        local: BTreeSet<IpAddr>,
        macs: BTreeSet<Mac>,
        sources: BTreeMap<Asked, Given>,
        /// Entries of interfaces, and whether they are only observed.
        entries: BTreeMap<u32, (Uplink, bool)>,
        /// Programs on interfaces, and whether they only observe.
        attached: BTreeMap<u32, bool>,
        pods: BTreeMap<u32, String>,
    }

    struct Fake {
        kernel: Kernel,
        /// How many calls are made until one fails; `None` once it has, or where none does.
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

    /// A change of several parts may have failed in the last one.
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

    /// What the kernel has once all of it is made.
    fn kernel_of(state: &State) -> Kernel {
        let mut fake = Fake::well(Kernel::default());
        let done = execute(&State::default(), state, &mut fake);
        assert!(done.steps.iter().all(|step| step.error.is_none()));
        assert_eq!(done.reached, *state);
        fake.kernel
    }

    /// States that differ in everything.
    fn states() -> Vec<State> {
        let mut other = wanted();
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
        let mut moved = wanted();
        moved.uplinks.get_mut(&2).unwrap().v4 = Some([10, 0, 0, 9].into());
        moved.observed = [(3, uplink(3))].into();
        let mut bare = wanted();
        bare.uplinks.clear();
        bare.sources.clear();
        bare.pod_links.clear();
        vec![State::default(), wanted(), other, moved, bare]
    }

    /// Whatever fails on the way from one state to another, the next execution makes up for it, also if
    /// something else is wanted by then.
    #[test]
    fn whatever_fails_is_made_up_for() {
        let all = states();
        let targets: Vec<_> = all.iter().filter(|state| state.policy.is_some()).collect();
        let mut failures = 0;
        for (is, wanted) in all
            .iter()
            .flat_map(|is| targets.iter().map(move |to| (is, to)))
        {
            for (nth, after) in (0..).flat_map(|nth| [(nth, false), (nth, true)]) {
                let mut fake = Fake::well(kernel_of(is));
                (fake.fails_in, fake.after) = (Some(nth), after);
                let first = execute(is, wanted, &mut fake);
                if first.steps.iter().all(|step| step.error.is_none()) {
                    assert_eq!(first.reached, **wanted);
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
        let failed = execute(&State::default(), &wanted(), &mut fake);
        assert_eq!(failed.steps.len(), 1);
        assert_eq!(failed.reached, State::default());
        assert_eq!(fake.kernel, Kernel::default());
    }

    #[test]
    fn with_an_earlier_policy_the_rest_is_made() {
        let mut other = wanted();
        other.policy = Some(Vec::new());
        other.uplinks.insert(3, uplink(3));
        let mut fake = Fake::well(kernel_of(&wanted()));
        fake.fails_in = Some(0);
        let failed = execute(&wanted(), &other, &mut fake);
        assert_eq!(failed.reached.policy, wanted().policy);
        assert_eq!(failed.reached.uplinks, other.uplinks);
        assert!(fake.kernel.attached.contains_key(&3));
    }
}
