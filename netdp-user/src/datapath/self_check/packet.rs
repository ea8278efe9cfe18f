//! Pings as bytes.

use netdp_common::packet::checksum::{add, fold};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// ICMP identifier of our pings.
pub(super) const ID: u16 = 0x6e64;

const ETHERNET: usize = 14;
const IPV4: usize = 20;
const IPV6: usize = 40;
/// An ICMP echo header (RFC 792, RFC 4443 4.1) and eight bytes of data.
const ICMP: usize = 16;

/// Returns an echo request in an Ethernet frame.
pub(super) fn ping(from: IpAddr, to: IpAddr) -> Vec<u8> {
    build(from, to, ID)
}

/// Returns the source address of `frame` if it is [`ping`] with another address and identifier, and
/// with correct checksums.
pub(super) fn ping_from(frame: &[u8], to: IpAddr) -> Option<IpAddr> {
    let ip = frame.get(ETHERNET..)?;
    let (source, header): (IpAddr, usize) = if to.is_ipv4() {
        let octets: [u8; 4] = ip.get(12..16)?.try_into().ok()?;
        (Ipv4Addr::from(octets).into(), IPV4)
    } else {
        let octets: [u8; 16] = ip.get(8..24)?.try_into().ok()?;
        (Ipv6Addr::from(octets).into(), IPV6)
    };
    let id: [u8; 2] = ip.get(header + 4..header + 6)?.try_into().ok()?;
    let good = is_good(ip, header, source, to);
    let without_checksums = |frame: &[u8]| {
        let mut frame = frame.to_vec();
        let mut clear = |at: usize| frame[ETHERNET + at..][..2].fill(0);
        if to.is_ipv4() {
            clear(10);
        }
        clear(header + 2);
        frame
    };
    let wanted = build(source, to, u16::from_be_bytes(id));
    let same =
        frame.len() == wanted.len() && without_checksums(frame) == without_checksums(&wanted);
    (good && same).then_some(source)
}

fn build(from: IpAddr, to: IpAddr, id: u16) -> Vec<u8> {
    let mut frame = vec![0; ETHERNET];
    let header = match (from, to) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            frame[12..].copy_from_slice(&[0x08, 0x00]);
            let length = u8::try_from(IPV4 + ICMP).unwrap_or_default();
            // Don't fragment, TTL 64, ICMP.
            frame.extend([0x45, 0, 0, length, 0, 0, 0x40, 0, 64, 1, 0, 0]);
            frame.extend(from.octets());
            frame.extend(to.octets());
            set(&mut frame, ETHERNET + 10, |ip| sum(&ip[ETHERNET..]));
            IPV4
        }
        (from, to) => {
            frame[12..].copy_from_slice(&[0x86, 0xdd]);
            let length = u8::try_from(ICMP).unwrap_or_default();
            frame.extend([0x60, 0, 0, 0, 0, length, 58, 64]);
            frame.extend(octets(from));
            frame.extend(octets(to));
            IPV6
        }
    };
    let kind = if to.is_ipv4() { 8 } else { 128 };
    frame.extend([kind, 0, 0, 0]);
    frame.extend(id.to_be_bytes());
    frame.extend([0, 1]);
    frame.extend(b"netdp ok");
    set(&mut frame, ETHERNET + header + 2, |frame| {
        icmp_sum(&frame[ETHERNET..], header, from, to)
    });
    frame
}

fn octets(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
        IpAddr::V6(ip) => ip.octets(),
    }
}

fn set(frame: &mut [u8], at: usize, of: impl Fn(&[u8]) -> u32) {
    let checksum = !fold(of(frame).into());
    frame[at..at + 2].copy_from_slice(&checksum.to_ne_bytes());
}

/// Reports whether all checksums are correct: a sum over data with its checksum is all ones (RFC
/// 1071).
fn is_good(ip: &[u8], header: usize, from: IpAddr, to: IpAddr) -> bool {
    (to.is_ipv6() || fold(sum(&ip[..header]).into()) == u16::MAX)
        && fold(icmp_sum(ip, header, from, to).into()) == u16::MAX
}

/// Returns the ones' complement sum: ICMPv6 covers a pseudo-header (RFC 8200 8.1), ICMP does not.
fn icmp_sum(ip: &[u8], header: usize, from: IpAddr, to: IpAddr) -> u32 {
    let message = &ip[header..];
    if to.is_ipv4() {
        return sum(message);
    }
    let mut pseudo = [octets(from), octets(to)].concat();
    let length = u32::try_from(message.len()).unwrap_or_default();
    pseudo.extend(length.to_be_bytes());
    pseudo.extend([0, 0, 0, 58]);
    add(sum(&pseudo), sum(message))
}

fn sum(data: &[u8]) -> u32 {
    data.chunks(2).fold(0, |total, pair| {
        let word = [pair[0], pair.get(1).copied().unwrap_or_default()];
        add(total, u32::from(u16::from_ne_bytes(word)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_ping_is_known_again_and_a_damaged_one_is_not() {
        for [from, to] in [["192.0.0.8", "192.0.2.1"], ["100::1", "2001:db8::1"]] {
            let (from, to): (IpAddr, IpAddr) = (from.parse().unwrap(), to.parse().unwrap());
            let good = ping(from, to);
            assert_eq!(ping_from(&good, to), Some(from));
            for at in ETHERNET..good.len() {
                let mut damaged = good.clone();
                damaged[at] ^= 4;
                assert_eq!(ping_from(&damaged, to), None, "byte {at}");
            }
        }
    }
}
