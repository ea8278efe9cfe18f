//! Sources of the configuration: files and the Kubernetes API.

pub mod file;
mod interest;
pub mod kube;
mod watch;
