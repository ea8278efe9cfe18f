//! The cases, named after the line of the requirements that they prove.

pub mod buffers;
pub mod devices;
pub mod errors;
pub mod fragments;
pub mod hairpin;
pub mod invalid;
pub mod lifecycle;
pub mod node_errors;
pub mod ports;
pub mod protocols;
pub mod queries;
pub mod racing;
pub mod rewriting;
pub mod sharing;
pub mod timers;
pub mod translate;
