//! The kernel's connection tracking, over netlink: what netfilter translates, and
//! handing a mapping over to it.
//!
//! Messages: include/uapi/linux/netfilter/nfnetlink_conntrack.h; what the kernel makes of them:
//! net/netfilter/nf_conntrack_netlink.c.

mod events;
mod flow;
mod message;
mod socket;

#[cfg(test)]
mod tests;

pub use events::{Events, Heard};
pub use flow::{Ends, Flow, TcpState};
pub use socket::Conntrack;
