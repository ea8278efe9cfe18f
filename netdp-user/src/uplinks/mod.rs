//! The node's links, addresses and routes, and the selection of uplinks.
//!
//! [`snapshot()`] reads links, addresses and routes from netlink into plain data; [`select()`]
//! turns that data into uplinks without touching the kernel; [`Monitor`] reports when both should
//! run again. To miss no change: create the monitor, take a snapshot, act on it, wait for
//! [`Monitor::changed`], take the next.

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

pub use hint::hint;
pub use hook_bypass::unhooked_paths;
pub use macs::Mac;
pub use missing_address::{FormerFamilies, MissingAddress, missing_addresses};
pub use model::{
    AddrFlags, AddressScope, DefaultRoute, Link, LinkAddr, LinkLayer, Route, Snapshot,
    local_addresses,
};
pub use pods::pod_links;
pub use route_classes::RouteFilter;
pub use select::{Selected, select};
pub use selection::{Patterns, Selection};
pub use snapshot::snapshot;
pub use sources::{SourceChoice, SourceQuery, Sources};
pub use tunnel::Tunnel;
pub use uplink::Uplink;
pub use watch::Monitor;
