//! Size of the conntrack table, which all beds share.

use anyhow::{Context as _, Result};
use std::fs;

/// Maximum number of entries in the conntrack table, which all beds share.
const MAX_TRACKED: u32 = 16_777_216;

/// Settings of the kernel's conntrack table, which all namespaces share; restored when dropped.
pub struct Tracking {
    max: String,
    buckets: String,
}

const MAX: &str = "/proc/sys/net/netfilter/nf_conntrack_max";
const BUCKETS: &str = "/proc/sys/net/netfilter/nf_conntrack_buckets";

/// Hash buckets for all beds together if each has very many flows: a table sized for one node would
/// have chains of dozens of entries.
const MANY_BUCKETS: u32 = 1 << 22;

/// Number of hash buckets of the conntrack table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Buckets {
    /// The one before the measurements.
    Original,
    /// [`MANY_BUCKETS`].
    Many,
}

impl Tracking {
    /// Raises the limit to the connections of all beds.
    pub fn enlarge() -> Result<Self> {
        let max = fs::read_to_string(MAX).context(MAX)?;
        let buckets = fs::read_to_string(BUCKETS).context(BUCKETS)?;
        fs::write(MAX, MAX_TRACKED.to_string()).context(MAX)?;
        Ok(Self { max, buckets })
    }

    /// Sets the number of buckets.
    pub fn set_buckets(&self, buckets: Buckets) -> Result<()> {
        let number = match buckets {
            Buckets::Original => self.buckets.clone(),
            Buckets::Many => MANY_BUCKETS.to_string(),
        };
        fs::write(BUCKETS, number).context(BUCKETS)
    }

    /// Returns a function that restores the settings.
    pub fn restorer(&self) -> impl Fn() + Send + Sync + 'static {
        let (max, buckets) = (self.max.clone(), self.buckets.clone());
        move || {
            let _ = fs::write(BUCKETS, &buckets);
            let _ = fs::write(MAX, &max);
        }
    }
}

impl Drop for Tracking {
    fn drop(&mut self) {
        self.restorer()();
    }
}
