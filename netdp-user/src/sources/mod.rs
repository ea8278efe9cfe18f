//! Where configurations come from.

pub mod file;
mod interest;
pub mod kube;
mod watch;
