//! Protocols and peers of IPsec, from the kernel's states and policies (include/uapi/linux/xfrm.h),
//! and the egress packets that its policies cover.

use anyhow::{Context as _, Result};
use ipnet::IpNet;
use netlink_packet_core::{
    NLM_F_DUMP, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR, NetlinkBuffer, NlasIterator,
};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_XFRM};
use nix::errno::Errno;
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

const XFRM_MSG_NEWSA: u16 = 0x10;
const XFRM_MSG_GETSA: u16 = 0x12;
const XFRM_MSG_NEWPOLICY: u16 = 0x13;
const XFRM_MSG_GETPOLICY: u16 = 0x15;
const XFRMA_TMPL: u16 = 5;
const XFRMA_MARK: u16 = 21;
const XFRMA_IF_ID: u16 = 31;

/// `XFRM_POLICY_OUT` and `XFRM_POLICY_BLOCK`.
const OUT: u8 = 1;
const BLOCK: u8 = 1;

/// Offsets in a `struct xfrm_selector` of the source, the ports' masks, the family, the prefix
/// lengths of destination and source, the protocol and the interface.
const SELECTOR_SOURCE: usize = 16;
const SELECTOR_DPORT_MASK: usize = 34;
const SELECTOR_SPORT_MASK: usize = 38;
const SELECTOR_FAMILY: usize = 40;
const SELECTOR_LENGTHS: usize = 42;
const SELECTOR_PROTOCOL: usize = 44;
const SELECTOR_INTERFACE: usize = 48;

/// Offsets in a `struct xfrm_userpolicy_info` of the priority, the direction and the action.
const POLICY_PRIORITY: usize = 152;
const POLICY_DIRECTION: usize = 160;
const POLICY_ACTION: usize = 161;

/// `sizeof(struct xfrm_selector)`: in `struct xfrm_usersa_info` the `struct xfrm_id` follows.
const SELECTOR: usize = 56;
/// `sizeof(struct xfrm_id)`: an address, the SPI, the protocol.
const ID: usize = 24;
/// Offset of the protocol in an `xfrm_id`.
const ID_PROTOCOL: usize = 20;
/// `offsetof(struct xfrm_usersa_info, saddr)` and `family`.
const STATE_SOURCE: usize = SELECTOR + ID;
const STATE_FAMILY: usize = 212;
/// `sizeof(struct xfrm_userpolicy_info)`, after which attributes begin.
const POLICY: usize = 168;
/// `sizeof(struct xfrm_user_tmpl)`, and the offsets of the family and the source in it.
const TEMPLATE: usize = 64;
const TEMPLATE_FAMILY: usize = 24;
const TEMPLATE_SOURCE: usize = 28;

/// An IPsec protocol with both endpoints, the node's and the peer's; an unspecified address stands
/// for any.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Ipsec {
    /// ESP, AH or IPCOMP.
    pub protocol: u8,
    /// Addresses of destination and source, in this order.
    pub ends: [IpAddr; 2],
}

/// An egress policy of IPsec.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Policy {
    /// Source prefix of the selector.
    pub source: IpNet,
    /// Destination prefix of the selector.
    pub destination: IpNet,
    /// Index of the only interface that it applies to; 0 for all.
    pub ifindex: u32,
    /// True if it applies to certain protocols, ports or marks only.
    pub narrow: bool,
    /// True if packets that match must be transformed, or must not leave at all.
    pub protects: bool,
    /// Priority: of two that match, the one with the lower number counts.
    pub priority: u32,
}

impl std::fmt::Display for Policy {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "src {} dst {}", self.source, self.destination)
    }
}

/// Reads the protocols that IPsec may use in the network namespace of the calling thread, and its
/// egress policies.
///
/// # Errors
/// Returns an error if the kernel refuses. Both are empty on a kernel without IPsec.
pub(crate) fn read() -> Result<(BTreeSet<Ipsec>, Vec<Policy>)> {
    let mut socket = match Socket::new(NETLINK_XFRM) {
        Err(err) if err.raw_os_error() == Some(Errno::EPROTONOSUPPORT as i32) => {
            return Ok((BTreeSet::new(), Vec::new()));
        }
        other => other.context("opening a netlink socket to IPsec")?,
    };
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let (mut found, mut policies) = (BTreeSet::new(), Vec::new());
    dump(&socket, XFRM_MSG_GETSA, |kind, message| {
        if kind == XFRM_MSG_NEWSA {
            found.extend(state(message));
        }
    })?;
    dump(&socket, XFRM_MSG_GETPOLICY, |kind, message| {
        if kind == XFRM_MSG_NEWPOLICY {
            found.extend(templates(message));
            policies.extend(policy(message));
        }
    })?;
    Ok((found, policies))
}

/// Dumps all objects of a kind, and passes the type and the payload of each to `each`.
fn dump(socket: &Socket, kind: u16, mut each: impl FnMut(u16, &[u8])) -> Result<()> {
    let mut request = [0; 16];
    let mut header = NetlinkBuffer::new(&mut request[..]);
    header.set_length(16);
    header.set_message_type(kind);
    header.set_flags(NLM_F_REQUEST | NLM_F_DUMP);
    header.set_sequence_number(u32::from(kind));
    socket.send(&request, 0).context("querying IPsec")?;
    loop {
        let mut datagram = Vec::with_capacity(1 << 16);
        socket.recv(&mut datagram, 0).context("reading IPsec")?;
        let mut rest = datagram.as_slice();
        while !rest.is_empty() {
            let message = NetlinkBuffer::new_checked(rest)?;
            let payload = message.payload();
            match message.message_type() {
                _ if message.sequence_number() != u32::from(kind) => {}
                NLMSG_DONE => return Ok(()),
                NLMSG_ERROR => {
                    let code = payload.first_chunk().copied().map(i32::from_ne_bytes);
                    let code = Errno::from_raw(code.unwrap_or_default().saturating_abs());
                    return Err(code).context("querying IPsec");
                }
                kind => each(kind, payload),
            }
            // Messages begin at multiples of four bytes.
            let length = (message.length() as usize).next_multiple_of(4);
            rest = rest.get(length..).unwrap_or_default();
        }
    }
}

/// Parses a `struct xfrm_usersa_info`.
fn state(message: &[u8]) -> Option<Ipsec> {
    let id = message.get(SELECTOR..)?;
    ends(
        id,
        message.get(STATE_SOURCE..)?,
        message.get(STATE_FAMILY..)?,
    )
}

/// Parses each template of a policy.
fn templates(message: &[u8]) -> Vec<Ipsec> {
    let attributes = NlasIterator::new(message.get(POLICY..).unwrap_or_default());
    let templates = attributes
        .filter_map(Result::ok)
        .filter(|a| a.kind() == XFRMA_TMPL);
    let mut found = Vec::new();
    for attribute in templates {
        for template in attribute.value().chunks_exact(TEMPLATE) {
            let (source, family) = (&template[TEMPLATE_SOURCE..], &template[TEMPLATE_FAMILY..]);
            found.extend(ends(template, source, family));
        }
    }
    found
}

/// Parses a `struct xfrm_userpolicy_info` and its attributes; `None` if the policy is not an egress
/// one. Policies of IPsec interfaces do not apply to uplinks.
fn policy(message: &[u8]) -> Option<Policy> {
    if *message.get(POLICY_DIRECTION)? != OUT {
        return None;
    }
    let attributes = NlasIterator::new(message.get(POLICY..).unwrap_or_default());
    let (mut has_templates, mut narrow) = (false, false);
    for attribute in attributes.filter_map(Result::ok) {
        let value = attribute.value();
        let is_set = || {
            value
                .first_chunk()
                .is_some_and(|word| u32::from_ne_bytes(*word) != 0)
        };
        match attribute.kind() {
            XFRMA_TMPL => has_templates = !value.is_empty(),
            // `struct xfrm_mark`: value and mask.
            XFRMA_MARK => {
                let mask = value.get(4..).unwrap_or_default();
                narrow |= mask.iter().any(|byte| *byte != 0);
            }
            XFRMA_IF_ID if is_set() => return None,
            _ => {}
        }
    }
    let words = |at: usize| message.get(at..).and_then(<[u8]>::first_chunk);
    let word = |at: usize| words(at).map(|bytes| u32::from_ne_bytes(*bytes));
    let [destination, source] = [0, 1].map(|end| message.get(SELECTOR_LENGTHS + end).copied());
    let family = i32::from(u16::from_ne_bytes(
        *message.get(SELECTOR_FAMILY..)?.first_chunk()?,
    ));
    let net = |at: usize, length: Option<u8>| -> Option<IpNet> {
        let bytes = message.get(at..)?;
        let address: IpAddr = match family {
            libc::AF_INET => Ipv4Addr::from(*bytes.first_chunk::<4>()?).into(),
            libc::AF_INET6 => Ipv6Addr::from(*bytes.first_chunk::<16>()?).into(),
            _ => return None,
        };
        Some(IpNet::new(address, length?).ok()?.trunc())
    };
    let masks = [SELECTOR_DPORT_MASK, SELECTOR_SPORT_MASK];
    let masks = masks.map(|at| message.get(at..at + 2));
    narrow |= masks.iter().flatten().any(|mask| *mask != [0, 0]);
    narrow |= *message.get(SELECTOR_PROTOCOL)? != 0;
    Some(Policy {
        destination: net(0, destination)?,
        source: net(SELECTOR_SOURCE, source)?,
        ifindex: word(SELECTOR_INTERFACE)?,
        narrow,
        protects: has_templates || *message.get(POLICY_ACTION)? == BLOCK,
        priority: word(POLICY_PRIORITY)?,
    })
}

/// Parses a `struct xfrm_id`, a source and a family.
fn ends(id: &[u8], source: &[u8], family: &[u8]) -> Option<Ipsec> {
    let family = u16::from_ne_bytes(*family.first_chunk()?);
    let protocol = *id.get(ID_PROTOCOL)?;
    let address = |bytes: &[u8]| -> Option<IpAddr> {
        match i32::from(family) {
            libc::AF_INET => Some(Ipv4Addr::from(*bytes.first_chunk::<4>()?).into()),
            libc::AF_INET6 => Some(Ipv6Addr::from(*bytes.first_chunk::<16>()?).into()),
            _ => None,
        }
    };
    let ends = [address(id)?, address(source)?];
    Some(Ipsec { protocol, ends })
}

#[cfg(test)]
mod tests {
    use super::{
        Ipsec, POLICY, Policy, SELECTOR, STATE_FAMILY, STATE_SOURCE, XFRMA_TMPL, policy, state,
        templates,
    };
    use proptest::prelude::*;

    fn esp(destination: &str, source: &str) -> Ipsec {
        Ipsec {
            protocol: 50,
            ends: [destination, source].map(|ip| ip.parse().unwrap()),
        }
    }

    #[test]
    fn a_state_has_two_ends() {
        let mut message = [0; 224];
        message[SELECTOR..SELECTOR + 4].copy_from_slice(&[192, 0, 2, 7]);
        message[SELECTOR + 20] = 50;
        message[STATE_SOURCE..STATE_SOURCE + 4].copy_from_slice(&[10, 1, 0, 10]);
        message[STATE_FAMILY..STATE_FAMILY + 2].copy_from_slice(&2u16.to_ne_bytes());
        assert_eq!(state(&message), Some(esp("192.0.2.7", "10.1.0.10")));
    }

    #[test]
    fn every_template_of_a_policy_counts() {
        let mut message = vec![0; POLICY];
        message.extend(132u16.to_ne_bytes());
        message.extend(XFRMA_TMPL.to_ne_bytes());
        for last in [7, 8] {
            let mut template = [0; 64];
            template[..4].copy_from_slice(&[192, 0, 2, last]);
            template[20] = 50;
            template[24..26].copy_from_slice(&2u16.to_ne_bytes());
            message.extend(template);
        }
        let ends = ["192.0.2.7", "192.0.2.8"].map(|ip| esp(ip, "0.0.0.0"));
        assert_eq!(templates(&message), ends);
    }

    #[test]
    fn a_policy_about_what_leaves_is_read() {
        let mut message = vec![0; POLICY];
        message[..4].copy_from_slice(&[192, 0, 2, 0]);
        message[16..20].copy_from_slice(&[10, 1, 0, 10]);
        message[40..42].copy_from_slice(&2u16.to_ne_bytes());
        message[42..44].copy_from_slice(&[24, 32]);
        message[152..156].copy_from_slice(&7u32.to_ne_bytes());
        assert_eq!(policy(&message), None, "of what comes in");
        message[160] = 1;
        let expected = Policy {
            source: "10.1.0.10/32".parse().unwrap(),
            destination: "192.0.2.0/24".parse().unwrap(),
            ifindex: 0,
            narrow: false,
            protects: false,
            priority: 7,
        };
        assert_eq!(policy(&message), Some(expected.clone()));
        let mut tcp = message.clone();
        tcp[44] = 6;
        assert!(policy(&tcp).unwrap().narrow);
        let mut protects = message.clone();
        protects.extend(68u16.to_ne_bytes());
        protects.extend(XFRMA_TMPL.to_ne_bytes());
        protects.extend([0; 64]);
        assert!(policy(&protects).unwrap().protects);
        message[161] = 1;
        assert!(policy(&message).unwrap().protects, "it blocks");
        let mut of_interface = protects;
        of_interface.extend(8u16.to_ne_bytes());
        of_interface.extend(31u16.to_ne_bytes());
        of_interface.extend(5u32.to_ne_bytes());
        assert_eq!(policy(&of_interface), None, "of an IPsec interface");
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_without_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let _ = (state(&bytes), templates(&bytes), policy(&bytes));
        }
    }
}
