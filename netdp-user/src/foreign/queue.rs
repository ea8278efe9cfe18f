//! Scans beside the agent's loop: programs take long to print many rules.

use super::{NatContext, NatFindings, Redirects, ScanResult, scan};
use tokio::task::JoinHandle;

/// A queue of scans, of which one runs at a time.
#[derive(Debug, Default)]
pub(crate) struct ScanQueue {
    running: Option<JoinHandle<ScanResult>>,
    /// Context of a scan that was requested while one was running.
    next: Option<NatContext>,
}

impl ScanQueue {
    /// Requests a new scan.
    pub(crate) fn request(&mut self, context: NatContext) {
        if self.running.is_some() {
            self.next = Some(context);
        } else {
            self.running = Some(tokio::task::spawn_blocking(move || scan(&context)));
        }
    }

    /// Waits for the result of a scan; forever if none was requested. Dropping the future loses
    /// nothing.
    pub(crate) async fn result(&mut self) -> ScanResult {
        let Some(running) = &mut self.running else {
            return std::future::pending().await;
        };
        let scanned = running.await;
        self.running = None;
        if let Some(context) = self.next.take() {
            self.request(context);
        }
        scanned.unwrap_or_else(|err| {
            let unread = vec![format!("reading third-party NAT rules: {err}")];
            let redirects = Redirects {
                unread: unread.clone(),
                failed: ["nft", "legacy", "nftables"].map(str::to_owned).into(),
                ..Redirects::default()
            };
            let findings = NatFindings {
                unread,
                ..NatFindings::default()
            };
            ScanResult {
                findings,
                redirects,
            }
        })
    }
}
