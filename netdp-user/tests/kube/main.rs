//! The agent with a real Kubernetes API server, over the ServiceAccount and RBAC of the manifests.

#[path = "../common/mod.rs"]
mod common;

mod cluster;
mod events;
mod faults;
mod fleet;
mod health;
mod proxy;
mod rbac;
mod soak;
mod sources;
mod start;
