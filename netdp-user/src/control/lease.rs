//! The node's Lease: what `netdp fleet` and kubectl show of it.

use super::{Told, lease_name};
use crate::sources::kube::{KubeOptions, View, describe, random};
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until, timeout};

/// How often it is renewed though nothing changed.
const RENEW: Duration = Duration::from_secs(60);

/// After this many seconds without renewal it says nothing any more.
pub const DURATION_SECONDS: u32 = 150;

/// How soon a write that failed is tried again.
const AGAIN: Duration = Duration::from_secs(10);

/// Keeps the Lease up to date for ever; without a node's name there is none.
pub(super) async fn keep(
    client: Client,
    options: &KubeOptions,
    mut told: watch::Receiver<Told>,
    view: watch::Receiver<View>,
) {
    let Some(node) = &options.node_name else {
        return;
    };
    let api: Api<Lease> = Api::namespaced(client, &options.lease_namespace);
    let mut written = Told::default();
    let mut due = Instant::now();
    let mut failed = false;
    loop {
        tokio::select! {
            changed = told.changed() => if changed.is_err() { return },
            () = sleep_until(due) => {}
        }
        let mut now = told.borrow_and_update().clone();
        // The figures that change all the time wait for the renewal.
        let figures = (written.mappings, written.no_free_port);
        let mut same = now.clone();
        (same.mappings, same.no_free_port) = figures;
        if now.version.is_empty() || (same == written && Instant::now() < due) {
            continue;
        }
        // The nodes of a cluster do not write all at once.
        sleep(Duration::from_secs_f64(random())).await;
        now = told.borrow_and_update().clone();
        let uid = view.borrow().node.as_ref().map(|node| node.uid.clone());
        match write(&api, node, &lease(node, uid.as_deref(), &now)).await {
            Ok(()) => {
                if failed {
                    log::info!("the Lease {} is kept again", lease_name(node));
                }
                failed = false;
                written = now;
                due = Instant::now() + RENEW.mul_f64(0.9 + 0.2 * random());
            }
            Err(error) => {
                if !failed {
                    log::warn!(
                        "writing the Lease {}/{}: {error}; all else goes on",
                        options.lease_namespace,
                        lease_name(node)
                    );
                }
                failed = true;
                due = Instant::now() + AGAIN;
                written = now;
            }
        }
    }
}

async fn write(api: &Api<Lease>, node: &str, lease: &Value) -> Result<(), String> {
    const PATIENCE: Duration = Duration::from_secs(10);
    let params = PatchParams::apply("netdp").force();
    let patch = Patch::Apply(lease);
    match timeout(PATIENCE, api.patch(&lease_name(node), &params, &patch)).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(describe(&error)),
        Err(_) => Err("the API is silent".into()),
    }
}

fn lease(node: &str, node_uid: Option<&str>, told: &Told) -> Value {
    let mut errors = told.unready.clone();
    errors.extend(told.rejected.iter().cloned());
    errors.dedup();
    let mut errors = errors.join("; ");
    errors.truncate(errors.floor_char_boundary(1024));
    let applied_at = i64::try_from(told.applied_at).unwrap_or_default();
    let applied_at = Timestamp::from_second(applied_at).unwrap_or_default();
    // With the Node goes its Lease.
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
                "netdp.io/version": told.version,
                "netdp.io/mode": told.mode,
                "netdp.io/config-hash": told.hash,
                "netdp.io/config-generation": told.generation.to_string(),
                "netdp.io/config-source": told.source,
                "netdp.io/applied-at": applied_at.to_string(),
                "netdp.io/ready": told.unready.is_empty().to_string(),
                "netdp.io/mappings": told.mappings.to_string(),
                "netdp.io/errors": errors,
            },
        },
        "spec": {
            "holderIdentity": node,
            "leaseDurationSeconds": DURATION_SECONDS,
            "renewTime": format!("{:.6}", Timestamp::now()),
        },
    })
}
