//! The Kubernetes API as a source: ConfigMaps, the Node and the cluster's networks, followed by list
//! and watch.
//!
//! The last known state stays valid while the API is unreachable, denies access or returns garbage.

mod api_error;
mod client;
mod cluster_objects;
mod config_maps;
mod limit;
mod log_throttle;
mod networks;
mod node;
mod object;
mod pods;
mod reflector;
mod view;
mod watch_id;

pub(crate) use api_error::{ApiError, ApiErrorKind, describe};
pub use client::connect;
pub(crate) use client::{KubeOptions, connect_as_user, in_cluster};
pub(crate) use log_throttle::{ApiUser, LogThrottle};
pub(crate) use reflector::random;
pub(crate) use view::{ConfigMapRef, View};

use crate::config::AutoKinds;
use crate::pods::ApiClaims;
use config_maps::ConfigMapStore;
use k8s_openapi::api::core::v1::{ConfigMap, Node};
use kube::{Api, Client};
use node::NodeStore;
use pods::{NodePod, PodStore};
use reflector::Reflector;
use std::sync::Arc;
use tokio::sync::watch;
use view::Shared;
use watch_id::ConfigMapSelection;

/// Follows the objects of `options`, and those that have the networks of the `wanted` kinds, forever,
/// and keeps `view` up to date; with `claims`, also the node's pods, for their names.
pub(crate) async fn follow(
    client: Client,
    options: &KubeOptions,
    view: watch::Sender<View>,
    wanted: watch::Receiver<AutoKinds>,
    throttle: Arc<LogThrottle>,
    claims: Option<ApiClaims>,
) {
    let shared = Arc::new(Shared::new(view, client.clone(), options, throttle));
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), &options.namespace);
    let of = |selection| {
        let store = ConfigMapStore::new(selection, options, Arc::clone(&shared));
        Reflector::new(maps.clone(), store).run()
    };
    let node = async {
        if let Some(name) = &options.node_name {
            let store = NodeStore::new(name, Arc::clone(&shared));
            Reflector::new(Api::<Node>::all(client.clone()), store)
                .run()
                .await;
        }
    };
    let pods = async {
        if let (Some(name), Some(claims)) = (&options.node_name, claims) {
            let store = PodStore::new(name, Arc::clone(&shared), claims);
            Reflector::new(Api::<NodePod>::all(client.clone()), store)
                .run()
                .await;
        }
    };
    let networks = networks::follow(
        client.clone(),
        options.node_name.clone(),
        Arc::clone(&shared),
        wanted,
    );
    let labelled = async {
        if options.labelled {
            of(ConfigMapSelection::Labelled).await;
        } else {
            // Labelled ConfigMaps are not followed: their list is empty and complete.
            shared.set_config_maps(ConfigMapSelection::Labelled, Vec::new());
        }
    };
    tokio::join!(
        of(ConfigMapSelection::Main),
        labelled,
        of(ConfigMapSelection::NatRules),
        node,
        pods,
        networks
    );
}
