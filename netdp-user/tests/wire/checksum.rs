//! Checksums computed from scratch: no code is shared with the datapath.

use std::net::IpAddr;

/// Returns the RFC 1071 checksum over all of `parts`; 0 if they contain their own right checksum.
pub fn internet(parts: &[&[u8]]) -> u16 {
    let mut sum = 0u64;
    for part in parts {
        for pair in part.chunks(2) {
            let low = pair.get(1).copied().unwrap_or(0);
            sum += u64::from(u16::from_be_bytes([pair[0], low]));
        }
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(0)
}

/// Returns the pseudo-header of RFC 768 and RFC 8200 8.1.
pub fn pseudo(src: IpAddr, dst: IpAddr, proto: u8, len: usize) -> Vec<u8> {
    let mut bytes = octets(src);
    bytes.extend(octets(dst));
    bytes.extend(u32::try_from(len).unwrap_or(0).to_be_bytes());
    bytes.extend(u32::from(proto).to_be_bytes());
    bytes
}

/// Returns an address in network byte order.
pub fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

/// Returns CRC32c in SCTP's byte order (RFC 9260 appendix A), over a packet whose checksum field
/// counts as zero.
pub fn crc32c(sctp: &[u8]) -> [u8; 4] {
    let mut crc = u32::MAX;
    for (at, &byte) in sctp.iter().enumerate() {
        let byte = if (8..12).contains(&at) { 0 } else { byte };
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = crc >> 1 ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 };
        }
    }
    (!crc).to_le_bytes()
}

#[test]
fn known_checksums() {
    // The example of RFC 1071 3, and the check value of CRC-32C.
    assert_eq!(
        internet(&[&[0, 1, 0xf2, 3, 0xf4, 0xf5, 0xf6, 0xf7]]),
        !0xddf2
    );
    let mut crc = u32::MAX;
    for &byte in b"123456789" {
        crc ^= u32::from(byte);
        for _ in 0..8 {
            crc = crc >> 1 ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 };
        }
    }
    assert_eq!(!crc, 0xe306_9283);
}
