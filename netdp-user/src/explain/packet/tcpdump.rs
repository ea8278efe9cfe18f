//! Packets as tcpdump prints them in one line.

use super::build::{Description, Kind};
use anyhow::{Context as _, Result, bail};
use netdp_common::layout::proto;
use netdp_common::packet::{ACK, FIN, RST, SYN};
use std::net::IpAddr;

/// Flags that no decision depends on (RFC 9293 3.1).
const PSH: u8 = 0x08;
const URG: u8 = 0x20;

/// Returns the packet that a line of `tcpdump -n` describes, such as
/// `10:15:02.1 IP 172.16.0.2.44216 > 10.2.0.17.443: Flags [S], seq 1, length 0`.
///
/// # Errors
/// Returns an error that says what can't be read.
pub fn from_line(line: &str) -> Result<Description> {
    let words: Vec<_> = line.split_whitespace().collect();
    let at = words
        .iter()
        .position(|word| matches!(*word, "IP" | "IP6"))
        .context("no `IP` or `IP6` in the line: tcpdump prints it before the addresses")?;
    let [source, arrow, destination, rest @ ..] = &words[at + 1..] else {
        bail!("the line ends before the addresses");
    };
    if *arrow != ">" {
        bail!("no `>` between the addresses");
    }
    let destination = destination
        .strip_suffix(':')
        .context("no `:` after the destination")?;
    let (src, src_port) = end(source)?;
    let (dst, dst_port) = end(destination)?;
    let rest = rest.join(" ");
    let (kind, [src_id, dst_id]) = if let Some(flags) = rest.strip_prefix("Flags [") {
        let (flags, numbers) = flags.split_once(']').context("no `]` after the flags")?;
        let kind = Kind::Tcp {
            flags: tcp_flags(flags)?,
            seq: number(numbers, "seq ").unwrap_or(1),
            ack: number(numbers, "ack ").unwrap_or(1),
        };
        (kind, ports(src_port, dst_port)?)
    } else if rest.contains("ICMP echo request") || rest.contains("ICMP6, echo request") {
        let id = number(&rest, "id ").context("no `id` of the echo request")?;
        (Kind::Echo, [u16::try_from(id)?, 0])
    } else if rest.contains("ICMP echo reply") || rest.contains("ICMP6, echo reply") {
        let id = number(&rest, "id ").context("no `id` of the echo reply")?;
        (Kind::EchoReply, [0, u16::try_from(id)?])
    } else if rest.starts_with("ICMP") {
        bail!("an ICMP error can't be built from its line: give its bytes (--hex, --pcap)");
    } else if let Some(number) = other_protocol(&rest) {
        (Kind::Other(number), [0, 0])
    } else {
        // What tcpdump decodes above UDP, it prints instead of `UDP`.
        (Kind::Udp, ports(src_port, dst_port)?)
    };
    Ok(Description {
        src,
        src_id,
        dst,
        dst_id,
        kind,
    })
}

/// Returns the address and the port, which tcpdump separates by a dot.
fn end(text: &str) -> Result<(IpAddr, Option<u16>)> {
    let unread = || format!("{text:?} is not an address with a port; tcpdump needs -n");
    // A whole address first: an IPv4 address also ends with a dot and a number.
    if let Ok(addr) = text.parse() {
        return Ok((addr, None));
    }
    let (addr, port) = text.rsplit_once('.').with_context(unread)?;
    let addr = addr.parse().with_context(unread)?;
    let port = port.parse().with_context(unread)?;
    Ok((addr, Some(port)))
}

fn ports(src: Option<u16>, dst: Option<u16>) -> Result<[u16; 2]> {
    match (src, dst) {
        (Some(src), Some(dst)) => Ok([src, dst]),
        _ => bail!("no ports: this protocol has them, and tcpdump prints them after the addresses"),
    }
}

fn tcp_flags(text: &str) -> Result<u8> {
    let mut flags = 0;
    for c in text.chars() {
        flags |= match c {
            'S' => SYN,
            'F' => FIN,
            'R' => RST,
            'P' => PSH,
            'U' => URG,
            '.' => ACK,
            // ECN's (RFC 3168 6.1).
            'E' => 0x40,
            'W' => 0x80,
            // `none`.
            'n' | 'o' | 'e' => 0,
            other => bail!("{:?} is no TCP flag of tcpdump", other.to_string()),
        };
    }
    Ok(flags)
}

/// Returns the number after `name`; of a range its first.
fn number(text: &str, name: &str) -> Option<u32> {
    let (_, after) = text.split_once(name)?;
    let digits = after.split(|c: char| !c.is_ascii_digit()).next()?;
    digits.parse().ok()
}

/// Returns the number of a protocol without ports, if the line is about one.
fn other_protocol(text: &str) -> Option<u8> {
    if let Some(number) = text.strip_prefix("ip-proto-") {
        return number.split(' ').next()?.parse().ok();
    }
    let named = [
        ("GRE", 47),
        ("ESP", 50),
        ("AH", proto::AH),
        ("sctp", proto::SCTP),
    ];
    let found = named.iter().find(|(name, _)| text.starts_with(name))?;
    u8::try_from(found.1).ok()
}

#[cfg(test)]
mod tests {
    use super::super::build::{Description, Kind};
    use super::from_line;

    fn read(line: &str) -> Description {
        from_line(line).unwrap_or_else(|err| panic!("{line}: {err:#}"))
    }

    #[test]
    fn tcpdump_lines_are_read() {
        let syn = read("IP 172.16.0.2.44216 > 10.2.0.17.443: Flags [S]");
        assert_eq!(syn.src.to_string(), "172.16.0.2");
        assert_eq!((syn.src_id, syn.dst_id), (44_216, 443));
        let kind = Kind::Tcp {
            flags: 2,
            seq: 1,
            ack: 1,
        };
        assert_eq!(syn.kind, kind);
        let push = read(
            "10:15:02.123456 eth0  Out IP6 fd00:1::2.44216 > 2001:db8::7.443: Flags [P.], seq 5:9, \
             ack 77, win 502, length 4",
        );
        assert_eq!(push.dst.to_string(), "2001:db8::7");
        let kind = Kind::Tcp {
            flags: 0x18,
            seq: 5,
            ack: 77,
        };
        assert_eq!(push.kind, kind);
        assert_eq!(
            read("IP 10.0.0.1.5353 > 10.0.0.2.53: 12+ A? example.com. (29)").kind,
            Kind::Udp
        );
        let echo = read("IP 10.0.0.1 > 10.0.0.2: ICMP echo request, id 7, seq 1, length 64");
        assert_eq!((echo.kind, echo.src_id), (Kind::Echo, 7));
        let reply = read("IP6 fd00::1 > fd00::2: ICMP6, echo reply, id 9, seq 1, length 64");
        assert_eq!((reply.kind, reply.dst_id), (Kind::EchoReply, 9));
        let gre = read("IP 10.0.0.1 > 10.0.0.2: GREv0, length 8: IP 1.2.3.4 > 5.6.7.8: ICMP");
        assert_eq!(gre.kind, Kind::Other(47));
    }

    #[test]
    fn other_lines_are_refused() {
        for (line, wanted) in [
            ("", "no `IP` or `IP6` in the line"),
            ("ARP, Request who-has 10.0.0.1", "no `IP` or `IP6`"),
            ("IP 10.0.0.1.1 >", "the line ends before the addresses"),
            ("IP 10.0.0.1.1 < 10.0.0.2.2: UDP", "no `>`"),
            ("IP 10.0.0.1.1 > 10.0.0.2.2", "no `:` after the destination"),
            ("IP host.http > 10.0.0.2.2: UDP", "tcpdump needs -n"),
            ("IP 10.0.0.1.99999 > 10.0.0.2.2: UDP", "tcpdump needs -n"),
            ("IP 10.0.0.1 > 10.0.0.2: UDP, length 1", "no ports"),
            ("IP 10.0.0.1.1 > 10.0.0.2.2: Flags [S", "no `]`"),
            ("IP 10.0.0.1.1 > 10.0.0.2.2: Flags [Q]", "is no TCP flag"),
            (
                "IP 10.0.0.1 > 10.0.0.2: ICMP host 1.2.3.4 unreachable, length 36",
                "an ICMP error can't be built",
            ),
            (
                "IP 10.0.0.1 > 10.0.0.2: ICMP echo request, id 70000, seq 1",
                "out of range",
            ),
        ] {
            let told = format!("{:#}", from_line(line).unwrap_err());
            assert!(told.contains(wanted), "{line}: {told}");
        }
    }
}
