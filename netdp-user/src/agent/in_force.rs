//! State of the configuration: the one in force, and the one that waits for the chains.

use super::memory::PolicyCount;
use crate::config::{Diagnostic, Document};

/// Source of the configuration in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Source {
    /// Files and, if it is followed, the Kubernetes API: the desired configuration.
    Sources,
    Defaults,
    LastGood,
}

/// The configuration in force, and the state of its sources.
#[derive(Debug)]
pub(super) struct InForce {
    /// Source of the configuration.
    pub source: Source,
    /// Its source, in words.
    pub source_name: String,
    /// Names of the documents that were read.
    pub files: Vec<String>,
    /// Hash, generation and time of its policy.
    pub policy: PolicyCount,
    /// Warnings about the configuration.
    pub warnings: Vec<String>,
    /// Reasons why the current documents were rejected.
    pub rejected: Vec<String>,
}

/// A configuration to accept once the chains have been written.
#[derive(Debug)]
pub(super) struct Deferred {
    pub documents: Vec<Document>,
    pub warnings: Vec<Diagnostic>,
    pub notes: Vec<Diagnostic>,
}

impl InForce {
    /// Returns the state before the first configuration, continuing the count of an earlier agent's
    /// policies.
    pub(super) const fn after(policy: PolicyCount) -> Self {
        Self {
            source: Source::Defaults,
            source_name: String::new(),
            files: Vec::new(),
            policy,
            warnings: Vec::new(),
            rejected: Vec::new(),
        }
    }
}
