//! The node's links, addresses and routes, and the selection of uplinks.
//!
//! `snapshot` reads links, addresses and routes from netlink into plain data; `select`
//! turns that data into uplinks without touching the kernel; `Monitor` reports when both should
//! run again. To miss no change: create the monitor, take a snapshot, act on it, wait for
//! `Monitor::changed`, take the next.

mod address;
mod hint;
mod hook_bypass;
mod macs;
mod masters;
mod missing_address;
mod model;
mod observed;
mod pods;
mod route_classes;
mod select;
mod selection;
mod snapshot;
mod sources;
mod stacked;
mod tunnel;
mod uplink;
mod watch;

#[cfg(test)]
mod tests;

pub(crate) use hint::hint;
pub(crate) use hook_bypass::unhooked_paths;
pub use macs::Mac;
pub(crate) use missing_address::{FormerFamilies, MissingAddress, missing_addresses};
pub use model::LinkLayer;
pub(crate) use model::{AddressScope, LinkAddr, Snapshot, local_addresses};
pub(crate) use pods::pod_links;
pub(crate) use route_classes::RouteFilter;
pub(crate) use select::select;
pub(crate) use selection::{Patterns, Selection};
pub(crate) use snapshot::addresses;
pub(crate) use sources::Sources;
pub use sources::{SourceChoice, SourceQuery};
pub(crate) use tunnel::Tunnel;
pub use uplink::Uplink;
pub(crate) use watch::Monitor;
