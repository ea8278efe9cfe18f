//! Dropped packets as pcapng, for tcpdump and Wireshark: the reason is each packet's comment.

use super::Destination;
use crate::events::Dropped;
use anyhow::{Context as _, Result};
use netdp_common::layout::CAPTURED;
use pcap_file::DataLink;
use pcap_file::pcapng::PcapNgWriter;
use pcap_file::pcapng::blocks::enhanced_packet::{EnhancedPacketBlock, EnhancedPacketOption};
use pcap_file::pcapng::blocks::interface_description::{
    InterfaceDescriptionBlock, InterfaceDescriptionOption,
};
use std::borrow::Cow;
use std::collections::HashMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::time::Duration;

/// The resolution of timestamps: 10^-9 s.
const NANOSECONDS: u8 = 9;

/// A capture that is being written.
pub(super) struct Capture {
    writer: PcapNgWriter<Box<dyn Write>>,
    /// The numbers of interfaces in the capture, by index and length of the link header.
    interfaces: HashMap<(u32, u32), u32>,
}

impl Capture {
    /// Begins a capture.
    ///
    /// # Errors
    /// Returns an error if the file can't be made or written.
    pub(super) fn create(destination: &Destination) -> Result<Self> {
        let out: Box<dyn Write> = match destination {
            Destination::Stdout => Box::new(std::io::stdout()),
            Destination::File(path) => {
                let file = File::create(path);
                Box::new(file.with_context(|| format!("making {}", path.display()))?)
            }
        };
        Self::over(out)
    }

    fn over(out: Box<dyn Write>) -> Result<Self> {
        let out: Box<dyn Write> = Box::new(BufWriter::new(out));
        let mut capture = Self {
            writer: PcapNgWriter::new(out).map_err(io)?,
            interfaces: HashMap::new(),
        };
        // Whoever reads it learns at once that it is a capture.
        capture.flush()?;
        Ok(capture)
    }

    /// Writes a packet. `name`: that of its interface.
    ///
    /// # Errors
    /// Returns an error if it can't be written.
    pub(super) fn add(
        &mut self,
        dropped: &Dropped,
        name: Option<String>,
        reason: &str,
        time: u64,
    ) -> Result<()> {
        let key = (dropped.ifindex, dropped.l2_len);
        let interface_id = match self.interfaces.get(&key) {
            Some(number) => *number,
            None => self.add_interface(key, name)?,
        };
        let comment = format!("netdp: {reason}");
        let packet = EnhancedPacketBlock {
            interface_id,
            timestamp: Duration::from_nanos(time),
            original_len: dropped.length,
            data: Cow::Borrowed(&dropped.packet),
            options: vec![EnhancedPacketOption::Comment(comment.into())],
        };
        self.writer.write_pcapng_block(packet).map_err(io)?;
        Ok(())
    }

    fn add_interface(&mut self, key: (u32, u32), name: Option<String>) -> Result<u32> {
        let (ifindex, l2_len) = key;
        let name = name.unwrap_or_else(|| format!("index {ifindex}"));
        let interface = InterfaceDescriptionBlock {
            linktype: match l2_len {
                0 => DataLink::RAW,
                _ => DataLink::ETHERNET,
            },
            snaplen: u32::try_from(CAPTURED)?,
            options: vec![
                InterfaceDescriptionOption::IfName(name.into()),
                InterfaceDescriptionOption::IfTsResol(NANOSECONDS),
            ],
        };
        self.writer.write_pcapng_block(interface).map_err(io)?;
        let number = u32::try_from(self.interfaces.len())?;
        self.interfaces.insert(key, number);
        Ok(number)
    }

    /// Writes what is buffered.
    ///
    /// # Errors
    /// Returns an error if it can't be written.
    pub(super) fn flush(&mut self) -> Result<()> {
        let flushed = self.writer.get_mut().flush();
        flushed.context("writing the capture")
    }
}

/// Returns an error of the writer with its cause in front, which may be a closed pipe.
fn io(err: pcap_file::PcapError) -> anyhow::Error {
    match err {
        pcap_file::PcapError::IoError(err) => {
            anyhow::Error::new(err).context("writing the capture")
        }
        other => anyhow::Error::new(other).context("writing the capture"),
    }
}
