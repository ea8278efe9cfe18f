//! The cluster's own networks, for `autoNonMasquerade`.

use super::Agent;
use super::api;
use crate::config::{AutoApi, AutoKinds};
use std::time::{Duration, Instant};

/// Time that the first configuration waits for networks that no earlier agent left: until they are
/// known, pods of other nodes would see the node's address.
const FIRST_ANSWER: Duration = Duration::from_secs(2);

/// The least time between two changes that only other networks of the cluster cause: each costs a new
/// policy, and while a cluster grows there may be many in a row.
const FOLLOW_EVERY: Duration = Duration::from_secs(5);

/// Time at which the policy last followed a change of networks, and whether another one waits.
#[derive(Debug, Default)]
pub(super) struct Followed {
    at: Option<Instant>,
    waits: bool,
}

impl Followed {
    /// Reports whether a change may be followed at `now`; otherwise it waits.
    pub(super) fn may_follow(&mut self, now: Instant) -> bool {
        let is_too_soon = |at: Instant| now.duration_since(at) < FOLLOW_EVERY;
        self.waits = self.at.is_some_and(is_too_soon);
        if !self.waits {
            self.at = Some(now);
        }
        !self.waits
    }
}

impl Agent {
    /// Follows a change that had to wait.
    pub(super) fn follow_waiting_networks(&mut self) {
        if std::mem::take(&mut self.followed.waits) {
            self.reload();
        }
    }

    /// Has the API followed for the networks of these kinds, and no others.
    pub(super) fn want_networks(&self, kinds: &AutoKinds) {
        if let Some(control) = &self.control {
            control.follow_networks(kinds);
        }
    }

    /// Waits up to [`FIRST_ANSWER`] for the networks that the configuration asks for.
    pub(super) async fn await_networks(&mut self) {
        let Ok((_, loaded)) = self.read() else {
            return;
        };
        let kinds = loaded.config.auto;
        self.want_networks(&kinds);
        let answered = async {
            let networks = |agent: &Self| {
                let auto = &agent.options.cluster_cidrs.auto;
                kinds.iter().any(|kind| auto.awaits(*kind))
            };
            while networks(self) {
                api::changed(&mut self.control).await;
                self.sync_api();
            }
        };
        if tokio::time::timeout(FIRST_ANSWER, answered).await.is_err() {
            log::warn!(
                "the Kubernetes API did not say within {FIRST_ANSWER:?} which networks are the \
                 cluster's: they are bypassed once it does"
            );
        }
    }

    /// Takes over the networks of the current view of the API. Those that an earlier agent received
    /// count until it has answered. Returns whether they differ.
    pub(super) fn sync_networks(&mut self) -> bool {
        let view = self.api.view();
        let known = &mut self.options.cluster_cidrs.auto;
        if known.api == AutoApi::NotFollowed {
            return false;
        }
        let mut changed = false;
        for (now, known) in [
            (&view.of_nodes, &mut known.of_nodes),
            (&view.of_services, &mut known.of_services),
        ] {
            if now.is_some() && now != known {
                known.clone_from(now);
                changed = true;
            }
        }
        let api = if view.no_services {
            AutoApi::WithoutServices
        } else {
            AutoApi::Followed
        };
        changed |= known.api != api;
        known.api = api;
        changed
    }

    /// Saves the networks for the next agent, and for `netdp detach`.
    pub(super) fn save_networks(&self) {
        let networks = &self.options.cluster_cidrs.auto;
        let kinds = &self.config.auto;
        let saved: Vec<_> = networks
            .iter()
            .filter(|network| kinds.contains(&network.kind))
            .collect();
        // A file of an agent that was asked for none is not worth writing.
        if saved.is_empty() && kinds.is_empty() {
            return;
        }
        if let Err(err) = self.state_dir.save_last_networks(&saved) {
            log::warn!("{err:#}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_in_a_row_are_followed_together() {
        let mut followed = Followed::default();
        let begin = Instant::now();
        assert!(followed.may_follow(begin), "the first at once");
        for second in 1..5 {
            assert!(!followed.may_follow(begin + Duration::from_secs(second)));
            assert!(followed.waits);
        }
        assert!(followed.may_follow(begin + FOLLOW_EVERY) && !followed.waits);
    }
}
