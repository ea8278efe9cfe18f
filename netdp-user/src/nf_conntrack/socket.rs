//! Queries and changes of connection tracking.

use super::{Flow, message};
use anyhow::{Context as _, Result, anyhow, bail};
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_EXCL, NLM_F_REQUEST, NetlinkBuffer, NetlinkHeader,
    NetlinkMessage, NetlinkPayload,
};
use netlink_packet_netfilter::conntrack::ConntrackMessage;
use netlink_packet_netfilter::{
    NetfilterHeader, NetfilterMessage, NetfilterMessageInner, NetfilterProtoFamily,
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};
use nix::errno::Errno;
use std::net::IpAddr;

/// Limit of attempts while the table changes concurrently.
const MAX_ATTEMPTS: usize = 5;

/// Netlink socket to connection tracking in this network namespace.
#[derive(Debug)]
pub struct Conntrack {
    socket: Socket,
    sequence: u32,
}

impl Conntrack {
    /// Opens the socket.
    ///
    /// # Errors
    /// Returns an error if the kernel does not support such sockets.
    pub fn open() -> Result<Self> {
        let mut socket =
            Socket::new(NETLINK_NETFILTER).context("a netlink socket to connection tracking")?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        // A dump of a large table takes many datagrams, and the kernel does not wait for the
        // reader.
        socket.set_rx_buf_sz(4 << 20)?;
        Ok(Self {
            socket,
            sequence: 0,
        })
    }

    /// Dumps all tracked connections of both families.
    ///
    /// # Errors
    /// Returns an error if the kernel refuses, as one without connection tracking does.
    pub fn dump(&mut self) -> Result<Vec<Flow>> {
        for _ in 0..MAX_ATTEMPTS {
            self.send(NLM_F_DUMP, family(None), ConntrackMessage::Get(Vec::new()))?;
            let mut flows = Vec::new();
            if self.receive(Some(&mut flows))? == Response::Complete {
                return Ok(flows);
            }
        }
        bail!("connection tracking changes faster than it can be read")
    }

    /// Creates an entry that makes netfilter translate a connection from now on.
    ///
    /// # Errors
    /// Returns [`Errno::EEXIST`] if there is an entry with the same tuple, or another error of the
    /// kernel.
    pub fn create(&mut self, flow: &Flow) -> Result<()> {
        let flags = NLM_F_ACK | NLM_F_CREATE | NLM_F_EXCL;
        let new = ConntrackMessage::New(message::translated_attributes(flow)?);
        self.send(flags, family(Some(flow)), new)?;
        self.receive(None).map(drop)
    }

    /// Creates or renews the marker entry: from now on the table may list connections as answered
    /// and untranslated that netdp translates out of tracking's sight. The marker lives as long as
    /// they do: flushing the table also removes the marker.
    ///
    /// # Errors
    /// Returns an error if the kernel refuses, as one without connection tracking does.
    pub fn mark(&mut self) -> Result<()> {
        let mark = Flow::mark();
        let new = ConntrackMessage::New(message::untranslated_attributes(&mark));
        self.send(NLM_F_ACK | NLM_F_CREATE, family(Some(&mark)), new)?;
        self.receive(None).map(drop)
    }

    /// Deletes an entry if it exists. Returns whether it did.
    ///
    /// # Errors
    /// Returns an error if the kernel refuses.
    pub fn delete_if_present(&mut self, flow: &Flow) -> Result<bool> {
        match self.delete(flow) {
            Err(err) if has_errno(&err, Errno::ENOENT) => Ok(false),
            other => other.map(|()| true),
        }
    }

    /// Deletes an entry.
    ///
    /// # Errors
    /// Returns [`Errno::ENOENT`] if there is no such entry, or another error of the kernel.
    pub fn delete(&mut self, flow: &Flow) -> Result<()> {
        let delete = ConntrackMessage::Delete(message::key_attributes(flow));
        self.send(NLM_F_ACK, family(Some(flow)), delete)?;
        self.receive(None).map(drop)
    }

    /// Makes netfilter translate a connection, replacing an untranslated entry if there is one.
    ///
    /// # Errors
    /// Returns an error if the kernel refuses, or packets keep creating the untranslated entry
    /// again.
    pub fn replace(&mut self, flow: &Flow) -> Result<()> {
        for _ in 0..MAX_ATTEMPTS {
            match self.create(flow) {
                Err(err) if has_errno(&err, Errno::EEXIST) => match self.delete(flow) {
                    // A packet may create the entry again before ours is created.
                    Err(err) if !has_errno(&err, Errno::ENOENT) => return Err(err),
                    _ => {}
                },
                other => return other,
            }
        }
        Err(anyhow!("its packets keep creating a new entry"))
    }

    fn send(
        &mut self,
        flags: u16,
        family: NetfilterProtoFamily,
        message: ConntrackMessage,
    ) -> Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.sequence;
        let message = NetfilterMessage::new(NetfilterHeader::new(family, 0, 0), message);
        let mut packet = NetlinkMessage::new(header, NetlinkPayload::from(message));
        packet.finalize();
        let mut bytes = vec![0; packet.buffer_len()];
        packet.serialize(&mut bytes);
        self.socket
            .send(&bytes, 0)
            .context("querying connection tracking")?;
        Ok(())
    }

    /// Receives the response to the last request.
    fn receive(&mut self, mut flows: Option<&mut Vec<Flow>>) -> Result<Response> {
        loop {
            let mut datagram = Vec::with_capacity(1 << 16);
            self.socket
                .recv(&mut datagram, 0)
                .context("reading connection tracking")?;
            let mut rest = datagram.as_slice();
            while !rest.is_empty() {
                let length = NetlinkBuffer::new_checked(rest)?.length() as usize;
                let message = NetlinkMessage::<NetfilterMessage>::deserialize(rest)?;
                // Messages are aligned to four bytes.
                rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
                if message.header.sequence_number != self.sequence {
                    continue;
                }
                match message.payload {
                    NetlinkPayload::Done(_) => return Ok(Response::Complete),
                    NetlinkPayload::Error(error) => match error.code {
                        None => return Ok(Response::Complete),
                        Some(code) => return Err(Errno::from_raw(code.get().abs()).into()),
                    },
                    NetlinkPayload::InnerMessage(message) => {
                        if let NetfilterMessageInner::Conntrack(ConntrackMessage::New(attributes)) =
                            message.inner
                            && let Some(flows) = &mut flows
                        {
                            flows.extend(message::flow(&attributes));
                        }
                    }
                    NetlinkPayload::Overrun(_) => return Ok(Response::Truncated),
                    _ => {}
                }
            }
        }
    }
}

/// Completeness of a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Response {
    Complete,
    /// Some messages were lost.
    Truncated,
}

fn family(flow: Option<&Flow>) -> NetfilterProtoFamily {
    match flow.map(|flow| flow.original.source) {
        None => NetfilterProtoFamily::Unspec,
        Some(IpAddr::V4(_)) => NetfilterProtoFamily::IPv4,
        Some(IpAddr::V6(_)) => NetfilterProtoFamily::IPv6,
    }
}

/// Reports whether an error is this one of the kernel.
fn has_errno(err: &anyhow::Error, errno: Errno) -> bool {
    err.downcast_ref::<Errno>() == Some(&errno)
}
