//! Sources of the configuration: files and the Kubernetes API.

pub(crate) mod file;
mod interest;
pub mod kube;
mod watch;
