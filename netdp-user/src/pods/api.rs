//! Claims that the Kubernetes API tells of, handed from the thread that follows it to the recorder.

use super::index::Claim;
use super::recorder::Wake;
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, PoisonError};

/// The latest claims. Clones share them.
#[derive(Debug, Clone, Default)]
pub(crate) struct ApiClaims(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    /// `None` until the pods have been listed once.
    claims: Option<Vec<Claim>>,
    /// The recorder, once it runs.
    recorder: Option<SyncSender<Wake>>,
}

impl ApiClaims {
    /// Replaces the claims, and wakes the recorder.
    pub(crate) fn set(&self, claims: Vec<Claim>) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.claims = Some(claims);
        if let Some(recorder) = &state.recorder {
            // A full channel means that it is about to look.
            let _ = recorder.try_send(Wake::Changed);
        }
    }

    /// Returns the claims; `None` until they are known.
    pub(super) fn get(&self) -> Option<Vec<Claim>> {
        let state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.claims.clone()
    }

    /// Wakes this recorder from now on.
    pub(super) fn wake(&self, recorder: SyncSender<Wake>) {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.recorder = Some(recorder);
    }
}
