//! The qdisc in the place of clsact and its filters, queried over rtnetlink and answered
//! synchronously.

use super::hook::{Hook, name_of};
use anyhow::{Context as _, Result, bail};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket,
};
use std::os::fd::{AsRawFd as _, OwnedFd};

/// Message types of include/uapi/linux/rtnetlink.h and netlink.h.
const RTM_NEWQDISC: u16 = 36;
const RTM_GETQDISC: u16 = 38;
const RTM_NEWTFILTER: u16 = 44;
const RTM_GETTFILTER: u16 = 46;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_ECHO: u16 = 8;
const NLM_F_DUMP: u16 = 0x300;

/// `TC_H_MAKE(TC_H_CLSACT, …)` of include/uapi/linux/pkt_sched.h.
const CLSACT: u32 = 0xffff_fff1;
const INGRESS: u32 = 0xffff_fff2;
const EGRESS: u32 = 0xffff_fff3;

/// Attributes of a filter, and of one that runs a BPF program (include/uapi/linux/pkt_cls.h).
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_CHAIN: u16 = 11;
const TCA_BPF_NAME: u16 = 7;
const TCA_BPF_ID: u16 = 11;

/// `ETH_P_ALL` of include/uapi/linux/if_ether.h, in host byte order.
const ALL_PROTOCOLS: u16 = 3;

/// Handles of our filters. A filter that is moved ahead of others exists beside the old one for a
/// moment, so there are two.
pub const HANDLES: [u32; 2] = [0x6e64, 0x6e65];

/// Sizes of `struct nlmsghdr`, `struct tcmsg` and `struct nlattr`.
const HEADER: usize = 16;
const ABOUT: usize = 20;
const ATTRIBUTE: usize = 4;

/// A filter of a clsact qdisc.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Filter {
    /// Filters with lower preferences come first.
    pub preference: u16,
    /// Unique within one preference.
    pub handle: u32,
    /// True if packets of every protocol meet it.
    pub all_protocols: bool,
    /// `bpf`, `matchall`, `flower`, …
    pub kind: String,
    /// Id of its program, if it is a BPF filter.
    pub program: Option<u32>,
    /// Name given to it together with the program.
    pub name: String,
}

impl Filter {
    /// Reports whether netdp has added the filter.
    pub fn is_ours(&self) -> bool {
        self.kind == "bpf" && HANDLES.contains(&self.handle)
    }

    /// Reports whether a program of ours may share its preference, and then comes before it: a new
    /// BPF filter is put before those of its preference (`cls_bpf_change`, net/sched/cls_bpf.c,
    /// Linux 6.18), and one preference has one kind and one protocol.
    pub fn admits_ours(&self) -> bool {
        self.kind == "bpf" && self.all_protocols
    }
}

impl std::fmt::Display for Filter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            preference,
            kind,
            name,
            ..
        } = self;
        write!(f, "the {kind} filter of preference {preference}")?;
        if !name.is_empty() {
            write!(f, " ({name})")?;
        }
        Ok(())
    }
}

/// Returns the filters at a hook that packets meet, in their order.
///
/// # Errors
/// Returns an error if there is no such interface (`ENODEV`), or the kernel can't be queried.
pub fn list(ifindex: u32, hook: Hook) -> Result<Vec<Filter>> {
    let parent = match hook {
        Hook::Egress => EGRESS,
        Hook::Ingress | Hook::Pod => INGRESS,
    };
    // The dump of a missing interface is empty, not an error.
    if name_of(ifindex).is_none() {
        return Err(std::io::Error::from(Errno::ENODEV).into());
    }
    let socket = open()?;
    let (fd, kernel) = (socket.as_raw_fd(), NetlinkAddr::new(0, 0));
    let flags = NLM_F_REQUEST | NLM_F_DUMP;
    let request = message(RTM_GETTFILTER, flags, [ifindex, 0, parent, 0]);
    sendto(fd, &request, &kernel, MsgFlags::empty()).context("querying filters")?;
    let mut found = Vec::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        let length = recv(fd, &mut buffer, MsgFlags::empty()).context("receiving filters")?;
        let mut rest = buffer.get(..length).unwrap_or(&buffer);
        while let (Some(size), Some(kind)) = (u32_at(rest, 0), u16_at(rest, 4)) {
            let size = size as usize;
            let Some(payload) = rest.get(HEADER..size) else {
                bail!("the kernel's answer about filters is truncated");
            };
            match kind {
                NLMSG_DONE => return Ok(found),
                NLMSG_ERROR => match failure(payload) {
                    None => return Ok(found),
                    Some(err) => return Err(err).context("querying filters"),
                },
                RTM_NEWTFILTER => found.extend(read(payload)),
                _ => {}
            }
            rest = rest.get(size.next_multiple_of(4)..).unwrap_or_default();
        }
    }
}

/// Parses a filter of the chain that packets meet; kinds with several filters list a head without a
/// handle first.
fn read(payload: &[u8]) -> Option<Filter> {
    let handle = u32_at(payload, 8)?;
    let info = u32_at(payload, 16)?;
    let attributes = payload.get(ABOUT..)?;
    let chain = attribute(attributes, TCA_CHAIN).and_then(|chain| u32_at(chain, 0));
    if handle == 0 || chain.is_some_and(|chain| chain != 0) {
        return None;
    }
    let text = |bytes: Option<&[u8]>| {
        let bytes = bytes.unwrap_or_default();
        let text = String::from_utf8_lossy(bytes);
        text.trim_end_matches('\0').to_owned()
    };
    let options = attribute(attributes, TCA_OPTIONS).unwrap_or_default();
    let kind = text(attribute(attributes, TCA_KIND));
    let is_bpf = kind == "bpf";
    let of_bpf = |wanted| attribute(options, wanted).filter(|_| is_bpf);
    Some(Filter {
        preference: (info >> 16) as u16,
        handle,
        all_protocols: info & 0xffff == u32::from(ALL_PROTOCOLS.to_be()),
        program: of_bpf(TCA_BPF_ID).and_then(|id| u32_at(id, 0)),
        name: text(of_bpf(TCA_BPF_NAME)),
        kind,
    })
}

/// Returns the kind of the qdisc in the place of clsact: `clsact`, `ingress`, or none.
///
/// # Errors
/// Returns the errors of [`list`].
pub fn qdisc(ifindex: u32) -> Result<Option<String>> {
    let about = [ifindex, 0, CLSACT, 0];
    // Without these flags some kernels, 6.18 among them, send no reply.
    let flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_ECHO;
    let attributes = query(RTM_GETQDISC, flags, RTM_NEWQDISC, about)?;
    let kind = attributes.and_then(|all| attribute(&all, TCA_KIND).map(<[u8]>::to_vec));
    Ok(kind.map(|kind| {
        String::from_utf8_lossy(&kind)
            .trim_end_matches('\0')
            .to_owned()
    }))
}

fn open() -> Result<OwnedFd> {
    socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkRoute,
    )
    .context("opening a netlink socket")
}

/// Queries one object. Returns its attributes, or `None` if there is no such object.
fn query(request: u16, flags: u16, reply: u16, about: [u32; 4]) -> Result<Option<Vec<u8>>> {
    let socket = open()?;
    let (fd, kernel) = (socket.as_raw_fd(), NetlinkAddr::new(0, 0));
    let message = message(request, flags, about);
    sendto(fd, &message, &kernel, MsgFlags::empty()).context("querying filters")?;
    let mut buffer = [0; 8192];
    // The kernel has replied before sendto(2) returns.
    let length = recv(fd, &mut buffer, MsgFlags::MSG_DONTWAIT).context("receiving filters")?;
    let received = buffer.get(..length).unwrap_or(&buffer);
    match u16_at(received, 4) {
        Some(NLMSG_ERROR) => match failure(received.get(HEADER..).unwrap_or_default()) {
            None => Ok(None),
            Some(err) => Err(err).context("querying filters"),
        },
        kind if kind == Some(reply) => Ok(received.get(HEADER + ABOUT..).map(<[u8]>::to_vec)),
        _ => bail!("the kernel's answer about filters is invalid"),
    }
}

/// Returns the error of a `struct nlmsgerr`, unless it means that there is no such object.
fn failure(payload: &[u8]) -> Option<std::io::Error> {
    let code = payload
        .first_chunk()
        .map_or(0, |code| i32::from_ne_bytes(*code));
    match Errno::from_raw(-code) {
        // A plain acknowledgement.
        _ if code == 0 => None,
        // No filter, no chain, no qdisc.
        Errno::ENOENT | Errno::EINVAL | Errno::EOPNOTSUPP => None,
        errno => Some(errno.into()),
    }
}

fn message(kind: u16, flags: u16, about: [u32; 4]) -> Vec<u8> {
    let length = HEADER + ABOUT;
    let mut message = Vec::with_capacity(length);
    message.extend(u32::try_from(length).unwrap_or_default().to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    // Sequence number, port; family and padding.
    message.extend([0; 4 + 4 + 4]);
    for word in about {
        message.extend(word.to_ne_bytes());
    }
    message
}

/// Returns the payload of an attribute.
fn attribute(mut attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    /// Masks the flags for nested attributes and byte order (`NLA_TYPE_MASK`).
    const TYPE: u16 = 0x3fff;
    loop {
        let length = usize::from(u16_at(attributes, 0)?);
        let kind = u16_at(attributes, 2)? & TYPE;
        let contents = attributes.get(ATTRIBUTE..length)?;
        if kind == wanted {
            return Some(contents);
        }
        attributes = attributes.get(length.next_multiple_of(4)..)?;
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    Some(u32::from_ne_bytes(*bytes))
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    let bytes = bytes.get(at..)?.first_chunk()?;
    Some(u16::from_ne_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::attribute;

    #[test]
    fn attributes_are_found_whatever_is_before_them() {
        let mut bytes = Vec::new();
        for (kind, contents) in [(1_u16, &b"bpf\0x"[..]), (0x8002, b"four")] {
            bytes.extend(u16::try_from(4 + contents.len()).unwrap().to_ne_bytes());
            bytes.extend(kind.to_ne_bytes());
            bytes.extend(contents);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
        assert_eq!(attribute(&bytes, 2), Some(&b"four"[..]));
        assert_eq!(attribute(&bytes, 3), None);
        assert_eq!(attribute(&[9, 0, 1, 0], 1), None, "cut short");
        assert_eq!(attribute(&[0; 8], 1), None, "no length at all");
    }
}
