//! Packets as hexadecimal digits.

use super::PacketBytes;
use anyhow::{Context as _, Result, bail, ensure};

/// The longest packet, in bytes: what an IP header can say, behind a link header with tags.
const LONGEST: usize = 65_535 + 22;

/// Returns the packet that the digits show: from its IP header on, or from its Ethernet header. Spaces,
/// line ends, colons and `0x` are skipped; so are the offsets of tcpdump's `-x`.
///
/// # Errors
/// Returns an error that says what is wrong with the digits.
pub fn from_hex(text: &str) -> Result<PacketBytes> {
    let mut digits = Vec::new();
    for word in text.split(|c: char| c.is_whitespace() || c == ':' && !text.contains("0x")) {
        if word.ends_with(':') {
            // An offset.
            continue;
        }
        let word = word.strip_prefix("0x").unwrap_or(word);
        for c in word.chars() {
            let digit = c
                .to_digit(16)
                .and_then(|digit| u8::try_from(digit).ok())
                .with_context(|| format!("{:?} is no hexadecimal digit", c.to_string()))?;
            digits.push(digit);
        }
        ensure!(
            digits.len() <= 2 * LONGEST,
            "a packet has at most {LONGEST} bytes"
        );
    }
    let (pairs, rest) = digits.as_chunks::<2>();
    if !rest.is_empty() {
        bail!("{} hexadecimal digits: each byte has two", digits.len());
    }
    of_bytes(pairs.iter().map(|[high, low]| high << 4 | low).collect())
}

/// Returns the packet of bytes that begin with an IP header or an Ethernet header.
fn of_bytes(bytes: Vec<u8>) -> Result<PacketBytes> {
    // IPv4's and IPv6's headers have 20 and 40 bytes; the byte after an Ethernet header's addresses
    // is the first of an EtherType. A destination address that begins with 4 or 6 is ambiguous:
    // the EtherType decides.
    let ethertype = bytes
        .get(12..14)
        .map(|it| u16::from_be_bytes([it[0], it[1]]));
    let is_ethernet = matches!(ethertype, Some(0x0800 | 0x86dd | 0x8100 | 0x88a8))
        && bytes.get(14).is_some_and(|byte| {
            matches!(byte >> 4, 4 | 6) || matches!(ethertype, Some(0x8100 | 0x88a8))
        });
    if is_ethernet {
        return PacketBytes::ethernet(bytes).context("too short for an Ethernet header");
    }
    let least = match bytes.first().map(|byte| byte >> 4) {
        Some(4) => 20,
        Some(6) => 40,
        Some(_) => bail!("the bytes begin with neither an IP header nor an Ethernet header"),
        None => bail!("no bytes"),
    };
    ensure!(
        bytes.len() >= least,
        "{} bytes: an IP header has at least {least}",
        bytes.len()
    );
    Ok(PacketBytes::ip_only(bytes))
}

#[cfg(test)]
mod tests {
    use super::from_hex;
    use testkit::build::{Build, SYN};

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn all_usual_forms_are_read() {
        let packet = Build::tcp("172.16.0.2:44216", "10.2.0.17:443", SYN);
        let bytes = packet.bytes();
        let plain = hex(&bytes);
        assert_eq!(from_hex(&plain).unwrap().ip(), bytes);
        assert_eq!(from_hex(&format!("0x{plain}\n")).unwrap().ip(), bytes);
        let colons: Vec<_> = bytes.iter().map(|byte| format!("{byte:02X}")).collect();
        assert_eq!(from_hex(&colons.join(":")).unwrap().ip(), bytes);
        // As tcpdump -x prints it.
        let lines = bytes.chunks(16).enumerate().map(|(n, line)| {
            let words: Vec<_> = line.chunks(2).map(hex).collect();
            format!("\t0x{:04x}:  {}\n", n * 16, words.join(" "))
        });
        let dump: String = lines.collect();
        assert_eq!(from_hex(&dump).unwrap().ip(), bytes);
        let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0];
        frame.extend(&bytes);
        let read = from_hex(&hex(&frame)).unwrap();
        assert_eq!((read.ip(), read.ethertype()), (&bytes[..], 0x0800));
    }

    #[test]
    fn what_is_no_packet_is_refused() {
        for (text, wanted) in [
            ("", "no bytes"),
            ("4", "1 hexadecimal digits: each byte has two"),
            ("45xy", "\"x\" is no hexadecimal digit"),
            ("4500", "2 bytes: an IP header has at least 20"),
            (&"60".repeat(39), "39 bytes: an IP header has at least 40"),
            (
                &"00".repeat(64),
                "the bytes begin with neither an IP header nor an Ethernet header",
            ),
            (&"45".repeat(70_000), "a packet has at most 65557 bytes"),
        ] {
            let told = from_hex(text).unwrap_err().to_string();
            assert_eq!(told, wanted);
        }
    }
}
