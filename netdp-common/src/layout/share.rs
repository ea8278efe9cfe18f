//! The usage of the tables that all pods share, by bucket.

/// The number of buckets. Any two pods share one with a probability of 1 in 16,384.
pub const SHARE_BUCKETS: u32 = 16_384;

/// The index of the total over all pods.
pub const SHARE_TOTAL: u32 = SHARE_BUCKETS;

/// The number of entries in the maps of shares.
pub const SHARE_ENTRIES: usize = SHARE_BUCKETS as usize + 1;

/// Value of the `shares` map: the usage of the pods of one bucket. Written by the programs.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Share {
    /// Mappings created minus those that programs ended (wrapping).
    pub opened: u64,
    /// Inbound flows recorded as live minus those that programs ended (wrapping).
    pub inbound: u64,
    /// Tokens: new mappings that may begin now.
    pub tokens: u32,
    /// The time at which tokens were last added, in ticks.
    pub filled_at: u32,
    /// Verdicts of datagrams stored in the tick `fragments_at`.
    pub fragments: u32,
    /// The tick in which `fragments` were counted.
    pub fragments_at: u32,
    /// Refusals that were answered in the tick `answered_at`.
    pub answered: u32,
    /// The tick in which `answered` were counted.
    pub answered_at: u32,
    /// Index of the interface behind which the last verified pod is reached and from which it
    /// sends.
    pub ifindex: u32,
    /// That pod, identified by its [`crate::slot::Key::tag`].
    pub tag: u32,
    /// The epoch of the settings in which it was verified.
    pub epoch: u32,
    /// Flows of the node itself recorded in the tick `notes_at`.
    pub notes: u32,
    /// The tick in which `notes` were counted.
    pub notes_at: u32,
    /// In the total: when a flow last found no free port, in ticks.
    pub refused_at: u32,
}

/// Value of the `shares_ended` map: entries of a bucket that the agent ended, or found to be gone.
/// Written by the agent.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ShareEnded {
    /// Mappings ended or gone (wrapping).
    pub mappings: u64,
    /// Live inbound flows ended or gone (wrapping).
    pub inbound: u64,
}
