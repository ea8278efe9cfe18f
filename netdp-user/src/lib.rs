//! The agent.
pub mod uplinks;
