//! Which program our filter of a clsact qdisc runs: questions over rtnetlink, answered at once.

use super::links::{HANDLE, Hook, PRIORITY};
use anyhow::{Context as _, Result, bail, ensure};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, socket,
};
use std::os::fd::AsRawFd as _;

/// Message types of include/uapi/linux/rtnetlink.h and netlink.h.
const RTM_NEWQDISC: u16 = 36;
const RTM_GETQDISC: u16 = 38;
const RTM_NEWTFILTER: u16 = 44;
const RTM_GETTFILTER: u16 = 46;
const NLMSG_ERROR: u16 = 2;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLM_F_ECHO: u16 = 8;

/// `TC_H_MAKE(TC_H_CLSACT, …)` of include/uapi/linux/pkt_sched.h.
const CLSACT: u32 = 0xffff_fff1;
const INGRESS: u32 = 0xffff_fff2;
const EGRESS: u32 = 0xffff_fff3;

/// Attributes of a filter, and of one that runs a BPF program (include/uapi/linux/pkt_cls.h).
const TCA_KIND: u16 = 1;
const TCA_OPTIONS: u16 = 2;
const TCA_BPF_ID: u16 = 11;

/// `ETH_P_ALL`.
const ALL_PROTOCOLS: u16 = 3;

/// Sizes of `struct nlmsghdr`, `struct tcmsg` and `struct nlattr`.
const HEADER: usize = 16;
const ABOUT: usize = 20;
const ATTRIBUTE: usize = 4;

/// The id of the program that our filter at the hook runs; `None` without one.
///
/// # Errors
/// There is no such interface (`ENODEV`), or the kernel can't be asked.
pub fn program(ifindex: u32, hook: Hook) -> Result<Option<u32>> {
    let parent = match hook {
        Hook::Egress => EGRESS,
        Hook::Ingress | Hook::Pod => INGRESS,
    };
    let info = u32::from(PRIORITY) << 16 | u32::from(ALL_PROTOCOLS.to_be());
    let about = [ifindex, HANDLE.into(), parent, info];
    let flags = NLM_F_REQUEST;
    let kind = Some(b"bpf\0");
    let Some(attributes) = ask(RTM_GETTFILTER, flags, RTM_NEWTFILTER, about, kind)? else {
        return Ok(None);
    };
    let id = attribute(&attributes, TCA_OPTIONS)
        .and_then(|options| attribute(options, TCA_BPF_ID))
        .and_then(|id| id.first_chunk())
        .map(|id| u32::from_ne_bytes(*id));
    ensure!(id.is_some(), "the kernel tells no program of a filter");
    Ok(id)
}

/// The kind of the qdisc in the place of clsact: that, `ingress`, or none.
///
/// # Errors
/// As for [`program`].
pub fn qdisc(ifindex: u32) -> Result<Option<String>> {
    let about = [ifindex, 0, CLSACT, 0];
    // Without these some kernels, 6.18 among them, do not answer.
    let flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_ECHO;
    let attributes = ask(RTM_GETQDISC, flags, RTM_NEWQDISC, about, None)?;
    let kind = attributes.and_then(|all| attribute(&all, TCA_KIND).map(<[u8]>::to_vec));
    Ok(kind.map(|kind| {
        String::from_utf8_lossy(&kind)
            .trim_end_matches('\0')
            .to_owned()
    }))
}

/// Asks about one object; `None` if there is none, else its attributes.
fn ask(
    question: u16,
    flags: u16,
    answer: u16,
    about: [u32; 4],
    kind: Option<&[u8; 4]>,
) -> Result<Option<Vec<u8>>> {
    let socket = socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkRoute,
    )
    .context("opening a netlink socket")?;
    let (fd, kernel) = (socket.as_raw_fd(), NetlinkAddr::new(0, 0));
    let message = message(question, flags, about, kind);
    sendto(fd, &message, &kernel, MsgFlags::empty()).context("asking about filters")?;
    let mut buffer = [0; 8192];
    // The kernel has answered before sendto(2) returns.
    let length = recv(fd, &mut buffer, MsgFlags::MSG_DONTWAIT).context("hearing of filters")?;
    let heard = buffer.get(..length).unwrap_or(&buffer);
    match u16_at(heard, 4) {
        Some(NLMSG_ERROR) => {
            let code = heard.get(HEADER..).and_then(<[u8]>::first_chunk);
            let code = code.map_or(0, |code| i32::from_ne_bytes(*code));
            match Errno::from_raw(-code) {
                // Only that the question was heard.
                _ if code == 0 => Ok(None),
                // No filter, no chain, no qdisc.
                Errno::ENOENT | Errno::EINVAL | Errno::EOPNOTSUPP => Ok(None),
                errno => Err(std::io::Error::from(errno)).context("asking about filters"),
            }
        }
        kind if kind == Some(answer) => Ok(heard.get(HEADER + ABOUT..).map(<[u8]>::to_vec)),
        _ => bail!("the kernel's answer about filters is none"),
    }
}

fn message(kind: u16, flags: u16, about: [u32; 4], filter: Option<&[u8; 4]>) -> Vec<u8> {
    let attribute = filter.map_or(0, |filter| ATTRIBUTE + filter.len());
    let length = HEADER + ABOUT + attribute;
    let mut message = Vec::with_capacity(length);
    message.extend(u32::try_from(length).unwrap_or_default().to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    // Sequence number, port; family and padding.
    message.extend([0; 4 + 4 + 4]);
    for word in about {
        message.extend(word.to_ne_bytes());
    }
    if let Some(filter) = filter {
        message.extend(8_u16.to_ne_bytes());
        message.extend(TCA_KIND.to_ne_bytes());
        message.extend(filter);
    }
    message
}

/// The contents of an attribute.
fn attribute(mut attributes: &[u8], wanted: u16) -> Option<&[u8]> {
    /// Without the flags that tell nested ones apart.
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
