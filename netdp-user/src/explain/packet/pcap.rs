//! Packets of capture files: pcap and pcapng, as tcpdump writes them.

use super::PacketBytes;
use anyhow::{Context as _, Result, bail, ensure};
use pcap_file::DataLink;
use pcap_file::pcap::PcapReader;
use pcap_file::pcapng::{Block, PcapNgReader};
use std::io::{BufReader, Read};

/// The first bytes of a pcapng file (its section header's type).
const PCAPNG: [u8; 4] = [0x0a, 0x0d, 0x0d, 0x0a];

/// Returns packet `number`, from 1, of a capture file.
///
/// # Errors
/// Returns an error if it is no such file, has fewer packets, or the packet was cut short.
pub fn from_pcap(mut file: impl Read, number: usize) -> Result<PacketBytes> {
    ensure!(number > 0, "packets of a capture file are counted from 1");
    let mut magic = [0; 4];
    file.read_exact(&mut magic)
        .context("not a capture file: too short")?;
    let file = BufReader::new(magic.chain(file));
    let captured = if magic == PCAPNG {
        of_pcapng(file, number)?
    } else {
        of_pcap(file, number)?
    };
    ensure!(
        captured.bytes.len() >= captured.length,
        "packet {number} has {} of {} bytes: capture with tcpdump -s 0",
        captured.bytes.len(),
        captured.length
    );
    captured.packet(number)
}

/// A captured packet.
struct Captured {
    link: DataLink,
    bytes: Vec<u8>,
    /// Its length before it was cut, in bytes.
    length: usize,
}

impl Captured {
    fn packet(self, number: usize) -> Result<PacketBytes> {
        let Self {
            link, mut bytes, ..
        } = self;
        // Linux cooked captures, versions 1 and 2, of tcpdump -i any.
        let header = match link {
            DataLink::ETHERNET => {
                return PacketBytes::ethernet(bytes)
                    .with_context(|| format!("packet {number} has no Ethernet header"));
            }
            DataLink::RAW | DataLink::IPV4 | DataLink::IPV6 => 0,
            DataLink::LINUX_SLL => 16,
            DataLink::LINUX_SLL2 => 20,
            other => bail!("captures of link type {other:?} are not supported"),
        };
        bytes.drain(..header.min(bytes.len()));
        match bytes.first().map(|first| first >> 4) {
            Some(4 | 6) => Ok(PacketBytes::ip_only(bytes)),
            _ => bail!("packet {number} is not IP"),
        }
    }
}

fn of_pcap(file: impl Read, number: usize) -> Result<Captured> {
    let mut reader = PcapReader::new(file).context("not a capture file")?;
    let link = reader.header().datalink;
    let mut count = 0;
    while let Some(packet) = reader.next_packet() {
        let packet = packet.with_context(|| format!("reading packet {}", count + 1))?;
        count += 1;
        if count == number {
            return Ok(Captured {
                link,
                length: usize::try_from(packet.orig_len)?,
                bytes: packet.data.into_owned(),
            });
        }
    }
    bail!("the capture has {count} packets, and no packet {number}")
}

fn of_pcapng(file: impl Read, number: usize) -> Result<Captured> {
    let mut reader = PcapNgReader::new(file).context("not a capture file")?;
    let mut count = 0;
    loop {
        let Some(block) = reader.next_block() else {
            bail!("the capture has {count} packets, and no packet {number}");
        };
        let block = block.with_context(|| format!("reading packet {}", count + 1))?;
        let (interface, length, bytes) = match block {
            Block::EnhancedPacket(packet) => {
                (packet.interface_id, packet.original_len, packet.data)
            }
            Block::SimplePacket(packet) => (0, packet.original_len, packet.data),
            _ => continue,
        };
        count += 1;
        if count == number {
            let bytes = bytes.into_owned();
            let interface = reader.interfaces().get(usize::try_from(interface)?);
            return Ok(Captured {
                link: interface.context("a packet of no interface")?.linktype,
                bytes,
                length: usize::try_from(length)?,
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::from_pcap;
    use pcap_file::DataLink;
    use pcap_file::pcap::{PcapHeader, PcapPacket, PcapWriter};
    use pcap_file::pcapng::blocks::enhanced_packet::EnhancedPacketBlock;
    use pcap_file::pcapng::blocks::interface_description::InterfaceDescriptionBlock;
    use pcap_file::pcapng::{PcapNgBlock as _, PcapNgWriter};
    use std::borrow::Cow;
    use std::time::Duration;
    use testkit::build::{Build, SYN};

    fn packets() -> [Vec<u8>; 2] {
        let syn = Build::tcp("172.16.0.2:44216", "10.2.0.17:443", SYN);
        [
            syn.bytes(),
            Build::udp("[fd00::2]:1", "[fd00::3]:2").bytes(),
        ]
    }

    fn pcap(link: DataLink, packets: &[Vec<u8>], cut: usize) -> Vec<u8> {
        let header = PcapHeader {
            datalink: link,
            ..PcapHeader::default()
        };
        let mut writer = PcapWriter::with_header(Vec::new(), header).unwrap();
        for packet in packets {
            let length = u32::try_from(packet.len()).unwrap();
            let data = &packet[..packet.len() - cut];
            let packet = PcapPacket::new(Duration::ZERO, length, data);
            writer.write_packet(&packet).unwrap();
        }
        writer.into_writer()
    }

    #[test]
    fn packets_of_every_link_type_are_read() {
        for (link, header) in [
            (DataLink::RAW, 0),
            (DataLink::LINUX_SLL, 16),
            (DataLink::LINUX_SLL2, 20),
        ] {
            let framed = packets().map(|packet| [vec![0; header], packet].concat());
            let file = pcap(link, &framed, 0);
            for (number, wanted) in (1..).zip(packets()) {
                let read = from_pcap(&file[..], number).unwrap();
                assert_eq!(read.ip(), wanted, "{link:?}");
            }
        }
        let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x86, 0xdd];
        frame.extend(&packets()[1]);
        let read = from_pcap(&pcap(DataLink::ETHERNET, &[frame], 0)[..], 1).unwrap();
        assert_eq!((read.ip(), read.ethertype()), (&packets()[1][..], 0x86dd));
    }

    #[test]
    fn pcapng_is_read() {
        let mut writer = PcapNgWriter::new(Vec::new()).unwrap();
        let interface = InterfaceDescriptionBlock {
            linktype: DataLink::RAW,
            snaplen: 0,
            options: Vec::new(),
        };
        writer.write_block(&interface.into_block()).unwrap();
        for packet in packets() {
            let block = EnhancedPacketBlock {
                interface_id: 0,
                timestamp: Duration::ZERO,
                original_len: u32::try_from(packet.len()).unwrap(),
                data: Cow::Owned(packet),
                options: Vec::new(),
            };
            writer.write_block(&block.into_block()).unwrap();
        }
        let file = writer.into_inner();
        assert_eq!(from_pcap(&file[..], 2).unwrap().ip(), packets()[1]);
        let told = from_pcap(&file[..], 3).unwrap_err().to_string();
        assert_eq!(told, "the capture has 2 packets, and no packet 3");
    }

    #[test]
    fn other_files_are_refused() {
        let told = |file: &[u8], number| format!("{:#}", from_pcap(file, number).unwrap_err());
        let file = pcap(DataLink::RAW, &packets(), 0);
        assert!(told(&file, 0).contains("counted from 1"));
        assert!(told(&file, 3).contains("has 2 packets"));
        assert!(told(b"x", 1).contains("too short"));
        assert!(told(&[0x45; 64], 1).contains("not a capture file"));
        assert!(told(&file[..60], 1).contains("reading packet 1"));
        let cut = pcap(DataLink::RAW, &packets(), 5);
        assert!(told(&cut, 1).contains("tcpdump -s 0"));
        let token = pcap(DataLink::IEEE802_5, &packets(), 0);
        assert!(told(&token, 1).contains("link type"));
        let arp = pcap(DataLink::RAW, &[vec![0x10; 60]], 0);
        assert!(told(&arp, 1).contains("packet 1 is not IP"));
        let short = pcap(DataLink::ETHERNET, &[vec![1; 9]], 0);
        assert!(told(&short, 1).contains("no Ethernet header"));
    }

    #[test]
    fn hostile_files_do_no_harm() {
        let file = pcap(DataLink::RAW, &packets(), 0);
        for at in 0..file.len() {
            for byte in [0, 0x7f, 0xff] {
                let mut other = file.clone();
                other[at] = byte;
                let _ = from_pcap(&other[..], 2);
            }
            let _ = from_pcap(&file[..at], 2);
        }
    }
}
