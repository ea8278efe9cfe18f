//! The Kubernetes API as a source: ConfigMaps and the Node, followed by list and watch.
//!
//! The last known state stays valid while the API is unreachable, denies access or returns garbage.

mod client;
mod follow;
mod limit;
mod maps;
mod node;
mod tell;
mod view;

pub use client::{KubeOptions, connect, connect_as_user, in_cluster};
pub(crate) use follow::{Kind, Trouble, describe, random};
pub(crate) use tell::{Asker, Teller};
pub use view::{MapDocuments, MapRef, NodeFacts, View};

use follow::Follow;
use k8s_openapi::api::core::v1::{ConfigMap, Node};
use kube::{Api, Client};
use maps::{Maps, Which};
use node::TheNode;
use std::sync::Arc;
use tokio::sync::watch;
use view::{Part, Shared};

/// Follows the objects of `options` forever, and keeps `view` up to date.
pub(crate) async fn follow(
    client: Client,
    options: &KubeOptions,
    view: watch::Sender<View>,
    teller: Arc<Teller>,
) {
    let shared = Arc::new(Shared::new(view, client.clone(), options, teller));
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), &options.namespace);
    let of = |which| {
        let set = Maps::new(which, options, Arc::clone(&shared));
        Follow::new(maps.clone(), set).run()
    };
    let node = async {
        if let Some(name) = &options.node_name {
            let set = TheNode::new(name, Arc::clone(&shared));
            Follow::new(Api::<Node>::all(client), set).run().await;
        }
    };
    let labelled = async {
        if options.labelled {
            of(Which::Labelled).await;
        } else {
            // Labelled ConfigMaps are not followed: their list is empty and complete.
            shared.set_maps(Part::Labelled, Vec::new());
        }
    };
    tokio::join!(of(Which::Main), labelled, of(Which::NatRules), node);
}
