//! Which bypassed networks answer pods, and which answer the node.

use super::addr::Addr;

/// Entries of `reach`.
pub const REACH: u32 = 8192;

/// Value of `reach`; the key is [`network_of`] the destination. Connections that were begun towards
/// destinations that the policy bypasses, and their answers: TCP SYNs and ICMP queries, repeated ones
/// included; SYN-ACKs, resets of a SYN, and replies to queries.
///
/// CPUs count at the same time without a lock: few of many are lost.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reach {
    /// Begun by pods.
    pub pod_new: u32,
    /// Answers to pods.
    pub pod_answered: u32,
    /// Begun by the node itself.
    pub node_new: u32,
    /// Answers to the node.
    pub node_answered: u32,
}

/// Returns the network of a destination, as far as networks are told apart: /24 of IPv4; of IPv6 /48,
/// the usual size of a site (RFC 6177), and /64 of unique local addresses (RFC 4193), whose sites have
/// a /48 for everything.
#[inline(always)]
#[must_use]
pub const fn network_of(address: &Addr) -> Addr {
    let [a, b, c, d] = address.words();
    if address.is_v4() {
        return Addr::from_words([a, b, c, d & u32::from_ne_bytes([0xff, 0xff, 0xff, 0])]);
    }
    match network_bits(address) {
        48 => Addr::from_words([a, b & u32::from_ne_bytes([0xff, 0xff, 0, 0]), 0, 0]),
        _ => Addr::from_words([a, b, 0, 0]),
    }
}

/// Returns the length of the prefix of [`network_of`], in bits of the address's own family.
#[inline(always)]
#[must_use]
pub const fn network_bits(address: &Addr) -> u8 {
    if address.is_v4() {
        24
    } else if address.octets()[0] & 0xfe == 0xfc {
        64
    } else {
        48
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::net::IpAddr;

    #[test]
    fn networks_are_those_of_sites() {
        for (address, network, bits) in [
            ("10.2.3.4", "10.2.3.0", 24),
            ("0.0.0.1", "0.0.0.0", 24),
            ("2001:db8:1:2:3::4", "2001:db8:1::", 48),
            ("fd00:1:2:3:4::5", "fd00:1:2:3::", 64),
            ("fc00:1:2:3:4::5", "fc00:1:2:3::", 64),
            ("fe00:1:2:3:4::5", "fe00:1:2::", 48),
        ] {
            let addr = Addr::from(address.parse::<IpAddr>().unwrap());
            assert_eq!(
                IpAddr::from(network_of(&addr)),
                network.parse::<IpAddr>().unwrap()
            );
            assert_eq!(network_bits(&addr), bits, "{address}");
        }
    }
}
