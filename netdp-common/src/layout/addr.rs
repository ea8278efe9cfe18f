//! IP addresses of both families in one 16-byte form.

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[cfg_attr(feature = "user", derive(serde::Serialize, serde::Deserialize))]
#[repr(u32)]
pub enum Family {
    /// IPv4; its [`Addr`] has the mapped form.
    V4,
    /// IPv6; its [`Addr`] is the address itself.
    V6,
}

impl Family {
    /// Returns the family of an address.
    #[must_use]
    pub const fn of(ip: core::net::IpAddr) -> Self {
        if ip.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

impl core::fmt::Display for Family {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// An IPv4 or IPv6 address in network byte order. IPv4 is stored as `::ffff:a.b.c.d`, so that one
/// key layout, one trie and one program serve both families. Real IPv4-mapped IPv6 never appears on
/// a wire (RFC 4291 2.5.5.2), so the two do not collide; the datapath drops such packets as
/// malformed.
///
/// Alignment 4 lets LLVM copy it by words: the BPF target copies byte arrays of alignment 1 byte by
/// byte.
#[repr(C, align(4))]
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Addr {
    bytes: [u8; 16],
}

impl Addr {
    /// Builds an IPv4 address from its octets.
    #[inline(always)]
    #[must_use]
    pub const fn from_v4(octets: [u8; 4]) -> Self {
        let mapped = u32::from_ne_bytes([0, 0, 0xff, 0xff]);
        Self::from_words([0, 0, mapped, u32::from_ne_bytes(octets)])
    }

    /// Builds an IPv6 address from its octets.
    #[inline(always)]
    #[must_use]
    pub const fn from_v6(octets: [u8; 16]) -> Self {
        Self { bytes: octets }
    }

    /// Builds an address from four words in memory order.
    #[inline(always)]
    #[must_use]
    pub const fn from_words(words: [u32; 4]) -> Self {
        // Not byte by byte: LLVM would turn runs of zero bytes into calls of memset, which the
        // verifier rejects.
        // SAFETY: both are 16 plain bytes.
        let bytes = unsafe { core::mem::transmute::<[u32; 4], [u8; 16]>(words) };
        Self { bytes }
    }

    /// Builds an IPv4 address from `word`, in memory order.
    #[inline(always)]
    #[must_use]
    pub const fn from_v4_word(word: u32) -> Self {
        Self::from_v4(word.to_ne_bytes())
    }

    /// Returns all 16 bytes, in network byte order.
    #[inline(always)]
    #[must_use]
    pub const fn octets(&self) -> &[u8; 16] {
        &self.bytes
    }

    /// Returns the last four bytes: the IPv4 address, if it is one.
    #[inline(always)]
    #[must_use]
    pub const fn v4_octets(&self) -> [u8; 4] {
        let [.., a, b, c, d] = self.bytes;
        [a, b, c, d]
    }

    /// Returns the four 32-bit words in memory order, for checksums.
    #[inline(always)]
    #[must_use]
    pub const fn words(&self) -> [u32; 4] {
        // SAFETY: both are 16 plain bytes.
        unsafe { core::mem::transmute::<[u8; 16], [u32; 4]>(self.bytes) }
    }

    /// Reports whether this is an IPv4 address in its mapped form.
    #[inline(always)]
    #[must_use]
    pub const fn is_v4(&self) -> bool {
        let [a, b, c, _] = self.words();
        a == 0 && b == 0 && c == u32::from_ne_bytes([0, 0, 0xff, 0xff])
    }

    /// Reports whether the addresses are equal. Compares words: a comparison of arrays would call
    /// memcmp.
    #[inline(always)]
    #[must_use]
    pub const fn is_same(&self, other: &Self) -> bool {
        let (a, b) = (self.words(), other.words());
        (a[0] ^ b[0]) | (a[1] ^ b[1]) | (a[2] ^ b[2]) | (a[3] ^ b[3]) == 0
    }

    /// Reports whether the address identifies no single host: multicast, limited broadcast,
    /// unspecified. Such packets are never translated (a DHCP client's 0.0.0.0, neighbour
    /// discovery, mDNS).
    #[inline(always)]
    #[must_use]
    pub const fn is_special(&self, family: Family) -> bool {
        match family {
            Family::V4 => {
                let v4 = u32::from_be_bytes(self.v4_octets());
                v4 == 0 || v4 == u32::MAX || v4 >> 28 == 0xe
            }
            Family::V6 => {
                let [a, b, c, d] = self.words();
                self.bytes[0] == 0xff || (a | b | c | d) == 0
            }
        }
    }

    /// Reports whether this is an IPv6 link-local address (fe80::/10): it never crosses a router,
    /// so it is never the source of a pod's packet that leaves the node.
    #[inline(always)]
    #[must_use]
    pub const fn is_v6_link_local(&self) -> bool {
        self.bytes[0] == 0xfe && self.bytes[1] & 0xc0 == 0x80
    }
}

mod ip {
    use super::Addr;
    use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

    impl From<IpAddr> for Addr {
        fn from(ip: IpAddr) -> Self {
            match ip {
                IpAddr::V4(v4) => Self::from_v4(v4.octets()),
                IpAddr::V6(v6) => Self::from_v6(v6.octets()),
            }
        }
    }

    impl From<Addr> for IpAddr {
        fn from(addr: Addr) -> Self {
            if addr.is_v4() {
                Self::V4(Ipv4Addr::from(addr.v4_octets()))
            } else {
                Self::V6(Ipv6Addr::from(addr.bytes))
            }
        }
    }
}

impl core::fmt::Debug for Addr {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        if self.is_v4() {
            core::net::Ipv4Addr::from(self.v4_octets()).fmt(f)
        } else {
            core::net::Ipv6Addr::from(self.bytes).fmt(f)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Addr, Family};

    #[test]
    fn v4_is_told_from_v6() {
        assert!(Addr::from_v4([10, 0, 0, 1]).is_v4());
        assert!(!Addr::from_v6([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]).is_v4());
        assert!(!Addr::from_v6([0; 16]).is_v4());
    }

    #[test]
    fn special_addresses() {
        for v4 in [[0, 0, 0, 0], [255; 4], [224, 0, 0, 1], [239, 255, 255, 255]] {
            assert!(Addr::from_v4(v4).is_special(Family::V4), "{v4:?}");
        }
        for v4 in [[240, 0, 0, 1], [223, 255, 255, 255], [10, 0, 0, 1]] {
            assert!(!Addr::from_v4(v4).is_special(Family::V4), "{v4:?}");
        }
        let mut v6 = [0; 16];
        assert!(Addr::from_v6(v6).is_special(Family::V6));
        v6[15] = 1;
        assert!(!Addr::from_v6(v6).is_special(Family::V6));
        v6[0] = 0xff;
        assert!(Addr::from_v6(v6).is_special(Family::V6));
    }
}
