//! Scans beside the agent's loop: programs take long to print many rules.

use super::{Around, Inward, Look, Seen, look};
use tokio::task::JoinHandle;

/// A queue of scans, of which one runs at a time.
#[derive(Debug, Default)]
pub struct Watch {
    running: Option<JoinHandle<Look>>,
    /// Context of a scan that was requested while one was running.
    next: Option<Around>,
}

impl Watch {
    /// Requests a new scan.
    pub fn ask(&mut self, around: Around) {
        if self.running.is_some() {
            self.next = Some(around);
        } else {
            self.running = Some(tokio::task::spawn_blocking(move || look(&around)));
        }
    }

    /// Waits for the result of a scan; forever if none was requested. Dropping the future loses
    /// nothing.
    pub async fn seen(&mut self) -> Look {
        let Some(running) = &mut self.running else {
            return std::future::pending().await;
        };
        let seen = running.await;
        self.running = None;
        if let Some(around) = self.next.take() {
            self.ask(around);
        }
        seen.unwrap_or_else(|err| {
            let unread = vec![format!("reading third-party NAT rules: {err}")];
            let nat = Inward {
                unread: unread.clone(),
                failed: ["nft", "legacy", "nftables"].map(str::to_owned).into(),
                ..Inward::default()
            };
            let seen = Seen {
                unread,
                ..Seen::default()
            };
            Look { seen, nat }
        })
    }
}
