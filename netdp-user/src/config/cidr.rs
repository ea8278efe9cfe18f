//! Parser for a CIDR of a list, with its error messages.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net};

/// The length of the prefix under which IPv4 addresses are mapped into IPv6, `::ffff:0:0/96`.
const MAPPED_PREFIX_LEN: u8 = 96;

/// Reason why a text is not a valid CIDR; displayed without the text itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum CidrError {
    Blank,
    /// The text is not an address, a slash and a length.
    Malformed,
    /// An address without a length; contains the network of just that address.
    NoLength(IpNet),
    /// The length is no number, or exceeds the family's maximum, which it contains.
    BadLength {
        max: u8,
    },
    /// An IPv4-mapped IPv6 address; contains the IPv4 form.
    Mapped(Ipv4Net),
    /// Host bits are set; contains the aligned form.
    HostBits {
        address: IpAddr,
        network: IpNet,
    },
}

impl fmt::Display for CidrError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Blank => write!(f, "is blank; remove the entry or write a CIDR"),
            Self::Malformed => {
                write!(
                    f,
                    "is not a CIDR; write ADDRESS/LENGTH, such as 10.0.0.0/8 or fd00::/8"
                )
            }
            Self::NoLength(network) => {
                write!(
                    f,
                    "has no prefix length; for this one address write {network}"
                )
            }
            Self::BadLength { max } => {
                write!(
                    f,
                    "is not a CIDR: the prefix length must be a number from 0 to {max}"
                )
            }
            Self::Mapped(network) => {
                write!(
                    f,
                    "is an IPv4-mapped IPv6 CIDR, which no packet matches; write {network}"
                )
            }
            Self::HostBits { address, network } => write!(
                f,
                "is not aligned to a CIDR block: the address is {address}, the network is \
                 {network}; write {network}"
            ),
        }
    }
}

/// Parses an aligned CIDR of either family.
pub(super) fn parse(text: &str) -> Result<IpNet, CidrError> {
    if text.trim().is_empty() {
        return Err(CidrError::Blank);
    }
    let Some((address, len)) = text.split_once('/') else {
        return Err(match text.parse::<IpAddr>() {
            Ok(IpAddr::V6(address)) if address.to_ipv4_mapped().is_some() => mapped(address, 128),
            Ok(address) => CidrError::NoLength(IpNet::from(address)),
            Err(_) => CidrError::Malformed,
        });
    };
    let address: IpAddr = address.parse().map_err(|_| CidrError::Malformed)?;
    let max = if address.is_ipv4() { 32 } else { 128 };
    // Rust's integer parser would also accept a sign.
    let digits = !len.is_empty() && len.bytes().all(|byte| byte.is_ascii_digit());
    let len = match len.parse::<u8>() {
        Ok(len) if digits && len <= max => len,
        _ => return Err(CidrError::BadLength { max }),
    };
    if let IpAddr::V6(address) = address
        && address.to_ipv4_mapped().is_some()
        && len >= MAPPED_PREFIX_LEN
    {
        return Err(mapped(address, len));
    }
    let given = IpNet::new(address, len).map_err(|_| CidrError::BadLength { max })?;
    let network = given.trunc();
    if network == given {
        Ok(network)
    } else {
        Err(CidrError::HostBits { address, network })
    }
}

/// Returns the error for a mapped `address` with a prefix length of at least [`MAPPED_PREFIX_LEN`].
fn mapped(address: Ipv6Addr, len: u8) -> CidrError {
    let len = len.saturating_sub(MAPPED_PREFIX_LEN);
    match address
        .to_ipv4_mapped()
        .map(|address| Ipv4Net::new(address, len))
    {
        Some(Ok(network)) => CidrError::Mapped(network.trunc()),
        Some(Err(_)) | None => CidrError::Malformed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    #[test]
    fn aligned_networks_are_accepted() {
        for text in [
            "10.0.0.0/8",
            "0.0.0.0/0",
            "192.0.2.1/32",
            "::/0",
            "fc00::/7",
            "::1/128",
            "::/96",
        ] {
            assert_eq!(parse(text), Ok(net(text)), "{text}");
        }
    }

    #[test]
    fn errors_name_the_remedy() {
        for (text, fragments) in [
            ("", &["is blank"][..]),
            (" \t", &["is blank"]),
            ("abcdefg", &["is not a CIDR", "ADDRESS/LENGTH"]),
            ("10.256.0.0/16", &["is not a CIDR"]),
            ("010.0.0.0/8", &["is not a CIDR"]),
            (" 10.0.0.0/8", &["is not a CIDR"]),
            ("fe80::1%eth0/64", &["is not a CIDR"]),
            ("10.0.0.0/33", &["from 0 to 32"]),
            ("10.0.0.0/", &["from 0 to 32"]),
            ("10.0.0.0/+8", &["from 0 to 32"]),
            ("10.0.0.0/8/8", &["from 0 to 32"]),
            ("fd00::/129", &["from 0 to 128"]),
            (
                "10.0.0.1/8",
                &["not aligned", "address is 10.0.0.1,", "write 10.0.0.0/8"],
            ),
            (
                "fd00::1/8",
                &["not aligned", "address is fd00::1,", "write fd00::/8"],
            ),
            ("10.1.2.3", &["no prefix length", "write 10.1.2.3/32"]),
            ("fd00::1", &["no prefix length", "write fd00::1/128"]),
            ("::ffff:10.0.0.0/104", &["IPv4-mapped", "write 10.0.0.0/8"]),
            ("::ffff:10.1.2.3/104", &["IPv4-mapped", "write 10.0.0.0/8"]),
            ("::ffff:0:0/96", &["IPv4-mapped", "write 0.0.0.0/0"]),
            ("::ffff:10.1.2.3", &["IPv4-mapped", "write 10.1.2.3/32"]),
            ("::ffff:10.0.0.0/64", &["not aligned", "write ::/64"]),
        ] {
            let message = parse(text).unwrap_err().to_string();
            for fragment in fragments {
                assert!(message.contains(fragment), "{text:?}: {message}");
            }
        }
    }
}
