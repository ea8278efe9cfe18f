//! Filters of a clsact qdisc, for kernels without TCX (before Linux 6.6). Ours precede all
//! third-party ones, as far as preferences allow: a filter that returns `TC_ACT_OK` ends the walk
//! of the list (docs/adr/0035).

use super::filter::{self, Filter, HANDLES};
use super::hook::{Device, Hook};
use anyhow::{Context as _, Result, bail};
use aya::programs::SchedClassifier;
use aya::programs::links::Link as _;
use aya::programs::tc::{
    NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle, qdisc_add_clsact,
};

/// Replaces our filter's program, or adds a filter ahead of all others.
///
/// # Errors
/// Returns an error if no preference is left for it, or the kernel refuses.
pub fn attach(program: &mut SchedClassifier, hook: Hook, device: Device<'_>) -> Result<()> {
    let Device { ifindex, name } = device;
    // Fails if the qdisc exists already, which is fine.
    let added = qdisc_add_clsact(name);
    // A qdisc of kind ingress would accept both filters, and run both at ingress.
    match filter::qdisc(ifindex)?.as_deref() {
        Some("clsact") => {}
        Some(kind) => bail!(
            "{name} has a qdisc {kind}, where clsact would be: remove it (tc qdisc del dev {name} \
             ingress), or use --attach tcx"
        ),
        None => {
            added.with_context(|| format!("adding the clsact qdisc to {name}"))?;
            bail!(
                "{name} has no clsact qdisc, although the kernel accepted one: find what removes it (tc \
                 monitor), or use --attach tcx"
            );
        }
    }
    let filters = filter::list(ifindex, hook)?;
    let Some(ours) = filters.iter().find(|filter| filter.is_ours()) else {
        return add(program, hook, device, &filters);
    };
    let at = link(ours, hook, name)?;
    match program.attach_to_link(at) {
        Ok(id) => {
            // Dropping the link would remove the filter, which must outlive the agent.
            std::mem::forget(program.take_link(id)?);
        }
        // It is gone by now.
        Err(_) => add(program, hook, device, &[])?,
    }
    // An agent that ended while its filter was overtaking others has left the old one behind too.
    for surplus in filters.iter().filter(|filter| filter.is_ours()).skip(1) {
        link(surplus, hook, name)?.detach()?;
    }
    Ok(())
}

/// Moves our filter ahead of those that precede it. The new one is attached before the old one
/// goes, so every packet meets at least one.
///
/// # Errors
/// Returns an error if no preference is left ahead of theirs, or the kernel refuses.
pub fn overtake(program: &mut SchedClassifier, hook: Hook, device: Device<'_>) -> Result<()> {
    let filters = filter::list(device.ifindex, hook)?;
    if !can_overtake(&filters) {
        bail!("no preference is left before theirs");
    }
    add(program, hook, device, &filters)?;
    for old in filters.iter().filter(|filter| filter.is_ours()) {
        link(old, hook, device.name)?.detach()?;
    }
    Ok(())
}

/// Reports whether there is a place ahead of the filters that precede ours.
pub fn can_overtake(filters: &[Filter]) -> bool {
    let Some(at) = filters.iter().position(Filter::is_ours) else {
        return true;
    };
    let (preference, _) = front(filters);
    let others = filters.get(..at).unwrap_or_default();
    others
        .first()
        .is_some_and(|first| preference < first.preference || first.admits_ours())
}

/// Returns the preference and the handle by which a filter comes first. Preferences begin at 1; one
/// that has filters of another kind or protocol can't be shared.
fn front(filters: &[Filter]) -> (u16, u32) {
    let is_free = |preference: &u16| {
        let there = filters.iter().find(|f| f.preference == *preference);
        there.is_none_or(Filter::admits_ours)
    };
    let preference = (1..=u16::MAX).find(is_free).unwrap_or(u16::MAX);
    let is_taken = filters
        .iter()
        .any(|f| f.preference == preference && f.handle == HANDLES[0]);
    (preference, HANDLES[usize::from(is_taken)])
}

fn add(
    program: &mut SchedClassifier,
    hook: Hook,
    device: Device<'_>,
    filters: &[Filter],
) -> Result<()> {
    let (priority, handle) = front(filters);
    let options = TcAttachOptions::Netlink(NlOptions {
        priority,
        handle: TcHandle::from(handle),
        classid: None,
    });
    let id = program
        .attach_with_options(device.name, hook.attach_type(), options)
        .with_context(|| format!("adding the clsact {hook:?} filter"))?;
    // The filter must outlive the agent, as above.
    std::mem::forget(program.take_link(id)?);
    Ok(())
}

fn link(filter: &Filter, hook: Hook, name: &str) -> Result<SchedClassifierLink> {
    let handle = TcHandle::from(filter.handle);
    let at = hook.attach_type();
    SchedClassifierLink::attached(name, at, filter.preference, handle, None)
        .with_context(|| format!("querying the index of {name}"))
}

/// Reports whether our filter is at an interface's hook.
pub fn is_there(name: &str, hook: Hook) -> bool {
    let ifindex = nix::net::if_::if_nametoindex(name).unwrap_or_default();
    let filters = filter::list(ifindex, hook).unwrap_or_default();
    filters.iter().any(Filter::is_ours)
}

/// Removes our filters, and none but ours, from an interface's clsact qdisc. Reports whether there
/// was one.
pub fn remove(name: &str, hook: Hook) -> bool {
    remove_those(name, hook, |_| true)
}

/// Removes those of our filters that run this program. Reports whether there was one.
pub fn remove_program(name: &str, hook: Hook, program: u32) -> bool {
    remove_those(name, hook, |filter| filter.program == Some(program))
}

fn remove_those(name: &str, hook: Hook, which: impl Fn(&Filter) -> bool) -> bool {
    let Ok(ifindex) = nix::net::if_::if_nametoindex(name) else {
        return false;
    };
    let filters = filter::list(ifindex, hook).unwrap_or_default();
    let mut removed = false;
    for ours in filters.iter().filter(|it| it.is_ours() && which(it)) {
        removed |= link(ours, hook, name).is_ok_and(|link| link.detach().is_ok());
    }
    removed
}

#[cfg(test)]
mod tests {
    use super::{can_overtake, front};
    use crate::datapath::filter::{Filter, HANDLES};

    fn filter(preference: u16, handle: u32, kind: &str, all_protocols: bool) -> Filter {
        Filter {
            preference,
            handle,
            all_protocols,
            kind: kind.into(),
            program: None,
            name: String::new(),
        }
    }

    #[test]
    fn a_filter_comes_first_as_far_as_preferences_go() {
        let [ours, second] = HANDLES;
        assert_eq!(front(&[]), (1, ours));
        // Ahead of others of its kind, also at its own preference.
        assert_eq!(front(&[filter(1, 1, "bpf", true)]), (1, ours));
        assert_eq!(front(&[filter(1, ours, "bpf", true)]), (1, second));
        assert_eq!(front(&[filter(49_152, 1, "bpf", true)]), (1, ours));
        // One preference has one kind and one protocol.
        let matchall = filter(1, 1, "matchall", true);
        assert_eq!(front(std::slice::from_ref(&matchall)), (2, ours));
        assert_eq!(front(&[filter(1, 1, "bpf", false)]), (2, ours));
        let old = filter(40_960, ours, "bpf", true);
        let automatic = filter(40_959, 1, "bpf", true);
        assert!(can_overtake(&[automatic, old.clone()]));
        assert!(can_overtake(&[
            filter(1, 1, "bpf", true),
            filter(1, ours, "bpf", true)
        ]));
        assert!(!can_overtake(&[matchall, old]));
    }
}
