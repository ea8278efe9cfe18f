//! `/livez` and `/readyz`, for the kubelet.

use super::{AgentStatus, Heartbeat};
use crate::http::{Response, Routes};
use hyper::StatusCode;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;

/// Age of the last heartbeat from which the loop counts as hung: it turns at least with each sweep,
/// every five seconds, and the longest sweep measured took less than two.
const HANG_AFTER: Duration = Duration::from_secs(30);

/// Adds the paths of the probes.
pub(super) fn probes(
    routes: Routes,
    heartbeat: Arc<Heartbeat>,
    status: watch::Receiver<AgentStatus>,
) -> Routes {
    routes
        .quick("/livez", move |_| {
            let (status, text) = live(heartbeat.age());
            Response::text(status, text)
        })
        .quick("/readyz", move |_| {
            let (status, text) = ready(&status.borrow());
            Response::text(status, text)
        })
}

fn live(age: Duration) -> (StatusCode, String) {
    if age < HANG_AFTER {
        return (StatusCode::OK, "ok: the agent's event loop runs\n".into());
    }
    let text = format!(
        "the agent's event loop has been stuck for {} s\n",
        age.as_secs()
    );
    (StatusCode::SERVICE_UNAVAILABLE, text)
}

fn ready(status: &AgentStatus) -> (StatusCode, String) {
    if status.unready.is_empty() {
        let place = match status.uplinks.as_slice() {
            // iptables mode has no uplinks.
            [] => "by iptables rules".into(),
            uplinks => format!("on {}", uplinks.join(", ")),
        };
        let (hash, source) = (&status.hash, &status.source);
        let mut text = format!("ok: config {hash} from {source} in force {place}\n");
        if let Some(no_ebpf) = &status.no_ebpf {
            text += &format!(
                "iptables mode, because eBPF does not work here: {}\n",
                no_ebpf.why
            );
        }
        return (StatusCode::OK, text);
    }
    let text = format!("not ready: {}\n", status.unready.join("\nnot ready: "));
    (StatusCode::SERVICE_UNAVAILABLE, text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loop_that_hangs_is_dead() {
        assert_eq!(live(Duration::from_secs(29)).0, StatusCode::OK);
        let (status, text) = live(Duration::from_secs(31));
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        assert!(text.contains("31 s"), "{text}");
    }
}
