//! The node's Lease, as shown by `netdp fleet` and kubectl.

use super::{AgentStatus, lease_name};
use crate::sources::kube::{ApiError, ApiUser, KubeOptions, LogThrottle, View, random};
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout};

/// Interval of renewals without a change.
const RENEW: Duration = Duration::from_secs(60);

/// Validity of the Lease without renewal, in seconds.
pub const DURATION_SECONDS: u32 = 150;

/// Pause before a failed write is retried.
const AGAIN: Duration = Duration::from_secs(10);

/// Keeps the Lease up to date forever; without a node name there is none.
pub(super) async fn keep(
    client: Client,
    options: &KubeOptions,
    mut status: watch::Receiver<AgentStatus>,
    view: watch::Receiver<View>,
    throttle: &LogThrottle,
) {
    let Some(node) = &options.node_name else {
        return;
    };
    let api: Api<Lease> = Api::namespaced(client, &options.lease_namespace);
    let mut written = AgentStatus::default();
    let mut due = Instant::now();
    let what = format!(
        "writing the Lease {}/{}",
        options.lease_namespace,
        lease_name(node)
    );
    loop {
        tokio::select! {
            changed = status.changed() => if changed.is_err() { return },
            () = sleep_until(due) => {}
        }
        let mut now = status.borrow_and_update().clone();
        // Counters that change all the time are only written on renewal.
        let mut same = now.clone();
        same.mappings = written.mappings;
        same.refused.clone_from(&written.refused);
        if now.version.is_empty() || (same == written && Instant::now() < due) {
            continue;
        }
        // Spreads the writes of a cluster's nodes.
        sleep(Duration::from_secs_f64(random())).await;
        now = status.borrow_and_update().clone();
        let uid = view.borrow().node.as_ref().map(|node| node.uid.clone());
        match write(&api, node, &lease(node, uid.as_deref(), &now)).await {
            Ok(()) => {
                throttle.record_success(ApiUser::Lease);
                written = now;
                due = Instant::now() + RENEW.mul_f64(0.9 + 0.2 * random());
            }
            Err(trouble) => {
                throttle.record_error(ApiUser::Lease, &trouble.in_operation(&what));
                due = Instant::now() + AGAIN;
                written = now;
            }
        }
    }
}

async fn write(api: &Api<Lease>, node: &str, lease: &Value) -> Result<(), ApiError> {
    const PATIENCE: Duration = Duration::from_secs(10);
    let params = PatchParams::apply("netdp").force();
    let patch = Patch::Apply(lease);
    match timeout(PATIENCE, api.patch(&lease_name(node), &params, &patch)).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(ApiError::of(&error)),
        Err(_) => Err(ApiError::timed_out()),
    }
}

/// Joins lines, none of which has a line break, up to a length of `most` bytes.
fn within(lines: &[String], separator: &str, most: usize) -> String {
    let mut text = lines.join(separator);
    text.truncate(text.floor_char_boundary(most));
    text
}

fn lease(node: &str, node_uid: Option<&str>, status: &AgentStatus) -> Value {
    let mut errors = status.unready.clone();
    errors.extend(status.rejected.iter().cloned());
    errors.dedup();
    let notes = status.notes.iter().map(|note| &note.text);
    let mut warnings: Vec<String> = Vec::new();
    for line in notes.chain(&status.warnings) {
        if !errors.contains(line) && !warnings.contains(line) {
            warnings.push(line.clone());
        }
    }
    let refused: u64 = status.refused.values().sum();
    let applied_at = i64::try_from(status.applied_at).unwrap_or_default();
    let applied_at = Timestamp::from_second(applied_at).unwrap_or_default();
    // The garbage collector deletes the Lease with its Node.
    let owners: Vec<Value> = node_uid
        .map(|uid| json!({"apiVersion": "v1", "kind": "Node", "name": node, "uid": uid}))
        .into_iter()
        .collect();
    json!({
        "apiVersion": "coordination.k8s.io/v1",
        "kind": "Lease",
        "metadata": {
            "name": lease_name(node),
            "labels": {"app.kubernetes.io/name": "netdp"},
            "ownerReferences": owners,
            "annotations": {
                "netdp.io/version": status.version,
                "netdp.io/mode": status.mode,
                "netdp.io/config-hash": status.hash,
                "netdp.io/config-generation": status.generation.to_string(),
                "netdp.io/config-source": status.source,
                "netdp.io/applied-at": applied_at.to_string(),
                "netdp.io/ready": status.unready.is_empty().to_string(),
                "netdp.io/mappings": status.mappings.to_string(),
                "netdp.io/refused": refused.to_string(),
                "netdp.io/errors": within(&errors, "; ", 1024),
                "netdp.io/warnings": within(&warnings, "\n", 4096),
            },
        },
        "spec": {
            "holderIdentity": node,
            "leaseDurationSeconds": DURATION_SECONDS,
            "renewTime": format!("{:.6}", Timestamp::now()),
        },
    })
}
