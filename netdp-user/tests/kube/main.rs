//! The agent with a real Kubernetes API server and the manifests' ServiceAccount and RBAC.

#[path = "../common/mod.rs"]
#[allow(dead_code, unused_imports, reason = "the tests of nodes have the rest")]
mod common;

mod cluster;
mod events;
mod faults;
mod fleet;
mod health;
mod kube_proxy;
mod networks;
mod plugin;
mod pods;
mod proxy;
mod rbac;
mod soak;
mod sources;
mod start;
