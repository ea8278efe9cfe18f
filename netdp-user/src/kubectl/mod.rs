//! `kubectl netdp`: netdp's commands on the nodes of a cluster, from where kubectl works. They run in
//! the agents' pods by `kubectl exec`, with the rights of whoever calls.

mod complete;
mod destination;
mod find;
mod owners;
mod run;
mod service;

pub(crate) use complete::complete;
pub(crate) use find::{Agent, Agents, Found, List, Where};
pub(crate) use owners::{address, ask};
pub(crate) use run::{Kubectl, stream_to};
pub(crate) use service::{Ask, find as find_service};

/// Name under which kubectl finds the program as its plugin.
pub(crate) const NAME: &str = "kubectl-netdp";

/// Name under which kubectl asks it for completions.
pub(crate) const COMPLETE_NAME: &str = "kubectl_complete-netdp";
