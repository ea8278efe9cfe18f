//! Names of pods.

use anyhow::{Result, bail};
use std::net::IpAddr;

/// A source of the names of this node's pods.
pub(crate) trait PodNames {
    /// Returns the addresses of a pod, given as `namespace/pod`.
    ///
    /// # Errors
    /// Returns an error if no such pod is known.
    fn addresses_of(&self, pod: &str) -> Result<Vec<IpAddr>>;

    /// Returns the pod that has an address, as `namespace/pod`.
    fn name_of(&self, address: IpAddr) -> Option<String>;
}

/// A source that knows none.
pub(crate) struct NoNames;

impl PodNames for NoNames {
    fn addresses_of(&self, pod: &str) -> Result<Vec<IpAddr>> {
        bail!(
            "{pod}: the names of pods are not known here; give the pod's address, as `kubectl get pod \
             -o wide` prints it"
        )
    }

    fn name_of(&self, _: IpAddr) -> Option<String> {
        None
    }
}
