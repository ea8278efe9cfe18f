//! Where configurations come from.

pub mod file;
mod interest;
mod watch;
