//! The kernel's connection tracking over netlink: connections that netfilter translates, and the
//! handover of mappings to it.
//!
//! Messages: include/uapi/linux/netfilter/nfnetlink_conntrack.h; their handling by the kernel:
//! net/netfilter/nf_conntrack_netlink.c.

mod events;
mod flow;
mod message;
mod socket;

#[cfg(test)]
mod tests;

pub(crate) use events::{EventBatch, Events};
pub use flow::{Flow, NfTcpState, NfTuple};
pub use socket::Conntrack;
