//! Addresses in place of others. Two addresses that share a prefix are replaced by two that share one
//! of the same length, so that policies and routes stay readable (prefix-preserving, as Crypto-PAn),
//! and every address stays in its kind of network: private, shared, documentation, global.

use std::hash::{BuildHasher as _, RandomState};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A network of IPv4 that replacements do not leave, as address and prefix length.
type KindV4 = (Ipv4Addr, u8);

/// The same of IPv6.
type KindV6 = (Ipv6Addr, u8);

/// Private networks (RFC 1918), shared space (RFC 6598), benchmarks (RFC 2544), documentation (RFC 5737).
const KINDS_V4: [KindV4; 8] = [
    (Ipv4Addr::new(10, 0, 0, 0), 8),
    (Ipv4Addr::new(172, 16, 0, 0), 12),
    (Ipv4Addr::new(192, 168, 0, 0), 16),
    (Ipv4Addr::new(100, 64, 0, 0), 10),
    (Ipv4Addr::new(198, 18, 0, 0), 15),
    (Ipv4Addr::new(192, 0, 2, 0), 24),
    (Ipv4Addr::new(198, 51, 100, 0), 24),
    (Ipv4Addr::new(203, 0, 113, 0), 24),
];

/// Networks whose addresses identify nobody and stay: this network, loopback, link-local (metadata
/// servers), multicast, reserved and netmasks.
const KEPT_V4: [KindV4; 4] = [
    (Ipv4Addr::UNSPECIFIED, 8),
    (Ipv4Addr::new(127, 0, 0, 0), 8),
    (Ipv4Addr::new(169, 254, 0, 0), 16),
    (Ipv4Addr::new(224, 0, 0, 0), 3),
];

/// Unique local, link-local, documentation, NAT64 and global addresses.
const KINDS_V6: [KindV6; 6] = [
    (Ipv6Addr::new(0xfc00, 0, 0, 0, 0, 0, 0, 0), 8),
    (Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0), 8),
    (Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10),
    (Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0), 32),
    (Ipv6Addr::new(0x64, 0xff9b, 0, 0, 0, 0, 0, 0), 96),
    (Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 0), 3),
];

/// Unspecified and loopback addresses; multicast.
const KEPT_V6: [KindV6; 2] = [
    (Ipv6Addr::UNSPECIFIED, 96),
    (Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0), 8),
];

/// Returns the first `len` bits of a 128-bit number.
const fn first(bits: u128, len: u8) -> u128 {
    match len {
        0 => 0,
        len => bits & (u128::MAX << (128 - len)),
    }
}

/// A network, by its first bits.
#[derive(Debug, Clone, Copy)]
struct Net {
    bits: u128,
    len: u8,
}

impl Net {
    const fn v4(net: KindV4) -> Self {
        Self {
            bits: left(net.0),
            len: net.1,
        }
    }

    const fn v6(net: KindV6) -> Self {
        Self {
            bits: net.0.to_bits(),
            len: net.1,
        }
    }

    fn contains(&self, bits: u128) -> bool {
        first(bits, self.len) == self.bits
    }
}

/// Returns an IPv4 address as the first bits of a number.
const fn left(address: Ipv4Addr) -> u128 {
    (address.to_bits() as u128) << 96
}

/// The replacement of addresses, with a key of its own.
#[derive(Debug)]
pub(super) struct Addresses {
    key: RandomState,
    kinds: [Vec<Net>; 2],
    kept: [Vec<Net>; 2],
}

impl Addresses {
    pub(super) fn new() -> Self {
        Self {
            key: RandomState::new(),
            kinds: [
                KINDS_V4.map(Net::v4).to_vec(),
                KINDS_V6.map(Net::v6).to_vec(),
            ],
            kept: [KEPT_V4.map(Net::v4).to_vec(), KEPT_V6.map(Net::v6).to_vec()],
        }
    }

    /// Returns what stands for an address, of which the first `len` bits are replaced.
    pub(super) fn replace(&self, address: IpAddr, len: u8) -> IpAddr {
        match address {
            IpAddr::V4(v4) => self.v4(v4, len.min(32)).into(),
            IpAddr::V6(v6) => match v6.to_ipv4_mapped() {
                Some(v4) => self
                    .v4(v4, len.saturating_sub(96).min(32))
                    .to_ipv6_mapped()
                    .into(),
                None => Ipv6Addr::from_bits(self.bits(1, v6.to_bits(), len.min(128))).into(),
            },
        }
    }

    fn v4(&self, address: Ipv4Addr, len: u8) -> Ipv4Addr {
        let [a, b, c, d, ..] = self.bits(0, left(address), len).to_be_bytes();
        Ipv4Addr::new(a, b, c, d)
    }

    /// Replaces the first `len` bits. Whether a bit is flipped depends on those before it; above the
    /// networks that are kinds or kept, none is.
    fn bits(&self, family: usize, bits: u128, len: u8) -> u128 {
        let (kinds, kept) = (&self.kinds[family], &self.kept[family]);
        if kept.iter().any(|net| net.contains(bits)) {
            return bits;
        }
        let mut replaced = bits;
        for at in 0..len {
            let before = first(bits, at);
            let is_above = |net: &Net| net.len > at && first(net.bits, at) == before;
            if kinds.iter().chain(kept).any(is_above) {
                continue;
            }
            if self.key.hash_one((family, at, before)) & 1 == 1 {
                replaced ^= 1 << (127 - at);
            }
        }
        replaced
    }

    /// Returns what stands for a hardware address: a locally administered one.
    pub(super) fn replace_mac(&self, mac: [u8; 6]) -> [u8; 6] {
        if mac == [0; 6] || mac[0] & 1 == 1 {
            return mac;
        }
        let [a, b, c, d, e, ..] = self.key.hash_one(mac).to_be_bytes();
        [2, a, b, c, d, e]
    }

    /// Returns a number that stands for a text.
    pub(super) fn number(&self, text: &str) -> u128 {
        let half = |which: u8| u128::from(self.key.hash_one((which, text)));
        half(0) << 64 | half(1)
    }
}

#[cfg(test)]
mod tests {
    use super::Addresses;
    use ipnet::IpNet;
    use proptest::prelude::*;
    use std::collections::HashSet;
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

    fn common(a: IpAddr, b: IpAddr) -> u32 {
        match (a, b) {
            (IpAddr::V4(a), IpAddr::V4(b)) => (a.to_bits() ^ b.to_bits()).leading_zeros(),
            (IpAddr::V6(a), IpAddr::V6(b)) => (a.to_bits() ^ b.to_bits()).leading_zeros(),
            _ => panic!("{a} and {b}"),
        }
    }

    /// Any two addresses that share some bits.
    fn pairs() -> impl Strategy<Value = (IpAddr, IpAddr)> {
        let v4 = (any::<u32>(), any::<u32>(), 0u32..32).prop_map(|(a, b, shift)| {
            let b = a ^ (b >> shift);
            (Ipv4Addr::from_bits(a).into(), Ipv4Addr::from_bits(b).into())
        });
        let v6 = (any::<u128>(), any::<u128>(), 0u32..128).prop_map(|(a, b, shift)| {
            let (a, b) = (
                Ipv6Addr::from_bits(a),
                Ipv6Addr::from_bits(a ^ (b >> shift)),
            );
            let is_mapped = |it: Ipv6Addr| it.to_ipv4_mapped().is_some();
            let b = if is_mapped(a) == is_mapped(b) { b } else { a };
            (a.into(), b.into())
        });
        prop_oneof![v4, v6]
    }

    proptest! {
        #[test]
        fn shared_prefixes_stay_shared((a, b) in pairs()) {
            let addresses = Addresses::new();
            let (new_a, new_b) = (addresses.replace(a, 128), addresses.replace(b, 128));
            prop_assert_eq!(common(a, b), common(new_a, new_b));
            prop_assert_eq!(new_a, addresses.replace(a, 128));
        }
    }

    #[test]
    fn addresses_stay_in_their_kind_and_hide() {
        let addresses = Addresses::new();
        for kind in [
            "10.0.0.0/8",
            "172.16.0.0/12",
            "192.168.0.0/16",
            "100.64.0.0/10",
            "203.0.113.0/24",
            "fd00::/8",
            "fe80::/10",
            "2001:db8::/32",
        ] {
            let net: IpNet = kind.parse().unwrap();
            let given = net.hosts().step_by(251).take(64);
            let given: Vec<IpAddr> = given.collect();
            let replaced: HashSet<_> = given.iter().map(|it| addresses.replace(*it, 128)).collect();
            assert_eq!(replaced.len(), given.len(), "{kind}: two are one");
            assert!(replaced.iter().all(|it| net.contains(it)), "{kind}");
            let network = addresses.replace(net.network(), net.prefix_len());
            assert_eq!(network, net.network(), "{kind}");
        }
        let private: [IpNet; 3] =
            ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"].map(|it| it.parse().unwrap());
        for number in 0..2000u32 {
            let public = Ipv4Addr::from_bits(0x2000_0000 + number * 65_537);
            let hidden = addresses.replace(public.into(), 32);
            assert!(!private.iter().any(|net| net.contains(&hidden)), "{public}");
        }
        for kept in [
            "127.0.0.1",
            "0.0.0.0",
            "255.255.255.0",
            "169.254.169.254",
            "::",
            "::1",
            "ff02::1",
        ] {
            let kept: IpAddr = kept.parse().unwrap();
            assert_eq!(addresses.replace(kept, 128), kept);
        }
    }

    #[test]
    fn another_bundle_has_other_addresses() {
        let given: Vec<IpAddr> = (1..=64)
            .map(|n| Ipv4Addr::new(10, 9, 8, n).into())
            .collect();
        let all = |addresses: &Addresses| -> Vec<IpAddr> {
            given.iter().map(|it| addresses.replace(*it, 32)).collect()
        };
        let (one, two) = (all(&Addresses::new()), all(&Addresses::new()));
        assert_ne!(one, two);
        assert_ne!(one, given);
    }

    #[test]
    fn hardware_addresses_become_local_ones() {
        let addresses = Addresses::new();
        let mac = [0x52, 0x54, 0, 1, 2, 3];
        let replaced = addresses.replace_mac(mac);
        assert!(replaced != mac && replaced[0] == 2);
        assert_eq!(addresses.replace_mac([0xff; 6]), [0xff; 6]);
        assert_eq!(addresses.replace_mac([0; 6]), [0; 6]);
    }
}
