//! Endpoints: an address and an L4 id.

use super::addr::Addr;

/// An endpoint: an address and an L4 id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Endpoint {
    /// IPv4 or IPv6, network byte order.
    pub addr: Addr,
    /// The port or ICMP identifier, host byte order.
    pub id: u32,
}
